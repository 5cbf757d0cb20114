"""A loaded run of stage three that explains itself: for each image its sound, its log-mel, its
embedding, the imagined image, and the class by every classifier. imagine.py and app.py use it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import autocast
from common.files import UserError
from data import class_names, default_root
from data.folders import to_28x28
from evaluation.imagine import LatentRefiner
from evaluation.judges import JUDGES, load_judges
from evaluation.metrics import correlation
from models.late_blind import LateBlind, run_folder
from training.upstream import load_audio_network, load_classifier, stage_folders

DIGIT = 20  # pixels; the longer edge of a digit of MNIST, in 28 x 28
# Classifier -> its name for a reader. The first one classifies the sound, the others the image.
READERS = {
    "sound": "sound classifier of stage one",
    "cnn": "judge cnn",
    "vit": "judge vit",
    "kernel": "judge kernel",
    "classifier": "classifier of the training",
}


def rated_folders(run: Path) -> dict[str, Path]:
    """Stage -> the folder of its run, of everything that a rating of `run` uses."""
    folders = stage_folders(run)
    rated = folders.pop("train_all")
    judges = {f"judge_{name}": folders["judge_cnn"].parent / name for name in JUDGES}
    return {**folders, **judges, "train_all": rated}


class Explanation(NamedTuple):
    """What a run makes of `B` images."""

    heard: Tensor  # (B, rows, columns) in [0, 1]: the images as they are scanned
    sounds: Tensor  # (B, samples), or (B, 2, samples) in stereo, in [-1, 1]
    logmels: Tensor  # (B, 1, frames, 64), natural log
    embeddings: Tensor  # (B, 100), after latent refinement
    refined: Tensor  # (B,) bool: whether latent refinement moved the embedding
    imagined: Tensor  # (B, 1, 64, 64) in [-1, 1]
    probabilities: dict[str, Tensor]  # key of READERS -> (B, classes)
    correlations: Tensor  # (B,), of the imagined with the heard image

    def readings(self, classes: tuple[str, ...], index: int = 0) -> dict[str, tuple[str, float]]:
        """Key of READERS -> the most probable class of one image, and its probability."""
        best = {name: shares[index].max(0) for name, shares in self.probabilities.items()}
        return {name: (classes[int(one.indices)], one.values.item()) for name, one in best.items()}


class Listener:
    """A run's model with every classifier that is there.

    A run that was copied without the runs before it has no classifiers; then `missing` names them,
    and `probabilities` is empty.

    Args:
        run: the folder of a run of train_all.py, or a results folder: then its newest complete run.
        device: where everything is put.
        data_root: the folder of the data sets, for the names of the classes.

    Raises:
        UserError: if a checkpoint is damaged, or the run is missing.
    """

    def __init__(
        self,
        run: Path | str = "results",
        device: torch.device | str = "cpu",
        data_root: Path | None = None,
    ) -> None:
        self.run, device = run_folder(Path(run)), torch.device(device)
        self.model = LateBlind.load(self.run, device)
        folders, dataset = rated_folders(self.run), self.model.dataset
        self.missing = [
            stage for stage, folder in folders.items() if not (folder / "checkpoint.pt").exists()
        ]
        self.sound_classifier: Any = None  # VGGish
        self.classifier: Any = None  # LeNet
        self.judges: dict[str, Any] = {}  # networks
        if "train_vggish" not in self.missing:
            _, self.sound_classifier, _ = load_audio_network(folders["train_vggish"], device)
        if not any(stage.startswith("judge_") for stage in self.missing):
            self.judges = load_judges(folders["judge_cnn"].parent, dataset, device)
        if "mnist_classify_train" not in self.missing:
            self.classifier = load_classifier(folders["mnist_classify_train"], dataset, device)
        try:
            self.classes = class_names(dataset, data_root or default_root())
        except UserError:  # the names are those of folders, which are elsewhere
            logits = len(self.model.audio_network.state_dict()["classifier.3.bias"])
            self.classes = tuple(f"class {index}" for index in range(logits))

    def refiner(self, steps: int) -> LatentRefiner | None:
        """The latent refinement of `steps` steps; None for 0.

        Raises:
            UserError: if a classifier that it needs is missing.
        """
        if not steps:
            return None
        if self.sound_classifier is None or self.classifier is None:
            raise UserError(
                f"{self.run} was copied without {', '.join(self.missing)}, so nothing can be "
                "refined; copy these too, or refine no step."
            )
        model, networks = self.model, (self.sound_classifier, self.model.generator, self.classifier)
        return LatentRefiner(model.front_end, *networks, steps)

    @torch.no_grad()
    def explain(self, images: Tensor | np.ndarray, refine_steps: int = 0) -> Explanation:
        """Hear images, imagine them, and classify what was heard and imagined.

        Args:
            images: as `LateBlind` takes them: `(B, H, W)` uint8, or floating point in [0, 1].
            refine_steps: number of steps of latent refinement; 0 for none.

        Raises:
            UserError: if a classifier that the refinement needs is missing.
            ValueError: if the shape, the type or the values are others.
        """
        model, images = self.model, self.model.to_tensor(images)
        translator = model.front_end.translator
        sounds = translator(images)
        logmels = model.front_end.log_mel(sounds)
        embeddings = heard = model.embed(logmels)
        if refiner := self.refiner(refine_steps):
            embeddings = refiner(logmels, heard)
        imagined = model.draw(embeddings)
        probabilities = {}
        if self.sound_classifier is not None:
            with autocast(logmels.device):
                probabilities["sound"] = self.sound_classifier(logmels).float().softmax(1)
        for name, judge in {**self.judges, "classifier": self.classifier}.items():
            if judge is not None:
                probabilities[name] = class_probabilities(name, judge(imagined))
        pixels = images.reshape(-1, 1, *images.shape[-2:]).float()
        shown = F.interpolate(pixels, imagined.shape[2:], mode="bilinear", antialias=True)
        return Explanation(
            heard=translator.resized(images) / 255,
            sounds=sounds,
            logmels=logmels,
            embeddings=embeddings,
            refined=(embeddings != heard).any(1),
            imagined=imagined,
            probabilities=probabilities,
            correlations=correlation(imagined, shown),
        )


def class_probabilities(name: str, logits: Tensor) -> Tensor:
    """`(B, classes)` logits of a classifier of READERS -> probabilities.

    The judge kernel is a regression onto -1 and 1, which estimates 2 p - 1. The others have a
    softmax."""
    if name != "kernel":
        return logits.float().softmax(1)
    shares = (logits.float() + 1).clamp(min=1e-6)
    return shares / shares.sum(1, keepdim=True)


def as_digit(picture: Tensor, negative: bool = False, centre: bool = False) -> Tensor:
    """Make of any picture an image as the data sets have them.

    Args:
        picture: `(H, W)` uint8. One of 28 x 28 pixels is neither resized nor centred.
        negative: whether it is dark on bright.
        centre: whether what is bright is cut out, and set in the middle as in MNIST: its longer
            edge on 20 pixels, its centre of mass in the middle.

    Returns:
        `(28, 28)` uint8, white on black.
    """
    picture = 255 - picture if negative else picture
    bright = picture > picture.max() // 4
    if not centre or not bright.any() or picture.shape == (28, 28):
        return to_28x28(picture)
    rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
    box = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
    height, width = (max(1, round(edge * DIGIT / max(box.shape))) for edge in box.shape)
    small = F.interpolate(box[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    image = torch.zeros(28, 28)
    place = []
    for axis, edge in enumerate(small.shape):
        middle = (small.sum(1 - axis) * torch.arange(edge)).sum() / small.sum()
        start = min(max(0, round(13.5 - middle.item())), 28 - edge)
        place.append(slice(start, start + edge))
    image[tuple(place)] = small
    return image.round().clamp(0, 255).byte()


def is_bright(picture: Tensor) -> bool:
    """Whether a picture is mostly bright. MNIST is white on black."""
    return bool(picture.float().mean() > 127)
