"""The trained model as one module: it hears images and draws what it imagines.

>>> from models.late_blind import LateBlind
# the folder of a run of train_all.py
>>> model = LateBlind.load("results/train_all_sound_consistent")
>>> imagined = model(images)  # (B, 28, 28) uint8, or float in [0, 1] -> (B, 1, 64, 64) in [-1, 1]
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint import load_checkpoint, load_network
from common.device import autocast
from common.files import UserError, explain_malformed
from models.generator import Generator
from models.vggish import VGGish
from vggish import ImageToLogMel, require_same_sounds
from voice_translator import Encoding


class LateBlind(nn.Module):
    """Front end, audio network and generator.

    Args:
        front_end: images -> log-mels.
        audio_network: log-mels -> embeddings.
        generator: embeddings -> images.
        dataset: the name of the data set that it learned to hear.
    """

    def __init__(
        self,
        front_end: ImageToLogMel,
        audio_network: VGGish,
        generator: Generator,
        dataset: str = "",
    ) -> None:
        super().__init__()
        self.front_end, self.audio_network, self.generator = front_end, audio_network, generator
        self.dataset = dataset

    def embed(self, logmels: Tensor) -> Tensor:
        """`(B, 1, frames, 64)` log-mels -> `(B, 100)` embeddings, in the precision that the device
        is fastest in."""
        with autocast(logmels.device):
            return self.audio_network.embed(logmels)

    def draw(self, embeddings: Tensor) -> Tensor:
        """`(B, 100)` embeddings -> `(B, 1, 64, 64)` images in [-1, 1]."""
        with autocast(embeddings.device):
            return self.generator(embeddings)

    def forward(self, images: Tensor) -> Tensor:
        """Images as `VoiceTranslator` takes them -> `(B, 1, 64, 64)` imagined images in [-1, 1]."""
        return self.draw(self.embed(self.front_end(images)))

    @classmethod
    def load(cls, run: Path | str, device: torch.device | str = "cpu") -> "LateBlind":
        """The model of a run of stage three, in eval mode.

        Args:
            run: the folder that train_all.py left, or its checkpoint.pt.
            device: where the model is put.

        Raises:
            UserError: if the checkpoint is missing, damaged, of another stage, or learned other
                sounds than the code makes.
        """
        path = Path(run)
        path = path if path.suffix == ".pt" else path / "checkpoint.pt"
        checkpoint = load_checkpoint(path, "train_all")
        config, networks = checkpoint["config"], checkpoint["networks"]
        with explain_malformed(path, "run train_all.py"):
            audio_network = load_network(
                lambda: VGGish(config["frames"], config["vggish_width"], config["classes"]),
                networks["vggish"],
                path,
            )
            generator = load_network(
                lambda: Generator(config["generator_width"]), networks["generator"], path
            )
            front_end = load_front_end(config, checkpoint, path, device)
        layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
        return cls(
            front_end, audio_network.to(**layout), generator.to(**layout), config["dataset"]
        ).eval()


def load_front_end(
    config: dict[str, Any], checkpoint: dict[str, Any], path: Path, device: torch.device | str
) -> ImageToLogMel:
    """The front end that a checkpoint's `config` names, after a check that its sounds are the ones
    that were learned.

    Raises:
        UserError: if the code makes other sounds now.
    """
    front_end = ImageToLogMel(Encoding(**config["encoding"]), config["frames"], config["hop"]).to(
        device
    )
    try:
        require_same_sounds(front_end, checkpoint["fingerprint"])
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; put the code back, or run train_vggish.py again."
        ) from error
    return front_end
