"""How fast the translator is, as ratios measured side by side in one run.

    # on the CPU and, where there is one, the GPU; about a minute
    python -m benchmarks.translator
    python -m benchmarks.translator --threads 1

Against the formulas written out for one image at a time: in NumPy, as the published encoders do it,
and as three loops in pure Python. Both are written from the formulas, and held against the
translator before anything is timed. The methods take turns, so that whatever else the machine does
disturbs all of them; the median counts, and the spread is shown."""

import ctypes
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.cli import command_line, progress_bar
from common.device import device_name
from voice_translator import Encoding, VoiceTranslator

PAPER = Encoding(sample_rate=22050)  # the published rate
HIFICODE = Encoding.hificode(stereo=True)


@dataclass(frozen=True)
class Config:
    rounds: int = 5  # in each of which every method is timed once
    threads: int | None = None  # of the CPU; None: as many as PyTorch takes


def numpy_soundscape(image: np.ndarray, e: Encoding) -> np.ndarray:
    """One image of the paper's scheme, `(rows, columns)` uint8 -> `(samples,)` float64: every
    sinusoid is computed anew."""
    px = image.astype(np.float64)
    px = np.clip(px + e.contrast * (px - px.mean()), 0, 255)
    amplitudes = np.where(px > 0, 10 ** ((px / 16 - 15) / 10), 0)[::-1]
    i, k = np.arange(e.rows)[:, None], np.arange(e.samples)
    hz = e.lowest_hz * (e.highest_hz / e.lowest_hz) ** (i / (e.rows - 1))
    column = np.minimum(k // (e.samples // e.columns), e.columns - 1)
    sinusoids = np.sin(2 * np.pi * hz * k / e.sample_rate + e.phases().numpy()[:, None])
    return np.clip((amplitudes[:, column] * sinusoids).sum(0) * 0.5 / math.sqrt(e.rows), -1, 1)


def python_soundscape(image: list[list[int]], e: Encoding) -> list[float]:
    """The same, in three loops: columns, samples, rows."""
    mean = sum(map(sum, image)) / (e.rows * e.columns)
    phases = e.phases().tolist()
    hz = [e.lowest_hz * (e.highest_hz / e.lowest_hz) ** (i / (e.rows - 1)) for i in range(e.rows)]
    per_column, sound = e.samples // e.columns, []
    for j in range(e.columns):
        amplitudes = []
        for i in range(e.rows):
            px = image[e.rows - 1 - i][j]
            px = min(max(px + e.contrast * (px - mean), 0), 255)
            amplitudes.append(10 ** ((px / 16 - 15) / 10) if px > 0 else 0)
        for k in range(j * per_column, (j + 1) * per_column if j < e.columns - 1 else e.samples):
            sample = 0.0
            for i in range(e.rows):
                sample += amplitudes[i] * math.sin(
                    2 * math.pi * hz[i] * k / e.sample_rate + phases[i]
                )
            sound.append(min(max(sample * 0.5 / math.sqrt(e.rows), -1), 1))
    return sound


def translating(e: Encoding, batch: int, device: torch.device) -> Callable[[], None]:
    """A batch of images that lies on the device, made sound there."""
    translator = VoiceTranslator(e).to(device)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch, e.rows, e.columns), dtype=torch.uint8, generator=random
    ).to(device)

    def translate() -> None:
        with torch.inference_mode():
            translator(images)

    return translate


def seconds_of(work: Callable[[], object], device: torch.device, at_least: float = 0.2) -> float:
    """Of one call, from as many as fill `at_least` seconds. A GPU is waited for after the last of
    them alone, as at the end of an epoch."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        seconds = time.perf_counter() - start
        if seconds >= at_least:
            return seconds / calls
        calls = math.ceil(1.1 * calls * at_least / seconds)


def peak_mebibytes(e: Encoding, batch: int) -> float:
    """What a batch on the CPU takes at its peak, output included, beside the translator: by Linux's
    high-water mark of a process of its own, in which nothing lies about that was freed before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_peak, e, batch).result()


