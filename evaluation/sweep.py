"""The sweep over encodings and seeds: what is trained, in which folder, and by which engine.

compare_encodings.py hands over the scripts' `main`s and settings. No package imports a script."""

import hashlib
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from common.cli import as_user_errors, validate_settings
from common.device import choose_device
from common.files import (
    UserError,
    check_writable,
    explain_malformed,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from common.locks import FolderLocked, lock_folder, unlock_folder
from data import load_digits
from data.resize import upsample
from evaluation.encoding_report import row_of, tables, write_pictures, write_report
from evaluation.encodings import Condition
from evaluation.judges import JUDGES
from evaluation.linear_decoder import decode_linearly
from models.late_blind import LateBlind
from training.figures import first_of_each_class
from training.run import NOT_HYPERPARAMETERS, config_to_dict, is_complete
from vggish import ImageToLogMel, audio_fingerprint, fingerprints_match, frames_to_cover

REPORT_EVERY = 60  # seconds; a report looks at the folder of every trial


@dataclass(frozen=True)
class Schedule:
    """The settings of each script, an instance of its `Config`. The sweep fills in the seed, the
    encoding and the folders."""

    vggish: Any
    classifier: Any  # and the judges
    gan: Any
    joint: Any
    evaluation: Any
    linear_images: int = 10_000  # that the linear decoder is fitted to; they take 2 GB of memory


class Trial(NamedTuple):
    """What one worker runs at a time: an encoding with a seed, its linear decoder, or `SHARED`."""

    name: str  # of the encoding
    condition: Condition
    seed: int | None  # None: the linear decoder
    folder: Path
    record: Path  # folder of the metrics.json that is written last

    @property
    def title(self) -> str:
        return f"{self.name}, {'linear decoder' if self.seed is None else f'seed {self.seed}'}"

    @property
    def finished(self) -> bool:
        return is_complete(self.record)


SHARED = "stage two and the judges"
Result = tuple[Trial, str]  # and why it failed; empty if it did not
Work = Callable[[Trial, str], Result]  # of a trial and a device
Engine = Callable[[Work, Sequence[Trial], Sequence[str], Path], Iterator[Result]]  # see `run_local`


@dataclass(frozen=True)
class Sweep:
    """What is compared, and by which settings.

    Raises:
        UserError: if a setting is out of its range, a name is unknown or cannot name a folder, or
            an encoding is impossible or its sound would be cut off.
    """

    encodings: Mapping[str, Condition]  # all of the header, by name
    only: tuple[str, ...]  # the names of those to run; empty: all
    seeds: tuple[int, ...]  # of stages one and three
    schedule: Schedule
    mains: Mapping[str, Callable[[Any], Any]]  # of the scripts, by the names in Schedule
    data_root: Path
    results: Path
    keep_models: bool = True  # of rated trials

    def __post_init__(self) -> None:
        if unknown := [name for name in self.only if name not in self.encodings]:
            raise UserError(
                f"--only: there is no encoding {', '.join(unknown)}; give some of "
                f"{', '.join(self.encodings)}."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError("--seeds: give at least one seed, and each once.")
        for config in (self.schedule.classifier, self.schedule.gan, self.schedule.joint):
            validate_settings(config)
        for seed in self.seeds:
            validate_settings(replace(self.schedule.vggish, seed=seed))
        for name, condition in self.chosen.items():
            require_comparable(name, condition)

    @property
    def chosen(self) -> dict[str, Condition]:
        names = self.only or tuple(self.encodings)
        return {name: one for name, one in self.encodings.items() if name in names}

    @property
    def root(self) -> Path:
        return self.results / "encodings"

    @property
    def memory(self) -> Path:
        """The results folder that all trials share: stage two and the judges."""
        return self.root / f"memory-{_key(self._shared_settings())}"

    def _shared_settings(self) -> list[Any]:
        return [hyperparameters(self.schedule.classifier), hyperparameters(self.schedule.gan)]

    def settings(self) -> list[Any]:
        """All that the numbers of a trial depend on, but for its encoding and its seed."""
        own = self.schedule.vggish, self.schedule.joint, self.schedule.evaluation
        own = [hyperparameters(config) for config in own]
        return [self.schedule.linear_images, *own, *self._shared_settings()]

    def folder(self, name: str) -> Path:
        """The folder of an encoding."""
        return self.root / f"{name}-{_key([asdict(self.encodings[name]), *self.settings()])}"

    def trials(self) -> list[Trial]:
        """All trials: the linear decoders, then one seed of all encodings after another."""
        found = []
        for seed in (None, *self.seeds):
            for name, condition in self.chosen.items():
                folder = self.folder(name) / ("linear" if seed is None else str(seed))
                rating = folder / self.schedule.joint.name / "evaluation"
                record = folder if seed is None else rating
                found.append(Trial(name, condition, seed, folder, record))
        return found

    def finished_runs(self) -> dict[str, list[Path]]:
        """Encoding -> its rated runs of stage three, one for each of the seeds.

        All encodings in the folder count that have these settings, whatever `only` says. One that
        is not in the header any more has the name of its folder."""
        names = {self.folder(name).name: name for name in self.encodings}
        found = {}
        for path in sorted(self.root.glob("*/settings.json")):
            with explain_malformed(path, f"delete {path.parent}"):
                same = read_json(path, f"delete {path.parent}")["schedule"] == self.settings()
            runs = [path.parent / str(seed) / self.schedule.joint.name for seed in self.seeds]
            runs = [run for run in runs if same and is_complete(run / "evaluation")]
            found[names.get(path.parent.name, path.parent.name)] = runs
        order = dict.fromkeys((*self.encodings, *found))  # the header's first
        return {name: found[name] for name in order if found.get(name)}

    def begin(self, name: str) -> None:
        """Note the settings and the sound of an encoding in its folder.

        Raises:
            UserError: if the folder was begun with another sound of this encoding.
        """
        folder, condition = self.folder(name), self.encodings[name]
        front_end = ImageToLogMel(condition.encoding, condition.frames, condition.hop)
        fingerprint, path = audio_fingerprint(front_end), folder / "sound.pt"
        if not path.exists():
            save_tensors(path, {"fingerprint": fingerprint})
        then = load_tensors(path, f"delete {path}, and run again").get("fingerprint")
        if not fingerprints_match(then, fingerprint):
            raise UserError(
                f"the code of the encoding {name} was changed after {folder} was begun; delete "
                "that folder, or give the encoding another name."
            )
        settings = {"condition": asdict(condition), "schedule": self.settings()}
        write_json(folder / "settings.json", settings)

    def train_shared(self, trial: Trial, device: str) -> Result:
        """Train stage two and the judges, unless they are there. Their seed is 0 for all trials."""
        places = {"results": self.memory, "data_root": self.data_root, "device": device}
        folders = ("mnist_classify_train", *(f"judges/{name}" for name in JUDGES))
        self._run_stage("classifier", folders, **places)
        self._run_stage("gan", ("emnist_dcgan",), **places)
        return trial, ""

    def run_trial(self, trial: Trial, device: str) -> Result:
        """Run a trial on a device. All that it prints goes to output.txt in its folder."""
        path = trial.folder / "output.txt"
        try:
            with as_user_errors():
                lock_folder(trial.folder)
                check_writable(trial.folder)
                with (
                    open(path, "a", encoding="utf-8") as output,
                    redirect_stdout(output),
                    redirect_stderr(output),
                ):
                    (self._decode if trial.seed is None else self._train)(trial, device)
        except UserError as error:
            return trial, str(error)
        except Exception as error:  # a mistake in one trial does not end the others
            with open(path, "a", encoding="utf-8") as output:
                traceback.print_exc(file=output)
            return trial, f"{type(error).__name__} ({error}); see {path}."
        finally:
            unlock_folder(trial.folder)
        return trial, ""

    def _decode(self, trial: Trial, device: str) -> None:
        dataset, count = self.schedule.vggish.dataset, self.schedule.linear_images
        place = choose_device(device)
        decode_linearly(trial.condition, dataset, count, self.data_root, place, trial.folder)

    def _train(self, trial: Trial, device: str) -> None:
        places = {"results": trial.folder, "data_root": self.data_root, "device": device}
        heard = {field: getattr(trial.condition, field) for field in ("encoding", "frames", "hop")}
        self._run_stage("vggish", ("train_vggish",), **places, **heard, seed=trial.seed)
        name = self.schedule.joint.name
        self._run_stage(
            "joint", (name,), **places, seed=trial.seed, judges=self.memory / "judges",
            classifier_run=self.memory / "mnist_classify_train",
            gan_run=self.memory / "emnist_dcgan",
        )  # fmt: skip
        run = trial.folder / name
        save_shown(run, trial.folder / "shown.pt", self.data_root, choose_device(device))
        rating = replace(self.schedule.evaluation, **places, name=run, output=trial.record)
        self.mains["evaluation"](rating)
        if not self.keep_models:
            for folder in (trial.folder / "train_vggish", run):
                (folder / "checkpoint.pt").unlink()

    def _run_stage(self, stage: str, names: tuple[str, ...], **changes: Any) -> None:
        """Run a script unless its runs `names` are complete: from the last finished epoch if it was
        stopped."""
        config = replace(getattr(self.schedule, stage), **changes)
        folders = [config.results / name for name in names]
        if not all(map(is_complete, folders)):
            begun = any((one / "last.pt").exists() or is_complete(one) for one in folders)
            self.mains[stage](replace(config, resume=begun))
        for one in folders:  # no run of a sweep is prolonged, and this saves two thirds of the disk
            (one / "last.pt").unlink(missing_ok=True)


def run_sweep(
    sweep: Sweep, devices: Sequence[str], title: str, engine: Engine | None = None
) -> list[dict[str, Any]]:
    """Run the trials that are not finished, and compare all finished encodings; returns the rows of
    comparison.csv.

    Args:
        sweep: what is compared.
        devices: of the workers.
        title: the settings in words, for the report.
        engine: what runs the trials. None: `run_local`.

    Raises:
        UserError: if the sweep is running already, or a trial failed; the others are finished.
    """
    root, trials, engine = sweep.root, sweep.trials(), engine or run_local
    check_writable(root)
    lock_folder(root)
    for name in sweep.chosen:
        sweep.begin(name)
    memory = Trial(SHARED, Condition(), 0, sweep.memory, sweep.memory / "emnist_dcgan")
    for _, error in engine(sweep.train_shared, [memory], devices, root):
        if error:
            raise UserError(error)
    failed: dict[Trial, str] = {}
    row = cache(row_of)  # that of a finished trial does not change

    def report() -> list[dict[str, Any]]:
        missing = [trial.title for trial in trials if not trial.finished]
        runs = sweep.finished_runs()
        rows = [row(name, run) for name, folders in runs.items() for run in folders]
        write_report(root, rows, title, missing)
        return rows

    missing = [trial for trial in trials if not trial.finished]
    results, reported = engine(sweep.run_trial, missing, devices, root), -REPORT_EVERY
    hidden = not (missing and sys.stderr.isatty())
    try:
        for trial, error in tqdm(results, "trials", len(missing), disable=hidden):
            if error:
                failed[trial] = error
            if trial.seed is None:  # the rows hold its numbers
                row.cache_clear()
            tqdm.write(f"{trial.title}: {'failed' if error else 'finished'}")
            if time.monotonic() - reported >= REPORT_EVERY:
                report()
                reported = time.monotonic()
    finally:
        rows = report()
    if rows:
        write_pictures(root, rows)
        print(f"\n{tables(rows)}")
    unlock_folder(root)
    done = sum(trial.finished for trial in trials)
    print(f"{done} of {len(trials)} trials are finished. {root}/conclusions.md, comparison.csv, "
          "ratings.png, sheet.png, sounds.html")  # fmt: skip
    if failed:
        for trial, error in failed.items():
            print(f"{trial.title}: {error}", file=sys.stderr)
        raise UserError(
            f"{len(failed)} of {len(trials)} trials failed, as said above; correct the cause, and "
            "run the same command again."
        )
    return rows


def run_local(
    run: Work, trials: Sequence[Trial], devices: Sequence[str], root: Path
) -> Iterator[Result]:
    """The engine for one machine: run trials, as many at a time as there are `devices`, and yield
    each result when it is there. Workers lock their device in `root`. `run_ray` takes the same
    arguments.

    Raises:
        UserError: if a worker was killed.
    """
    if len(devices) == 1 or len(trials) < 2:
        yield from (run(trial, devices[0]) for trial in trials)
        return
    from joblib import Parallel, delayed  # slow to import
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    task, count = delayed(run_on_free_device), min(len(devices), len(trials))
    parallel: Any = Parallel(count, "loky", "generator_unordered")
    try:
        yield from parallel(task(run, trial, devices, root) for trial in trials)
    except TerminatedWorkerError as error:
        raise UserError(
            "a worker was killed, perhaps because the memory does not suffice; run the same "
            "command again, with fewer --workers."
        ) from error


def run_on_free_device(run: Work, trial: Trial, devices: Sequence[str], root: Path) -> Result:
    """Run a trial on the first device that no other worker has locked."""
    for number, device in enumerate(devices):
        with suppress(FolderLocked):
            lock_folder(root / f"worker-{number}")
            try:
                return run(trial, device)
            finally:
                unlock_folder(root / f"worker-{number}")
    return trial, f"no device is free in {root}; wait until the other comparison ends."


def worker_devices(workers: int | None, device: str) -> list[str]:
    """The device of each worker: with `auto`, the GPUs in turn, if there are any."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    names = gpus if device == "auto" and gpus else [device]
    return [names[number % len(names)] for number in range(workers or len(names))]


@torch.no_grad()
def save_shown(run: Path, path: Path, data_root: Path, device: torch.device) -> None:
    """Write what the sheet shows of a run: for the first test image of each class the image, its
    log-mel and the imagined image."""
    model = LateBlind.load(run, device)
    test = load_digits(model.dataset, "test", data_root, device)
    images = test.images[first_of_each_class(test.labels, 1)[:, 0]]
    logmels = model.front_end(images)
    shown = {"heard": upsample(images), "logmels": logmels}
    shown["imagined"] = model.draw(model.embed(logmels))
    save_tensors(path, {name: value.float().cpu() for name, value in shown.items()})


def require_comparable(name: str, condition: Condition) -> None:
    """Refuse an encoding whose name cannot name a folder, that is impossible, or whose frames cut
    its sound off, by a UserError."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(
            f"the encoding {name!r} cannot name a folder; use letters, digits, '_', '-' and '.'."
        )
    try:
        frames = ImageToLogMel(condition.encoding, condition.frames, condition.hop).frames
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    needed = frames_to_cover(condition.encoding, condition.hop)
    if frames < needed:
        raise UserError(f"{name}: {frames} frames cut its sound off; give {needed}, or None.")


def hyperparameters(config: Any) -> dict[str, Any]:
    """The settings that decide what is computed: all but the folders, the device and the seed."""
    skipped = (*NOT_HYPERPARAMETERS, "seed")
    return {name: one for name, one in config_to_dict(config).items() if name not in skipped}


def _key(settings: list[Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
