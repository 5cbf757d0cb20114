"""Benchmark the training steps of all stages, as ratios that are measured side by side.

    python -m benchmarks.stages                              # on the GPU if there is one; minutes
    python -m benchmarks.stages --device cpu --threads 1

Each row is one step of a stage, with the published networks and batches, on images of noise. Three
methods take turns, so other work on the machine disturbs all of them; the table shows the median
and the spread:

    ours        as the stages train: log-mels are computed in batches, once, and kept; bfloat16
                where it pays; channels last; on a GPU a CUDA graph
    plain       the same networks and batches in a plain float32 loop; log-mels in every epoch
    published   the published design: one image at a time, in NumPy and Pillow, in every epoch; then
                a float32 network

The last row is the sound-consistent objective, which is not published. The floor is the least time
that a step could take: its operations at the measured rate of a matrix product, or the bytes that
it must move at the measured rate of a copy, whichever is longer."""

import contextlib
import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.translator import numpy_soundscape, seconds_of
from common.cli import Count, Limit, command_line, progress_bar
from common.device import autocast, choose_device, device_name, precision_name, uses_bfloat16
from data.augment import augment, random_affine
from data.resize import downsample_lstsq, upsample
from models.discriminator import Discriminator
from models.generator import NOISE_SIZE, Generator
from models.judge_cnn import CNNJudge
from models.lenet import LeNet
from models.vggish import VGGish
from training.cuda_graph import WARMUP_STEPS, CudaGraphStep
from training.logmels import LogMelCache
from training.loop import optimizer_step
from training.losses import audio_loss, binarization_penalty, null_space_penalty
from vggish import (
    FFT,
    HOP,
    KAISER_BETA,
    ROLL_OFF,
    WINDOW,
    ZERO_CROSSINGS,
    ImageToLogMel,
    mel_filters,
)
from voice_translator import Encoding

PUBLISHED_IMAGES = 60_000  # an epoch
PUBLISHED = Encoding(sample_rate=22050)
FRAMES = 96  # of the published network
METHODS = ("ours", "plain", "published")
MEL = mel_filters().numpy()
Step = Callable[[Tensor, Tensor], None]  # inputs, labels


@dataclass(frozen=True)
class Config:
    # Number of rounds. In each of them every stage is timed once by each method.
    rounds: Count = 3
    width: Count = 64  # Width of VGGish, the generator and the discriminator. Published: 64.
    # Images a step. None: as published, 128, and 64 for the GAN.
    batch: Annotated[int, Limit(2)] | None = None
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    threads: Count | None = None  # Threads of the CPU. None: as many as PyTorch takes.


@dataclass(frozen=True)
class Stage:
    """A row of the table. `build(ours, frames)` returns the step and its optimisers."""

    name: str
    build: Callable[[bool, int], tuple[Step, tuple[torch.optim.Optimizer, ...]]]
    batch: int
    epochs: int  # published; 0: not published
    hears: bool  # whether its inputs are log-mels; else they are images
    augmented: bool = False  # so no log-mel can be kept
    try_algorithms: bool = False  # see CudaGraphStep


# -- the published design: one image at a time


@cache
def resampling_filter() -> np.ndarray:
    """resampy's `kaiser_best` from 22,050 to 16,000 Hz (320/441), for `resample_poly`."""
    half = ZERO_CROSSINGS * 441
    sinc = ROLL_OFF * np.sinc(ROLL_OFF * np.arange(-half, half + 1) / 441) / 441
    return sinc * np.kaiser(2 * half + 1, KAISER_BETA)


def published_log_mel(image: np.ndarray) -> np.ndarray:
    """`(28, 28)` uint8 -> `(1, 96, 64)` float32, the log-mel of the soundscape, in NumPy."""
    sound = resample_poly(numpy_soundscape(image, PUBLISHED), 320, 441, window=resampling_filter())
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP][:FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    spectrum = np.abs(np.fft.rfft(frames * window, FFT))
    return np.log(spectrum @ MEL + 0.01)[None].astype(np.float32)


def published_image(image: np.ndarray) -> np.ndarray:
    """`(28, 28)` uint8 -> `(1, 64, 64)` float32 in [-1, 1], by Pillow."""
    enlarged = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, dtype=np.float32)[None] / 127.5 - 1


