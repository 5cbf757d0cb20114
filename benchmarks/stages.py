"""How fast the stages train, as ratios measured side by side in one run.

    # on the GPU if there is one, else on the CPU; minutes
    python -m benchmarks.stages
    python -m benchmarks.stages --device cpu --threads 1

Each row is one step of a stage, with the published networks and batches, on images of noise: it
needs no data. It is timed in three ways, which take turns, so that whatever else the machine does
disturbs all of them; the median counts, and the spread is shown:

    ours        as the stage scripts train: log-mels made in batches, once, and kept; bfloat16 where it pays, channels last
    plain       the same batches and networks in a plain float32 loop: each batch is heard anew, nothing is cast, not
                even to TensorFloat-32
    published   as the published design has it: each image alone, in NumPy and Pillow, in every epoch; then a float32 network

The last row is the step of the sound-consistent objective; what is heard again in it, of rehearsal
and on the way back, is not in the columns of hearing.

The floor is the least time that a step could take here: its operations over the measured matrix
rate, or the bytes that it cannot help moving over the measured bandwidth, whichever is longer."""

import contextlib
import copy
import ctypes
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.translator import numpy_soundscape, resident, seconds_of
from common.cli import command_line, progress_bar
from common.device import autocast, choose_device, device_name, precision_name, uses_bfloat16
from data.augment import augment, random_affine
from data.resize import downsample_lstsq, upsample
from emnist_dcgan import gan_loss
from models.discriminator import Discriminator
from models.generator import Generator
from models.judge_cnn import CNNJudge
from models.lenet import LeNet
from models.vggish import VGGish
from training.cuda_graph import WARMUP_STEPS, CudaGraphStep
from training.logmels import LogMelCache
from training.loop import optimizer_step
from training.losses import audio_loss, binarization_penalty, null_space_penalty
from vggish import FFT, HOP, WINDOW, ImageToLogMel, mel_filters
from voice_translator import Encoding

PUBLISHED_IMAGES = 60_000  # an epoch
PUBLISHED = Encoding(sample_rate=22050)
FRAMES = 96  # that the published network hears
WAYS = ("ours", "plain", "published")
MEL = mel_filters().numpy()
Step = Callable[[Tensor, Tensor], None]  # inputs, labels


@dataclass(frozen=True)
class Config:
    rounds: int = 3  # in each of which every stage is timed once in each of the three ways
    width: int = 64  # of VGGish, generator and discriminator. Published: 64
    batch: int | None = None  # None: as published, 128, and 64 of the GAN
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    threads: int | None = None  # of the CPU; None: as many as PyTorch takes


@dataclass(frozen=True)
class Stage:
    name: str
    build: Callable[
        [bool, int], tuple[Step, list[torch.optim.Optimizer]]
    ]  # ours?, frames -> its step, and its optimisers
    batch: int
    epochs: int  # published; 0: not published
    hears: bool  # or sees
    augmented: bool = False  # so that no log-mel can be kept
    tries: bool = False  # whether the stage lets cuDNN try its algorithms


# -- the published design: one image at a time ------------------------------------------------------------------------


def published_hearing(image: np.ndarray) -> np.ndarray:
    """`(28, 28)` uint8 -> `(1, 96, 64)` float32: its soundscape and the front end of VGGish,
    resampled, in NumPy."""
    sound = resample_poly(numpy_soundscape(image, PUBLISHED), 320, 441)
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP][:FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    spectrum = np.abs(np.fft.rfft(frames * window, FFT))
    return np.log(spectrum @ MEL + 0.01)[None].astype(np.float32)


def published_seeing(image: np.ndarray) -> np.ndarray:
    """`(28, 28)` uint8 -> `(1, 64, 64)` float32 in [-1, 1], by Pillow."""
    enlarged = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, dtype=np.float32)[None] / 127.5 - 1


def load(images: np.ndarray, hears: bool, device: torch.device) -> Tensor:
    """A batch, image by image."""
    one = published_hearing if hears else published_seeing
    return torch.stack([torch.from_numpy(one(image)) for image in images]).to(device)


