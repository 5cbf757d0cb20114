"""The folder of a run and its record.

A run lives in `results/<name>/`:
    checkpoint.pt   the best epoch's networks, which later stages load; a plain dict, read with
                    `weights_only=True`
    last.pt         the last epoch's networks and optimisers, for `--resume`
    log.jsonl       one JSON line an epoch; the curves are drawn from it
    metrics.json    the numbers at the end, with settings, seed, machine, versions, and the SHA-256
                    of the data, of the checkpoints of earlier stages and of its own; present when
                    the run is complete

An epoch counts as finished when last.pt is written. A new run never replaces an older one: the
older one, complete or stopped, is moved to `<name>.1`, `<name>.2` and so on.

`--resume` with more epochs prolongs a complete run, where the schedule allows it. The learning rate
stays that of the last epoch, or falls at `late_epoch` if that comes later. Such a run keeps
last.pt, of up to 0.9 GB in stage one; if you will not prolong it, you may delete last.pt."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.checkpoint import CHECKPOINT_VERSION, all_finite, load_checkpoint, load_weights
from common.device import device_name, precision_name
from common.files import (
    UserError,
    check_writable,
    explain_malformed,
    explain_write_errors,
    file_sha256,
    folder_megabytes,
    load_tensors,
    move_aside,
    read_json,
    save_tensors,
    write_file,
    write_json,
)
from common.locks import lock_folder, still_locked, unlock_folder
from common.provenance import code_revision, package_versions
from models.late_blind import complete_runs
from training.loop import divergence_error

DRAWN_EVERY = 10  # seconds; to draw the curves takes 0.1 to 0.3 s, as a small epoch on a GPU does
# What may differ between a run and its `--resume`: where things are, not what is computed.
NOT_HYPERPARAMETERS = (
    "resume", "results", "data_root", "device", "deterministic", "cuda_graphs",
    "audio_run", "classifier_run", "gan_run", "judges", "upstream",
)  # fmt: skip
LEAVE_OUT = "leave out --resume to start from the beginning"
WRITE_AGAIN = "run the script that writes it again"


class Run:
    """The folder of one run, `<results>/<name>/`, and its record.

    Args:
        stage: the script's name, by which later stages know its checkpoint.
        config: the script's header, a dataclass with `results`, `seed` and `resume`.
        name: of the folder in `results`; the script's own if None.
        sha256: of the data (`data/train`) and of the earlier stages' checkpoints
            (`judge_cnn/checkpoint.pt`) that it uses.
        draw: draws the curves into the folder, every DRAWN_EVERY seconds and at the end.
        fingerprint: `audio_fingerprint` of the sounds, `(frames, 64)`; kept in the checkpoint.
        prolongs: whether `--resume` may have more epochs than the run had; if not, the reason.
        upstream: what the run takes from earlier stages; part of the checkpoint's config.

    Attributes:
        finished_metrics: with `--resume`, the metrics.json of a run that is complete already.
    """

    def __init__(
        self, stage: str, config: Any, device: torch.device, name: str | None = None,
        sha256: dict[str, str] | None = None, draw: Callable[[Path], Any] | None = None,
        fingerprint: Tensor | None = None,
        prolongs: Literal[True] | str = "its schedule depends on the number of epochs",
        **upstream: Any,
    ) -> None:  # fmt: skip
        self.stage, self.device, self.draw, self.prolongs = stage, device, draw, prolongs
        self.results = Path(config.results)
        self.folder = self.results / (name or stage)
        self.config = plain_json({**dataclasses.asdict(config), **upstream})
        self.sha256, self.fingerprint = sha256 or {}, fingerprint
        self.history: list[dict] = []
        self.best: int | None = None  # epoch
        self.networks: dict[str, nn.Module] = {}
        where = "the CPU" if device.type == "cpu" else "a GPU"
        where += " with --deterministic" if torch.are_deterministic_algorithms_enabled() else ""
        self.compute_setup = f"{precision_name(device)}, on {where}"
        self.started = self.drawn = time.perf_counter()
        self.revision = code_revision()  # of the code that runs, whatever is committed meanwhile
        lock_folder(self.folder)
        check_writable(self.folder)
        self.finished_metrics: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        if config.resume:
            self._find_earlier_run()

    def _find_earlier_run(self) -> None:
        """Find a complete run, which is not run again, or the last epoch of one that goes on."""
        last, longer = self.folder / "last.pt", False
        if is_complete(self.folder):
            metrics = read_metrics(self.folder, LEAVE_OUT)
            longer = self._require_unchanged("metrics.json", metrics)
            if not longer:
                self.finished_metrics = metrics
                self._discard_last()  # the run may have been killed just before this
                unlock_folder(self.folder)
                print(f"{self.folder} holds a complete run; leave out --resume to start a new one.")
                return
        if longer or last.exists():
            self._last = load_checkpoint(last, self.stage, LEAVE_OUT)
            self._require_unchanged("last.pt", self._last)

    def _require_unchanged(self, file: str, record: dict[str, Any]) -> bool:
        """Refuse to go on with a run that was begun with other settings, or from other files;
        returns whether it shall have more epochs."""
        then = record["config"]
        with explain_malformed(self.folder / file, LEAVE_OUT):
            changed = changed_hyperparameters(then, self.config)
            longer = changed == ["epochs"] and then["epochs"] < self.config["epochs"]
            others = [
                name for name, digest in self.sha256.items() if record["sha256"].get(name) != digest
            ]
        if longer and self.prolongs is not True:
            raise UserError(
                f"{self.folder} was begun with {then['epochs']} epochs and cannot be prolonged, "
                f"because {self.prolongs}; set --epochs {then['epochs']}, or {LEAVE_OUT}."
            )
        if changed and not longer:
            raise UserError(
                f"{self.folder}/{file} was made with another {', '.join(changed)} "
                f"({', '.join(f'{key}: {then.get(key)}' for key in changed)}); "
                f"set the header back, or {LEAVE_OUT}."
            )
        if others:
            raise UserError(
                f"{self.folder}/{file} was made from another {', '.join(others)} than is here now; "
                f"put it back, or {LEAVE_OUT}."
            )
        return longer

    def start_or_resume(self, **parts: Any) -> int:
        """Load the state of `parts` (networks, optimisers, schedulers) with `--resume`; return the
        first epoch to run."""
        self.networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._state = {name: part for name, part in parts.items() if name not in self.networks}
        if self._last is None:
            self._claim_folder()
            return 1
        path, last = self.folder / "last.pt", self._last
        with explain_malformed(path, LEAVE_OUT):
            self._load_networks(last, path)
            for name, part in self._state.items():
                part.load_state_dict(last["state"][name])
                if isinstance(part, torch.optim.Optimizer) and not _fits(part):
                    raise ValueError(f"the state of {name} does not fit")
            self.history, self.best = list(last["history"]), last["best"]
            setup_before = last["compute_setup"]
            if [line["epoch"] for line in self.history] != list(range(1, last["epoch"] + 1)):
                raise ValueError("its epochs do not follow one another")
        if is_complete(self.folder):
            (self.folder / "metrics.json").unlink()
            print(f"{self.folder} is prolonged to {self.config['epochs']} epochs.")
        if self.best == last["epoch"]:  # the process may have ended before this was written
            save_tensors(self.folder / "checkpoint.pt", self._checkpoint(self.history[-1]))
        print(f"resumed: {self.folder} after epoch {last['epoch']}")
        if setup_before != self.compute_setup:
            now = self.compute_setup
            print(
                f"It began with {setup_before}. It goes on with {now}, so the result will differ."
            )
        return last["epoch"] + 1

    def _claim_folder(self) -> None:
        """Take the folder for a new run. An older run is moved aside, and the user's own files are
        left alone."""
        require_same_script(self.folder, self.stage)
        complete = is_complete(self.folder)
        with explain_write_errors(self.folder):
            if complete or list(self.folder.glob("*.pt")):
                aside = move_aside(self.folder)
                self.folder.resolve().mkdir(exist_ok=True)
                print(
                    f"The {'complete' if complete else 'stopped'} run that was there is now in "
                    f"{aside} ({folder_megabytes(aside):.0f} MB). Delete it when you no longer "
                    "need it."
                )
            here = sorted(path.name for path in self.folder.glob("[!.]*"))
            if here and "log.jsonl" not in here:
                raise UserError(
                    f"{self.folder} holds {here[0]}, but no run; give another --results or --name, "
                    "or empty the folder."
                )
        # This marks the folder as a run's, before the first picture is drawn.
        write_file(self.folder / "log.jsonl", lambda path: path.write_text(""))

    def end_epoch(self, record: dict[str, Any], best: bool, line: str = "") -> None:
        """Record a finished epoch.

        Args:
            record: the numbers of the epoch, for log.jsonl.
            best: whether later stages shall load this epoch's networks.
            line: what is printed; at most 100 characters.
        """
        for name, network in self.networks.items():
            if not all_finite(network.state_dict()):
                what = f"the weights of the {name} are not finite"
                raise divergence_error(f"{what} at the end of epoch {record['epoch']}")
        self._require_present()
        now = time.perf_counter()
        record = {**record, "seconds": round(now - self.started, 3)}
        self.started = now
        self.history.append(record)
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_file(self.folder / "log.jsonl", lambda path: path.write_text(lines))
        if now - self.drawn >= DRAWN_EVERY:
            self._draw()
        self.best = record["epoch"] if best else self.best
        last = {
            **self._checkpoint(record),
            "state": {name: part.state_dict() for name, part in self._state.items()},
            "history": self.history,
            "best": self.best,
            "compute_setup": self.compute_setup,
        }
        save_tensors(self.folder / "last.pt", last)  # the epoch counts from here on
        if best:
            save_tensors(self.folder / "checkpoint.pt", self._checkpoint(record))
        if line:
            epochs_left = self.config.get("epochs", 0) - record["epoch"]
            left = epochs_left * sum(line["seconds"] for line in self.history) / len(self.history)
            left = f"{left / 60:.0f} min" if left > 99 else f"{left:.0f} s"
            said = f", {left} left" if epochs_left > 0 else ""
            print(f"{line}, {record['seconds']:.1f} s{said}", flush=True)

    def load_best(self) -> int:
        """Load the best epoch's networks, and return that epoch."""
        path = self.folder / "checkpoint.pt"
        checkpoint = load_checkpoint(path, self.stage, "start again")
        with explain_malformed(path, "start again"):
            self._load_networks(checkpoint, path)
        return checkpoint["epoch"]

    def _load_networks(self, checkpoint: dict[str, Any], path: Path) -> None:
        for name, network in self.networks.items():
            load_weights(network, checkpoint["networks"][name], path)

    def finish(self, metrics: dict[str, Any], sha256: dict[str, str] | None = None) -> None:
        """Write metrics.json, and the same numbers into the checkpoint.

        Args:
            metrics: the numbers at the end.
            sha256: of the data that were used since the beginning, such as the test set.
        """
        self._require_present()
        self._draw()
        path = self.folder / "checkpoint.pt"
        checkpoint = load_checkpoint(path, self.stage, "start again")
        checkpoint["config"] = self.config  # an epoch before the run was prolonged has another
        metrics = {**metrics, "seconds": round(sum(line["seconds"] for line in self.history), 3)}
        sha256 = self.sha256 | (sha256 or {})
        save_tensors(path, {**checkpoint, "metrics": metrics, "sha256": sha256})
        record = {
            "stage": self.stage,
            **metrics,
            "epoch": checkpoint["epoch"],
            "machine": f"{device_name(self.device)}, {precision_name(self.device)}",
            **{key: checkpoint[key] for key in ("seed", "revision", "versions", "config")},
            "sha256": {**sha256, "checkpoint.pt": file_sha256(path)},
        }
        write_json(self.folder / "metrics.json", record)
        self._discard_last()
        self._name_stale_runs(record["sha256"]["checkpoint.pt"])
        unlock_folder(self.folder)

    def _discard_last(self) -> None:
        if self.prolongs is not True:
            (self.folder / "last.pt").unlink(missing_ok=True)

    def _name_stale_runs(self, sha256: str) -> None:
        """Print which runs of stage three in `results` were made from another run of this stage
        than is here now, with the SHA-256 `sha256` of its checkpoint."""
        stale = []
        for run in sorted(complete_runs(self.results)):
            try:
                record = read_metrics(run)
                made_from = run / record["config"]["upstream"][self.stage]
                before = record["sha256"][f"{self.stage}/checkpoint.pt"]
            except (UserError, LookupError, TypeError):  # no earlier stage's, or damaged
                continue
            if made_from.resolve() == self.folder.resolve() and before != sha256:
                stale.append(f"{run}")
        if stale:
            print(
                f"{', '.join(stale)} and the ratings in there do not fit the new {self.stage}; run "
                "train_all.py again."
            )

    def _draw(self) -> None:
        if self.draw:
            self.draw(self.folder)
            self._require_present()
            self.drawn = time.perf_counter()

    def _require_present(self) -> None:
        if not self.folder.is_dir() or not still_locked(self.folder):
            raise UserError(
                f"{self.folder} was removed while the run went on; start again, and leave the "
                "folder where it is."
            )

    def _checkpoint(self, record: dict[str, Any]) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": CHECKPOINT_VERSION,
            "config": self.config,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "fingerprint": self.fingerprint,
            "epoch": record["epoch"],
            "metrics": record,
            "seed": self.config["seed"],
            "revision": self.revision,
            "versions": package_versions(),
            "sha256": self.sha256,
        }


