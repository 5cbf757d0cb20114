"""Several processes that share the work of a stage: torchrun --nproc-per-node 4 train_vggish.py.

Each holds the whole data set, takes its share of every batch, and steps along the mean gradient of all: the weights stay
alike. Each also validates, which costs no time; process 0 alone writes and prints. As is usual, BatchNorm takes the
statistics of a share.
"""

import atexit
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


def launched() -> int:
    """How many processes torchrun has launched; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join(device: torch.device) -> None:
    """Meet the other processes of torchrun, if there are any, and fall silent if this is not process 0."""
    if launched() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        patience = timedelta(hours=2)  # of those that wait while process 0 downloads
        gpu = {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}
        dist.init_process_group(**gpu, timeout=patience)
        atexit.register(dist.destroy_process_group)
        if rank():
            sys.stdout = io.StringIO()


def rank() -> int:
    """The number of this process among those of torchrun; 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def meet() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def one_first() -> Iterator[None]:
    """Process 0 goes through alone, then the others: for downloads."""
    if rank():
        meet()
    yield
    if rank() == 0:
        meet()
