"""Random rotations, shifts and scalings of images, for a batch at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(images: Tensor, degrees: float, shift: float = 0.0, scale: float = 0.0) -> Tensor:
    """Rotate, shift and scale each image at random; torchvision draws only once for a batch.

    Args:
        images: `(B, 1, H, W)` in [-1, 1]; black (-1) beyond the edge.
        degrees: the largest rotation either way; uniform, like the two below.
        shift: the largest shift either way, as a share of the width.
        scale: the largest change of the size either way, as a share of it.
    """
    draws = 2 * torch.rand(4, len(images), device=images.device) - 1
    turn, shift_x, shift_y, size = draws.unbind()
    angle, size = turn * math.radians(degrees), 1 + scale * size
    rows = [
        torch.stack([angle.cos() * size, -angle.sin() * size, 2 * shift * shift_x], 1),
        torch.stack([angle.sin() * size, angle.cos() * size, 2 * shift * shift_y], 1),
    ]
    deterministic = images.is_cuda and torch.are_deterministic_algorithms_enabled()
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round the places
        grid = affine_grid(torch.stack(rows, 1), *images.shape[2:])
        if images.requires_grad and deterministic:
            return sample_by_gathers(images.float() + 1, grid).sub_(1)
        return F.grid_sample(images.float() + 1, grid, align_corners=False).sub_(1)


def affine_grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """`F.affine_grid` of `(B, 2, 3)` matrices, `(B, height, width, 2)`, four times as fast."""
    # The centres of the pixels.
    x, y = (torch.linspace(-1, 1, n, device=matrices.device) * (n - 1) / n for n in (width, height))
    by_x, by_y, shift = matrices[..., None, None].unbind(2)  # (B, 2, 1, 1) each
    return (by_x * x + by_y * y[:, None]).add_(shift).permute(0, 2, 3, 1)


def sample_by_gathers(images: Tensor, grid: Tensor) -> Tensor:
    """`F.grid_sample` of `(B, 1, H, W)` images, bilinear, zero beyond the edge. Its gradient is
    deterministic on a GPU too."""
    height, width = images.shape[2:]
    x = ((grid[..., 0] + 1) * width - 1) / 2  # (B, H, W) in pixels
    y = ((grid[..., 1] + 1) * height - 1) / 2
    pixels, sampled = images.flatten(1), torch.zeros_like(x)
    for column in (x.floor(), x.floor() + 1):
        for row in (y.floor(), y.floor() + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            sampled = sampled + weight * pixels.gather(1, index.long().flatten(1)).view_as(x)
    return sampled[:, None]


def augment(images: Tensor, augmentation: float) -> Tensor:
    """Augment `(B, 1, H, W)` images in [-1, 1]: rotation up to 10 degrees, shift 4 %, scale 10 %,
    each times `augmentation`."""
    return random_affine(images, 10 * augmentation, 0.04 * augmentation, 0.1 * augmentation)


def augment_uint8(images: Tensor, augmentation: float) -> Tensor:
    """Augment `(B, H, W)` uint8 images as `augment` does; returns float32 in [0, 1]."""
    augmented = augment(images[:, None].float() / 127.5 - 1, augmentation)
    return augmented[:, 0].add(1).div(2).clamp(0, 1)
