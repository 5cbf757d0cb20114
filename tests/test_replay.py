"""A step that is recorded and replayed learns what it learns as it is: on a pretended GPU
everywhere, on a real one where there is one."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import PretendedGPU
from torch import Tensor, nn

from training.cuda_graph import WARMUP_STEPS, CudaGraphStep
from training.loop import optimizer_step

REAL = pytest.param(
    nullcontext,
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu"),
    ],
    id="real",
)
OPTIMISERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-2, fused=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, 1e-2, momentum=0.9, fused=True),
}


def learned(
    optimiser_of: object, live: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor], CudaGraphStep]:
    """The weights and the losses of twelve steps of two kinds, in which the learning rate falls
    once; and the step."""
    monkeypatch.setattr(replay, "LIVE", live)
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    inputs, labels = torch.randn(96, 20), torch.randint(0, 4, (96,))
    network = nn.Sequential(
        nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
    )
    network.to(device)
    inputs, labels, weights = (
        inputs.to(device),
        labels.to(device),
        torch.linspace(0.5, 1, 12).to(device),
    )
    optimiser = optimiser_of(network.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [7], gamma=0.1)

    def step(index: Tensor, weight: Tensor, kind: str) -> dict[str, Tensor]:
        noisy = inputs[index] + 0.1 * torch.randn_like(inputs[index])
        loss = F.cross_entropy(network(noisy), labels[index])
        optimizer_step(weight * loss if kind == "mild" else loss, optimiser)
        return {"loss": loss}

    step = CudaGraphStep(step, device, optimiser)
    losses = []
    for k in range(12):
        index = torch.arange(8 * k, 8 * k + 8).to(device)
        losses.append(step(index, weights[k], "mild" if k % 2 else "full")["loss"])
        scheduler.step()
    assert optimiser.param_groups[0].get("capturable") in (None, False)
    values = [*(value.detach() for value in network.state_dict().values())]
    return [value.cpu() for value in values], [loss.detach().cpu() for loss in losses], step


@pytest.mark.parametrize("gpu", [pytest.param(PretendedGPU, id="pretended"), REAL])
@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_replayed_steps_learn_the_same_bits(
    name: str, gpu: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu():
        weights, losses, _ = learned(OPTIMISERS[name], 100, monkeypatch)
        replayed, said, step = learned(OPTIMISERS[name], 1, monkeypatch)
    assert len(step.recordings) == 2  # of the second learning rate; those of the first are gone
    assert losses[0].isfinite() and len({loss.item() for loss in said}) == 12
    assert all(torch.equal(one, other) for one, other in zip(losses, said, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(weights, replayed, strict=True))


def test_on_the_cpu_a_step_stays_as_it_is() -> None:
    calls = []
    step = CudaGraphStep(lambda *inputs: calls.append(inputs), torch.device("cpu"))
    for k in range(2 * WARMUP_STEPS):
        step(torch.tensor(k), "full")
    assert len(calls) == 2 * WARMUP_STEPS and not step.recordings


@pytest.mark.parametrize(("tries", "deterministic"), [(True, False), (True, True), (False, False)])
def test_cudnn_tries_its_algorithms_in_the_steps_that_ask_for_it_alone(
    tries: bool, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    seen = []
    with PretendedGPU():
        step = CudaGraphStep(
            lambda: seen.append(torch.backends.cudnn.benchmark),
            torch.device("cuda", 0),
            tries=tries,
        )
        for _ in range(2 * WARMUP_STEPS):
            step()
    assert seen == [tries and not deterministic] * (WARMUP_STEPS + 1)
    assert not torch.backends.cudnn.benchmark
