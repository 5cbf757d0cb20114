"""How fast the translator is, as ratios that are measured side by side in one run.

    # on the CPU with one thread and with all, and on the GPU if there is one; about two minutes
    python -m benchmarks.translator

The formulas written out for one image at a time, in NumPy, as the published encoders do it, are
compared with the translator and then timed beside it. The methods take turns, so that all of them
are disturbed by the same other work. The median counts, and the spread is shown. The last column is
the share of the rate of a bare matrix product, which holds on other machines too."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.benchmark import Timer

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


def translating(e: Encoding, batch: int, pcm: bool, device: torch.device) -> Callable[[], None]:
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


def seconds_of(work: Callable[[], object], at_least: float = 0.2) -> float:
    """Seconds of one call, from as many calls as fill `at_least` seconds. A GPU is waited for after
    the last one only, as at the end of an epoch."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).mean


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Print the tables; returns the images per second of every row, one a round, by device."""
    torch.set_flush_denormal(True)
    cpu, every = torch.device("cpu"), torch.get_num_threads()
    image = np.random.default_rng(0).integers(0, 256, (PAPER.rows, PAPER.columns)).astype(np.uint8)
    ours = VoiceTranslator(PAPER)(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(ours - numpy_soundscape(image, PAPER)).max() < 1e-5
    places = {f"CPU, {threads} thread(s)": (cpu, threads) for threads in sorted({1, every})}
    if torch.cuda.is_available():
        places[torch.cuda.get_device_name()] = (torch.device("cuda"), every)
    print(f"{device_name(cpu)}, torch {torch.__version__}. Paper: 28 x 28, 22,050 Hz, 1.05 s.")
    found = {}
    for place, (device, threads) in places.items():
        torch.set_num_threads(threads)
        square = torch.rand(PRODUCT, PRODUCT, device=device)
        works = {  # name -> the call that is timed, and its images
            "NumPy, one image": (partial(numpy_soundscape, image, PAPER), 1),
            "product": (partial(torch.mm, square, square), 1),
        }
        for name, (e, batch, pcm) in CASES.items():
            works[name] = (translating(e, batch, pcm, device), batch)
        found[place] = rates = {name: [] for name in works}
        for _ in progress_bar(range(config.rounds), "rounds"):
            for name, (work, images) in works.items():
                rates[name].append(images / seconds_of(work))
        middle = {name: statistics.median(rate) for name, rate in rates.items()}
        flops = 2 * PRODUCT**3 * middle.pop("product")
        print(f"\n{place}; a matrix product of {PRODUCT} x {PRODUCT}: {flops / 1e9:.0f} GFLOP/s")
        print("| method | images/s (spread) | times NumPy | share of the product's rate |")
        print("|---|---|---|---|")
        for name, rate in middle.items():
            spread = f"{min(rates[name]):,.3g} to {max(rates[name]):,.3g}"
            times = "" if "hificode" in name else f"{rate / middle['NumPy, one image']:,.3g}"
            share = f"{rate * operations(CASES[name][0]) / flops:.1%}" if name in CASES else ""
            print(f"| {name} | {rate:,.3g} ({spread}) | {times} | {share} |")
    torch.set_num_threads(every)
    return found


if __name__ == "__main__":
    command_line(Config, main, __doc__)
