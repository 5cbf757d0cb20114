"""imagine.py, and the loaded run behind it and behind the app."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import imagine
from common.files import UserError
from data import load_digits
from data.resize import upsample
from evaluation.listener import Listener, as_digit, class_probabilities
from evaluation.metrics import correlation
from evaluation.rating import find_run
from models.late_blind import LateBlind


@pytest.fixture(scope="module")
def listener(chain: Path) -> Listener:
    return Listener(chain)


def test_own_pictures_are_heard_imagined_and_classified(
    chain: Path, tmp_path: Path, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits("handwritten", "test", tmp_path, "cpu").images[:2]
    for index, digit in enumerate(digits):
        Image.fromarray(digit.numpy()).save(tmp_path / f"{index}.png")
    output = tmp_path / "out" / "seen.png"
    numbers = imagine.main(
        imagine.Config((tmp_path / "0.png", tmp_path / "1.png"), output, results=chain)
    )
    record = json.loads(output.with_suffix(".json").read_text())
    assert record == {"run": str(chain / "train_all"), "pictures": numbers}
    made = listener.explain(digits[1:])
    assert numbers[1]["correlation"] == pytest.approx(made.correlations.item(), abs=1e-6)
    for name, shares in made.probabilities.items():
        reading = numbers[1]["readings"][name]
        assert reading["class"] == listener.classes[int(shares[0].argmax())]
        assert reading["probability"] == pytest.approx(shares.max().item(), abs=1e-6)
        assert sum(numbers[1]["probabilities"][name].values()) == pytest.approx(1, abs=1e-5)
    assert Image.open(output).width > 1000
    said = capsys.readouterr().out
    assert f"{chain / 'train_all'}, the newest complete run" in said and "1.png: " in said


def test_a_bright_picture_gets_a_hint(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (40, 30), 250).save(tmp_path / "paper.png")
    config = {"pictures": (tmp_path / "paper.png",), "output": tmp_path / "o.png", "results": chain}
    imagine.main(imagine.Config(**config))
    assert "perhaps add --negative" in capsys.readouterr().out
    imagine.main(imagine.Config(**config, negative=True))
    assert "perhaps" not in capsys.readouterr().out


def test_what_cannot_be_imagined_is_refused(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture is given"):
        imagine.main(imagine.Config(results=chain))
    (tmp_path / "no.png").write_text("text")
    with pytest.raises(UserError, match="no picture that Pillow reads"):
        imagine.main(imagine.Config((tmp_path / "no.png",), tmp_path / "o.png", results=chain))
    with pytest.raises(UserError, match="is one of the pictures"):
        imagine.main(imagine.Config((tmp_path / "no.png",), tmp_path / "no.png", results=chain))


def test_the_correlation_is_that_of_the_rating(listener: Listener) -> None:
    images = load_digits("handwritten", "test", Path(), "cpu").images[:5]
    made = listener.explain(images)
    torch.testing.assert_close(made.correlations, correlation(made.imagined, upsample(images)))
    assert not made.refined.any()
    assert listener.explain(images, 2).refined.any()  # a tiny network is not certain
    assert set(made.probabilities) == {"sound", "cnn", "vit", "kernel", "classifier"}


def test_the_judge_kernel_estimates_a_probability() -> None:
    shares = class_probabilities("kernel", torch.tensor([[0.6, -0.6, -1.0, -3.0]]))
    torch.testing.assert_close(shares, torch.tensor([[0.8, 0.2, 0, 0]]), atol=1e-5, rtol=0)


def test_a_picture_becomes_an_image_of_the_data_set() -> None:
    digit = load_digits("handwritten", "test", Path(), "cpu").images[0]
    assert torch.equal(as_digit(digit, centre=True), digit)
    assert torch.equal(as_digit(255 - digit, negative=True), digit)
    scan = torch.zeros(300, 500, dtype=torch.uint8)
    scan[40:140, 30:80] = 200  # a bar of 100 x 50 pixels near a corner
    centred = as_digit(scan, centre=True)
    bright = (centred > 100).nonzero()
    assert bright.amin(0).tolist() == [4, 9] and bright.amax(0).tolist() == [23, 18]
    assert not as_digit(torch.zeros(50, 50, dtype=torch.uint8), centre=True).any()


def test_a_run_copied_without_the_runs_before_it_is_imagined(
    chain: Path, tmp_path: Path, listener: Listener
) -> None:
    run = Path(shutil.copytree(chain / "train_all", tmp_path / "elsewhere" / "mine"))
    alone = Listener(run)
    images = load_digits("handwritten", "test", Path(), "cpu").images[:2]
    made = alone.explain(images)
    assert torch.equal(made.imagined, listener.explain(images).imagined)
    assert made.probabilities == {} and "train_vggish" in alone.missing
    with pytest.raises(UserError, match="was copied without train_vggish"):
        alone.explain(images, 1)


def test_a_run_or_a_results_folder_from_elsewhere_is_found(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_run(chain, tmp_path) == chain / "train_all"
    assert find_run(Path("train_all"), chain) == chain / "train_all"
    monkeypatch.chdir(chain)
    assert find_run(Path("train_all"), tmp_path) == Path("train_all")  # in the current folder
    assert find_run(Path("nowhere"), tmp_path) == tmp_path / "nowhere"


def test_the_model_takes_a_results_folder_and_numpy_arrays(chain: Path) -> None:
    model = LateBlind.load(chain)
    images = load_digits("handwritten", "test", Path(), "cpu").images[:3]
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(model(images.numpy()), expected)
        mirrored = np.ascontiguousarray(images.numpy()[:, :, ::-1])[:, :, ::-1]  # negative strides
        assert torch.equal(model(mirrored), expected)
        torch.testing.assert_close(model(images.numpy() / 255), expected, atol=0.05, rtol=0)
        for wrong in (images * 1.0, images.long(), images / torch.nan, images.numpy().astype("U3")):
            with pytest.raises((ValueError, TypeError), match="images|can't convert"):
                model(wrong)
    with pytest.raises(UserError, match="checkpoint.pt is missing"):
        LateBlind.load(chain / "judges")


def test_the_lines_of_the_documentation_run(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "library.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(chain.parent)  # the chain's folder is named results
    names = {"images": load_digits("handwritten", "test", Path(), "cpu").images[:3]}
    exec(code, names)
    with torch.no_grad():
        assert torch.equal(names["imagined"], names["model"](names["images"]))
    assert names["made"].imagined.shape == (3, 1, 64, 64)