def load_one_by_one(images: np.ndarray, hears: bool, device: torch.device) -> Tensor:
    """A batch of log-mels or images, made one image at a time."""
    one = published_log_mel if hears else published_image
    return torch.stack([torch.from_numpy(one(image)) for image in images]).to(device)


# -- a step of each stage, ours or plain


def stages(config: Config, device: torch.device) -> list[Stage]:
    """The rows of the table."""

    def place(network: Any, ours: bool) -> Any:
        layout = torch.channels_last if ours else torch.contiguous_format
        return network.to(device, memory_format=layout)

    def cast(ours: bool) -> contextlib.AbstractContextManager:
        return autocast(device) if ours else contextlib.nullcontext()

    def embed(network: VGGish, logmels: Tensor, ours: bool) -> Tensor:
        if ours:
            return network.embed(logmels)
        maps = network.features(logmels)  # `embed` would lay the channels last
        return network.embedding(maps.permute(0, 2, 3, 1).flatten(1))

    def adam(network: nn.Module, ours: bool) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), 1e-4, fused=ours)

    def stage_one(ours: bool, frames: int) -> tuple[Step, tuple]:
        network = place(VGGish(frames, config.width), ours)
        optimiser = adam(network, ours)

        def step(logmels: Tensor, labels: Tensor) -> None:
            with cast(ours):
                logits = network.classifier(embed(network, logmels, ours)).float()
            optimizer_step(F.cross_entropy(logits, labels), optimiser)

        return step, (optimiser,)

    def classifier(
        kind: type[nn.Module], rotation: float, ours: bool, frames: int
    ) -> tuple[Step, tuple]:
        network = place(kind(), ours)
        optimiser = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, fused=ours)

        def step(images: Tensor, labels: Tensor) -> None:
            if rotation:
                images = random_affine(images, rotation)
            with cast(ours):
                logits = network(images)
            optimizer_step(F.cross_entropy(logits, labels), optimiser)

        return step, (optimiser,)

    def gan(ours: bool, frames: int) -> tuple[Step, tuple]:
        generator = place(Generator(config.width), ours)
        discriminator = place(Discriminator(config.width), ours)
        g_optimiser, d_optimiser = adam(generator, ours), adam(discriminator, ours)

        def loss(logits: Tensor, target: float) -> Tensor:
            targets = torch.full_like(logits, target)
            return F.binary_cross_entropy_with_logits(logits, targets)

        def step(real: Tensor, labels: Tensor) -> None:
            z = torch.randn(len(real), NOISE_SIZE, device=device)
            with cast(ours):
                fake = generator(z)
                real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
            optimizer_step(loss(real_logits, 1.0) + loss(fake_logits, 0.0), d_optimiser)
            discriminator.requires_grad_(not ours)  # a plain loop computes unneeded gradients
            with cast(ours):
                fake_logits = discriminator(fake)
            optimizer_step(loss(fake_logits, 1.0), g_optimiser)
            discriminator.requires_grad_(True)

        return step, (g_optimiser, d_optimiser)

    def stage_three(joint: bool, ours: bool, frames: int) -> tuple[Step, tuple]:
        network = place(VGGish(frames, config.width), ours)
        generator = place(Generator(config.width), ours).requires_grad_(joint).eval()
        frozen_classifier = place(LeNet(), ours).requires_grad_(False).eval()
        optimiser = adam(nn.ModuleList([network, generator] if joint else [network]), ours)

        def step(logmels: Tensor, labels: Tensor) -> None:
            with cast(ours):
                logits = frozen_classifier(generator(embed(network, logmels, ours)))
            optimizer_step(F.cross_entropy(logits, labels), optimiser)

        return step, (optimiser,)

    def sound_consistent(ours: bool, frames: int) -> tuple[Step, tuple]:
        network = place(VGGish(frames, config.width), ours)
        generator = place(Generator(config.width), ours).eval()
        frozen_generator = copy.deepcopy(generator).requires_grad_(False)
        frozen_classifier = place(LeNet(), ours).requires_grad_(False).eval()
        front_end = ImageToLogMel(Encoding(), frames).to(device)
        optimiser = adam(nn.ModuleList([network, generator]), ours)

        def step(logmels: Tensor, labels: Tensor) -> None:
            with torch.no_grad():
                with cast(ours):
                    z = torch.randn(len(labels), NOISE_SIZE, device=device)
                    replayed = frozen_generator(z)
                inputs = torch.cat([logmels, front_end(downsample_lstsq(replayed), validate=False)])
            with cast(ours):
                drawn = generator(embed(network, inputs, ours))
                imagined, replay = drawn.tensor_split([len(labels)])
                logits = frozen_classifier(augment(imagined, 1.0))
            loss = F.cross_entropy(logits, labels) + 5 * F.mse_loss(replay, replayed)
            loss = loss + audio_loss(front_end, imagined, logmels, 1.0, "loudness")
            loss = loss + 10 * null_space_penalty(imagined) + binarization_penalty(imagined)
            optimizer_step(loss, optimiser)

        return step, (optimiser,)

    large, small = config.batch or 128, config.batch or 64
    return [
        Stage("one", stage_one, large, 5, hears=True),
        Stage("two: classifier", partial(classifier, LeNet, 0.0), large, 50, hears=False),
        Stage("two: judge cnn", partial(classifier, CNNJudge, 10.0), large, 0, hears=False),
        Stage("two: GAN", gan, small, 50, hears=False, try_algorithms=True),
        Stage("three: audio network", partial(stage_three, False), large, 3, hears=True),
        Stage("three: with generator", partial(stage_three, True), large, 1, hears=True),
        Stage("three: sound-consistent", sound_consistent, large, 0, hears=True, augmented=True),
    ]


