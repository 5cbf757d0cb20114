"""The judge kernel: a kernel classifier on pixels, which learns no features.

Gaussian kernels around real images, and a linear map behind them. `fit_kernel_judge` in
evaluation/judges.py finds the map in closed form: the Nystroem approximation of C. Williams and M.
Seeger, "Using the Nystroem method to speed up kernel machines", NeurIPS 2000.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 28  # pixels, to which images are shrunk


def shrink(images: Tensor) -> Tensor:
    """`(B, 1, 64, 64)` -> `(B, 1, 28, 28)`, bilinear and antialiased, in the same precision."""
    # On the CPU the antialiased kernel has no half precision.
    wide = images if images.dtype == torch.float64 else images.float()
    small = F.interpolate(wide, (SIDE, SIDE), mode="bilinear", antialias=True)
    return small.to(images.dtype)


class KernelJudge(nn.Module):
    """`(B, 1, 64, 64)` images in [-1, 1] -> `(B, classes)` scores.

    Args:
        centres: number of real digits with which an image is compared.
        gamma: inverse width of the kernels, exp(-gamma * squared distance).
        classes: of the classifier on top.
    """

    centres: Tensor
    weights: Tensor

    def __init__(self, centres: int = 2000, gamma: float = 2.0, classes: int = 10) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("centres", torch.zeros(centres, SIDE * SIDE))
        self.register_buffer("weights", torch.zeros(centres, classes))

    @staticmethod
    def pixels(images: Tensor) -> Tensor:
        """`(B, 1, 64, 64)` -> `(B, 784)` of mean 0 and length 1, so that a grey digit is read like
        a white one."""
        small = shrink(images).flatten(1)
        return F.normalize(small - small.mean(1, keepdim=True), dim=1)

    def kernels(self, pixels: Tensor) -> Tensor:
        """`(B, 784)` of length 1 -> `(B, centres)` in (0, 1]."""
        # Of unit vectors, |a - b|^2 is 2 - 2ab.
        return torch.exp(2 * self.gamma * (pixels @ self.centres.T - 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.kernels(self.pixels(images)) @ self.weights
