"""Pictures and sounds as files, which the translator's command reads and writes. Nothing that is read is trusted."""

import glob
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import numpy as np
import soundfile
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageOps
from torch import Tensor

import files
import runs

MAX_PIXELS = 64_000_000  # of a picture; a larger one is refused before it is decoded, which takes up to 28 bytes a pixel
# What is read; others, such as EPS, would start another program, or are of no use.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
SOUNDS = (".wav", ".flac")
DRAWINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")  # that Matplotlib writes
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm")  # that are written of grey levels


def find(names: Iterable[Path]) -> list[Path]:
    """The pictures that files, folders and globs name, sorted within each; of a folder, all whose ending Pillow knows.

    Raises:
        runs.UserError: if one of them names nothing.
    """
    found = []
    for name in names:
        if name.is_dir():
            known = [ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS]
            shown = (path for path in name.iterdir() if not path.name.startswith("."))  # macOS hides what are no pictures
            these = sorted(path for path in shown if path.suffix.lower() in known and path.is_file())
        elif name.is_file():
            these = [name]
        else:
            these = sorted(Path(path) for path in glob.glob(str(name), recursive=True) if Path(path).is_file())
        if not these:
            raise runs.UserError(f"{name} names no picture; give a picture, a folder of pictures, or a glob in quotes.")
        found += these
    return list(dict.fromkeys(found))


