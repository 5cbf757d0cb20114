"""The engine for many machines: a trial is a task of Ray. docs/cluster.md says how to start it."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.cli import as_user_errors
from common.files import UserError
from common.locks import FolderLocked, lock_folder, unlock_folder
from evaluation.sweep import Result, Trial, Work

RETRIES = 10  # after the death of a worker or its machine
# Seconds to wait for the lock of a dead worker, and for files that a network file system shows
# late.
PATIENCE = 120
KEPT = ("LISTEN_PRECISION",)  # environment variables that decide what is computed


@contextmanager
def ray_cluster(address: str | None, device: str) -> Iterator[list[str]]:
    """Connect to a Ray cluster until the block ends; yields the device of each task.

    Args:
        address: `host:port` of the head, or `auto`. None: $RAY_ADDRESS, else the cluster that runs
            on this machine; without one, Ray is started here.
        device: `auto` (a GPU for each task if the cluster has any), cpu or cuda.

    Raises:
        UserError: if Ray is not installed, nothing answers at the address, or no machine of the
            cluster has such a device.
    """
    # Ray reads these when it is imported. After a lack of memory it would try without end.
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "Ray is not installed; run `pip install -r requirements-cluster.txt`, or use --engine "
            "local."
        ) from error
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is not for --engine ray; give auto, cpu or cuda.")
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", "local"):
        _require_answer(address)
    # Ray gives one thread to a task. The number of threads decides the last bits of each number.
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    paths = str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    variables |= {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        ray.init(address, runtime_env={"env_vars": variables}, logging_level="warning")
    except (Exception, SystemExit) as error:
        raise UserError(
            f"no Ray cluster can be used at {address or 'this machine'} "
            f"({' '.join(str(error).split())[:200].rstrip('.')}); start one by `ray start --head`, "
            "and set RAY_AUTH_MODE here as there."
        ) from error
    try:
        gpus = _most(ray, "GPU")
        if device == "cuda" and not gpus:
            raise UserError(
                "no machine of the Ray cluster has a GPU; give --device cpu, or add one by `ray "
                "start --address`."
            )
        yield ["cpu" if device == "cpu" or not gpus else "cuda"]
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address at which nothing answers. Ray would try for two minutes, and end the
    process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"nothing answers at --address {address} ({error}); give host:port of a machine where "
            "`ray start --head` was run, or auto."
        ) from error


def _most(ray: Any, resource: str) -> int:
    """How many CPUs or GPUs the machine has that has the most of them."""
    return int(max((node["Resources"].get(resource, 0) for node in ray.nodes()), default=0))


def run_ray(
    run: Work, trials: Sequence[Trial], devices: Sequence[str], root: Path
) -> Iterator[Result]:
    """Run each trial as a task of the connected Ray cluster, and yield each result when it is
    there; the arguments are those of `run_local`.

    A task takes a GPU, or on CPUs as many as it has threads. Ray runs it again, up to RETRIES
    times, if its worker or its machine dies."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]

    threads = max(1, min(torch.get_num_threads(), _most(ray, "CPU")))
    needs = {"num_gpus": 1} if devices[0] == "cuda" else {"num_cpus": threads}
    task = ray.remote(max_retries=RETRIES, **needs)(run_task)
    shared, some = ray.put(run), next(root.glob("*/settings.json"), root)
    running = {}
    for trial in trials:
        own = trial.folder.parent / "settings.json"
        witness = own if own.is_file() else some
        running[task.remote(shared, trial, devices[0], witness)] = trial
    while running:
        (done,), _ = ray.wait(list(running))
        trial, error = running.pop(done), ""
        try:
            _, error = ray.get(done)
        except RayTaskError:  # a mistake in the code
            raise
        except RayError as problem:
            reason = " ".join(str(problem).split()).partition(". ")[0][:200]
            error = f"its task ended {RETRIES + 1} times ({reason}); see {trial.folder}/output.txt."
        if not error and not wait_for(lambda trial=trial: trial.finished):
            error = f"{trial.record} is not seen here; share the results folder."
        yield trial, error


def run_task(run: Work, trial: Trial, device: str, witness: Path) -> Result:
    """Run a trial on the machine of a task, when a dead worker has released its lock.

    `witness` is a file that the command wrote; each machine must see it."""
    try:
        with as_user_errors():
            if not wait_for(witness.exists):
                raise UserError(
                    f"{socket.gethostname()} does not see {witness}; share the results folder with "
                    "every machine, under one path."
                )
            wait_for(lambda: can_lock(trial.folder))
            lock_folder(trial.folder)
            return (trial, "") if trial.finished else run(trial, device)
    except UserError as error:
        return trial, str(error)
    finally:
        unlock_folder(trial.folder)


def can_lock(folder: Path) -> bool:
    """Lock a folder, unless another process has locked it; returns whether it is locked."""
    try:
        lock_folder(folder)
    except FolderLocked:
        return False
    return True


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds, PATIENCE seconds at most; returns whether it holds."""
    end = time.monotonic() + PATIENCE
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(1)
    return holds
