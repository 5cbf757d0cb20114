"""What a data set gives: the images and labels of one of its parts."""

from typing import Literal, NamedTuple

from torch import Tensor

Part = Literal["train", "validation", "test"]


class Digits(NamedTuple):
    """Images and their labels; of any classes, though most data sets here are digits."""

    images: Tensor  # (N, 28, 28) uint8, upright, white on black
    labels: Tensor  # (N,) int64, from 0 on