def read(path: Path) -> Tensor:
    """Read any picture that Pillow opens as grey levels, `(H, W)` uint8: upright as its camera was held, of an animation the
    first frame, over black where it is transparent, in ITU-R 601 luma.

    Raises:
        runs.UserError: if it is missing, no picture, damaged, or has more than `MAX_PIXELS`.
    """
    if not path.is_file():
        raise runs.UserError(f"{path} is missing; give a picture.")
    Image.init()
    try:
        with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as picture:  # reads the header only
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return torch.from_numpy(_grey(ImageOps.exif_transpose(picture), path))
    except Image.DecompressionBombError as error:
        raise runs.UserError(f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller.") from error
    except runs.UserError:
        raise
    except Exception as error:  # a damaged picture raises any of a dozen types
        raise runs.UserError(f"{path} is damaged, or no picture that Pillow reads; save it anew, such as PNG.") from error


def _grey(picture: Image.Image, path: Path) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits, whose conversion Pillow cuts off at 255
        wide = np.asarray(picture).astype(np.int32)
        if wide.min() < 0 or wide.max() > 65535:
            raise runs.UserError(f"{path} has levels below 0 or above 65,535, the white of 16 bits; scale it to 16 bits.")
        if 0 < wide.max() < 8192:
            print(f"{path}: its brightest level is {wide.max()} of 65,535, so it is faint; scale it if that is its white")
        return ((wide * 255 + 32767) // 65535).astype(np.uint8)
    if picture.mode == "F":
        raise runs.UserError(f"{path} has floating-point pixels, and so no agreed white; save it in 8 or 16 bits.")
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
    return np.array(picture.convert("RGB").convert("L"))


def require_ending(path: Path, endings: tuple[str, ...], what: str) -> None:
    """Refuse to write `what` as another kind of file.

    Raises:
        runs.UserError: if `path` has none of the `endings`.
    """
    if path.suffix.lower() not in endings:
        raise runs.UserError(f"{path} has no ending of {what}; name it {', '.join(endings[:-1])} or {endings[-1]}.")


def write(path: Path, image: Tensor) -> None:
    """Write `(H, W)` grey levels in [0, 1] as an 8-bit picture.

    Raises:
        runs.UserError: if `path` has no ending of `IMAGES`, or cannot be written.
    """
    require_ending(path, IMAGES, "a picture")
    levels = (image * 255).round().to(torch.uint8).numpy()
    files.write(path, lambda beside: Image.fromarray(levels).save(beside))


def write_sound(path: Path, pcm: Tensor, sample_rate: int) -> None:
    """Write `(samples,)` or `(channels, samples)` int16 as WAV or FLAC of 16 bits, by the ending of `path`.

    Raises:
        runs.UserError: if it has another ending, or cannot be written.
    """
    require_ending(path, SOUNDS, "a sound")

    def writer(beside: Path) -> None:
        try:
            soundfile.write(beside, pcm.numpy().T, sample_rate, "PCM_16")
        except soundfile.LibsndfileError as error:  # such as of a full disk
            raise OSError(error.error_string.strip()) from error

    files.write(path, writer)


def read_sound(path: Path, sample_rate: int, shape: tuple[int, ...]) -> Tensor:
    """Read a sound of just this shape, `(samples,)` or `(2, samples)`, as float64 in [-1, 1].

    Raises:
        runs.UserError: if it is missing, damaged, or another sound; nothing of it is decoded then.
    """
    if not path.is_file():
        raise runs.UserError(f"{path} is missing; give a WAV or FLAC file.")
    try:
        with soundfile.SoundFile(path) as file:  # reads the header only
            is_like = (file.samplerate, file.channels, file.frames)
            wanted = (sample_rate, len(shape), shape[-1])
            if is_like != wanted:
                raise runs.UserError(
                    f"{path} has {is_like[2]} samples at {is_like[0]} Hz in {is_like[1]} channel(s), but the encoding makes "
                    f"{wanted[2]} at {wanted[0]} Hz in {wanted[1]}; give the --preset and the flags that it was made with."
                )
            samples = torch.from_numpy(file.read(shape[-1], dtype="float64"))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise runs.UserError(f"{path} is damaged, or no sound that libsndfile reads; save it anew as WAV.") from error
    if tuple(samples.shape[::-1]) != shape or not samples.isfinite().all():
        raise runs.UserError(f"{path} ends early, or holds samples that are no numbers; save it anew as WAV.")
    return samples if samples.dim() == 1 else samples.T


def draw_spectrogram(path: Path, image: Tensor, sound: Tensor, sample_rate: int, hz: tuple[float, float], log: bool) -> None:
    """Draw an image beside the spectrogram of its sound, of each ear in stereo.

    Args:
        image: `(rows, columns)` in [0, 1], as it is scanned, but for a negative.
        sound: `(samples,)` or `(2, samples)` in [-1, 1].
        sample_rate: in Hz.
        hz: the lowest and the highest pitch; the axis goes a little beyond.
        log: whether the axis is logarithmic.
    """
    from scipy.signal import ShortTimeFFT  # a tenth of the start of a stage, which draws no spectrogram

    require_ending(path, DRAWINGS, "a drawing")
    ears = sound.reshape(-1, sound.shape[-1]).double().numpy()
    figure, axes = plt.subplots(1, 1 + len(ears), figsize=(4 + 5 * len(ears), 4), layout="constrained", squeeze=False)
    axes[0, 0].imshow(image.cpu().numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes[0, 0].set(title="image, as it is scanned", xlabel="column", ylabel="row")
    # 40 ms tell 25 Hz apart, and blur some columns in time.
    length = max(2, min(round(0.04 * sample_rate), ears.shape[1]))
    for axis, samples, name in zip(
        axes[0, 1:], ears, ("left ear", "right ear") if len(ears) == 2 else ("sound",), strict=True
    ):
        transform = ShortTimeFFT(
            np.hanning(length), max(1, length // 16), sample_rate, mfft=4 * length, scale_to="magnitude"
        )
        decibels = 20 * np.log10(np.abs(transform.stft(samples)) + 1e-9)
        seconds = transform.t(len(samples))
        shown = axis.pcolormesh(seconds, transform.f, decibels, cmap="magma", vmin=-80, vmax=-20, rasterized=True)
        axis.set(title=name, xlabel="time (s)", ylabel="frequency (Hz)", xlim=(0, len(samples) / sample_rate))
        if log:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:.0f}")
            axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(hz[0] * 0.8, min(sample_rate / 2, hz[1] * 1.15))
    figure.colorbar(shown, ax=axes[0, -1], label="level (dB of full scale)")
    files.write(path, lambda beside: figure.savefig(beside, dpi=100))
    plt.close(figure)
