"""The pictures of a run: image grids with an explicit value range, curves from the log, and
soundscapes."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.files import write_file
from common.media import pyplot, write_sound
from vggish import SAMPLE_RATE, ImageToLogMel
from voice_translator import to_pcm16


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """A plain grid: `(N, 1, H, W)` images in [-1, 1], `columns` beside one another."""
    from torchvision.utils import make_grid  # it takes as long to import as PyTorch

    grid = make_grid(images, columns, normalize=True, value_range=(-1, 1))[
        0
    ]  # of three channels, all alike
    picture = Image.fromarray(grid.mul(255).add(0.5).byte().cpu().numpy())
    write_file(path, picture.save)


def save_pair_grid(path: Path, heard: Tensor, imagined: Tensor) -> None:
    """What was heard beside what was imagined: a row per class, pairs in it, the heard image left
    and outlined.

    Args:
        heard: `(rows, pairs, 1, 64, 64)` in [-1, 1].
        imagined: likewise.
    """
    outlined = F.pad(heard[..., 2:-2, 2:-2], (2, 2, 2, 2), value=0.2)
    # heard, imagined, heard, imagined, ...
    pairs = torch.stack([outlined, imagined], dim=2).flatten(0, 2)
    save_grid(path, pairs, columns=2 * heard.shape[1])


def save_labelled_rows(path: Path, titles: Sequence[str], rows: Sequence[Tensor]) -> None:
    """A row of images for each title, `(N, 1, H, W)` in [-1, 1], one image of each row above
    another."""
    plt = pyplot()
    columns = max(map(len, rows))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns, 1.15 * len(rows)), layout="constrained", squeeze=False
    )
    for axis_row, title, images in zip(axes, titles, rows, strict=True):
        for axis, image in zip(axis_row, images.cpu(), strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        axis_row[0].set_ylabel(title.replace(" ", "\n"), rotation=0, ha="right", va="center")
    write_file(path, lambda beside: figure.savefig(beside, dpi=110))
    plt.close(figure)


def first_of_each_class(labels: Tensor, count: int) -> Tensor:
    """The indices of the first `count` images of each class, `(classes, count)`: chosen by index,
    not by beauty."""
    firsts = [torch.nonzero(labels == digit)[:, 0] for digit in range(int(labels.max()) + 1)]
    return torch.stack(
        [index[torch.arange(count, device=index.device) % len(index)] for index in firsts]
    )


def save_curves(folder: Path, panels: Sequence[Sequence[str]]) -> None:
    """Draw `curves.png` from `log.jsonl`: a panel for each group of names that have a unit in
    common."""
    plt = pyplot()
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for axis, names in zip(axes[0], panels, strict=True):
        for name in names:
            axis.plot(
                [line["epoch"] for line in history],
                [line[name] for line in history],
                ".-",
                label=name.replace("_", " "),
            )
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    write_file(folder / "curves.png", lambda path: figure.savefig(path, dpi=110))
    plt.close(figure)


def save_soundscapes(folder: Path, ear: ImageToLogMel, images: Tensor, labels: Tensor) -> None:
    """`soundscapes.png`: each image above its log-mel as the network hears it; `soundscapes.wav`:
    the same, one after another, with half a second of silence between.

    Args:
        images: `(N, H, W)` uint8.
        labels: `(N,)`, for the titles.
    """
    plt = pyplot()
    with torch.no_grad():
        sounds = ear.translator(images)
        logmels = ear.log_mel(sounds)[:, 0].cpu().numpy()
    seconds = ear.frames * ear.hop / SAMPLE_RATE
    figure, axes = plt.subplots(
        2, len(images), figsize=(1.5 * len(images), 3.4), layout="constrained", squeeze=False
    )
    for column, (image, label) in enumerate(
        zip(images.cpu().numpy(), labels.tolist(), strict=True)
    ):
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(str(label))
        axes[0, column].axis("off")
        shown = axes[1, column].imshow(
            logmels[column].T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-4.6,
            vmax=3,
            extent=(0, seconds, 0, 64),
        )
        axes[1, column].axvline(ear.encoding.seconds, color="white", linewidth=0.6)
        axes[1, column].set_xlabel("s")
        if column:
            axes[1, column].set_yticks([])
    axes[1, 0].set_ylabel("mel band")
    figure.colorbar(shown, ax=axes[1], label="ln magnitude")
    write_file(folder / "soundscapes.png", lambda path: figure.savefig(path, dpi=100))
    plt.close(figure)
    gap = int(0.5 * ear.encoding.sample_rate)
    one_after_another = F.pad(sounds, (0, gap)).movedim(0, -2).flatten(-2).cpu()
    write_sound(folder / "soundscapes.wav", to_pcm16(one_after_another), ear.encoding.sample_rate)
