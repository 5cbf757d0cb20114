"""A machine rates image-to-sound encodings: each is learned, imagined with and rated over several
seeds, beside the primary.

    python compare_encodings.py                    # the full schedule; for a GPU
    # narrower and shorter, for two cores; its minutes are in the README
    python compare_encodings.py --quick
    python compare_encodings.py --quick --only primary tanh linear mel --seeds 0 1 2 3 4
    # a second process, on another GPU, shares the work through the folder
    python compare_encodings.py --device cuda:1

An encoding and a seed are a cell: stage one learns to hear it, stage three to imagine, and
`evaluate.py` rates the result. Stage two is trained once and shared by all, as are the judges.
Beside the learned listener stands a linear inverse from the log-mel to the image, so that a
weakness of the listener is not taken for one of the sound.

Writes `results/encodings/`:
    comparison.csv           a row for each encoding and seed
    conclusions.md           what can be concluded from it, and what cannot
    ratings.png, sheet.png   the ratings with their intervals; the same ten test digits under every encoding
    memory-<key>/            a results folder with stage two and the judges
    <name>-<key>/<seed>/     a results folder with stages one and three, and their rating in evaluation/
    <name>-<key>/linear/     the linear inverse
A key stands for the settings. It can be stopped at any time, and the same command goes on; a
finished cell is never run again. An encoding that is new in the header runs alone; another
schedule, objective or rating runs all cells anew. Tables and pictures show what the last command
named: to see all, name all at the end, which takes seconds."""

import csv
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from common.files import load_tensors, write_file
from compare_encodings import ENCODINGS, Config, Schedule
from evaluation.compare import COLUMNS, read_rating
from evaluation.significance import differences, groups_of, t_interval
from evaluation.sweep import BASELINE, Trial, locked
from training.run import read_metrics
from vggish import SAMPLE_RATE

LINEAR = {
    "correlation": "linear_correlation",
    "retrieval": "linear_retrieval",
}  # the same of the linear inverse


CONCLUDED = {  # of COLUMNS: what is concluded upon -> how it is called
    "judges_mean": "digits read right, mean of the three judges",
    "correlation": "correlation with the heard image",
    "retrieval": "retrieval of the source",
}


def summarise(
    config: Config, schedule: Schedule, cells: list[Trial], root: Path
) -> list[dict[str, Any]]:
    """Draw the tables and the pictures anew from the finished cells; returns the rows of
    comparison.csv."""
    with locked(root / "comparison"):
        finished = [cell for cell in cells if cell.finished]
        linear = {cell.name: read_metrics(cell.folder) for cell in finished if cell.seed is None}
        rows = [row_of(cell, linear.get(cell.name)) for cell in finished if cell.seed is not None]
        write_file(root / "comparison.csv", lambda path: write_csv(path, rows))
        missing = [cell for cell in cells if not cell.finished]
        text = conclusions(rows, described(config, schedule), [title(cell) for cell in missing])
        write_file(root / "conclusions.md", lambda path: path.write_text(text, encoding="utf-8"))
        if rows:
            draw_ratings(root / "ratings.png", rows)
            draw_sheet(root / "sheet.png", finished)
    return rows


def title(cell: Trial) -> str:
    return f"{cell.name}, {'linear inverse' if cell.seed is None else f'seed {cell.seed}'}"


def row_of(cell: Trial, linear: dict[str, Any] | None) -> dict[str, Any]:
    path, rating = read_rating(cell.folder)
    heard, encoding = rating["stages"]["train_all"]["config"], cell.listening.encoding
    column = encoding.samples / encoding.columns / encoding.sample_rate  # seconds
    seconds = [
        read_metrics(cell.folder / stage)["seconds"] for stage in ("train_vggish", "train_all")
    ]
    return {
        "encoding": cell.name,
        "seed": cell.seed,
        **{name: get(rating) for name, (_, get) in COLUMNS.items()},
        "linear_correlation": linear and linear["correlation"]["mean"],
        "linear_retrieval": linear and linear["retrieval"]["overall"]["accuracy"],
        "sound_seconds": encoding.seconds,
        "frames": heard["frames"],
        "frames_a_column": round(column * SAMPLE_RATE / heard["hop"], 2),
        "seconds": round(sum(seconds) + rating["seconds"], 1),
        "machine": rating["machine"],
        "revision": rating["revision"],
        "folder": str(path.parent.parent),
    }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0] if rows else ["encoding", "seed"])
        writer.writeheader()
        writer.writerows(rows)


