"""Training a classifier of images, and its accuracy. Stage two trains the LeNet with it, and the
judges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.device import autocast
from data import Digits, class_names, data_hashes, load_digits
from data.resize import upsample
from training.cuda_graph import CudaGraphStep
from training.figures import save_curves
from training.loop import RunningMean, epoch_batches, optimizer_step
from training.run import Run
from vggish import EVAL_BATCH, ImageToLogMel


def train_classifier(
    stage: str,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    augment: Callable[[Tensor], Tensor],
    config: Any,
    name: str | None = None,
) -> dict[str, float]:
    """Train `network` to classify images, and leave it in `results/<name>/`.

    Args:
        stage: the name in the record.
        network: `(B, 1, 64, 64)` images in [-1, 1] -> `(B, classes)` logits.
        optimiser: of its weights.
        scheduler: stepped after every epoch.
        augment: `(B, 1, 64, 64)` -> the same shape; applied to the training images.
        config: a header with `dataset`, `epochs`, `batch`, `images_per_epoch`, `seed` and the
            settings of a run.
        name: of the folder; `stage` if None.

    Returns:
        What metrics.json says: test_accuracy and validation_accuracy.
    """
    device = next(network.parameters()).device
    train = load_digits(config.dataset, "train", config.data_root, device)
    validation = load_digits(config.dataset, "validation", config.data_root, device)
    classes = len(class_names(config.dataset, config.data_root))
    hashes = data_hashes(train=train, validation=validation)
    constant = isinstance(scheduler, torch.optim.lr_scheduler.MultiStepLR)  # but for its steps
    prolongs = constant or "its learning rate falls over all epochs"
    run = Run(stage, config, device, name, hashes, draw_curves, prolongs=prolongs, classes=classes)
    if run.finished_metrics:
        return run.finished_metrics
    first = run.start_or_resume(classifier=network, optimiser=optimiser, scheduler=scheduler)

    def step(index: Tensor) -> Tensor:
        images = augment(upsample(train.images[index]))
        with autocast(device):
            logits = network(images)
        loss = F.cross_entropy(logits, train.labels[index])
        optimizer_step(loss, optimiser)
        return loss

    graph_step = CudaGraphStep(step, device, optimiser, enabled=config.cuda_graphs)
    for epoch in range(first, config.epochs + 1):
        network.train()
        mean_loss = RunningMean("the loss", epoch)
        title = f"{stage}, epoch {epoch}/{config.epochs}"
        for index, _ in epoch_batches(config, epoch, len(train.labels), device, title):
            mean_loss.add(graph_step(index))
        scheduler.step()

        loss, accuracy = mean_loss.compute(), classification_accuracy(network, validation)
        best = accuracy > max((line["validation_accuracy"] for line in run.history), default=-1.0)
        run.end_epoch(
            {"epoch": epoch, "loss": loss, "validation_accuracy": accuracy}, best,
            f"{title}: validation accuracy {accuracy:.2%}, loss {loss:.4f}",
        )  # fmt: skip

    run.load_best()
    test = load_digits(config.dataset, "test", config.data_root, device)
    metrics = {
        "test_accuracy": classification_accuracy(network, test),
        "validation_accuracy": max(line["validation_accuracy"] for line in run.history),
    }
    run.finish(metrics, data_hashes(test=test))
    return metrics


def draw_curves(folder: Path) -> None:
    """Draw the curves of a classifier's run from its log."""
    accuracy = {"validation_accuracy": "validation part"}
    save_curves(folder, {"cross-entropy": {"loss": "training"}, "accuracy, a fraction": accuracy})


@torch.no_grad()
def classification_accuracy(network: nn.Module, digits: Digits) -> float:
    """The share of the images that `network`, put in eval mode, classifies right."""
    network.eval()
    logits = torch.cat([network(upsample(images)) for images in digits.images.split(500)])
    return (logits.argmax(1) == digits.labels).double().mean().item()


def sound_accuracy(front_end: ImageToLogMel, network: nn.Module, digits: Digits) -> float:
    """The share of the images whose sounds `network`, put in eval mode, classifies right."""
    predicted = predict_digits(front_end, network, digits.images)
    return (predicted == digits.labels).double().mean().item()


@torch.no_grad()
def predict_digits(front_end: ImageToLogMel, network: nn.Module, images: Tensor) -> Tensor:
    """The classes, `(N,)`, that the audio network predicts from the sounds of `(N, 28, 28)` uint8
    images."""
    network.eval()
    predicted = []
    for part in images.split(EVAL_BATCH):
        with autocast(images.device):
            predicted.append(network(front_end(part)).argmax(1))
    return torch.cat(predicted)
