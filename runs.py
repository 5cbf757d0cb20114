"""What the stages share of running: the command line, the device, batches and steps, and the folder that a run leaves.

A run lives in `results/<name>/`:
    checkpoint.pt   the best epoch's networks, which later stages load; a plain dict, loaded with `weights_only=True`
    last.pt         the last epoch's networks and optimisers, for `--resume`; removed when the run is complete
    log.jsonl       one JSON line an epoch, from which the curves are drawn; there from the start, as a run's mark
    metrics.json    the numbers at the end, with configuration, seed, machine, versions, and the SHA-256 of the data, of the
                    checkpoints of earlier stages and of its own; present when the run is complete
An epoch counts from the moment that last.pt is there; what was written of it before is written again. A run that is started
anew is moved aside: a complete one to `<name>.before`, one that was stopped to `<name>.stopped`; each takes the place of an
older one. How files are written, held and read: `files.py`.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from tqdm import tqdm

import files
import processes
from files import UserError

CHECKPOINT_VERSION = 1
DRAWN_EVERY = 10  # seconds: drawing the curves takes 0.1 to 0.3 s, and a small epoch on a GPU not much more
CHECKED_EVERY = 50  # steps after which a GPU is waited for, to see whether a loss was not finite
# What may differ between a run and its `--resume`: where things are, not what is computed.
PLACES = ("resume", "results", "data_root", "device", "deterministic")


# The least that a header's numbers may be, in any script; learning rates are above 0, and all are finite.
LEAST = {"epochs": 1, "joint_epochs": 0, "judge_epochs": 1, "judges_epochs": 1, "images_per_epoch": 2, "batch": 1,
         "judges_batch": 2, "kernel_centres": 1, "width": 1, "second_thoughts": 0, "keep_gigabytes": 0, "generator_rate": 0,
         "beta1": 0, "instance_noise": 0, "rounds": 1, "threads": 1}  # fmt: skip
LARGEST_SEED = 10**12  # times the 1,000,003 of `seed_epoch` it still fits into 64 bits


def command_line(config_type: type, main: Callable[[Any], Any], description: str | None, default: Any = None) -> None:
    """Read the header `config_type`, starting from `default`, and run `main` with it. A user's mistake ends with one
    sentence and exit code 2; Ctrl-C, with what it lost and exit code 130."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            config = tyro.cli(config_type, description=description, default=default or config_type())
        except ValueError as error:  # an impossible encoding; of a nested one tyro says it in its own words, with code 2 too
            raise UserError(str(error)) from error
        refuse_impossible(config)
        with in_words():
            main(config)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        resumes = "resume" in {field.name for field in dataclasses.fields(config_type)}
        mend = "with --resume goes on after the last finished epoch" if resumes else "starts again"
        print(f"\nStopped. The same command {mend}.", file=sys.stderr)
        sys.exit(130)


@contextmanager
def in_words() -> Iterator[None]:
    """What the machine refuses, a file or its memory, as a `UserError`."""
    try:
        yield
    except OSError as error:
        what, why = error.filename or "a file", error.strerror or error
        raise UserError(f"{what} cannot be used ({why}); unlock it or make room, or name another.") from error
    except (MemoryError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "no more is left"
        said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # by the CPU, CUDA, and its libraries
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(words in reason for words in said):
            raise
        raise UserError(
            f"the memory does not suffice ({reason}); lower --batch, end what else takes it, or give another --device."
        ) from error


def refuse_impossible(config: Any) -> None:
    """Refuse settings that nothing can be computed with, and a name that no folder can have.

    Raises:
        UserError: with the first of these, as a flag.
    """
    trains = hasattr(config, "epochs")
    for name, value in vars(config).items():
        flag = f"--{name.replace('_', '-')} is {value}"
        if name == "name" and (value in ("", ".", "..") or set(value) & {"/", "\\"}):
            raise UserError(f"--name is {value!r}, but is to name a folder in results; give a word.")
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag}; give a finite number.")
        least = 2 if name == "batch" and trains else LEAST.get(name)  # of a single image BatchNorm learns nothing
        if least is not None and value < least:
            raise UserError(f"{flag}; give at least {least}.")
        if name.endswith("learning_rate") and value <= 0:
            raise UserError(f"{flag}; give a number above 0.")
        if name == "beta1" and value >= 1:
            raise UserError(f"{flag}; give a number below 1.")
        if name == "seed" and abs(value) > LARGEST_SEED:
            raise UserError(f"{flag}; give one of at most {LARGEST_SEED:,}, either way.")


