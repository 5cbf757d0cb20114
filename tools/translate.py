"""The translator's command: pictures to sounds, and sounds back to pictures. `python
voice_translator.py` runs it."""

import argparse
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import voice_translator
from common.cli import Count, command_line, progress_bar
from common.device import choose_device
from common.files import UserError, write_file
from common.media import (
    DRAWINGS,
    IMAGES,
    SOUNDS,
    find_pictures,
    pyplot,
    read_comment,
    read_picture,
    read_sound,
    require_suffix,
    write_picture,
    write_sound,
)
from voice_translator import (
    Encoding,
    VoiceTranslator,
    estimate_image,
    find_start,
    to_pcm16,
    undo_contrast,
)

Preset = Literal["auto", "late-blind", "congenitally-blind", "hificode", "hificode-2013"]
COMMENT = "voice_translator"  # the key of the encoding in a sound file's comment


@dataclass(frozen=True)
class Config:
    any_file_name: ClassVar[bool] = True  # also one that is no UTF-8: Python opens all files

    # Pictures, folders of pictures, or globs in quotes.
    pictures: tyro.conf.Positional[tuple[Path, ...]] = ()
    # The file to write: .wav or .flac; of several pictures, a folder; with --decode, .png.
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    format: Literal["wav", "flac"] = "wav"  # Format of the sounds in a folder.
    # A drawing to write, .png: the picture beside the spectrogram of its sound.
    spectrogram: Path | None = None
    decode: Path | None = None  # A soundscape, from which the image is estimated.
    # Cut the picture to the proportions of the grid, instead of squeezing it.
    crop: bool = False
    # Add silent bars to the picture up to the proportions of the grid, instead of squeezing it.
    fit: bool = False
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    batch: Count = 64  # Pictures that are translated together.
    # The scheme from which the flags below start. auto: late-blind; with --decode, the scheme that
    # the sound file names.
    preset: Preset = "auto"
    encoding: Annotated[Encoding, tyro.conf.arg(name="")] = field(default_factory=Encoding)


PRESETS = {
    "auto": Config(),
    "late-blind": Config(preset="late-blind"),
    "congenitally-blind": Config(
        preset="congenitally-blind", encoding=Encoding.congenitally_blind()
    ),
    "hificode": Config(preset="hificode", encoding=Encoding.hificode()),
    "hificode-2013": Config(preset="hificode-2013", encoding=Encoding.hificode_2013()),
}


def main(config: Config) -> None:
    """Run the command; see the top of voice_translator.py."""
    if config.output is None and config.spectrogram is None:
        raise UserError("nothing would be written; give -o, or --spectrogram.")
    if config.crop and config.fit:
        raise UserError("--crop and --fit exclude each other; give one of them.")
    paths = find_pictures(config.pictures)
    if config.decode is not None:
        decode(config, config.decode, paths)
        return
    if not paths:
        raise UserError("no picture is given; name one, a folder of them, or a glob in quotes.")
    outputs = name_outputs(config, paths)
    device = choose_device(config.device)
    encoding = config.encoding
    translator = VoiceTranslator(encoding).to(device)
    comment = json.dumps({COMMENT: dataclasses.asdict(encoding)})
    refused, squeezed = [], []
    batches = list(zip(paths, outputs, strict=True))
    batches = [batches[i : i + config.batch] for i in range(0, len(batches), config.batch)]
    for batch in progress_bar(batches, "pictures"):
        images, kept = [], []
        for path, output in batch:
            try:
                picture = read_picture(path)
            except UserError as error:
                refused.append(str(error))
                continue
            framed = frame(picture, config, encoding)
            if is_squeezed(framed, encoding):
                squeezed.append(f"{path} ({picture.shape[1]} x {picture.shape[0]})")
            images.append(translator.resized(framed[None]) / 255)
            kept.append(output)
        if not images:
            continue
        with torch.no_grad():
            soundscapes = translator(torch.cat(images).to(device)).cpu()
        for output, pcm in zip(kept, to_pcm16(soundscapes), strict=True):
            if output is None:
                continue
            try:
                write_sound(output, pcm, encoding.sample_rate, comment)
            except UserError as error:
                refused.append(str(error))
    if config.spectrogram is not None and not refused:
        draw_spectrogram(config.spectrogram, images[0][0].cpu(), soundscapes[0], encoding)
    if squeezed:
        others = f" and {len(squeezed) - 1} other(s)" if len(squeezed) > 1 else ""
        print(
            f"squeezed to the proportions of {encoding.columns} x {encoding.rows}: {squeezed[0]}"
            f"{others}; --crop cuts and --fit adds bars instead"
        )
    if refused:
        raise UserError(
            f"{len(refused)} of {len(paths)} pictures were not translated: " + " ".join(refused[:9])
        )
    written = [str(path) for path in (config.output, config.spectrogram) if path is not None]
    print(
        f"{len(paths)} picture(s) as {encoding.seconds} s of sound each, {encoding.sample_rate} "
        f"Hz. {', '.join(written)}"
    )


