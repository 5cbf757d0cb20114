"""CUDA graphs: a replayed step learns the same as the step itself. A pretended GPU shows it
everywhere, and a real one where there is one."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_equal_weights, header
from pretended_gpu import PretendedGPU
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import data.resize
import data.synthetic
import emnist_dcgan
import mnist_classify_train
import train_all
import train_vggish
import training.cuda_graph
import vggish
import voice_translator
from data.resize import downsample_lstsq
from training.cuda_graph import WARMUP_STEPS, CudaGraphStep
from training.loop import optimizer_step
from vggish import ImageToLogMel
from voice_translator import Encoding

STAGES = (train_vggish, mnist_classify_train, emnist_dcgan, train_all)
by_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
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


# -- a step


def train_twelve_steps(
    make_optimiser: Callable, warmup: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor], CudaGraphStep]:
    """Twelve steps of two kinds, in which the learning rate falls once; returns the weights, the
    losses and the step."""
    monkeypatch.setattr(training.cuda_graph, "WARMUP_STEPS", warmup)
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    inputs, labels = torch.randn(96, 20).to(device), torch.randint(0, 4, (96,)).to(device)
    network = nn.Sequential(
        nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
    ).to(device)
    scales = torch.linspace(0.5, 1, 12).to(device)
    optimiser = make_optimiser(network.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [7], gamma=0.1)

    def step(index: Tensor, scale: Tensor, kind: str) -> dict[str, Tensor]:
        noisy = inputs[index] + 0.1 * torch.randn_like(inputs[index])
        loss = F.cross_entropy(network(noisy), labels[index])
        optimizer_step(scale * loss if kind == "scaled" else loss, optimiser)
        return {"loss": loss}

    graph_step = CudaGraphStep(step, device, optimiser)
    losses = []
    for k in range(12):
        index = torch.arange(8 * k, 8 * k + 8).to(device)
        losses.append(graph_step(index, scales[k], "scaled" if k % 2 else "full")["loss"])
        scheduler.step()
    assert optimiser.param_groups[0].get("capturable") in (None, False)
    values = [value.detach().cpu() for value in network.state_dict().values()]
    return values, [loss.detach().cpu() for loss in losses], graph_step


@pytest.mark.parametrize("gpu", [pytest.param(PretendedGPU, id="pretended"), REAL])
@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_replayed_steps_learn_the_same_bits(
    name: str, gpu: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu():
        weights, losses, _ = train_twelve_steps(OPTIMISERS[name], 100, monkeypatch)
        replayed, replayed_losses, step = train_twelve_steps(OPTIMISERS[name], 1, monkeypatch)
    assert len(step.graphs) == 2  # of the second learning rate; those of the first are gone
    assert losses[0].isfinite() and len({loss.item() for loss in replayed_losses}) == 12
    pairs = [*zip(losses, replayed_losses, strict=True), *zip(weights, replayed, strict=True)]
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("device", "enabled"), [("cpu", True), ("cuda:0", False)])
def test_without_graphs_every_call_runs_the_python_of_the_step(device: str, enabled: bool) -> None:
    """On the CPU always, and on a GPU with `enabled=False`."""
    calls = []
    with PretendedGPU():
        step = CudaGraphStep(
            lambda *inputs: calls.append(inputs), torch.device(device), enabled=enabled
        )
        inputs = [(torch.tensor(k), "full") for k in range(2 * WARMUP_STEPS)]
        for given in inputs:
            step(*given)
    assert len(calls) == len(inputs) and not step.graphs
    assert all(call[0] is given[0] for call, given in zip(calls, inputs, strict=True))


@pytest.mark.parametrize(("tries", "deterministic"), [(True, False), (True, True), (False, False)])
def test_cudnn_tries_its_algorithms_only_in_steps_that_ask_for_it(
    tries: bool, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    seen = []
    with PretendedGPU():
        step = CudaGraphStep(
            lambda: seen.append(torch.backends.cudnn.benchmark),
            torch.device("cuda", 0),
            try_algorithms=tries,
        )
        for _ in range(2 * WARMUP_STEPS):
            step()
    assert seen == [tries and not deterministic] * (WARMUP_STEPS + 1)
    assert not torch.backends.cudnn.benchmark


# -- the stages


@pytest.fixture
def forget_gpu_matrices() -> Iterator[None]:
    """No other test shall get the matrices that were made on the pretended GPU."""
    yield
    for cached in (data.resize._reduction, data.resize._projection, voice_translator._shrinking):
        cached.cache_clear()


@pytest.fixture
def one_attention() -> Iterator[None]:
    """Use one algorithm for attention: the CPU has another one for its own tensors."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def few_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.synthetic.load_printed(400)
    monkeypatch.setattr(data.synthetic, "load_printed", lambda: digits)