def choose_device(name: str, deterministic: bool = False) -> torch.device:
    """`auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:1`; prints what was chosen, and why. Each process of torchrun
    takes the GPU of its number. If `deterministic`, a GPU gives the same bits again, as the CPU does anyway."""
    gpu = torch.cuda.is_available()
    if processes.launched() > 1:
        if "LOCAL_RANK" not in os.environ:
            raise UserError("WORLD_SIZE is set, but LOCAL_RANK is not; start with torchrun, or unset WORLD_SIZE.")
        if name.startswith("cuda:"):
            raise UserError(f"--device {name} would be every process's; give cuda or auto, by which each takes its own GPU.")
        if name in ("auto", "cuda") and (gpu or name == "cuda"):
            name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        device, reason = torch.device("cuda" if gpu else "cpu"), "a GPU is here" if gpu else "no GPU is here"
    else:
        try:
            device, reason = torch.device(name), "as demanded"
        except RuntimeError as error:
            raise UserError(f"--device {name} is no device; give auto, cpu, cuda or cuda:1.") from error
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"--device {name} is not supported; give auto, cpu, cuda or cuda:1.")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name} was demanded, but PyTorch sees no such GPU here; give --device cpu or auto.")
    if device.type == "cuda":
        try:
            torch.zeros(1, device=device).add_(1)
        except RuntimeError as error:  # older than this PyTorch knows, broken, or another's alone
            reason = str(error).splitlines()[0]
            raise UserError(f"the GPU cannot be used ({reason}); give --device cpu, or install a PyTorch for it.") from error
        if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it, even to what it is, takes seconds
            torch.use_deterministic_algorithms(deterministic)
        # float32 means float32, in sounds above all: what is rounded is rounded to bfloat16, by autocast.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic:  # read by cuBLAS at its first use
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    processes.join(device)
    torch.set_flush_denormal(True)  # on the CPU, a network whose activations fade to denormals trains ten times slower
    shared = f", one of {processes.count()} processes" if processes.count() > 1 else ""
    print(f"device: {device_name(device)} ({reason}), {precision(device)}{shared}")
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def precision(device: torch.device) -> str:
    return "bfloat16 where it pays" if autocasts(device) else "float32"


def autocasts(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32: GPUs from Ampere on, CPUs with AVX-512 BF16 or AMX. Not if
    LISTEN_PRECISION=float32 demands otherwise: a matter of the machine, as LISTEN_DATA is, and so in no header."""
    demanded = os.environ.get("LISTEN_PRECISION", "auto")
    if demanded not in ("auto", "float32"):
        raise UserError(f"LISTEN_PRECISION is {demanded}; set it to auto or float32.")
    if demanded == "float32":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the networks where the hardware multiplies it faster than float32; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=autocasts(device))


def seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Seed everything that epoch `epoch` draws, and return the generator for its batches.

    Nothing random is carried from one epoch into the next, so a resumed run draws what an undisturbed one does. Several
    processes draw the same batches, of which each takes its share, and other noise.
    """
    torch.manual_seed(seed * 1_000_003 + epoch + 1000 * processes.rank())
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + 500_000)


