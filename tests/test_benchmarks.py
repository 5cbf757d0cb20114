"""The benchmark of the stages: its published loader computes the same inputs as ours, and its
floors are counted right. No test depends on a time."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import stages, translator
from data import load_digits
from data.augment import random_affine
from data.resize import upsample
from vggish import ImageToLogMel

EPOCHS = {
    "one": 5,
    "two: classifier": 50,
    "two: GAN": 50,
    "three: audio network": 3,
    "three: with generator": 1,
}


def test_published_loader_gives_the_same_inputs() -> None:
    images = load_digits("handwritten", "train", "", "cpu").images[:4]
    logmels = stages.load_one_by_one(images.numpy(), True, torch.device("cpu"))
    expected = ImageToLogMel(stages.PUBLISHED, stages.FRAMES)(images)
    torch.testing.assert_close(logmels, expected, rtol=0, atol=1e-3)
    enlarged = stages.load_one_by_one(images.numpy(), False, torch.device("cpu"))
    # Pillow rounds to a grey level
    torch.testing.assert_close(enlarged, upsample(images), rtol=0, atol=0.01)


def test_plain_rotation_equals_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    images = upsample(load_digits("handwritten", "train", "", "cpu").images[:4])
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.linspace(0, 1, 4).expand(size))
    expected = random_affine(images, 10.0)
    torch.testing.assert_close(stages.rotate_plainly(images, 10.0), expected, rtol=0, atol=1e-5)
    assert (expected - images).abs().max() > 0.1


def test_operations_and_bytes_of_a_linear_layer() -> None:
    layer, batch = nn.Linear(10, 20, bias=False), torch.rand(4, 10)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        layer(batch).sum().backward()
        optimiser.step()

    operations, moved = stages.operations_and_bytes(step, [optimiser])
    assert operations == 2 * (2 * 4 * 10 * 20)  # forward, and the gradient of the weights
    # The batch is written and read. Weights and momentum are read and written, gradients read.
    assert moved == 4 * (2 * batch.numel() + 5 * layer.weight.numel())


def test_timing_repeats_the_call_until_the_time_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def work() -> None:
        calls.append(1)
        clock[0] += 0.125

    monkeypatch.setattr(translator.time, "perf_counter", lambda: clock[0])
    assert translator.seconds_of(work, torch.device("cpu"), at_least=0.3) == 0.125
    assert len(calls) == 1 + 3  # the first one shows how many are needed


def test_every_stage_is_timed_by_every_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.seconds_of, "__defaults__", (0.0,))
    monkeypatch.setattr(stages, "machine_rates", lambda device: (1e9, 1e9))
    rates = stages.main(stages.Config(rounds=2, width=2, batch=4, device="cpu"))
    assert len(rates) == 7
    assert all(list(methods) == list(stages.METHODS) for methods in rates.values())
    every = [rate for methods in rates.values() for rate in methods.values()]
    assert all(len(rate) == 2 and min(rate) > 0 and math.isfinite(max(rate)) for rate in every)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 8  # a head, and a row for each step
    hours = float(printed.split("published ")[-1].split()[0].replace(",", ""))
    seconds = [
        60_000 * epochs * np.median(1 / np.array(rates[name]["published"]))
        for name, epochs in EPOCHS.items()
    ]
    assert hours == pytest.approx(sum(seconds) / 3600, abs=0.006)