def draw_ratings(path: Path, rows: list[dict[str, Any]]) -> None:
    """A panel for each rating that is concluded upon, a line for each encoding, the best by the
    judges on top."""
    judged = groups_of(rows, "judges_mean")
    names = sorted(judged, key=lambda name: statistics.fmean(judged[name]))
    size = (3 * len(CONCLUDED) + 1, 0.3 * len(names) + 1.5)
    figure, axes = plt.subplots(1, len(CONCLUDED), figsize=size, sharey=True, layout="constrained")
    for axis, (column, meaning) in zip(axes, CONCLUDED.items(), strict=True):
        groups = groups_of(rows, column)
        for line, name in enumerate(names):
            values, colour = groups[name], "tab:orange" if name == BASELINE else "tab:blue"
            axis.plot(values, [line] * len(values), "o", color=colour, markersize=4, alpha=0.5)
            axis.plot(statistics.fmean(values), line, "|", color=colour, markersize=14)
            if t_interval(values):
                axis.plot(t_interval(values), [line, line], color=colour, linewidth=1.5)
        if BASELINE in groups:
            axis.axvline(
                statistics.fmean(groups[BASELINE]), color="tab:orange", linewidth=0.8, linestyle=":"
            )
        if column in LINEAR:
            linear = {
                name: found[0]
                for name, found in groups_of(rows, LINEAR[column]).items()
                if found[0] is not None
            }
            lines = [names.index(name) for name in linear]
            axis.plot(
                linear.values(), lines, "D", color="grey", markersize=5, markerfacecolor="none"
            )
        low, high = axis.get_xlim()
        axis.set_xlim(
            max(low, -0.02), min(high, 1.02)
        )  # an interval may reach beyond what a share can be
        axis.set_xlabel(meaning, fontsize=9)
        if column != "correlation":  # a share
            axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    seeds = {len(values) for values in judged.values()}
    count = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{min(seeds)}"
    figure.suptitle(
        f"dots: {count} seed{'s' * (max(seeds) > 1)}; bar: their mean with its 95 % t-interval (none for one seed);\n"
        f"dotted: {BASELINE}; grey diamonds: the linear inverse, without a listener", fontsize=9,
    )  # fmt: skip
    write_file(path, lambda beside: figure.savefig(beside, dpi=170))
    plt.close(figure)


def draw_sheet(path: Path, finished: list[Trial]) -> None:
    """A row for each encoding: the same ten test digits as they sound, as they are imagined, and as
    the linear inverse has them; of the first seed that is finished."""
    first = {cell.name: cell for cell in reversed(finished) if cell.seed is not None}
    linear = {cell.name: cell for cell in finished if cell.seed is None}
    names = [name for name in ENCODINGS if name in first]
    figure, axes = plt.subplots(
        len(names) + 1,
        3,
        figsize=(11, 0.37 * (len(names) + 1)),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(h_pad=0.01, w_pad=0.03, hspace=0, wspace=0)

    def strip(axis: plt.Axes, images: Tensor, **colours: Any) -> None:
        enlarged = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        axis.imshow(torch.cat(tuple(enlarged[:, 0]), 1).numpy(), interpolation="nearest", **colours)

    grey, loud = {"cmap": "gray", "vmin": -1, "vmax": 1}, {"cmap": "magma", "vmin": -4.6, "vmax": 3}
    for line, name in enumerate(names, 1):
        shown = load_tensors(
            first[name].folder / "shown.pt", f"delete {first[name].folder}, and run again"
        )
        if line == 1:
            for axis in axes[0]:
                strip(axis, shown["heard"], **grey)
        strip(
            axes[line, 0], shown["logmels"].transpose(2, 3).flip(2), **loud
        )  # low pitches at the bottom
        strip(axes[line, 1], shown["imagined"], **grey)
        if name in linear:
            recovered = load_tensors(
                linear[name].folder / "shown.pt", f"delete {linear[name].folder}, and run again"
            )
            strip(axes[line, 2], recovered["recovered"], **grey)
        axes[line, 0].set_ylabel(name.replace("_", " "), rotation=0, ha="right", va="center")
    axes[0, 0].set_ylabel("image", rotation=0, ha="right", va="center")
    for axis, title in zip(
        axes[0], ("heard: log-mels", "imagined", "recovered by the linear inverse"), strict=True
    ):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=(), yticks=())
        axis.set_frame_on(False)
    write_file(path, lambda beside: figure.savefig(beside, dpi=160))
    plt.close(figure)


