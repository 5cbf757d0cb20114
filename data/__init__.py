"""The data sets, as uint8 tensors that live on the device.

Heard digits (stage one, three, and the classifier of stage two): MNIST, or the handwritten digits that come with
scikit-learn. Remembered characters (the generator's): EMNIST, or digits printed in the fonts that come with matplotlib.
The second of each needs no download, and the two have no image in common.
"""

import hashlib
import math
import os
import string
import struct
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

import processes
from files import UserError

Part = Literal["train", "validation", "test"]
MAX_IDX = 1024**3  # bytes of MNIST's or EMNIST's largest file; the official ones have at most 547 million
VALIDATION = 5000  # the last of MNIST's 60,000 training images: other writers than most of the first ones
PRINTED_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
                 "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral",
                 "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmtt10")  # fmt: skip


class Digits(NamedTuple):
    images: Tensor  # (N, 28, 28) uint8, upright, white on black
    labels: Tensor  # (N,) int64


def default_root() -> Path:
    """The folder of the downloads: `$LISTEN_DATA`, or `data/`."""
    return Path(os.environ.get("LISTEN_DATA") or Path(__file__).parent)


def load_heard(name: Literal["mnist", "handwritten"], part: Part, root: Path, device: torch.device | str) -> Digits:
    """The digits that are heard.

    Args:
        name: `mnist` (55,000 to train, 5,000 to validate, 10,000 to test), or `handwritten`, scikit-learn's (1,257, 180
            and 360 images of 8 x 8, enlarged; no download).
        part: `validation` is a fixed part of the training set, the same in every run.
        root: torchvision's folder, into which MNIST is downloaded on first use.

    Raises:
        UserError: if the data are missing and cannot be downloaded, or damaged.
    """
    digits = _mnist(part, root) if name == "mnist" else _handwritten(part)
    return Digits(*(tensor.to(device) for tensor in digits))


