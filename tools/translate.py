"""The translator's command: pictures to sounds, and sounds back to pictures. `python
voice_translator.py` runs it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

import voice_translator
from common.cli import command_line, progress_bar
from common.device import choose_device
from common.files import UserError, write_file
from common.media import (
    DRAWINGS,
    IMAGES,
    SOUNDS,
    find_pictures,
    pyplot,
    read_picture,
    read_sound,
    require_suffix,
    write_picture,
    write_sound,
)
from voice_translator import Encoding, VoiceTranslator, estimate_image, to_pcm16


@dataclass(frozen=True)
class Config:
    pictures: tyro.conf.Positional[
        tuple[Path, ...]
    ] = ()  # pictures, folders of pictures, or globs in quotes
    # .wav or .flac; of several pictures, a folder; with --decode, .png
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    format: Literal["wav", "flac"] = "wav"  # of the sounds in a folder
    spectrogram: Path | None = None  # .png: the picture beside the spectrogram of its sound
    decode: Path | None = None  # a soundscape, whose image is estimated
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    batch: int = 64  # pictures that are translated together

    encoding: Annotated[Encoding, tyro.conf.arg(name="")] = field(default_factory=Encoding)


def main(config: Config) -> None:
    """The command; see the top of this file."""

    if config.output is None and config.spectrogram is None:
        raise UserError("nothing would be written; give -o, or --spectrogram.")
    if config.batch < 1:
        raise UserError(f"--batch is {config.batch}, but must be at least 1.")
    paths = find_pictures(config.pictures)
    encoding = config.encoding
    if config.decode is not None:
        _decode(config, paths)
        return
    if not paths:
        raise UserError("no picture is given; name one, a folder of them, or a glob in quotes.")
    outputs = _outputs(config, paths)
    device = choose_device(config.device)
    translator = VoiceTranslator(encoding).to(device)
    refused = []
    batches = list(zip(paths, outputs, strict=True))
    batches = [batches[i : i + config.batch] for i in range(0, len(batches), config.batch)]
    for batch in progress_bar(batches, "pictures"):
        images, kept = [], []
        for path, output in batch:
            try:
                images.append(translator.resized(read_picture(path)[None]) / 255)
                kept.append(output)
            except UserError as error:
                refused.append(str(error))
        if not images:
            continue
        with torch.no_grad():
            soundscapes = translator(torch.cat(images).to(device)).cpu()
        for output, pcm in zip(kept, to_pcm16(soundscapes), strict=True):
            if output is None:
                continue
            try:
                write_sound(output, pcm, encoding.sample_rate)
            except UserError as error:
                refused.append(str(error))
    if config.spectrogram is not None and not refused:
        low, high = encoding.frequencies().aminmax()
        log = encoding.curve in ("exponential", "mel", "bark")
        draw_spectrogram(
            config.spectrogram,
            images[0][0].cpu(),
            soundscapes[0],
            encoding.sample_rate,
            (low.item(), high.item()),
            log,
        )
    if refused:
        raise UserError(
            f"{len(refused)} of {len(paths)} pictures were not translated: " + " ".join(refused[:9])
        )
    written = [str(path) for path in (config.output, config.spectrogram) if path is not None]
    print(
        f"{len(paths)} picture(s) as {encoding.seconds} s of sound each, {encoding.sample_rate} Hz. {', '.join(written)}"
    )


def _outputs(config: Config, paths: list[Path]) -> list[Path | None]:
    """The sound that each picture becomes, None where only its spectrogram is wanted."""

    several = (
        len(paths) > 1 or paths[0] not in config.pictures
    )  # one picture of a folder, or of a glob, is one of several
    if several and config.spectrogram is not None:
        raise UserError(
            "--spectrogram draws one picture, but a folder or several are given; name one."
        )
    if several and config.output.suffix.lower() in SOUNDS:
        raise UserError(
            f"{config.output} is one sound, but a folder or several pictures are given; name a folder by -o."
        )
    if config.spectrogram is not None:
        require_suffix(config.spectrogram, DRAWINGS, "a drawing")
    outputs = [config.output]
    if several:
        outputs = [config.output / f"{path.stem}.{config.format}" for path in paths]
        twice = next(
            (
                path
                for path, output in zip(paths, outputs, strict=True)
                if outputs.count(output) > 1
            ),
            None,
        )
        if twice is not None:
            raise UserError(
                f"two pictures would become {twice.stem}.{config.format}; rename one of them."
            )
    elif config.output is not None:
        require_suffix(config.output, SOUNDS, "a sound")
    _spare(paths, [*outputs, config.spectrogram])
    return outputs


def _spare(inputs: list[Path], outputs: list[Path | None]) -> None:
    """Refuse to write what is made of a file in its place."""

    made = {path.resolve() for path in outputs if path is not None}
    lost = next((path for path in inputs if path.resolve() in made), None)
    if lost is not None:
        raise UserError(f"{lost} would be replaced by what is made of it; give another name.")


def _decode(config: Config, originals: list[Path]) -> None:

    if config.output is None or config.spectrogram is not None or len(originals) > 1:
        raise UserError(
            "--decode makes one image; give it a name with -o, at most one picture, and no --spectrogram."
        )
    require_suffix(config.output, IMAGES, "a picture")
    _spare([*originals, config.decode], [config.output])
    encoding = config.encoding
    original = read_picture(originals[0]) if originals else None
    shape = (2, encoding.samples) if encoding.stereo else (encoding.samples,)
    image = estimate_image(read_sound(config.decode, encoding.sample_rate, shape), encoding)
    write_picture(config.output, image)
    said = ""
    if original is not None:
        pair = torch.stack(
            [image, VoiceTranslator(encoding).double().resized(original[None])[0]]
        ).flatten(1)
        told = "cannot be told, as one of them is of one grey"
        if pair.std(1).min() > 1e-6:
            told = f"is {pair.corrcoef()[0, 1]:.4f}"
        said = f" Its correlation with {originals[0]} {told}."
    print(
        f"the image that sounds like {config.decode}, {encoding.rows} x {encoding.columns}: {config.output}.{said}"
    )


def draw_spectrogram(
    path: Path, image: Tensor, sound: Tensor, sample_rate: int, hz: tuple[float, float], log: bool
) -> None:
    """Draw an image beside the spectrogram of its sound, of each ear in stereo.

    Args:
        image: `(rows, columns)` in [0, 1], as it is scanned, but for a negative.
        sound: `(samples,)` or `(2, samples)` in [-1, 1].
        sample_rate: in Hz.
        hz: the lowest and the highest pitch; the axis goes a little beyond.
        log: whether the axis is logarithmic.
    """
    from matplotlib.ticker import LogLocator, NullLocator
    from scipy.signal import ShortTimeFFT

    plt = pyplot()

    require_suffix(path, DRAWINGS, "a drawing")
    ears = sound.reshape(-1, sound.shape[-1]).double().numpy()
    figure, axes = plt.subplots(
        1, 1 + len(ears), figsize=(4 + 5 * len(ears), 4), layout="constrained", squeeze=False
    )
    axes[0, 0].imshow(
        image.cpu().numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes[0, 0].set(title="image, as it is scanned", xlabel="column", ylabel="row")
    # 40 ms tell 25 Hz apart, and blur some columns in time.
    length = max(2, min(round(0.04 * sample_rate), ears.shape[1]))
    for axis, samples, name in zip(
        axes[0, 1:], ears, ("left ear", "right ear") if len(ears) == 2 else ("sound",), strict=True
    ):
        transform = ShortTimeFFT(
            np.hanning(length),
            max(1, length // 16),
            sample_rate,
            mfft=4 * length,
            scale_to="magnitude",
        )
        decibels = 20 * np.log10(np.abs(transform.stft(samples)) + 1e-9)
        seconds = transform.t(len(samples))
        shown = axis.pcolormesh(
            seconds, transform.f, decibels, cmap="magma", vmin=-80, vmax=-20, rasterized=True
        )
        axis.set(
            title=name,
            xlabel="time (s)",
            ylabel="frequency (Hz)",
            xlim=(0, len(samples) / sample_rate),
        )
        if log:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:.0f}")
            axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(hz[0] * 0.8, min(sample_rate / 2, hz[1] * 1.15))
    figure.colorbar(shown, ax=axes[0, -1], label="level (dB of full scale)")
    write_file(path, lambda beside: figure.savefig(beside, dpi=100))
    plt.close(figure)


PRESETS = {
    "late-blind": Config(),
    "congenitally-blind": Config(encoding=Encoding.congenitally_blind()),
    "hificode": Config(encoding=Encoding.hificode()),
}

if __name__ == "__main__":
    command_line(Config, main, voice_translator.__doc__, PRESETS)