def _peak(e: Encoding, batch: int) -> float:
    translating(e, 1, torch.device("cpu"))()  # what PyTorch allocates once
    translate = translating(e, batch, torch.device("cpu"))
    ctypes.CDLL(None).malloc_trim(
        0
    )  # or what was freed while the bank was made would serve the batch unseen
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from here
    translate()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """MiB of this process: VmRSS, what it takes; VmHWM, the most that it took."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) / 1024


def main(config: Config) -> dict[str, list[float]]:
    """Print the tables; returns the images per second of every row, one a round."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    cpu = torch.device("cpu")
    image = np.random.default_rng(0).integers(0, 256, (PAPER.rows, PAPER.columns)).astype(np.uint8)
    ours = VoiceTranslator(PAPER)(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(ours - numpy_soundscape(image, PAPER)).max() < 1e-5
    assert np.abs(ours - np.array(python_soundscape(image.tolist(), PAPER))).max() < 1e-5

    works = {  # name -> (work, images in it, where)
        "three loops in Python": (lambda: python_soundscape(image.tolist(), PAPER), 1, cpu),
        "NumPy, one image": (lambda: numpy_soundscape(image, PAPER), 1, cpu),
        "ours, CPU, one by one": (translating(PAPER, 1, cpu), 1, cpu),
        "ours, CPU, batch 256": (translating(PAPER, 256, cpu), 256, cpu),
        "ours, CPU, stereo hificode, one by one": (translating(HIFICODE, 1, cpu), 1, cpu),
        "ours, CPU, stereo hificode, batch 64": (translating(HIFICODE, 64, cpu), 64, cpu),
    }
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        works |= {
            "ours, GPU, batch 256": (translating(PAPER, 256, gpu), 256, gpu),
            "ours, GPU, stereo hificode, one by one": (translating(HIFICODE, 1, gpu), 1, gpu),
            "ours, GPU, stereo hificode, batch 64": (translating(HIFICODE, 64, gpu), 64, gpu),
        }
    square = torch.rand(1536, 1536)
    basis = VoiceTranslator(HIFICODE).bank
    rates: dict[str, list[float]] = {name: [] for name in works}
    flops, bytes_read = [], []
    for work, _, _ in works.values():
        work()  # the first call pays for allocations
    for _ in progress_bar(range(config.rounds), "rounds"):
        for name, (work, images, device) in works.items():
            rates[name].append(images / seconds_of(work, device))
        flops.append(2 * 1536**3 / seconds_of(lambda: torch.mm(square, square), cpu))
        bytes_read.append(basis.numel() * 4 / seconds_of(lambda: basis.sum(), cpu))

    print(f"{device_name(cpu)}, torch {torch.__version__}" + _gpu_name())
    print(
        "| paper's scheme: 28 x 28, 22,050 Hz, 1.05 s; hificode: 64 x 64, 44,100 Hz | images/s "
        "(spread) | times NumPy |"
    )
    print("|---|---|---|")
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    for name, rate in rates.items():
        ratio = "" if "hificode" in name else f"{middle[name] / middle['NumPy, one image']:,.3g}"
        print(f"| {name} | {middle[name]:,.3g} ({min(rate):,.3g} to {max(rate):,.3g}) | {ratio} |")
    work, bank = 2 * 3 * HIFICODE.rows * 2 * HIFICODE.samples, basis.numel() * 4
    rate, bandwidth = statistics.median(flops), statistics.median(bytes_read)
    print(
        f"the most that this CPU could do of stereo hificode: in batches {rate / work:,.0f} "
        "images/s, by its matrix rate "
        f"({rate / 1e9:.0f} GFLOP/s; {work / 1e6:.0f} MFLOP an image); one by one "
        f"{bandwidth / bank:,.0f}, "
        f"by reading the bank ({bandwidth / 1e9:.1f} GB/s; {bank / 1e6:.0f} MB)"
    )
    for name, e, batch in (
        ("paper's, batch 256", PAPER, 256),
        ("stereo hificode, batch 64", HIFICODE, 64),
    ):
        output = batch * (2 if e.stereo else 1) * e.samples * 4 / 2**20
        bank = VoiceTranslator(e).bank.numel() * 4 / 2**20
        print(
            f"memory, {name}: {peak_mebibytes(e, batch):.0f} MiB at the peak, beside the "
            f"translator's bank of {bank:.0f}; "
            f"the output is {output:.0f}"
        )
    return rates


def _gpu_name() -> str:
    return f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


if __name__ == "__main__":
    command_line(Config, main, __doc__)
