"""The log-mels of a data set, kept between epochs."""

import math

import torch
from torch import Tensor

from data.augment import augment_uint8
from vggish import BANDS, ImageToLogMel


class LogMelCache:
    """The log-mels of `images`, by index: `cache[index]` is `(B, 1, frames, 64)` float32, without
    gradient.

    Log-mels that are used more than once are computed once and kept in float16, which rounds them
    by up to 0.002. They must fit into `gigabytes` on the device of the images (60,000 of 1.05 s
    take 0.86); otherwise they are computed each time.

    Args:
        front_end: images -> log-mels.
        images: as the front end takes them, `(N, H, W)`.
        count: how many log-mels will be asked for in all.
        gigabytes: the most that the cache may take.
        augmentation: the strength of `augment_uint8`, drawn again each time; with it nothing is
            kept.
    """

    def __init__(
        self, front_end: ImageToLogMel, images: Tensor, count: int, gigabytes: float,
        augmentation: float = 0.0,
    ) -> None:  # fmt: skip
        self.front_end, self.images, self.augmentation = front_end, images, augmentation
        self.kept: Tensor | None = None
        shape = (len(images), 1, front_end.frames, BANDS)
        fits = math.prod(shape) * 2 <= gigabytes * 1e9
        if not augmentation and count > len(images) and fits:
            self.kept = images.new_empty(shape, dtype=torch.float16)
            with torch.no_grad():
                for part, place in zip(images.split(1000), self.kept.split(1000), strict=True):
                    place.copy_(front_end(part))

    def __getitem__(self, index: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept[index].float()
        images = self.images[index]
        if self.augmentation:
            images = augment_uint8(images, self.augmentation)
        with torch.no_grad():
            return self.front_end(images)
