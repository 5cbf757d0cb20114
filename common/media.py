"""Picture and sound files: safe reading of untrusted files, and atomic writing."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.files import UserError, write_file

# of a picture; a larger one is refused before it is decoded, which takes up to 28 bytes a pixel
MAX_PIXELS = 64_000_000
# What is read; others, such as EPS, would start another program, or are of no use.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
SOUNDS = (".wav", ".flac")
DRAWINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")  # that Matplotlib writes
IMAGES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
)  # that are written of grey levels


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files only, whatever the environment asks for."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook sets another, which Matplotlib may not find
    from matplotlib import pyplot as plt

    return plt


def find_pictures(names: Iterable[Path]) -> list[Path]:
    """The pictures that files, folders and globs name, sorted within each; of a folder, all whose
    ending Pillow knows.

    Raises:
        UserError: if one of them names nothing.
    """
    found = []
    for name in names:
        if name.is_dir():
            known = [
                ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS
            ]
            shown = (
                path for path in name.iterdir() if not path.name.startswith(".")
            )  # macOS hides what are no pictures
            these = sorted(
                path for path in shown if path.suffix.lower() in known and path.is_file()
            )
        elif name.is_file():
            these = [name]
        else:
            these = sorted(
                Path(path) for path in glob.glob(str(name), recursive=True) if Path(path).is_file()
            )
        if not these:
            raise UserError(
                f"{name} names no picture; give a picture, a folder of pictures, or a glob in quotes."
            )
        found += these
    return list(dict.fromkeys(found))


def read_picture(path: Path) -> Tensor:
    """Read any picture that Pillow opens as grey levels, `(H, W)` uint8: upright as its camera was
    held, of an animation the first frame, over black where it is transparent, in ITU-R 601 luma.

    Raises:
        UserError: if it is missing, no picture, damaged, or has more than `MAX_PIXELS`.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; give a picture.")
    Image.init()
    try:
        with Image.open(
            path, formats=[kind for kind in FORMATS if kind in Image.OPEN]
        ) as picture:  # reads the header only
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return torch.from_numpy(_grey(ImageOps.exif_transpose(picture), path))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller."
        ) from error
    except UserError:
        raise
    except Exception as error:  # a damaged picture raises any of a dozen types
        raise UserError(
            f"{path} is damaged, or no picture that Pillow reads; save it anew, such as PNG."
        ) from error


def _grey(picture: Image.Image, path: Path) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits, whose conversion Pillow cuts off at 255
        wide = np.asarray(picture).astype(np.int32)
        if wide.min() < 0 or wide.max() > 65535:
            raise UserError(
                f"{path} has levels below 0 or above 65,535, the white of 16 bits; scale it to 16 bits."
            )
        if 0 < wide.max() < 8192:
            print(
                f"{path}: its brightest level is {wide.max()} of 65,535, so it is faint; scale it if that is its white"
            )
        return ((wide * 255 + 32767) // 65535).astype(np.uint8)
    if picture.mode == "F":
        raise UserError(
            f"{path} has floating-point pixels, and so no agreed white; save it in 8 or 16 bits."
        )
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
    return np.array(picture.convert("RGB").convert("L"))


def require_suffix(path: Path, endings: tuple[str, ...], what: str) -> None:
    """Refuse to write `what` as another kind of file.

    Raises:
        UserError: if `path` has none of the `endings`.
    """
    if path.suffix.lower() not in endings:
        raise UserError(
            f"{path} has no ending of {what}; name it {', '.join(endings[:-1])} or {endings[-1]}."
        )


def write_picture(path: Path, image: Tensor) -> None:
    """Write `(H, W)` grey levels in [0, 1] as an 8-bit picture.

    Raises:
        UserError: if `path` has no ending of `IMAGES`, or cannot be written.
    """
    require_suffix(path, IMAGES, "a picture")
    levels = (image * 255).round().to(torch.uint8).numpy()
    write_file(path, lambda beside: Image.fromarray(levels).save(beside))


def write_sound(path: Path, pcm: Tensor, sample_rate: int) -> None:
    """Write `(samples,)` or `(channels, samples)` int16 as WAV or FLAC of 16 bits, by the ending of
    `path`.

    Raises:
        UserError: if it has another ending, or cannot be written.
    """
    import soundfile

    require_suffix(path, SOUNDS, "a sound")

    def writer(beside: Path) -> None:
        try:
            soundfile.write(beside, pcm.numpy().T, sample_rate, "PCM_16")
        except soundfile.LibsndfileError as error:  # such as of a full disk
            raise OSError(error.error_string.strip()) from error

    write_file(path, writer)


def read_sound(path: Path, sample_rate: int, shape: tuple[int, ...]) -> Tensor:
    """Read a sound of just this shape, `(samples,)` or `(2, samples)`, as float64 in [-1, 1].

    Raises:
        UserError: if it is missing, damaged, or another sound; nothing of it is decoded then.
    """
    import soundfile

    if not path.is_file():
        raise UserError(f"{path} is missing; give a WAV or FLAC file.")
    try:
        with soundfile.SoundFile(path) as file:  # reads the header only
            is_like = (file.samplerate, file.channels, file.frames)
            wanted = (sample_rate, len(shape), shape[-1])
            if is_like != wanted:
                raise UserError(
                    f"{path} has {is_like[2]} samples at {is_like[0]} Hz in {is_like[1]} channel(s), but the encoding makes "
                    f"{wanted[2]} at {wanted[0]} Hz in {wanted[1]}; give the --preset and the flags that it was made with."
                )
            samples = torch.from_numpy(file.read(shape[-1], dtype="float64"))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path} is damaged, or no sound that libsndfile reads; save it anew as WAV."
        ) from error
    if tuple(samples.shape[::-1]) != shape or not samples.isfinite().all():
        raise UserError(
            f"{path} ends early, or holds samples that are no numbers; save it anew as WAV."
        )
    return samples if samples.dim() == 1 else samples.T
