"""What the benchmark of the stages rests on: the published design's loader hears what ours hears,
and the floors are counted right. Its times are asserted nowhere."""

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


def test_the_published_loader_hears_and_sees_what_ours_does() -> None:
    images = load_digits("handwritten", "train", "", "cpu").images[:4]
    heard = stages.load(images.numpy(), True, torch.device("cpu"))
    torch.testing.assert_close(
        heard, ImageToLogMel(stages.PUBLISHED, stages.FRAMES)(images), rtol=0, atol=1e-3
    )
    seen = stages.load(images.numpy(), False, torch.device("cpu"))
    torch.testing.assert_close(
        seen, upsample(images), rtol=0, atol=0.01
    )  # Pillow rounds to a grey level


def test_images_are_turned_plainly_as_ours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    images = upsample(load_digits("handwritten", "train", "", "cpu").images[:4])
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.linspace(0, 1, 4).expand(size))
    expected = random_affine(images, 10.0)
    torch.testing.assert_close(stages.turned_plainly(images, 10.0), expected, rtol=0, atol=1e-5)
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
    # The batch is written and read; weights, gradients and momentum are read, weights and momentum
    # also written.
    assert moved == 4 * (2 * batch.numel() + 5 * layer.weight.numel())


def test_a_call_is_timed_in_as_many_as_fill_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def work() -> None:
        calls.append(1)
        clock[0] += 0.125

    monkeypatch.setattr(translator.time, "perf_counter", lambda: clock[0])
    assert translator.seconds_of(work, torch.device("cpu"), at_least=0.3) == 0.125
    assert len(calls) == 1 + 3  # one by which to know how many


def test_the_benchmark_runs_and_rates_every_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.seconds_of, "__defaults__", (0.0,))
    monkeypatch.setattr(stages, "machine_rates", lambda device: (1e9, 1e9))
    rates = stages.main(stages.Config(rounds=2, width=2, batch=4, device="cpu"))
    assert len(rates) == 7
    assert all(list(ways) == ["ours", "plain", "published"] for ways in rates.values())
    assert all(
        len(rate) == 2 and min(rate) > 0 and math.isfinite(max(rate))
        for ways in rates.values()
        for rate in ways.values()
    )
    printed = capsys.readouterr().out
    assert (
        printed.count("\n| ") == 8
    )  # a head, six steps of the published schedule, and one of ours
    hours = float(printed.split("published ")[-1].split()[0].replace(",", ""))
    seconds = {
        name: 60_000 * epochs * np.median(1 / np.array(rates[name]["published"]))
        for name, epochs in EPOCHS.items()
    }
    assert hours == pytest.approx(sum(seconds.values()) / 3600, abs=0.006)


EPOCHS = {
    "one: hear": 5,
    "two: classifier": 50,
    "two: GAN": 50,
    "three: audio network": 3,
    "three: with generator": 1,
}
