"""The four stages: through their command lines, what they leave behind, resuming, what is frozen,
and what they refuse."""

import dataclasses
import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHAIN, script
from models.generator_extra import generate, seeded_noise
from PIL import Image
from pretended_gpu import PretendedGPU
from torch import Tensor

import compare_encodings
import data
import emnist_dcgan
import evaluate
import mnist_classify_train
import train_all
import train_vggish
import vggish
import voice_translator
from common.checkpoint import load_checkpoint, load_weights
from common.cli import command_line, validate_settings
from common.device import autocast, choose_device, uses_bfloat16
from common.files import UserError
from data import Digits, load_digits, load_gan_images
from data.augment import affine_grid, augment_uint8, random_affine, sample_by_gathers
from data.resize import _projection, _reduction, downsample_lstsq, upsample
from data.synthetic import load_handwritten, load_printed
from emnist_dcgan import main
from evaluation.imagine import LatentRefiner, imagine, load_refiner
from evaluation.metrics import correlation_matrix, rate_images
from mnist_classify_train import Config, main
from models.discriminator import Discriminator
from models.generator import Generator
from models.vggish import VGGish
from train_all import Config, main, sample
from train_vggish import Config, main
from training.cuda_graph import CudaGraphStep
from training.figures import save_soundscapes
from training.loop import optimizer_step
from training.losses import audio_loss, binarization_penalty, null_space_penalty
from training.run import Run, read_metrics
from training.upstream import load_judge, load_memory, load_model
from vggish import ImageToLogMel
from voice_translator import Encoding

SMALL = {"images_per_epoch": 96, "batch": 32, "device": "cpu"}
STAGES = [
    (train_vggish, {"dataset": "handwritten", "width": 4, "epochs": 2}),
    (mnist_classify_train, {"dataset": "handwritten", "epochs": 2, "judge_epochs": 1}),
    (emnist_dcgan, {"dataset": "printed", "width": 4, "epochs": 2}),
    (train_all, {"epochs": 2, "sound_consistency": 1.0, "rehearsal": 1.0, "augmentation": 0.5}),
]
by_name = pytest.mark.parametrize(
    ("stage", "settings"), STAGES, ids=[stage.__name__ for stage, _ in STAGES]
)


