"""What the tests share: tiny headers of every stage, and one chain of all four, run through its
real command lines."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TINY = ("--images-per-epoch", "96", "--batch", "32", "--device", "cpu")
CHAIN = {  # script -> its flags, in the order of the stages
    "train_vggish.py": (
        "--dataset",
        "handwritten",
        "--width",
        "4",
        "--epochs",
        "2",
        "--learning-rate",
        "1e-3",
        *TINY,
    ),
    "mnist_classify_train.py": (
        "--dataset",
        "handwritten",
        "--epochs",
        "1",
        "--judge-epochs",
        "1",
        *TINY,
    ),
    "emnist_dcgan.py": ("--dataset", "printed", "--width", "4", "--epochs", "1", *TINY),
    "train_all.py": ("--epochs", "2", "--sound-consistency", "1", *TINY),
}


def pytest_configure(config: pytest.Config) -> None:
    """One thread for every process that starts after this, pytest-xdist's and the scripts: two of
    two threads each wait for one another in the BLAS of NumPy, where a product that takes half a
    second alone took seventeen.

    And no GPU but for `-m gpu`: where there is one, PyTorch starts a thread for it at the first
    gradient, even on the CPU, and no process forked after that can compute another."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def script(
    name: str, *flags: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a stage as a user does; `launcher` stands between Python and the script."""
    environment = {**os.environ, "LISTEN_DATA": "/nonexistent"}
    command = [sys.executable, *launcher, str(ROOT / name), *flags]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder that the four scripts left. Read it only; `results` is a copy to write
    into.

    The processes of pytest-xdist share it: who asks first makes it, who asks meanwhile waits.
    """
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


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny networks gain nothing from threads, and bit-equality must not depend on how many there
    are."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
