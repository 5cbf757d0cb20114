"""The README's pictures, drawn by the real command line from the tiny chain."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import data
import mnist_classify_train
import train_all
from ims import draw

NAMES = {"overview", "imagined", "second_thoughts", "epochs", "samples", "soundscapes", "photo"}


@pytest.fixture(scope="module")
def drawn(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the pictures, and what was printed. Read it only."""
    out = tmp_path_factory.mktemp("ims")
    flags = ("--results", str(chain), "--published", "train_all", "--out", str(out), "--second-thoughts", "2")
    command = [sys.executable, "-m", "ims.draw", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_picture_is_drawn_and_none_is_larger_than_the_readme_may_carry(drawn: tuple[Path, str]) -> None:
    paths = list(drawn[0].iterdir())
    assert {path.stem for path in paths} >= NAMES - {"second_thoughts"}  # which is left out where nothing changed
    for path in paths:
        with Image.open(path) as picture:
            assert np.ptp(np.asarray(picture.convert("L"), float)) > 100, f"{path.name} shows nothing"
        assert path.stat().st_size < 300_000


def test_the_readings_that_second_thoughts_change_are_counted(drawn: tuple[Path, str], chain: Path) -> None:
    ear, network, generator, dataset = train_all.load_model(chain / "train_all" / "checkpoint.pt")
    test = data.load_heard(dataset, "test", Path(), "cpu")
    judge = mnist_classify_train.load_judge(chain, dataset, torch.device("cpu"))
    config = draw.Config(results=chain, second_thoughts=2)
    again = train_all.load_second_thoughts(config, ear, generator, dataset, torch.device("cpu"))
    with torch.no_grad():
        first, second = (
            judge(train_all.imagine(ear, network, generator, test, think_again=thought)[0]).argmax(1).tolist()
            for thought in (None, again)
        )
    triples = [(a, b, y) for a, b, y in zip(first, second, test.labels.tolist(), strict=True) if a != b]
    counts = [len(triples), len(test.labels)]
    counts += [sum(b == y for a, b, y in triples), sum(a == y for a, b, y in triples)]
    counts += [sum(y not in (a, b) for a, b, y in triples)]
    assert [int(number) for number in re.findall(r"\d+", drawn[1])] == counts
    assert (drawn[0] / "second_thoughts.png").exists() == bool(triples)


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
    command = [sys.executable, "-m", "ims.draw", "--results", str(tmp_path), "--out", str(tmp_path / "ims")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "train_all_published" in done.stderr and len(done.stderr.splitlines()) == 1
