"""The judge cnn: a small residual network that takes no part in training the model.

It differs from the classifier of stage two in architecture (residual blocks, BatchNorm, global
pooling), in resolution and in its seed. So an image that fools one need not fool the other. Blocks
as in K. He et al., "Identity mappings in deep residual networks", ECCV 2016.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: `in` x s x s -> `out` x s/2 x s/2."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(x), inplace=True)  # BatchNorm does without what it gave
        return self.conv2(F.relu(self.norm2(self.conv1(x)), inplace=True)) + self.shortcut(x)


class CNNJudge(nn.Module):
    """`(B, 1, 64, 64)` images in [-1, 1], of which it sees the mean of each 2 x 2 pixels ->
    `(B, classes)` logits; `features` gives the 64 numbers behind them."""

    num_features = 64

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.AvgPool2d(2),  # 1 x 32 x 32
            nn.Conv2d(1, 16, 3, 2, 1, bias=False),  # 16 x 16 x 16
            Block(16, 32),  # 32 x 8 x 8
            Block(32, 64),  # 64 x 4 x 4
            nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),  # 64
        )  # fmt: skip
        self.classifier = nn.Linear(self.num_features, classes)

    def features(self, images: Tensor) -> Tensor:
        """`(B, 1, 64, 64)` in [-1, 1] -> `(B, 64)`, the space in which the Frechet distance is
        measured."""
        return self.trunk(images).to(self.classifier.weight.dtype)  # autocast gives bfloat16

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images)).to(self.classifier.weight.dtype)