def name_outputs(config: Config, paths: list[Path]) -> list[Path | None]:
    """The sound that each picture becomes, None where only its spectrogram is wanted."""
    # One picture of a folder, or of a glob, is one of several.
    several = len(paths) > 1 or paths[0] not in config.pictures
    if several and config.spectrogram is not None:
        raise UserError(
            "--spectrogram draws one picture, but a folder or several are given; name one."
        )
    if config.spectrogram is not None:
        require_suffix(config.spectrogram, DRAWINGS, "a drawing")
    outputs: list[Path | None] = [config.output]
    if several and config.output is not None:
        if config.output.suffix.lower() in SOUNDS:
            raise UserError(
                f"{config.output} is one sound, but a folder or several pictures are given; name a "
                "folder by -o."
            )
        names = [f"{path.stem}.{config.format}" for path in paths]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two pictures would become {twice}; rename one of them.")
        outputs = [config.output / name for name in names]
    elif config.output is not None:
        require_suffix(config.output, SOUNDS, "a sound")
    keep_inputs(paths, [*outputs, config.spectrogram])
    return outputs


def keep_inputs(inputs: list[Path], outputs: list[Path | None]) -> None:
    """Refuse to write an output in the place of its input."""
    written = {path.resolve() for path in outputs if path is not None}
    lost = next((path for path in inputs if path.resolve() in written), None)
    if lost is not None:
        raise UserError(f"{lost} would be replaced by what is made of it; give another name.")


def frame(picture: Tensor, config: Config, encoding: Encoding) -> Tensor:
    """The picture, `(H, W)`, cut or with bars as --crop and --fit say."""
    height, width = picture.shape
    if not (config.crop or config.fit) or not is_squeezed(picture, encoding):
        return picture
    ratio = encoding.columns / encoding.rows
    wide = width > height * ratio
    if config.crop:
        across = round(height * ratio) if wide else width
        down = height if wide else round(width / ratio)
        top, left = (height - down) // 2, (width - across) // 2
        return picture[top : top + max(1, down), left : left + max(1, across)]
    across, down = (width, round(width / ratio)) if wide else (round(height * ratio), height)
    side, end = (across - width) // 2, (down - height) // 2
    silent = 255 if encoding.negative else 0
    bars = (side, across - width - side, end, down - height - end)
    return F.pad(picture, bars, value=silent)


def is_squeezed(picture: Tensor, encoding: Encoding) -> bool:
    """Whether a picture has other proportions than the grid, by more than a pixel of it."""
    height, width = picture.shape
    ratio = width / height * encoding.rows / encoding.columns
    return max(ratio, 1 / ratio) > 1 + 1 / max(encoding.rows, encoding.columns, height, width)


def recorded_encoding(path: Path) -> Encoding | None:
    """The encoding that a sound file names in its comment; None if it names none.

    Raises:
        UserError: if the sound or its encoding is damaged.
    """
    comment = read_comment(path)
    if f'"{COMMENT}"' not in comment[:100]:
        return None
    try:
        return Encoding(**json.loads(comment)[COMMENT])
    except (ValueError, TypeError, LookupError, RecursionError, ArithmeticError) as error:
        raise UserError(
            f"{path} names an encoding that this version does not know; save it again without its "
            "comment, and give the encoding by flags."
        ) from error


def choose_encoding(config: Config, path: Path) -> Encoding:
    """The encoding by which `path` is decoded: the one that it names, else that of the flags.

    Raises:
        UserError: if the file names another than the flags.
    """
    recorded, demanded = recorded_encoding(path), config.encoding
    if recorded is None or recorded == demanded:
        return demanded
    if config.preset == "auto" and demanded == Encoding():
        return recorded
    named, given = dataclasses.asdict(recorded), dataclasses.asdict(demanded)
    other = [f"{key} {named[key]}, not {given[key]}" for key in named if named[key] != given[key]]
    raise UserError(
        f"{path} was made with another encoding ({'; '.join(other[:5])}); leave out --preset and "
        "the flags of the encoding, as the file names its own."
    )


