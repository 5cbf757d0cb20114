"""Profile a training step of each stage: kernels, memory traffic, and peak memory.

    python -m benchmarks.profile                              # on the GPU if there is one
    python -m benchmarks.profile --device cpu --threads 1

The steps are those of benchmarks/stages.py, by its method *ours*. Each stage has two tables: the
kernels of the captured step, or on the CPU its operators, by their own time in torch.profiler; and
the bytes of the tensors that each operator of an uncaptured step reads and writes, from their
shapes. No memory counter is read, so it does not know what caches serve, or what a kernel reads
twice. The peak is what the profiler sees allocated in the step, without parameters and optimiser
state. Operations are those of matrix products and convolutions alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import stages
from benchmarks.translator import seconds_of
from common.cli import Count, command_line
from common.device import choose_device, device_name, precision_name

LINES = 12  # of each table, and one for the rest


@dataclass(frozen=True)
class Config(stages.Config):
    rounds: Count = 5  # Steps of each stage that are profiled, after those that allocate.


class Traffic(TorchDispatchMode):
    """Counts the calls of each operator, and the bytes of the tensors that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():  # these touch no element
            aliases = (argument.alias_info for argument in func._schema.arguments)
            pairs = zip(aliases, args, strict=False)
            changed = [value for alias, value in pairs if alias is not None and alias.is_write]
            touched = tree_leaves((args, kwargs, changed or result))
            self.calls[func.name()] += 1
            self.bytes[func.name()] += sum(t.nbytes for t in touched if isinstance(t, Tensor))
        return result


def peak_bytes(profiler: profile, device: torch.device) -> int:
    """The most bytes that were allocated at a time on a device since the profiler began."""
    events: Any = profiler.profiler.kineto_results.events()  # pyright: ignore
    memory = [one for one in events if one.name() == "[memory]"]
    own = [one for one in memory if one.device_type().name == device.type.upper()]
    return max(accumulate(one.nbytes() for one in sorted(own, key=lambda one: one.start_ns())))


def print_table(title: str, calls: Mapping, values: Mapping, whole: float) -> None:
    """Print the calls and values of a step, the largest first, with their shares of `whole`."""
    names = sorted(values, key=lambda name: -values[name])
    print(f"\n| {title} a step | calls | share |\n|---|---|---|---|")
    for group in [*([name] for name in names[:LINES]), names[LINES:]]:
        name = group[0][:100].replace("|", "/") if len(group) == 1 else f"{len(group)} others"
        count, value = (sum(numbers[one] for one in group) for numbers in (calls, values))
        print(f"| {name} | {value:,.4g} | {count:,.4g} | {value / whole:.1%} |")


def main(config: Config) -> dict[str, dict[str, float]]:
    """Print the tables; return the milliseconds, operations, megabytes and peak of each step."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    device, found = choose_device(config.device), {}
    rows = stages.stages(config, device)
    inputs = stages.Inputs(rows, device)
    print(f"{device_name(device)}, torch {torch.__version__}, {precision_name(device)}")
    for row in rows:
        work = inputs.prepare(row, "ours")
        step_ms = 1000 * seconds_of(work)
        with profile() as profiler:
            for _ in range(config.rounds):
                work()
        own = [
            one for one in profiler.key_averages() if one.device_type.name == device.type.upper()
        ]
        calls = {one.key: one.count / config.rounds for one in own}
        times = {  # a kernel has no time of the CPU
            one.key: (one.self_cpu_time_total + one.self_device_time_total) / 1000 / config.rounds
            for one in own
        }

        work, optimisers = inputs.prepare_uncaptured(row)
        operations, _ = stages.operations_and_bytes(work, optimisers)
        with Traffic() as traffic:
            work()
        for optimiser in optimisers:
            optimiser.zero_grad()  # the profiler sees no end of what was there before
        with profile(profile_memory=True) as profiler:
            work()
        megabytes = {name: count / 1e6 for name, count in traffic.bytes.items()}
        moved, peak = sum(megabytes.values()), peak_bytes(profiler, device) / 1e6
        print(
            f"\n## {row.name}\n\n{step_ms:,.4g} ms a step of {row.batch} images; "
            f"{operations / 1e9:,.4g} GFLOP, {operations / step_ms / 1e6:,.4g} GFLOP/s; "
            f"{moved:,.4g} MB from shapes, {moved / step_ms:,.4g} GB/s; peak {peak:,.4g} MB"
        )
        print_table("kernel or operator | ms", calls, times, step_ms)
        print_table("operator | MB", traffic.calls, megabytes, moved)
        found[row.name] = {"ms": step_ms, "operations": operations, "MB": moved, "peak_MB": peak}
    return found


if __name__ == "__main__":
    command_line(Config, main, __doc__)
