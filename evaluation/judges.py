"""The judges: three classifiers of different architecture that take no part in training the model.

    cnn       models/judge_cnn.py, a residual network
    vit       models/judge_vit.py, a vision transformer
    kernel    models/judge_kernel.py, Gaussian kernels on pixels

mnist_classify_train.py trains them from real images alone, and leaves them in `results/judges/`. No
gradient passes through them afterwards. An image that fools one of them need not fool the
others."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.device import place
from data import class_names, data_hashes, load_digits
from data.augment import random_affine
from data.resize import upsample
from models.judge_cnn import CNNJudge
from models.judge_kernel import KernelJudge
from models.judge_vit import ViTJudge
from training.classifier import classification_accuracy, train_classifier
from training.run import Run, differs_from_run
from training.upstream import load_judge, load_stage

JUDGES = ("cnn", "vit", "kernel")


@dataclass(frozen=True)
class JudgeConfig:
    """How one judge is trained, and where it is left."""

    dataset: str
    epochs: int
    batch: int
    images_per_epoch: int | None
    learning_rate: float  # AdamW; it falls to 0 along a cosine
    # the training images are rotated by up to this, shifted by up to 8 %, and scaled by up to 12 %
    degrees: float
    seed: int
    data_root: Path
    results: Path
    resume: bool
    deterministic: bool
    cuda_graphs: bool


def train_judge(name: str, config: JudgeConfig, device: torch.device) -> float:
    """Train the judge `cnn` or `vit`, and leave it in `results/judges/<name>/`; returns its
    accuracy on the test set."""
    config = resume_if_same(name, config)
    torch.manual_seed(config.seed)
    classes = len(class_names(config.dataset, config.data_root))
    judge = place(CNNJudge(classes) if name == "cnn" else ViTJudge(classes=classes), device)
    optimiser = torch.optim.AdamW(
        judge.parameters(), config.learning_rate, weight_decay=0.01, fused=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs)

    def distort(images: Tensor) -> Tensor:
        return random_affine(images, config.degrees, shift=0.08, scale=0.12)

    run = f"judge_{name}", judge, optimiser, scheduler, distort, config, f"judges/{name}"
    return train_classifier(*run)["test_accuracy"]


@dataclass(frozen=True)
class KernelConfig:
    """How the kernel judge is fitted, and where it is left."""

    dataset: str
    centres: int  # real images that an image is compared with; at most the whole training set
    seed: int
    data_root: Path
    results: Path
    resume: bool
    deterministic: bool
    gamma: float = 2.0  # of the kernels. On MNIST's validation part: 2 98.2 %, 4 97.9 %, 8 97.2 %
    ridge: float = 0.1  # of the linear map; on MNIST, a thousandth of it gives the same accuracy


@torch.no_grad()
def fit_kernel_judge(config: KernelConfig, device: torch.device) -> float:
    """Fit the judge `kernel` in closed form, and leave it in `results/judges/kernel/`; returns its
    test accuracy.

    Ridge regression onto one-hot labels: (K'K + ridge * C) weights = K' targets. K are the kernels
    between training images and centres, and C those among the centres."""
    config = resume_if_same("kernel", config)
    train, validation, test = (
        load_digits(config.dataset, part, config.data_root, device)
        for part in ("train", "validation", "test")
    )
    classes = len(class_names(config.dataset, config.data_root))
    judge = KernelJudge(min(config.centres, len(train.labels)), config.gamma, classes).to(device)
    hashes = data_hashes(train=train, validation=validation)
    run = Run("judge_kernel", config, device, "judges/kernel", hashes, classes=classes)
    if run.finished_metrics:
        return run.finished_metrics["test_accuracy"]
    run.start_or_resume(classifier=judge)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(config.seed))
    chosen = order[: len(judge.centres)].to(device)
    judge.centres.copy_(judge.pixels(upsample(train.images[chosen])))
    # Summed in float64: the matrix is nearly singular.
    normal = config.ridge * judge.kernels(judge.centres).double()
    projected = torch.zeros_like(judge.weights, dtype=torch.float64)
    for images, labels in zip(train.images.split(1000), train.labels.split(1000), strict=True):
        kernels = judge.kernels(judge.pixels(upsample(images)))
        normal += (kernels.T @ kernels).double()
        projected += (kernels.T @ (2.0 * F.one_hot(labels, classes) - 1)).double()
    normal.diagonal().add_(1e-8)
    judge.weights.copy_(torch.linalg.solve(normal, projected))
    accuracy = classification_accuracy(judge, validation)
    line = f"judge_kernel: validation accuracy {accuracy:.2%}"
    run.end_epoch({"epoch": 1, "validation_accuracy": accuracy}, best=True, line=line)
    tested = classification_accuracy(judge, test)
    metrics = {"test_accuracy": tested, "validation_accuracy": accuracy}
    run.finish(metrics, data_hashes(test=test))
    return tested


def resume_if_same(name: str, config: Any) -> Any:
    """`config`, without `resume` where the judge that is there belongs to a run with other
    settings."""
    if config.resume and differs_from_run(config.results / "judges" / name, config):
        print(f"judge_{name} is trained from the start: its settings differ, and it cannot go on.")
        return replace(config, resume=False)
    return config


def load_judges(folder: Path, dataset: str, device: torch.device) -> dict[str, nn.Module]:
    """The three judges, frozen and in eval mode. Each is `(B, 1, 64, 64)` images in [-1, 1] -> `(B,
    classes)` logits.

    Args:
        folder: where mnist_classify_train.py left them, `results/judges`.
        dataset: the data set that they must have learned.
        device: where they are put.

    Raises:
        UserError: if a judge is missing, damaged, or learned another data set.
    """

    def load(name: str, build: Callable[[dict[str, Any], dict[str, Any]], nn.Module]) -> nn.Module:
        network = load_stage(f"judge_{name}", "classifier", build, folder / name, dataset, device)
        return network.requires_grad_(False)

    def build_kernel(config: dict[str, Any], state: dict[str, Any]) -> KernelJudge:
        return KernelJudge(len(state["centres"]), float(config["gamma"]), config["classes"])

    return {
        "cnn": load_judge(folder / "cnn", dataset, device),
        "vit": load("vit", lambda config, _: ViTJudge(classes=config["classes"])),
        "kernel": load("kernel", build_kernel),
    }
