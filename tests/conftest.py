"""What the tests share: tiny settings of every stage, and one chain of all four stages, run through
their real command lines."""

import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import data
from common.cli import parse
from data import Digits
from data.synthetic import load_handwritten
from training.run import Run

ROOT = Path(__file__).parent.parent
TINY = ("--images-per-epoch", "96", "--batch", "32", "--device", "cpu")
CHAIN = {  # script -> its preset and flags, in the order of the stages
    "train_vggish.py": ("demo", "--width", "4", "--epochs", "2", *TINY),
    "mnist_classify_train.py": (
        "demo", "--epochs", "1", "--cnn-epochs", "1", "--vit-epochs", "1",
        "--kernel-centres", "50", *TINY,
    ),
    "emnist_dcgan.py": ("demo", "--width", "4", "--epochs", "1", *TINY),
    "train_all.py": ("demo", "--epochs", "2", "--sound-consistency", "1", *TINY),
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Give one thread to every process that starts after this, pytest-xdist's and the scripts. With
    two threads each, two processes wait for one another in NumPy's BLAS: a product of half a second
    took seventeen.

    Hide the GPU, except for `-m gpu`. PyTorch starts a thread for a GPU at the first gradient, even
    on the CPU, and no process forked after that can compute another gradient."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def script(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does, without any downloaded data."""
    environment = {**os.environ, "LISTEN_DATA": "/nonexistent"}
    return subprocess.run(
        [sys.executable, str(ROOT / name), *flags],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip


def header(stage: ModuleType, results: Path, **changes: Any) -> Any:
    """The settings of the chain's command line for a stage's module, with `changes`."""
    preset, *flags = CHAIN[f"{stage.__name__}.py"]
    settings = parse(stage.Config, stage.PRESETS[preset], flags, "")
    return dataclasses.replace(settings, results=results, **changes)


def weights(run: Path) -> dict[str, Tensor]:
    """The weights in the checkpoint of a run's folder, by the name `<network>.<weight>`."""
    networks = torch.load(run / "checkpoint.pt", weights_only=True)["networks"]
    return {
        f"{name}.{key}": value for name, state in networks.items() for key, value in state.items()
    }


def assert_equal_weights(run: Path, other: Path) -> None:
    """Both runs' checkpoints hold the same weights, bit for bit."""
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder that the four scripts left. It is read only; `results` is a writable copy.

    The processes of pytest-xdist share it. The first one makes it, and the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "chain"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            shutil.rmtree(folder / "results", ignore_errors=True)
            for name, flags in CHAIN.items():
                done = script(name, *flags, "--results", str(folder / "results"))
                assert done.returncode == 0, done.stderr
            (folder / "finished").touch()
    return folder / "results"


@pytest.fixture
def results(chain: Path, tmp_path: Path) -> Path:
    """A writable copy of the finished chain."""
    return Path(shutil.copytree(chain, tmp_path / "results"))


@cache
def sixty_handwritten(part: data.Part, root: Path) -> Digits:
    count = None if part == "train" else 60
    return Digits(*(tensor[:count] for tensor in load_handwritten(part)))


@pytest.fixture
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep sixty digits to validate and to test, and load them once, which is quicker."""

    entry = data.DATASETS["handwritten"]._replace(load=sixty_handwritten)
    monkeypatch.setitem(data.DATASETS, "handwritten", entry)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves: Matplotlib takes longer than a tiny run."""
    monkeypatch.setattr(Run, "_draw", lambda run: None)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread. Tiny networks gain nothing from more, and the bits must not depend on the
    number of threads."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
