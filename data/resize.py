"""Between the 28 x 28 pixels of a data set and the 64 x 64 pixels that the networks work with."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(images: Tensor) -> Tensor:
    """`(B, 28, 28)` uint8 -> `(B, 1, 64, 64)` float32 in [-1, 1], bilinear: what generator and
    classifiers work with."""
    return F.interpolate(images[:, None].float() / 127.5 - 1, (64, 64), mode="bilinear")


def downsample_lstsq(seen: Tensor) -> Tensor:
    """The way back of `upsample`: `(B, 1, 64, 64)` in [-1, 1] -> `(B, 1, 28, 28)` in [0, 1],
    differentiable.

    An image that no drawing looks like, enlarged, may come back from a little outside of [0, 1].

    By least squares: the image that, enlarged by `upsample`, comes nearest to this. So an image
    that was enlarged comes back as it was. A plain reduction would blur it, and then no image as
    seen would sound like the drawing that it shows."""
    return (_both_axes(_reduction(seen.device), seen) + 1) / 2


def project_to_28x28(seen: Tensor) -> Tensor:
    """`(B, 1, 64, 64)` in [-1, 1] -> the nearest image that is an enlargement of 28 x 28 pixels,
    `(B, 1, 64, 64)`: there and back by `downsample_lstsq` and `upsample`."""
    return _both_axes(_projection(seen.device), seen)


def _both_axes(matrix: Tensor, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return matrix @ images.float() @ matrix.T


@cache
def _enlargement() -> Tensor:
    """What `upsample` does to one axis, `(64, 28)` float32."""
    return F.interpolate(torch.eye(28)[None, None], (64, 28), mode="bilinear")[0, 0]


@cache
def _reduction(device: torch.device) -> Tensor:
    """Its pseudo-inverse, `(28, 64)` float32; well conditioned, its singular values lie between
    0.66 and 1.15."""
    return torch.linalg.pinv(_enlargement().double()).float().to(device)


@cache
def _projection(device: torch.device) -> Tensor:
    """There and back, `(64, 64)` float32."""
    with torch.autocast("cpu", enabled=False):
        return (_enlargement() @ _reduction(torch.device("cpu"))).to(device)