def decode(config: Config, path: Path, originals: list[Path]) -> None:
    """Estimate the image of a soundscape, and compare it with its original."""
    if config.output is None or config.spectrogram is not None or len(originals) > 1:
        raise UserError(
            "--decode makes one image; give it a name with -o, at most one picture, and no "
            "--spectrogram."
        )
    require_suffix(config.output, IMAGES, "a picture")
    keep_inputs([*originals, path], [config.output])
    encoding = choose_encoding(config, path)
    original = frame(read_picture(originals[0]), config, encoding) if originals else None
    shape = (2, encoding.samples) if encoding.stereo else (encoding.samples,)
    sound, said = read_sound(path, encoding.sample_rate, shape), []
    try:
        if sound.shape[-1] > encoding.samples:
            start = find_start(sound, encoding)
            sound = sound[..., start : start + encoding.samples]
            said.append(f"The soundscape begins at {start / encoding.sample_rate:.4f} s.")
        sounded = estimate_image(sound, encoding)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    image, lost = undo_contrast(sounded, encoding)
    if lost.any():
        said.append(
            f"The contrast saturated in {int(lost.sum())} of {lost.numel()} pixels; they are black "
            "or white."
        )
    if original is not None:
        seen = VoiceTranslator(encoding).double().resized(original[None])[0]
        pair = torch.stack([image, seen]).flatten(1)
        correlation = "is not defined, as one of them has one grey only"
        if pair.std(1).min() > 1e-6:
            correlation = f"is {pair.corrcoef()[0, 1]:.4f}"
        said.append(f"Its correlation with {originals[0]} {correlation}.")
        enlarged = F.interpolate(image[None, None], original.shape, mode="nearest-exact")
        image = enlarged[0, 0]
    write_picture(config.output, image)
    print(
        f"the image that sounds like {path}, {encoding.rows} x {encoding.columns}: "
        f"{config.output}. {' '.join(said)}".rstrip()
    )


def draw_spectrogram(path: Path, image: Tensor, sound: Tensor, encoding: Encoding) -> None:
    """Draw an image beside the spectrogram of its sound, of each ear in stereo.

    Args:
        path: the drawing.
        image: `(rows, columns)` in [0, 1], as it is scanned, before a negative.
        sound: `(samples,)` or `(2, samples)` in [-1, 1].
        encoding: gives the sample rate and the range of the axis.
    """
    import numpy as np
    from matplotlib.ticker import LogLocator, NullLocator
    from scipy.signal import ShortTimeFFT

    plt = pyplot()
    require_suffix(path, DRAWINGS, "a drawing")
    hertz, sample_rate = encoding.frequencies(), encoding.sample_rate
    low, high = hertz.min().item(), hertz.max().item()
    ears = sound.reshape(-1, sound.shape[-1]).double().numpy()
    figure, axes = plt.subplots(
        1, 1 + len(ears), figsize=(4 + 5 * len(ears), 4), layout="constrained", squeeze=False
    )
    look = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    axes[0, 0].imshow(image.cpu().numpy(), **look)
    axes[0, 0].set(title="image, as it is scanned", xlabel="column", ylabel="row")
    # 40 ms separate frequencies of 25 Hz, and blur some columns in time.
    length = max(2, min(round(0.04 * sample_rate), ears.shape[1]))
    names = ("left ear", "right ear") if len(ears) == 2 else ("sound",)
    for axis, samples, name in zip(axes[0, 1:], ears, names, strict=True):
        transform = ShortTimeFFT(
            np.hanning(length), max(1, length // 16), sample_rate, mfft=4 * length,
            scale_to="magnitude",
        )  # fmt: skip
        decibels = 20 * np.log10(np.abs(transform.stft(samples)) + 1e-9)
        seconds = transform.t(len(samples))
        shown = axis.pcolormesh(
            seconds, transform.f, decibels, cmap="magma", vmin=-80, vmax=-20, rasterized=True
        )
        axis.set(title=name, xlabel="time (s)", ylabel="frequency (Hz)")
        axis.set_xlim(0, len(samples) / sample_rate)
        if hertz.median() < 0.45 * (low + high):  # the curve is denser at low frequencies
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:.0f}")
            axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(low * 0.8, min(sample_rate / 2, high * 1.15))
    figure.colorbar(shown, ax=axes[0, -1], label="level (dB of full scale)")
    write_file(path, lambda beside: figure.savefig(beside, dpi=100))
    plt.close(figure)


def run() -> None:
    """Read the command line. The preset comes first, as it sets the defaults of other flags."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=Config.preset)
    preset = early.parse_known_args()[0].preset
    default = PRESETS.get(preset, Config())  # tyro refuses an unknown name
    command_line(Config, main, voice_translator.__doc__, {"": default})


if __name__ == "__main__":
    run()
