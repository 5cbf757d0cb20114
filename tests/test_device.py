"""The device of a run, the precision of its networks, and the locks of its folders."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import PretendedGPU
from torch import Tensor

from common.device import autocast, choose_device, uses_bfloat16
from common.files import UserError
from common.locks import lock_folder


def test_listen_precision_chooses_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert uses_bfloat16(cpu)
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    assert not uses_bfloat16(cpu)
    with autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setenv("LISTEN_PRECISION", "half")
    with pytest.raises(UserError, match="LISTEN_PRECISION is half; set it to auto or float32"):
        uses_bfloat16(cpu)


def test_a_gpu_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros

    def broken(*size: int, device: Any = "cpu", **more: Any) -> Tensor:
        if torch.device(device).type == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available\nfor execution")
        return zeros(*size, device=device, **more)

    message = r"the GPU cannot be used \(CUDA error: no kernel image is available\); give"
    with PretendedGPU():
        monkeypatch.setattr(torch, "zeros", broken)
        with pytest.raises(UserError, match=message):
            choose_device("auto")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:7", "--device cuda:7 was demanded, but PyTorch sees no such GPU"),
        ("meta", "--device meta is no device; give auto, cpu, cuda or cuda:1"),
        ("gpu", "--device gpu is no device; give auto, cpu, cuda or cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_device(name)


def test_a_gpu_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # put back at the end
    torch.backends.cuda.matmul.allow_tf32 = True  # put back by the fixture `one_thread`
    with PretendedGPU():
        choose_device("cuda")
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two processes could train the same run without noticing."""

    def flock(*_: Any) -> None:
        raise OSError(reason, "locks are not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    message = "run cannot be locked .* give a --results folder on another file system"
    with pytest.raises(UserError, match=message):
        lock_folder(tmp_path / "run")
    monkeypatch.undo()
    lock_folder(tmp_path / "run")  # the refusal left no lock behind
