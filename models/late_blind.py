"""The trained model as one module: it hears images and draws what it imagines.

>>> from models.late_blind import LateBlind
>>> model = LateBlind.load("results")
>>> imagined = model(images)  # (B, 28, 28) uint8, or float in [0, 1] -> (B, 1, 64, 64) in [-1, 1]

docs/library.md shows the steps one by one."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoint import load_checkpoint, load_network
from common.device import autocast, place
from common.files import UserError, explain_malformed, read_json
from models.generator import Generator
from models.vggish import VGGish
from vggish import BANDS, ImageToLogMel, audio_fingerprint, fingerprints_match, frames_to_cover
from voice_translator import Encoding


class LateBlind(nn.Module):
    """Front end (images -> log-mels), audio network (-> embeddings) and generator (-> images). They
    learned to hear the data set of the name `dataset`."""

    def __init__(
        self, front_end: ImageToLogMel, audio_network: VGGish, generator: Generator, dataset: str
    ) -> None:
        super().__init__()
        self.front_end, self.audio_network, self.generator = front_end, audio_network, generator
        self.dataset = dataset

    def embed(self, logmels: Tensor) -> Tensor:
        """`(B, 1, frames, 64)` log-mels -> `(B, 100)` embeddings, under autocast."""
        with autocast(logmels.device):
            return self.audio_network.embed(logmels)

    def draw(self, embeddings: Tensor) -> Tensor:
        """`(B, 100)` embeddings -> `(B, 1, 64, 64)` images in [-1, 1], under autocast."""
        with autocast(embeddings.device):
            return self.generator(embeddings)

    def forward(self, images: Tensor | np.ndarray, validate: bool | None = None) -> Tensor:
        """Images, and `validate`, as in `VoiceTranslator.forward` -> `(B, 1, 64, 64)` imagined
        images in [-1, 1]."""
        sounds = self.front_end.translator(self.to_tensor(images), validate=validate)
        return self.draw(self.embed(self.front_end.log_mel(sounds)))

    def to_tensor(self, images: Tensor | np.ndarray) -> Tensor:
        """Images as a tensor on the model's device."""
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.ascontiguousarray(images))
        return images.to(self.front_end.logmel.mel.device)

    @classmethod
    def load(cls, run: Path | str, device: torch.device | str = "cpu") -> "LateBlind":
        """The model of a run of stage three, in eval mode.

        Args:
            run: the folder that train_all.py left, its checkpoint.pt, or a results folder: then
                the newest complete run of stage three in it.
            device: where the model is put.

        Raises:
            UserError: if the checkpoint is missing, damaged, of another stage, or learned other
                sounds than the code makes.
        """
        path = Path(run)
        path = path if path.suffix == ".pt" else run_folder(path) / "checkpoint.pt"
        checkpoint = load_checkpoint(path, "train_all")
        config, networks = checkpoint["config"], checkpoint["networks"]
        with explain_malformed(path, "run train_all.py"):
            sizes = config["frames"], config["vggish_width"], config["classes"]
            audio_network = load_network(lambda: VGGish(*sizes), networks["vggish"], path)
            width = config["generator_width"]
            generator = load_network(lambda: Generator(width), networks["generator"], path)
            front_end = load_front_end(config, checkpoint, path, device)
        networks = place(audio_network, device), place(generator, device)
        return cls(front_end, *networks, config["dataset"]).eval()


def run_folder(path: Path) -> Path:
    """The run of stage three that `path` means: `path` itself, or the newest complete run in the
    results folder `path`."""
    if (path / "checkpoint.pt").exists():
        return path
    return next(iter(complete_runs(path)), path)


def complete_runs(results: Path) -> list[Path]:
    """The complete runs of stage three in a results folder, the newest first, without those that
    were moved aside."""
    runs = []
    for path in results.glob("*/metrics.json"):
        moved_aside = path.parent.suffix[1:].isdigit()
        with suppress(UserError, LookupError, TypeError):  # a damaged one is not a complete run
            if not moved_aside and read_json(path, "")["stage"] == "train_all":
                runs.append(path)
    runs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in runs]


def load_front_end(
    config: dict[str, Any], checkpoint: dict[str, Any], path: Path, device: torch.device | str
) -> ImageToLogMel:
    """The front end that a checkpoint's `config` names.

    Raises:
        UserError: if the code makes other sounds now than were learned.
        ValueError: if the fingerprint has another number of frames than `config`.
    """
    encoding, frames, hop = Encoding(**config["encoding"]), config["frames"], config["hop"]
    frames = frames_to_cover(encoding, hop) if frames is None else frames
    if checkpoint["fingerprint"].shape != (frames, BANDS):
        raise ValueError("its fingerprint does not fit its frames")  # which may fill the memory
    front_end = ImageToLogMel(encoding, frames, hop).to(device)
    if not fingerprints_match(checkpoint["fingerprint"], audio_fingerprint(front_end)):
        raise UserError(
            f"{path}: the code that makes the sounds of this encoding was changed since they were "
            "learned; put the code back, or run train_vggish.py again."
        )
    return front_end
