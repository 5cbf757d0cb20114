"""MNIST, Fashion-MNIST and EMNIST, downloaded by torchvision into its own folders."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import UserError
from data.parts import Digits, Part

ENDINGS = ("images-idx3-ubyte", "labels-idx1-ubyte")  # of the files' names
VALIDATION = 5000  # the last of MNIST's training images: other writers than most of the first ones
MAX_IDX = 1024**3  # bytes of a file; the official ones have at most 547 million


def load_mnist(kind: str, part: Part, root: Path) -> Digits:
    """A part of `MNIST`, or of another data set of torchvision's in files of the same names, such
    as `FashionMNIST`."""
    if part == "test":
        return _load(kind, root, ("train", "t10k"), "t10k")
    images, labels = _load(kind, root, ("train", "t10k"), "train")
    if len(labels) <= VALIDATION:
        raise UserError(
            f"{root}/{kind} holds {len(labels)} training images, but {VALIDATION} are needed "
            "for validation alone."
        )
    kept = slice(-VALIDATION, None) if part == "validation" else slice(None, -VALIDATION)
    return Digits(images[kept], labels[kept])


def load_emnist(split: str, emnist_part: str, root: Path) -> Digits:
    """All characters of one official file of EMNIST, turned upright.

    Args:
        split: mnist, digits, byclass, bymerge, balanced or letters.
        emnist_part: `train` or `test`, the official file.
        root: torchvision's folder.
    """
    from torchvision import datasets

    if split not in datasets.EMNIST.splits:
        raise UserError(
            f"EMNIST has no split {split!r}; give one of {', '.join(datasets.EMNIST.splits)}."
        )
    name, train = f"emnist-{split}-{emnist_part}", emnist_part == "train"
    images, labels = _load("EMNIST", root, (name,), name, split=split, train=train)
    return Digits(images.transpose(1, 2).contiguous(), labels)  # stored transposed


def _load(kind: str, root: Path, every: tuple[str, ...], name: str, **which: Any) -> Digits:
    """The images and labels of the files that begin with `name`. If files that begin with any of
    `every` are missing, torchvision downloads its data set `kind`, of which it takes `which`."""
    folder = Path(root) / kind / "raw"
    names = [f"{each}-{ending}" for each in every for ending in ENDINGS]
    if not all((folder / each).is_file() for each in names):
        _download(kind, folder, names, which)
    images_path, labels_path = (folder / f"{name}-{ending}" for ending in ENDINGS)
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1).long()
    if images.shape[1:] != (28, 28):
        raise UserError(f"{images_path} holds no images of 28 x 28; put another there.")
    if len(images) != len(labels):
        raise UserError(
            f"{folder} holds damaged files; delete them and put whole ones there: "
            f"{images_path.name}, {labels_path.name}."
        )
    if not len(labels) or labels.max() > (61 if kind == "EMNIST" else 9):
        raise UserError(f"{labels_path} holds no labels of {kind}; put another there.")
    return Digits(images, labels)


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes in a file of MNIST's format, uint8.

    Raises:
        UserError: if it is longer than MAX_IDX or than its header says, or shorter.
    """
    magic, *shape = head = np.fromfile(path, ">u4", 1 + dimensions).tolist() or [0]
    size = 4 * len(head) + math.prod(shape)
    whole = len(shape) == dimensions and path.stat().st_size == size <= MAX_IDX
    if magic != 0x800 + dimensions or not whole:
        raise UserError(f"{path} is damaged; delete it and put a whole one there.")
    content = np.fromfile(path, np.uint8, offset=4 * len(head))
    return torch.from_numpy(content.reshape(shape))


def _download(kind: str, folder: Path, names: list[str], which: dict[str, Any]) -> None:
    """Download torchvision's data set `kind`, whose files `names` belong into `folder`."""
    from torchvision import datasets  # it takes as long to import as PyTorch

    if (folder.parent / "processed").exists():  # which torchvision would read instead
        raise UserError(f"{folder.parent / 'processed'} is of an old torchvision; delete it.")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        getattr(datasets, kind)(str(folder.parent.parent), download=True, **which)
    except Exception as error:
        for place in made:  # by torchvision, and left empty
            with suppress(OSError):
                place.rmdir()
        way_out = f"put there the files {', '.join(names)}"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = path.name.replace(".idx", "-idx")  # as LeCun's site spelt it
            if path.name not in names and name.removesuffix(".gz") in names:
                verb = "unpack" if name.endswith(".gz") else "rename"
                way_out = f"{verb} {path.name} to {name.removesuffix('.gz')}"
        raise UserError(
            f"{kind} is not in {folder} and cannot be downloaded; {way_out}, or name their folder "
            "with --data-root or LISTEN_DATA."
        ) from error
