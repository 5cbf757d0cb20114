"""What the tests share: tiny headers of every stage, and one chain of all four, run through its real command lines."""

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
    "train_vggish.py": ("--dataset", "handwritten", "--width", "4", "--epochs", "2", "--learning-rate", "1e-3", *TINY),
    "mnist_classify_train.py": ("--dataset", "handwritten", "--epochs", "1", "--judge-epochs", "1", *TINY),
    "emnist_dcgan.py": ("--dataset", "printed", "--width", "4", "--epochs", "1", *TINY),
    "train_all.py": ("--epochs", "2", "--sound-consistency", "1", *TINY),
}


def script(name: str, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a stage as a user does; `launcher` stands between Python and the script."""
    environment = {**os.environ, "LISTEN_DATA": "/nonexistent", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / name), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder that the four scripts left. Read it only; `results` is a copy to write into."""
    results = tmp_path_factory.mktemp("chain") / "results"
    for name, flags in CHAIN.items():
        done = script(name, *flags, "--results", str(results))
        assert done.returncode == 0, done.stderr
    return results


@pytest.fixture
def results(chain: Path, tmp_path: Path) -> Path:
    """A writable copy of the finished chain."""
    return Path(shutil.copytree(chain, tmp_path / "results"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny networks gain nothing from threads, and bit-equality must not depend on how many there are."""
    torch.set_num_threads(1)