class Inputs:
    """What the steps of the stages take: noise, at the largest batch of `rows`."""

    def __init__(self, rows: list[Stage], device: torch.device) -> None:
        count, self.device = max(row.batch for row in rows), device
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
        self.arrays, self.images = images.numpy(), images.to(device)
        self.labels = torch.arange(count, device=device) % 10
        self.order = torch.randperm(count, device=device)
        self.front_end = ImageToLogMel(Encoding()).to(device)
        self.kept = LogMelCache(self.front_end, self.images, 2 * count, 1)  # used twice, so kept
        self.augmented = LogMelCache(self.front_end, self.images, 2 * count, 1, augmentation=0.5)

    def batch(self, row: Stage, method: str, index: Tensor) -> Tensor:
        """The log-mels or images of a batch, as a method makes them."""
        if method == "published":
            return load_one_by_one(self.arrays[: row.batch], row.hears, self.device)
        if not row.hears:
            return upsample(self.images[index])
        if row.augmented:
            return self.augmented[index]
        if method == "ours":
            return self.kept[index]
        with torch.no_grad():
            return self.front_end(self.images[index])

    def prepare(self, row: Stage, method: str) -> Callable[[], None]:
        """A call that makes one step, with its batch. It has made the steps that allocate; ours is
        captured on a GPU."""
        frames = FRAMES if method == "published" else self.front_end.frames
        learn, optimisers = row.build(method == "ours", frames)

        def step(index: Tensor, labels: Tensor) -> None:
            learn(self.batch(row, method, index), labels)

        graph = CudaGraphStep(
            step, self.device, *optimisers,
            enabled=method == "ours", try_algorithms=row.try_algorithms,
        )  # fmt: skip
        work = partial(graph, self.order[: row.batch], self.labels[: row.batch])
        for _ in range(WARMUP_STEPS + 1 if self.device.type == "cuda" else 1):
            work()
        return work

    def prepare_uncaptured(
        self, row: Stage
    ) -> tuple[Callable[[], None], tuple[torch.optim.Optimizer, ...]]:
        """A call that makes one step of ours, without a graph, on a batch that is there, and the
        optimisers in it. It has made the first step, which makes their state."""
        learn, optimisers = row.build(True, self.front_end.frames)
        batch = self.batch(row, "ours", self.order[: row.batch])
        work = partial(learn, batch, self.labels[: row.batch])
        work()
        return work, optimisers


# -- the measurement


