"""A machine rates image-to-sound encodings: each is learned, imagined with and rated over several seeds, beside the primary.

    python compare_encodings.py                    # the full schedule; for a GPU
    python compare_encodings.py --quick            # narrower and shorter, for two cores; its minutes are in the README
    python compare_encodings.py --quick --only primary tanh linear mel --seeds 0 1 2 3 4
    python compare_encodings.py --device cuda:1    # a second process, on another GPU, shares the work through the folder

An encoding and a seed are a cell: stage one learns to hear it, stage three to imagine, and `evaluate.py` rates the result.
Stage two is trained once and shared by all, as are the judges. Beside the learned listener stands a linear inverse from the
log-mel to the image, so that a weakness of the listener is not taken for one of the sound.

Writes `results/encodings/`:
    comparison.csv           a row for each encoding and seed
    conclusions.md           what can be concluded from it, and what cannot
    ratings.png, sheet.png   the ratings with their intervals; the same ten test digits under every encoding
    memory-<key>/            a results folder with stage two and the judges
    <name>-<key>/<seed>/     a results folder with stages one and three, and their rating in evaluation/
    <name>-<key>/linear/     the linear inverse
A key stands for the settings. It can be stopped at any time, and the same command goes on; a finished cell is never run
again. An encoding that is new in the header runs alone; another schedule, objective or rating runs all cells anew. Tables
and pictures show what the last command named: to see all, name all at the end, which takes seconds.
"""

import csv
import hashlib
import json
import os
import re
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter
from scipy import stats
from torch import Tensor

import comparison
import data
import emnist_dcgan
import evaluate
import figures
import files
import judges
import mnist_classify_train
import processes
import ratings
import runs
import train_all
import train_vggish
from vggish import HOP, SAMPLE_RATE, Ear, Probe, frames_heard_whole
from voice_translator import Encoding


@dataclass(frozen=True)
class Listening:
    """An encoding, and how it is heard. All are heard whole: frames that cut a soundscape off are refused."""

    encoding: Encoding = Encoding()
    frames: int | None = None  # log-mel frames; None: the fewest that hear all, 112 for 1.05 s
    hop: int = HOP  # samples at 16 kHz from frame to frame


PRIMARY = "primary"  # what every other encoding is held against
ENCODINGS: dict[str, Listening] = {
    PRIMARY: Listening(),
    "longer": Listening(Encoding(seconds=2.0)),  # as it is heard: 208 frames, so the network is larger too
    "longer_in_112_frames": Listening(Encoding(seconds=2.0), hop=305),  # as many frames a column, and the primary's network
    "primary_in_208_frames": Listening(frames=208),  # the larger network, and silence: what the network alone brings
    "tanh": Listening(Encoding(curve="tanh")),
    "middle": Listening(Encoding(pitch_position="middle")),  # where the high pitch sits; the primary's is on top
    "bottom": Listening(Encoding(pitch_position="bottom")),
    "linear": Listening(Encoding(curve="linear")),
    "mel": Listening(Encoding(curve="mel")),
    "500_to_5000_hz": Listening(Encoding(lowest_hz=500.0, highest_hz=5000.0)),
    "contrast_0": Listening(Encoding(contrast=0.0)),
    "64_by_64": Listening(Encoding(rows=64, columns=64)),
}


@dataclass(frozen=True)
class Schedule:
    """The headers of the stages, as each script has them; the seed, the places and the encoding are filled in."""

    hear: train_vggish.Config = train_vggish.Config()
    read: mnist_classify_train.Config = mnist_classify_train.Config()
    remember: emnist_dcgan.Config = emnist_dcgan.Config()
    imagine: train_all.Config = train_all.Config(batch=32, epochs=7, joint_epochs=6, joint_learning_rate=1e-3)
    rate: evaluate.Config = evaluate.Config(judges_epochs=8, judges_batch=128)
    linear_images: int = 10_000  # from which the linear inverse is made; its memory grows with their square, here 2 GB


