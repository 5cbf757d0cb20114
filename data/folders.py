"""A folder of one's own pictures as a data set: one subfolder a class, torchvision's ImageFolder
layout."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from common.files import UserError
from common.media import read_picture
from data.parts import Digits, Part

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
LEAST = 10  # pictures a class: seven to train, one to validate, two to test


def loader(name: str) -> Callable[[Part, Path], Digits]:
    """A function that loads a part of `<data root>/<name>/`; see `load_folder`."""
    return lambda part, root: load_folder(Path(root) / name, part)


def namer(name: str) -> Callable[[Path], tuple[str, ...]]:
    """A function that gives the class names of `<data root>/<name>/`."""
    return lambda root: tuple(folder.name for folder in class_folders(Path(root) / name))


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of `folder`, one a class, sorted by name.

    Raises:
        UserError: if it is missing, or has fewer than two subfolders.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing; make it, with one subfolder of pictures for each class."
        )
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if len(classes) < 2:
        raise UserError(
            f"{folder} has {len(classes)} subfolders; it needs one for each class, and at least "
            "two."
        )
    return classes


def load_folder(folder: Path, part: Part) -> Digits:
    """The pictures of `folder`, grey and resized to 28 x 28. Of each class 70 % train, 10 %
    validate, 20 % test, fixed.

    Raises:
        UserError: if a class has fewer than ten pictures, or a picture cannot be read.
    """
    every = _read_folder(folder, tuple(class_folders(folder)))
    images, labels = [], []
    for label, pictures in enumerate(every):
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        test, validation = len(order) // 5, max(1, len(order) // 10)
        ranges = {
            "test": order[:test],
            "validation": order[test : test + validation],
            "train": order[test + validation :],
        }
        images.append(pictures[ranges[part]])
        labels.append(torch.full((len(ranges[part]),), label))
    return Digits(torch.cat(images), torch.cat(labels))


@lru_cache(2)
def _read_folder(folder: Path, classes: tuple[Path, ...]) -> list[torch.Tensor]:
    """The pictures of each class, `(N, 28, 28)` uint8."""
    every = []
    for one in classes:
        paths = sorted(
            path
            for path in one.iterdir()
            if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        )
        if len(paths) < LEAST:
            raise UserError(
                f"{one} holds {len(paths)} pictures ({', '.join(SUFFIXES)}); a class needs at "
                f"least {LEAST}."
            )
        every.append(torch.stack([to_28x28(read_picture(path)) for path in paths]))
    return every


def to_28x28(picture: torch.Tensor) -> torch.Tensor:
    """Reduce, or enlarge, `(H, W)` uint8 to `(28, 28)` uint8, bilinear and antialiased."""
    if picture.shape == (28, 28):
        return picture
    resized = F.interpolate(picture[None, None].float(), (28, 28), mode="bilinear", antialias=True)
    return resized[0, 0].round().clamp(0, 255).byte()
