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
from common import media
from common.cli import Count, command_line, progress_bar
from common.device import choose_device
from common.files import UserError
from voice_translator import Encoding, VoiceTranslator

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
    "late-blind": Config(),
    "congenitally-blind": Config(encoding=Encoding.congenitally_blind()),
    "hificode": Config(encoding=Encoding.hificode()),
    "hificode-2013": Config(encoding=Encoding.hificode_2013()),
}


def main(config: Config) -> None:
    """Run the command; see the top of voice_translator.py."""
    if config.output is None and config.spectrogram is None:
        raise UserError("nothing would be written; give -o, or --spectrogram.")
    if config.crop and config.fit:
        raise UserError("--crop and --fit exclude each other; give one of them.")
    paths = media.find_pictures(config.pictures)
    if config.decode is not None:
        decode(config, config.decode, paths)
    elif paths:
        translate(config, paths)
    else:
        raise UserError("no picture is given; name one, a folder of them, or a glob in quotes.")


def translate(config: Config, paths: list[Path]) -> None:
    """Write the sound of each picture. One that cannot be read keeps no other from being written.

    Raises:
        UserError: at the end, if a picture could not be read, or its sound not be written.
    """
    outputs = name_outputs(config, paths)
    device, encoding = choose_device(config.device), config.encoding
    translator = VoiceTranslator(encoding).to(device)
    comment = json.dumps({COMMENT: dataclasses.asdict(encoding)})
    refused, squeezed = [], []
    for first in progress_bar(range(0, len(paths), config.batch), "pictures"):
        images, kept = [], []
        for path, output in list(zip(paths, outputs, strict=True))[first : first + config.batch]:
            try:
                picture = media.read_picture(path)
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
        for output, pcm in zip(kept, voice_translator.to_pcm16(soundscapes), strict=True):
            try:
                if output is not None:
                    media.write_sound(output, pcm, encoding.sample_rate, comment)
            except UserError as error:
                refused.append(str(error))
        if config.spectrogram is not None and not refused:
            draw_spectrogram(config.spectrogram, images[0][0].cpu(), soundscapes[0], encoding)
    if squeezed:
        grid = "{1} x {0}".format(*encoding.image_size)
        others = f" and {len(squeezed) - 1} other(s)" if len(squeezed) > 1 else ""
        print(
            f"squeezed to the proportions of {grid}: {squeezed[0]}{others}; --crop cuts and --fit "
            "adds bars instead"
        )
    if refused:
        count = f"{len(refused)} of {len(paths)} pictures"
        raise UserError(f"{count} were not translated: {' '.join(refused[:9])}")
    written = ", ".join(str(path) for path in (config.output, config.spectrogram) if path)
    sounds = f"{encoding.seconds} s of sound each, {encoding.sample_rate} Hz"
    print(f"{len(paths)} picture(s) as {sounds}. {written}")


def name_outputs(config: Config, paths: list[Path]) -> list[Path | None]:
    """The sound that each picture becomes, None where only its spectrogram is wanted."""
    # One picture of a folder, or of a glob, is one of several.
    several = len(paths) > 1 or paths[0] not in config.pictures
    if config.spectrogram is not None:
        media.require_suffix(config.spectrogram, media.DRAWINGS, "a drawing")
        if several:
            raise UserError(
                "--spectrogram draws one picture, but a folder or several are given; name one."
            )
    outputs: list[Path | None] = [config.output]
    if config.output is not None and not several:
        media.require_suffix(config.output, media.SOUNDS, "a sound")
    elif config.output is not None:
        if config.output.suffix.lower() in media.SOUNDS:
            raise UserError(
                f"{config.output} is one sound, but a folder or several pictures are given; name a "
                "folder by -o."
            )
        names = [f"{path.stem}.{config.format}" for path in paths]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two pictures would become {twice}; rename one of them.")
        outputs = [config.output / name for name in names]
    keep_inputs(paths, [*outputs, config.spectrogram])
    return outputs


def keep_inputs(inputs: list[Path], outputs: list[Path | None]) -> None:
    """Refuse to write an output in the place of its input."""
    written = {path.resolve() for path in outputs if path is not None}
    for path in inputs:
        if path.resolve() in written:
            raise UserError(f"{path} would be replaced by what is made of it; give another name.")


def frame(picture: Tensor, config: Config, encoding: Encoding) -> Tensor:
    """The picture, `(H, W)`, cut or with bars as --crop and --fit say."""
    if not (config.crop or config.fit) or not is_squeezed(picture, encoding):
        return picture
    height, width = picture.shape
    rows, columns = encoding.image_size
    ratio = columns / rows
    choose = min if config.crop else max
    wide = choose(width, max(1, round(height * ratio))) - width  # columns to add, or to cut
    high = choose(height, max(1, round(width / ratio))) - height
    left, top = int(wide / 2), int(high / 2)
    silent = 255 if encoding.negative else 0
    return F.pad(picture, (left, wide - left, top, high - top), value=silent)


