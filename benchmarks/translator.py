"""How fast the translator is, as ratios that are measured side by side in one run.

    # on the CPU with one thread and with all, and on the GPU if there is one; about two minutes
    python -m benchmarks.translator

The formulas written out for one image at a time are timed beside it: in NumPy, as the published
encoders do it, and as three loops in pure Python. Both are compared with the translator before
anything is timed. The methods take turns, so that all of them are disturbed by the same other work.
The median counts, and the spread is shown. The last column is the share of the rate of a bare
matrix product, which holds on other machines too."""

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

from common.cli import Count, command_line, progress_bar
from common.device import device_name
from voice_translator import Encoding, VoiceTranslator, to_pcm16

PAPER = Encoding(sample_rate=22050)  # the published rate
HIFICODE = Encoding.hificode(stereo=True)
CASES = {  # name -> encoding, images a batch, to 16-bit samples
    "paper, one by one": (PAPER, 1, False),
    "paper, batch 256": (PAPER, 256, False),
    "stereo hificode, one by one": (HIFICODE, 1, False),
    "stereo hificode, one by one, 16 bit": (HIFICODE, 1, True),
    "stereo hificode, batch 64": (HIFICODE, 64, False),
    "stereo hificode, batch 64, 16 bit": (HIFICODE, 64, True),
}
PRODUCT = 1536  # rows and columns of the bare matrix product


@dataclass(frozen=True)
class Config:
    rounds: Count = 5  # Rounds, in each of which every method is timed once.


def numpy_soundscape(image: np.ndarray, e: Encoding) -> np.ndarray:
    """One image of the paper's scheme, `(rows, columns)` uint8 -> `(samples,)` float64: every
    sinusoid is computed again."""
    px = image.astype(np.float64)
    px = np.clip(px + e.contrast * (px - px.mean()), 0, 255)
    amplitudes = np.where(px > 0, 10 ** ((px / 16 - 15) / 10), 0)[::-1]
    i, k = np.arange(e.rows)[:, None], np.arange(e.samples)
    hz = e.lowest_hz * (e.highest_hz / e.lowest_hz) ** (i / (e.rows - 1))
    column = np.minimum(k // (e.samples // e.columns), e.columns - 1)
    sinusoids = np.sin(2 * np.pi * hz * k / e.sample_rate + e.phases().numpy()[:, None])
    return np.clip((amplitudes[:, column] * sinusoids).sum(0) * 0.5 / math.sqrt(e.rows), -1, 1)


def python_soundscape(image: list[list[int]], e: Encoding) -> list[float]:
    """The same in three loops: columns, samples, rows."""
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


def translating(
    e: Encoding, batch: int, device: torch.device, pcm: bool = False
) -> Callable[[], None]:
    """A function that translates a batch of images on the device, to 16-bit samples if `pcm`."""
    translator = VoiceTranslator(e).to(device)
    random = torch.Generator().manual_seed(0)
    size = (batch, e.rows, e.columns)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=random).to(device)

    def translate() -> None:
        with torch.inference_mode():
            sounds = translator(images)
            if pcm:
                to_pcm16(sounds)

    return translate


def operations(e: Encoding) -> int:
    """Floating-point operations of the matrix products of an image."""
    powers = 3 if e.window == "spline" else 1
    return 2 * powers * e.rows * e.samples * (2 if e.stereo else 1)


def seconds_of(work: Callable[[], object], device: torch.device, at_least: float = 0.2) -> float:
    """Seconds of one call, from as many calls as fill `at_least` seconds. A GPU is waited for after
    the last one only, as at the end of an epoch."""
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
    """The most memory of a batch on the CPU, with its output, beside the translator. It is Linux's
    high-water mark of a new process, in which nothing was freed before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_peak, e, batch).result()


def _peak(e: Encoding, batch: int) -> float:
    translating(e, 1, torch.device("cpu"))()  # what PyTorch allocates once
    translate = translating(e, batch, torch.device("cpu"))
    # What was freed while the bank was made would serve the batch unseen.
    ctypes.CDLL(None).malloc_trim(0)
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


def rates_of(
    works: dict[str, tuple[Callable[[], object], int]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Images per second of every method, one number a round."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for work, _ in works.values():
        work()  # the first call pays for allocations
    for _ in progress_bar(range(rounds), "rounds"):
        for name, (work, images) in works.items():
            rates[name].append(images / seconds_of(work, device))
    return rates


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Print the tables; returns the images per second of every row, one a round, by device."""
    torch.set_flush_denormal(True)
    cpu = torch.device("cpu")
    image = np.random.default_rng(0).integers(0, 256, (PAPER.rows, PAPER.columns)).astype(np.uint8)
    ours = VoiceTranslator(PAPER)(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(ours - numpy_soundscape(image, PAPER)).max() < 1e-5
    assert np.abs(ours - np.array(python_soundscape(image.tolist(), PAPER))).max() < 1e-5
    slow = {
        "three loops in Python": (lambda: python_soundscape(image.tolist(), PAPER), 1),
        "NumPy, one image": (lambda: numpy_soundscape(image, PAPER), 1),
    }
    every = torch.get_num_threads()
    places = {f"CPU, {threads} thread(s)": (cpu, threads) for threads in sorted({1, every})}
    if torch.cuda.is_available():
        places[torch.cuda.get_device_name()] = (torch.device("cuda"), every)
    print(f"{device_name(cpu)}, torch {torch.__version__}. Paper: 28 x 28, 22,050 Hz, 1.05 s.")
    found = {}
    for place, (device, threads) in places.items():
        torch.set_num_threads(threads)
        square = torch.rand(PRODUCT, PRODUCT, device=device)
        works = dict(slow) if device == cpu else {}
        for name, (e, batch, pcm) in CASES.items():
            works[name] = (translating(e, batch, device, pcm), batch)
        works["product"] = (partial(torch.mm, square, square), 1)
        found[place] = rates = rates_of(works, device, config.rounds)
        middle = {name: statistics.median(rate) for name, rate in rates.items()}
        flops = 2 * PRODUCT**3 * middle.pop("product")
        found.setdefault("NumPy", rates)
        numpy = statistics.median(found["NumPy"]["NumPy, one image"])
        print(f"\n{place}; a matrix product of {PRODUCT} x {PRODUCT}: {flops / 1e9:.0f} GFLOP/s")
        print("| method | images/s (spread) | times NumPy | share of the product's rate |")
        print("|---|---|---|---|")
        for name, rate in middle.items():
            spread = f"{min(rates[name]):,.3g} to {max(rates[name]):,.3g}"
            times = "" if "hificode" in name else f"{rate / numpy:,.3g}"
            share = f"{rate * operations(CASES[name][0]) / flops:.1%}" if name in CASES else ""
            print(f"| {name} | {rate:,.3g} ({spread}) | {times} | {share} |")
    torch.set_num_threads(every)
    del found["NumPy"]
    print()
    for name in ("paper, batch 256", "stereo hificode, batch 64"):
        e, batch, _ = CASES[name]
        output = batch * (2 if e.stereo else 1) * e.samples * 4 / 2**20
        bank = VoiceTranslator(e).bank.numel() * 4 / 2**20
        print(
            f"memory, {name}: {peak_mebibytes(e, batch):.0f} MiB at the peak, beside the "
            f"translator's bank of {bank:.0f}; the output is {output:.0f}"
        )
    return found


if __name__ == "__main__":
    command_line(Config, main, __doc__)