def load_remembered(
    name: Literal["emnist", "printed"], part: Part, root: Path, device: torch.device | str,
    split: str = "mnist", file: Literal["train", "test"] = "train", digits_only: bool = True,
) -> Digits:  # fmt: skip
    """The characters that the generator grows up with: nine tenths of them to train, the rest, fixed, to validate.

    Args:
        name: `emnist`, or `printed` (8,000 digits from matplotlib's fonts, distorted; no download).
        part: `train` or `validation`.
        root: torchvision's folder, into which EMNIST is downloaded on first use.
        split: of EMNIST: mnist, digits, byclass, bymerge, balanced or letters.
        file: of EMNIST: the official training or test file, of which both parts are taken.
        digits_only: leave out the letters of byclass, bymerge and balanced.

    Raises:
        UserError: if the data are missing and cannot be downloaded, damaged, or hold no digits.
    """
    if digits_only and split == "letters" and name == "emnist":
        raise UserError("EMNIST's split 'letters' holds no digits; give --no-digits-only, or another --split.")
    images, labels = _printed() if name == "printed" else _emnist(split, file, root)
    if digits_only:
        images, labels = images[labels < 10], labels[labels < 10]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held = order[: len(order) // 10] if part == "validation" else order[len(order) // 10 :]
    return Digits(images[held].to(device), labels[held].to(device))


def sha256(**parts: Digits) -> dict[str, str]:
    """The SHA-256 of each part, by the name `data/<part>`: of its size, its images and its labels."""
    digests = {}
    for part, (images, labels) in parts.items():
        digest = hashlib.sha256(f"{tuple(images.shape)}".encode())
        digest.update(images.cpu().contiguous().numpy())
        digest.update(labels.to(torch.uint8).cpu().numpy())
        digests[f"data/{part}"] = digest.hexdigest()
    return digests


def as_seen(images: Tensor) -> Tensor:
    """`(B, 28, 28)` uint8 -> `(B, 1, 64, 64)` float32 in [-1, 1], bilinear: what generator and classifiers work with."""
    return F.interpolate(images[:, None].float() / 127.5 - 1, (64, 64), mode="bilinear")


def random_affine(images: Tensor, degrees: float, shift: float = 0.0, scale: float = 0.0) -> Tensor:
    """`(B, 1, H, W)` images, each turned by up to `degrees`, shifted by up to `shift` of its width and scaled by up to
    `scale`, uniformly, either way; black (-1) beyond the edge. torchvision's RandomAffine draws only once for a batch."""
    turn, shift_x, shift_y, size = (2 * torch.rand(4, len(images), device=images.device) - 1).unbind()
    angle, size = turn * math.radians(degrees), 1 + scale * size
    rows = [
        torch.stack([angle.cos() * size, -angle.sin() * size, 2 * shift * shift_x], 1),
        torch.stack([angle.sin() * size, angle.cos() * size, 2 * shift * shift_y], 1),
    ]
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round the places
        grid = affine_grid(torch.stack(rows, 1), *images.shape[2:])
        by_gathers = images.requires_grad and images.is_cuda and torch.are_deterministic_algorithms_enabled()
        sample = sampled_by_gathers if by_gathers else partial(F.grid_sample, align_corners=False)
        return sample(images.float() + 1, grid).sub_(1)


def affine_grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """`F.affine_grid` of `(B, 2, 3)` matrices, `(B, height, width, 2)`, in a quarter of its time: PyTorch multiplies by a
    matrix, pixel by pixel."""
    x, y = (torch.linspace(-1, 1, n, device=matrices.device) * (n - 1) / n for n in (width, height))  # the pixels' centres
    by_x, by_y, shift = matrices[..., None, None].unbind(2)  # (B, 2, 1, 1) each
    return (by_x * x + by_y * y[:, None]).add_(shift).permute(0, 2, 3, 1)


def sampled_by_gathers(images: Tensor, grid: Tensor) -> Tensor:
    """`F.grid_sample` of `(B, 1, H, W)` images, bilinear, zero beyond the edge: for a GPU that shall be deterministic, where
    its gradient is not."""
    height, width = images.shape[2:]
    x, y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2  # (B, H, W) in pixels
    sampled = torch.zeros_like(x)
    for column in (x.floor(), x.floor() + 1):
        for row in (y.floor(), y.floor() + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            sampled = sampled + weight * images.flatten(1).gather(1, index.long().flatten(1)).view_as(x)
    return sampled[:, None]


def varied(images: Tensor, augmentation: float) -> Tensor:
    """`(B, 1, H, W)` images in [-1, 1], each turned by up to 10 degrees, shifted by up to 4 % of its width and scaled by up
    to 10 %, all times `augmentation`."""
    return random_affine(images, 10 * augmentation, 0.04 * augmentation, 0.1 * augmentation)


def augmented(images: Tensor, augmentation: float) -> Tensor:
    """`(B, H, W)` uint8 -> `(B, H, W)` float32 in [0, 1], each as `varied` has it."""
    return varied(images[:, None].float() / 127.5 - 1, augmentation)[:, 0].add(1).div(2).clamp(0, 1)


def as_drawn(seen: Tensor) -> Tensor:
    """The way back of `as_seen`: `(B, 1, 64, 64)` in [-1, 1] -> `(B, 1, 28, 28)` in [0, 1], differentiable.

    An image that no drawing looks like, enlarged, may come back from a little outside of [0, 1].

    By least squares: the image that, enlarged by `as_seen`, comes nearest to this. So an image that was enlarged comes back
    as it was. A plain reduction would blur it, and then no image as seen would sound like the drawing that it shows.
    """
    return (_both_axes(_reduction(seen.device), seen) + 1) / 2


def redrawn(seen: Tensor) -> Tensor:
    """`(B, 1, 64, 64)` in [-1, 1] -> the nearest image that is an enlargement of 28 x 28 pixels, `(B, 1, 64, 64)`: there and
    back by `as_drawn` and `as_seen`."""
    return _both_axes(_projection(seen.device), seen)


def _both_axes(matrix: Tensor, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return matrix @ images.float() @ matrix.T


# Made on the CPU, and once for a device: a copy to the GPU in every step would make the step wait for it.


@cache
def _enlargement() -> Tensor:
    """What `as_seen` does to one axis, `(64, 28)` float32."""
    return F.interpolate(torch.eye(28)[None, None], (64, 28), mode="bilinear")[0, 0]


@cache
def _reduction(device: torch.device) -> Tensor:
    """Its pseudo-inverse, `(28, 64)` float32; well conditioned, its singular values lie between 0.66 and 1.15."""
    return torch.linalg.pinv(_enlargement().double()).float().to(device)


@cache
def _projection(device: torch.device) -> Tensor:
    """There and back, `(64, 64)` float32."""
    with torch.autocast("cpu", enabled=False):
        return (_enlargement() @ _reduction(torch.device("cpu"))).to(device)


def printed_letters() -> Tensor:
    """A to Z in DejaVu Sans, `(26, 28, 28)` uint8, for what was never heard."""
    return torch.stack([_glyph("DejaVuSans", letter) for letter in string.ascii_uppercase])


def simple_shapes() -> Tensor:
    """Disc, ring, square, frame, triangle, plus, cross, and a line across, down and aslant, `(10, 28, 28)` uint8, with
    strokes as thick as a digit's."""
    drawings = (
        lambda pen: pen.ellipse((6, 6, 22, 22), fill=255),
        lambda pen: pen.ellipse((4, 4, 24, 24), outline=255, width=3),
        lambda pen: pen.rectangle((7, 7, 21, 21), fill=255),
        lambda pen: pen.rectangle((5, 5, 23, 23), outline=255, width=3),
        lambda pen: pen.polygon(((14, 4), (24, 23), (4, 23)), outline=255, width=3),
        lambda pen: (pen.line((14, 4, 14, 24), 255, 3), pen.line((4, 14, 24, 14), 255, 3)),
        lambda pen: (pen.line((5, 5, 23, 23), 255, 3), pen.line((5, 23, 23, 5), 255, 3)),
        lambda pen: pen.line((4, 14, 24, 14), 255, 3),
        lambda pen: pen.line((14, 4, 14, 24), 255, 3),
        lambda pen: pen.line((5, 23, 23, 5), 255, 3),
    )
    images = []
    for draw in drawings:
        canvas = Image.new("L", (28, 28))
        draw(ImageDraw.Draw(canvas))
        images.append(torch.from_numpy(np.array(canvas)))
    return torch.stack(images)


def _mnist(part: Part, root: Path) -> Digits:
    dataset = _torchvision(datasets.MNIST, root, train=part != "test")
    if part == "test":
        return Digits(dataset.data, dataset.targets)
    if len(dataset.data) <= VALIDATION:
        raise UserError(f"{root}/MNIST holds {len(dataset.data)} training images, of which {VALIDATION} are to validate.")
    kept = slice(-VALIDATION, None) if part == "validation" else slice(None, -VALIDATION)
    return Digits(dataset.data[kept], dataset.targets[kept])


def _emnist(split: str, file: str, root: Path) -> Digits:
    if split not in datasets.EMNIST.splits:
        raise UserError(f"EMNIST has no split {split!r}; give one of {', '.join(datasets.EMNIST.splits)}.")
    dataset = _torchvision(datasets.EMNIST, root, split=split, train=file == "train")
    return Digits(dataset.data.transpose(1, 2).contiguous(), dataset.targets)  # stored transposed


def _torchvision(kind: type[datasets.MNIST], root: Path, **which: object) -> datasets.MNIST:
    """A data set of torchvision's, downloaded if it is not there."""
    folder = Path(root) / kind.__name__ / "raw"
    split = which.get("split")
    prefixes = [f"emnist-{split}-{'train' if which['train'] else 'test'}"] if split else ["train", "t10k"]
    names = [f"{prefix}-{rest}" for prefix in prefixes for rest in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    with processes.one_first():
        damaged = UserError(f"{folder} holds damaged files; delete them, and put there whole ones: {', '.join(names)}.")
        if not all(_is_idx(folder / name) for name in names):
            raise damaged
        if (folder.parent / "processed").exists():  # which torchvision would read instead
            raise UserError(f"{folder.parent / 'processed'} is of an old torchvision; delete it.")
        try:
            dataset = kind(str(root), download=False, **which)
        except Exception as error:
            # torchvision says "not found" for what is missing; anything else means that a file is there but damaged.
            if "not found" not in str(error):
                raise damaged from error
            try:
                dataset = kind(str(root), download=True, **which)
            except Exception as failure:
                raise UserError(
                    f"{kind.__name__} is not in {folder} and cannot be downloaded; put there the files {', '.join(names)}, "
                    "or name their folder with --data-root or LISTEN_DATA."
                ) from failure
    labels = dataset.targets
    if dataset.data.dim() != 3 or len(dataset.data) != len(labels) or dataset.data.shape[1:] != (28, 28):
        raise damaged
    if not len(labels) or labels.max() > 61 or (kind is datasets.MNIST and labels.max() > 9):
        raise damaged
    return dataset


def _is_idx(path: Path) -> bool:
    """Whether a file of bytes is as long as its header says, and no larger than MAX_IDX; also if it is missing. torchvision
    reads all of a file before it looks."""
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


def _handwritten(part: Part) -> Digits:
    """scikit-learn's 8 x 8 digits (UCI, E. Alpaydin and C. Kaynak, 1998), enlarged to 20 x 20 in 28 x 28, as in MNIST."""
    from sklearn.datasets import load_digits  # a tenth of the start of a stage, and MNIST does without

    small, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(small.reshape(-1, 1, 8, 8)).float() / 16
    images = F.interpolate(small, (20, 20), mode="bicubic").clamp(0, 1).mul(255).round().byte()
    images = F.pad(images[:, 0], (4, 4, 4, 4))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept = {"test": order[:360], "validation": order[360:540], "train": order[540:]}[part]
    return Digits(images[kept], torch.from_numpy(labels)[kept])


def _printed(count: int = 8000, together: int = 4) -> Digits:
    """Digits in matplotlib's fonts, each with a random affine and elastic distortion, always the same ones.

    All digits in `together` fonts each share one distortion, since torchvision draws one a call. No image is there twice.
    """
    glyphs = torch.stack([torch.stack([_glyph(font, str(digit)) for font in PRINTED_FONTS]) for digit in range(10)])
    distort = v2.Compose(
        [
            v2.RandomAffine(12, (0.08, 0.08), (0.75, 1.1), 12, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ElasticTransform(alpha=30.0, sigma=4.0),
        ]
    )
    labels = torch.arange(10).repeat_interleave(together)
    images = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(count // len(labels)):
            fonts = torch.cat([torch.randperm(len(PRINTED_FONTS))[:together] for _ in range(10)])
            images.append(distort(glyphs[labels, fonts][:, None])[:, 0])
    return Digits(torch.cat(images), labels.repeat(len(images)))


def _glyph(font: str, digit: str) -> Tensor:
    """`(28, 28)` uint8: one digit, 20 pixels high, its box in the middle."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    typeface = ImageFont.truetype(str(path), 26)
    left, top, right, bottom = typeface.getbbox(digit)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), digit, fill=255, font=typeface)
    scale = 20 / max(image.size)
    image = image.resize([max(1, round(edge * scale)) for edge in image.size], Image.Resampling.BICUBIC)
    canvas = Image.new("L", (28, 28))
    canvas.paste(image, ((28 - image.width) // 2, (28 - image.height) // 2))
    return torch.from_numpy(np.array(canvas))