FULL = Schedule()  # the published schedule, and that of the sound-consistent objective beside it
QUICK = Schedule(
    hear=train_vggish.Config(width=16, epochs=2, images_per_epoch=10_000, batch=32, learning_rate=1e-3, late_epoch=2),
    read=mnist_classify_train.Config(rotation=10, learning_rate=0.02, epochs=4, late_epoch=4, judge_epochs=3),
    remember=emnist_dcgan.Config(
        width=32, epochs=5, images_per_epoch=6400, batch=32, learning_rate=1e-3, discriminator_learning_rate=2e-4,
        instance_noise=0.5,
    ),
    imagine=train_all.Config(batch=32, epochs=3, joint_epochs=2, images_per_epoch=6_000, joint_learning_rate=1e-3),
    rate=evaluate.Config(judges_epochs=2, judges_batch=128),
    linear_images=5_000,
)  # fmt: skip
OBJECTIVES = {
    "sound-consistent": {
        "sound_consistency": 1.0, "distance": "multiscale", "loudness_first": 0.8, "rehearsal": 5.0, "detail": 10.0,
        "grey": 1.0, "generator_rate": 0.2, "dropout": False, "augmentation": 0.5, "classifier_augmentation": 1.0,
    },
    "published": {},  # train_all.py's default
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    # what is compared
    only: tuple[str, ...] = ()  # names in ENCODINGS, this script's header; empty: all
    seeds: tuple[int, ...] = (0, 1, 2)  # of stages one and three; with one, nothing can be concluded
    objective: Literal["sound-consistent", "published"] = "sound-consistent"  # of stage three, on one schedule

    # what it costs, and the memory that all share
    quick: bool = False  # QUICK, above, not FULL
    split: Literal["mnist", "digits", "byclass", "bymerge", "balanced", "letters"] = "mnist"  # of EMNIST. Published: mnist
    file: Literal["train", "test"] = "train"  # of EMNIST: which of its two official files

    # the run
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    data_root: Path = field(default_factory=data.default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs


class Cell(NamedTuple):
    """What is run in one go, by one process: an encoding with a seed, or its linear inverse."""

    name: str
    listening: Listening
    seed: int | None  # None: the linear inverse
    folder: Path

    @property
    def finished(self) -> bool:
        return runs.complete(self.folder / "evaluation" if self.seed is not None else self.folder)


# -- the work ----------------------------------------------------------------------------------------------------------


def main(config: Config) -> list[dict[str, Any]]:
    """Run what is not there yet, and compare; returns the rows of comparison.csv."""
    if processes.launched() > 1:
        raise runs.UserError("torchrun would have all processes run the same cell; start this script once for each GPU.")
    try:
        return run_missing(config)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on.", file=sys.stderr)
        sys.exit(130)


def run_missing(config: Config) -> list[dict[str, Any]]:
    """Run every cell that is neither finished nor held by another process, and summarise after each."""
    device = runs.choose_device(config.device)
    root = config.results / "encodings"
    files.probe(root)
    schedule = scheduled(config)
    memory = root / f"memory-{key_of(memory_settings(schedule))}"
    cells = list_cells(config, schedule, root)
    for cell in {cell.folder.parent: cell for cell in cells}.values():
        refuse_changed_code(cell)
    for cell in cells:
        if cell.finished and cell.seed is not None:
            refuse_other_judges(schedule, cell)
    with holding(memory):
        learn_memory(config, schedule, memory, device)

    elsewhere, failed = [], []
    for cell in cells:
        try:
            with holding(cell.folder, patient=False):
                if cell.finished:
                    continue
                print(f"\n== {title(cell)}", flush=True)
                with runs.in_words():
                    if cell.seed is None:
                        invert_linearly(config, schedule, cell, device)
                    else:
                        run_cell(config, schedule, memory, cell, device)
        except files.Held as error:
            print(f"{error} It is left to them.", flush=True)
            elsewhere.append(cell)
            continue
        except runs.UserError as error:  # such as training that diverged; the other cells can be run all the same
            print(f"{cell.folder}: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
            continue
        summarise(config, schedule, cells, root)

    rows = summarise(config, schedule, cells, root)
    missing = [cell for cell in cells if not cell.finished]
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished. {root}/conclusions.md, {root}/ratings.png")
    if elsewhere and missing:
        print("The rest is in other processes' hands; should one of them be stopped, the same command goes on.")
    if failed:
        raise runs.UserError(
            f"{', '.join(str(cell.folder) for cell in failed)} failed, as said above; mend it, and run again."
        )
    return rows


def scheduled(config: Config) -> Schedule:
    schedule = QUICK if config.quick else FULL
    schedule = replace(
        schedule,
        imagine=replace(schedule.imagine, **OBJECTIVES[config.objective]),
        remember=replace(schedule.remember, split=config.split, file=config.file),
    )
    for header in (schedule.hear, schedule.read, schedule.remember, schedule.imagine, schedule.rate):
        runs.refuse_impossible(header)
    return schedule


def list_cells(config: Config, schedule: Schedule, root: Path) -> list[Cell]:
    """A seed of all encodings before the next seed, so that every encoding is there early.

    Raises:
        runs.UserError: if a name is unknown or no name of a folder, or a listening is impossible or cuts its sound off.
    """
    unknown = [name for name in config.only if name not in ENCODINGS]
    if unknown:
        raise runs.UserError(f"--only: there is no encoding {', '.join(unknown)}; give some of {', '.join(ENCODINGS)}.")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise runs.UserError("--seeds: give at least one seed, and each once.")
    chosen = {name: listening for name, listening in ENCODINGS.items() if not config.only or name in config.only}
    for name, listening in chosen.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise runs.UserError(f"{name!r} is no name of a folder; write it with letters, digits, '_', '-' and '.' only.")
        try:
            frames = Ear(listening.encoding, listening.frames, listening.hop).frames
        except ValueError as error:
            raise runs.UserError(f"{name}: {error}") from error
        needed = frames_heard_whole(listening.encoding, listening.hop)
        if frames < needed:
            raise runs.UserError(
                f"{name}: {frames} frames cut its sound off, so it could not be compared; give {needed}, or None."
            )
    folders = {name: root / f"{name}-{key_of(cell_settings(schedule, one))}" for name, one in chosen.items()}
    linear = [Cell(name, one, None, folders[name] / "linear") for name, one in chosen.items()]
    seeded = [Cell(name, one, seed, folders[name] / str(seed)) for seed in config.seeds for name, one in chosen.items()]
    return linear + seeded


def memory_settings(schedule: Schedule) -> list[dict[str, Any]]:
    return [computed(header) for header in (schedule.read, schedule.remember, schedule.rate)]


def cell_settings(schedule: Schedule, listening: Listening) -> list[Any]:
    """All that a cell's numbers depend on, but for the seed."""
    cell = [asdict(listening), schedule.linear_images]
    return [*cell, *(computed(header) for header in (schedule.hear, schedule.imagine)), *memory_settings(schedule)]


def computed(header: Any) -> dict[str, Any]:
    """A header without its places and its seed: what is computed."""
    return {name: value for name, value in runs.plain(header).items() if name not in (*runs.PLACES, "seed")}


def key_of(settings: list[Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def holding(folder: Path, patient: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes; if another has it, wait for it (saying so), or raise `files.Held`."""
    said = False
    while True:
        try:
            files.hold(folder)
            break
        except files.Held as error:
            if not patient:
                raise
            if not said:
                print(f"waiting: {str(error).split(';')[0]}", flush=True)
            said = True
            time.sleep(0.5)
    try:
        yield
    finally:
        files.release(folder)


def run_stage(stage: Any, header: Any, *folders: str) -> None:
    """Run a stage unless its runs are complete: on from the last finished epoch if it was stopped, else from the start.

    Args:
        stage: the script, as a module.
        header: its Config, with `results`.
        folders: of its runs, in order, if they are not named as the script is.
    """
    places = [header.results / name for name in folders or (stage.__name__,)]
    if not all(map(runs.complete, places)):
        begun = any((place / "last.pt").exists() or runs.complete(place) for place in places)
        stage.main(replace(header, resume=begun))


def learn_memory(config: Config, schedule: Schedule, memory: Path, device: torch.device) -> None:
    """Stage two and the judges, once for all encodings. Their seed is 0 whatever the cell's."""
    place = {"results": memory, "data_root": config.data_root, "device": config.device}
    run_stage(mnist_classify_train, replace(schedule.read, **place), "mnist_classify_train", "judge")
    run_stage(emnist_dcgan, replace(schedule.remember, **place))
    settings = evaluate.judge_settings(replace(schedule.rate, **place), schedule.hear.dataset)
    if not all(runs.complete(memory / "judges" / name) for name in ("transformer", "kernel")):
        judges.load(memory, settings, device)


def run_cell(config: Config, schedule: Schedule, memory: Path, cell: Cell, device: torch.device) -> None:
    """Stage one, stage three, and their rating, in a results folder that any other script can go on with."""
    place = {"results": cell.folder, "data_root": config.data_root, "device": config.device}
    link_memory(cell.folder, memory)
    heard = {"encoding": cell.listening.encoding, "frames": cell.listening.frames, "hop": cell.listening.hop}
    run_stage(train_vggish, replace(schedule.hear, **place, **heard, seed=cell.seed))
    run_stage(train_all, replace(schedule.imagine, **place, seed=cell.seed))
    save_shown(config, schedule, cell, device)
    evaluate.main(replace(schedule.rate, **place, judges=memory / "judges", output=cell.folder / "evaluation"))


def refuse_changed_code(cell: Cell) -> None:
    """Refuse to go on with an encoding whose code makes other sounds than when its folder was begun, `sounds.pt`.

    Raises:
        runs.UserError: if it does, or the file is damaged.
    """
    folder = cell.folder.parent
    probe, path = Probe(Ear(cell.listening.encoding, cell.listening.frames, cell.listening.hop)), folder / "sounds.pt"
    if not path.exists():
        if folder.exists():
            print(f"{folder} was begun before its sounds were kept; whether the encoding's code was changed is not known")
        folder.mkdir(parents=True, exist_ok=True)
        files.save(path, probe.state_dict())
    elif not probe.alike(files.load_file(path, f"delete {path}, and run again").get("heard")):
        raise runs.UserError(
            f"{cell.name} sounds otherwise than in {folder}: the code of its encoding was changed; delete {folder}, and run "
            "again, or give the encoding another name."
        )


def refuse_other_judges(schedule: Schedule, cell: Cell) -> None:
    """Refuse a rating that was put in the place of the cell's own, as evaluate.py does when it is started by hand there.

    Raises:
        runs.UserError: if it was made by other settings than the schedule's.
    """
    folder = cell.folder / "evaluation"
    anew = f"delete {folder}, and run again: the cell is only rated anew"
    path, rating = comparison.read_rating(folder, anew)
    then, now = {**runs.plain(evaluate.Config()), **rating["config"]}, runs.plain(schedule.rate)
    differing = sorted({key for key in now if then[key] != now[key]} - {*runs.PLACES, "judges", "output"})
    if differing:
        raise runs.UserError(
            f"{path} is another rating than the comparison's ({', '.join(differing)}), and cannot be held against the other "
            f"cells'; {anew}."
        )


def link_memory(folder: Path, memory: Path) -> None:
    """Stage two as the folder's own, by relative links, so that the whole can be moved."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("mnist_classify_train", "judge", "emnist_dcgan"):
        link = folder / stage
        try:
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(memory / stage, folder), target_is_directory=True)
        except OSError as error:
            raise runs.UserError(f"{link} cannot be made ({error}); give --results where symbolic links can be.") from error


@torch.no_grad()
def save_shown(config: Config, schedule: Schedule, cell: Cell, device: torch.device) -> None:
    """What the sheet shows of the cell, `shown.pt`: of the first test digit of each class the image, the log-mel, and what
    was imagined."""
    ear, network, generator, dataset = train_all.load_model(cell.folder / "train_all" / "checkpoint.pt", device)
    test = data.load_heard(dataset, "test", config.data_root, device)
    images = test.images[figures.per_class(test.labels, 1)[:, 0]]
    logmels = ear(images)
    shown = {"heard": data.as_seen(images), "logmels": logmels, "imagined": generator(network.embed(logmels))}
    files.save(cell.folder / "shown.pt", {name: value.float().cpu() for name, value in shown.items()})


# -- the listener that learns next to nothing --------------------------------------------------------------------------

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in units of the mean squared length of a log-mel, centred


class Ridge(NamedTuple):
    """Ridge regression in its dual form, for which the sounds may have more numbers than there are sounds: the prediction
    for x is offset + (x - centre) log_mels' weights."""

    logmels: Tensor  # (N, frames * 64), centred
    centre: Tensor  # (frames * 64,)
    weights: Tensor  # (N, 784)
    offset: Tensor  # (784,)

    def __call__(self, kernels: Tensor) -> Tensor:
        """`(M, N)` products of centred log-mels with those learned from -> `(M, 784)`."""
        return kernels @ self.weights + self.offset

    def kernels(self, logmels: Tensor) -> Tensor:
        return (logmels - self.centre) @ self.logmels.T


def fit_ridges(logmels: Tensor, pixels: Tensor, penalties: tuple[float, ...] = PENALTIES) -> list[Ridge]:
    """Linear maps from `(N, D)` log-mels to `(N, P)` pixels, one for each of `penalties`: it minimises the summed squared
    error plus the squared weights times `penalty` times the mean squared length of a centred log-mel. The offset is not
    penalised. Solved in float64."""
    centre, offset = logmels.mean(0), pixels.mean(0)
    logmels = logmels - centre
    gram = logmels.double() @ logmels.double().T  # of more sounds than numbers it is singular, but for the penalty
    unit, residual = gram.diagonal().mean().item(), (pixels - offset).double()
    ridges, added = [], 0.0
    for penalty in penalties:
        gram.diagonal().add_((penalty - added) * unit)
        added = penalty
        weights = torch.cholesky_solve(residual, torch.linalg.cholesky(gram))
        ridges.append(Ridge(logmels, centre, weights.to(logmels.dtype), offset))
    return ridges


@torch.no_grad()
def invert_linearly(config: Config, schedule: Schedule, cell: Cell, device: torch.device) -> None:
    """How well a linear map recovers unseen 28 x 28 images from log-mels: `metrics.json`, and `shown.pt` for the sheet.

    The ridge is chosen by the correlation on the validation part. Correlation and retrieval are taken of the test images,
    once, enlarged as the imagined ones are, so that both listeners' numbers can be set side by side. It is no ceiling: what
    is not linear in the log-mel, the learned listener may hear all the same.
    """
    dataset = schedule.hear.dataset
    train, validation, test = (
        data.load_heard(dataset, part, config.data_root, device) for part in ("train", "validation", "test")
    )
    ear = Ear(cell.listening.encoding, cell.listening.frames, cell.listening.hop).to(device)

    def hear(images: Tensor) -> Tensor:
        return torch.cat([ear(part).flatten(1) for part in images.split(1000)])

    def kernels(images: Tensor) -> Tensor:
        return torch.cat([ridges[0].kernels(hear(part)) for part in images.split(1000)])

    def seen(pixels: Tensor) -> Tensor:
        return data.as_seen(255 * pixels.clamp(0, 1).unflatten(1, (28, 28)))

    learned = train.images[: schedule.linear_images]
    ridges = fit_ridges(hear(learned), learned.flatten(1) / 255)
    heard, products = data.as_seen(validation.images), kernels(validation.images)
    scores = [ratings.correlation(seen(ridge(products)), heard).mean().item() for ridge in ridges]
    best = max(range(len(scores)), key=scores.__getitem__)
    recovered, heard = seen(ridges[best](kernels(test.images))), data.as_seen(test.images)
    shown = figures.per_class(test.labels, 1)[:, 0]
    files.save(cell.folder / "shown.pt", {"recovered": recovered[shown].cpu()})
    record = {
        "stage": "linear",
        "correlation": ratings.mean(ratings.correlation(recovered, heard)),
        "retrieval": ratings.retrieval(recovered, heard, test.labels),
        "validation_correlation": dict(zip(map(str, PENALTIES), scores, strict=True)),
        "penalty": PENALTIES[best],
        "images": len(learned),
        "revision": runs.revision(),
        "versions": runs.versions(),
        "config": asdict(cell.listening),
    }
    files.write(cell.folder / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    print(f"recovered by a linear map: correlation {record['correlation']['mean']:.3f}. {cell.folder}", flush=True)


# -- the tables and the pictures ---------------------------------------------------------------------------------------

LINEAR = {"correlation": "linear_correlation", "retrieval": "linear_retrieval"}  # the same of the linear inverse
CONCLUDED = {  # of comparison.COLUMNS: what is concluded upon -> how it is called
    "judges_mean": "digits read right, mean of the three judges",
    "correlation": "correlation with the heard image",
    "retrieval": "retrieval of the source",
}


def summarise(config: Config, schedule: Schedule, cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """Draw the tables and the pictures anew from the finished cells; returns the rows of comparison.csv."""
    with holding(root / "comparison"):
        finished = [cell for cell in cells if cell.finished]
        linear = {cell.name: runs.read_metrics(cell.folder) for cell in finished if cell.seed is None}
        rows = [row_of(cell, linear.get(cell.name)) for cell in finished if cell.seed is not None]
        files.write(root / "comparison.csv", lambda path: write_csv(path, rows))
        missing = [cell for cell in cells if not cell.finished]
        text = conclusions(rows, described(config, schedule), [title(cell) for cell in missing])
        files.write(root / "conclusions.md", lambda path: path.write_text(text, encoding="utf-8"))
        if rows:
            draw_ratings(root / "ratings.png", rows)
            draw_sheet(root / "sheet.png", finished)
    return rows


def title(cell: Cell) -> str:
    return f"{cell.name}, {'linear inverse' if cell.seed is None else f'seed {cell.seed}'}"


def row_of(cell: Cell, linear: dict[str, Any] | None) -> dict[str, Any]:
    path, rating = comparison.read_rating(cell.folder)
    heard, encoding = rating["stages"]["train_all"]["config"], cell.listening.encoding
    column = encoding.samples / encoding.columns / encoding.sample_rate  # seconds
    seconds = [runs.read_metrics(cell.folder / stage)["seconds"] for stage in ("train_vggish", "train_all")]
    return {
        "encoding": cell.name,
        "seed": cell.seed,
        **{name: get(rating) for name, (_, get) in comparison.COLUMNS.items()},
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


def groups_of(rows: list[dict[str, Any]], column: str) -> dict[str, list[float]]:
    """Encoding -> its values of a column, a value for each seed."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["encoding"], []).append(row[column])
    return groups


def t_interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds, by Student's t; one seed has none."""
    if len(values) < 2:
        return None
    half = stats.sem(values) * stats.t.ppf(0.5 + ratings.CONFIDENCE / 2, len(values) - 1)
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def draw_ratings(path: Path, rows: list[dict[str, Any]]) -> None:
    """A panel for each rating that is concluded upon, a line for each encoding, the best by the judges on top."""
    judged = groups_of(rows, "judges_mean")
    names = sorted(judged, key=lambda name: statistics.fmean(judged[name]))
    size = (3 * len(CONCLUDED) + 1, 0.3 * len(names) + 1.5)
    figure, axes = plt.subplots(1, len(CONCLUDED), figsize=size, sharey=True, layout="constrained")
    for axis, (column, meaning) in zip(axes, CONCLUDED.items(), strict=True):
        groups = groups_of(rows, column)
        for line, name in enumerate(names):
            values, colour = groups[name], "tab:orange" if name == PRIMARY else "tab:blue"
            axis.plot(values, [line] * len(values), "o", color=colour, markersize=4, alpha=0.5)
            axis.plot(statistics.fmean(values), line, "|", color=colour, markersize=14)
            if t_interval(values):
                axis.plot(t_interval(values), [line, line], color=colour, linewidth=1.5)
        if PRIMARY in groups:
            axis.axvline(statistics.fmean(groups[PRIMARY]), color="tab:orange", linewidth=0.8, linestyle=":")
        if column in LINEAR:
            linear = {name: found[0] for name, found in groups_of(rows, LINEAR[column]).items() if found[0] is not None}
            lines = [names.index(name) for name in linear]
            axis.plot(linear.values(), lines, "D", color="grey", markersize=5, markerfacecolor="none")
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, -0.02), min(high, 1.02))  # an interval may reach beyond what a share can be
        axis.set_xlabel(meaning, fontsize=9)
        if column != "correlation":  # a share
            axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    seeds = {len(values) for values in judged.values()}
    count = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{min(seeds)}"
    figure.suptitle(
        f"dots: {count} seed{'s' * (max(seeds) > 1)}; bar: their mean with its 95 % t-interval (none for one seed);\n"
        f"dotted: {PRIMARY}; grey diamonds: the linear inverse, without a listener", fontsize=9,
    )  # fmt: skip
    files.write(path, lambda beside: figure.savefig(beside, dpi=170))
    plt.close(figure)


def draw_sheet(path: Path, finished: list[Cell]) -> None:
    """A row for each encoding: the same ten test digits as they sound, as they are imagined, and as the linear inverse has
    them; of the first seed that is finished."""
    first = {cell.name: cell for cell in reversed(finished) if cell.seed is not None}
    linear = {cell.name: cell for cell in finished if cell.seed is None}
    names = [name for name in ENCODINGS if name in first]
    figure, axes = plt.subplots(
        len(names) + 1, 3, figsize=(11, 0.37 * (len(names) + 1)), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.01, w_pad=0.03, hspace=0, wspace=0)

    def strip(axis: plt.Axes, images: Tensor, **colours: Any) -> None:
        enlarged = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        axis.imshow(torch.cat(tuple(enlarged[:, 0]), 1).numpy(), interpolation="nearest", **colours)

    grey, loud = {"cmap": "gray", "vmin": -1, "vmax": 1}, {"cmap": "magma", "vmin": -4.6, "vmax": 3}
    for line, name in enumerate(names, 1):
        shown = files.load_file(first[name].folder / "shown.pt", f"delete {first[name].folder}, and run again")
        if line == 1:
            for axis in axes[0]:
                strip(axis, shown["heard"], **grey)
        strip(axes[line, 0], shown["logmels"].transpose(2, 3).flip(2), **loud)  # low pitches at the bottom
        strip(axes[line, 1], shown["imagined"], **grey)
        if name in linear:
            recovered = files.load_file(linear[name].folder / "shown.pt", f"delete {linear[name].folder}, and run again")
            strip(axes[line, 2], recovered["recovered"], **grey)
        axes[line, 0].set_ylabel(name.replace("_", " "), rotation=0, ha="right", va="center")
    axes[0, 0].set_ylabel("image", rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], ("heard: log-mels", "imagined", "recovered by the linear inverse"), strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=(), yticks=())
        axis.set_frame_on(False)
    files.write(path, lambda beside: figure.savefig(beside, dpi=160))
    plt.close(figure)


# -- what can be concluded ---------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """To the primary encoding, of the means over seeds."""

    mean: float
    interval: tuple[float, float]  # at the level at which Holm's procedure tests it
    outside: bool  # of the spread over seeds: the interval leaves out 0


def differences(groups: dict[str, list[float]], primary: str = PRIMARY) -> dict[str, Difference]:
    """The difference of each group to the primary one: Welch's t-test, with Holm's correction over the groups, so that with
    5 % at most any of those said to be outside the spread is not.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6:65-70, 1979. What has no spread,
    one seed or values that are all alike in both groups, is left out.
    """
    reference, tests = groups.get(primary, []), {}
    for name, values in groups.items():
        alike = len(set(values)) == len(set(reference)) == 1
        if name != primary and len(values) > 1 and len(reference) > 1 and not alike:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that one of the two is all alike
                tests[name] = stats.ttest_ind(values, reference, equal_var=False)
    found, level, rejecting = {}, 0.0, True
    for rank, name in enumerate(sorted(tests, key=lambda name: tests[name].pvalue)):
        if rejecting:
            level = (1 - ratings.CONFIDENCE) / (len(tests) - rank)
        rejecting = rejecting and bool(tests[name].pvalue < level)
        low, high = tests[name].confidence_interval(1 - level)
        mean = statistics.fmean(groups[name]) - statistics.fmean(reference)
        found[name] = Difference(mean, (float(low), float(high)), rejecting)
    return found


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
        f"**The rule.** An encoding is said to be better or worse than `{PRIMARY}` where the difference of their means lies "
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
    unknown = [f"`{name}`" for name in groups if name != PRIMARY and name not in found]
    reference = groups.get(PRIMARY, [])
    said = f"**{meaning[0].upper()}{meaning[1:]}.** "
    said += f"`{PRIMARY}`: {_spread(reference)}. " if reference else f"`{PRIMARY}` is not there to be held against. "
    said += f"Better than it: {', '.join(kinds['better'])}. " if kinds["better"] else ""
    said += f"Worse: {', '.join(kinds['worse'])}. " if kinds["worse"] else ""
    if kinds["inside"]:
        said += f"Inside the spread, so that nothing can be concluded: {', '.join(kinds['inside'])}. "
    if unknown:
        said += f"The spread is unknown, so that nothing can be concluded: {', '.join(unknown)}. "
    return said.strip()


def _listener_or_sound(rows: list[dict[str, Any]]) -> str:
    """Of what the learned listener finds worse, does the linear inverse find less in the sound, too?"""
    known = [row for row in rows if row["linear_correlation"] is not None]
    linear = {name: values[0] for name, values in groups_of(known, "linear_correlation").items()}
    worse = [name for name, d in differences(groups_of(rows, "correlation")).items() if d.outside and d.mean < 0]
    if PRIMARY not in linear:
        return ""
    less = [name for name in worse if name in linear and linear[name] < linear[PRIMARY]]
    no_less = [name for name in worse if name in linear and linear[name] >= linear[PRIMARY]]

    def shown(names: list[str]) -> str:
        return ", ".join(f"`{name}` ({linear[name]:.3f})" for name in names)

    said = (
        f"**The listener or the sound.** From the log-mels of `{PRIMARY}` a linear inverse recovers unseen images with a "
        f"correlation of {linear[PRIMARY]:.3f}. "
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
    if PRIMARY not in frames:
        return ""
    larger = [f"`{name}` ({frames[name]})" for name in frames if frames[name] != frames[PRIMARY]]
    others = [f"`{name}` ({share[name]:.2f})" for name in share if abs(share[name] / share[PRIMARY] - 1) > 0.01]
    said = f"**The network or the sound.** Every encoding is heard whole, `{PRIMARY}` in {frames[PRIMARY]} frames"
    said += f"; in another number, and so by a network of another size: {', '.join(larger)}" if larger else ""
    said += f". It has {share[PRIMARY]:.2f} frames a column"
    said += f"; another number have {', '.join(others)}" if others else ""
    told_apart = " What differs there is the encoding and how it is heard, together." if larger or others else ""
    return f"{said}.{told_apart}"


def _spread(values: list[float]) -> str:
    shown = f"{statistics.fmean(values):.3f}"
    return f"{shown} ± {statistics.stdev(values):.3f} ({len(values)} seeds)" if len(values) > 1 else f"{shown} (one seed)"


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


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
