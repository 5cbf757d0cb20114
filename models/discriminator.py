"""The discriminator of a DCGAN, the mirror of its generator. Same source."""

from torch import Tensor, nn

from models.generator import dcgan_init


class Discriminator(nn.Module):
    """`(B, 1, 64, 64)` images in [-1, 1] -> `(B,)` logits, positive for "real".

    Args:
        width: channels of the first layer. Published: 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        d = width
        self.layers = nn.Sequential(  # 1 x 64 x 64
            nn.Conv2d(1, d, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2),  # d x 32 x 32
            nn.Conv2d(d, 2 * d, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * d), nn.LeakyReLU(0.2),  # 2d x 16 x 16
            nn.Conv2d(2 * d, 4 * d, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * d), nn.LeakyReLU(0.2),  # 4d x 8 x 8
            nn.Conv2d(4 * d, 8 * d, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8 * d), nn.LeakyReLU(0.2),  # 8d x 4 x 4
            nn.Conv2d(8 * d, 1, 4, 1, 0, bias=False),
            nn.Flatten(0),  # 1
        )  # fmt: skip
        self.apply(dcgan_init)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).to(self.layers[0].weight.dtype)  # autocast gives bfloat16
