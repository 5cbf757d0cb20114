"""What a stage says of its progress, and of images that are not worth a look."""

import pytest
import torch
from torch import Tensor

from common import cli
from evaluation.imagine import imagination_failure
from training.loop import RunningMean
from vggish import band_of


@pytest.mark.parametrize(
    ("images", "accuracy", "said"),
    [
        (torch.full((3, 1, 4, 4), -1.0), 0.9, "all imagined images are black"),
        (torch.ones(3, 1, 4, 4), 0.12, "right on 12.0%, and chance is 10.0%"),
        (torch.ones(3, 1, 4, 4), 0.2, ""),
    ],
)
def test_black_images_and_chance_are_named(images: Tensor, accuracy: float, said: str) -> None:
    found = imagination_failure(images, accuracy, classes=10)
    assert (said in found) if said else not found


def test_the_progress_bar_shows_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Bar:
        def set_postfix_str(self, text: str, refresh: bool) -> None:
            shown.append(text)

    monkeypatch.setattr(cli, "_bars", [Bar()])
    mean = RunningMean("the loss", 1)
    mean.add(torch.tensor(1.0))
    mean.add(torch.tensor(2.0))
    assert shown == ["the loss 1.0000", "the loss 1.5000"]


def test_the_bands_of_the_axis_are_those_of_the_mel_filters() -> None:
    assert band_of(125) == pytest.approx(-0.5)
    assert band_of(7500) == pytest.approx(64.5)