def described(config: Config, schedule: Schedule) -> str:
    memory = schedule.remember.dataset + (
        f" ({config.split}, {config.file})" if schedule.remember.dataset == "emnist" else ""
    )
    return (
        f"{'Quick' if config.quick else 'Full'} schedule, {config.objective} objective; heard: {schedule.hear.dataset}, "
        f"remembered: {memory}."
    )


def conclusions(rows: list[dict[str, Any]], setting: str, missing: list[str]) -> str:
    """conclusions.md: what the rows of comparison.csv allow to say, and what not.

    Args:
        rows: of comparison.csv.
        setting: a sentence about the schedule and the data.
        missing: the cells that are not finished.
    """
    compared = len(differences(groups_of(rows, "judges_mean")))
    text = [
        "# What can be concluded, and what cannot",
        f"Written by compare_encodings.py from comparison.csv. {setting} All numbers are fractions.",
        f"**The rule.** An encoding is said to be better or worse than `{BASELINE}` where the difference of their means lies "
        f"outside the spread over seeds: by Welch's t-test, two-sided, with Holm's correction over the {compared} encodings "
        "beside it that have a spread, at 5 %. In brackets stands the interval of the difference at the level of that test. "
        "Any other difference lies inside the spread, and nothing is concluded from it: neither that there is one, nor that "
        "there is none. Each rating is a question of its own, with its own 5 %, which hold if encodings and seeds were "
        "chosen before any of their ratings was seen. What is picked out for its ratings, to be given more seeds, has to "
        "show itself on the new seeds alone (`--only`, `--seeds`).",
    ]
    if missing:
        text.append(f"**Not finished yet**, {len(missing)} cells: {'; '.join(missing)}.")
    text += [_concluded(rows, column, meaning) for column, meaning in CONCLUDED.items()]
    text += [_listener_or_sound(rows), _network_or_sound(rows)]
    text.append(
        "**What these numbers cannot tell.** Whether a person hears as this network does. What another memory would bring: "
        "stage two and the judges are the same for all encodings, and the spread over seeds is that of stages one and three "
        "only. What a longer schedule would bring: an encoding that is learned later looks like one that tells less. And of "
        "the test images there are no others; the spread over their choice is in each cell's evaluation/metrics.json."
    )
    return "\n\n".join(part for part in [*text, _table(rows)] if part) + "\n"


