"""The model over a data set: imagined images, latent refinement, and the numbers of an epoch."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import autocast
from data import Digits
from data.resize import upsample
from evaluation.metrics import rate_images
from models.generator import Generator
from models.judge_cnn import CNNJudge
from models.late_blind import LateBlind
from models.lenet import LeNet
from models.vggish import VGGish
from training.figures import first_of_each_class, save_pair_grid
from training.losses import AudioLoss, audio_loss
from vggish import EVAL_BATCH, ImageToLogMel

UNCERTAINTY = 0.01  # sounds are refined whose class has a probability below 1 minus this
REFINE_LR = 0.03  # learning rate of Adam on the embedding


class LatentRefiner:
    """Latent refinement: optimises the embedding of an uncertain sound at test time. No weight
    changes.

    Neither an image nor a label nor a judge takes part. The sound classifier of stage one
    classifies the sound, and the classifier of stage two the image that is imagined at first. The
    mean of their probabilities decides the class. Where its probability is below 1 - UNCERTAINTY,
    Adam moves the embedding so that the imagined image is classified as decided, and its sound
    comes near to the sound that was heard, by loudness (`audio_loss`).

    Args:
        front_end: of the encoding that was learned.
        sound_classifier: stage one's network, in eval mode.
        generator: of the model.
        classifier: of stage two, frozen.
        steps: number of Adam's steps.

    Attributes:
        count: how many sounds were refined so far.
    """

    def __init__(
        self,
        front_end: ImageToLogMel,
        sound_classifier: VGGish,
        generator: Generator,
        classifier: LeNet,
        steps: int,
    ) -> None:
        self.front_end, self.sound_classifier = front_end, sound_classifier
        self.generator, self.classifier = generator, classifier
        self.steps, self.count = steps, 0

    def __call__(self, logmels: Tensor, embeddings: Tensor) -> Tensor:
        """Log-mels `(B, 1, frames, 64)` and their embeddings `(B, 100)` -> refined embeddings `(B,
        100)`."""
        with torch.no_grad(), autocast(logmels.device):
            opinions = [self.sound_classifier(logmels), self.classifier(self.generator(embeddings))]
        probability, decided = (
            torch.stack([logits.float().softmax(1) for logits in opinions]).mean(0).max(1)
        )
        uncertain = torch.nonzero(probability < 1 - UNCERTAINTY)[:, 0]
        self.count += len(uncertain)
        if not len(uncertain):
            return embeddings
        logmels, decided = logmels[uncertain], decided[uncertain]
        moved = embeddings[uncertain].detach().requires_grad_()
        optimiser = torch.optim.Adam([moved], REFINE_LR)
        for _ in range(self.steps):
            with torch.enable_grad():
                with autocast(logmels.device):
                    imagined = self.generator(moved)
                    logits = self.classifier(imagined)
                distance = audio_loss(
                    self.front_end, imagined, logmels, straight_through=1.0, kind="loudness"
                )
                loss = distance + F.cross_entropy(logits.float(), decided)
                # Of the sum over the sounds, so that each is refined as if it were alone.
                (moved.grad,) = torch.autograd.grad(len(moved) * loss, moved)
            optimiser.step()
        return embeddings.index_copy(0, uncertain, moved.detach())


@torch.no_grad()
def imagine(
    model: LateBlind,
    images: Tensor,
    kind: AudioLoss = "l1",
    refiner: LatentRefiner | None = None,
    front_end: ImageToLogMel | None = None,
) -> tuple[Tensor, float]:
    """What the model imagines when it hears images.

    Args:
        model: a trained model; its audio network is put in eval mode.
        images: `(N, H, W)` uint8.
        kind: of the audio loss that is returned.
        refiner: refines uncertain embeddings. None: no refinement.
        front_end: makes the sounds instead of the model's own, for controls.

    Returns:
        `(N, 1, 64, 64)` images in [-1, 1], and their mean `audio_loss` to the sounds.
    """
    front_end = front_end or model.front_end
    model.audio_network.eval()
    imagined, distance = [], 0.0
    for part in images.split(EVAL_BATCH):
        logmels = front_end(part)
        embeddings = model.embed(logmels)
        if refiner:
            embeddings = refiner(logmels, embeddings)
        imagined.append(model.draw(embeddings))
        distance += audio_loss(front_end, imagined[-1], logmels, kind=kind) * len(part)
    return torch.cat(imagined), float(distance / len(images))


@torch.no_grad()
def rate_epoch(
    classifier: LeNet, judge: CNNJudge, digits: Digits, imagined: Tensor
) -> dict[str, float]:
    """`rate_images`, and `accuracy` and `cross_entropy` of the classifier that stage three trains
    through."""
    logits = torch.cat([classifier(part) for part in imagined.split(512)])
    return {
        "accuracy": (logits.argmax(1) == digits.labels).double().mean().item(),
        "cross_entropy": F.cross_entropy(logits, digits.labels).item(),
        **rate_images(judge, imagined, upsample(digits.images), digits.labels),
    }


def imagination_failure(imagined: Tensor, judge_accuracy: float, classes: int) -> str:
    """What is wrong with the imagined images of an epoch; empty if nothing is.

    Args:
        imagined: `(N, 1, 64, 64)` in [-1, 1].
        judge_accuracy: the share that the judge cnn classifies right.
        classes: number of classes; chance is one in so many.
    """
    chance = 1 / classes
    if imagined.max() < -0.5:
        return "all imagined images are black"
    if judge_accuracy < 1.5 * chance:
        return f"the judge cnn is right on {judge_accuracy:.1%}, and chance is {chance:.1%}"
    return ""


def save_pairs(path: Path, digits: Digits, imagined: Tensor, names: Sequence[str]) -> None:
    """Draw the first eight images of each class beside what was imagined from their sounds.

    Args:
        path: of the picture.
        digits: the images that were heard.
        imagined: `(N, 1, 64, 64)` in [-1, 1], in the same order.
        names: of the classes.
    """
    shown = first_of_each_class(digits.labels, 8)
    heard = upsample(digits.images[shown.flatten()]).unflatten(0, shown.shape)
    rows = [names[int(label)] for label in digits.labels.unique()]
    save_pair_grid(path, heard, imagined[shown], rows)
