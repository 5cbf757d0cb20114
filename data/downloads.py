"""MNIST, Fashion-MNIST and EMNIST, read and downloaded by torchvision."""

import math
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.files import UserError
from data.parts import Digits, Part

# the last of MNIST's 60,000 training images: other writers than most of the first ones
VALIDATION = 5000
# bytes of MNIST's or EMNIST's largest file; the official ones have at most 547 million
MAX_IDX = 1024**3


def load_mnist(part: Part, root: Path, kind: str = "MNIST") -> Digits:
    """A part of MNIST, or of another data set of torchvision's in the same files, such as
    `FashionMNIST`."""
    dataset = _torchvision(kind, root, train=part != "test")
    if part == "test":
        return Digits(dataset.data, dataset.targets)
    if len(dataset.data) <= VALIDATION:
        raise UserError(
            f"{root}/{kind} holds {len(dataset.data)} training images, but {VALIDATION} are needed "
            "for validation alone."
        )
    kept = slice(-VALIDATION, None) if part == "validation" else slice(None, -VALIDATION)
    return Digits(dataset.data[kept], dataset.targets[kept])


def load_fashion_mnist(part: Part, root: Path) -> Digits:
    """A part of Fashion-MNIST."""
    return load_mnist(part, root, "FashionMNIST")


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
    dataset = _torchvision("EMNIST", root, split=split, train=emnist_part == "train")
    return Digits(dataset.data.transpose(1, 2).contiguous(), dataset.targets)  # stored transposed


def _torchvision(kind: str, root: Path, **which: Any) -> Any:
    """A data set of torchvision's, downloaded if it is not there."""
    from torchvision import datasets  # it takes as long to import as PyTorch

    folder = Path(root) / kind / "raw"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    split = which.get("split")
    prefixes = (
        [f"emnist-{split}-{'train' if which['train'] else 'test'}"] if split else ["train", "t10k"]
    )
    names = [
        f"{prefix}-{rest}"
        for prefix in prefixes
        for rest in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    for name in names:
        if not _is_idx(folder / name):
            raise UserError(f"{folder / name} is damaged; delete it and put a whole one there.")
    first = prefixes[0 if split or which["train"] else 1]
    images_file, labels_file = (name for name in names if name.startswith(f"{first}-"))
    damaged = UserError(
        f"{folder} holds damaged files; delete them and put whole ones there: {images_file}, "
        f"{labels_file}."
    )
    if (folder.parent / "processed").exists():  # which torchvision would read instead
        raise UserError(f"{folder.parent / 'processed'} is of an old torchvision; delete it.")
    try:
        dataset = getattr(datasets, kind)(str(root), download=False, **which)
    except Exception as error:
        # torchvision says "not found" for what is missing; anything else means that a file is there
        # but damaged.
        if "not found" not in str(error):
            raise damaged from error
        try:
            dataset = getattr(datasets, kind)(str(root), download=True, **which)
        except Exception as failure:
            for place in made:  # by torchvision, and left empty
                with suppress(OSError):
                    place.rmdir()
            raise UserError(
                f"{kind} is not in {folder} and cannot be downloaded; {_way_out(folder, names)}, "
                "or name their folder with --data-root or LISTEN_DATA."
            ) from failure
    labels = dataset.targets
    if dataset.data.dim() != 3 or dataset.data.shape[1:] != (28, 28):
        raise UserError(f"{folder / images_file} holds no images of 28 x 28; put another there.")
    if len(dataset.data) != len(labels):
        raise damaged  # one of both
    if not len(labels) or labels.max() > (61 if kind == "EMNIST" else 9):
        raise UserError(f"{folder / labels_file} holds no labels of {kind}; put another there.")
    return dataset


def _way_out(folder: Path, names: list[str]) -> str:
    """What to do about missing files: rename or unpack one that has nearly their name."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name.replace(".idx", "-idx")  # as LeCun's site spelt it
        if path.name not in names and name.removesuffix(".gz") in names:
            verb = "unpack" if name.endswith(".gz") else "rename"
            return f"{verb} {path.name} to {name.removesuffix('.gz')}"
    return f"put there the files {', '.join(names)}"


def _is_idx(path: Path) -> bool:
    """Whether a file of bytes is as long as its header says, and no larger than MAX_IDX; also if it
    is missing. torchvision reads all of a file before it looks."""
    if not path.is_file():
        return True
    dimensions = 3 if "images" in path.name else 1
    head = 4 + 4 * dimensions
    with open(path, "rb") as file:
        content = file.read(head)
    if len(content) < head or path.stat().st_size > MAX_IDX:
        return False
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content)
    return magic == 0x800 + dimensions and path.stat().st_size == head + math.prod(shape)
