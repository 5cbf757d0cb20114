"""The README's pictures, drawn by the real command line from the tiny chain."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torchvision.utils import save_image

import mnist_classify_train
import train_all
from data import Digits
from ims import draw
from training.figures import save_grid

NAMES = {"overview", "imagined", "refine_steps", "epochs", "samples", "soundscapes", "photo"}


@pytest.fixture(scope="module")
def drawn(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pictures. Read it only."""
    out = tmp_path_factory.mktemp("ims")
    flags = (
        "--results",
        str(chain),
        "--published",
        "train_all",
        "--out",
        str(out),
        "--refine-steps",
        "2",
    )
    command = [sys.executable, "-m", "ims.draw", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_a_grid_is_torchvisions_in_grey(tmp_path: Path) -> None:
    images = torch.randint(0, 511, (7, 1, 8, 8)) / 255 - 1  # half levels, too
    save_grid(tmp_path / "ours.png", images, columns=4)
    save_image(images, tmp_path / "theirs.png", nrow=4, value_range=(-1, 1), normalize=True)
    with Image.open(tmp_path / "ours.png") as ours, Image.open(tmp_path / "theirs.png") as theirs:
        assert (ours.mode, theirs.mode) == ("L", "RGB")
        assert np.array_equal(ours, theirs.convert("L"))


def test_every_picture_is_drawn_and_none_is_larger_than_the_readme_may_carry(drawn: Path) -> None:
    paths = list(drawn.iterdir())
    assert {path.stem for path in paths} >= NAMES - {
        "refine_steps"
    }  # which is left out where nothing changed
    for path in paths:
        with Image.open(path) as picture:
            assert np.ptp(np.asarray(picture.convert("L"), float)) > 100, (
                f"{path.name} shows nothing"
            )
        assert path.stat().st_size < 300_000


def test_the_readings_that_second_thoughts_change_are_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge reads a drawing by its brightness. Of the threes one changes for better, of the
    fives one for worse and a later one for better, a seven stays wrong, a one stays right; a nine
    changes from one wrong digit to another."""
    labels = torch.tensor([3, 5, 1, 5, 7, 9, 3])
    first, second = torch.tensor([8, 5, 1, 6, 2, 4, 3]), torch.tensor([3, 6, 1, 5, 2, 7, 3])

    def brightness(digits: torch.Tensor) -> torch.Tensor:
        return (digits / 10.0)[:, None, None, None].expand(-1, 1, 64, 64)

    rows: list[torch.Tensor] = []
    monkeypatch.setattr(
        mnist_classify_train,
        "load_judge",
        lambda *_: lambda x: torch.eye(10)[(10 * x[:, 0, 0, 0]).round().long()],
    )
    monkeypatch.setattr(train_all, "load_second_thoughts", lambda *_: "again")
    monkeypatch.setattr(
        train_all, "imagine", lambda *_, refiner: (brightness(second if refiner else first), 0.0)
    )
    monkeypatch.setattr(figures, "save_rows", lambda path, titles, images: rows.extend(images))
    digits = Digits(torch.zeros(7, 28, 28, dtype=torch.uint8), labels)
    draw.draw_second_thoughts(
        draw.Config(), Path("unwritten.png"), (None, None, None, "mnist"), digits
    )
    said = "the judge reads 4 of 7 as another digit: 2 for better, 1 for worse, 1 still wrong"
    assert said in capsys.readouterr().out
    heard, before, after = rows
    assert len(heard) == 3
    torch.testing.assert_close(before, brightness(first[[0, 1, 5]]))
    torch.testing.assert_close(after, brightness(second[[0, 1, 5]]))


def test_a_large_picture_is_copied_in_fewer_colours(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    draw.copy_small(tmp_path / "noise.png", tmp_path / "same.png", most=1_000_000)
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "noise.png").read_bytes()
    draw.copy_small(tmp_path / "noise.png", tmp_path / "small.png", most=150_000)
    assert (tmp_path / "small.png").stat().st_size <= 150_000
    with Image.open(tmp_path / "small.png") as small:
        assert len(small.getcolors()) in (32, 64, 128)


def test_a_missing_run_is_told_in_a_sentence(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "train_all", tmp_path / "train_all")
    command = [
        sys.executable,
        "-m",
        "ims.draw",
        "--results",
        str(tmp_path),
        "--out",
        str(tmp_path / "ims"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "train_all_published" in done.stderr and len(done.stderr.splitlines()) == 1
