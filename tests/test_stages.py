"""All stages: their records, the test set, their learning rates, and the folders that they need."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import header
from PIL import Image

import data
import emnist_dcgan
import mnist_classify_train
import train_all
import train_vggish
import training.classifier
from common.files import UserError
from training.loop import optimizer_step
from training.run import Run

pytestmark = pytest.mark.usefixtures("fewer_digits", "no_curves")
STAGES = (train_vggish, mnist_classify_train, emnist_dcgan, train_all)
by_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
RUNS = {  # folder -> stage
    "train_vggish": "train_vggish",
    "mnist_classify_train": "mnist_classify_train",
    "judges/cnn": "judge_cnn",
    "judges/vit": "judge_vit",
    "judges/kernel": "judge_kernel",
    "emnist_dcgan": "emnist_dcgan",
    "train_all": "train_all",
}


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_leaves_its_record_and_its_pictures(name: str, chain: Path) -> None:
    folder = chain / name
    files = {path.name for path in folder.iterdir()}
    assert {"checkpoint.pt", "metrics.json", "log.jsonl"} <= files
    assert "curves.png" in files or name == "judges/kernel"  # which learns in one step
    # kept only where --resume can prolong a complete run
    assert ("last.pt" in files) == (name in ("train_vggish", "mnist_classify_train"))
    assert not list(folder.glob(".*"))  # nothing half-written
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["stage"] == RUNS[name]
    assert metrics["seconds"] >= 0
    assert {"seed", "machine", "versions", "config", "revision", "epoch"} <= metrics.keys()
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["config"] == metrics["config"]
    assert checkpoint["version"] == 2
    epochs = [json.loads(line)["epoch"] for line in (folder / "log.jsonl").open()]
    assert epochs == list(range(1, len(epochs) + 1))
    for path in folder.glob("*.png"):
        Image.open(path).verify()


def test_metrics_are_in_their_ranges(chain: Path) -> None:
    metrics = {name: json.loads((chain / name / "metrics.json").read_text()) for name in RUNS}
    assert 0 <= metrics["train_vggish"]["test_accuracy"] <= 1
    for name in ("test_accuracy", "judge_accuracy", "judge_accuracy_worst", "retrieval"):
        assert 0 <= metrics["train_all"][name] <= 1
    assert -1 <= metrics["train_all"]["correlation"] <= 1
    assert metrics["train_all"]["frechet_distance"] > 0
    assert metrics["emnist_dcgan"]["frechet_distance"] > 0


@by_stage
def test_the_test_set_is_read_only_after_the_last_epoch(
    stage: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each network. The kernel judge has no epochs and nothing to choose."""
    calls: list[str] = []
    entry, end_epoch = data.DATASETS["handwritten"], Run.end_epoch

    def load(part: data.Part, root: Path) -> data.Digits:
        calls.append(part)
        return entry.load(part, root)

    def ending(run: Run, *args: Any, **named: Any) -> None:
        calls.append(run.stage)
        end_epoch(run, *args, **named)

    monkeypatch.setitem(data.DATASETS, "handwritten", entry._replace(load=load))
    monkeypatch.setattr(Run, "end_epoch", ending)
    stage.main(header(stage, results))
    networks = {train_vggish: 1, mnist_classify_train: 4, emnist_dcgan: 0, train_all: 1}[stage]
    assert calls.count("test") == networks
    if networks == 1:
        assert calls[-1] == "test"
    if networks == 4:
        for judge in ("judge_cnn", "judge_vit"):
            assert "test" in calls[calls.index(judge) :]
        assert "test" not in calls[: calls.index("mnist_classify_train")]


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        (
            train_vggish,
            {"epochs": 3, "late_epoch": 3, "learning_rate": 1e-3},
            {"Adam": [[1e-3], [1e-3], [1e-4]]},
        ),
        (
            mnist_classify_train,
            {"epochs": 3, "late_epoch": 2, "learning_rate": 1e-2}
            | {"cnn_epochs": 3, "cnn_learning_rate": 4e-3}
            | {"vit_epochs": 2, "vit_learning_rate": 2e-3},
            {
                "SGD": [[1e-2], [1e-3], [1e-3]],
                # the judges' along a cosine, first cnn's, then vit's
                "AdamW": [[4e-3], [3e-3], [1e-3], [2e-3], [1e-3]],
            },
        ),
        (
            emnist_dcgan,
            {"epochs": 2, "learning_rate": 1e-3, "discriminator_learning_rate": 2e-4},
            # the discriminator's step, then the generator's
            {"Adam": [[2e-4], [1e-3], [2e-4], [1e-3]]},
        ),
        (
            train_all,
            {"epochs": 4, "joint_epochs": 2, "learning_rate": 1e-3}
            | {"joint_learning_rate": 4e-4, "generator_lr_scale": 0.5},
            # the audio network's, and the generator's
            {"Adam": [[1e-3, 5e-4], [1e-3, 5e-4], [4e-4, 2e-4], [2e-4, 1e-4]]},
        ),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_the_learning_rates_are_those_of_the_header(
    stage: ModuleType, changes: dict, expected: dict, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: dict[str, list[list[float]]] = {}

    def watched(loss: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
        groups = [group["lr"] for group in optimiser.param_groups]
        rates.setdefault(type(optimiser).__name__, []).append(groups)
        optimizer_step(loss, optimiser)

    module = training.classifier if stage is mnist_classify_train else stage
    monkeypatch.setattr(module, "optimizer_step", watched)
    stage.main(header(stage, results, images_per_epoch=32, **changes))  # a step an epoch
    assert rates.keys() == expected.keys()
    for kind, used in rates.items():
        np.testing.assert_allclose(used, expected[kind], rtol=1e-6)


@by_stage
def test_a_results_folder_that_cannot_be_written_is_refused(
    stage: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written|is missing; run"):
        stage.main(header(stage, tmp_path / "file" / "results"))


@pytest.mark.parametrize(
    "folder", ["train_vggish", "mnist_classify_train", "judges/cnn", "emnist_dcgan"]
)
def test_a_stage_does_not_start_from_an_incomplete_run(folder: str, results: Path) -> None:
    (results / folder / "metrics.json").unlink()
    script = "mnist_classify_train" if folder == "judges/cnn" else folder
    message = f"{folder} holds a run that is not complete; run {script}.py --resume"
    for stage in (train_all, emnist_dcgan) if folder == "judges/cnn" else (train_all,):
        with pytest.raises(UserError, match=message):
            stage.main(header(stage, results))


@pytest.mark.parametrize("stage", [train_vggish, mnist_classify_train], ids=lambda s: s.__name__)
def test_a_loss_that_is_not_finite_stops_the_stage(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits.sum() * torch.nan

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", broken)
    with pytest.raises(UserError, match="training diverged; lower the learning rate"):
        stage.main(header(stage, tmp_path))
    assert not (tmp_path / stage.__name__ / "checkpoint.pt").exists()


def draw_pictures(root: Path, counts: dict[str, int]) -> Path:
    """A folder `pictures` of PNGs in `root`, with a bar at another height for each class."""
    rng = np.random.default_rng(0)
    for place, (name, count) in enumerate(counts.items()):
        folder = root / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(count):
            picture = rng.integers(0, 40, (28, 28), dtype=np.uint8)
            picture[4 + 8 * place : 10 + 8 * place, 4:24] = 255
            Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return root


def test_a_folder_of_pictures_of_three_classes_trains_through_all_stages(tmp_path: Path) -> None:
    root = draw_pictures(tmp_path / "data", {"apple": 30, "pear": 30, "plum": 30})
    results = tmp_path / "results"
    shared = {"data_root": root, "epochs": 1}
    chosen = {"dataset": "pictures"}
    train_vggish.main(header(train_vggish, results, **shared, **chosen))
    mnist_classify_train.main(header(mnist_classify_train, results, **shared, **chosen))
    emnist_dcgan.main(header(emnist_dcgan, results, **shared, **chosen))
    metrics = train_all.main(header(train_all, results, **shared))
    assert 0 <= metrics["judge_accuracy"] <= 1
    for run in ("train_vggish", "mnist_classify_train", "judges/cnn", "judges/kernel", "train_all"):
        config = json.loads((results / run / "metrics.json").read_text())["config"]
        assert (config["classes"], config["dataset"]) == (3, "pictures")
    assert Image.open(results / "train_all" / "imagined.png").height == 20 + 3 * 66 + 2
