"""Picture and sound files: safe reading of untrusted files, and atomic writing."""

import glob
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.files import UserError, write_file

MAX_PIXELS = 64_000_000  # of a picture; to decode one takes up to 28 bytes a pixel
# The formats that are read. Others are of no use, or start another program, as EPS does.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "TGA")
SOUNDS = (".wav", ".flac")
DRAWINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")  # written by Matplotlib
# The endings of pictures that are written as grey levels.
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm")
MAX_EXTRA_SECONDS = 20  # by which a recording may be longer than its soundscape
UNCOMPRESSED = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files only, whatever the environment asks for."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook sets another, which Matplotlib may not find
    from matplotlib import pyplot as plt

    return plt


def save_figure(path: Path, figure: Any, dpi: int = 110) -> None:
    """Write a figure of Matplotlib's, and close it."""
    write_file(path, lambda beside: figure.savefig(beside, dpi=dpi))
    pyplot().close(figure)


def find_pictures(names: Iterable[Path]) -> list[Path]:
    """The pictures that files, folders and globs name, sorted within each; of a folder, all whose
    ending Pillow knows.

    Raises:
        UserError: if one of them names nothing.
    """
    found = []
    for name in names:
        if name.is_dir():  # without hidden files, as macOS puts them beside pictures
            kinds, shown = Image.registered_extensions(), name.glob("[!.]*")
            these = [path for path in shown if kinds.get(path.suffix.lower()) in FORMATS]
        else:
            these = [name] if name.is_file() else map(Path, glob.glob(str(name), recursive=True))
        these = sorted(path for path in these if path.is_file())
        if not these:
            raise UserError(
                f"{name} names no picture; give a picture, a folder of pictures, or a glob in "
                "quotes."
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
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    if path.suffix.lower() != ".tga":  # nothing in the file itself says that it is a TGA
        formats.remove("TGA")
    try:
        with Image.open(path, formats=formats) as picture:  # reads the header only
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return torch.from_numpy(_grey(picture, path))
    except UserError:
        raise
    except Exception as error:  # a damaged picture raises any of a dozen types
        reason = "is damaged, or no picture that Pillow reads; save it again, as PNG"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller"
        raise UserError(f"{path} {reason}.") from error


def _grey(picture: Image.Image, path: Path) -> np.ndarray:
    """The grey levels of a picture, `(H, W)` uint8, upright."""
    if picture.mode == "F":
        raise UserError(
            f"{path} has floating-point pixels, and so no agreed white; save it in 8 or 16 bits."
        )
    if not picture.mode.startswith("I"):
        _scale_transparency(picture)
        picture = ImageOps.exif_transpose(picture)
        if picture.has_transparency_data:
            opaque = Image.new("RGBA", picture.size, "black")
            picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
        return np.array(picture.convert("RGB").convert("L"))
    # 16 bits, which Pillow's conversion cuts off at 255.
    transparent = picture.info.get("transparency")
    negative = getattr(picture, "tag_v2", {}).get(262) == 0  # PhotometricInterpretation
    wide = np.array(ImageOps.exif_transpose(picture)).astype(np.int32)
    if wide.min() < 0 or wide.max() > 65535:
        raise UserError(
            f"{path} has levels below 0 or above 65,535, the white of 16 bits; scale it to 16 bits."
        )
    if negative:
        wide = 65535 - wide
    if transparent is not None:
        wide[wide == transparent] = 0
    if 0 < wide.max() < 8192:
        faint = f"its brightest level is {wide.max()} of 65,535, so it is faint"
        print(f"{path}: {faint}; scale it if that is its white")
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


def _scale_transparency(picture: Image.Image) -> None:
    """Scale the transparent colour of a PNG as Pillow scales its pixels: from 2, 4 or 16 bits to
    8."""
    colour, tiles = picture.info.get("transparency"), getattr(picture, "tile", None)
    if picture.format != "PNG" or picture.mode == "P" or colour is None or not tiles:
        return
    raw = tiles[0][3]  # of the pixels in the file, as L;4 or RGB;16B
    if raw == "RGB;16B":
        picture.info["transparency"] = tuple(level >> 8 for level in colour)
    elif raw in ("L;2", "L;4"):
        picture.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[raw]


def require_suffix(path: Path, endings: tuple[str, ...], what: str) -> None:
    """Refuse, as a UserError, to write `what` to a `path` that has none of the `endings`."""
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


def write_sound(path: Path, pcm: Tensor, sample_rate: int, comment: str = "") -> None:
    """Write `(samples,)` or `(channels, samples)` int16 as WAV or FLAC of 16 bits, by the ending of
    `path`, with a comment in the file.

    Raises:
        UserError: if it has another ending, or cannot be written.
    """
    import soundfile

    require_suffix(path, SOUNDS, "a sound")
    memory = io.BytesIO()  # Python opens the file: libsndfile fails at names that are no UTF-8
    layout = (sample_rate, len(torch.atleast_2d(pcm)), "PCM_16")
    with soundfile.SoundFile(memory, "w", *layout, format=path.suffix[1:].upper()) as file:
        if comment:
            file.comment = comment
        file.write(pcm.numpy().T)
    write_file(path, lambda beside: beside.write_bytes(memory.getvalue()))


def read_sound(path: Path, sample_rate: int, shape: tuple[int, ...]) -> Tensor:
    """Read a sound of this shape, `(samples,)` or `(2, samples)`, as float64 in [-1, 1]. It
    may be a recording that is up to `MAX_EXTRA_SECONDS` longer.

    Raises:
        UserError: if it is missing, damaged, compressed, or another sound. Nothing of it is decoded
            then.
    """
    with _open_sound(path) as file:
        frames = file.frames
        if frames == 0:
            raise UserError(f"{path} says that it holds no samples; save it again as WAV.")
        if file.subtype not in UNCOMPRESSED:
            raise UserError(
                f"{path} is compressed ({file.subtype_info}), which changes the samples; save the "
                "soundscape as WAV or FLAC."
            )
        longest = shape[-1] + MAX_EXTRA_SECONDS * sample_rate
        fits = (file.samplerate, file.channels) == (sample_rate, len(shape))
        if not fits or not shape[-1] <= frames <= longest:
            raise UserError(
                f"{path} has {frames} samples at {file.samplerate} Hz in {file.channels} "
                f"channel(s), but the encoding makes {shape[-1]} at {sample_rate} Hz in "
                f"{len(shape)}; give the --preset and the flags that it was made with."
            )
        samples = torch.from_numpy(file.read(frames, dtype="float64").T.copy())
    if samples.shape[-1] != frames or not samples.isfinite().all():
        raise UserError(
            f"{path} ends early, or holds samples that are no numbers; save it again as WAV."
        )
    loudest = samples.abs().max().item()
    if loudest > 1:
        raise UserError(
            f"{path} has samples of up to {loudest:.4g}, but a soundscape lies in [-1, 1]; save it "
            "again in 16 bits."
        )
    return samples


def read_comment(path: Path) -> str:
    """The comment in a sound file; empty if there is none. Raises as `read_sound` does."""
    with _open_sound(path) as file:
        return file.comment


@contextmanager
def _open_sound(path: Path) -> Iterator[Any]:
    """Open a sound and read its header, as `write_sound` writes it: by Python."""
    import soundfile

    if not path.is_file():
        raise UserError(f"{path} is missing; give a WAV or FLAC file.")
    try:
        with open(path, "rb") as opened, soundfile.SoundFile(opened) as file:
            yield file
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path} is damaged, or no sound that libsndfile reads; save it again as WAV."
        ) from error
