"""The controls of stage three: each is shown to find the straight_through that it looks for, and
none where there is none."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import script
from PIL import Image
from torch import Tensor

import train_all
from common.files import UserError
from data import Digits, load_digits, load_gan_images
from data.resize import upsample
from evaluation.controls import (
    Config,
    Model,
    main,
    most_similar,
    near_duplicates,
    one_box,
    other_encodings,
    out_of_distribution,
    shuffled_sounds,
    weighted_by_class,
)
from evaluation.metrics import correlation_matrix
from training.losses import audio_loss
from training.upstream import load_judge
from vggish import ImageToLogMel
from voice_translator import Encoding

NOWHERE = Path("/nonexistent")


class Faithful:
    """A model that draws just what sounds, by whatever encoding."""

    dataset = "handwritten"

    def imagine(self, images: Tensor, encoding: Encoding | None = None) -> tuple[Tensor, float]:
        return upsample(images), 0.0


class Leaking(Faithful):
    """A model that draws what stands at this place of the test set, whatever sounds."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def imagine(self, images: Tensor, encoding: Encoding | None = None) -> tuple[Tensor, float]:
        return upsample(self.images), 0.0


@pytest.fixture(scope="module")
def test() -> Digits:
    return load_digits("handwritten", "test", NOWHERE, "cpu")


@pytest.fixture
def judge(chain: Path) -> object:
    return load_judge(chain, "handwritten", torch.device("cpu"))