def changed_hyperparameters(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of the settings that differ, but for where things are."""
    return sorted(
        key
        for key in then.keys() | now.keys()
        if key not in NOT_HYPERPARAMETERS and then.get(key) != now.get(key)
    )


def config_to_dict(config: Any) -> dict[str, Any]:
    """A header as plain JSON values; checkpoints and metrics.json keep it so."""
    return plain_json(dataclasses.asdict(config))


def plain_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back: tuples are lists, and paths are text."""
    return json.loads(json.dumps(values, default=str))


def is_complete(folder: Path) -> bool:
    """Whether the run in `folder` was finished."""
    return (folder / "metrics.json").is_file()


def require_complete(folder: Path, hint: str) -> None:
    """Refuse to go on from a run that was begun and not finished, whatever epoch it has.

    Raises:
        UserError: with the `hint`, such as "run train_vggish.py".
    """
    if not is_complete(folder):
        raise UserError(f"{folder} holds a run that is not complete; {hint} --resume.")


def require_same_script(folder: Path, stage: str) -> None:
    """Refuse to put a record of `stage` in the place of another script's.

    Raises:
        UserError: if the metrics.json in `folder` says that it is of another.
    """
    try:
        there = read_metrics(folder).get("stage", stage)
    except UserError:  # a damaged one is nobody's
        return
    if there != stage:
        raise UserError(
            f"{folder} holds what {there} left, which this would replace; give another "
            "folder or --name."
        )


def read_metrics(folder: Path, hint: str = WRITE_AGAIN) -> dict[str, Any]:
    """The numbers of a complete run.

    Raises:
        UserError: if they are missing or damaged.
    """
    path = folder / "metrics.json"
    record = read_json(path, hint)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{path} is no record of a run; {hint}.")
    return record


def read_log(
    path: Path, hint: str = WRITE_AGAIN, numbers: tuple[str, ...] = ()
) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl.

    Args:
        path: of the file.
        hint: the command that writes it again.
        numbers: names that every line must have, besides `epoch`.

    Raises:
        UserError: if they are missing or damaged, or text stands where a number belongs.
    """
    lines = read_json(path, hint, lines=True)
    with explain_malformed(path, hint):
        if not lines or [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
            raise ValueError("its epochs do not follow one another")
        for line in lines:
            for name in numbers:
                line[name]  # a line without it is malformed
            for name, value in line.items():
                kind = str if name == "failure" else int | float  # of the GAN, a sentence
                if not isinstance(value, kind):
                    raise ValueError(f"{name[:50]} is no number")
    return lines


def _fits(optimiser: torch.optim.Optimizer) -> bool:
    """Whether what an optimiser loaded has the shapes of its parameters, and is finite."""
    return all(
        value.isfinite().all() and value.shape == (() if name == "step" else parameter.shape)
        for parameter, state in optimiser.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    )


def differs_from_run(folder: Path, config: Any) -> bool:
    """Whether a run in `folder`, complete or stopped, has other settings than `config`; also if it
    is damaged."""
    last = folder / "last.pt"
    if not is_complete(folder) and not last.exists():
        return False
    try:
        there = read_metrics(folder) if is_complete(folder) else load_tensors(last, LEAVE_OUT)
        then = there["config"]
        return bool(changed_hyperparameters(then, {**then, **config_to_dict(config)}))
    except (UserError, LookupError, TypeError, AttributeError):
        return True
