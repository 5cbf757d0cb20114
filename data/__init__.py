"""The data sets, as uint8 tensors that live on the device. To add one, add an entry to `DATASETS`.

Stage one, stage three and the classifier of stage two take a data set with a test part. The GAN of
stage two takes any: of its training part, a fixed tenth is held out for validation. `handwritten`
and `printed` need no download."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from common.files import UserError
from data import downloads, folders, synthetic
from data.parts import Digits, Part, divide

DIGITS = tuple("0123456789")
CLOTHES = "T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"


class DataSet(NamedTuple):
    """A data set; `Path` is the folder of all data."""

    load: Callable[[Part, Path], Digits]  # a part, train, validation or test -> its contents
    # A name for each label from 0 on, or a function that finds them.
    class_names: tuple[str, ...] | Callable[[Path], tuple[str, ...]]


DATASETS: dict[str, DataSet] = {
    # MNIST: 55,000 images to train, 5,000 to validate, 10,000 to test.
    "mnist": DataSet(partial(downloads.load_mnist, "MNIST"), DIGITS),
    # Zalando's pictures of clothes, as many as in MNIST.
    "fashion_mnist": DataSet(
        partial(downloads.load_mnist, "FashionMNIST"), tuple(CLOTHES.split(","))
    ),
    # scikit-learn's digits of 8 x 8, enlarged: 1,257, 180 and 360 images by 13 writers, who are in
    # all three parts.
    "handwritten": DataSet(synthetic.load_handwritten, DIGITS),
    # Your own pictures: one subfolder a class, in <data root>/pictures/. See docs/extending.md.
    "pictures": DataSet(
        partial(folders.load_folder, "pictures"), partial(folders.class_names, "pictures")
    ),
}
# EMNIST's characters, and digits in matplotlib's fonts: only the GAN learns from them.
GAN_ONLY = ("emnist", "printed")


def default_root() -> Path:
    """The folder of the downloads: `$LISTEN_DATA`, or `data/`."""
    return Path(os.environ.get("LISTEN_DATA") or Path(__file__).parent)


def data_set(name: str, others: tuple[str, ...] = ()) -> DataSet:
    """The entry of `DATASETS`.

    Raises:
        UserError: if there is no such name; the sentence lists the names, after the `others`.
    """
    if name not in DATASETS:
        names = ", ".join((*others, *DATASETS))
        raise UserError(f"--dataset {name}: there is no such data set; give one of {names}.")
    return DATASETS[name]


def load_digits(name: str, part: Part, root: Path, device: torch.device | str) -> Digits:
    """The images and labels of one part of a data set.

    Args:
        name: a key of `DATASETS`.
        part: `validation` is a fixed part of the training set, the same in every run.
        root: torchvision's folder; downloads go there on first use.

    Raises:
        UserError: if there is no such data set, or it is damaged, or missing and not downloadable.
    """
    return Digits(*(tensor.to(device) for tensor in data_set(name).load(part, root)))


def class_names(name: str, root: Path) -> tuple[str, ...]:
    """The name of each class, in the order of the labels. Raises as `load_digits` does."""
    names = data_set(name).class_names
    return names(root) if callable(names) else names


def load_gan_images(
    name: str, part: Part, root: Path, device: torch.device | str,
    split: str = "mnist", emnist_part: str = "train", digits_only: bool = True,
) -> Digits:  # fmt: skip
    """The images that the GAN learns from: nine tenths to train, the rest, fixed, to validate.

    Args:
        name: `emnist`, `printed` (8,000 distorted digits in matplotlib's fonts), or a key of
            `DATASETS`.
        part: `train` or `validation`.
        root: torchvision's folder; downloads go there on first use.
        split: of EMNIST: mnist, digits, byclass, bymerge, balanced or letters.
        emnist_part: of EMNIST: the official training or test file; both parts are taken from it.
        digits_only: leave out the letters of EMNIST's byclass, bymerge and balanced.

    Raises:
        UserError: as `load_digits` does, and if the split holds no digits.
    """
    if name == "emnist":
        if digits_only and split == "letters":
            way_out = "give --no-digits-only, or another --split"
            raise UserError(f"EMNIST's split 'letters' holds no digits; {way_out}.")
        images, labels = downloads.load_emnist(split, emnist_part, root)
        if digits_only:
            images, labels = images[labels < 10], labels[labels < 10]
    elif name == "printed":
        images, labels = synthetic.load_printed()
    else:
        images, labels = data_set(name, GAN_ONLY).load("train", root)
    kept = divide(len(images), part, test=0, validation=len(images) // 10)
    return Digits(images[kept].to(device), labels[kept].to(device))


def data_hashes(**parts: Digits) -> dict[str, str]:
    """The SHA-256 of each part's size, images and labels, by the name `data/<part>`."""
    digests = {}
    for part, (images, labels) in parts.items():
        digest = hashlib.sha256(f"{tuple(images.shape)}".encode())
        digest.update(images.cpu().contiguous().numpy().data)
        digest.update(labels.to(torch.uint8).cpu().numpy().data)
        digests[f"data/{part}"] = digest.hexdigest()
    return digests
