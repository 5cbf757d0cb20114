"""The pictures of the README, drawn by the real command line from the tiny chain."""

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

from data import Digits
from tools import draw_readme
from training.figures import save_grid

# refined.png is left out where no class changed.
NAMES = {"overview", "imagined", "epochs", "samples", "soundscapes", "photo"}


def draw(results: Path, out: Path) -> subprocess.CompletedProcess[str]:
    flags = ["--results", str(results), "--consistent", "train_all", "--out", str(out)]
    command = [sys.executable, "-m", "tools.draw_readme", *flags, "--refine-steps", "2"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_every_picture_is_drawn_and_is_small(chain: Path, tmp_path: Path) -> None:
    done = draw(chain, tmp_path)
    assert done.returncode == 0, done.stderr
    paths = list(tmp_path.iterdir())
    assert {path.stem for path in paths} >= NAMES
    for path in paths:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"), float)
        assert np.ptp(grey) > 100, f"{path.name} shows nothing"
        assert path.stat().st_size < draw_readme.LARGEST


def test_a_missing_run_is_an_error_in_one_sentence(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "emnist_dcgan", tmp_path / "emnist_dcgan")
    done = draw(tmp_path, tmp_path / "ims")
    assert done.returncode == 2
    assert "train_all" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_grid_equals_torchvisions_in_grey(tmp_path: Path) -> None:
    images = torch.randint(0, 511, (7, 1, 8, 8)) / 255 - 1  # half levels, too
    save_grid(tmp_path / "ours.png", images, columns=4)
    save_image(images, tmp_path / "theirs.png", nrow=4, value_range=(-1, 1), normalize=True)
    with Image.open(tmp_path / "ours.png") as ours, Image.open(tmp_path / "theirs.png") as theirs:
        assert (ours.mode, theirs.mode) == ("L", "RGB")
        assert np.array_equal(ours, theirs.convert("L"))


def test_changed_classes_are_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The judge reads the class from the brightness. A 3 changes for better, a 5 for worse, a later
    5 for better, and a 9 from wrong to wrong. A 7 stays wrong, a 1 and a 3 stay right."""
    labels = torch.tensor([3, 5, 1, 5, 7, 9, 3])
    first, second = torch.tensor([8, 5, 1, 6, 2, 4, 3]), torch.tensor([3, 6, 1, 5, 2, 7, 3])

    def brightness(digits: torch.Tensor) -> torch.Tensor:
        return (digits / 10.0)[:, None, None, None].expand(-1, 1, 64, 64)

    def judge(images: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[(10 * images[:, 0, 0, 0]).round().long()]

    def imagine(model: object, images: torch.Tensor, refiner: object) -> tuple:
        return brightness(second if refiner else first), 0.0

    class Listener:
        model, judges = None, {"cnn": judge}

        def __init__(self, *_: object, **__: object) -> None:
            self.refiner = lambda steps: "refiner"

    rows: list[torch.Tensor] = []
    monkeypatch.setattr(draw_readme, "Listener", Listener)
    monkeypatch.setattr(draw_readme, "imagine", imagine)
    monkeypatch.setattr(
        draw_readme, "save_labelled_rows", lambda path, titles, images: rows.extend(images)
    )
    digits = Digits(torch.zeros(7, 28, 28, dtype=torch.uint8), labels)
    draw_readme.draw_refined(draw_readme.Config(out=tmp_path), digits)
    line = "class of 4 of 7 images: 2 for better, 1 for worse, 1 from wrong to wrong"
    assert line in capsys.readouterr().out
    heard, before, after = rows
    assert len(heard) == 3
    torch.testing.assert_close(before, brightness(first[[0, 1, 5]]))
    torch.testing.assert_close(after, brightness(second[[0, 1, 5]]))


def test_a_large_picture_is_copied_in_fewer_colours(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    draw_readme.copy_small(tmp_path / "noise.png", tmp_path / "same.png", most=1_000_000)
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "noise.png").read_bytes()
    draw_readme.copy_small(tmp_path / "noise.png", tmp_path / "small.png", most=150_000)
    assert (tmp_path / "small.png").stat().st_size <= 150_000
    with Image.open(tmp_path / "small.png") as small:
        assert len(small.getcolors()) in (32, 64, 128)
