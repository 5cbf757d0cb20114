"""The judge vit: a small vision transformer.

Source: A. Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021. Its patches overlap,
because the images are small. The mean of all tokens takes the place of a class token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.judge_kernel import SIDE, shrink

PATCH, STRIDE = 10, 6  # pixels: 4 x 4 patches, each sharing 4 pixels with the next


def gelu(x: Tensor) -> Tensor:
    """The exact one, always: of PyTorch's own, "gelu", the layers' fast path on GPUs computes an
    approximation by tanh."""
    return F.gelu(x)


class ViTJudge(nn.Module):
    """`(B, 1, 64, 64)` images in [-1, 1] -> `(B, classes)` logits.

    Args:
        width: of a token.
        depth: number of layers.
        classes: of the classifier on top.
    """

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 10) -> None:
        super().__init__()
        tokens = ((SIDE - PATCH) // STRIDE + 1) ** 2
        self.embedding = nn.Linear(PATCH * PATCH, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        # No dropout: the images are rotated and shifted at random in every epoch. The norm comes
        # first, so no warm-up is needed.
        options = {"dropout": 0.0, "activation": gelu, "batch_first": True, "norm_first": True}
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, **options) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        small = shrink(images)  # B x 1 x 28 x 28
        patches = F.unfold(small, PATCH, stride=STRIDE).transpose(1, 2)  # B x 16 x 100
        tokens = self.layers(self.embedding(patches) + self.position)  # B x 16 x width
        logits = self.classifier(self.norm(tokens).mean(1))  # B x classes
        return logits.to(self.classifier.weight.dtype)  # autocast gives bfloat16
