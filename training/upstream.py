"""What earlier stages left in the results folder, and how it is loaded."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import load_checkpoint, load_network, training_command
from common.device import Network, place
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


def upstream_folders(config: Any) -> dict[str, Path]:
    """Stage -> the folder of its run: the one that the header of train_all.py names, or the one in
    its `results`."""
    given = {
        "train_vggish": config.audio_run,
        "mnist_classify_train": config.classifier_run,
        "judge_cnn": config.judges and config.judges / "cnn",
        "emnist_dcgan": config.gan_run,
    }
    return {stage: given[stage] or config.results / name for stage, name in UPSTREAM_STAGES.items()}


def stage_folders(run: Path) -> dict[str, Path]:
    """Stage -> the folder of its run, of all that a run of stage three was made of, the run itself
    included.

    Raises:
        UserError: if the run's checkpoint is missing, damaged or of another stage.
    """
    path = run / "checkpoint.pt"
    hint = f"run {training_command('train_all', run.name)}"
    config = load_checkpoint(path, "train_all", hint)["config"]
    with explain_malformed(path, hint):
        folders = {
            stage: Path(os.path.normpath(run / config["upstream"][stage]))
            for stage in UPSTREAM_STAGES
        }
    return {**folders, "train_all": run}


def load_upstream(folders: Mapping[str, Path], device: torch.device) -> Upstream:
    """Load everything that stage three needs, from complete runs: stage -> the folder of its run.

    Raises:
        UserError: if a run is missing, not complete or damaged, or the stages learned different
            data sets.
    """
    front_end, audio_network, config = load_audio_network(folders["train_vggish"], device)
    dataset = config["dataset"]
    generator = load_generator(folders["emnist_dcgan"], device)
    classifier = load_classifier(folders["mnist_classify_train"], dataset, device)
    judge = load_judge(folders["judge_cnn"], dataset, device)
    for stage in UPSTREAM_STAGES:
        require_complete(folders[stage], f"run {training_command(stage)}")
    return Upstream(
        front_end, audio_network, generator, classifier, judge, dataset, config["classes"]
    )


def load_audio_network(
    run: Path, device: torch.device | str = "cpu"
) -> tuple[ImageToLogMel, VGGish, dict[str, Any]]:
    """The front end and the audio network that train_vggish.py left in `run`, in eval mode on
    `device`, and the run's settings.

    `network.embed(front_end(images))` is the `(B, 100)` embedding, `network(front_end(images))` the
    `(B, classes)` logits.

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
    """The generator of a run of emnist_dcgan.py, in eval mode.

    Raises:
        UserError: if the checkpoint is missing, damaged or of another stage.
    """
    stage = "emnist_dcgan"
    return load_stage(stage, "generator", lambda c, _: Generator(c["width"]), run, None, device)


def load_classifier(run: Path, dataset: str | None, device: torch.device | str = "cpu") -> LeNet:
    """The classifier that mnist_classify_train.py left in `run`, frozen and in eval mode.

    Raises:
        UserError: if the checkpoint is missing or damaged, or it learned another data set than
            `dataset`; if None, any will do.
    """
    stage = "mnist_classify_train"
    build = lambda config, _: LeNet(config["classes"])  # noqa: E731
    return load_stage(stage, "classifier", build, run, dataset, device).requires_grad_(False)


def load_judge(run: Path, dataset: str | None, device: torch.device | str = "cpu") -> CNNJudge:
    """The CNN judge, frozen and in eval mode; arguments and errors as in `load_classifier`."""
    build = lambda config, _: CNNJudge(config["classes"])  # noqa: E731
    return load_stage("judge_cnn", "classifier", build, run, dataset, device).requires_grad_(False)


def load_stage(
    stage: str, name: str, build: Callable[[dict[str, Any], dict[str, Any]], Network], run: Path,
    dataset: str | None, device: torch.device | str,
) -> Network:  # fmt: skip
    """The network `name` of a run of `stage`, in eval mode. `build` makes it from the settings
    and the weights; the rest is as in `load_classifier`."""
    path, hint = Path(run) / "checkpoint.pt", f"run {training_command(stage)}"
    checkpoint = load_checkpoint(path, stage)
    config = checkpoint["config"]
    with explain_malformed(path, hint):
        if dataset and config["dataset"] != dataset:
            raise UserError(
                f"{path} learned {config['dataset']}, but stage one learned {dataset}; {hint} "
                f"--dataset {dataset}."
            )
        state = checkpoint["networks"][name]
        network = load_network(lambda: build(config, state), state, path)
    return place(network, device).eval()
