"""The audio network: the published variant of VGGish.

Source: S. Hershey et al., "CNN architectures for large-scale audio classification", ICASSP 2017, as
changed by Hu et al., CVPR 2019: fully connected layers of 1024 and 100, a BatchNorm without
parameters as the embedding, and a classifier behind it. As in the original, a ReLU follows every
convolution. The convolutions have the layout of github.com/harritaylor/torchvggish, so its released
weights fit.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.checkpoint import load_weights
from common.files import UserError, load_tensors
from models.generator import NOISE_SIZE


class VGGish(nn.Module):
    """Log-mels -> an embedding, distributed like the noise of a GAN, and its class.

    Args:
        frames: of the log-mels, a multiple of 16. Published: 96.
        width: channels of the first convolution. Published: 64.
        classes: of the classifier on top.
    """

    def __init__(self, frames: int = 112, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.width = w = width
        self.features = nn.Sequential(  # 1 x frames x 64
            nn.Conv2d(1, w, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2),  # w x frames/2 x 32
            nn.Conv2d(w, 2 * w, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2),  # 2w x frames/4 x 16
            nn.Conv2d(2 * w, 4 * w, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4 * w, 4 * w, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2),  # 4w x frames/8 x 8
            nn.Conv2d(4 * w, 8 * w, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8 * w, 8 * w, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2),  # 8w x frames/16 x 4
        )  # fmt: skip
        self.dropout = nn.Dropout(0.5)
        self.embedding = nn.Sequential(
            nn.Linear(frames // 16 * 4 * 8 * w, 1024), nn.ReLU(), self.dropout,  # 1024
            nn.Linear(1024, NOISE_SIZE),  # 100
            # Without parameters, so every dimension of the embedding has mean 0 and variance 1
            # over a batch, like the noise of the GAN. So a sound can take the place of noise.
            nn.BatchNorm1d(NOISE_SIZE, affine=False),  # 100
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(NOISE_SIZE, 1024), nn.ReLU(), nn.Dropout(0.5),  # 1024
            nn.Linear(1024, classes),  # classes
        )  # fmt: skip
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def embed(self, logmels: Tensor) -> Tensor:
        """`(B, 1, frames, 64)` log-mels -> `(B, 100)` embeddings of mean 0 and variance 1."""
        maps = self.features(logmels.contiguous(memory_format=torch.channels_last))
        embeddings = self.embedding(maps.permute(0, 2, 3, 1).flatten(1))  # as time, band, channel
        return embeddings.to(self.embedding[0].weight.dtype)  # autocast gives bfloat16

    def forward(self, logmels: Tensor) -> Tensor:
        """`(B, 1, frames, 64)` log-mels -> `(B, classes)` logits."""
        return self.classifier(self.embed(logmels)).to(self.embedding[0].weight.dtype)


def load_audioset_convolutions(network: VGGish, path: Path) -> None:
    """Start the convolutions of `network` from the released AudioSet weights.

    Args:
        network: of the published width 64.
        path: a state dict of torchvggish, `features.0.weight` ... of six convolutions; its fully
            connected layers, of other sizes, are left out.

    Raises:
        UserError: if the file is missing, damaged, or does not fit.
    """
    hint = "give the local path of torchvggish's state dict, or leave audioset_weights empty"
    state, prefix = load_tensors(path, hint), "features."
    convolutions = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    if not convolutions:
        raise UserError(f"{path} holds no VGGish convolutions; give torchvggish's state dict.")
    load_weights(network.features, convolutions, path)