@pytest.fixture(autouse=True)
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty digits to validate and to test, which is quicker; the command lines in `chain` have
    them all."""
    handwritten = load_handwritten
    monkeypatch.setattr(
        data,
        "_handwritten",
        lambda part: Digits(*(t[: None if part == "train" else 60] for t in handwritten(part))),
    )


def config(stage: object, settings: dict, results: Path, **more: object) -> object:
    return stage.Config(**{**SMALL, **settings, "results": results, **more})


def weights(path: Path) -> dict[str, Tensor]:
    networks = torch.load(path, weights_only=True)["networks"]
    return {
        f"{name}.{key}": value for name, state in networks.items() for key, value in state.items()
    }


def assert_equal_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_every_stage_leaves_its_record_and_its_pictures(chain: Path) -> None:
    for name in [*(Path(s).stem for s in CHAIN), "judge"]:
        folder = chain / name
        assert {"checkpoint.pt", "metrics.json", "log.jsonl", "curves.png"} <= {
            path.name for path in folder.iterdir()
        }
        assert not (folder / "last.pt").exists()  # only needed for --resume
        assert not list(folder.glob(".*"))  # nothing half-written
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["stage"] == name
        assert metrics["seconds"] > 0
        assert {"seed", "machine", "versions", "config", "revision", "epoch"} <= metrics.keys()
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert checkpoint["config"] == metrics["config"]
        epochs = [
            json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()
        ]
        assert epochs == list(range(1, len(epochs) + 1))
    for path in chain.rglob("*.png"):
        Image.open(path).verify()


def test_metrics_are_fractions(chain: Path) -> None:
    metrics = {
        name: json.loads((chain / name / "metrics.json").read_text())
        for name in ("train_vggish", "train_all")
    }
    assert 0 <= metrics["train_vggish"]["test_accuracy"] <= 1
    for name in ("test_accuracy", "judge_accuracy", "judge_accuracy_worst", "retrieval"):
        assert 0 <= metrics["train_all"][name] <= 1
    assert -1 <= metrics["train_all"]["correlation"] <= 1
    assert metrics["train_all"]["frechet_distance"] > 0
    assert json.loads((chain / "emnist_dcgan" / "metrics.json").read_text())["frechet_distance"] > 0


def test_stage_three_leaves_a_grid_for_every_epoch(chain: Path) -> None:
    assert [path.name for path in sorted(chain.glob("train_all/imagined_*.png"))] == [
        "imagined_001.png",
        "imagined_002.png",
    ]
    width, height = Image.open(chain / "train_all.png").size
    assert (width, height) == (
        16 * 66 + 2,
        10 * 66 + 2,
    )  # a row per class, eight pairs in it, two pixels between


def test_the_soundscapes_are_the_translators_own(chain: Path) -> None:
    wave, rate = soundfile.read(chain / "train_vggish" / "soundscapes.wav")
    digits = load_digits("handwritten", "test", Path(), "cpu")
    first = ImageToLogMel(Encoding()).translator(digits.images[digits.labels == 0][:1])[0]
    assert rate == 16000
    assert len(wave) == 10 * (16800 + 8000)
    # 16 bits round by half a step, and libsndfile writes 1.0 as 32767 but reads 32768 as 1.0.
    torch.testing.assert_close(
        torch.from_numpy(wave[:16800]).float(), first, atol=1.6 / 32768, rtol=0
    )


def test_a_disk_that_is_full_of_soundscapes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(soundfile.LibsndfileError):
        error_string = "No space left on device."

    def write(*_: object) -> None:
        raise Full(2)

    monkeypatch.setattr(soundfile, "write", write)
    digits = load_digits("handwritten", "test", Path(), "cpu")
    with pytest.raises(
        UserError,
        match=r"soundscapes.wav cannot be written \(No space left on device.\); free or unlock",
    ):
        save_soundscapes(
            tmp_path, ImageToLogMel(Encoding(seconds=0.3)), digits.images[:2], digits.labels[:2]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["soundscapes.png"]


def test_the_encoding_the_frames_and_the_hop_travel_in_the_checkpoint(results: Path) -> None:
    odd = Encoding(curve="linear", seconds=0.5)
    main(config(*STAGES[0], results, encoding=odd, frames=32, hop=305, epochs=1))
    metrics = main(config(*STAGES[3], results, epochs=1))
    kept = torch.load(results / "train_all" / "checkpoint.pt", weights_only=True)["config"]
    assert kept["encoding"] == dataclasses.asdict(odd)
    assert kept["frames"] == 32
    assert kept["hop"] == 305
    assert load_model(results / "train_all" / "checkpoint.pt")[0].hop == 305
    assert metrics["judge_accuracy"] >= 0


# -- the same again ----------------------------------------------------------------------------------------------------


@contextmanager
def stopped(at: Callable[[Run, int], bool], behind: bool = False) -> Iterator[None]:
    """Ctrl-C at the end of the first epoch of which `at` says so: before it is recorded, or
    `behind` that."""
    end_epoch = Run.end_epoch

    def stopping(run: Run, record: dict, best: bool) -> None:
        here = at(run, record["epoch"])
        if behind or not here:
            end_epoch(run, record, best)
        if here:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(Run, "end_epoch", stopping)
        yield


def test_stage_two_resumes_between_the_classifier_and_the_judge(
    chain: Path, tmp_path: Path
) -> None:
    settings = config(
        mnist_classify_train, {"dataset": "handwritten", "epochs": 1, "judge_epochs": 1}, tmp_path
    )
    with stopped(lambda run, epoch: run.stage == "judge"):
        main(settings)
    before = (tmp_path / "mnist_classify_train" / "metrics.json").read_text()
    main(dataclasses.replace(settings, resume=True))
    assert (
        tmp_path / "mnist_classify_train" / "metrics.json"
    ).read_text() == before  # not trained again
    assert_equal_weights(tmp_path / "judge" / "checkpoint.pt", chain / "judge" / "checkpoint.pt")


def test_a_judge_that_was_stopped_goes_on_and_a_complete_one_is_left_alone(tmp_path: Path) -> None:
    settings = config(
        mnist_classify_train, {"dataset": "handwritten", "epochs": 1, "judge_epochs": 2}, tmp_path
    )
    with stopped(lambda run, epoch: run.stage == "judge" and epoch == 2):
        main(settings)
    first = (tmp_path / "judge" / "log.jsonl").read_text()
    main(dataclasses.replace(settings, resume=True))
    lines = (tmp_path / "judge" / "log.jsonl").read_text()
    assert lines.startswith(first) and len(lines.splitlines()) == 2  # its seconds, too
    main(dataclasses.replace(settings, resume=True))
    assert (tmp_path / "judge" / "log.jsonl").read_text() == lines
    assert not (tmp_path / "judge.before").exists()


def test_stage_two_resumes_where_the_judge_of_another_run_lies(results: Path) -> None:
    settings = config(
        mnist_classify_train,
        {"dataset": "handwritten", "epochs": 1, "judge_epochs": 1},
        results,
        seed=1,
    )
    with stopped(lambda run, epoch: True, behind=True):
        main(settings)
    assert read_metrics(results / "judge")["seed"] == 1000
    main(dataclasses.replace(settings, resume=True))
    assert [read_metrics(results / name)["seed"] for name in ("mnist_classify_train", "judge")] == [
        1,
        1001,
    ]
    assert read_metrics(results / "judge.before")["seed"] == 1000


def test_a_run_of_before_the_sounds_were_kept_goes_on(results: Path) -> None:
    for module, settings in (STAGES[0], STAGES[3]):
        header = config(module, settings, results, seed=3)
        with stopped(lambda run, epoch: epoch == 1, behind=True):
            module.main(header)
        for name in ("last.pt", "checkpoint.pt"):
            path = results / module.__name__ / name
            checkpoint = torch.load(path, weights_only=True)
            del checkpoint["networks"]["probe"]
            torch.save(checkpoint, path)
        module.main(dataclasses.replace(header, resume=True))
        assert read_metrics(results / module.__name__)["seed"] == 3


def test_another_seed_gives_other_weights(results: Path) -> None:
    main(config(*STAGES[0], results, epochs=1))
    main(config(*STAGES[0], results, epochs=1, seed=1))
    one, other = (
        weights(results / name / "checkpoint.pt")
        for name in ("train_vggish.before", "train_vggish")
    )
    assert not torch.equal(one["vggish.features.0.weight"], other["vggish.features.0.weight"])


def test_a_complete_run_is_kept_when_another_takes_its_place(results: Path) -> None:
    before = (results / "train_vggish" / "metrics.json").read_text()
    main(config(*STAGES[0], results, epochs=1))
    assert (results / "train_vggish.before" / "metrics.json").read_text() == before
    assert (results / "train_vggish" / "metrics.json").read_text() != before


# -- honesty -----------------------------------------------------------------------------------------------------------


@by_name
def test_the_test_set_is_touched_once_at_the_end(
    stage: object, settings: dict, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    load, end_epoch = load_digits, Run.end_epoch
    monkeypatch.setattr(
        data,
        "load_heard",
        lambda name, part, *rest: (calls.append(part), load(name, part, *rest))[1],
    )
    monkeypatch.setattr(
        Run, "end_epoch", lambda run, *a, **k: (calls.append(run.stage), end_epoch(run, *a, **k))[1]
    )
    stage.main(config(stage, settings, results))
    expected = {train_vggish: 1, mnist_classify_train: 2, emnist_dcgan: 0, train_all: 1}[
        stage
    ]  # two: classifier, judge
    assert calls.count("test") == expected
    if expected == 1:
        assert calls[-1] == "test"


def test_what_is_frozen_in_stage_three_does_not_move(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, object] = {}
    load_memory, load_judge = load_memory, load_judge

    def memory(*args: object) -> tuple:
        kept["generator"], kept["classifier"] = load_memory(*args)
        return kept["generator"], kept["classifier"]

    def judge(*args: object) -> object:
        kept["judge"] = load_judge(*args)
        return kept["judge"]

    monkeypatch.setattr(train_all, "load_memory", memory)
    monkeypatch.setattr(mnist_classify_train, "load_judge", judge)
    main(config(*STAGES[3], results, epochs=2, joint_epochs=1, joint_learning_rate=1e-2))
    for name, folder in (("classifier", "mnist_classify_train"), ("judge", "judge")):
        stored = torch.load(results / folder / "checkpoint.pt", weights_only=True)["networks"][name]
        assert all(
            torch.equal(value, stored[key]) for key, value in kept[name].state_dict().items()
        ), name
        assert not kept[name].training
        assert all(parameter.grad is None for parameter in kept[name].parameters())
    stored = torch.load(results / "emnist_dcgan" / "checkpoint.pt", weights_only=True)["networks"][
        "generator"
    ]
    moved = {
        key
        for key, value in kept["generator"].state_dict().items()
        if not torch.equal(value, stored[key])
    }
    assert not kept["generator"].training
    assert {key for key in moved if "running" in key or "tracked" in key} == set()
    # The best epoch was loaded at the end: what moved is what the joint epoch trained, or nothing.
    assert moved <= {name for name, _ in kept["generator"].named_parameters()}


def test_the_generator_learns_in_the_joint_epochs_only(results: Path) -> None:
    stored = weights(results / "emnist_dcgan" / "checkpoint.pt")["generator.layers.0.weight"]
    for joint_epochs, rate in ((0, 1.0), (1, 1.0), (1, 0.0)):
        main(
            config(
                *STAGES[3], results, epochs=1, joint_epochs=joint_epochs, generator_lr_scale=rate
            )
        )
        now = weights(results / "train_all" / "checkpoint.pt")["generator.layers.0.weight"]
        assert torch.equal(now, stored) == (joint_epochs == 0 or rate == 0)


def test_the_weight_of_grey_grows_from_nothing(results: Path) -> None:
    learned = {}
    for grey, images in (
        (0.0, 32),
        (9.0, 32),
        (9.0, 64),
    ):  # of a batch of 32, the first step and the second
        main(config(*STAGES[3], results, epochs=1, images_per_epoch=images, grey=grey))
        learned[grey, images] = weights(results / "train_all" / "checkpoint.pt")[
            "vggish.features.0.weight"
        ]
    assert torch.equal(learned[0.0, 32], learned[9.0, 32])
    main(config(*STAGES[3], results, epochs=1, images_per_epoch=64, grey=0.0))
    now = weights(results / "train_all" / "checkpoint.pt")["vggish.features.0.weight"]
    assert not torch.equal(now, learned[9.0, 64])


def test_the_instance_noise_falls_to_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all noise is one large number, what the discriminator sees is bright by as much as
    sigma says."""
    seen, forward = [], Discriminator.forward

    def watched(self: Discriminator, images: Tensor) -> Tensor:
        seen.append(images.mean().item() / 1000)
        return forward(self, images)

    monkeypatch.setattr(Discriminator, "forward", watched)
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 1000.0))
    main(config(*STAGES[2], results, images_per_epoch=64, instance_noise=0.4))
    sigmas = [
        0.4,
        0.3,
        0.2,
        0.1,
    ]  # two epochs of two steps, each of which shows real images once, and imagined ones twice
    np.testing.assert_allclose(seen, np.repeat(sigmas, 3), atol=0.002)


