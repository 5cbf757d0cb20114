"""A training step as a CUDA graph: captured once, then replayed.

A GPU finishes the kernels of a small network sooner than Python can launch them one by one. A graph
launches them all at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

WARMUP_STEPS = 3  # before the capture: they make optimiser state, plans and cuDNN's choices


class CudaGraphStep:
    """Calls `step`. On a GPU it captures the step as a CUDA graph and then replays it; on the CPU
    it calls it as it is.

    A graph repeats kernels, not Python. The kernels see the current weights and batch, and draw new
    random numbers. All other Python values stay as they were captured. So whatever changes from
    step to step must be a tensor argument. Arguments that are no tensors, such as a mode, get a
    graph each. When a learning rate changes, the step is captured again. To edit a step, to print
    in it or to debug it, set `cuda_graphs=False` in the script's header.

    Args:
        step: takes tensors on `device` and plain values; returns tensors, alone or in a dict or
            tuple.
        optimisers: the optimisers that make their steps in it.
        enabled: False calls the step as it is on a GPU too.
        try_algorithms: whether cuDNN tries which of its algorithms is the fastest. That takes three
            seconds, and makes a step of the GAN 7 % faster; it pays after some 20,000 steps.
    """

    def __init__(
        self, step: Callable[..., Any], device: torch.device, *optimisers: torch.optim.Optimizer,
        enabled: bool = True, try_algorithms: bool = False,
    ) -> None:  # fmt: skip
        self.step, self.optimisers, self.try_algorithms = step, optimisers, try_algorithms
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and enabled else None
        self.rates: list[float] = []
        self.warmups: dict[Any, int] = {}
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, tuple, Any]] = {}

    def __call__(self, *inputs: Any) -> Any:
        if not self.stream:
            return self.step(*inputs)
        rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]
        if rates != self.rates:
            self.rates, self.warmups, self.graphs = rates, {}, {}
        kind = tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in inputs)
        self.warmups[kind] = self.warmups.get(kind, 0) + 1
        if self.warmups[kind] <= WARMUP_STEPS:
            return self._eager_step(inputs)
        if kind not in self.graphs:
            self.graphs[kind] = self._capture(inputs)
        graph, arguments, results = self.graphs[kind]
        for argument, value in zip(arguments, inputs, strict=True):
            if isinstance(value, Tensor):
                argument.copy_(value)
        graph.replay()
        return tree_map_only(Tensor, torch.clone, results)  # the next replay writes over them

    def _eager_step(self, inputs: tuple) -> Any:
        """A step without a graph, on the stream on which it will be captured."""
        assert self.stream
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), self._settings(capturable=False):
            results = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _capture(self, inputs: tuple) -> tuple[torch.cuda.CUDAGraph, tuple, Any]:
        """The graph, the tensors it reads its arguments from, and those it leaves its results in.
        Nothing is computed yet."""
        arguments = tree_map_only(Tensor, torch.clone, inputs)
        graph = torch.cuda.CUDAGraph()
        with self._settings(capturable=True), torch.cuda.graph(graph, stream=self.stream):
            results = tree_map_only(Tensor, Tensor.detach, self.step(*arguments))
        return graph, arguments, results

    @contextmanager
    def _settings(self, capturable: bool) -> Iterator[None]:
        """Let cuDNN try its algorithms, unless the run must be deterministic, and let PyTorch
        capture the optimisers' steps if `capturable`. A fused optimiser is safe to capture except
        for its learning rates, which `__call__` watches."""
        before = torch.backends.cudnn.benchmark
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.backends.cudnn.benchmark = self.try_algorithms and not deterministic
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        groups = [group for group in groups if "capturable" in group]
        for group in groups:
            group["capturable"] = capturable
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
            for group in groups:
                group["capturable"] = False