def operations_and_bytes(
    step: Callable[[], None], optimisers: Sequence[torch.optim.Optimizer]
) -> tuple[float, float]:
    """Count the operations of a step in matrix products and convolutions, and the bytes that it
    must move.

    What the backward pass needs is written once and read once. Parameters and optimiser state are
    read and written; gradients are read."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        step()
    moved = 2 * sum(saved.values())
    for optimiser in optimisers:
        moved += sum(3 * p.nbytes for group in optimiser.param_groups for p in group["params"])
        states = (value for values in optimiser.state.values() for value in values.values())
        moved += sum(2 * value.nbytes for value in states if isinstance(value, Tensor))
    return counter.get_total_flops(), moved


def machine_rates(device: torch.device) -> tuple[float, float]:
    """Measure the operations a second of a matrix product, in the precision of ours, and the bytes
    a second of a copy."""
    dtype = torch.bfloat16 if uses_bfloat16(device) else torch.float32
    size = 8192 if device.type == "cuda" else 2048
    square = torch.rand(size, size, device=device, dtype=dtype)
    source = torch.rand(size * size * 8, device=device)
    target = source.clone()
    torch.mm(square, square)  # the first call pays for allocations
    rate = 2 * size**3 / seconds_of(lambda: torch.mm(square, square))
    return rate, 8 * source.numel() / seconds_of(lambda: target.copy_(source))


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Print the table; return the images a second of every stage by each method, one a round."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    torch.manual_seed(0)
    rows = stages(config, device)
    inputs = Inputs(rows, device)
    works = {(row.name, method): inputs.prepare(row, method) for row in rows for method in METHODS}
    floors = {row.name: operations_and_bytes(*inputs.prepare_uncaptured(row)) for row in rows}

    hear = partial(inputs.front_end, inputs.images)
    hearing: list[float] = []  # seconds an image, in batches
    machine: list[tuple[float, float]] = []
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in works}  # an image
    for _ in progress_bar(range(config.rounds), "rounds"):
        machine.append(machine_rates(device))
        with torch.no_grad():
            hearing.append(seconds_of(hear) / len(inputs.images))
        for row in rows:
            for method in METHODS:
                key = row.name, method
                seconds[key].append(seconds_of(works[key]) / row.batch)

    # Ours computes the log-mels once a run, for all its epochs.
    joint_epochs = sum(row.epochs for row in rows if row.name.startswith("three"))
    for row in rows:
        if row.epochs and row.hears:
            epochs = joint_epochs if row.name.startswith("three") else row.epochs
            once = statistics.median(hearing) / epochs
            seconds[row.name, "ours"] = [s + once for s in seconds[row.name, "ours"]]

    rate, bandwidth = (statistics.median(values) for values in zip(*machine, strict=True))
    print(f"{device_name(device)}, torch {torch.__version__}, {precision_name(device)}, "
          f"width {config.width}")  # fmt: skip
    print(f"matrix products {rate / 1e9:,.0f} GFLOP/s, copies {bandwidth / 1e9:,.1f} GB/s")
    print(f"image to log-mel: {1 / statistics.median(hearing):,.0f} images/s "
          f"{spread([1 / s for s in hearing])}")  # fmt: skip
    print("| stage | images/s: ours (spread) | plain float32 | published design | times plain "
          "| times published | of the floor |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    rates: dict[str, dict[str, list[float]]] = {}
    total = dict.fromkeys(METHODS, 0.0)
    for row in rows:
        rates[row.name] = {m: [1 / s for s in seconds[row.name, m]] for m in METHODS}
        middle = {m: statistics.median(seconds[row.name, m]) for m in METHODS}
        operations, moved = floors[row.name]
        floor = max(operations / rate, moved / bandwidth) / row.batch
        bound = "operations" if operations / rate > moved / bandwidth else "bytes"
        print(
            f"| {row.name} | {1 / middle['ours']:,.0f} {spread(rates[row.name]['ours'])} "
            f"| {1 / middle['plain']:,.0f} | {1 / middle['published']:,.0f} "
            f"| {middle['plain'] / middle['ours']:.2f} "
            f"| {middle['published'] / middle['ours']:.2f} "
            f"| {floor / middle['ours']:.0%} of {1 / floor:,.0f} ({bound}) |"
        )
        for method in METHODS:
            total[method] += PUBLISHED_IMAGES * row.epochs * middle[method]
    hours = ", ".join(f"{method} {total[method] / 3600:,.2f} h" for method in METHODS)
    print("extrapolated from these rates, not run: the published schedule "
          f"(5 + 50 + 50 + 4 epochs of {PUBLISHED_IMAGES:,}) takes {hours}")  # fmt: skip
    return rates


def spread(values: list[float]) -> str:
    """The least and the largest value, in brackets."""
    return f"({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    command_line(Config, main, __doc__)
