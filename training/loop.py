"""One epoch of training: its seed, its batches, its steps, and the mean of its losses."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from common.cli import progress_bar, show_progress
from common.files import UserError

CHECKED_EVERY = 50  # steps after which a GPU is waited for, to see whether a loss was not finite


def seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Seed everything that epoch `epoch` draws, and return the generator for its batches.

    Nothing random is carried from one epoch into the next, so a resumed run draws the same numbers
    as an undisturbed one."""
    torch.manual_seed(seed * 1_000_003 + epoch)
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + 500_000)


def epoch_batches(
    config: Any, epoch: int, total: int, device: torch.device, title: str = ""
) -> Iterator[tuple[Tensor, float]]:
    """Seed an epoch, and yield its batches: their indices, `(batch,)` int64, in a random order, and
    the share of the run that is done before them, in [0, 1).

    The last, smaller batch is left out, unless it is the only one. A terminal shows a progress bar.
    If there are fewer images than the header asks for, a line says so once.

    Args:
        config: a header with `seed`, `epochs`, `batch` and `images_per_epoch`.
        epoch: from 1 on.
        total: the number of images.
        device: of the indices.
        title: of the progress bar.
    """
    batch, take = config.batch, config.images_per_epoch or total
    if take > total:
        say_once(f"--images-per-epoch is {take:,}, but there are {total:,} images; all are used.")
    if batch > min(take, total):
        say_once(
            f"--batch is {batch:,}, more than an epoch's images; an epoch is one step of them."
        )
    order = torch.randperm(total, generator=seed_epoch(config.seed, epoch))[:take].to(device)
    batches = order[: len(order) // batch * batch or len(order)].split(batch)
    for step, index in enumerate(progress_bar(batches, title)):
        yield index, (epoch - 1 + step / len(batches)) / config.epochs


@cache
def say_once(line: str) -> None:
    print(line)


def optimizer_step(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Compute the gradients of `loss` and let `optimiser` make one step."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


class RunningMean:
    """The mean of a loss over an epoch. A loss that is not finite stops the stage: on the CPU at
    once, on a GPU within CHECKED_EVERY steps, because a step does not wait for the GPU.

    Args:
        what: the loss, as the sentence that stops the stage names it.
    """

    def __init__(self, what: str, epoch: int) -> None:
        self.what, self.epoch = what, epoch
        self.total, self.count = 0.0, 0
        self.unread: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        self.unread.append(value.detach())
        if value.device.type == "cpu" or len(self.unread) == CHECKED_EVERY:
            self._check()

    def compute(self) -> float:
        if self.unread:
            self._check()
        return self.total / max(self.count, 1)

    def _check(self) -> None:
        losses = torch.stack(self.unread).double()
        for step, loss in enumerate(losses.tolist(), self.count + 1):
            if not math.isfinite(loss):
                raise divergence_error(f"{self.what} is {loss} in epoch {self.epoch}, step {step}")
        self.total += losses.sum().item()
        self.count += len(losses)
        self.unread = []
        show_progress(f"{self.what} {self.total / self.count:.4f}")


def divergence_error(what: str) -> UserError:
    return UserError(
        f"{what}: training diverged; lower the learning rate and start again. The checkpoints of "
        "the last finished epoch are left as they were."
    )
