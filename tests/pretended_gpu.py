"""A pretended GPU, for machines without one. A script can run on `cuda:0` everywhere, and must give
the same bits as on the CPU.

The tensors of this GPU keep their numbers on the CPU. As on a real GPU, they cannot be mixed with
tensors of the CPU. PyTorch hands every operation below autograd to
`PretendedGPU.__torch_dispatch__`. It unpacks the tensors, computes, and packs the results. CUDA
graphs are pretended too: the captured operations run once and are noted. A replay runs them again
with the numbers that their tensors have then. The pretended GPU does not show kernels, their
rounding and speed, bfloat16, streams or memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}  # between the CPU and the GPU, either way
INDEXING = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
}  # indices on the CPU are allowed
READING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.equal,
    aten.masked_select,
}  # the host waits for the result
NOT_DETERMINISTIC = {  # gradients that a deterministic GPU refuses
    aten.grid_sampler_2d_backward, aten.upsample_bilinear2d_backward,
    aten._upsample_bilinear2d_aa_backward,
}  # fmt: skip
PRETENDED = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_name": lambda *_: "a pretended GPU",
    "is_bf16_supported": lambda **_: False,
    "synchronize": lambda *_: None,
    "_lazy_init": lambda: None,
    "Stream": lambda *_: SimpleNamespace(wait_stream=lambda _: None),
    "current_stream": lambda: SimpleNamespace(wait_stream=lambda _: None),
    "stream": lambda _: nullcontext(),
}


class OnGPU(Tensor):
    """A tensor on the pretended GPU; `numbers` are its numbers, on the CPU."""

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnGPU":
        layout = {
            "strides": numbers.stride(),
            "storage_offset": numbers.storage_offset(),
            "dtype": numbers.dtype,
        }
        # To PyTorch's C++ it lies on `meta`. For CUDA it would ask the driver.
        packed = Tensor._make_wrapper_subclass(
            cls, numbers.size(), **layout, device=torch.device("meta")
        )
        packed.numbers = numbers
        return packed

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        raise RuntimeError(f"{func} runs outside of PretendedGPU")

    def __reduce_ex__(self, protocol: int) -> Any:  # a checkpoint holds the numbers
        return self.numbers.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()


class Graph:
    """A CUDA graph: the operations captured, each with what it took and gave."""

    def __init__(self) -> None:
        self.done: list[tuple[Callable, tuple, dict, Any]] = []
        # what is captured was done then, which a real one leaves to the first replay
        self.fresh = True

    def replay(self) -> None:
        for func, args, kwargs, results in self.done if not self.fresh else ():
            again = func(*_unpacked(args), **_unpacked(kwargs))
            for old, new in zip(tree_leaves(_unpacked(results)), tree_leaves(again), strict=True):
                if (
                    isinstance(new, Tensor) and new.data_ptr() != old.data_ptr()
                ):  # else in place, or a view
                    old.copy_(new)
        self.fresh = False


def _unpacked(tree: Any) -> Any:
    return tree_map(lambda value: value.numbers if isinstance(value, OnGPU) else value, tree)


class PretendedGPU(TorchDispatchMode):
    """A context in which there is one GPU, `cuda:0`.

    Attributes:
        watching: whether operations are noted.
        waits: the noted operations that make the host wait for the GPU: numbers read, and copies
            from or to the CPU.
        graph: the graph that captures now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watching, self.waits, self.graph = False, [], None
        self.patches = ExitStack()

    def __enter__(self) -> "PretendedGPU":
        pretended = {**PRETENDED, "CUDAGraph": Graph, "graph": self.capture}
        self.patches.enter_context(mock.patch.multiple(torch.cuda, **pretended))
        for name in (
            "_accelerator_graph_capture_health_check",
            "_cuda_graph_capture_health_check",
        ):  # by version
            self.patches.enter_context(
                mock.patch.object(torch.optim.Optimizer, name, lambda _: None, create=True)
            )
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.patches.close()

    @contextmanager
    def capture(self, graph: Graph, **_: Any) -> Iterator[None]:
        self.graph = graph
        try:
            yield
        finally:
            self.graph = None

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, kind = kwargs or {}, func.overloadpacket
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        here = [value for value in tensors if isinstance(value, OnGPU)]
        # A single number of the CPU may be mixed with tensors, except in cat and stack.
        there = [
            value
            for value in tensors
            if value.is_cpu and (value.dim() or kind in (aten.cat, aten.stack))
        ]
        mixed = here and there and kind not in COPIES | INDEXING
        if mixed or (kind is aten.index and here and args[0].is_cpu):
            shapes = ", ".join(f"{value.device}: {tuple(value.shape)}" for value in tensors)
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got {shapes}"
            )

        if here and kind in NOT_DETERMINISTIC and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{func} does not have a deterministic implementation")

        device = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        on_gpu = (
            bool(here) if device is None else device != "cpu"
        )  # or "meta", as C++ says of such a tensor
        if on_gpu and any(
            isinstance(value, torch.Generator) for value in tree_leaves((args, kwargs))
        ):
            raise RuntimeError(
                f"Expected a 'cuda' device type for generator of {func}, but found 'cpu'"
            )
        from_cpu = any(value.is_cpu for value in tensors)
        by_mask = kind in INDEXING and any(
            value.dtype in (torch.bool, torch.uint8) for value in tree_leaves(args[1])
        )
        waits = (
            kind in READING or by_mask or (kind in COPIES | INDEXING and (from_cpu or not on_gpu))
        )
        if self.watching and (here or on_gpu) and waits:
            self.waits.append(str(func))
        if self.graph and waits:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")

        packed = {id(value.numbers): value for value in here}
        args, kwargs = _unpacked((args, kwargs))
        kwargs |= {"device": torch.device("cpu")} if device else {}
        done = func(*args, **kwargs)

        def pack(value: Any) -> Any:
            if not isinstance(value, Tensor) or not on_gpu:
                return value
            return (
                packed[id(value)] if id(value) in packed else OnGPU(value)
            )  # the tensor itself, if the operation was in place

        results = tree_map(pack, done)
        if self.graph and on_gpu:
            self.graph.done.append((func, args, kwargs, results))
        return results
