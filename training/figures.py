"""The pictures of a run: image grids with an explicit value range, curves from the log, and
soundscapes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.files import write_file
from common.media import pyplot, save_figure, write_sound
from vggish import BANDS, SAMPLE_RATE, ImageToLogMel, band_of
from voice_translator import to_pcm16


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """A plain grid: `(N, 1, H, W)` images in [-1, 1], `columns` beside one another."""
    write_file(path, _grid(images, columns).save)


def _grid(images: Tensor, columns: int) -> Image.Image:
    from torchvision.utils import make_grid  # it takes as long to import as PyTorch

    grid = make_grid(images, columns, normalize=True, value_range=(-1, 1))[0]  # of three channels
    return Image.fromarray(grid.mul(255).add(0.5).byte().cpu().numpy())


def save_pair_grid(path: Path, heard: Tensor, imagined: Tensor, names: Sequence[str]) -> None:
    """Draw heard and imagined images in pairs: a row for each class, with its name.

    Args:
        path: of the picture.
        heard: `(rows, pairs, 1, 64, 64)` in [-1, 1]; each is drawn outlined, left in its pair.
        imagined: likewise.
        names: of the rows.
    """
    outlined = F.pad(heard[..., 2:-2, 2:-2], (2, 2, 2, 2), value=0.2)
    pairs = torch.stack([outlined, imagined], dim=2).flatten(0, 2)  # heard, imagined, heard, ...
    columns, cell = 2 * heard.shape[1], 66
    grid = _grid(pairs, columns)
    font = ImageFont.load_default(size=13)
    left = 12 + int(max(font.getlength(name) for name in names))
    canvas = Image.new("L", (left + grid.width, 20 + grid.height))
    canvas.paste(grid, (left, 20))
    pen = ImageDraw.Draw(canvas)
    for row, name in enumerate(names):
        pen.text((left - 6, 20 + (row + 0.5) * cell), name, fill=255, font=font, anchor="rm")
    for column in range(columns):
        title = "imagined" if column % 2 else "heard"
        middle = left + (column + 0.5) * cell
        pen.text((middle, 10), title, fill=255, font=font, anchor="mm")
    write_file(path, canvas.save)


def save_labelled_rows(path: Path, titles: Sequence[str], rows: Sequence[Tensor]) -> None:
    """Draw rows of images, `(N, 1, H, W)` in [-1, 1] each, with a title for each row."""
    columns = max(map(len, rows))
    look = {"figsize": (columns, 1.15 * len(rows)), "layout": "constrained", "squeeze": False}
    figure, axes = pyplot().subplots(len(rows), columns, **look)
    for axis_row, title, images in zip(axes, titles, rows, strict=True):
        for axis in axis_row:
            axis.set(xticks=(), yticks=(), frame_on=False)
        for axis, image in zip(axis_row, images.cpu(), strict=False):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
        axis_row[0].set_ylabel(title.replace(" ", "\n"), rotation=0, ha="right", va="center")
    save_figure(path, figure)


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """The indices of the first `count` images of each class that is present, `(classes, count)`."""
    firsts = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    return torch.stack([one[torch.arange(count, device=one.device) % len(one)] for one in firsts])


def save_curves(folder: Path, panels: Mapping[str, Mapping[str, str]]) -> None:
    """Draw `curves.png` from `log.jsonl`.

    Args:
        folder: of the run.
        panels: title of a panel with its unit -> key in the log -> label of the curve.
    """
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in history]
    look = {"figsize": (4.2 * len(panels), 3.2), "layout": "constrained", "squeeze": False}
    figure, axes = pyplot().subplots(1, len(panels), **look)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for key, label in curves.items():
            axis.plot(epochs, [line[key] for line in history], ".-", label=label)
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(folder.name)
    save_figure(folder / "curves.png", figure)


def save_soundscapes(
    folder: Path, front_end: ImageToLogMel, images: Tensor, names: Sequence[str]
) -> None:
    """Draw images above their log-mels, `soundscapes.png`; write their sounds, `soundscapes.wav`.

    The sounds follow one another, with half a second of silence between them.

    Args:
        folder: of the run.
        front_end: images -> sounds and log-mels.
        images: `(N, H, W)` uint8.
        names: the title of each.
    """
    with torch.no_grad():
        sounds = front_end.translator(images)
        logmels = front_end.log_mel(sounds)[:, 0].cpu().numpy()
    seconds = front_end.frames * front_end.hop / SAMPLE_RATE
    size = {"figsize": (1.5 * len(images), 3.4), "layout": "constrained", "squeeze": False}
    figure, axes = pyplot().subplots(2, len(images), **size)
    look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -4.6, "vmax": 3}
    for above, below, image, logmel, name in zip(
        *axes, images.cpu().numpy(), logmels, names, strict=True
    ):
        above.imshow(image, cmap="gray", vmin=0, vmax=255)
        above.set_title(name)
        above.axis("off")
        shown = below.imshow(logmel.T, extent=(0, seconds, 0, BANDS), **look)
        below.axvline(front_end.encoding.seconds, color="white", linewidth=0.6)
        below.set(xlabel="s", yticks=())
    hertz = (200, 500, 1000, 2000, 4000, 7000)
    axes[1, 0].set_yticks([band_of(hz) for hz in hertz], [f"{hz:,}" for hz in hertz])
    axes[1, 0].set_ylabel("Hz")
    figure.colorbar(shown, ax=axes[1], label="ln magnitude")
    save_figure(folder / "soundscapes.png", figure, dpi=100)
    rate = front_end.encoding.sample_rate
    one_after_another = F.pad(sounds, (0, rate // 2)).movedim(0, -2).flatten(-2).cpu()
    write_sound(folder / "soundscapes.wav", to_pcm16(one_after_another), rate)
