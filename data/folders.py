"""A folder of one's own pictures as a data set: one subfolder a class, torchvision's ImageFolder
layout."""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import UserError
from common.media import find_pictures, read_picture
from data.parts import Digits, Part, divide

LEAST = 10  # pictures a class: seven to train, one to validate, two to test


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of `folder`, one a class, sorted by name.

    Raises:
        UserError: if it is missing, or has fewer than two subfolders.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing; make it, with one subfolder of pictures for each class."
        )
    classes = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} subfolders; it needs one for each class, at least two."
        )
    return classes


def class_names(name: str, root: Path) -> tuple[str, ...]:
    """The names of the subfolders of `<root>/<name>/`; raises as `class_folders` does."""
    return tuple(folder.name for folder in class_folders(Path(root) / name))


def load_folder(name: str, part: Part, root: Path) -> Digits:
    """The pictures of `<root>/<name>/`, grey and resized to 28 x 28. Of each class 70 % train, 10 %
    validate, 20 % test, fixed.

    Raises:
        UserError: if a class has fewer than ten pictures, or a picture cannot be read.
    """
    images, labels = [], []
    for label, pictures in enumerate(_read_folder(tuple(class_folders(Path(root) / name)))):
        count = len(pictures)
        images.append(pictures[divide(count, part, count // 5, max(1, count // 10))])
        labels.append(torch.full((len(images[-1]),), label))
    return Digits(torch.cat(images), torch.cat(labels))


@lru_cache(2)
def _read_folder(classes: tuple[Path, ...]) -> list[Tensor]:
    """The pictures of each class, `(N, 28, 28)` uint8."""
    every = []
    for folder in classes:
        paths = find_pictures([folder])
        if len(paths) < LEAST:
            raise UserError(
                f"{folder} holds {len(paths)} pictures; a class needs at least {LEAST}."
            )
        every.append(torch.stack([to_28x28(read_picture(path)) for path in paths]))
    return every


def to_28x28(picture: Tensor) -> Tensor:
    """Reduce, or enlarge, `(H, W)` uint8 to `(28, 28)` uint8, bilinear and antialiased."""
    if picture.shape == (28, 28):
        return picture
    resized = F.interpolate(picture[None, None].float(), (28, 28), mode="bilinear", antialias=True)
    return resized[0, 0].round().clamp(0, 255).byte()
