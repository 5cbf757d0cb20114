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

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.cli import as_user_errors
from common.device import choose_device
from common.files import UserError, check_writable, load_tensors, save_tensors
from common.locks import FolderLocked, lock_folder, unlock_folder
from compare_encodings import ENCODINGS, Config, Schedule, main, scheduled
from data import load_digits
from data.resize import upsample
from evaluate import Config, main
from evaluation.compare import read_rating
from evaluation.encoding_report import summarise, title
from evaluation.judges import load_judges
from evaluation.linear_decoder import invert_linearly
from evaluation.rating import judge_settings
from training.figures import first_of_each_class
from training.logmels import Probe
from training.run import NOT_HYPERPARAMETERS, config_to_dict, is_complete
from training.upstream import load_model
from vggish import HOP, ImageToLogMel, frames_to_cover
from voice_translator import Encoding


@dataclass(frozen=True)
class Condition:
    """An encoding, and how it is heard. All are heard whole: frames that cut a soundscape off are
    refused."""

    encoding: Encoding = Encoding()
    frames: int | None = None  # log-mel frames; None: the fewest that hear all, 112 for 1.05 s
    hop: int = HOP  # samples at 16 kHz from frame to frame


BASELINE = "primary"  # what every other encoding is held against


class Trial(NamedTuple):
    """What is run in one go, by one process: an encoding with a seed, or its linear inverse."""

    name: str
    listening: Condition
    seed: int | None  # None: the linear inverse
    folder: Path

    @property
    def finished(self) -> bool:
        return is_complete(self.folder / "evaluation" if self.seed is not None else self.folder)


