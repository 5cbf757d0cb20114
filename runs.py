"""What the stages share of running: the command line, the device, and the folder that a run leaves behind.

A run lives in `results/<name>/`:
    checkpoint.pt   the best epoch's networks, which later stages load; a plain dict, loaded with `weights_only=True`
    last.pt         the last epoch's networks and optimisers, for `--resume`; removed when the run is complete
    log.jsonl       one JSON line an epoch, from which the curves are drawn
    metrics.json    the numbers at the end, with configuration, seed, machine, versions; present when the run is complete
Every file is written beside its place and then moved there, so none is ever half-written.
"""

import atexit
import dataclasses
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchvision
import tyro
from torch import Tensor, nn
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKPOINT_VERSION = 1
# What may differ between a run and its `--resume`: where things are, not what is computed.
PLACES = ("resume", "results", "data_root", "device")


class UserError(Exception):
    """A user's mistake. Its message is one sentence that says what is wrong, where, and what mends it."""


class Held(UserError):  # noqa: N818
    """Another process writes into the folder."""


def command_line(config_type: type, main: Callable[[Any], Any], description: str | None, default: Any = None) -> None:
    """Read the header `config_type`, starting from `default`, and run `main` with it. A user's mistake ends with one
    sentence and exit code 2; Ctrl-C, with what it lost and exit code 130."""
    try:
        try:
            config = tyro.cli(config_type, description=description, default=default or config_type())
        except ValueError as error:  # an impossible encoding; of a nested one tyro says it in its own words, with code 2 too
            raise UserError(str(error)) from error
        main(config)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        resumes = "resume" in {field.name for field in dataclasses.fields(config_type)}
        mend = "with --resume goes on behind the last finished epoch" if resumes else "starts again"
        print(f"\nStopped. The same command {mend}.", file=sys.stderr)
        sys.exit(130)


def choose_device(name: str) -> torch.device:
    """`auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:1`; prints what was chosen, and why. Each process of torchrun
    takes the GPU of its number."""
    gpu = torch.cuda.is_available()
    if launched() > 1 and name in ("auto", "cuda") and (gpu or name == "cuda"):
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
    join(device)
    torch.set_flush_denormal(True)  # on the CPU, a network whose activations fade to denormals trains ten times slower
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change; what is drawn is seeded, but cuDNN's sums may differ
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32: what is rounded is rounded to bfloat16, by autocast
    shared = f", one of {processes()} processes" if processes() > 1 else ""
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
    torch.manual_seed(seed * 1_000_003 + epoch + 1000 * rank())
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + 500_000)


def batches(
    total: int, batch: int, generator: torch.Generator, device: torch.device, take: int | None = None, title: str = ""
) -> Iterator[Tensor]:
    """The indices of one epoch, `(batch,)` int64 each: a random order of `total`, of which the first `take` are used. The
    last, smaller batch is left out, unless it is the only one. With a progress bar when on a terminal. Of several processes
    each gets an equal share of every batch."""
    if batch % processes():
        raise UserError(f"--batch {batch} cannot be shared equally by {processes()} processes; give a multiple of it.")
    order = torch.randperm(total, generator=generator)[:take].to(device)
    used = order[: max(len(order) - len(order) % batch, min(len(order) - len(order) % processes(), batch))]
    for together in progress(used.split(batch), title):
        yield together[rank() :: processes()]


def progress(items: Iterable, title: str) -> Iterable:
    return tqdm(items, desc=title, leave=False, disable=not sys.stderr.isatty() or rank() > 0)


