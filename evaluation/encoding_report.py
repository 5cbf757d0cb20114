"""The report on encodings: comparison.csv, conclusions.md, ratings.png, sheet.png, sounds.html."""

import csv
import io
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import load_tensors, write_file
from common.media import pyplot
from data.resize import downsample_lstsq
from evaluation.compare import COLUMNS, read_rating
from evaluation.encodings import BASELINE
from evaluation.report import png, spectrogram, template, wav
from evaluation.significance import MOST_SEEDS, differences, groups_of, t_interval
from training.run import is_complete, read_metrics
from vggish import SAMPLE_RATE
from voice_translator import Encoding, VoiceTranslator, to_pcm16


class Rating(NamedTuple):
    """A rating that encodings are compared by."""

    title: str
    least: float  # The most is 1.
    linear: str | None = None  # column with the same rating of the linear decoder


RATINGS = {  # by their column in comparison.csv
    "judges_mean": Rating("right, mean of the three judges", 0),
    "correlation": Rating("correlation with the heard image", -1, "linear_correlation"),
    "retrieval": Rating("retrieval", 0, "linear_retrieval"),
}
MOST_SHOWN = 60  # encodings in the pictures; Matplotlib draws no picture of more than about 1,000
UNTESTED = f"No difference is tested: that takes `{BASELINE}` and another encoding, two seeds each."
TEXT = f"""\
- Every rating is a fraction. A mean is over the seeds; the sample standard deviation follows it.
- A difference is the mean of the encoding minus that of `{BASELINE}`. Above 0 is better.
- p is that of Welch's two-sided t-test, adjusted by Holm's method. Significant: p is below 0.05.
- The interval of a difference has the level at which Holm's method tests it.
- A difference that is not significant supports no conclusion: it may be there or not.
- Each rating has its own 5 %. They hold if encodings and seeds were chosen before any rating was seen. Test encodings that
  were chosen by their ratings on new seeds alone (`--only`, `--seeds`).
- Seeds needed: for each encoding, to find the difference with a power of 80 %, if it and the spread are as observed.
- If an encoding is worse than `{BASELINE}`, but not by its linear decoder, the model or its schedule may be the cause.
- With another number of frames (comparison.csv) the network has another size. Such a difference is that of both together.
- Not tested: people; another generator or other judges; a longer schedule; other test images.
"""  # noqa: E501
FEW = "- **The seeds are few.** With three or fewer, only large differences become significant.\n"


