"""The modules as other people's code uses them: precisions, modes, transforms, export."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from data.resize import _projection, _reduction, downsample_lstsq
from models.discriminator import Discriminator
from models.generator import Generator
from models.judge_cnn import CNNJudge
from models.judge_kernel import KernelJudge
from models.judge_vit import ViTJudge
from models.lenet import LeNet
from models.vggish import VGGish
from vggish import ImageToLogMel, LogMel, Resample
from voice_translator import Encoding, VoiceTranslator

NETWORKS = {
    "vggish": (lambda: VGGish(16, 2), (2, 1, 16, 64)),
    "generator": (lambda: Generator(2), (2, 100)),
    "discriminator": (lambda: Discriminator(2), (2, 1, 64, 64)),
    "lenet": (LeNet, (2, 1, 64, 64)),
    "cnn": (CNNJudge, (2, 1, 64, 64)),
    "vit": (ViTJudge, (2, 1, 64, 64)),
    "kernel": (lambda: KernelJudge(5), (2, 1, 64, 64)),
}
CONSTANTS = {
    "translator": lambda: VoiceTranslator(Encoding.hificode()),
    "log-mel": lambda: LogMel(22050),
    "front end": lambda: ImageToLogMel(Encoding()),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_in_the_precision_it_was_cast_to(name: str, dtype: torch.dtype) -> None:
    build, shape = NETWORKS[name]
    network = build().to(dtype).eval()
    with torch.no_grad():
        assert network(torch.zeros(shape, dtype=dtype)).dtype == dtype


def buffers(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


@pytest.mark.parametrize("build", CONSTANTS.values(), ids=CONSTANTS)
@pytest.mark.parametrize("precision", ["half", "bfloat16", "double"])
def test_constants_survive_a_change_of_precision(build, precision: str) -> None:
    module = build()
    before = buffers(module)
    getattr(module, precision)()
    module.float()
    for one, other in zip(before, buffers(module), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("build", CONSTANTS.values(), ids=CONSTANTS)
def test_constants_are_exact_in_float64(build) -> None:
    module = build().double()
    assert all(buffer.dtype == torch.float64 for buffer in module.buffers())
    assert any((buffer != buffer.float().double()).any() for buffer in module.buffers())


@pytest.mark.parametrize("build", CONSTANTS.values(), ids=CONSTANTS)
def test_to_empty_computes_the_constants(build) -> None:
    module = build().to("meta").to_empty(device="cpu")
    for one, other in zip(buffers(build()), buffers(module), strict=True):
        assert torch.equal(one, other)


def test_a_module_made_in_inference_mode_passes_gradients_later() -> None:
    with torch.inference_mode():
        front_end = ImageToLogMel(Encoding())
    image = torch.full((1, 28, 28), 0.5, requires_grad=True)
    front_end(image).sum().backward()
    assert image.grad.abs().sum() > 0


def test_kept_matrices_do_not_keep_the_mode_of_the_first_caller() -> None:
    for kept in (_reduction, _projection):
        kept.cache_clear()
    images = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        downsample_lstsq(images)
    images.requires_grad_()
    downsample_lstsq(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_front_end_goes_through_function_transforms() -> None:
    front_end = ImageToLogMel(Encoding()).double()
    images = torch.rand(2, 28, 28, dtype=torch.float64) * 0.5 + 0.2

    def mean(images: Tensor) -> Tensor:
        return front_end(images).mean((1, 2, 3))

    jacobian = torch.func.jacrev(mean)(images)
    tangent = torch.randn_like(images)
    _, derivative = torch.func.jvp(mean, (images,), (tangent,))
    torch.testing.assert_close(derivative, (jacobian * tangent).sum((1, 2, 3)))
    one_by_one = torch.func.vmap(lambda image: front_end(image[None])[0])(images)
    torch.testing.assert_close(one_by_one, front_end(images))


def test_the_front_end_is_exported_with_any_batch() -> None:
    front_end = ImageToLogMel(Encoding())
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        front_end, (torch.rand(3, 28, 28),), dynamic_shapes={"images": {0: batch}}, strict=False
    )
    images = torch.rand(7, 28, 28)
    torch.testing.assert_close(exported.module()(images), front_end(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [22050, 44100])
def test_the_resampler_removes_what_lies_above_8000_hertz(rate: int) -> None:
    resample = Resample(rate, 16000).double()
    time = torch.arange(rate, dtype=torch.float64) / rate

    def decibels(hertz: float) -> float:
        tone = torch.sin(2 * torch.pi * hertz * time)[None]
        return 20 * float(resample(tone)[0, 2000:-2000].square().mean().mul(2).sqrt().log10())

    assert abs(decibels(1000)) < 0.01
    assert -1.2 < decibels(7400) < -1.0
    assert decibels(8000) < -95
    assert decibels(8600) < -95


def test_modules_of_the_users_own_with_our_names_do_no_harm(tmp_path: Path) -> None:
    """The library is used from a folder that holds `data.py`, `models.py` and so on."""
    for name in ("data", "files", "runs", "models", "common", "training", "evaluation"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is the user\\'s own')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from models.late_blind import LateBlind\n"
        "from evaluation.listener import Listener\n"
    )
    (tmp_path / "study.py").write_text(code)
    for command in (["study.py"], [str(ROOT / "train_vggish.py"), "--help"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
