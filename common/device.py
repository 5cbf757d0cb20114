"""The device of a run, and the precision of its networks."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from common.files import UserError

Network = TypeVar("Network", bound=nn.Module)


def choose_device(name: str, deterministic: bool = False) -> torch.device:
    """`auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:1`; prints what was chosen, and why.
    If `deterministic`, a GPU gives the same bits again, as the CPU does anyway.

    Raises:
        UserError: if there is no such device, or the GPU cannot be used.
    """
    chosen, reason = name, "as demanded"
    if name == "auto":
        gpu = torch.cuda.is_available()
        chosen, reason = ("cuda", "a GPU is here") if gpu else ("cpu", "no GPU is here")
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", chosen):
        raise UserError(f"--device {name} is no device; give auto, cpu, cuda or cuda:1.")
    device = torch.device(chosen)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {name} was demanded, but PyTorch sees no such GPU here; give --device "
                "cpu or auto."
            )
        try:
            torch.zeros(1, device=device).add_(1)
        except RuntimeError as error:  # older than this PyTorch knows, broken, or another's alone
            raise UserError(
                f"the GPU cannot be used ({str(error).splitlines()[0]}); give --device cpu, or "
                "install a PyTorch for it."
            ) from error
        # To set it, even to its present value, takes seconds.
        if deterministic != torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(deterministic)
        # float32 means float32, in sounds above all. autocast alone rounds, to bfloat16.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic:  # read by cuBLAS at its first use
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # On the CPU, a network whose activations fade to denormals trains ten times slower.
    torch.set_flush_denormal(True)
    print(f"device: {device_name(device)} ({reason}), {precision_name(device)}")
    return device


def place(network: Network, device: torch.device | str) -> Network:
    """Move a network to `device`, with its channels last, in which convolutions are faster."""
    layout: Any = {"memory_format": torch.channels_last}
    return network.to(device, **layout)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def precision_name(device: torch.device) -> str:
    return "bfloat16 where it pays" if uses_bfloat16(device) else "float32"


def uses_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32: GPUs from Ampere on, CPUs with
    AVX-512 BF16 or AMX. Not if LISTEN_PRECISION=float32 demands otherwise: a matter of the machine,
    as LISTEN_DATA is, and so in no header."""
    demanded = os.environ.get("LISTEN_PRECISION", "auto")
    if demanded not in ("auto", "float32"):
        raise UserError(f"LISTEN_PRECISION is {demanded}; set it to auto or float32.")
    if demanded == "float32":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(
        getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile")
    )


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the networks where the hardware multiplies it faster than float32; parameters
    stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device))


@contextmanager
def constant_mode() -> Iterator[None]:
    """Make constants that are kept: on the CPU, without gradient, whatever mode the caller is in.

    A tensor that is made inside `torch.inference_mode` could never take part in a gradient later.
    """
    modes = (torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False))
    with modes[0], modes[1], modes[2], torch.device("cpu"):
        yield