def turned_plainly(images: Tensor, degrees: float) -> Tensor:
    """As `random_affine` turns them, in PyTorch's usual way."""
    angle = math.radians(degrees) * (2 * torch.rand(len(images), device=images.device) - 1)
    none = torch.zeros_like(angle)
    rows = [
        torch.stack([angle.cos(), -angle.sin(), none], 1),
        torch.stack([angle.sin(), angle.cos(), none], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


# -- a step of each stage, ours or plain ------------------------------------------------------------------------------


def stages(config: Config, device: torch.device) -> list[Stage]:
    """What is timed. Ours casts, and lays channels last; plain does neither."""

    def laid(network: nn.Module, ours: bool) -> nn.Module:
        return network.to(
            device, memory_format=torch.channels_last if ours else torch.contiguous_format
        )

    def cast(ours: bool) -> contextlib.AbstractContextManager:
        return autocast(device) if ours else contextlib.nullcontext()

    def embed(network: VGGish, heard: Tensor, ours: bool) -> Tensor:
        if ours:
            return network.embed(heard)
        return network.embedding(
            network.features(heard).permute(0, 2, 3, 1).flatten(1)
        )  # channels first

    def adam(*networks: nn.Module, ours: bool) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [p for network in networks for p in network.parameters()], 1e-4, fused=ours
        )

    def hear(ours: bool, frames: int) -> tuple[Step, list]:
        network = laid(VGGish(frames, config.width), ours)
        optimiser = adam(network, ours=ours)

        def step(heard: Tensor, labels: Tensor) -> None:
            with cast(ours):
                logits = network.classifier(embed(network, heard, ours)).float()
            optimizer_step(F.cross_entropy(logits, labels), optimiser)

        return step, [optimiser]

    def read(network: nn.Module, turn: float, ours: bool) -> tuple[Step, list]:
        laid(network, ours)
        optimiser = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, fused=ours)

        def step(seen: Tensor, labels: Tensor) -> None:
            if turn:
                seen = random_affine(seen, turn) if ours else turned_plainly(seen, turn)
            with cast(ours):
                logits = network(seen)
            optimizer_step(F.cross_entropy(logits, labels), optimiser)

        return step, [optimiser]

    def remember(ours: bool, _: int) -> tuple[Step, list]:
        generator, discriminator = (
            laid(Generator(config.width), ours),
            laid(Discriminator(config.width), ours),
        )
        g_optimiser, d_optimiser = adam(generator, ours=ours), adam(discriminator, ours=ours)

        def step(real: Tensor, labels: Tensor) -> None:
            z = torch.randn(len(real), generator.noise_size, device=device)
            with cast(ours):
                imagined = generator(z)
                real_logits, fake_logits = discriminator(real), discriminator(imagined.detach())
            optimizer_step(gan_loss(real_logits, 1.0) + gan_loss(fake_logits, 0.0), d_optimiser)
            discriminator.requires_grad_(
                not ours
            )  # a plain loop computes gradients that nobody needs
            with cast(ours):
                fake_logits = discriminator(imagined)
            optimizer_step(gan_loss(fake_logits, 1.0), g_optimiser)
            discriminator.requires_grad_(True)

        return step, [g_optimiser, d_optimiser]

    def imagine(joint: bool, ours: bool, frames: int) -> tuple[Step, list]:
        network, generator = (
            laid(VGGish(frames, config.width), ours),
            laid(Generator(config.width), ours),
        )
        classifier = laid(LeNet(), ours).requires_grad_(False).eval()
        generator.requires_grad_(joint).eval()
        optimiser = adam(network, generator, ours=ours) if joint else adam(network, ours=ours)

        def step(heard: Tensor, labels: Tensor) -> None:
            with cast(ours):
                logits = classifier(generator(embed(network, heard, ours)))
            optimizer_step(F.cross_entropy(logits, labels), optimiser)

        return step, [optimiser]

    def imagine_the_sound(ours: bool, frames: int) -> tuple[Step, list]:
        network, generator = (
            laid(VGGish(frames, config.width), ours),
            laid(Generator(config.width), ours).eval(),
        )
        memory = copy.deepcopy(generator).requires_grad_(False)
        classifier = laid(LeNet(), ours).requires_grad_(False).eval()
        ear = ImageToLogMel(Encoding(), frames).to(device)
        optimiser = adam(network, generator, ours=ours)

        def step(heard: Tensor, labels: Tensor) -> None:
            with torch.no_grad():
                with cast(ours):
                    remembered = memory(
                        torch.randn(len(labels), generator.noise_size, device=device)
                    )
                told = torch.cat([heard, ear(downsample_lstsq(remembered))])
            with cast(ours):
                imagined, rehearsed = generator(embed(network, told, ours)).tensor_split(
                    [len(labels)]
                )
                logits = classifier(augment(imagined, 1.0))
            loss = F.cross_entropy(logits, labels) + 5 * F.mse_loss(rehearsed, remembered)
            loss = loss + audio_loss(ear, imagined, heard, straight_through=1.0, kind="loudness")
            loss = loss + 10 * null_space_penalty(imagined) + binarization_penalty(imagined)
            optimizer_step(loss, optimiser)

        return step, [optimiser]

    large, small = config.batch or 128, config.batch or 64
    return [
        Stage("one: hear", hear, large, 5, hears=True),
        Stage("two: classifier", lambda ours, _: read(LeNet(), 0.0, ours), large, 50, hears=False),
        Stage("two: judge", lambda ours, _: read(CNNJudge(), 10.0, ours), large, 0, hears=False),
        Stage("two: GAN", remember, small, 50, hears=False, tries=True),
        Stage("three: audio network", partial(imagine, False), large, 3, hears=True),
        Stage("three: with generator", partial(imagine, True), large, 1, hears=True),
        Stage("three: sound-consistent", imagine_the_sound, large, 0, hears=True, augmented=True),
    ]