def write_report(
    root: Path, rows: list[dict[str, Any]], title: str, missing: Sequence[str]
) -> None:
    """Write comparison.csv, of these rows, and conclusions.md into the folder `root`.

    Args:
        root: the folder to write into.
        rows: of comparison.csv.
        title: the settings in words.
        missing: the titles of the trials that are not finished.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0] if rows else ["encoding", "seed"])
    writer.writeheader()
    writer.writerows(rows)
    text = {"comparison.csv": table.getvalue(), "conclusions.md": conclusions(rows, title, missing)}
    for name, content in text.items():
        save = partial(Path.write_text, data=content, encoding="utf-8", newline="")
        write_file(root / name, save)


def row_of(name: str, run: Path) -> dict[str, Any]:
    """The row of a rated run of stage three in comparison.csv.

    Raises:
        UserError: if the rating is missing or malformed.
    """
    _, rating = read_rating(run)
    folder, config = run.parent, rating["stages"]["train_all"]["config"]
    encoding = Encoding(**config["encoding"])
    column = encoding.samples / encoding.columns / encoding.sample_rate  # seconds
    decoder = folder.parent / "linear"
    linear = read_metrics(decoder) if is_complete(decoder) else None
    seconds = [read_metrics(one)["seconds"] for one in (folder / "train_vggish", run)]
    return {
        "encoding": name,
        "seed": rating["stages"]["train_all"]["seed"],
        **{name: get(rating) for name, (_, get) in COLUMNS.items()},
        "linear_correlation": linear and linear["correlation"]["mean"],
        "linear_retrieval": linear and linear["retrieval"]["overall"]["accuracy"],
        "sound_seconds": encoding.seconds,
        "frames": config["frames"],
        "frames_a_column": round(column * SAMPLE_RATE / config["hop"], 2),
        "seconds": round(sum(seconds) + rating["seconds"], 1),
        "machine": rating["machine"],
        "revision": rating["revision"],
        "folder": str(folder),
    }


def conclusions(rows: list[dict[str, Any]], title: str, missing: Sequence[str]) -> str:
    """The text of conclusions.md."""
    text = TEXT + (FEW if len({row["seed"] for row in rows}) < 4 else "")
    text += f"- Not finished: {'; '.join(missing)}.\n" if missing else ""
    return f"# Comparison of encodings\n\n{title}\n\n{text}\n{tables(rows)}"


def tables(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown for each rating, the best encoding first."""
    parts = [f"## {rating.title}\n\n{_table(rows, column)}" for column, rating in RATINGS.items()]
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]], column: str) -> str:
    groups, linear = groups_of(rows, column), RATINGS[column].linear
    found = differences(groups)
    decoded = {row["encoding"]: row[linear] for row in rows} if linear else {}
    lines = [["encoding", "seeds", "mean", "difference", "interval", "p", "significant"]]
    lines[0] += ["seeds needed", *(["linear decoder"] if linear else [])]
    for name in sorted(groups, key=lambda name: -statistics.fmean(groups[name])):
        values, one = groups[name], found.get(name)
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        line = [name, f"{len(values)}", f"{statistics.fmean(values):.3f}{spread}"]
        if one:
            line += [f"{one.mean:+.3f}", "{:+.3f} to {:+.3f}".format(*one.interval)]
            line += [f"{one.p:.4f}", "yes" if one.significant else "no"]
            line += [f"{one.seeds_needed or f'over {MOST_SEEDS}'}"]
        else:
            line += [""] * 5
        if linear:
            line.append("" if decoded[name] is None else f"{decoded[name]:.3f}")
        lines.append(line)
    tested = f"Encodings in the correction: {len(found)}." if found else UNTESTED
    return f"{_markdown(lines)}\n{tested}\n"


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def write_pictures(root: Path, rows: list[dict[str, Any]]) -> None:
    """Write ratings.png, sheet.png and sounds.html, of `BASELINE` and the MOST_SHOWN encodings that
    are the best by the judges."""
    judged = groups_of(rows, "judges_mean")
    names = sorted(judged, key=lambda name: statistics.fmean(judged[name]))[-MOST_SHOWN:]
    rows = [row for row in rows if row["encoding"] in {BASELINE, *names}]
    draw_ratings(root / "ratings.png", rows)
    draw_sheet(root / "sheet.png", rows)
    write_sounds(root / "sounds.html", rows)