def test_no_judge_takes_part_in_choosing_the_epoch(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = rate_images
    for name in ("judged", "misjudged"):
        main(config(*STAGES[3], results, name=name))
        monkeypatch.setattr(
            ratings, "rate", lambda *args: {key: -value for key, value in rate(*args).items()}
        )
    assert_equal_weights(
        results / "judged" / "checkpoint.pt", results / "misjudged" / "checkpoint.pt"
    )


def test_every_term_of_the_objective_counts(results: Path) -> None:
    learned = []
    published = {
        "epochs": 1,
        "images_per_epoch": 64,
        "sound_consistency": 0.0,
        "detail": 0.0,
        "grey": 0.0,
    }
    published["rehearsal"] = (
        0.0  # which changes the batch whatever its weight, and so has a test of its own
    )
    terms = ("sound_consistency", "detail", "grey", "classifier_augmentation")
    for name in ("epochs", *terms):  # one epoch, and nothing besides: the published objective
        main(config(*STAGES[3], results, **{**published, name: 1, "name": name}))
        learned.append(weights(results / name / "checkpoint.pt")["vggish.features.0.weight"])
    for position, one in enumerate(learned):
        assert not any(torch.equal(one, other) for other in learned[:position])


def test_what_the_classifier_reads_is_varied_and_what_sounds_is_not(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        data, "varied", lambda images, _: images * 0
    )  # so that no reading teaches anything
    schedule = {
        "epochs": 1,
        "joint_epochs": 0,
        "images_per_epoch": 64,
        "rehearsal": 0.0,
        "augmentation": 0.0,
    }
    before = weights(results / "train_vggish" / "checkpoint.pt")["vggish.features.0.weight"]
    for augmentation, consistency, learned in (
        (1.0, 0.0, False),
        (1.0, 1.0, True),
        (0.0, 0.0, True),
    ):
        terms = {"classifier_augmentation": augmentation, "sound_consistency": consistency}
        main(config(*STAGES[3], results, **schedule, **terms))
        now = weights(results / "train_all" / "checkpoint.pt")["vggish.features.0.weight"]
        assert torch.equal(now, before) == (not learned)


def test_sound_distance_is_zero_for_the_heard_image_as_seen_and_leads_back_to_it() -> None:
    others = (
        Encoding(rows=64, columns=64),
        Encoding(rows=20, columns=32),
        Encoding(contrast=0.0),
        Encoding(negative=True),
    )
    for encoding in (Encoding(), *others):
        ear = ImageToLogMel(encoding)
        images = load_digits("handwritten", "train", Path(), "cpu").images[:4]
        heard = ear(images)
        imagined = upsample(images)
        assert audio_loss(ear, imagined, heard).item() < 1e-4
        blurred = (0.9 * imagined - 0.1).requires_grad_()
        start = audio_loss(ear, blurred, heard)
        start.backward()
        step = blurred.detach() - 0.01 * blurred.grad / blurred.grad.abs().max()
        assert audio_loss(ear, step, heard) < start


def test_sound_distances_agree_with_numpy() -> None:
    ear = ImageToLogMel(Encoding())
    images = load_digits("handwritten", "train", Path(), "cpu").images[:6]
    imagined = upsample(images[:3])
    one, other = ear(images[:3]).double().numpy(), ear(images[3:])
    difference = (one - other.numpy())[:, 0]  # 3 x 112 x 64
    louder = (np.exp(one) ** 0.6 - np.exp(other.double().numpy()) ** 0.6)[:, 0]

    def halves(difference: np.ndarray) -> list[np.ndarray]:
        return [difference.reshape(3, 112 // k, k, 64 // k, k).mean((2, 4)) for k in (1, 2, 4)]

    expected = {
        "absolute": abs(difference).mean(),
        "squared": (difference**2).mean(),
        "multiscale": sum(abs(half).mean() for half in halves(difference)) / 3,
        "loudness": sum((half**2).mean() for half in halves(louder)) / 3,
    }
    for kind, value in expected.items():
        assert audio_loss(ear, imagined, other, kind=kind).item() == pytest.approx(value, rel=1e-3)
        assert audio_loss(ear, imagined, ear(images[:3]), kind=kind).item() < 1e-4


def test_to_the_multiscale_distance_a_ripple_weighs_less_than_what_neighbours_agree_on() -> None:
    ear = ImageToLogMel(Encoding())
    images = load_digits("handwritten", "train", Path(), "cpu").images[:2]
    heard, imagined = ear(images), upsample(images)
    ripple = 0.5 * (-1.0) ** torch.arange(ear.frames)[:, None]
    for kind, of_ripple in (("absolute", 0.5), ("squared", 0.25), ("multiscale", 0.5 / 3)):
        agreed = audio_loss(ear, imagined, heard + 0.5, kind=kind).item()
        assert agreed == pytest.approx(0.25 if kind == "squared" else 0.5, rel=1e-3)
        rippled = audio_loss(ear, imagined, heard + ripple, kind=kind).item()
        assert rippled == pytest.approx(of_ripple, rel=1e-3)


def test_near_silence_counts_for_the_log_mels_but_hardly_for_the_loudness() -> None:
    ear = ImageToLogMel(Encoding())
    images = load_digits("handwritten", "train", Path(), "cpu").images[:2]
    heard, imagined = ear(images), upsample(images)
    loud = heard > 0
    assert 0.1 < loud.double().mean() < 0.9
    for kind, least, most in (("multiscale", 0.5, 5), ("loudness", 0, 0.02)):
        quiet, loudly = (
            audio_loss(ear, imagined, heard + 0.3 * part, kind=kind).item()
            for part in (~loud, loud)
        )
        assert least < quiet / loudly < most


def test_where_loudness_comes_first_the_other_distance_counts_in_the_rest_of_the_run(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, told = audio_loss, []

    def watched(*said: object, **named: object) -> Tensor:
        distance = measured(*said, **named)
        if distance.requires_grad:  # a step of learning, not a rating
            told.append(
                [
                    distance.item(),
                    *(measured(*said[:4], kind).item() for kind in ("loudness", "multiscale")),
                ]
            )
        return distance

    monkeypatch.setattr(train_all, "sound_distance", watched)
    schedule = {"epochs": 4, "joint_epochs": 4, "sound_consistency": 1.0, "distance": "multiscale"}
    main(config(*STAGES[3], results, **schedule, loudness_fraction=0.8))
    assert len(told) > 10
    first = round(0.8 * len(told) + 0.49)
    assert all(now == loudness != multiscale for now, loudness, multiscale in told[:first])
    assert all(now == multiscale for now, _, multiscale in told[first:])
    log = [
        json.loads(line) for line in (results / "train_all" / "log.jsonl").read_text().splitlines()
    ]
    ear, network, generator, dataset = load_model(results / "train_all" / "checkpoint.pt")
    validation = load_digits(dataset, "validation", Path(), "cpu")
    _, distance = imagine(ear, network, generator, validation.images, "multiscale")
    best = min(log, key=lambda line: line["validation_loss"])
    assert best["validation_sound_distance"] == pytest.approx(
        distance, rel=1e-4
    )  # the same measure for every epoch


def test_rehearsal_teaches_to_imagine_a_memory_from_its_sound(results: Path) -> None:
    path = results / "emnist_dcgan" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    for value in checkpoint["networks"]["generator"].values():
        if value.dim() == 4:
            value *= 8  # after so little training, it draws hardly anything else than grey
    checkpoint["networks"]["generator"]["layers.0.weight"][2:] = (
        0  # two dimensions are learned sooner than a hundred
    )
    torch.save(checkpoint, path)
    learned = {}
    device = torch.device("cpu")
    memory, _ = load_memory(results, None, device)
    torch.manual_seed(0)
    remembered = sample(memory, 64, device)
    assert remembered.std(0).mean() > 0.03
    for rate in (
        1e-12,
        1e-3,
    ):  # also without learning, the statistics of the embedding's BatchNorm follow the memory
        objective = {
            "sound_consistency": 0.0,
            "classifier_weight": 0.0,
            "rehearsal": 10.0,
            "dropout": False,
        }
        schedule = {"epochs": 1, "joint_epochs": 0, "images_per_epoch": 1280}
        main(config(*STAGES[3], results, **objective, **schedule, learning_rate=rate))
        ear, network, generator, _ = load_model(results / "train_all" / "checkpoint.pt")
        with torch.no_grad():
            imagined = generator(network.embed(ear(downsample_lstsq(remembered))))
        learned[rate] = (imagined - remembered).square().mean().item()
    assert learned[1e-3] < 0.6 * learned[1e-12]


def test_what_is_rehearsed_is_the_memory_of_stage_two_also_after_a_resume(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = torch.load(results / "emnist_dcgan" / "checkpoint.pt", weights_only=True)["networks"][
        "generator"
    ]
    remember, untouched = sample, []

    def watched(memory: Generator, *args: object) -> Tensor:
        untouched.append(
            all(torch.equal(value, stored[key]) for key, value in memory.state_dict().items())
        )
        if len(untouched) == 4:  # the first step of the second epoch
            raise KeyboardInterrupt
        return remember(memory, *args)

    monkeypatch.setattr(train_all, "remember", watched)
    settings = config(*STAGES[3], results, joint_epochs=2, joint_learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        main(settings)
    main(dataclasses.replace(settings, resume=True))
    assert untouched == [True] * 7


def test_inaudible_detail_is_what_28_pixels_cannot_tell() -> None:
    flat = torch.full((1, 1, 64, 64), 0.3)
    checkered = flat + 0.5 * (-1.0) ** torch.arange(64)[:, None] * (-1.0) ** torch.arange(64)
    assert null_space_penalty(flat).item() < 1e-10
    assert null_space_penalty(checkered).item() == pytest.approx(
        0.25, rel=0.2
    )  # nearly all of its variance
    stroke = upsample(load_digits("handwritten", "train", Path(), "cpu").images[:8])
    assert null_space_penalty(stroke).item() < 1e-10  # no real digit has any
    assert null_space_penalty(stroke.roll(1, 3)).item() > 1e-4


def test_greyness_is_none_of_black_and_white_and_falls_along_its_gradient() -> None:
    assert binarization_penalty(torch.tensor([-1.0, 1.0])) == 0
    assert binarization_penalty(torch.zeros(2, 1, 4, 4)) == 1
    image = torch.tensor([-0.5, 0.2], requires_grad=True)
    binarization_penalty(image).backward()
    assert (
        image.grad[0] > 0 > image.grad[1]
    )  # a step against it blackens the one and whitens the other


# -- second thoughts ---------------------------------------------------------------------------------------------------


def thinking(chain: Path, steps: int) -> tuple[LatentRefiner, Tensor, Tensor]:
    """What the chain's run thinks again with; and ten sounds, `(10, 1, 112, 64)`, with their
    embeddings, `(10, 100)`."""
    ear, network, generator, dataset = load_model(chain / "train_all" / "checkpoint.pt")
    for kernels in (parameter for parameter in generator.parameters() if parameter.dim() == 4):
        kernels.data *= 8  # after so little training, it draws hardly anything else than grey
    refiner = load_refiner(chain, steps, ear, generator, dataset, torch.device("cpu"))
    with torch.no_grad():
        heard = ear(load_digits(dataset, "test", Path(), "cpu").images[:10])
        return refiner, heard, network.embed(heard)


def wants(refiner: LatentRefiner, heard: Tensor, embedding: Tensor, digit: int) -> Tensor:
    """What thinking again of one sound brings down."""
    imagined = refiner.generator(embedding[None])
    told, heard = (
        torch.exp(0.6 * logmel)
        for logmel in (refiner.ear(downsample_lstsq(imagined), 1.0), heard[None])
    )
    levels = [torch.nn.functional.avg_pool2d(told - heard, k).square().mean() for k in (1, 2, 4)]
    return sum(levels) / 3 - refiner.classifier(imagined).log_softmax(1)[0, digit]


def test_second_thoughts_are_steps_of_adam_towards_what_the_two_opinions_decide(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    refiner, heard, embeddings = thinking(chain, 1)
    with torch.no_grad():
        logits = refiner.sound_classifier(heard), refiner.classifier(refiner.generator(embeddings))
    opinions = [np.exp(part.double().numpy()) for part in logits]
    opinions = [part / part.sum(1, keepdims=True) for part in opinions]
    decided = (opinions[0] + opinions[1]).argmax(1)
    assert any(decided != opinions[0].argmax(1)) or any(decided != opinions[1].argmax(1))
    moved = refiner(heard, embeddings)
    assert refiner.count == 10  # after so little training, nothing is sure
    for before, after, sound, digit in zip(embeddings, moved, heard, decided, strict=True):
        alone = before.clone().requires_grad_()
        wants(refiner, sound, alone, digit).backward()
        first_step = (
            0.03 * alone.grad / (alone.grad.abs() + 1e-8)
        )  # Adam's first is as wide as its learning rate
        torch.testing.assert_close(before - after, first_step, atol=1e-3, rtol=0)

    refiner, heard, embeddings = thinking(chain, 8)
    moved = refiner(heard, embeddings)
    for before, after, sound, digit in zip(embeddings, moved, heard, decided, strict=True):
        with torch.no_grad():
            assert wants(refiner, sound, after, digit) < wants(refiner, sound, before, digit)


def test_what_is_sure_is_not_thought_of_again(chain: Path) -> None:
    refiner, heard, embeddings = thinking(chain, 2)
    sure = torch.full((10, 10), -9.0)
    sure[range(10), range(10)] = 9.0
    unsure = sure.clone()
    unsure[3, 4] = unsure[7, 1] = 9.0  # half of one opinion
    digit_of = {len(heard): sure}
    refiner.classifier = lambda imagined: (
        digit_of.get(len(imagined), sure[[3, 7]]) + 0 * imagined.sum()
    )
    refiner.sound_classifier = lambda heard: unsure
    moved = refiner(heard, embeddings)
    assert refiner.count == 2
    assert (moved != embeddings).any(1).nonzero()[:, 0].tolist() == [3, 7]
    refiner.sound_classifier = lambda heard: sure
    assert refiner(heard, embeddings).equal(embeddings)
    assert refiner.count == 2


def test_second_thoughts_change_no_weight_and_are_the_same_again_wherever_a_sound_stands(
    chain: Path,
) -> None:
    refiner, heard, embeddings = thinking(chain, 4)
    networks = [refiner.sound_classifier, refiner.generator, refiner.classifier]
    before = [
        {key: value.clone() for key, value in network.state_dict().items()} for network in networks
    ]
    moved = refiner(heard, embeddings)
    assert moved.equal(refiner(heard, embeddings))
    torch.testing.assert_close(
        refiner(heard.flip(0), embeddings.flip(0)).flip(0), moved, atol=0.02, rtol=0
    )
    for network, state in zip(networks, before, strict=True):
        assert all(value.equal(state[key]) for key, value in network.state_dict().items())
        assert not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        (
            0,
            {"epochs": 3, "late_epoch": 3, "learning_rate": 1e-3},
            {"Adam": [[1e-3], [1e-3], [1e-4]]},
        ),
        (
            1,
            {
                "epochs": 3,
                "late_epoch": 2,
                "learning_rate": 1e-2,
                "judge_epochs": 3,
                "judge_learning_rate": 4e-3,
            },
            {
                "SGD": [[1e-2], [1e-3], [1e-3]],
                "AdamW": [[4e-3], [3e-3], [1e-3]],
            },  # the judge's along a cosine
        ),
        (
            2,
            {"epochs": 2, "learning_rate": 1e-3, "discriminator_learning_rate": 2e-4},
            {
                "Adam": [[2e-4], [1e-3], [2e-4], [1e-3]]
            },  # the discriminator's step, then the generator's
        ),
        (
            3,
            {
                "epochs": 4,
                "joint_epochs": 2,
                "learning_rate": 1e-3,
                "joint_learning_rate": 4e-4,
                "generator_lr_scale": 0.5,
            },
            {
                "Adam": [[1e-3, 5e-4], [1e-3, 5e-4], [4e-4, 2e-4], [2e-4, 1e-4]]
            },  # the audio network's, and the generator's
        ),
    ],
    ids=["hear", "read", "remember", "imagine"],
)
def test_the_learning_rates_are_the_headers(
    stage: int, changes: dict, expected: dict, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: dict[str, list[list[float]]] = {}
    step = optimizer_step

    def watched(loss: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
        rates.setdefault(type(optimiser).__name__, []).append(
            [group["lr"] for group in optimiser.param_groups]
        )
        step(loss, optimiser)

    monkeypatch.setattr(runs, "step", watched)
    module, settings = STAGES[stage]
    module.main(
        config(module, {**settings, "images_per_epoch": 32, "batch": 32}, results, **changes)
    )  # a step an epoch
    assert rates.keys() == expected.keys()
    for kind, used in rates.items():
        assert np.array(used) == pytest.approx(np.array(expected[kind]))


# -- they learn something ----------------------------------------------------------------------------------------------


def test_stage_one_learns_to_hear(tmp_path: Path) -> None:
    settings = {
        "width": 4,
        "epochs": 3,
        "images_per_epoch": None,
        "learning_rate": 3e-3,
        "late_epoch": 3,
    }
    metrics = main(config(train_vggish, {"dataset": "handwritten", **settings}, tmp_path))
    assert metrics["test_accuracy"] > 0.6  # chance is 0.1


def test_stage_two_learns_to_read(tmp_path: Path) -> None:
    settings = {"epochs": 3, "judge_epochs": 2, "images_per_epoch": None, "learning_rate": 0.01}
    metrics = main(config(mnist_classify_train, {"dataset": "handwritten", **settings}, tmp_path))
    assert metrics["test_accuracy"] > 0.6
    assert read_metrics(tmp_path / "judge")["test_accuracy"] > 0.6


def test_the_generator_learns_where_the_ink_is(results: Path) -> None:
    rates = {"learning_rate": 1e-3, "discriminator_learning_rate": 2e-4, "instance_noise": 0.5}
    main(config(*STAGES[2], results, epochs=1, images_per_epoch=1600, batch=16, width=16, **rates))
    generator, _ = load_memory(results, "handwritten", torch.device("cpu"))
    drawn = generate(generator, seeded_noise(200, 0, torch.device("cpu"))).mean(0, keepdim=True)
    torch.manual_seed(0)
    untrained = generate(Generator(16), seeded_noise(200, 0, torch.device("cpu"))).mean(
        0, keepdim=True
    )
    real = upsample(load_gan_images("printed", "validation", Path(), "cpu").images).mean(
        0, keepdim=True
    )
    assert (
        correlation_matrix(drawn, real).item() > 0.6
    )  # of seeds 0 to 2, the least is 0.76; at width 8 it is a lottery
    assert correlation_matrix(untrained, real).abs().item() < 0.3


def test_an_affine_grid_is_pytorchs() -> None:
    matrices = torch.randn(5, 2, 3)
    for height, width in ((64, 64), (28, 28), (7, 20)):
        expected = torch.nn.functional.affine_grid(
            matrices, [5, 1, height, width], align_corners=False
        )
        torch.testing.assert_close(
            affine_grid(matrices, height, width), expected, rtol=0, atol=2e-6
        )


def test_random_affine_turns_shifts_and_scales_each_image_apart() -> None:
    torch.manual_seed(0)
    images = -torch.ones(64, 1, 32, 32)
    images[:, :, 12:20, 8:24] = 1
    assert torch.equal(random_affine(images, 0.0), images)
    turned = random_affine(images, 180.0)
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 64
    assert turned.min() == -1
    torch.manual_seed(1)
    expected = random_affine(images, 10.0)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_affine(images, 10.0), expected)
    mass, before = (turned + 1).sum((1, 2, 3)), (images + 1).sum((1, 2, 3))
    torch.testing.assert_close(mass, before, rtol=0.05, atol=0)  # a rotation keeps the ink
    scaled = (random_affine(images, 0.0, scale=0.3) + 1).sum((1, 2, 3)) / before
    assert scaled.min() < 0.75
    assert scaled.max() > 1.4


@pytest.mark.parametrize("augmentation", [0.5, 1.0])
def test_what_is_heard_is_turned_shifted_and_scaled_as_far_as_is_said_and_no_farther(
    augmentation: float,
) -> None:
    torch.manual_seed(0)
    bars = torch.zeros(200, 28, 28, dtype=torch.uint8)
    bars[:, 13:15, 4:24] = 255
    moved = augment_uint8(bars, augmentation)
    assert moved.shape == bars.shape
    assert moved.dtype == torch.float32
    assert (moved.min(), moved.max()) == (0, 1)
    ink, places = moved.double().numpy(), np.arange(28) - 13.5
    mass = ink.sum((1, 2))
    x, y = ((ink.sum(axis) * places).sum(1) / mass for axis in (1, 2))
    xx, yy = (
        (ink.sum(axis) * places**2).sum(1) / mass - mean**2 for axis, mean in ((1, x), (2, y))
    )
    xy = np.einsum("nij,i,j->n", ink, places, places) / mass - x * y
    turned = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))
    length = np.sqrt(xx / np.cos(np.radians(turned)) ** 2)
    for measured, most, rounding in (
        (turned, 10 * augmentation, 0.3),
        (x, 0.04 * 28 * augmentation * 1.25, 0.05),
        (y, 0.04 * 28 * augmentation * 1.25, 0.05),
        (length / np.median(length) - 1, 0.1 * augmentation * 1.15, 0.02),
    ):
        assert 0.7 * most < abs(measured).max() < most + rounding


# -- what they refuse --------------------------------------------------------------------------------------------------


def test_another_encoding_than_stage_one_learned_is_refused(results: Path) -> None:
    with pytest.raises(
        UserError, match=r"learned another encoding \(curve exponential, not linear\)"
    ):
        main(config(*STAGES[3], results, encoding=Encoding(curve="linear")))


def test_a_stage_one_that_names_no_data_set_is_refused(results: Path) -> None:
    path = results / "train_vggish" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["config"]["dataset"]
    torch.save(checkpoint, path)
    with pytest.raises(
        UserError, match=r"is no whole checkpoint \(no 'dataset'\); run train_vggish.py"
    ):
        main(config(*STAGES[3], results))


def test_two_processes_of_torchrun_train_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier, at the same batch; without dropout, whose noise is another in each
    process."""
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    (tmp_path / "without_dropout.py").write_text(
        "import runpy, sys, torch\n"
        "torch.nn.Dropout.forward = torch.nn.Dropout2d.forward = lambda self, x: x\n"
        "sys.path[0] = '.'\n"
        "sys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(tmp_path / "without_dropout.py"),
    )
    flags = ("--learning-rate", "0.1", "--results", str(tmp_path / "two"))
    done = script(
        "mnist_classify_train.py", *CHAIN["mnist_classify_train.py"], *flags, launcher=torchrun
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("device: ") == 1  # one of them speaks

    for kind in (torch.nn.Dropout, torch.nn.Dropout2d):
        monkeypatch.setattr(kind, "forward", lambda self, x: x)
    settings = {"dataset": "handwritten", "epochs": 1, "judge_epochs": 1, **SMALL}
    main(Config(learning_rate=0.1, results=tmp_path / "one", **settings))
    one, two = (
        load_checkpoint(
            tmp_path / results / "mnist_classify_train" / "checkpoint.pt", "mnist_classify_train"
        )
        for results in ("one", "two")
    )
    for name, weights in one["networks"]["classifier"].items():
        torch.testing.assert_close(two["networks"]["classifier"][name], weights, rtol=0, atol=1e-5)
    log = tmp_path / "two" / "mnist_classify_train" / "log.jsonl"
    assert len(log.read_text().splitlines()) == 1


@by_name
def test_on_a_gpu_a_stage_gives_what_it_gives_on_the_cpu_and_no_step_waits(
    stage: object, settings: dict, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first batch of each epoch is watched, since what is made once may come from the
    CPU."""
    every_term = {
        "epochs": 2,
        "detail": 1.0,
        "grey": 1.0,
        "distance": "loudness",
        "classifier_augmentation": 1.0,
    }
    turned = {"rotation": 10.0}
    settings = {
        **settings,
        "epochs": 1,
        **{train_all: every_term, mnist_classify_train: turned}.get(stage, {}),
    }
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    remembered = load_printed(400)
    monkeypatch.setattr(data, "_printed", lambda: remembered)
    shutil.copytree(results, results / "cpu")
    with (
        monkeypatch.context() as alike
    ):  # in batches as large as the GPU's, since the bits of a product may depend on them
        alike.setattr(vggish, "CPU_TOGETHER", 1_000_000)
        alike.setattr(voice_translator, "CPU_TOGETHER", voice_translator.GPU_TOGETHER)
        for name in (
            "save_grid",
            "save_curves",
            "save_soundscapes",
        ):  # which would take most of the time
            alike.setattr(figures, name, lambda *_, **__: None)
        stage.main(config(stage, settings, results / "cpu"))

    steps, step, gpu = [], CudaGraphStep.__call__, PretendedGPU()

    def watched(self: CudaGraphStep, *inputs: Any) -> Any:
        losses = step(self, *inputs)
        steps.append(bool(self.recordings))
        gpu.watching = len(steps) % 3 > 0  # an epoch has three batches
        return losses

    monkeypatch.setattr(CudaGraphStep, "__call__", watched)
    monkeypatch.setattr(replay, "LIVE", 1)
    with gpu:
        stage.main(config(stage, settings, results, device="cuda:0"))
    _reduction.cache_clear(), _projection.cache_clear()  # no other test shall meet this GPU's
    assert steps == [False, True, True] * (len(steps) // 3)
    assert gpu.waits == []
    for name in {stage.__name__, "judge"} if stage is mnist_classify_train else {stage.__name__}:
        assert_equal_weights(
            results / name / "checkpoint.pt", results / "cpu" / name / "checkpoint.pt"
        )


def test_a_deterministic_gpu_is_asked_for_no_gradient_that_it_cannot_repeat(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pictures that are shrunk, too: an encoding of fewer pixels than a drawing has."""
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = {
        **STAGES[3][1],
        "epochs": 1,
        "joint_epochs": 1,
        "classifier_augmentation": 1.0,
        "images_per_epoch": 32,
    }
    small = ImageToLogMel(Encoding(rows=12, columns=20, seconds=0.3))
    try:
        with PretendedGPU():
            image = torch.rand(2, 1, 64, 64).to("cuda:0").requires_grad_()
            assert main(config(train_all, settings, results, device="cuda:0", deterministic=True))
            small.to("cuda:0")(downsample_lstsq(image)).sum().backward()
            assert image.grad.cpu().abs().sum() > 0
            grid = torch.zeros(2, 4, 4, 2).to("cuda:0")
            with pytest.raises(
                RuntimeError, match="grid_sampler_2d_backward.* does not have a deterministic"
            ):  # it would tell
                torch.nn.functional.grid_sample(image, grid, align_corners=False).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
        for cached in (_reduction, _projection, voice_translator._shrinking):
            cached.cache_clear()  # no other test shall meet this GPU's


@pytest.mark.parametrize(("augmentation", "reach"), [(1.0, 1.0), (0.3, 1.0), (1.0, 8.0)])
def test_what_stands_in_for_the_gradient_of_grid_sample_is_the_same(
    augmentation: float, reach: float
) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 1, 20, 31, dtype=torch.float64, requires_grad=True)
    turned = (
        torch.eye(2, 3, dtype=torch.float64)
        + augmentation * torch.randn(3, 2, 3, dtype=torch.float64) / 4
    )
    grid = reach * torch.nn.functional.affine_grid(
        turned, [3, 1, 24, 24], align_corners=False
    )  # also far outside
    one = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    other = sample_by_gathers(images, grid)
    torch.testing.assert_close(other, one)
    assert 0 < one.count_nonzero() < one.numel()
    gradients = [torch.autograd.grad(sampled.square().sum(), images)[0] for sampled in (one, other)]
    torch.testing.assert_close(*gradients)


def test_float32_is_used_where_it_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert uses_bfloat16(cpu)
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    assert not uses_bfloat16(cpu)
    with autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setenv("LISTEN_PRECISION", "half")
    with pytest.raises(UserError, match="LISTEN_PRECISION is half; set it to auto or float32"):
        uses_bfloat16(cpu)


def test_a_mistake_at_the_command_line_is_one_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = script("train_all.py", "--results", str(tmp_path / "empty"), "--device", "cpu")
    assert (done.returncode, "Traceback" in done.stderr, done.stderr.count("\n")) == (2, False, 1)
    assert "run train_vggish.py" in done.stderr
    # And in this process, which spares the seconds that another takes to start.
    monkeypatch.setattr(
        sys,
        "argv",
        ["train_vggish.py", "--encoding.highest-hz", "9000", "--dataset", "handwritten"],
    )
    with pytest.raises(SystemExit) as ended:
        command_line(Config, main, "")
    assert (ended.value.code, "Nyquist" in capsys.readouterr().err) == (2, True)


COUNTS = ("epochs", "joint_epochs", "judge_epochs", "judges_epochs", "images_per_epoch", "batch", "judges_batch", "width",
          "kernel_centres", "refine_steps")  # fmt: skip
IMPOSSIBLE = [
    *[(stage, name, -1) for stage in (*(stage for stage, _ in STAGES), evaluate) for name in COUNTS],
    *[(stage, "batch", 1) for stage, _ in STAGES],
    *[(stage, "images_per_epoch", 1) for stage, _ in STAGES],
    *[(stage, "epochs", 0) for stage, _ in STAGES],
    *[(stage, "learning_rate", value) for stage, _ in STAGES for value in (0.0, float("nan"), float("inf"))],
    *[(stage, "seed", value) for stage, _ in STAGES for value in (10**13, -(10**13))],
    (train_all, "joint_learning_rate", -1e-4), (train_all, "grey", float("nan")), (train_all, "generator_lr_scale", -0.1),
    (emnist_dcgan, "discriminator_learning_rate", 0.0), (emnist_dcgan, "beta1", 1.0), (emnist_dcgan, "instance_noise", -0.1),
    (mnist_classify_train, "rotation", float("inf")), (mnist_classify_train, "judge_learning_rate", 0.0),
]  # fmt: skip
IMPOSSIBLE = [row for row in IMPOSSIBLE if row[1] in vars(row[0].Config())]


@pytest.mark.parametrize(
    ("stage", "name", "value"), IMPOSSIBLE, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_number_that_nothing_can_be_computed_with_is_refused(
    stage: object, name: str, value: float
) -> None:
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is {value}; give "):
        validate_settings(dataclasses.replace(stage.Config(), **{name: value}))


@by_name
def test_an_impossible_number_at_the_command_line_is_refused_before_any_work(
    stage: object,
    settings: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        [f"{stage.__name__}.py", "--batch", "1", "--results", str(tmp_path / "results")],
    )
    with pytest.raises(SystemExit) as ended:
        command_line(stage.Config, stage.main, "")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{stage.__name__}.py: --batch is 1; give at least 2.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script",
    [*(stage for stage, _ in STAGES), evaluate, controls, compare_encodings],
    ids=lambda s: s.__name__,
)
def test_the_help_says_of_each_setting_what_it_is(script: object) -> None:
    """tyro shows the first line of a setting's comment; of one without a comment, that of the group
    above."""
    lines = inspect.getsource(script.Config).splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"    \w+: ", line) and not line.startswith("    encoding:"):
            said = line.partition("  # ")[2]
            assert said, f"nothing is said of {line.strip()}"
            assert said.endswith(".") or not after.startswith("    #"), (
                f"in --help this breaks off: {said}"
            )


def test_a_whole_number_of_any_size_is_told_apart() -> None:
    for seed in (2**70, -(10**400)):
        with pytest.raises(UserError, match=r"--seed is -?1.*; give one of at most"):
            validate_settings(Config(seed=seed))
    with pytest.raises(UserError, match="--grey is inf; give a finite number"):
        validate_settings(Config(grey=float("inf")))


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "a/b", "a\\b"])
def test_a_name_that_is_none_of_a_folder_is_refused(name: str) -> None:
    for stage in (train_all, evaluate, controls):
        with pytest.raises(
            UserError, match="^--name is '.*', but is to name a folder in results; give a word"
        ):
            validate_settings(stage.Config(name=name))


def test_the_headers_as_they_are_are_possible() -> None:
    for stage in (*(stage for stage, _ in STAGES), evaluate):
        validate_settings(stage.Config())
    validate_settings(
        Config(joint_epochs=0, generator_lr_scale=0.0, seed=-1, images_per_epoch=2, batch=2)
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/elsewhere/checkpoint.pt"),
         "/elsewhere/checkpoint.pt cannot be used (Permission denied); unlock it or make room, or name another."),
        (OSError("the socket is gone"), "a file cannot be used (the socket is gone); unlock it"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB.\nSee the manual"),
         "the memory does not suffice (CUDA out of memory. Tried 9 GiB.); lower --batch, end what else takes it, or"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
         "the memory does not suffice ([enforce fail] DefaultCPUAllocator"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
         "the memory does not suffice (CUDA error: out of memory); lower --batch"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
         "the memory does not suffice (CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        (MemoryError(), "the memory does not suffice (no more is left)"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_one_sentence_and_exit_code_2(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def main(_: object) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["train_vggish.py"])
    with pytest.raises(SystemExit) as ended:
        command_line(Config, main, "")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"train_vggish.py: {sentence}") and said.count("\n") == 1


def test_a_defect_of_ours_is_not_taken_for_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(sys, "argv", ["train_vggish.py"])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        command_line(Config, main, "")


def test_a_gpu_that_cannot_be_used_and_one_for_all_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zeros = torch.zeros

    def broken(*size: int, device: object = "cpu", **more: object) -> Tensor:
        if torch.device(device).type == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available\nfor execution")
        return zeros(*size, device=device, **more)

    with PretendedGPU():
        monkeypatch.setattr(torch, "zeros", broken)
        with pytest.raises(
            UserError,
            match=r"the GPU cannot be used \(CUDA error: no kernel image is available\); give",
        ):
            choose_device("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(
        UserError, match="WORLD_SIZE is set, but LOCAL_RANK is not; start with torchrun"
    ):
        choose_device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(
        UserError, match="--device cuda:0 would be every process's; give cuda or auto"
    ):
        choose_device("cuda:0")


def test_a_gpu_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32
    )  # put back at the end
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with PretendedGPU():
        choose_device("cuda")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (
            False,
            False,
        )


def test_a_run_takes_no_other_scripts_place(results: Path) -> None:
    before = {path: path.read_bytes() for path in (results / "judge").iterdir()}
    with pytest.raises(
        UserError, match="judge holds what judge left, which this would replace; give another"
    ):
        main(config(*STAGES[3], results, name="judge"))
    assert {path: path.read_bytes() for path in (results / "judge").iterdir()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device cuda was demanded, but PyTorch sees no such GPU"):
        main(config(*STAGES[0], tmp_path, device="cuda"))


@by_name
def test_a_results_folder_that_cannot_be_written_is_refused(
    stage: object, settings: dict, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written|is missing; run"):
        stage.main(config(stage, settings, tmp_path / "file" / "results"))


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("train_vggish", "train_vggish.py"),
        ("mnist_classify_train", "mnist_classify_train.py"),
        ("emnist_dcgan", "emnist_dcgan.py"),
        ("judge", "mnist_classify_train.py"),
    ],
)
def test_stage_three_names_the_script_for_a_missing_damaged_or_foreign_checkpoint(
    folder: str, said: str, results: Path
) -> None:
    path = results / folder / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=f"{folder}/checkpoint.pt is damaged or no checkpoint; run {said}"
    ):
        main(config(*STAGES[3], results))
    path.unlink()
    with pytest.raises(UserError, match=f"{folder}/checkpoint.pt is missing; run {said}"):
        main(config(*STAGES[3], results))
    path.write_bytes((results / "train_all" / "checkpoint.pt").read_bytes())
    said = f"is a checkpoint of 'train_all', not of '{folder}'; run {said}"
    with pytest.raises(UserError, match=f"{folder}/checkpoint.pt {said}"):
        main(config(*STAGES[3], results))
    assert (results / "train_all" / "metrics.json").exists()  # nothing was lost


@pytest.mark.parametrize("folder", ["mnist_classify_train", "judge"])
def test_stage_three_refuses_a_reader_of_other_digits(folder: str, results: Path) -> None:
    path = results / folder / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["dataset"] = "mnist"
    torch.save(checkpoint, path)
    with pytest.raises(
        UserError, match="reads mnist, but .*run mnist_classify_train.py --dataset handwritten"
    ):
        main(config(*STAGES[3], results))


@pytest.mark.parametrize(
    "folder", ["train_vggish", "mnist_classify_train", "judge", "emnist_dcgan"]
)
def test_a_stage_does_not_go_on_from_one_that_is_not_complete(folder: str, results: Path) -> None:
    (results / folder / "metrics.json").unlink()
    hint = "mnist_classify_train" if folder == "judge" else folder
    for stage, settings in STAGES[3:] if folder != "judge" else STAGES[2:]:
        with pytest.raises(
            UserError, match=f"{folder} holds a run that is not complete; run {hint}.py --resume"
        ):
            stage.main(config(stage, settings, results))


def test_more_joint_epochs_than_epochs_are_refused(results: Path) -> None:
    with pytest.raises(UserError, match="--joint-epochs is 3, of 2 epochs; give no more of them"):
        main(config(*STAGES[3], results, joint_epochs=3))


def test_what_the_objective_leaves_out_is_not_logged_as_nothing(results: Path) -> None:
    terms = {"sound_consistency": 0.0, "rehearsal": 0.0, "epochs": 1}
    main(config(*STAGES[3], results, **terms))
    line = json.loads((results / "train_all" / "log.jsonl").read_text())
    assert not {"sound_distance", "rehearsal"} & line.keys()
    assert line["validation_sound_distance"] > 0


@pytest.mark.parametrize(("rotation", "judged"), [(0.0, 10.0), (10.0, 20.0), (180.0, 20.0)])
def test_the_judge_is_never_turned_so_far_that_a_six_is_a_nine(
    rotation: float, judged: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = []
    affine = random_affine
    monkeypatch.setattr(
        data,
        "random_affine",
        lambda x, degrees, **more: (turned.append(degrees), affine(x, degrees, **more))[1],
    )
    few = {**STAGES[1][1], "epochs": 1, "images_per_epoch": 32}
    main(config(mnist_classify_train, few, tmp_path, rotation=rotation))
    assert turned == ([rotation] if rotation else []) + [judged]


def test_stage_three_refuses_weights_that_do_not_fit_or_are_not_finite(results: Path) -> None:
    path = results / "emnist_dcgan" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "config": {**checkpoint["config"], "width": 8}}, path)
    with pytest.raises(UserError, match="do not fit Generator"):
        main(config(*STAGES[3], results))
    checkpoint["networks"]["generator"]["layers.0.weight"][0] = torch.nan
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="are not finite"):
        main(config(*STAGES[3], results))


def test_resume_refuses_what_it_cannot_go_on_with(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"metrics.json was made with another .*; set the header back, or leave out"
    ):
        main(config(*STAGES[0], results, resume=True))
    end_epoch = Run.end_epoch

    def stopped(run: Run, *rest: object, **named: object) -> None:
        end_epoch(run, *rest, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "end_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(config(*STAGES[0], results))
    with pytest.raises(UserError, match=r"another learning_rate \(learning_rate: 0.0001\)"):
        main(config(*STAGES[0], results, resume=True, learning_rate=0.1))
    path = results / "train_vggish" / "last.pt"
    last = torch.load(path, weights_only=True)
    for key, damaged, said in (
        ("state", {}, r"last.pt is no whole checkpoint \(no 'optimiser'\); leave out --resume"),
        ("history", [], "its epochs do not follow one another"),
        (
            "sha256",
            {**last["sha256"], "data/train": "0"},
            "was made from another data/train than is here now; put it back",
        ),
    ):
        torch.save({**last, key: damaged}, path)
        with pytest.raises(UserError, match=said):
            main(config(*STAGES[0], results, resume=True))


def test_frames_that_pooling_would_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        main(config(*STAGES[0], tmp_path, frames=100))


@pytest.mark.parametrize("stage", [train_vggish, mnist_classify_train])
def test_a_loss_that_is_not_finite_stops_the_stage(
    stage: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda logits, _: logits.sum() * torch.nan
    )
    with pytest.raises(UserError, match="training diverged; lower the learning rate"):
        stage.main(config(*next(pair for pair in STAGES if pair[0] is stage), tmp_path))
    assert not (tmp_path / stage.__name__ / "checkpoint.pt").exists()


def test_the_published_cut_and_width_are_available(tmp_path: Path) -> None:
    main(config(*STAGES[0], tmp_path, frames=96, epochs=1))
    network = VGGish(frames=96, width=4)
    load_weights(
        network,
        torch.load(tmp_path / "train_vggish" / "checkpoint.pt", weights_only=True)["networks"][
            "vggish"
        ],
        tmp_path,
    )
