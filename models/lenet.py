"""The classifier through which stage three is trained: the LeNet of Hu et al., CVPR 2019."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """`(B, 1, 64, 64)` images in [-1, 1] -> `(B, classes)` logits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(  # 1 x 64 x 64
            nn.Conv2d(1, 10, 5),  # 10 x 60 x 60
            nn.MaxPool2d(2), nn.ReLU(),  # 10 x 30 x 30
            nn.Conv2d(10, 20, 5), nn.Dropout2d(),  # 20 x 26 x 26
            nn.MaxPool2d(2), nn.ReLU(),  # 20 x 13 x 13
            nn.Flatten(),  # 3380
            nn.Linear(20 * 13 * 13, 512), nn.ReLU(), nn.Dropout(),  # 512
            nn.Linear(512, classes),  # classes
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).to(self.layers[0].weight.dtype)  # autocast gives bfloat16