def is_squeezed(picture: Tensor, encoding: Encoding) -> bool:
    """Whether a picture has other proportions than the grid, by more than a pixel of it."""
    height, width = picture.shape
    rows, columns = encoding.image_size
    ratio = width / height * rows / columns
    return max(ratio, 1 / ratio) > 1 + 1 / max(rows, columns, height, width)


def choose_encoding(config: Config, path: Path) -> Encoding:
    """The encoding by which `path` is decoded: the one in its comment, else that of the flags.

    Raises:
        UserError: if the sound or its comment is damaged, or names another than the flags.
    """
    comment, demanded = media.read_comment(path), config.encoding
    if f'"{COMMENT}"' not in comment[:100]:
        return demanded
    try:
        recorded = Encoding(**json.loads(comment)[COMMENT])
    except (ValueError, TypeError, LookupError, RecursionError, ArithmeticError) as error:
        raise UserError(
            f"{path} names an encoding that this version does not know; save it again without its "
            "comment, and give the encoding by flags."
        ) from error
    if recorded == demanded or (config.preset == "auto" and demanded == Encoding()):
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
    media.require_suffix(config.output, media.IMAGES, "a picture")
    keep_inputs([*originals, path], [config.output])
    encoding = choose_encoding(config, path)
    original = frame(media.read_picture(originals[0]), config, encoding) if originals else None
    shape = (2, encoding.samples) if encoding.stereo else (encoding.samples,)
    sound, said = media.read_sound(path, encoding.sample_rate, shape), ""
    try:
        if sound.shape[-1] > encoding.samples:
            start = voice_translator.find_start(sound, encoding)
            sound = sound[..., start : start + encoding.samples]
            said += f" The soundscape begins at {start / encoding.sample_rate:.4f} s."
        sounded = voice_translator.estimate_image(sound, encoding)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    image, lost = voice_translator.undo_contrast(sounded, encoding)
    if lost.any():
        saturated = f"{int(lost.sum())} of {lost.numel()} pixels"
        said += f" The contrast saturated in {saturated}; they are black or white."
    if original is not None:
        seen = VoiceTranslator(encoding).double().resized(original[None])[0]
        pair = torch.stack([image, seen]).flatten(1)
        correlation = "is not defined, as one of them has one grey only"
        if pair.std(1).min() > 1e-6:
            correlation = f"is {pair.corrcoef()[0, 1]:.4f}"
        said += f" Its correlation with {originals[0]} {correlation}."
        image = F.interpolate(image[None, None], original.shape, mode="nearest-exact")[0, 0]
    media.write_picture(config.output, image)
    size = "{} x {}".format(*encoding.image_size)
    print(f"the image that sounds like {path}, {size}: {config.output}.{said}")


def draw_spectrogram(path: Path, image: Tensor, sound: Tensor, encoding: Encoding) -> None:
    """Draw an image, `(H, W)` in [0, 1], before a negative, turned so that time runs from left to
    right, beside the spectrogram of its sound, `(samples,)` or `(2, samples)` in [-1, 1]."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullLocator
    from scipy.signal import ShortTimeFFT

    hertz, sample_rate = encoding.frequencies(), encoding.sample_rate
    low, high = hertz.min().item(), hertz.max().item()
    ears = sound.reshape(-1, sound.shape[-1]).double().numpy()
    figure, axes = media.pyplot().subplots(
        1, 1 + len(ears), figsize=(4 + 5 * len(ears), 4), layout="constrained", squeeze=False
    )
    look = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    axes[0, 0].imshow(voice_translator.turn_to_scan(image, encoding).cpu().numpy(), **look)
    axes[0, 0].set(title="image, as it is scanned", xlabel="column", ylabel="row")
    # 40 ms separate frequencies of 25 Hz, and blur some columns in time.
    length = max(2, min(round(0.04 * sample_rate), ears.shape[1]))
    names = ("left ear", "right ear") if len(ears) == 2 else ("sound",)
    for axis, samples, name in zip(axes[0, 1:], ears, names, strict=True):
        window, hop = np.hanning(length), max(1, length // 16)
        transform = ShortTimeFFT(window, hop, sample_rate, mfft=4 * length, scale_to="magnitude")
        decibels = 20 * np.log10(np.abs(transform.stft(samples)) + 1e-9)
        look = {"cmap": "magma", "vmin": -80, "vmax": -20, "rasterized": True}
        shown = axis.pcolormesh(transform.t(len(samples)), transform.f, decibels, **look)
        axis.set(title=name, xlabel="time (s)", ylabel="frequency (Hz)")
        axis.set_xlim(0, len(samples) / sample_rate)
        if hertz.median() < 0.45 * (low + high):  # the curve is denser at low frequencies
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:.0f}")
            axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(low * 0.8, min(sample_rate / 2, high * 1.15))
    figure.colorbar(shown, ax=axes[0, -1], label="level (dB of full scale)")
    media.save_figure(path, figure, dpi=100)


def run() -> None:
    """Read the command line. The preset comes first, as it sets the defaults of other flags."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=Config.preset)
    preset = early.parse_known_args()[0].preset
    default = PRESETS.get(preset, Config())  # tyro refuses an unknown name
    command_line(Config, main, voice_translator.__doc__, {"": default})


if __name__ == "__main__":
    run()