def _concluded(rows: list[dict[str, Any]], column: str, meaning: str) -> str:
    groups = groups_of(rows, column)
    found = differences(groups)
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "inside": []}
    for name, difference in found.items():
        low, high = difference.interval
        kind = "inside" if not difference.outside else "better" if difference.mean > 0 else "worse"
        kinds[kind].append(f"`{name}` by {difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    unknown = [f"`{name}`" for name in groups if name != BASELINE and name not in found]
    reference = groups.get(BASELINE, [])
    said = f"**{meaning[0].upper()}{meaning[1:]}.** "
    said += (
        f"`{BASELINE}`: {_spread(reference)}. "
        if reference
        else f"`{BASELINE}` is not there to be held against. "
    )
    said += f"Better than it: {', '.join(kinds['better'])}. " if kinds["better"] else ""
    said += f"Worse: {', '.join(kinds['worse'])}. " if kinds["worse"] else ""
    if kinds["inside"]:
        said += (
            f"Inside the spread, so that nothing can be concluded: {', '.join(kinds['inside'])}. "
        )
    if unknown:
        said += f"The spread is unknown, so that nothing can be concluded: {', '.join(unknown)}. "
    return said.strip()


def _listener_or_sound(rows: list[dict[str, Any]]) -> str:
    """Of what the learned listener finds worse, does the linear inverse find less in the sound,
    too?"""
    known = [row for row in rows if row["linear_correlation"] is not None]
    linear = {name: values[0] for name, values in groups_of(known, "linear_correlation").items()}
    worse = [
        name
        for name, d in differences(groups_of(rows, "correlation")).items()
        if d.outside and d.mean < 0
    ]
    if BASELINE not in linear:
        return ""
    less = [name for name in worse if name in linear and linear[name] < linear[BASELINE]]
    no_less = [name for name in worse if name in linear and linear[name] >= linear[BASELINE]]

    def shown(names: list[str]) -> str:
        return ", ".join(f"`{name}` ({linear[name]:.3f})" for name in names)

    said = (
        f"**The listener or the sound.** From the log-mels of `{BASELINE}` a linear inverse recovers unseen images with a "
        f"correlation of {linear[BASELINE]:.3f}. "
    )
    if less:
        said += f"Worse by the listener's correlation, and of less to the linear inverse as well: {shown(less)}. "
    if no_less:
        said += (
            f"Worse by the listener's correlation, but of no less to the linear inverse: {shown(no_less)}; there the "
            "listener or its schedule may be at fault, and not the sound. "
        )
    return said + "It is no ceiling: the listener may hear what is not linear in the log-mels."


def _network_or_sound(rows: list[dict[str, Any]]) -> str:
    """Which encodings differ from the primary in more than the encoding."""
    frames = {name: values[0] for name, values in groups_of(rows, "frames").items()}
    share = {name: values[0] for name, values in groups_of(rows, "frames_a_column").items()}
    if BASELINE not in frames:
        return ""
    larger = [f"`{name}` ({frames[name]})" for name in frames if frames[name] != frames[BASELINE]]
    others = [
        f"`{name}` ({share[name]:.2f})"
        for name in share
        if abs(share[name] / share[BASELINE] - 1) > 0.01
    ]
    said = f"**The network or the sound.** Every encoding is heard whole, `{BASELINE}` in {frames[BASELINE]} frames"
    said += (
        f"; in another number, and so by a network of another size: {', '.join(larger)}"
        if larger
        else ""
    )
    said += f". It has {share[BASELINE]:.2f} frames a column"
    said += f"; another number have {', '.join(others)}" if others else ""
    told_apart = (
        " What differs there is the encoding and how it is heard, together."
        if larger or others
        else ""
    )
    return f"{said}.{told_apart}"


def _spread(values: list[float]) -> str:
    shown = f"{statistics.fmean(values):.3f}"
    return (
        f"{shown} ± {statistics.stdev(values):.3f} ({len(values)} seeds)"
        if len(values) > 1
        else f"{shown} (one seed)"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each encoding, the best by the judges first."""
    judged = groups_of(rows, "judges_mean")
    titles = [*CONCLUDED.values(), *(f"{CONCLUDED[column]}, linear inverse" for column in LINEAR)]
    lines = [["encoding", *titles], ["---"] * (len(titles) + 1)]
    for name in sorted(judged, key=lambda name: -statistics.fmean(judged[name])):
        own = [row for row in rows if row["encoding"] == name]
        linear = [own[0][column] for column in LINEAR.values()]
        lines.append([name, *(_spread([row[column] for row in own]) for column in CONCLUDED)])
        lines[-1] += ["" if value is None else f"{value:.3f}" for value in linear]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{table}\nMean ± sample standard deviation over the seeds; the linear inverse has none."
