"""What earlier stages left in the results folder, and how it is loaded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpoint import load_checkpoint, load_network, training_command
from common.device import place
from common.files import UserError, explain_malformed
from models.generator import Generator
from models.judge_cnn import CNNJudge
from models.late_blind import load_front_end
from models.lenet import LeNet
from models.vggish import VGGish
from training.run import require_complete
from vggish import ImageToLogMel

# Stage -> the folder of its run in results. The judge takes no part in training.
UPSTREAM_STAGES = {
    "train_vggish": "train_vggish",
    "mnist_classify_train": "mnist_classify_train",
    "judge_cnn": "judges/cnn",
    "emnist_dcgan": "emnist_dcgan",
}


@dataclass
class Upstream:
    """The networks of stages one and two, in eval mode. All but the audio network and the generator
    are frozen."""

    front_end: ImageToLogMel
    audio_network: VGGish
    generator: Generator
    classifier: LeNet
    judge: CNNJudge
    dataset: str  # that stage one learned to hear
    classes: int


def upstream_folders(
    results: Path,
    audio_run: Path | None = None,
    classifier_run: Path | None = None,
    gan_run: Path | None = None,
    judges: Path | None = None,
) -> dict[str, Path]:
    """Stage -> the folder of its run, by default in `results`."""
    given = {
        "train_vggish": audio_run,
        "mnist_classify_train": classifier_run,
        "judge_cnn": judges and judges / "cnn",
        "emnist_dcgan": gan_run,
    }
    return {stage: given[stage] or results / folder for stage, folder in UPSTREAM_STAGES.items()}


def stage_folders(run: Path) -> dict[str, Path]:
    """Stage -> the folder of its run, of all that a run of stage three was made of, the run itself
    included.

    Raises:
        UserError: if the run's checkpoint is missing, damaged or of another stage.
    """
    path = run / "checkpoint.pt"
    config = load_checkpoint(path, "train_all", f"run {training_command('train_all', run.name)}")[
        "config"
    ]
    with explain_malformed(path, "run train_all.py"):
        folders = {
            stage: Path(os.path.normpath(run / config["upstream"][stage]))
            for stage in UPSTREAM_STAGES
        }
    return {**folders, "train_all": run}


def load_upstream(folders: Mapping[str, Path], device: torch.device) -> Upstream:
    """Load everything that stage three needs from complete runs.

    Args:
        folders: stage -> the folder of its run; see `stage_folders`.
        device: where the networks are put.

    Raises:
        UserError: if a run is missing, not complete or damaged, or the stages learned different
            data sets.
    """
    front_end, audio_network, config = load_audio_network(folders["train_vggish"], device)
    dataset, classes = config["dataset"], config["classes"]
    upstream = Upstream(
        front_end,
        audio_network,
        load_generator(folders["emnist_dcgan"], device),
        load_classifier(folders["mnist_classify_train"], dataset, device),
        load_judge(folders["judge_cnn"], dataset, device),
        dataset,
        classes,
    )
    for stage in UPSTREAM_STAGES:
        require_complete(folders[stage], f"run {training_command(stage)}")
    return upstream


def load_audio_network(
    run: Path, device: torch.device | str = "cpu"
) -> tuple[ImageToLogMel, VGGish, dict[str, Any]]:
    """The front end and the audio network of a run of stage one, in eval mode, and the run's
    settings.

    `network.embed(front_end(images))` is the `(B, 100)` embedding, `network(front_end(images))` the
    `(B, classes)` logits.

    Args:
        run: the folder that train_vggish.py left.
        device: where both are put.

    Raises:
        UserError: if the checkpoint is missing, damaged, of another stage, or learned other sounds
            than the code makes.
    """
    path = Path(run) / "checkpoint.pt"
    checkpoint = load_checkpoint(path, "train_vggish")
    config = checkpoint["config"]
    with explain_malformed(path, "run train_vggish.py"):
        front_end = load_front_end(config, checkpoint, path, device)
        config["dataset"], config["classes"]  # a checkpoint without them is malformed
        network = load_network(
            lambda: VGGish(front_end.frames, config["width"], config["classes"]),
            checkpoint["networks"]["vggish"],
            path,
        )
    return front_end, place(network, device).eval(), config


def load_generator(run: Path, device: torch.device | str = "cpu") -> Generator:
    """The generator of a run of emnist_dcgan.py, in eval mode; it raises as `load_audio_network`
    does."""
    path = Path(run) / "checkpoint.pt"
    checkpoint = load_checkpoint(path, "emnist_dcgan")
    with explain_malformed(path, "run emnist_dcgan.py"):
        width, state = checkpoint["config"]["width"], checkpoint["networks"]["generator"]
        generator = load_network(lambda: Generator(width), state, path)
    return place(generator, device).eval()


def load_classifier(run: Path, dataset: str | None, device: torch.device | str = "cpu") -> LeNet:
    """The classifier of a run of mnist_classify_train.py, frozen and in eval mode.

    Args:
        run: the folder of the run.
        dataset: the data set that it must have learned. None: any.
        device: where it is put.

    Raises:
        UserError: if the checkpoint is missing or damaged, or it learned another data set.
    """
    return _load_frozen(LeNet, "mnist_classify_train", run, dataset, device)


def load_judge(run: Path, dataset: str | None, device: torch.device | str = "cpu") -> CNNJudge:
    """The CNN judge, frozen and in eval mode; arguments and errors as in `load_classifier`."""
    return _load_frozen(CNNJudge, "judge_cnn", run, dataset, device)


def _load_frozen(
    kind: Any, stage: str, run: Path, dataset: str | None, device: torch.device | str
) -> Any:
    path, hint = Path(run) / "checkpoint.pt", f"run {training_command(stage)}"
    checkpoint = load_checkpoint(path, stage, hint)
    with explain_malformed(path, hint):
        learned, classes = checkpoint["config"]["dataset"], checkpoint["config"]["classes"]
        if dataset and learned != dataset:
            raise UserError(
                f"{path} learned {learned}, but stage one learned {dataset}; {hint} --dataset "
                f"{dataset}."
            )
        network: nn.Module = load_network(
            lambda: kind(classes), checkpoint["networks"]["classifier"], path
        )
    return place(network, device).requires_grad_(False).eval()
