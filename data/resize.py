"""Between the 28 x 28 pixels of a data set and the 64 x 64 pixels that the networks work with."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import constant_mode


def upsample(images: Tensor) -> Tensor:
    """Enlarge `(B, 28, 28)` uint8 to `(B, 1, 64, 64)` float32 in [-1, 1], bilinear."""
    return F.interpolate(images[:, None].float() / 127.5 - 1, (64, 64), mode="bilinear")


def downsample_lstsq(images: Tensor) -> Tensor:
    """Reduce `(B, 1, 64, 64)` in [-1, 1] to `(B, 1, 28, 28)` in [0, 1] by least squares.

    The result is the image whose enlargement by `upsample` is nearest to the input. So an enlarged
    image comes back unchanged, and another may leave [0, 1] a little. Differentiable."""
    return (_both_axes(_reduction(images.device), images) + 1) / 2


def project_to_28x28(images: Tensor) -> Tensor:
    """Replace `(B, 1, 64, 64)` images in [-1, 1] by the nearest enlargements of 28 x 28 pixels."""
    return _both_axes(_projection(images.device), images)


def _both_axes(matrix: Tensor, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return matrix @ images.float() @ matrix.T


@cache
@constant_mode()
def _enlargement() -> Tensor:
    """The matrix by which `upsample` enlarges one axis, `(64, 28)` float32."""
    return F.interpolate(torch.eye(28)[None, None], (64, 28), mode="bilinear")[0, 0]


@cache
@constant_mode()
def _reduction(device: torch.device) -> Tensor:
    """Its pseudo-inverse, `(28, 64)` float32. Its singular values lie between 0.66 and 1.15."""
    return torch.linalg.pinv(_enlargement().double()).float().to(device)


@cache
@constant_mode()
def _projection(device: torch.device) -> Tensor:
    """The product of both, `(64, 64)` float32."""
    return (_enlargement() @ _reduction(torch.device("cpu"))).to(device)
