"""What a data set gives: the images and labels of one of its parts."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Part = Literal["train", "validation", "test"]


class Digits(NamedTuple):
    """Images and their labels; of any classes, though most data sets here are digits."""

    images: Tensor  # (N, 28, 28) uint8, upright, white on black
    labels: Tensor  # (N,) int64, from 0 on


def divide(count: int, part: Part, test: int, validation: int) -> Tensor:
    """The indices of one part of `count` images, in a fixed random order: so many are for test and
    validation, and the others for training."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split((test, test + validation))
    return parts[("test", "validation", "train").index(part)]
