"""The generator of a DCGAN: the visual memory of someone who once saw.

Source: A. Radford et al., "Unsupervised representation learning with deep convolutional generative
adversarial networks", ICLR 2016, laid out as in pytorch/examples `dcgan`, with one channel."""

import torch
from torch import Tensor, nn

NOISE_SIZE = 100  # of the noise, and so of the embedding that takes its place. Published: 100


class Generator(nn.Module):
    """Noise, or an embedding -> an image.

    Args:
        width: channels of the last hidden layer. Published: 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = g = width
        self.layers = nn.Sequential(  # 100 x 1 x 1
            nn.ConvTranspose2d(NOISE_SIZE, 8 * g, 4, 1, 0, bias=False),
            nn.BatchNorm2d(8 * g), nn.ReLU(),  # 8g x 4 x 4
            nn.ConvTranspose2d(8 * g, 4 * g, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * g), nn.ReLU(),  # 4g x 8 x 8
            nn.ConvTranspose2d(4 * g, 2 * g, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * g), nn.ReLU(),  # 2g x 16 x 16
            nn.ConvTranspose2d(2 * g, g, 4, 2, 1, bias=False),
            nn.BatchNorm2d(g), nn.ReLU(),  # g x 32 x 32
            nn.ConvTranspose2d(g, 1, 4, 2, 1, bias=False),
            nn.Tanh(),  # 1 x 64 x 64
        )  # fmt: skip
        self.apply(dcgan_init)

    def forward(self, noise: Tensor) -> Tensor:
        """`(B, 100)` of mean 0 and variance 1 -> `(B, 1, 64, 64)` in [-1, 1]."""
        images = self.layers(noise[:, :, None, None])
        return images.to(self.layers[0].weight.dtype)  # autocast gives bfloat16


def dcgan_init(layer: nn.Module) -> None:
    """N(0, 0.02) for convolutions, N(1, 0.02) for the scale of BatchNorm, as in the DCGAN paper."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)


def seeded_noise(count: int, seed: int, device: torch.device) -> Tensor:
    """`(count, 100)` standard normal, always the same for a seed, on every device."""
    return torch.randn(count, NOISE_SIZE, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> Tensor:
    """`(N, 100)` noise -> `(N, 1, 64, 64)` samples in [-1, 1], in eval mode."""
    generator.eval()
    return torch.cat([generator(part) for part in z.split(256)])
