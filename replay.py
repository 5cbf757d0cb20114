"""A training step as a CUDA graph: recorded once, then replayed. A GPU is through with the kernels of a small network sooner
than Python can name them one by one; a recording names them all at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import processes

LIVE = 3  # steps before the recording, in which PyTorch makes what it makes once: optimiser state, plans, cuDNN's choice


class Replayed:
    """`step`, as it is on the CPU and where several processes share the work; on one GPU recorded, and replayed.

    A recording repeats kernels, not Python: they see the weights and the batch as they are then, and draw random numbers
    anew, but all else stays as it was recorded. So what changes from step to step comes in as a tensor; by what changes
    otherwise, such as a mode, the steps are told apart, and each has a recording of its own. Learning rates are watched:
    where one changed, the step is recorded again.

    Args:
        step: of tensors on `device`, and of other arguments by which it differs; gives tensors, alone or in a dict or tuple.
        optimisers: whose steps are made in it.
        tries: whether cuDNN shall try which of its algorithms is the fastest. That takes three seconds, and makes a step of
            the GAN 7 % faster; it pays after some 20,000 steps.
    """

    def __init__(
        self, step: Callable[..., Any], device: torch.device, *optimisers: torch.optim.Optimizer, tries: bool = False
    ) -> None:
        self.step, self.optimisers, self.tries = step, optimisers, tries
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and processes.count() == 1 else None
        self.rates: list[float] = []
        self.lived: dict[Any, int] = {}
        self.recordings: dict[Any, tuple[torch.cuda.CUDAGraph, tuple, Any]] = {}

    def __call__(self, *inputs: Any) -> Any:
        if not self.stream:
            return self.step(*inputs)
        rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]
        if rates != self.rates:
            self.rates, self.lived, self.recordings = rates, {}, {}
        kind = tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in inputs)
        self.lived[kind] = self.lived.get(kind, 0) + 1
        if self.lived[kind] <= LIVE:
            return self._live(inputs)
        if kind not in self.recordings:
            self.recordings[kind] = self._record(inputs)
        graph, places, results = self.recordings[kind]
        for place, value in zip(places, inputs, strict=True):
            if isinstance(value, Tensor):
                place.copy_(value)
        graph.replay()
        return tree_map_only(Tensor, torch.clone, results)  # the next replay writes over them

    def _live(self, inputs: tuple) -> Any:
        """A step as it is, on the stream on which it will be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), trying(self.tries):
            results = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, inputs: tuple) -> tuple[torch.cuda.CUDAGraph, tuple, Any]:
        """The recording, where it takes its inputs from, and where it leaves its results; nothing is computed yet."""
        places = tree_map_only(Tensor, torch.clone, inputs)
        graph = torch.cuda.CUDAGraph()
        with capturable(self.optimisers), trying(self.tries), torch.cuda.graph(graph, stream=self.stream):
            results = tree_map_only(Tensor, Tensor.detach, self.step(*places))
        return graph, places, results


@contextmanager
def trying(tries: bool) -> Iterator[None]:
    """Within it, cuDNN tries its algorithms, if it may."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tries and not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def capturable(optimisers: tuple[torch.optim.Optimizer, ...]) -> Iterator[None]:
    """Within it, PyTorch lets the steps of `optimisers` be recorded. A fused optimiser's always may be, but for its learning
    rates, which are watched here."""
    groups = [group for optimiser in optimisers for group in optimiser.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, was in zip(groups, before, strict=True):
            group["capturable"] = was