# -- what is measured --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peak_mebibytes(device: torch.device) -> Iterator[list[float]]:
    """What is taken inside at its peak, not counting what was there before: of the GPU, or of this
    process by Linux's mark. It is in the list when all is done."""
    peak: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.append((torch.cuda.max_memory_allocated(device) - before) / 2**20)
    else:
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from here
        yield peak
        peak.append(resident("VmHWM") - before)


def operations_and_bytes(
    step: Callable[[], None], optimisers: list[torch.optim.Optimizer]
) -> tuple[float, float]:
    """Of one step: its operations in matrix products and convolutions; and the bytes that it cannot
    help moving. What the way back needs is written once and read once; a parameter, its gradient
    and the optimiser's state are read, and written but for the gradient."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        step()
    learned = [
        p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]
    ]
    state = [
        v for o in optimisers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)
    ]
    moved = 3 * sum(p.numel() for p in learned) + 2 * sum(v.numel() for v in state)
    return counter.get_total_flops(), 2 * sum(saved.values()) + 4 * moved


def machine_rates(device: torch.device) -> tuple[float, float]:
    """Operations a second of a matrix product, in the precision that ours takes; bytes a second of
    a copy."""
    dtype, size = (
        (torch.bfloat16 if uses_bfloat16(device) else torch.float32),
        (8192 if device.type == "cuda" else 2048),
    )
    square = torch.rand(size, size, device=device, dtype=dtype)
    long = torch.rand(size * size * 8, device=device)
    there = long.clone()
    torch.mm(square, square)  # the first call pays for allocations
    rate = 2 * size**3 / seconds_of(lambda: torch.mm(square, square), device)
    return rate, 8 * long.numel() / seconds_of(lambda: there.copy_(long), device)


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Print the tables; returns the images a second of every stage in each of the three ways, one a
    round."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    torch.manual_seed(0)
    ear = ImageToLogMel(Encoding()).to(device)
    rows = stages(config, device)
    most = max(row.batch for row in rows)
    images = torch.randint(0, 256, (most, 28, 28), dtype=torch.uint8)
    arrays, on_device = images.numpy(), images.to(device)
    labels = torch.arange(most, device=device) % 10
    kept = LogMelCache(ear, on_device, 2 * most, gigabytes=1)  # asked for twice, so kept
    anew = LogMelCache(ear, on_device, 2 * most, gigabytes=1, augmentation=0.5)
    index = torch.randperm(most, device=device)

    def inputs(way: str, row: Stage, few: Tensor) -> Tensor:
        if way == "published":
            return load(arrays[: row.batch], row.hears, device)
        if not row.hears:
            return upsample(on_device[few])
        if row.augmented:
            return anew[few]
        if way == "ours":
            return kept[few]
        with torch.no_grad():
            return ear(on_device[few])

    frames = {"ours": ear.frames, "plain": ear.frames, "published": FRAMES}
    steps: dict[
        tuple[str, str], Callable[[], None]
    ] = {}  # ours with its loading, as the stage scripts record it
    loads: dict[tuple[str, str], Callable[[], Tensor]] = {}
    floors, peaks = {}, {}
    for row in rows:
        few, told = index[: row.batch], labels[: row.batch]
        for way in WAYS:
            with peak_mebibytes(device) as peaks[row.name, way]:
                learn, optimisers = row.build(way == "ours", frames[way])
                loaded = partial(inputs, way, row)
                work, load_few = partial(learn, loaded(few), told), partial(loaded, few)
                work()  # the first call pays for allocations
                if way == "ours":
                    floors[row.name] = operations_and_bytes(work, optimisers)

                    def step(
                        few: Tensor, told: Tensor, learn: Step = learn, loaded: Callable = loaded
                    ) -> None:
                        learn(loaded(few), told)

                    step, loaded = (
                        CudaGraphStep(step, device, *optimisers, tries=row.tries),
                        CudaGraphStep(loaded, device),
                    )
                    work, load_few = partial(step, few, told), partial(loaded, few)
                for k in range(
                    WARMUP_STEPS + 1 if device.type == "cuda" else 0
                ):  # until ours are recorded
                    if k == 1:  # what cuDNN tried does not count
                        torch.cuda.reset_peak_memory_stats(device)
                    work()
                    if way == "ours":
                        load_few()
            steps[row.name, way], loads[row.name, way] = work, load_few

    hearing: list[float] = []  # seconds an image, made in batches
    machine: list[tuple[float, float]] = []
    loading: dict[tuple[str, str], list[float]] = {key: [] for key in steps}  # seconds an image
    stepping: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in progress_bar(range(config.rounds), "rounds"):
        machine.append(machine_rates(device))
        with torch.no_grad():
            hearing.append(seconds_of(lambda: ear(on_device), device) / most)
        for row in rows:
            for way in WAYS:
                key = row.name, way
                loading[key].append(seconds_of(loads[key], device) / row.batch)
                stepping[key].append(seconds_of(steps[key], device) / row.batch)

    heard_epochs = sum(row.epochs for row in rows if row.name.startswith("three"))
    print(
        f"{device_name(device)}, torch {torch.__version__}, {precision_name(device)}, width {config.width}"
    )
    rate, bandwidth = (statistics.median(values) for values in zip(*machine, strict=True))
    print(f"matrix products {rate / 1e9:,.0f} GFLOP/s, copies {bandwidth / 1e9:,.1f} GB/s")
    print(
        f"hearing, image to log-mel: {1 / statistics.median(hearing):,.0f} images/s {spread([1 / s for s in hearing])}"
    )
    print(
        "| stage | images/s: ours (spread) | plain float32 | published design | times plain | times published "
        "| hearing: ours | plain | published | of the floor | MiB: ours | plain |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    rates: dict[str, dict[str, list[float]]] = {}
    total = dict.fromkeys(WAYS, 0.0)
    for row in rows:
        once = 0.0
        if row.epochs and row.hears:  # ours are made once a run, of all its epochs
            once = statistics.median(hearing) / (
                heard_epochs if row.name.startswith("three") else row.epochs
            )
        a_image = {
            way: [
                s + (once if way == "ours" else t)
                for t, s in zip(loading[row.name, way], stepping[row.name, way], strict=True)
            ]
            for way in WAYS
        }
        middle = {way: statistics.median(a_image[way]) for way in WAYS}
        rates[row.name] = {way: [1 / s for s in a_image[way]] for way in WAYS}
        share = {
            way: (statistics.median(loading[row.name, way]) + (once if way == "ours" else 0))
            / middle[way]
            for way in WAYS
        }
        shares = " | ".join(f"{share[way]:.1%}" if row.hears else "" for way in WAYS)
        flops, moved = floors[row.name]
        floor = max(flops / rate, moved / bandwidth) / row.batch
        bound = "operations" if flops / rate > moved / bandwidth else "bytes"
        print(
            f"| {row.name} | {1 / middle['ours']:,.0f} {spread(rates[row.name]['ours'])} | {1 / middle['plain']:,.0f} "
            f"| {1 / middle['published']:,.0f} | {middle['plain'] / middle['ours']:.2f} "
            f"| {middle['published'] / middle['ours']:.2f} | {shares} | {floor / middle['ours']:.0%} of {1 / floor:,.0f} "
            f"({bound}) | {peaks[row.name, 'ours'][0]:,.0f} | {peaks[row.name, 'plain'][0]:,.0f} |"
        )
        for way in WAYS:
            total[way] += PUBLISHED_IMAGES * row.epochs * middle[way]
    print(
        "extrapolated from these rates, not run: the published schedule "
        f"(5 + 50 + 50 + 4 epochs of {PUBLISHED_IMAGES:,}) takes "
        + ", ".join(f"{way} {total[way] / 3600:,.2f} h" for way in WAYS)
    )
    return rates


def spread(values: list[float]) -> str:
    return f"({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    command_line(Config, main, __doc__)
