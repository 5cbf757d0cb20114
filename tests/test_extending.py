"""The edits of docs/extending.md, made on a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from PIL import Image, ImageDraw

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
CURVE, DATA_SET, GAN_LOSS, GENERATOR = BLOCKS


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the source that may be edited."""
    folders = ("common", "data", "models", "training", "evaluation", "tools")
    for name in folders:
        shutil.copytree(
            ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("MNIST")
        )
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path / "copy")
    return tmp_path / "copy"


def run(copy: Path, *command: object) -> str:
    """Run a script of the copy; return what it printed."""
    environment = {**os.environ, "LISTEN_DATA": str(copy / "data")}
    environment.pop("PYTHONPATH", None)
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=copy, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def replace_text(path: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, lambda _: new, path.read_text(), count=1, flags=re.S | re.M)
    assert count == 1, f"{path} has no {pattern}"
    path.write_text(text)


def test_a_curve_is_one_entry(copy: Path, tmp_path: Path) -> None:
    replace_text(copy / "voice_translator.py", r'^(?=    "exponential": lambda)', CURVE)
    Image.linear_gradient("L").save(tmp_path / "photo.png")
    photo, sound = tmp_path / "photo.png", tmp_path / "photo.wav"
    run(copy, "voice_translator.py", photo, "-o", sound, "--curve", "quadratic")
    assert sound.stat().st_size > 16000


def test_a_folder_of_pictures_is_one_entry_and_trains_through_all_stages(copy: Path) -> None:
    replace_text(
        copy / "data" / "__init__.py",
        r"^(?=    # Your own pictures)",
        DATA_SET + "    # Your own\n",
    )
    for name in ("circle", "square", "cross"):
        folder = copy / "data" / "shapes" / name
        folder.mkdir(parents=True)
        for number in range(20):
            image = Image.new("L", (40, 40))
            box = (4 + number % 5, 6, 30 + number % 3, 34)
            pen = ImageDraw.Draw(image)
            if name == "circle":
                pen.ellipse(box, fill=255)
            elif name == "square":
                pen.rectangle(box, fill=200)
            else:
                pen.line(box, fill=255, width=5)
            image.save(folder / f"{number:03d}.png")
    tiny = ("--batch", "8", "--epochs", "1", "--device", "cpu")
    run(copy, "train_vggish.py", "--dataset", "shapes", "--width", "4", *tiny)
    judges = ("--cnn-epochs", "1", "--vit-epochs", "1")
    run(copy, "mnist_classify_train.py", "--dataset", "shapes", *judges, *tiny)
    run(copy, "emnist_dcgan.py", "--dataset", "shapes", "--width", "4", *tiny)
    run(copy, "train_all.py", "sound-consistent", "--joint-epochs", "1", *tiny)
    printed = run(copy, "evaluate.py", "--device", "cpu")
    assert "train_all_sound_consistent" in printed
    page = copy / "results" / "train_all_sound_consistent" / "evaluation" / "index.html"
    assert "square" in page.read_text()


def test_the_loss_of_the_gan_is_two_functions(copy: Path, chain: Path) -> None:
    replace_text(
        copy / "emnist_dcgan.py",
        r"^def discriminator_loss.*?(?=^def _cross_entropy)",
        GAN_LOSS + "\n\n",
    )
    train_gan(copy, chain)


def test_the_generator_is_one_file(copy: Path, chain: Path) -> None:
    replace_text(
        copy / "models" / "generator.py", r"^        self\.layers = .*?# fmt: skip\n", GENERATOR
    )
    results = train_gan(copy, chain)
    run(copy, "train_all.py", "--results", results, "--epochs", 1, *TINY)


def train_gan(copy: Path, chain: Path) -> Path:
    """Train the GAN of the copy on the other stages of the chain; return its results folder."""
    results = copy / "chain"
    for name in ("train_vggish", "mnist_classify_train", "judges"):
        shutil.copytree(chain / name, results / name)
    flags = ("--dataset", "printed", "--width", "4", "--epochs", 1)
    run(copy, "emnist_dcgan.py", "--results", results, *flags, *TINY)
    return results
