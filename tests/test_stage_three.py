"""Stage three: what it leaves, what it trains, how its terms count, and what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_equal_weights, header, weights
from PIL import Image
from torch import Tensor

import evaluation.imagine
import train_all
import train_vggish
from common.files import UserError
from data import load_digits
from data.resize import downsample_lstsq
from evaluation.imagine import imagine
from evaluation.metrics import rate_images
from models.generator import Generator
from models.late_blind import LateBlind
from models.vggish import VGGish
from train_all import sample
from training.losses import audio_loss
from training.upstream import load_generator, load_upstream, stage_folders
from voice_translator import Encoding

pytestmark = pytest.mark.usefixtures("fewer_digits", "no_curves")
FIRST_LAYER = "vggish.features.0.weight"


def run_stage(results: Path, **changes: Any) -> Path:
    """Run stage three with the chain's settings and `changes`; returns the run's folder."""
    settings = header(train_all, results, **changes)
    train_all.main(settings)
    return settings.results / settings.name


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def edit_checkpoint(path: Path, edit: Any) -> None:
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path)


# -- what it leaves


def test_it_leaves_a_picture_of_every_epoch_and_of_the_test_set(chain: Path) -> None:
    pictures = sorted(path.name for path in (chain / "train_all").glob("imagined*.png"))
    assert pictures == ["imagined.png", "imagined_001.png", "imagined_002.png"]
    # a row per class, eight pairs in it; above and left of them the labels
    width, height = Image.open(chain / "train_all" / "imagined.png").size
    assert height == 20 + 10 * 66 + 2
    assert 16 * 66 + 2 < width < 16 * 66 + 40


def test_the_checkpoint_decides_the_encoding_the_frames_and_the_hop(results: Path) -> None:
    """Stage three has no setting for them: it takes what stage one learned."""
    fields = {field.name for field in dataclasses.fields(train_all.Config)}
    assert not fields & {"encoding", "frames", "hop", "dataset"}
    odd = Encoding(curve="linear", seconds=0.5)
    settings = {"encoding": odd, "frames": 32, "hop": 305, "epochs": 1}
    train_vggish.main(header(train_vggish, results, **settings))
    run = run_stage(results, epochs=1)
    kept = torch.load(run / "checkpoint.pt", weights_only=True)["config"]
    assert kept["encoding"] == dataclasses.asdict(odd)
    assert (kept["frames"], kept["hop"]) == (32, 305)
    front_end = LateBlind.load(run).front_end
    assert (front_end.encoding, front_end.frames, front_end.hop) == (odd, 32, 305)


def test_the_runs_of_earlier_stages_can_be_elsewhere(results: Path, tmp_path: Path) -> None:
    moved = {
        "audio_run": "train_vggish",
        "classifier_run": "mnist_classify_train",
        "gan_run": "emnist_dcgan",
        "judges": "judges",
    }
    for folder in moved.values():
        (results / folder).rename(tmp_path / f"my {folder}")
    folders = {flag: tmp_path / f"my {folder}" for flag, folder in moved.items()}
    run = run_stage(tmp_path / "new", epochs=1, images_per_epoch=32, **folders)
    found = stage_folders(run)
    assert found["train_all"] == run
    assert found["train_vggish"] == folders["audio_run"]
    assert found["judge_cnn"] == folders["judges"] / "cnn"
    assert all((folder / "checkpoint.pt").is_file() for folder in found.values())


def test_terms_that_the_objective_leaves_out_are_not_in_the_log(results: Path) -> None:
    (line,) = log(run_stage(results, sound_consistency=0.0, epochs=1))
    assert not {"audio_loss", "replay", "null_space", "binarization"} & line.keys()
    assert line["validation_audio_loss"] > 0


# -- what it trains


def test_frozen_networks_do_not_change(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def watched(*args: Any) -> Any:
        loaded.append(load_upstream(*args))
        return loaded[-1]

    monkeypatch.setattr(train_all, "load_upstream", watched)
    run_stage(results, joint_epochs=1, joint_learning_rate=1e-2)
    (upstream,) = loaded
    for network, folder in (
        (upstream.classifier, "mnist_classify_train"),
        (upstream.judge, "judges/cnn"),
    ):
        stored = weights(results / folder)
        for name, value in network.state_dict().items():
            assert torch.equal(value, stored[f"classifier.{name}"]), name
        assert not network.training
        assert all(parameter.grad is None for parameter in network.parameters())
    stored = weights(results / "emnist_dcgan")
    state = upstream.generator.state_dict()
    changed = {name for name in state if not torch.equal(state[name], stored[f"generator.{name}"])}
    assert not upstream.generator.training
    # The statistics of its BatchNorm stay. The best epoch may be the one before the joint epoch.
    assert changed <= {name for name, _ in upstream.generator.named_parameters()}


def test_the_generator_learns_in_the_joint_epochs_only(results: Path) -> None:
    name = "generator.layers.0.weight"
    stored = weights(results / "emnist_dcgan")[name]
    for joint_epochs, scale in ((0, 1.0), (1, 1.0), (1, 0.0)):
        run = run_stage(results, epochs=1, joint_epochs=joint_epochs, generator_lr_scale=scale)
        unchanged = torch.equal(weights(run)[name], stored)
        assert unchanged == (joint_epochs == 0 or scale == 0)


def test_no_dropout_switches_off_the_layer_before_the_embedding(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer has a name, and the BatchNorm behind it goes on learning."""
    network = VGGish(frames=16, width=4)
    assert isinstance(network.dropout, torch.nn.Dropout)
    assert any(layer is network.dropout for layer in network.embedding)
    modes, embed = [], VGGish.embed

    def watched(self: VGGish, logmels: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # a training step
            modes.append((self.dropout.training, self.embedding[-1].training))
        return embed(self, logmels)

    monkeypatch.setattr(VGGish, "embed", watched)
    for dropout in (True, False):
        modes.clear()
        run_stage(results, dropout=dropout, images_per_epoch=32)
        assert modes == [(dropout, True)] * 2
    network.train()
    network.dropout.eval()
    logmels = torch.randn(4, 1, 16, 64)
    assert torch.equal(network.embed(logmels), network.embed(logmels))


def test_no_judge_takes_part_in_the_choice_of_the_epoch(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(results, name="judged")

    def misjudged(*args: Any) -> dict[str, float]:
        return {name: -value for name, value in rate_images(*args).items()}

    monkeypatch.setattr(evaluation.imagine, "rate_images", misjudged)
    run_stage(results, name="misjudged")
    assert log(results / "misjudged")[0]["validation_judge_accuracy"] <= 0
    assert_equal_weights(results / "judged", results / "misjudged")


# -- how its terms count


def test_every_term_of_the_objective_counts(results: Path) -> None:
    """Replay changes the batch whatever its weight, and has a test of its own."""
    learned = []
    published = {"epochs": 1, "images_per_epoch": 64, "sound_consistency": 0.0}
    terms = (
        "sound_consistency",
        "null_space_weight",
        "binarization_weight",
        "classifier_augmentation",
    )
    for name in ("published", *terms):
        term = {name: 1.0} if name in terms else {}
        run = run_stage(results, **{**published, **term, "name": name})
        learned.append(weights(run)[FIRST_LAYER])
    for position, one in enumerate(learned):
        assert not any(torch.equal(one, other) for other in learned[:position])


def test_binarization_starts_at_zero(results: Path) -> None:
    learned = {}
    for weight, images in ((0.0, 32), (9.0, 32), (9.0, 64), (0.0, 64)):  # one step, or two
        run = run_stage(results, epochs=1, images_per_epoch=images, binarization_weight=weight)
        learned[weight, images] = weights(run)[FIRST_LAYER]
    assert torch.equal(learned[0.0, 32], learned[9.0, 32])
    assert not torch.equal(learned[0.0, 64], learned[9.0, 64])


def test_the_classifier_sees_augmented_images_and_the_audio_loss_does_not(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that the classifier teaches nothing
    monkeypatch.setattr(train_all, "augment", lambda images, _: images * 0)
    schedule = {"epochs": 1, "joint_epochs": 0, "images_per_epoch": 64}
    before = weights(results / "train_vggish")[FIRST_LAYER]
    for augmentation, consistency, learns in (
        (1.0, 0.0, False),
        (1.0, 1.0, True),
        (0.0, 0.0, True),
    ):
        terms = {"classifier_augmentation": augmentation, "sound_consistency": consistency}
        run = run_stage(results, **schedule, **terms)
        assert torch.equal(weights(run)[FIRST_LAYER], before) == (not learns)


def test_the_loudness_loss_comes_first_and_every_epoch_is_rated_by_the_other(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = []

    def watched(*args: Any) -> Tensor:
        used = audio_loss(*args)
        others = (audio_loss(*args[:4], kind).item() for kind in ("loudness", "multires_l1"))
        values.append((used.item(), *others))
        return used

    monkeypatch.setattr(train_all, "audio_loss", watched)
    schedule = {"joint_epochs": 2, "audio_loss": "multires_l1"}
    run = run_stage(results, **schedule, loudness_fraction=0.8)
    assert len(values) == 6
    first = 5  # the steps at 0/6 ... 4/6, below 0.8
    assert all(used == loudness != other for used, loudness, other in values[:first])
    assert all(used == other for used, _, other in values[first:])
    validation = load_digits("handwritten", "validation", Path(), "cpu")
    _, distance = imagine(LateBlind.load(run), validation.images, "multires_l1")
    best = min(log(run), key=lambda line: line["validation_loss"])
    assert best["validation_audio_loss"] == pytest.approx(distance, rel=1e-4)


def test_replay_teaches_to_imagine_the_images_of_the_frozen_generator(results: Path) -> None:
    def strengthen(checkpoint: dict) -> None:
        state = checkpoint["networks"]["generator"]
        for value in state.values():
            if value.dim() == 4:
                value *= 8  # after so little training it draws hardly anything else than grey
        # two dimensions are learned sooner than a hundred
        state["layers.0.weight"][2:] = 0

    edit_checkpoint(results / "emnist_dcgan" / "checkpoint.pt", strengthen)
    torch.manual_seed(0)
    drawn = sample(load_generator(results / "emnist_dcgan"), 64, torch.device("cpu"))
    assert drawn.std(0).mean() > 0.03
    objective = {"sound_consistency": 0.0, "classifier_weight": 0.0, "replay_weight": 10.0}
    schedule = {"epochs": 1, "joint_epochs": 0, "dropout": False}
    error = []
    # Without learning too, the statistics of the embedding's BatchNorm follow the sounds.
    for rate, images in ((1e-12, 320), (1e-3, 1280)):
        settings = {**objective, **schedule, "learning_rate": rate, "images_per_epoch": images}
        model = LateBlind.load(run_stage(results, **settings))
        with torch.no_grad():
            imagined = model(downsample_lstsq(drawn)[:, 0], validate=False)
            error.append((imagined - drawn).square().mean().item())
    assert error[1] < 0.6 * error[0]


def test_replay_draws_from_the_generator_of_stage_two_also_after_a_resume(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = weights(results / "emnist_dcgan")
    unchanged = []

    def watched(generator: Generator, *args: Any) -> Tensor:
        state = generator.state_dict()
        unchanged.append(all(torch.equal(state[k], stored[f"generator.{k}"]) for k in state))
        if len(unchanged) == 4:  # the first step of the second epoch
            raise KeyboardInterrupt
        return sample(generator, *args)

    monkeypatch.setattr(train_all, "sample", watched)
    settings = header(
        train_all, results, replay_weight=1.0, joint_epochs=2, joint_learning_rate=1e-2
    )
    with pytest.raises(KeyboardInterrupt):
        train_all.main(settings)
    train_all.main(dataclasses.replace(settings, resume=True))
    assert unchanged == [True] * 7


# -- what it refuses


def test_more_joint_epochs_than_epochs_are_refused(results: Path) -> None:
    with pytest.raises(UserError, match="--joint-epochs is 3, but --epochs only 2; give no more"):
        run_stage(results, joint_epochs=3)


def test_a_stage_one_without_a_data_set_is_refused(results: Path) -> None:
    path = results / "train_vggish" / "checkpoint.pt"
    edit_checkpoint(path, lambda checkpoint: checkpoint["config"].pop("dataset"))
    message = r"is no whole checkpoint \(no 'dataset'\); run train_vggish.py"
    with pytest.raises(UserError, match=message):
        run_stage(results)


def test_a_checkpoint_of_version_1_is_refused_in_one_sentence(results: Path) -> None:
    path = results / "train_vggish" / "checkpoint.pt"
    edit_checkpoint(path, lambda checkpoint: checkpoint.update(version=1))
    message = "has checkpoint version 1, but this code reads version 2; run train_vggish.py"
    with pytest.raises(UserError, match=message):
        run_stage(results)


UPSTREAM = {
    "train_vggish": "train_vggish",
    "mnist_classify_train": "mnist_classify_train",
    "emnist_dcgan": "emnist_dcgan",
    "judges/cnn": "mnist_classify_train",
}


@pytest.mark.parametrize("folder", UPSTREAM)
def test_a_missing_damaged_or_foreign_checkpoint_names_the_script_to_run(
    folder: str, results: Path
) -> None:
    path, script = results / folder / "checkpoint.pt", UPSTREAM[folder]
    whole = path.read_bytes()
    stage = torch.load(path, weights_only=True)["stage"]
    for content, message in (
        (whole[: len(whole) // 2], "is damaged or no checkpoint"),
        (None, "is missing"),
        (
            (results / "train_all" / "checkpoint.pt").read_bytes(),
            f"is a checkpoint of 'train_all', not of '{stage}'",
        ),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{folder}/checkpoint.pt {message}; run {script}.py"):
            run_stage(results)
    assert (results / "train_all" / "metrics.json").exists()  # nothing was lost


@pytest.mark.parametrize("folder", ["mnist_classify_train", "judges/cnn"])
def test_a_classifier_of_another_data_set_is_refused(folder: str, results: Path) -> None:
    def learned_mnist(checkpoint: dict) -> None:
        checkpoint["config"]["dataset"] = "mnist"

    edit_checkpoint(results / folder / "checkpoint.pt", learned_mnist)
    message = (
        "learned mnist, but stage one learned handwritten; "
        "run mnist_classify_train.py --dataset handwritten"
    )
    with pytest.raises(UserError, match=message):
        run_stage(results)


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(results: Path) -> None:
    path = results / "emnist_dcgan" / "checkpoint.pt"

    def wider(checkpoint: dict) -> None:
        checkpoint["config"]["width"] = 8

    def broken(checkpoint: dict) -> None:
        checkpoint["config"]["width"] = 4
        checkpoint["networks"]["generator"]["layers.0.weight"][0] = torch.nan

    for edit, message in ((wider, "do not fit Generator"), (broken, "are not finite")):
        edit_checkpoint(path, edit)
        with pytest.raises(UserError, match=message):
            run_stage(results)


def test_it_does_not_replace_the_run_of_another_script(results: Path) -> None:
    before = {path: path.read_bytes() for path in (results / "emnist_dcgan").iterdir()}
    message = "emnist_dcgan holds what emnist_dcgan left, which this would replace; give another"
    with pytest.raises(UserError, match=message):
        run_stage(results, name="emnist_dcgan")
    after = {path: path.read_bytes() for path in (results / "emnist_dcgan").iterdir()}
    assert after == before