def draw_ratings(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw a panel for each rating and a line for each encoding, the best by the judges on top."""
    plt = pyplot()
    judged = groups_of(rows, "judges_mean")
    names = sorted(judged, key=lambda name: statistics.fmean(judged[name]))
    size = (3 * len(RATINGS) + 1, 0.3 * len(names) + 1.5)
    figure, axes = plt.subplots(1, len(RATINGS), figsize=size, sharey=True, layout="constrained")
    for axis, (column, rating) in zip(axes, RATINGS.items(), strict=True):
        groups = groups_of(rows, column)
        for line, name in enumerate(names):
            values, colour = groups[name], "tab:orange" if name == BASELINE else "tab:blue"
            axis.plot(values, [line] * len(values), "o", color=colour, markersize=4, alpha=0.5)
            axis.plot(statistics.fmean(values), line, "|", color=colour, markersize=14)
            if interval := t_interval(values):
                clipped = [min(max(end, rating.least), 1) for end in interval]
                axis.plot(clipped, [line, line], color=colour, linewidth=1.5)
        if BASELINE in groups:
            mean = statistics.fmean(groups[BASELINE])
            axis.axvline(mean, color="tab:orange", linewidth=0.8, linestyle=":")
        if rating.linear:
            known = [row for row in rows if row[rating.linear] is not None]
            values = [row[rating.linear] for row in known]
            lines = [names.index(row["encoding"]) for row in known]
            axis.plot(values, lines, "D", color="grey", markersize=5, markerfacecolor="none")
        axis.set_xlabel(rating.title, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    figure.suptitle(
        "dots: seeds; bar: their mean, with its 95 % t-interval (none for one seed);\n"
        f"dotted: {BASELINE}; grey diamonds: the linear decoder", fontsize=9,
    )  # fmt: skip
    write_file(path, lambda beside: figure.savefig(beside, dpi=170))
    plt.close(figure)


def _load_shown(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "shown.pt", f"delete {folder}, and run again")


def _first_seeds(rows: list[dict[str, Any]]) -> dict[str, tuple[Path, dict[str, Tensor]]]:
    """Encoding -> the folder of its first seed, and what is in its shown.pt."""
    folders: dict[str, Path] = {}
    for row in rows:
        folders.setdefault(row["encoding"], Path(row["folder"]))
    return {name: (folder, _load_shown(folder)) for name, folder in folders.items()}


def draw_sheet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw a row for each encoding: the same test images as log-mels, as imagined with its first
    seed, and as decoded by the linear decoder."""
    plt, shown = pyplot(), _first_seeds(rows)
    count = len(shown) + 1
    figure, axes = plt.subplots(
        count, 3, figsize=(11, 0.37 * count), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.01, w_pad=0.03, hspace=0, wspace=0)

    def strip(axis: Any, images: Tensor, **colours: Any) -> None:
        enlarged = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        axis.imshow(torch.cat(tuple(enlarged[:, 0]), 1).numpy(), interpolation="nearest", **colours)

    grey, loud = {"cmap": "gray", "vmin": -1, "vmax": 1}, {"cmap": "magma", "vmin": -4.6, "vmax": 3}
    for line, (folder, tensors) in zip(axes[1:], shown.values(), strict=True):
        strip(line[0], tensors["logmels"].transpose(2, 3).flip(2), **loud)  # low pitches below
        strip(line[1], tensors["imagined"], **grey)
        decoder = folder.parent / "linear"
        if is_complete(decoder):
            strip(line[2], _load_shown(decoder)["decoded"], **grey)
    for axis in axes[0]:
        strip(axis, next(iter(shown.values()))[1]["heard"], **grey)
    labels = ["image", *(name.replace("_", " ") for name in shown)]
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], ("log-mels", "imagined", "linear decoder"), strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=(), yticks=(), frame_on=False)
    write_file(path, lambda beside: figure.savefig(beside, dpi=160))
    plt.close(figure)


def write_sounds(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a page to hear the same test images under every encoding, side by side."""
    sections: list[dict[str, Any]] = []  # of each image
    for name, (folder, shown) in _first_seeds(rows).items():
        config = read_metrics(folder / "train_vggish")["config"]
        translator = VoiceTranslator(Encoding(**config["encoding"]))
        images = (255 * downsample_lstsq(shown["heard"])).round().clamp(0, 255).byte()[:, 0]
        sections = sections or [{"heard": png(image.numpy()), "rows": []} for image in images]
        sounds, logmels, imagined = (
            to_pcm16(translator(images)),
            shown["logmels"],
            shown["imagined"],
        )
        pixels = (imagined + 1).mul(127.5).round().byte()
        for section, sound, logmel, drawn in zip(sections, sounds, logmels, pixels, strict=True):
            row = {
                "name": name,
                "sound": wav(sound.numpy(), translator.encoding.sample_rate),
                "logmel": png(spectrogram(logmel[0].numpy())),
                "imagined": png(drawn[0].numpy()),
            }
            section["rows"].append(row)
    page = template("sounds.html.j2").render(images=sections)
    write_file(path, lambda beside: beside.write_text(page, encoding="utf-8"))