def test_the_command_leaves_its_numbers_and_its_pictures(results: Path) -> None:
    done = script("controls.py", "--results", str(results), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    record = json.loads((results / "controls" / "metrics.json").read_text())
    assert set(record["other_encodings"]) == {
        "high pitch at the bottom",
        "high pitch in the middle",
        "linear curve",
        "the negative",
    }
    for rating in (record["learned_encoding"], *record["other_encodings"].values()):
        assert 0 <= rating["judge_accuracy"] <= 1
        assert rating["sound_distance"] > 0
    known = json.loads((results / "train_all" / "metrics.json").read_text())
    assert record["learned_encoding"]["judge_accuracy"] == pytest.approx(
        known["judge_accuracy"], abs=0.01
    )
    assert (
        record["permuted_sounds"]["largest_change"] < 0.1
    )  # bfloat16 rounds by where in a batch a sound stands
    assert (
        record["twins"]["with"]["images"] + record["twins"]["without"]["images"]
        == record["twins"]["images"]
        == 360
    )
    assert (
        record["twins"]["with"]["images"] <= 10
    )  # printed digits are no copies of handwritten ones
    assert sum(record["twins"]["per_digit"]) == record["twins"]["with"]["images"]
    assert (
        f"\nwithout: read by the judge {record['twins']['without']['judge_accuracy']:.1%}, correlation"
        in done.stdout
    )
    assert set(record["never_heard"]) == {"printed letters", "simple shapes"}
    for name in ("twins", "unheard"):
        Image.open(results / "controls" / f"{name}.png").verify()
    assert "permuted sounds:" in done.stdout
    again = main(Config(results=results, device="cpu"))
    for name in ("learned_encoding", "other_encodings", "permuted_sounds", "twins", "never_heard"):
        assert record[name] == again[name]


def test_a_run_that_is_missing_is_named(results: Path) -> None:
    with pytest.raises(UserError, match="run train_all.py --name other"):
        main(Config(results=results, name="other", device="cpu"))
    assert not (results / "controls_other").exists()


def test_what_is_missing_or_in_the_way_is_told_before_anything_is_heard(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "imagine", lambda *_: pytest.fail("it was heard"))
    config = Config(results=results, device="cpu", data_root=Path())
    with monkeypatch.context() as without:
        without.setattr(
            controls, "load_memory_images", lambda *_: (_ for _ in ()).throw(UserError("no memory"))
        )
        with pytest.raises(UserError, match="no memory"):
            main(config)
    shutil.copytree(results / "train_all", results / "controls", dirs_exist_ok=True)
    with pytest.raises(
        UserError, match="controls holds what train_all left, which this would replace"
    ):
        main(config)


def test_other_encodings_differ_from_the_learned_one_and_last_as_long() -> None:
    for learned in (Encoding(), Encoding(curve="linear", pitch_position="bottom", negative=True)):
        others = other_encodings(learned)
        assert len(others) == 4
        assert len(set(others.values()) | {learned}) == 5
        for encoding in others.values():
            assert encoding.samples == learned.samples
            changed = [
                name
                for name, value in dataclasses.asdict(encoding).items()
                if value != dataclasses.asdict(learned)[name]
            ]
            assert len(changed) == 1


def test_second_thoughts_of_another_encoding_are_with_the_ear_that_was_learned(
    chain: Path, test: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(Config(results=chain, refine_steps=2), torch.device("cpu"))
    measured, ears = audio_loss, []

    def watched(ear: ImageToLogMel, imagined: Tensor, *said: object, **named: object) -> Tensor:
        if imagined.requires_grad:
            ears.append(ear)
        return measured(ear, imagined, *said, **named)

    monkeypatch.setattr(train_all, "sound_distance", watched)
    with_them, _ = model.imagine(test.images[:8], Encoding(pitch_position="bottom"))
    assert len(ears) == 2  # a step each
    assert all(ear is model.ear for ear in ears)
    model.refiner = None
    without, _ = model.imagine(test.images[:8], Encoding(pitch_position="bottom"))
    assert not with_them.equal(without)


def test_permuted_sounds_tell_a_model_that_hears_from_one_that_leaks(
    test: Digits, judge: object
) -> None:
    class Reader(torch.nn.Module):  # reads every real digit right
        def forward(self, images: Tensor) -> Tensor:
            same = correlation_matrix(images, upsample(test.images)).argmax(1)
            return torch.nn.functional.one_hot(test.labels[same], 10).float()

    drawn = upsample(test.images)
    hears = shuffled_sounds(Faithful(), Reader(), test, drawn, 0)
    assert hears["digit_of_the_sound"] > 0.99
    assert hears["digit_of_the_image"] < 0.01
    assert hears["largest_change"] == 0
    leaks = shuffled_sounds(Leaking(test.images), Reader(), test, drawn, 0)
    assert leaks["digit_of_the_image"] > 0.99
    assert leaks["largest_change"] > 1
    assert 250 < hears["images"] < 360  # a tenth of the pairs are of one digit


def rescaled(images: Tensor) -> Tensor:
    """Copies as another data set would have them: of another size, at another place, softer."""
    smaller = torch.nn.functional.interpolate(
        images[:, None].float(), (24, 24), mode="bilinear", antialias=True
    )
    return torch.nn.functional.pad(smaller[:, 0], (1, 3, 3, 1)).round().byte()


def test_one_box_undoes_place_and_size(test: Digits) -> None:
    boxed = one_box(test.images)
    torch.testing.assert_close(boxed.norm(dim=1), torch.ones(360))
    torch.testing.assert_close(boxed.sum(1), torch.zeros(360), atol=1e-4, rtol=0)
    shifted = one_box(test.images.roll((2, -1), (1, 2)))
    torch.testing.assert_close(boxed, shifted, atol=1e-5, rtol=0)
    copies = (boxed * one_box(rescaled(test.images))).sum(1)
    strangers = (boxed * boxed.roll(1, 0)).sum(1)
    assert copies.median() > 0.95 > 0.6 > strangers.median()


def test_one_box_is_the_crop_that_pillow_makes(test: Digits) -> None:
    for image, box in zip(test.images[:10], one_box(test.images[:10]), strict=True):
        array = image.numpy()
        rows, columns = np.nonzero(array > 63)
        crop = Image.fromarray(array).crop(
            (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        )
        stretched = np.asarray(crop.resize((20, 20), Image.Resampling.BILINEAR)).astype(float)
        assert np.corrcoef(stretched.flatten(), box.numpy())[0, 1] > 0.98


def test_most_similar_is_the_largest_correlation(test: Digits) -> None:
    one, other = one_box(test.images[:20]), one_box(test.images[100:130])
    best, where = most_similar(one, other)
    table = np.corrcoef(one.numpy(), other.numpy())[:20, 20:]
    np.testing.assert_allclose(best.numpy(), table.max(1), atol=1e-5)
    assert where.tolist() == table.argmax(1).tolist()


def test_twins_are_found_where_the_memory_holds_copies_only(
    test: Digits, judge: object, tmp_path: Path
) -> None:
    printed = load_gan_images("printed", "validation", NOWHERE, "cpu").images
    copied = torch.arange(0, 360, 6)
    drawn = upsample(test.images)
    for memory, least, most in (
        (printed, 0, 10),
        (torch.cat([printed, test.images[copied].roll((1, -2), (1, 2))]), 60, 70),
    ):
        found = near_duplicates(
            Faithful(), judge, test, drawn, memory, tmp_path / "twins.png", NOWHERE
        )
        assert least <= found["with"]["images"] <= most
        assert found["memory"] == len(memory)
        assert found["expected_by_chance"] == pytest.approx(
            0.001 * 360 * len(memory) / 1257
        )  # which are 1,257 unrelated
        assert found["share_nearer_by_chance"] == pytest.approx(len(memory) / (len(memory) + 1257))
        assert (found["share_nearer_in_memory"] > 60 / 360) == (least == 60)
    assert found["with"]["correlation"] == pytest.approx(1)
    assert found["without_alike"]["correlation"] == pytest.approx(1)


def test_digits_without_a_twin_are_weighed_as_those_with_are() -> None:
    labels = torch.tensor([1, 1, 1, 1, 3, 3, 3, 7])
    group = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1]).bool()  # a one, two threes, and the only seven
    values = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.2, 0.0])
    assert weighted_by_class(values, group, labels) == pytest.approx((1 * 0.5 + 2 * 0.2) / 3)
    assert weighted_by_class(values, torch.zeros(8).bool(), labels) is None
    assert weighted_by_class(values, labels == 7, labels) is None


def test_nothing_is_drawn_of_what_never_sounded_but_is_rated(tmp_path: Path) -> None:
    printed = {"dataset": "printed", "split": "mnist", "file": "train"}
    picture = tmp_path / "unheard.png"
    rated = out_of_distribution(Faithful(), printed, picture, NOWHERE, torch.device("cpu"))
    assert {kind: rating["images"] for kind, rating in rated.items()} == {
        "printed letters": 26,
        "simple shapes": 10,
    }
    for rating in rated.values():
        assert rating["correlation"] == pytest.approx(1)
        assert rating["retrieval"] == 1  # so no two letters or shapes are the same
    Image.open(picture).verify()
