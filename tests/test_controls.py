"""The controls of a run: each finds the effect that it looks for, and none where there is none."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import evaluation.controls as controls
import evaluation.imagine as imagining
from common.cli import command_line
from common.files import UserError
from data import Digits, load_digits, load_gan_images
from data.resize import upsample
from evaluate import Config, main
from evaluation.controls import (
    most_similar,
    near_duplicates,
    other_encodings,
    out_of_distribution,
    shuffled_sounds,
    stretch_to_box,
    unheard_images,
    weighted_by_class,
)
from evaluation.imagine import imagine
from evaluation.listener import Listener
from evaluation.metrics import correlation_matrix
from training.losses import audio_loss
from training.upstream import load_judge
from vggish import ImageToLogMel
from voice_translator import Encoding

NOWHERE = Path("/nonexistent")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def test() -> Digits:
    return load_digits("handwritten", "test", NOWHERE, "cpu")


@pytest.fixture
def judge(chain: Path) -> object:
    return load_judge(chain / "judges" / "cnn", "handwritten", CPU)


def test_the_command_writes_its_numbers_and_pictures(
    results: Path,
    fewer_digits: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--controls", "--results", str(results), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    command_line(Config, main, "")
    said = capsys.readouterr().out
    folder = results / "train_all" / "controls"
    record = json.loads((folder / "metrics.json").read_text())
    assert set(record["other_encodings"]) == {
        "high pitch at the bottom",
        "high pitch in the middle",
        "linear curve",
        "the negative",
    }
    for rating in (record["learned_encoding"], *record["other_encodings"].values()):
        assert 0 <= rating["judge_accuracy"] <= 1
        assert rating["audio_loss"] > 0
    # bfloat16 rounds by the place of a sound in its batch
    assert record["shuffled_sounds"]["largest_change"] < 0.1
    near = record["near_duplicates"]
    assert near["with"]["images"] + near["without"]["images"] == near["images"] == 60
    assert near["with"]["images"] <= 10  # printed digits are no copies of handwritten ones
    assert sum(near["per_class"]) == near["with"]["images"]
    line = f"\nwithout: right by the judge {near['without']['judge_accuracy']:.1%}, correlation"
    assert line in said
    assert set(record["out_of_distribution"]) == {"printed letters", "simple shapes"}
    for name in ("near_duplicates", "out_of_distribution"):
        Image.open(folder / f"{name}.png").verify()
    assert "shuffled sounds:" in said
    again = main(Config(controls=True, results=results, device="cpu"))
    for name in ("learned_encoding", "other_encodings", "shuffled_sounds", "near_duplicates"):
        assert record[name] == again[name]
    assert json.loads((results / "train_all" / "controls.1" / "metrics.json").read_text()) == record


def test_a_missing_run_is_named(results: Path) -> None:
    with pytest.raises(UserError, match="run train_all.py --name other"):
        main(Config(controls=True, results=results, name=Path("other"), device="cpu"))
    assert not (results / "other").exists()


def test_missing_data_and_occupied_folders_are_refused_before_the_work(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "imagine", lambda *_, **__: pytest.fail("it was heard"))
    config = Config(controls=True, results=results, device="cpu", data_root=Path())

    def missing(*_: object) -> None:
        raise UserError("no images of the GAN")

    with monkeypatch.context() as without:
        without.setattr(controls, "load_all_gan_images", missing)
        with pytest.raises(UserError, match="no images of the GAN"):
            main(config)
    folder = results / "train_all"
    shutil.copytree(results / "train_vggish", folder / "controls", dirs_exist_ok=True)
    with pytest.raises(UserError, match="controls holds what train_vggish left"):
        main(config)
    with pytest.raises(UserError, match="--controls hears the test part; leave out --part"):
        main(dataclasses.replace(config, part="validation"))


def test_other_encodings_differ_from_the_learned_one_in_one_setting() -> None:
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


def test_sounds_of_another_encoding_are_refined_with_the_learned_front_end(
    chain: Path, test: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(chain / "train_all")
    model, refiner = listener.model, listener.refiner(2)
    front_ends = []

    def watched(
        front_end: ImageToLogMel, imagined: Tensor, *more: object, **named: object
    ) -> Tensor:
        if imagined.requires_grad:
            front_ends.append(front_end)
        return audio_loss(front_end, imagined, *more, **named)

    monkeypatch.setattr(imagining, "audio_loss", watched)
    other = ImageToLogMel(
        Encoding(pitch_position="bottom"), model.front_end.frames, model.front_end.hop
    )
    refined, _ = imagine(model, test.images[:8], refiner=refiner, front_end=other)
    assert len(front_ends) == 2  # a step each
    assert all(front_end is model.front_end for front_end in front_ends)
    without, _ = imagine(model, test.images[:8], front_end=other)
    assert not refined.equal(without)


def test_shuffled_sounds_distinguish_a_model_that_hears_from_one_that_leaks(test: Digits) -> None:
    class Perfect(torch.nn.Module):  # classifies every real digit right
        def forward(self, images: Tensor) -> Tensor:
            same = correlation_matrix(images, upsample(test.images)).argmax(1)
            return torch.nn.functional.one_hot(test.labels[same], 10).float()

    order = torch.randperm(360, generator=torch.Generator().manual_seed(0))
    drawn = upsample(test.images)
    hears = shuffled_sounds(Perfect(), test.labels, order, drawn[order], drawn)
    assert hears["class_of_the_sound"] > 0.99
    assert hears["class_of_the_image"] < 0.01
    assert hears["largest_change"] == 0
    leaks = shuffled_sounds(Perfect(), test.labels, order, drawn, drawn)
    assert leaks["class_of_the_image"] > 0.99
    assert leaks["largest_change"] > 1
    assert 250 < hears["images"] < 360  # a tenth of the pairs are of one digit


def rescaled(images: Tensor) -> Tensor:
    """Copies as another data set would have them: of another size, at another place, softer."""
    smaller = torch.nn.functional.interpolate(
        images[:, None].float(), (24, 24), mode="bilinear", antialias=True
    )
    return torch.nn.functional.pad(smaller[:, 0], (1, 3, 3, 1)).round().byte()


def test_stretch_to_box_undoes_place_and_size(test: Digits) -> None:
    boxed = stretch_to_box(test.images)
    torch.testing.assert_close(boxed.norm(dim=1), torch.ones(360))
    torch.testing.assert_close(boxed.sum(1), torch.zeros(360), atol=1e-4, rtol=0)
    shifted = stretch_to_box(test.images.roll((2, -1), (1, 2)))
    torch.testing.assert_close(boxed, shifted, atol=1e-5, rtol=0)
    copies = (boxed * stretch_to_box(rescaled(test.images))).sum(1)
    strangers = (boxed * boxed.roll(1, 0)).sum(1)
    assert copies.median() > 0.95 > 0.6 > strangers.median()


def test_stretch_to_box_is_the_crop_that_pillow_makes(test: Digits) -> None:
    for image, box in zip(test.images[:10], stretch_to_box(test.images[:10]), strict=True):
        array = image.numpy()
        rows, columns = np.nonzero(array > 63)
        crop = Image.fromarray(array).crop(
            (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        )
        stretched = np.asarray(crop.resize((20, 20), Image.Resampling.BILINEAR)).astype(float)
        assert np.corrcoef(stretched.flatten(), box.numpy())[0, 1] > 0.98


def test_most_similar_is_the_largest_correlation(test: Digits) -> None:
    one, other = stretch_to_box(test.images[:20]), stretch_to_box(test.images[100:130])
    best, where = most_similar(one, other)
    table = np.corrcoef(one.numpy(), other.numpy())[:20, 20:]
    np.testing.assert_allclose(best.numpy(), table.max(1), atol=1e-5)
    assert where.tolist() == table.argmax(1).tolist()


def test_near_duplicates_are_found_only_where_there_are_copies(
    test: Digits, judge: object, tmp_path: Path
) -> None:
    printed = load_gan_images("printed", "validation", NOWHERE, "cpu").images
    unrelated = load_digits("handwritten", "train", NOWHERE, "cpu").images
    copied = torch.arange(0, 360, 6)
    drawn = upsample(test.images)
    with_copies = torch.cat([printed, test.images[copied].roll((1, -2), (1, 2))])
    for images, least, most in ((printed, 0, 10), (with_copies, 60, 70)):
        found = near_duplicates(judge, 10, test, drawn, images, unrelated, tmp_path / "near.png")
        assert least <= found["with"]["images"] <= most
        assert found["gan_images"] == len(images)
        assert found["expected_by_chance"] == pytest.approx(0.001 * 360 * len(images) / 1257)
        chance = len(images) / (len(images) + 1257)
        assert found["share_nearer_by_chance"] == pytest.approx(chance)
        assert (found["share_nearer_in_gan_images"] > 60 / 360) == (least == 60)
    assert found["with"]["correlation"] == pytest.approx(1)
    assert found["without_weighted"]["correlation"] == pytest.approx(1)


def test_near_duplicates_need_no_ten_classes(test: Digits, judge: object, tmp_path: Path) -> None:
    few = Digits(*(tensor[test.labels % 3 == 1] for tensor in test))  # of 1, 4 and 7
    unrelated = load_digits("handwritten", "train", NOWHERE, "cpu").images
    drawn, picture = upsample(few.images), tmp_path / "near.png"
    found = near_duplicates(judge, 12, few, drawn, test.images, unrelated, picture)
    assert len(found["limits"]) == len(found["per_class"]) == 12
    assert [index for index, limit in enumerate(found["limits"]) if limit] == [1, 4, 7]
    assert found["with"]["images"] == len(few.labels)


def test_images_without_a_near_duplicate_are_weighted_to_the_same_classes() -> None:
    labels = torch.tensor([1, 1, 1, 1, 3, 3, 3, 7])
    group = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1]).bool()  # a one, two threes, and the only seven
    values = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.2, 0.0])
    assert weighted_by_class(values, group, labels) == pytest.approx((1 * 0.5 + 2 * 0.2) / 3)
    assert weighted_by_class(values, torch.zeros(8).bool(), labels) is None
    assert weighted_by_class(values, labels == 7, labels) is None


def test_letters_and_shapes_are_rated_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perfect = lambda _, images, **__: (upsample(images), 0.0)  # noqa: E731
    monkeypatch.setattr(controls, "imagine", perfect)
    gan = {"dataset": "printed", "split": "mnist", "emnist_part": "train"}
    picture = tmp_path / "out_of_distribution.png"
    rated = out_of_distribution(None, None, unheard_images(gan, NOWHERE, CPU), picture)
    counts = {kind: rating["images"] for kind, rating in rated.items()}
    assert counts == {"printed letters": 26, "simple shapes": 10}
    for rating in rated.values():
        assert rating["correlation"] == pytest.approx(1)
        assert rating["retrieval"] == 1  # so no two letters or shapes are the same
    Image.open(picture).verify()