CHANGES = {  # so that every term and every augmentation runs
    train_vggish: {"epochs": 1},
    mnist_classify_train: {"rotation": 10.0},
    emnist_dcgan: {},
    train_all: {
        "replay_weight": 1.0,
        "augmentation": 0.5,
        "null_space_weight": 1.0,
        "binarization_weight": 1.0,
        "audio_loss": "loudness",
        "classifier_augmentation": 1.0,
    },
}


@by_stage
def test_a_stage_learns_the_same_on_a_gpu_and_no_step_waits_for_it(
    stage: ModuleType,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    fewer_digits: None,
    no_curves: None,
    few_printed: None,
    one_attention: None,
    forget_gpu_matrices: None,
) -> None:
    """The first batch of each epoch is not watched: constants may come from the CPU once."""
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    settings = header(stage, results, **CHANGES[stage])
    shutil.copytree(results, results / "cpu")
    with monkeypatch.context() as same_chunks:
        # Batches as large as the GPU's: the bits of a product may depend on them.
        same_chunks.setattr(vggish, "CPU_CHUNK", 1_000_000)
        for name in ("TOGETHER", "CHUNK"):
            if hasattr(voice_translator, f"CPU_{name}"):
                gpu_size = getattr(voice_translator, f"GPU_{name}")
                same_chunks.setattr(voice_translator, f"CPU_{name}", gpu_size)
        stage.main(dataclasses.replace(settings, results=results / "cpu"))

    replayed, call, gpu = [], CudaGraphStep.__call__, PretendedGPU()

    def watched(self: CudaGraphStep, *inputs: Any) -> Any:
        losses = call(self, *inputs)
        replayed.append(bool(self.graphs))
        gpu.watching = len(replayed) % 3 > 0  # an epoch has three batches
        return losses

    monkeypatch.setattr(CudaGraphStep, "__call__", watched)
    monkeypatch.setattr(training.cuda_graph, "WARMUP_STEPS", 1)
    with gpu:
        stage.main(dataclasses.replace(settings, device="cuda:0"))
    assert replayed == [False, True, True] * (len(replayed) // 3)
    assert gpu.waits == []
    judges = ("judges/cnn", "judges/vit") if stage is mnist_classify_train else ()
    for name in (stage.__name__, *judges):
        assert_equal_weights(results / name, results / "cpu" / name)


@by_stage
def test_cuda_graphs_false_runs_the_python_of_every_step_on_a_gpu(
    stage: ModuleType,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    fewer_digits: None,
    no_curves: None,
    few_printed: None,
    forget_gpu_matrices: None,
) -> None:
    """So an edited step, or a print in it, takes effect at once."""
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    steps = []
    call = CudaGraphStep.__call__

    def watched(self: CudaGraphStep, *inputs: Any) -> Any:
        steps.append(self)
        return call(self, *inputs)

    monkeypatch.setattr(CudaGraphStep, "__call__", watched)
    monkeypatch.setattr(training.cuda_graph, "WARMUP_STEPS", 0)
    changes = {"epochs": 1, "cuda_graphs": False, "device": "cuda:0"}
    if stage is train_all:
        changes["joint_epochs"] = 1
    with PretendedGPU():
        stage.main(header(stage, results, **changes))
    assert steps and not any(step.graphs or step.stream for step in steps)


def test_a_deterministic_gpu_computes_no_gradient_that_it_cannot_repeat(
    results: Path, monkeypatch: pytest.MonkeyPatch, fewer_digits: None, forget_gpu_matrices: None
) -> None:
    """The encoding has fewer pixels than the image, so the image is shrunk as well."""
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    changes = {"epochs": 1, "classifier_augmentation": 1.0, "images_per_epoch": 32}
    small = ImageToLogMel(Encoding(rows=12, columns=20, seconds=0.3))
    try:
        with PretendedGPU():
            settings = header(train_all, results, device="cuda:0", deterministic=True, **changes)
            assert train_all.main(settings)
            image = torch.rand(2, 1, 64, 64).to("cuda:0").requires_grad_()
            small.to("cuda:0")(downsample_lstsq(image), validate=False).sum().backward()
            assert image.grad.cpu().abs().sum() > 0
            grid = torch.zeros(2, 4, 4, 2).to("cuda:0")
            # The pretended GPU refuses such a gradient, as a real one does.
            message = "grid_sampler_2d_backward.* does not have a deterministic"
            with pytest.raises(RuntimeError, match=message):
                F.grid_sample(image, grid, align_corners=False).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
