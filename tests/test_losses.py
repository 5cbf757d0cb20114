"""The terms of stage three's objective that are ours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data import load_digits
from data.resize import upsample
from training.losses import audio_loss, binarization_penalty, null_space_penalty
from vggish import ImageToLogMel
from voice_translator import Encoding


def first_images(count: int) -> torch.Tensor:
    return load_digits("handwritten", "train", Path(), "cpu").images[:count]


def test_audio_loss_is_zero_for_the_true_image_and_falls_along_its_gradient() -> None:
    others = (
        Encoding(rows=64, columns=64),
        Encoding(rows=20, columns=32),
        Encoding(contrast=0.0),
        Encoding(negative=True),
    )
    for encoding in (Encoding(), *others):
        front_end = ImageToLogMel(encoding)
        images = first_images(4)
        heard = front_end(images)
        imagined = upsample(images)
        assert audio_loss(front_end, imagined, heard).item() < 1e-4
        blurred = (0.9 * imagined - 0.1).requires_grad_()
        start = audio_loss(front_end, blurred, heard)
        start.backward()
        step = blurred.detach() - 0.01 * blurred.grad / blurred.grad.abs().max()
        assert audio_loss(front_end, step, heard) < start


def test_audio_losses_agree_with_numpy() -> None:
    front_end = ImageToLogMel(Encoding())
    images = first_images(6)
    imagined = upsample(images[:3])
    one, other = front_end(images[:3]).double().numpy(), front_end(images[3:])
    difference = (one - other.numpy())[:, 0]  # 3 x 112 x 64
    louder = (np.exp(one) ** 0.6 - np.exp(other.double().numpy()) ** 0.6)[:, 0]

    def resolutions(difference: np.ndarray) -> list[np.ndarray]:
        return [difference.reshape(3, 112 // k, k, 64 // k, k).mean((2, 4)) for k in (1, 2, 4)]

    expected = {
        "l1": abs(difference).mean(),
        "mse": (difference**2).mean(),
        "multires_l1": sum(abs(level).mean() for level in resolutions(difference)) / 3,
        "loudness": sum((level**2).mean() for level in resolutions(louder)) / 3,
    }
    for kind, value in expected.items():
        assert audio_loss(front_end, imagined, other, kind=kind).item() == pytest.approx(
            value, rel=1e-3
        )
        assert audio_loss(front_end, imagined, front_end(images[:3]), kind=kind).item() < 1e-4


def test_fine_ripples_count_less_in_the_loss_of_several_resolutions() -> None:
    front_end = ImageToLogMel(Encoding())
    images = first_images(2)
    heard, imagined = front_end(images), upsample(images)
    ripple = 0.5 * (-1.0) ** torch.arange(front_end.frames)[:, None]
    for kind, of_ripple in (("l1", 0.5), ("mse", 0.25), ("multires_l1", 0.5 / 3)):
        constant = audio_loss(front_end, imagined, heard + 0.5, kind=kind).item()
        assert constant == pytest.approx(0.25 if kind == "mse" else 0.5, rel=1e-3)
        rippled = audio_loss(front_end, imagined, heard + ripple, kind=kind).item()
        assert rippled == pytest.approx(of_ripple, rel=1e-3)


def test_near_silence_counts_in_the_log_mels_but_hardly_in_the_loudness() -> None:
    front_end = ImageToLogMel(Encoding())
    images = first_images(2)
    heard, imagined = front_end(images), upsample(images)
    loud = heard > 0
    assert 0.1 < loud.double().mean() < 0.9
    for kind, least, most in (("multires_l1", 0.5, 5), ("loudness", 0, 0.02)):
        of_quiet, of_loud = (
            audio_loss(front_end, imagined, heard + 0.3 * part, kind=kind).item()
            for part in (~loud, loud)
        )
        assert least < of_quiet / of_loud < most


def test_null_space_penalty_is_the_detail_that_28_pixels_cannot_hold() -> None:
    flat = torch.full((1, 1, 64, 64), 0.3)
    checkered = flat + 0.5 * (-1.0) ** torch.arange(64)[:, None] * (-1.0) ** torch.arange(64)
    assert null_space_penalty(flat).item() < 1e-10
    # nearly all of its variance
    assert null_space_penalty(checkered).item() == pytest.approx(0.25, rel=0.2)
    digits = upsample(first_images(8))
    assert null_space_penalty(digits).item() < 1e-10  # no real digit has any
    assert null_space_penalty(digits.roll(1, 3)).item() > 1e-4


def test_binarization_penalty_is_zero_for_black_and_white_and_falls_along_its_gradient() -> None:
    assert binarization_penalty(torch.tensor([-1.0, 1.0])) == 0
    assert binarization_penalty(torch.zeros(2, 1, 4, 4)) == 1
    image = torch.tensor([-0.5, 0.2], requires_grad=True)
    binarization_penalty(image).backward()
    # a step against the gradient blackens the first pixel and whitens the second
    assert image.grad[0] > 0 > image.grad[1]