def batches(
    total: int, batch: int, generator: torch.Generator, device: torch.device, take: int | None = None, title: str = ""
) -> Iterator[Tensor]:
    """The indices of one epoch, `(batch,)` int64 each: a random order of `total`, of which the first `take` are used. The
    last, smaller batch is left out, unless it is the only one. With a progress bar when on a terminal. Of several processes
    each gets an equal share of every batch."""
    count = processes.count()
    if batch % count or batch < 2 * count:
        raise UserError(
            f"--batch {batch} cannot be shared equally by {count} processes, two or more for each; "
            f"give a multiple of {count}."
        )
    order = torch.randperm(total, generator=generator)[:take].to(device)
    used = order[: len(order) // batch * batch or len(order) // count * count]
    for together in progress(used.split(batch), title):
        yield together[processes.rank() :: count]


def progress(items: Iterable, title: str) -> Iterable:
    return tqdm(items, desc=title, leave=False, disable=not sys.stderr.isatty() or processes.rank() > 0)


def step(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One step downhill; of several processes, along the mean of their gradients, so that their networks stay alike."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if processes.count() > 1:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients]) / processes.count()
        dist.all_reduce(together)
        for gradient, mean in zip(gradients, together.split([len(g.flatten()) for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))
    optimiser.step()


class Mean:
    """The mean of a loss over an epoch, read at its end. A loss that is not finite stops the stage: on the CPU at its
    step, on a GPU, which no step waits for, within CHECKED_EVERY steps.

    Args:
        what: the loss, as the sentence that stops the stage names it.
    """

    def __init__(self, what: str, epoch: int) -> None:
        self.what, self.epoch = what, epoch
        self.total, self.count = 0.0, 0
        self.unread: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        self.unread.append(value.detach())
        if value.device.type == "cpu" or len(self.unread) == CHECKED_EVERY:
            self._check()

    def read(self) -> float:
        if self.unread:
            self._check()
        if processes.count() > 1 and self.count:
            dist.all_reduce(self.total)
        return float(self.total) / max(self.count, 1) / processes.count()

    def _check(self) -> None:
        losses = torch.stack(self.unread).double()
        for step, loss in enumerate(losses.tolist(), self.count + 1):
            if not np.isfinite(loss):
                raise diverged(f"{self.what} is {loss} in epoch {self.epoch}, step {step}")
        self.total, self.count, self.unread = self.total + losses.sum(), self.count + len(losses), []


def diverged(what: str) -> UserError:
    return UserError(
        f"{what}: training diverged; lower the learning rate and start again; the checkpoints of the last finished "
        "epoch are left as they were."
    )


class Run:
    """The folder of one run, `<results>/<name>/`, and its record.

    Args:
        stage: the script's name, by which later stages know its checkpoint.
        config: the script's header, a dataclass with `results`, `seed` and `resume`.
        name: of the folder; the script's own if None.
        sha256: of the data (`data/train`) and of the checkpoints (`judge/checkpoint.pt`) that the run is made from.
        draw: draws the curves into the folder, from its log.jsonl; every DRAWN_EVERY seconds, and at the end.
        upstream: what the run takes from earlier stages, such as their encoding; part of the checkpoint's config.

    Attributes:
        done: with `--resume`, what metrics.json says of a run that is complete already; else None.
    """

    def __init__(
        self, stage: str, config: Any, device: torch.device, name: str | None = None,
        sha256: dict[str, str] | None = None, draw: Callable[[Path], Any] | None = None, **upstream: Any,
    ) -> None:  # fmt: skip
        self.stage, self.device, self.seed, self.draw = stage, device, config.seed, draw
        self.folder = Path(config.results) / (name or stage)
        self.config = {**plain(config), **upstream}
        self.sha256 = sha256 or {}
        self.history: list[dict] = []
        self.best: int | None = None  # epoch
        self.networks: dict[str, nn.Module] = {}
        where = "the CPU" if device.type == "cpu" else "a GPU"
        where += " with --deterministic" if torch.are_deterministic_algorithms_enabled() else ""
        self.how = f"in {precision(device)} on {where} by {processes.count()} process{'es' if processes.count() > 1 else ''}"
        self.started = self.drawn = time.perf_counter()
        self.revision = revision()  # of the code that runs, whatever is committed meanwhile
        files.hold(self.folder)
        files.probe(self.folder)
        self.done: dict[str, Any] | None = None
        self._last = None
        if config.resume and complete(self.folder):
            self.done = read_metrics(self.folder, LEAVE_OUT)
            self._refuse_changes("metrics.json", self.done)
            if processes.rank() == 0:  # killed just before this was done
                (self.folder / "last.pt").unlink(missing_ok=True)
            files.release(self.folder)
            print(f"{self.folder} holds a complete run; leave out --resume to start a new one.")
        elif config.resume and (self.folder / "last.pt").exists():
            self._last = load_checkpoint(self.folder / "last.pt", stage, LEAVE_OUT)
            self._refuse_changes("last.pt", self._last)

    def _refuse_changes(self, file: str, record: dict[str, Any]) -> None:
        """Refuse to go on with a run that was begun with other settings, or from other files."""
        then = record["config"]
        changed = changed_settings(then, self.config)
        if changed:
            raise UserError(
                f"{self.folder}/{file} was made with another {', '.join(changed)} "
                f"({', '.join(f'{key}: {then.get(key)}' for key in changed)}); "
                f"set the header back, or {LEAVE_OUT}."
            )
        before = record.get("sha256")
        if not isinstance(before, dict):
            raise UserError(f"{self.folder}/{file} is damaged; {LEAVE_OUT}.")
        others = [name for name, digest in self.sha256.items() if before.get(name) != digest]
        if others:
            raise UserError(
                f"{self.folder}/{file} was made from another {', '.join(others)} than is here now; put it back, or "
                f"{LEAVE_OUT}."
            )

    def restore(self, **parts: Any) -> int:
        """Take up `parts` (networks, optimisers, schedulers) where `--resume` says, and return the first epoch to run; the
        first of all where no epoch was finished."""
        self.networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._state = {name: part for name, part in parts.items() if name not in self.networks}
        if self._last is None:
            self._begin()
            return 1
        path, last = self.folder / "last.pt", self._last
        with files.whole(path, LEAVE_OUT):
            self._load_networks(last, path)
            for name, part in self._state.items():
                part.load_state_dict(last["state"][name])
                if isinstance(part, torch.optim.Optimizer) and not _fits(part):
                    raise ValueError(f"the state of {name} does not fit")
            self.history, self.best = list(last["history"]), last.get("best")
            begun = last["how"]
            if [line["epoch"] for line in self.history] != list(range(1, last["epoch"] + 1)):
                raise ValueError("its epochs do not follow one another")
        if self.best == last["epoch"]:  # the process may have ended before this was written
            files.save(self.folder / "checkpoint.pt", self._checkpoint(self.history[-1]))
        processes.meet()
        print(f"resumed: {self.folder} after epoch {last['epoch']}")
        if begun != self.how:
            print(f"it was begun {begun}, and goes on {self.how}: the result is another than undisturbed")
        return last["epoch"] + 1

    def _begin(self) -> None:
        """A new run takes the folder; what lies there is kept, but for what was written before an epoch was finished."""
        if processes.rank():
            return
        if complete(self.folder):
            refuse_other(self.folder, self.stage)
        with files.writing(self.folder):
            for suffix, there in ((".before", complete(self.folder)), (".stopped", (self.folder / "last.pt").exists())):
                if there:
                    aside = self.folder.with_name(self.folder.name + suffix)
                    files.keep_aside(self.folder, aside)
                    self.folder.mkdir(exist_ok=True)
                    print(f"the run that was {'complete' if suffix == '.before' else 'stopped'} there is kept in {aside}")
                    break
            here = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
            if here and "log.jsonl" not in here:
                raise UserError(
                    f"{self.folder} holds {here[0]}, but no run; give another --results or --name, or empty the folder."
                )
            for name in here:
                if name != "log.jsonl":  # by which the folder is known as a run's, from before its first picture
                    (self.folder / name).unlink()
        files.write(self.folder / "log.jsonl", lambda path: path.write_text(""))

    def end_epoch(self, record: dict[str, float], best: bool) -> None:
        """Record a finished epoch; if `best`, make its networks the ones that later stages load."""
        for name, network in self.networks.items():
            if not finite(network.state_dict()):
                raise diverged(f"the weights of the {name} are not finite at the end of epoch {record['epoch']}")
        self._refuse_vanished()
        now = time.perf_counter()
        record = {**record, "seconds": round(now - self.started, 3)}
        self.started = now
        self.history.append(record)
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        files.write(self.folder / "log.jsonl", lambda path: path.write_text(lines))
        if now - self.drawn >= DRAWN_EVERY:
            self._draw()
        self.best = record["epoch"] if best else self.best
        state = {name: part.state_dict() for name, part in self._state.items()}
        last = {**self._checkpoint(record), "state": state, "history": self.history, "best": self.best, "how": self.how}
        files.save(self.folder / "last.pt", last)  # from here on the epoch counts
        if best:
            files.save(self.folder / "checkpoint.pt", self._checkpoint(record))
        shown = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items() if v != "")
        print(shown, flush=True)
        processes.meet()  # what process 0 wrote, all may read

    def load_best(self) -> int:
        """Load the best epoch's networks, and return that epoch."""
        path = self.folder / "checkpoint.pt"
        checkpoint = load_checkpoint(path, self.stage, "start again")
        with files.whole(path, "start again"):
            self._load_networks(checkpoint, path)
        return checkpoint["epoch"]

    def _load_networks(self, checkpoint: dict[str, Any], path: Path) -> None:
        for name, network in self.networks.items():
            if name in checkpoint["networks"] or name != "probe":  # which older checkpoints lack
                load_weights(network, checkpoint["networks"][name], path)

    def finish(self, metrics: dict[str, Any], sha256: dict[str, str] | None = None) -> None:
        """Write the numbers at the end, into the checkpoint too; with the hashes of what was used since the beginning."""
        self._refuse_vanished()
        self._draw()
        path = self.folder / "checkpoint.pt"
        checkpoint = load_checkpoint(path, self.stage, "start again")
        metrics = {**metrics, "seconds": round(sum(line["seconds"] for line in self.history), 3)}
        sha256 = {**self.sha256, **(sha256 or {})}
        files.save(path, {**checkpoint, "metrics": metrics, "sha256": sha256})
        if processes.rank() == 0:
            record = {
                "stage": self.stage,
                **metrics,
                "epoch": checkpoint["epoch"],
                "machine": f"{device_name(self.device)}, {precision(self.device)}",
                **{key: checkpoint[key] for key in ("seed", "revision", "versions", "config")},
                "sha256": {**sha256, "checkpoint.pt": files.sha256(path)},
            }
            files.write(self.folder / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
            (self.folder / "last.pt").unlink(missing_ok=True)
        files.release(self.folder)
        processes.meet()  # the run is complete for all of them, or for none

    def _draw(self) -> None:
        if self.draw and processes.rank() == 0:
            self.draw(self.folder)
            self._refuse_vanished()
            self.drawn = time.perf_counter()

    def _refuse_vanished(self) -> None:
        if not self.folder.is_dir() or not files.still_held(self.folder):
            raise UserError(
                f"{self.folder} was removed while the run went on; start again, and leave the folder where it is."
            )

    def _checkpoint(self, record: dict[str, float]) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": CHECKPOINT_VERSION,
            "config": self.config,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "epoch": record["epoch"],
            "metrics": record,
            "seed": self.seed,
            "revision": self.revision,
            "versions": versions(),
            "sha256": self.sha256,
        }


LEAVE_OUT = "leave out --resume to start from the beginning"


def changed_settings(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of the settings that differ, but for where things are."""
    return sorted(key for key in then.keys() | now.keys() if key not in PLACES and then.get(key) != now.get(key))


def settings_changed(folder: Path, config: Any) -> bool:
    """Whether a run in `folder`, complete or stopped, has other settings than the header `config`; also if it is damaged."""
    try:
        if complete(folder):
            then = read_metrics(folder)["config"]
        elif (folder / "last.pt").exists():
            then = files.load_file(folder / "last.pt", LEAVE_OUT)["config"]
        else:
            return False
        return bool(changed_settings(then, plain(config)))
    except (UserError, LookupError, AttributeError):
        return True


def plain(config: Any) -> dict[str, Any]:
    """A header as JSON knows it, which is how checkpoints and metrics.json keep it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def command_of(stage: str, name: str = "train_all") -> str:
    """The command that trains `stage`: two of the scripts train judges too, and stage three may have another `name`."""
    judges = {"judge": "mnist_classify_train.py", "transformer": "evaluate.py", "kernel": "evaluate.py"}
    named = f" --name {name}" if stage == "train_all" and name != "train_all" else ""
    return judges.get(stage, f"{stage}.py") + named


def complete(folder: Path) -> bool:
    """Whether the run in `folder` was finished."""
    return (folder / "metrics.json").is_file()


def require_complete(folder: Path, mend: str) -> None:
    """Refuse to go on from a run that was begun and not finished, whatever epoch it has.

    Raises:
        UserError: with the `mend`, such as "run train_vggish.py".
    """
    if not complete(folder):
        raise UserError(f"{folder} holds a run that is not complete; {mend} --resume.")


def refuse_other(folder: Path, stage: str) -> None:
    """Refuse to put a record of `stage` in the place of another script's.

    Raises:
        UserError: if the metrics.json in `folder` says that it is of another.
    """
    try:
        there = read_metrics(folder).get("stage", stage)
    except UserError:  # a damaged one is nobody's
        return
    if there != stage:
        raise UserError(f"{folder} holds what {there} left, which this would replace; give another folder or --name.")


WRITE_AGAIN = "run the script that writes it again"


def read_metrics(folder: Path, mend: str = WRITE_AGAIN) -> dict[str, Any]:
    """The numbers of a complete run.

    Raises:
        UserError: if they are missing or damaged.
    """
    path = folder / "metrics.json"
    record = files.read_json(path, mend)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{path} is no record of a run; {mend}.")
    return record


def read_log(path: Path, mend: str = WRITE_AGAIN) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl.

    Raises:
        UserError: if they are missing or damaged.
    """
    lines = files.read_json(path, mend, lines=True)
    with files.whole(path, mend):
        if not lines or [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
            raise ValueError("its epochs do not follow one another")
        if not all(isinstance(value, int | float | str) for line in lines for value in line.values()):
            raise ValueError("a line holds more than numbers")
    return lines


def weights_sha256(network: nn.Module) -> str:
    """The SHA-256 of a network's weights, wherever it was trained and is kept."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()


def checkpoint_sha256(results: Path, *names: str) -> dict[str, str]:
    """The SHA-256 of checkpoints in `results`, by their path in it."""
    return {f"{name}/checkpoint.pt": files.sha256(Path(results) / name / "checkpoint.pt") for name in names}


def load_checkpoint(path: Path, stage: str, mend: str | None = None) -> dict[str, Any]:
    """Load the checkpoint of a stage, and check that it is one.

    Raises:
        UserError: if it is missing, damaged, of another stage or of another version; the sentence names the script to run.
    """
    mend = mend or f"run {command_of(stage)}"
    checkpoint = files.load_file(path, mend)
    kinds = {"stage": str, "version": int, "config": dict, "networks": dict, "epoch": int}
    if not all(isinstance(checkpoint.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} is no checkpoint of this project; {mend}.")
    if checkpoint["stage"] != stage:
        raise UserError(f"{path} is a checkpoint of {checkpoint['stage'][:100]!r}, not of {stage!r}; {mend}.")
    if checkpoint["version"] != CHECKPOINT_VERSION:
        raise UserError(f"{path} has version {checkpoint['version']}, not {CHECKPOINT_VERSION}; {mend}.")
    if not all(isinstance(state, dict) for state in checkpoint["networks"].values()):
        raise UserError(f"{path} holds no weights; {mend}.")
    return checkpoint


def load_network(build: Callable[[], nn.Module], state: dict[str, Tensor], path: Path) -> nn.Module:
    """What `build` makes, with these weights. Its size comes from an untrusted file: it is made only when they fit it.

    Raises:
        UserError: if they do not fit, with the first reason.
        ValueError: if there is no such network.
    """
    try:
        with torch.device("meta"):  # no memory is taken
            sketch = build()
    except RuntimeError as error:
        raise ValueError(f"no such network: {error}") from error
    _refuse_misfits(sketch, state, path)
    network = build()
    load_weights(network, state, path)
    return network


def load_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights with strict keys, shapes and types, all of them finite.

    Raises:
        UserError: if they do not fit, with the first reason.
    """
    _refuse_misfits(network, state, path)
    if not finite(state):
        raise UserError(f"the weights in {path} are not finite; train it again.")
    network.load_state_dict(state)


def _refuse_misfits(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    reasons = [f"{name} is missing" for name in own if not isinstance(state.get(name), Tensor)]
    reasons += [f"{name!r} is unknown" for name in state if name not in own]
    for name, value in own.items() if not reasons else ():
        if state[name].shape != value.shape:
            reasons.append(f"size mismatch of {name}: {list(state[name].shape)}, not {list(value.shape)}")
        elif state[name].dtype != value.dtype:
            reasons.append(f"{name} is {state[name].dtype}, not {value.dtype}")
    if reasons:
        kind = type(network).__name__
        raise UserError(f"the weights in {path} do not fit {kind} ({reasons[0][:200]}); train it again.")


def finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


def _fits(optimiser: torch.optim.Optimizer) -> bool:
    """Whether what an optimiser loaded has the shapes of its parameters, and is finite."""
    return all(
        value.isfinite().all() and value.shape in ((), parameter.shape)
        for parameter, state in optimiser.state.items()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def versions() -> dict[str, str]:
    import torchvision  # which takes as long as PyTorch itself, and the translator's command does without

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
    }


def revision() -> str | None:
    """The commit of this code, with `+` behind it if the code was changed since; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
