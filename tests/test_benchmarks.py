"""The benchmark of the stages: its published loader computes the same inputs as ours, and its
floors are counted right. No test depends on a time."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import profile, stages
from data import load_digits
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


def test_traffic_of_operators() -> None:
    a, b = torch.rand(10, 20), torch.rand(20, 30)
    with profile.Traffic() as traffic:
        (a @ b).T.contiguous()  # a view moves nothing
        b.add_(1)
    assert traffic.bytes["aten::mm"] == 4 * (10 * 20 + 20 * 30 + 10 * 30)
    assert traffic.bytes["aten::clone"] == 4 * 2 * 10 * 30
    assert traffic.bytes["aten::add_.Tensor"] == 4 * 2 * 20 * 30  # read and written
    assert traffic.calls["aten::mm"] == 1 and len(traffic.calls) == 3


def test_a_step_of_every_stage_is_profiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.seconds_of, "__defaults__", (0.0,))
    found = profile.main(profile.Config(rounds=1, width=2, batch=4, device="cpu"))
    assert len(found) == 7
    assert all(min(one.values()) > 0 for one in found.values())
    assert all(one["peak_MB"] < one["MB"] for one in found.values())
    printed = capsys.readouterr().out
    assert printed.count("## ") == 7 and printed.count("\n| kernel or operator | ms a step") == 7
