"""The judges: three readers that differ in architecture, and took no part in making what they judge.

    residual      models/judge.py, a residual CNN; trained by mnist_classify_train.py, in results/judge/
    transformer   models/transformer.py; trained here, in results/judges/transformer/
    kernel        models/kernel.py, Gaussian kernels on pixels; trained here, in results/judges/kernel/

Each learns from real digits alone, and is never back-propagated through afterwards. What fools one need not fool the others.
Each folder holds what every run leaves: checkpoint.pt, metrics.json with the judge's own accuracy, log.jsonl.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import files
import mnist_classify_train
import runs
from models.kernel import KernelClassifier
from models.transformer import Transformer

KEPT = {  # the judges that are kept, each in a folder of its name -> by which settings it learns
    "transformer": ("dataset", "seed", "epochs", "batch", "learning_rate", "images_per_epoch"),
    "kernel": ("dataset", "seed", "centres", "gamma", "ridge"),
}


@dataclass(frozen=True)
class Settings:
    """How the transformer and the kernel classifier are trained. What is kept was trained with the same, or it is trained
    again."""

    dataset: str  # mnist or handwritten
    results: Path  # the folder that keeps them
    data_root: Path
    epochs: int = 8  # of the transformer. On MNIST's validation part: 98.6 % after 5, 99.1 % after 8
    batch: int = 128  # of the transformer
    learning_rate: float = 2e-3  # of the transformer: AdamW, at first, falling to 0 along a cosine
    images_per_epoch: int | None = None  # of the transformer; None: the whole training set
    centres: int = 2000  # of the kernel classifier: this many real digits, or the whole training set if it is smaller
    gamma: float = 2.0  # of its kernels. On MNIST's validation part: 2 98.2 %, 4 97.9 %, 8 97.2 %
    ridge: float = 0.1  # of its linear map; on MNIST, a thousandth of it gives the same
    seed: int = 2000  # no draw is shared with the classifier (seed 0, 1, ...) or the residual judge (1000, 1001, ...)
    resume: bool = False  # always from the beginning: it takes minutes


def load(residual_results: Path, settings: Settings, device: torch.device) -> dict[str, nn.Module]:
    """The three judges, frozen and in eval mode; the transformer and the kernel classifier are trained if they are not kept
    yet, or were kept with other settings. Each is `(B, 1, 64, 64)` images in [-1, 1] -> `(B, 10)` logits.

    Args:
        residual_results: the folder in which mnist_classify_train.py left the residual judge.
        settings: of the two others.

    Raises:
        runs.UserError: if the residual judge is missing or reads other digits, or a kept file is damaged.
    """
    residual = mnist_classify_train.load_judge(residual_results, settings.dataset, device)
    kept = {
        "transformer": _kept_or_trained("transformer", train_transformer, settings, device),
        "kernel": _kept_or_trained("kernel", train_kernel, settings, device),
    }
    centres = kept["kernel"].get("centres")
    others = {
        "transformer": Transformer(),
        "kernel": KernelClassifier(len(centres) if isinstance(centres, Tensor) and centres.dim() else 1, settings.gamma),
    }
    for name, judge in others.items():
        runs.load_weights(judge, kept[name], settings.results / name / "checkpoint.pt")
        judge.to(device).requires_grad_(False).eval()
    return {"residual": residual, **others}


def _kept_or_trained(
    name: str, train: Callable[[Settings, torch.device], None], settings: Settings, device: torch.device
) -> dict[str, Tensor]:
    """The weights of a judge, after training it if it is not there with the same settings."""
    folder = settings.results / name
    path, mend = folder / "checkpoint.pt", f"delete {folder}, and evaluate.py trains this judge again"
    if not runs.complete(folder):
        print(f"judge {name}: not in {folder} yet; it is trained once, on real digits of {settings.dataset}", flush=True)
        train(settings, device)
    checkpoint = runs.load_checkpoint(path, name, mend)
    changed = changed_settings(name, checkpoint["config"], settings)
    if changed:
        print(f"judge {name}: {folder} was trained with another {', '.join(changed)}; it is trained again", flush=True)
        train(settings, device)
        checkpoint = runs.load_checkpoint(path, name, mend)
    with files.whole(path, mend):
        own, state = checkpoint["metrics"]["test_accuracy"], checkpoint["networks"]["judge"]
        print(f"judge {name}: {folder}; it reads {own:.2%} of the real test images right", flush=True)
    return state


def changed_settings(name: str, then: dict[str, Any], settings: Settings) -> list[str]:
    """By which settings the judge `name`, which was made with `then`, would learn another thing now."""
    return [key for key in KEPT[name] if then.get(key) != runs.plain(settings)[key]]


def train_transformer(settings: Settings, device: torch.device) -> None:
    """Train the transformer as the residual judge is trained: images turned, shifted and scaled at random."""
    train, validation = (
        data.load_heard(settings.dataset, part, settings.data_root, device) for part in ("train", "validation")
    )
    torch.manual_seed(settings.seed)
    judge = Transformer().to(device)
    optimiser = torch.optim.AdamW(judge.parameters(), settings.learning_rate, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    epochs = settings.epochs
    mnist_classify_train.fit("transformer", judge, optimiser, scheduler, distorted, epochs, train, validation, settings)


def distorted(images: Tensor) -> Tensor:
    return data.random_affine(images, degrees=10, shift=0.08, scale=0.12)


@torch.no_grad()
def train_kernel(settings: Settings, device: torch.device) -> None:
    """Ridge regression onto one-hot labels, in closed form: (K'K + ridge * C) weights = K' targets, where K are the kernels
    between training images and centres, and C those among the centres."""
    train, validation, test = (
        data.load_heard(settings.dataset, part, settings.data_root, device) for part in ("train", "validation", "test")
    )
    judge = KernelClassifier(min(settings.centres, len(train.labels)), settings.gamma).to(device)
    run = runs.Run("kernel", settings, device, sha256=data.sha256(train=train, validation=validation))
    run.restore(judge=judge)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(settings.seed))
    chosen = order[: len(judge.centres)].to(device)
    judge.centres.copy_(judge.pixels(data.as_seen(train.images[chosen])))
    # Summed in float64: the matrix is nearly singular.
    normal = settings.ridge * judge.kernels(judge.centres).double()
    projected = torch.zeros_like(judge.weights, dtype=torch.float64)
    for images, labels in zip(train.images.split(1000), train.labels.split(1000), strict=True):
        kernels = judge.kernels(judge.pixels(data.as_seen(images)))
        normal += (kernels.T @ kernels).double()
        projected += (kernels.T @ (2.0 * F.one_hot(labels, 10) - 1)).double()
    normal.diagonal().add_(1e-8)
    judge.weights.copy_(torch.linalg.solve(normal, projected))
    accuracy = mnist_classify_train.accuracy(judge, validation)
    run.end_epoch({"epoch": 1, "validation_accuracy": accuracy}, best=True)
    run.finish({"test_accuracy": mnist_classify_train.accuracy(judge, test), "validation_accuracy": accuracy})