def step(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One step downhill; of several processes, along the mean of their gradients, so that their networks stay alike."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if processes() > 1:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients]) / processes()
        dist.all_reduce(together)
        for gradient, mean in zip(gradients, together.split([len(g.flatten()) for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))
    optimiser.step()


# -- several processes: torchrun --nproc-per-node 4 train_vggish.py -----------------------------------------------------
# Each holds the whole data set, takes its share of every batch, and steps along the mean gradient of all: the weights stay
# alike. Each also validates, which costs no time; process 0 alone writes and prints. As is usual, BatchNorm takes the
# statistics of a share.


def launched() -> int:
    """How many processes torchrun has launched; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join(device: torch.device) -> None:
    """Meet the other processes of torchrun, if there are any, and fall silent if this is not process 0."""
    if launched() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
        if rank():
            sys.stdout = io.StringIO()


def rank() -> int:
    """The number of this process among those of torchrun; 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def meet() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def one_first() -> Iterator[None]:
    """Process 0 goes through alone, then the others: for downloads."""
    if rank():
        meet()
    yield
    if rank() == 0:
        meet()


class Mean:
    """Sums on the device, so that no step waits for the GPU; read once an epoch."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: Tensor) -> None:
        self.total, self.count = self.total + value.detach(), self.count + 1

    def read(self, what: str, epoch: int) -> float:
        if processes() > 1 and self.count:
            dist.all_reduce(self.total)
        mean = float(self.total) / max(self.count, 1) / processes()
        if not np.isfinite(mean):
            raise UserError(
                f"{what} is {mean} in epoch {epoch}: training diverged; lower the learning rate, and rerun with --resume "
                "from the last finished epoch or start again."
            )
        return mean


class Run:
    """The folder of one run, `<results>/<name>/`, and its record.

    Args:
        stage: the script's name, by which later stages know its checkpoint.
        config: the script's header, a dataclass with `results`, `seed` and `resume`.
        name: of the folder; the script's own if None.
        upstream: what the run takes from earlier stages, such as their encoding; part of the checkpoint's config.
    """

    def __init__(self, stage: str, config: Any, device: torch.device, name: str | None = None, **upstream: Any) -> None:
        self.stage, self.device, self.seed = stage, device, config.seed
        self.folder = Path(config.results) / (name or stage)
        self.config = {**plain(config), **upstream}
        self.history: list[dict] = []
        self.networks: dict[str, nn.Module] = {}
        self.started = time.perf_counter()
        hold(self.folder)
        probe(self.folder)
        self._last = None
        if config.resume and complete(self.folder):
            raise UserError(f"{self.folder} holds a complete run; leave out --resume to start a new one.")
        if config.resume:
            self._last = load_checkpoint(self.folder / "last.pt", stage, "leave out --resume to start from the beginning")
            then = self._last["config"]
            changed = changed_settings(then, self.config)
            if changed:
                raise UserError(
                    f"{self.folder}/last.pt was made with another {', '.join(changed)} "
                    f"({', '.join(f'{key}: {then.get(key)}' for key in changed)}); "
                    "set the header back, or leave out --resume to start from the beginning."
                )

    def restore(self, **parts: Any) -> int:
        """Take up `parts` (networks, optimisers, schedulers) where `--resume` says, and return the first epoch to run."""
        self.networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._state = {name: part for name, part in parts.items() if name not in self.networks}
        if self._last is None:
            self._begin()
            return 1
        for name, network in self.networks.items():
            load_weights(network, self._last["networks"][name], self.folder / "last.pt")
        for name, part in self._state.items():
            part.load_state_dict(self._last["state"][name])
        self.history = self._last["history"]
        print(f"resumed: {self.folder} behind epoch {self._last['epoch']}")
        return self._last["epoch"] + 1

    def _begin(self) -> None:
        """A new run takes the folder; a complete one that lies there is kept as `<name>.before`."""
        if rank():
            return
        if complete(self.folder):
            before = self.folder.with_name(self.folder.name + ".before")
            shutil.rmtree(before, ignore_errors=True)
            os.replace(self.folder, before)
            self.folder.mkdir()
            print(f"the run that was complete in {self.folder} is kept in {before}")
        for leftover in self.folder.iterdir():
            if leftover.is_file():
                leftover.unlink()

    def end_epoch(self, record: dict[str, float], best: bool) -> None:
        """Record a finished epoch; if `best`, make its networks the ones that later stages load."""
        now = time.perf_counter()
        record = {**record, "seconds": round(now - self.started, 3)}
        self.started = now
        self.history.append(record)
        if best:
            save(self.folder / "checkpoint.pt", self._checkpoint(record))
        state = {name: part.state_dict() for name, part in self._state.items()}
        save(self.folder / "last.pt", {**self._checkpoint(record), "state": state, "history": self.history})
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write(self.folder / "log.jsonl", lambda path: path.write_text(lines))
        shown = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        print(shown, flush=True)
        meet()  # what process 0 wrote, all may read

    def load_best(self) -> int:
        """Load the best epoch's networks, and return that epoch."""
        checkpoint = load_checkpoint(self.folder / "checkpoint.pt", self.stage)
        for name, network in self.networks.items():
            load_weights(network, checkpoint["networks"][name], self.folder / "checkpoint.pt")
        return checkpoint["epoch"]

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the numbers at the end, into the checkpoint too."""
        checkpoint = load_checkpoint(self.folder / "checkpoint.pt", self.stage)
        metrics = {**metrics, "seconds": round(sum(line["seconds"] for line in self.history), 3)}
        save(self.folder / "checkpoint.pt", {**checkpoint, "metrics": metrics})
        record = {
            "stage": self.stage,
            **metrics,
            "epoch": checkpoint["epoch"],
            "machine": f"{device_name(self.device)}, {precision(self.device)}",
            **{key: checkpoint[key] for key in ("seed", "revision", "versions", "config")},
        }
        write(self.folder / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
        if rank() == 0:
            (self.folder / "last.pt").unlink(missing_ok=True)
        release(self.folder)
        meet()  # the run is complete for all of them, or for none

    def _checkpoint(self, record: dict[str, float]) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": CHECKPOINT_VERSION,
            "config": self.config,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "epoch": record["epoch"],
            "metrics": record,
            "seed": self.seed,
            "revision": revision(),
            "versions": versions(),
        }


def changed_settings(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of the settings that differ, but for where things are."""
    return sorted(key for key in then.keys() | now.keys() if key not in PLACES and then.get(key) != now.get(key))


def plain(config: Any) -> dict[str, Any]:
    """A header as JSON knows it, which is how checkpoints and metrics.json keep it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def complete(folder: Path) -> bool:
    """Whether the run in `folder` was finished."""
    return (folder / "metrics.json").is_file()


def read_metrics(folder: Path) -> dict[str, Any]:
    """The numbers of a complete run."""
    try:
        return json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/metrics.json is missing or damaged; run {folder.name}.py again.") from error


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    write(path, lambda beside: torch.save(checkpoint, beside))


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Have `writer` write a file beside `path`, with the same suffix, then move it there. Of several processes, process 0
    does."""
    if rank():
        return
    with _said(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
        os.close(handle)
        try:
            writer(Path(name))
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner reads
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        if isinstance(error, RuntimeError) and "write" not in str(error).lower() and "file" not in str(error).lower():
            raise
        raise UserError(
            f"{path} cannot be written ({error}); free or unlock the folder, or give another with --results."
        ) from error


def probe(folder: Path) -> None:
    """Refuse a folder that cannot be written before hours of work, not after."""
    with _said(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


_held: dict[tuple[int, Path], int] = {}  # process and lock file -> its descriptor; a forked child holds nothing


def hold(folder: Path) -> None:
    """Keep other processes out of `folder` until `release`, or until this process ends, however it ends: the lock is the
    operating system's, on a file beside the folder, so none is left over. Twice in one process is as good as once.

    Raises:
        Held: if another process holds it; the sentence says who, and since when.
    """
    if rank():  # process 0 holds it for all
        return
    lock = _lock_of(folder)
    while (os.getpid(), lock) not in _held:
        with _said(Path(folder)):
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.read(descriptor, 1000).decode(errors="replace") or "another process"  # which has not written yet
            os.close(descriptor)
            raise Held(f"{folder} is in use by {who}; wait until it ends, or give another --results or --name.") from error
        except OSError as error:  # some network file systems
            os.close(descriptor)
            lock.unlink(missing_ok=True)
            print(f"{folder} cannot be held ({error}); let no other run write into it.", file=sys.stderr)
            return
        if not _is_same_file(descriptor, lock):  # its holder removed it after we opened it
            os.close(descriptor)
            continue
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        _held[os.getpid(), lock] = descriptor


def release(folder: Path) -> None:
    """Let other processes into `folder` again."""
    _release(os.getpid(), _lock_of(folder))


def _release(process: int, lock: Path) -> None:
    descriptor = _held.pop((process, lock), None)
    if descriptor is not None:
        if process == os.getpid() and _is_same_file(descriptor, lock):
            lock.unlink()  # still locked, so that nobody else's is meant
        os.close(descriptor)


@atexit.register
def _release_all() -> None:
    for process, lock in list(_held):
        _release(process, lock)


def _lock_of(folder: Path) -> Path:
    folder = Path(folder).resolve()
    return folder.with_name(f".{folder.name}.lock")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def load_file(path: Path, mend: str) -> dict[str, Any]:
    """Load a dict of tensors and plain values from `path`; nothing in it is ever executed.

    Raises:
        UserError: if it is missing or damaged, with `mend` as the way out.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is missing; {mend}.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises any of a dozen types
        raise UserError(f"{path} is damaged or no checkpoint; {mend}.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is no checkpoint; {mend}.")
    return loaded


def load_checkpoint(path: Path, stage: str, mend: str | None = None) -> dict[str, Any]:
    """Load the checkpoint of a stage, and check that it is one.

    Raises:
        UserError: if it is missing, damaged, of another stage or of another version; the sentence names the script to run.
    """
    mend = mend or f"run {stage}.py"
    checkpoint = load_file(Path(path), mend)
    if not {"stage", "version", "config", "networks", "epoch"} <= checkpoint.keys():
        raise UserError(f"{path} is no checkpoint of this project; {mend}.")
    if checkpoint["stage"] != stage:
        raise UserError(f"{path} is a checkpoint of {checkpoint['stage']}.py; {mend}.")
    if checkpoint["version"] != CHECKPOINT_VERSION:
        raise UserError(f"{path} has version {checkpoint['version']}, not {CHECKPOINT_VERSION}; {mend}.")
    return checkpoint


def load_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights with strict keys and shapes, all of them finite.

    Raises:
        UserError: if they do not fit, with the first reason.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise UserError(f"the weights in {path} do not fit {type(network).__name__} ({reason}); train it again.") from error
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise UserError(f"the weights in {path} are not finite; train it again.")


def versions() -> dict[str, str]:
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