def run_missing(config: Config) -> list[dict[str, Any]]:
    """Run every cell that is neither finished nor held by another process, and summarise after
    each."""
    device = choose_device(config.device)
    root = config.results / "encodings"
    check_writable(root)
    schedule = scheduled(config)
    memory = root / f"memory-{settings_key(upstream_settings(schedule))}"
    cells = list_trials(config, schedule, root)
    for cell in {cell.folder.parent: cell for cell in cells}.values():
        require_same_code(cell)
    for cell in cells:
        if cell.finished and cell.seed is not None:
            require_same_judges(schedule, cell)
    with locked(memory):
        train_upstream(config, schedule, memory, device)

    elsewhere, failed = [], []
    for cell in cells:
        try:
            with locked(cell.folder, patient=False):
                if cell.finished:
                    continue
                print(f"\n== {title(cell)}", flush=True)
                with as_user_errors():
                    if cell.seed is None:
                        invert_linearly(config, schedule, cell, device)
                    else:
                        run_trial(config, schedule, memory, cell, device)
        except FolderLocked as error:
            print(f"{error} It is left to them.", flush=True)
            elsewhere.append(cell)
            continue
        except (
            UserError
        ) as error:  # such as training that diverged; the other cells can be run all the same
            print(f"{cell.folder}: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
            continue
        summarise(config, schedule, cells, root)

    rows = summarise(config, schedule, cells, root)
    missing = [cell for cell in cells if not cell.finished]
    print(
        f"{len(cells) - len(missing)} of {len(cells)} cells are finished. {root}/conclusions.md, {root}/ratings.png"
    )
    if elsewhere and missing:
        print(
            "The rest is in other processes' hands; should one of them be stopped, the same command goes on."
        )
    if failed:
        raise UserError(
            f"{', '.join(str(cell.folder) for cell in failed)} failed, as said above; hint it, and run again."
        )
    return rows


def list_trials(config: Config, schedule: Schedule, root: Path) -> list[Trial]:
    """A seed of all encodings before the next seed, so that every encoding is there early.

    Raises:
        UserError: if a name is unknown or no name of a folder, or a listening is impossible or cuts
            its sound off.
    """
    unknown = [name for name in config.only if name not in ENCODINGS]
    if unknown:
        raise UserError(
            f"--only: there is no encoding {', '.join(unknown)}; give some of {', '.join(ENCODINGS)}."
        )
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError("--seeds: give at least one seed, and each once.")
    chosen = {
        name: listening
        for name, listening in ENCODINGS.items()
        if not config.only or name in config.only
    }
    for name, listening in chosen.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(
                f"{name!r} is no name of a folder; write it with letters, digits, '_', '-' and '.' only."
            )
        try:
            frames = ImageToLogMel(listening.encoding, listening.frames, listening.hop).frames
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        needed = frames_to_cover(listening.encoding, listening.hop)
        if frames < needed:
            raise UserError(
                f"{name}: {frames} frames cut its sound off, so it could not be compared; give {needed}, or None."
            )
    folders = {
        name: root / f"{name}-{settings_key(trial_settings(schedule, one))}"
        for name, one in chosen.items()
    }
    linear = [Trial(name, one, None, folders[name] / "linear") for name, one in chosen.items()]
    seeded = [
        Trial(name, one, seed, folders[name] / str(seed))
        for seed in config.seeds
        for name, one in chosen.items()
    ]
    return linear + seeded


def upstream_settings(schedule: Schedule) -> list[dict[str, Any]]:
    return [hyperparameters(header) for header in (schedule.read, schedule.remember, schedule.rate)]


def trial_settings(schedule: Schedule, listening: Condition) -> list[Any]:
    """All that a cell's numbers depend on, but for the seed."""
    cell = [asdict(listening), schedule.linear_images]
    return [
        *cell,
        *(hyperparameters(header) for header in (schedule.hear, schedule.imagine)),
        *upstream_settings(schedule),
    ]


def hyperparameters(header: Any) -> dict[str, Any]:
    """A header without its places and its seed: what is computed."""
    return {
        name: value
        for name, value in config_to_dict(header).items()
        if name not in (*NOT_HYPERPARAMETERS, "seed")
    }


def settings_key(settings: list[Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def locked(folder: Path, patient: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes; if another has it, wait for it (saying so), or raise
    `FolderLocked`."""
    said = False
    while True:
        try:
            lock_folder(folder)
            break
        except FolderLocked as error:
            if not patient:
                raise
            if not said:
                print(f"waiting: {str(error).split(';')[0]}", flush=True)
            said = True
            time.sleep(0.5)
    try:
        yield
    finally:
        unlock_folder(folder)


def run_stage(stage: Any, header: Any, *folders: str) -> None:
    """Run a stage unless its runs are complete: on from the last finished epoch if it was stopped,
    else from the start.

    Args:
        stage: the script, as a module.
        header: its Config, with `results`.
        folders: of its runs, in order, if they are not named as the script is.
    """
    places = [header.results / name for name in folders or (stage.__name__,)]
    if not all(map(is_complete, places)):
        begun = any((place / "last.pt").exists() or is_complete(place) for place in places)
        stage.main(replace(header, resume=begun))


def train_upstream(config: Config, schedule: Schedule, memory: Path, device: torch.device) -> None:
    """Stage two and the judges, once for all encodings. Their seed is 0 whatever the cell's."""
    place = {"results": memory, "data_root": config.data_root, "device": config.device}
    run_stage(
        mnist_classify_train, replace(schedule.read, **place), "mnist_classify_train", "judge"
    )
    run_stage(emnist_dcgan, replace(schedule.remember, **place))
    settings = judge_settings(replace(schedule.rate, **place), schedule.hear.dataset)
    if not all(is_complete(memory / "judges" / name) for name in ("transformer", "kernel")):
        load_judges(memory, settings, device)


def run_trial(
    config: Config, schedule: Schedule, memory: Path, cell: Trial, device: torch.device
) -> None:
    """Stage one, stage three, and their rating, in a results folder that any other script can go on
    with."""
    place = {"results": cell.folder, "data_root": config.data_root, "device": config.device}
    link_upstream(cell.folder, memory)
    heard = {
        "encoding": cell.listening.encoding,
        "frames": cell.listening.frames,
        "hop": cell.listening.hop,
    }
    run_stage(train_vggish, replace(schedule.hear, **place, **heard, seed=cell.seed))
    run_stage(train_all, replace(schedule.imagine, **place, seed=cell.seed))
    save_shown(config, schedule, cell, device)
    main(
        replace(schedule.rate, **place, judges=memory / "judges", output=cell.folder / "evaluation")
    )


def require_same_code(cell: Trial) -> None:
    """Refuse to go on with an encoding whose code makes other sounds than when its folder was
    begun, `sounds.pt`.

    Raises:
        UserError: if it does, or the file is damaged.
    """
    folder = cell.folder.parent
    probe, path = (
        Probe(ImageToLogMel(cell.listening.encoding, cell.listening.frames, cell.listening.hop)),
        folder / "sounds.pt",
    )
    if not path.exists():
        if folder.exists():
            print(
                f"{folder} was begun before its sounds were kept; whether the encoding's code was changed is not known"
            )
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, probe.state_dict())
    elif not probe.alike(load_tensors(path, f"delete {path}, and run again").get("heard")):
        raise UserError(
            f"{cell.name} sounds otherwise than in {folder}: the code of its encoding was changed; delete {folder}, and run "
            "again, or give the encoding another name."
        )


def require_same_judges(schedule: Schedule, cell: Trial) -> None:
    """Refuse a rating that was put in the place of the cell's own, as evaluate.py does when it is
    started by hand there.

    Raises:
        UserError: if it was made by other settings than the schedule's.
    """
    folder = cell.folder / "evaluation"
    anew = f"delete {folder}, and run again: the cell is only rated anew"
    path, rating = read_rating(folder, anew)
    then, now = {**config_to_dict(Config()), **rating["config"]}, config_to_dict(schedule.rate)
    differing = sorted(
        {key for key in now if then[key] != now[key]} - {*NOT_HYPERPARAMETERS, "judges", "output"}
    )
    if differing:
        raise UserError(
            f"{path} is another rating than the comparison's ({', '.join(differing)}), and cannot be held against the other "
            f"cells'; {anew}."
        )


def link_upstream(folder: Path, memory: Path) -> None:
    """Stage two as the folder's own, by relative links, so that the whole can be moved."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("mnist_classify_train", "judge", "emnist_dcgan"):
        link = folder / stage
        try:
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(memory / stage, folder), target_is_directory=True)
        except OSError as error:
            raise UserError(
                f"{link} cannot be made ({error}); give --results where symbolic links can be."
            ) from error


@torch.no_grad()
def save_shown(config: Config, schedule: Schedule, cell: Trial, device: torch.device) -> None:
    """What the sheet shows of the cell, `shown.pt`: of the first test digit of each class the
    image, the log-mel, and what was imagined."""
    ear, network, generator, dataset = load_model(
        cell.folder / "train_all" / "checkpoint.pt", device
    )
    test = load_digits(dataset, "test", config.data_root, device)
    images = test.images[first_of_each_class(test.labels, 1)[:, 0]]
    logmels = ear(images)
    shown = {
        "heard": upsample(images),
        "logmels": logmels,
        "imagined": generator(network.embed(logmels)),
    }
    save_tensors(
        cell.folder / "shown.pt", {name: value.float().cpu() for name, value in shown.items()}
    )
