"""The vOICe translator: a batch of images in, a batch of soundscapes out.

An image is scanned from left to right in `seconds`. Each column sounds for an equal share of that
time, each row of it as a sinusoid: the higher the row, the higher the pitch; the brighter the
pixel, the louder. Sources: P. B. L. Meijer, "An experimental system for auditory image
representations", IEEE Trans. Biomed. Eng. 39(2):112-121, 1992; his program hificode (1996; CC BY
4.0, seeingwithsound.com), which `Encoding.hificode()` reproduces to the last bit; and the form in
which Hu et al., "Listen to the Image", CVPR 2019, used them (rectangular time window, continuous
grey levels, mono), the default.

As a library:

    >>> import torch
    >>> from voice_translator import Encoding, VoiceTranslator, to_pcm16
    >>> images = torch.zeros(8, 28, 28, dtype=torch.uint8)
    >>> VoiceTranslator(Encoding())(images).shape  # samples in [-1, 1], differentiable in the image
    torch.Size([8, 16800])
    >>> soundscapes = VoiceTranslator(Encoding.hificode(stereo=True))(images)
    >>> to_pcm16(soundscapes).shape, to_pcm16(soundscapes).dtype
    (torch.Size([8, 2, 46304]), torch.int16)

As a command, for any picture, folder or glob:

    python voice_translator.py photo.jpg -o photo.wav --preset hificode --stereo
    # the picture beside its sound's spectrogram
    python voice_translator.py photo.jpg -o photo.wav --spectrogram photo.png
    python voice_translator.py photos/ 'more/*.png' -o sounds/                  # in batches
    # the image estimated from the sound
    python voice_translator.py --decode photo.wav -o decoded.png
    # and its correlation with the original
    python voice_translator.py photo.jpg --decode photo.wav -o decoded.png
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, lsqr
from torch import Tensor, nn

# How many numbers are made in one go: on the CPU more fall out of the cache, on the GPU fewer cost
# launches of kernels. IMAGES_TOGETHER are taken some columns at a time, so that one reading of the
# bank of sinusoids serves all of them.
CPU_TOGETHER, GPU_TOGETHER = 1 << 19, 1 << 27
IMAGES_TOGETHER = 64
# times smaller, on a GPU by PyTorch's own kernel: it keeps its weights in shared memory, and fails
# at 47 in
STEEPEST = 40
# float64, at 95 in float32
HEAD_METRES = 0.20  # between the ears
SOUND_METRES_A_SECOND = 340.0
Curve = Literal["exponential", "linear", "tanh", "mel", "bark"]

STEEPEST_FILTER = 1000  # the sample rate in highest pitches; then the filter has some 1,500 taps
LARGEST = 2**26  # rows times samples: 268 MB in float32. hificode's are 3 million


@dataclass(frozen=True)
class Encoding:
    """Every choice of an image-to-sound scheme. The defaults are the scheme of the paper's
    late-blind model.

    Raises ValueError, in one sentence, for a scheme that cannot be heard (such as a pitch above the
    Nyquist frequency)."""

    rows: int = 28  # sinusoids; an image of another height is resized. Published: 28, MNIST's own
    # time steps; an image of another width is resized. Published: 28, MNIST's own
    columns: int = 28
    lowest_hz: float = 80.0  # pitch of the lowest row. Published: 80
    highest_hz: float = 7600.0  # pitch of the highest row. Published: 7600
    # row -> pitch. Published: exponential, linear and tanh are compared
    curve: Curve = "exponential"
    # of the tanh curve, over all rows. Published: 0.06 a row, 3.84 at 64 rows.
    tanh_slope: float = 3.84
    # At 28 rows that would leave only 1261..6294 Hz; for that literal slope, set 0.06 * rows
    # where the high pitch sits. Published: all are compared
    pitch_position: Literal["top", "middle", "bottom"] = "top"
    seconds: float = 1.05  # one scan. Published: 1.05, and 2.0 as the longer variant
    # Hz. Published: 22050. VGGish hears at 16000, where 7600 Hz still fits.
    sample_rate: int = 16000
    # So a soundscape made at 16000 needs no resampler; it has 600 samples in each of 28 columns,
    # and no tail
    contrast: float = 2.0  # px + contrast * (px - mean(px)). Published: 2
    negative: bool = False  # dark is loud. Published: no
    # equal steps, from silence to an amplitude of 1. None: continuous, as published.
    grey_levels: int | None = None
    # Over 30 dB; hificode: 16, so 2 dB each
    # of a column in time. Published: rectangular.
    window: Literal["rectangular", "spline"] = "rectangular"
    # spline: a quadratic B-spline, which fades one column into the next (hificode)
    # noise at the start of the scan, for 1/5 of a column, in the left ear (hificode). Published:
    # none
    click: bool = False
    # a second-order low-pass over the output (hificode's filter). Published: none
    smoothing: bool = False
    # the scan passes from left to right, by delay, diffraction and fade (hificode). Published: mono
    stereo: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "sample_rate", "grey_levels"):
            value, least = getattr(self, name), 2 if name == "grey_levels" else 1
            if name == "grey_levels" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"encoding: {name} is {value!r}, but must be a whole number of at least {least}."
                )
        for name in ("lowest_hz", "highest_hz", "tanh_slope", "seconds", "contrast"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"encoding: {name} is {value!r}, but must be a finite number.")
        for name, choices in (
            ("curve", ("exponential", "linear", "tanh", "mel", "bark")),
            ("pitch_position", ("top", "middle", "bottom")),
            ("window", ("rectangular", "spline")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"encoding: {name} is {getattr(self, name)!r}, but must be one of {', '.join(choices)}."
                )
        for name in ("negative", "click", "smoothing", "stereo"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"encoding: {name} is {getattr(self, name)!r}, but must be True or False."
                )
        if not 0 < self.lowest_hz <= self.highest_hz:
            raise ValueError(
                f"encoding: pitches from {self.lowest_hz} to {self.highest_hz} Hz do not rise; "
                "set 0 < lowest_hz <= highest_hz."
            )
        if self.highest_hz > self.sample_rate / 2:
            raise ValueError(
                f"encoding: highest_hz {self.highest_hz} lies above {self.sample_rate / 2} Hz, the Nyquist frequency; "
                "lower it or raise sample_rate."
            )
        if self.tanh_slope <= 0 or self.seconds <= 0 or not 0 <= self.contrast <= 1e6:
            raise ValueError(
                "encoding: tanh_slope and seconds must be above 0, and contrast from 0 to a million."
            )
        if not math.isfinite(self.seconds * self.sample_rate) or self.samples < self.columns:
            raise ValueError(
                f"encoding: {self.seconds} s at {self.sample_rate} Hz do not give each of {self.columns} columns a sample; "
                "change seconds, or raise sample_rate."
            )
        if self.smoothing and self.sample_rate > STEEPEST_FILTER * self.highest_hz:
            raise ValueError(
                f"encoding: the output filter for {self.highest_hz} Hz would reach over thousands of samples at "
                f"{self.sample_rate} Hz; raise highest_hz, lower sample_rate, or leave out smoothing."
            )
        if self.rows * self.samples > LARGEST:
            raise ValueError(
                f"encoding: {self.rows} rows of {self.samples} samples take too much memory; lower rows, seconds or "
                "sample_rate."
            )

    @classmethod
    def congenitally_blind(cls) -> "Encoding":
        """The scheme of the paper's congenitally-blind model: 64 x 64, all else as for the
        late-blind."""
        return cls(rows=64, columns=64)

    @classmethod
    def hificode(cls, stereo: bool = False) -> "Encoding":
        """The vOICe itself, as Meijer's program of 1996 has it. Of uint8 images, grey level = value
        // 16."""
        return cls(
            rows=64, columns=64, lowest_hz=500.0, highest_hz=5000.0, sample_rate=44100, contrast=0.0, grey_levels=16,
            window="spline", click=True, smoothing=True, stereo=stereo,
        )  # fmt: skip

    @property
    def samples(self) -> int:
        """Length of a soundscape, always even: 2 * floor(rate * seconds / 2)."""
        # The product is rounded first: 16000 * 1.05 is 16800.000000000004 in floating point, and
        # others fall just below.
        return 2 * math.floor(round(self.sample_rate * self.seconds, 6) / 2)

    @property
    def samples_per_column(self) -> int:
        """Samples of one column; the `samples` that are left over at the end prolong the last
        one."""
        return self.samples // self.columns

    def frequencies(self) -> Tensor:
        """Pitch of each row in Hz, `(rows,)` float64, bottom row first.

        mel: D. O'Shaughnessy's 1127 ln(1 + f / 700); bark: H. Traunmüller's 26.81 f / (1960 + f) -
        0.53 (J. Acoust. Soc. Am. 88:97-100, 1990); in both the rows are equally far apart."""
        rank = torch.arange(self.rows, dtype=torch.float64)
        position = rank / max(self.rows - 1, 1)
        low, high = self.lowest_hz, self.highest_hz
        if self.curve == "exponential":
            hz = low * (high / low) ** position
        elif self.curve == "linear":
            hz = low + (high - low) * position
        elif self.curve == "mel":
            hz = (700 + low) * ((700 + high) / (700 + low)) ** position - 700
        elif self.curve == "bark":
            low, high = low / (1960 + low), high / (1960 + high)
            share = low + (high - low) * position
            hz = 1960 * share / (1 - share)
        else:
            hz = low + (high - low) / 2 * (
                1 + torch.tanh(self.tanh_slope * (rank / self.rows - 0.5))
            )
        return hz[self._ranks()]

    def phases(self) -> Tensor:
        """Phase of each row in radians, `(rows,)` float64, bottom row first: one fixed set per
        encoding.

        From 0, as in Meijer's program. The published congenitally-blind encoder drew new phases at
        every call, so that one image had many sounds."""
        return 2 * math.pi * _uniform(self.rows)[self._ranks()]

    def click_samples(self) -> Tensor:
        """The noise at the start in [-1, 1), `(samples of 1/5 column,)` float64; none without
        `click`."""
        count = self.samples // (5 * self.columns) if self.click else 0
        return 2 * _uniform(self.rows + count)[self.rows :] - 1

    def _ranks(self) -> Tensor:
        """The frequency rank that each row plays, `(rows,)`, bottom row first. Phases move with
        their frequencies."""
        ranks = torch.arange(self.rows)
        if self.pitch_position == "bottom":
            return ranks.flip(0)
        if (
            self.pitch_position == "middle"
        ):  # 0, 2, 4, ... from the bottom up to the middle, and ..., 5, 3, 1 above it
            return torch.cat([ranks[0::2], ranks[1::2].flip(0)])
        return ranks


def _uniform(count: int) -> Tensor:
    """The first numbers in [0, 1) of the linear congruential stream of Meijer's program, 9301 r +
    49297 mod 233280."""
    r, drawn = 0, []
    for _ in range(count):
        r = (9301 * r + 49297) % 233280
        drawn.append(r / 233280)
    return torch.tensor(drawn, dtype=torch.float64)


class VoiceTranslator(nn.Module):
    """Images -> soundscapes, for a batch at once, differentiable in the image, the same on the CPU
    and the GPU.

    Between two clips, of the grey levels and of the samples, the sound is a fixed linear map of the
    amplitudes. So each column is one product of `(B, rows)` amplitudes with a `(rows, samples)`
    bank of sinusoids that is computed once. It computes in float32; in float64 after `.double()`,
    and never in less, whatever the model around it is cast to. (A GPU does so as long as its matrix
    products in TensorFloat-32 are off, as PyTorch has them and our scripts make sure.)

    Args:
        encoding: the scheme; kept as the attribute `encoding`.
    """

    def __init__(self, encoding: Encoding = Encoding()) -> None:
        super().__init__()
        self.encoding = encoding
        self.channels = 2 if encoding.stereo else 1
        self._make_bank(torch.float32, torch.device("cpu"))

    def _make_bank(self, dtype: torch.dtype, device: torch.device) -> None:
        """Everything that is computed once. In float64 until the end: the phase of the last sample
        is some 50,000 radians, of which float32 loses 0.004."""
        encoding = self.encoding
        columns, per_column = encoding.columns, encoding.samples_per_column
        waves = _ears(encoding).flip(
            1
        )  # channels x rows, the top row first, as in an image x samples
        waves *= 0.5 / math.sqrt(encoding.rows)
        used = columns * per_column
        bank = waves[..., :used].unflatten(2, (columns, per_column)).permute(2, 1, 0, 3).flatten(2)
        q = torch.arange(per_column, dtype=torch.float64) / max(
            per_column - 1, 1
        )  # time within a column
        buffers = {
            "bank": bank,  # columns x rows x (channels * samples_per_column)
            "tail": waves[..., used:]
            .transpose(0, 1)
            .flatten(1),  # rows x (channels * (samples - used))
            "powers": torch.stack([q, q * q]),  # 2 x samples_per_column
            "click": encoding.click_samples(),
            "smoother": _smoother(encoding, torch.finfo(dtype).eps)
            if encoding.smoothing
            else torch.empty(0),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.to(device, dtype).contiguous(), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """`.to()` and its kin. The bank is computed anew in another precision: a cast would keep
        the errors of the old."""
        before = self.bank.dtype
        super()._apply(fn, recurse)
        after = self.bank.dtype
        if after != before:
            self._make_bank(
                torch.float64 if after == torch.float64 else torch.float32, self.bank.device
            )
        return self

    def forward(self, images: Tensor, leak: float = 0.0) -> Tensor:
        """Translate images to soundscapes.

        Args:
            images: `(B, H, W)` or `(B, 1, H, W)`, uint8 in 0..255 or floating point in [0, 1];
                black is silent, also what only rounds to it. Another size than the encoding's is
                resized: bilinear with antialiasing when an edge shrinks, else to the nearest pixel
                (as the paper enlarges MNIST).
            leak: share of the gradient that passes where the true one is none: a grey level that
                the contrast drives beyond black or white, and the rounding to `grey_levels`. It
                changes no sound. 0 is the true gradient.

        Returns:
            `(B, samples)`, or `(B, 2, samples)` in stereo, left first; float32 in [-1, 1], at
            `encoding.sample_rate`.

        Raises:
            ValueError: if the shape or the type is another.
        """
        amplitudes = self.amplitudes(images, leak)
        numbers = (
            self.channels * self.encoding.samples
        )  # of a soundscape; with the spline's three powers, three times that
        parts = amplitudes.split(max(IMAGES_TOGETHER, self._together(amplitudes, 3 * numbers)))
        if torch.is_grad_enabled() and amplitudes.requires_grad:
            sounds = torch.cat([_clip(self.sound(part)) for part in parts])
        else:
            sounds = amplitudes.new_empty(len(amplitudes), self.channels, self.encoding.samples)
            few = self._together(amplitudes, numbers)
            for part, place in zip(parts, sounds.split(len(parts[0])), strict=True):
                self._unsmoothed(part, place)
                for sound in place.split(few):
                    sound.copy_(_clip(self._smoothed(sound)))
        return sounds if self.encoding.stereo else sounds[:, 0]

    def sound(self, amplitudes: Tensor) -> Tensor:
        """`(B, rows, columns)` amplitudes, top row first -> the soundscapes before they are
        clipped, `(B, 1 or 2, samples)`; linear in the amplitudes, but for the click."""
        sound = amplitudes.new_empty(len(amplitudes), self.channels, self.encoding.samples)
        return self._smoothed(self._unsmoothed(amplitudes, sound))

    def _unsmoothed(self, amplitudes: Tensor, sound: Tensor) -> Tensor:
        """The soundscapes before the output filter, written into `sound`."""
        encoding = self.encoding
        used = encoding.columns * encoding.samples_per_column
        with torch.autocast(
            amplitudes.device.type, enabled=False
        ):  # bfloat16 would leave 8 bits of the sound
            levels = amplitudes.permute(2, 0, 1).contiguous()  # columns x B x rows
            # Of the spline, 0.5 (1 - q)^2 of the column before + (0.5 + q - q^2) of this + 0.5 q^2
            # of the one behind, the three powers of q are taken out, so that all of them meet the
            # same bank.
            polynomial = levels
            if encoding.window == "spline":
                before, behind = (
                    torch.cat([levels[:1], levels[:-1]]),
                    torch.cat([levels[1:], levels[-1:]]),
                )
                polynomial = torch.cat(
                    [(before + levels) / 2, levels - before, (before + behind) / 2 - levels], 1
                )
            places = sound[..., :used].unflatten(2, (encoding.columns, -1)).permute(2, 0, 1, 3)
            some = self._together(polynomial, polynomial.shape[1] * self.bank.shape[2])
            if (
                polynomial.requires_grad
            ):  # on the way back, each write into a part would copy the whole
                some = encoding.columns
            for k in range(0, encoding.columns, some):
                products = torch.bmm(polynomial[k : k + some], self.bank[k : k + some])
                places[k : k + some].copy_(self._windowed(products, encoding.samples_per_column))
            if self.tail.shape[
                1
            ]:  # the last column goes on; its window begins again, as in hificode
                sound[..., used:].copy_(
                    self._windowed((polynomial[-1] @ self.tail)[None], encoding.samples - used)[0]
                )
            if encoding.click:
                sound[:, 0, : len(self.click)] = self.click
        return sound

    def _smoothed(self, sound: Tensor) -> Tensor:
        """Behind the output filter, where the encoding has it."""
        if not self.encoding.smoothing:
            return sound
        # A matrix product of overlapping blocks; a convolution of a single channel is several times
        # as slow.
        reach, block = self.smoother.shape
        with torch.autocast(sound.device.type, enabled=False):
            padded = F.pad(sound.flatten(0, 1), (reach - block, -self.encoding.samples % block))
            smooth = padded.unfold(1, reach, block) @ self.smoother
            return smooth.flatten(1)[:, : self.encoding.samples].view_as(sound)

    @staticmethod
    def _together(like: Tensor, numbers: int) -> int:
        """How many things of so many numbers each are made in one go."""
        return max(
            1, (GPU_TOGETHER if like.is_cuda else CPU_TOGETHER) // max(1, numbers)
        )  # of an empty batch, none

    def _windowed(self, products: Tensor, length: int) -> Tensor:
        """Each column's products with the bank, `(columns, powers * B, channels * length)` -> its
        sound, `(columns, B, channels, length)`."""
        products = products.unflatten(2, (self.channels, length))
        if self.encoding.window == "rectangular":
            return products
        constant, linear, quadratic = products.chunk(3, 1)
        powers = self.powers[:, :length]
        if len(powers[0]) < length:  # a tail longer than a column
            powers = powers.repeat(1, math.ceil(length / len(powers[0])))[:, :length]
        if not products.requires_grad:  # in place, which spares the memory of two more
            return constant.addcmul_(linear, powers[0]).addcmul_(quadratic, powers[1])
        return constant.addcmul(linear, powers[0]).addcmul(quadratic, powers[1])

    def amplitudes(self, images: Tensor, leak: float = 0.0) -> Tensor:
        """The amplitude of every row and column, `(B, rows, columns)`, top row first: 0 for black,
        else 10 ^ ((px / 16 - 15) / 10) of the grey level `px` in 0..255 after contrast. Black is
        what is below half a grey level before it, or not above 0 after it. With n `grey_levels`, 10
        ^ (1.5 (L / (n - 1) - 1)) of the level L = floor(n px / 256). Arguments as in `forward`."""
        pixels = self.resized(images)
        with torch.autocast(images.device.type, enabled=False):
            if self.encoding.negative:
                pixels = 255 - pixels
            # What rounds to black is black, or an imagined black would hiss: silence is a jump away
            # from the faintest grey. In gradient it is the grey that it was.
            pixels = pixels - pixels.detach() * (pixels.abs() < 0.5)
            mean = pixels.mean(dim=(1, 2), keepdim=True)
            pixels = torch.add(pixels, pixels - mean, alpha=self.encoding.contrast)
            clipped = pixels.clamp(0, 255)
            if not leak:
                return self._loudness(clipped)
            # In value the same; in gradient, that of the clipped level's loudness, leaking where
            # there would be none.
            beyond = pixels - clipped
            leaking = clipped + leak * (beyond - beyond.detach())
            return self._loudness(leaking, leak)

    def _loudness(self, pixels: Tensor, leak: float = 0.0) -> Tensor:
        levels = self.encoding.grey_levels
        if levels is None:
            audible, decades = pixels > 0, pixels / 160 - 1.5
        else:
            # The 1e-4 of a level: 16 / 255 * 255 may fall just below 16.
            level = torch.floor(pixels.detach() * (levels / 256) + 1e-4)
            audible = level > 0
            if leak:
                slope = leak * pixels * (levels / 256)
                level = level + (slope - slope.detach())
            decades = level * (1.5 / (levels - 1)) - 1.5
        loudness = torch.exp(math.log(10) * decades)  # twice as fast as a power of 10
        return (
            torch.where(audible, loudness, loudness - loudness.detach())
            if leak
            else loudness * audible
        )

    def resized(self, images: Tensor) -> Tensor:
        """`(B, rows, columns)` grey levels in 0..255."""
        if images.dim() == 4 and images.shape[1] == 1:
            images = images[:, 0]
        if images.dim() != 3 or 0 in images.shape[1:]:
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; the translator takes (B, H, W) or (B, 1, H, W)."
            )
        if images.dtype == torch.uint8:
            pixels = images.to(self.bank.dtype)
        elif images.is_floating_point():
            pixels = images.to(self.bank.dtype) * 255
        else:
            raise ValueError(
                f"images are {images.dtype}; the translator takes uint8, or floating point in [0, 1]."
            )
        size = (self.encoding.rows, self.encoding.columns)
        if pixels.shape[1:] == size:
            return pixels
        if pixels.shape[1] > size[0] or pixels.shape[2] > size[1]:
            return shrunk(pixels[:, None], size)[:, 0]
        return F.interpolate(pixels[:, None], size, mode="nearest-exact")[:, 0]


def shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, 1, H, W)` images in another, smaller `size`, bilinear and antialiased; on a GPU that
    shall be deterministic, or where its kernel would not hold the weights, as the same two matrix
    products."""
    steep = max(old / new for old, new in zip(images.shape[2:], size, strict=True)) > STEEPEST
    if images.is_cuda and (steep or torch.are_deterministic_algorithms_enabled()):
        return _shrunk_by_products(images, size)
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _shrunk_by_products(images: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (
        _shrinking(old, new, images.dtype, images.device)
        for old, new in zip(images.shape[2:], size, strict=True)
    )
    return rows @ images @ columns.T


@lru_cache(16)
def _shrinking(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What brings `old` rows to `new` ones, `(new, old)`; made on the CPU."""
    identity = torch.eye(old, dtype=dtype)[None, None]
    return F.interpolate(identity, (new, old), mode="bilinear", antialias=True)[0, 0].to(device)


def _ears(encoding: Encoding) -> Tensor:
    """The sinusoid of every row at every sample, as each ear has it: `(1 or 2, rows, samples)`
    float64, bottom row first."""
    hz, phases = encoding.frequencies()[:, None], encoding.phases()[:, None]
    seconds = torch.arange(encoding.samples, dtype=torch.float64) / encoding.sample_rate
    left = torch.sin(2 * math.pi * hz * seconds + phases)
    if not encoding.stereo:
        return left[None]
    scanned = torch.arange(encoding.samples, dtype=torch.float64) / max(
        encoding.samples - 1, 1
    )  # 0 at the left, 1 right
    azimuth = (scanned - 0.5) * 2 * math.pi / 3  # radians: 60 degrees to either side
    detour = (
        0.5 * HEAD_METRES * (azimuth + azimuth.sin())
    )  # metres further to the right ear; negative: nearer
    arrival = seconds + detour / SOUND_METRES_A_SECOND
    right = torch.where(arrival < 0, 0, torch.sin(2 * math.pi * hz * arrival + phases))
    shade = (SOUND_METRES_A_SECOND / hz / detour.abs()).clamp(
        max=1
    )  # of the far ear, by diffraction around the head
    left *= torch.where(azimuth < 0, 1, shade) * (1 - 0.7 * scanned)
    right *= torch.where(azimuth < 0, shade, 1) * (0.3 + 0.7 * scanned)
    return torch.stack([left, right])


def _smoother(encoding: Encoding, precision: float) -> Tensor:
    """hificode's second-order filter, as the matrix from `before + block` samples to the last
    `block` of them, filtered, `(before + block, block)` float64: two equal one-pole smoothers;
    their response ends where it falls below `precision`."""
    pole = encoding.sample_rate / (
        encoding.sample_rate + 8 * math.pi * encoding.frequencies().max().item()
    )
    n = torch.arange(100_000, dtype=torch.float64)
    response = (1 - pole) ** 2 * (n + 1) * pole**n
    taps = int((response > precision / 8).nonzero().max()) + 1
    block = max(16, taps)
    delay = torch.arange(block) + taps - 1 - torch.arange(taps - 1 + block)[:, None]
    return torch.where((delay >= 0) & (delay < taps), response[delay.clamp(0, taps - 1)], 0)


def _clip(sound: Tensor) -> Tensor:
    """To [-1, 1]; in place, without gradients.

    Half a 16-bit step beyond -1 and further the quantiser gives -32768, just before it -32767. That
    the two differ must survive the clip, or loud soundscapes were not hificode's to the last bit:
    -1 is kept for the former. This is so in float64; in float32, which promises one step, it would
    cost half of the time."""
    if sound.dtype == torch.float64:
        beyond = sound.detach() <= -1 - 2**-16
        return torch.where(beyond, -1, sound.clamp(-1 + 2**-53, 1))
    return sound.clamp(-1, 1) if sound.requires_grad else sound.clamp_(-1, 1)


def to_pcm16(soundscapes: Tensor) -> Tensor:
    """hificode's 16-bit quantiser: soundscapes in [-1, 1], of any shape -> int16. It truncates
    32768 y + 0.5 towards zero; -1, which stands for all that was clipped there, is -32768.

    Raises:
        ValueError: if they are not finite floating-point numbers.
    """
    if not soundscapes.is_floating_point() or not soundscapes.isfinite().all():
        raise ValueError("to_pcm16 takes soundscapes of finite floating-point numbers in [-1, 1].")
    wide = torch.where(soundscapes <= -1, -2, soundscapes.double())
    return (32768 * wide + 0.5).clamp(-32768, 32767).trunc().to(torch.int16)


def estimate_image(soundscape: Tensor, encoding: Encoding) -> Tensor:
    """The way back: the image that sounds like this, by least squares. Meijer checked his device
    so, by an inverse mapping.

    Where the sound did not clip it is linear in the amplitudes, whatever the scheme, so LSQR (C.
    Paige and M. Saunders, ACM Trans. Math. Softw. 8(1):43-71, 1982) inverts the translator itself.
    Rows whose pitches lie closer than a column can resolve stay blurred.

    Args:
        soundscape: `(samples,)`, or `(2, samples)` in stereo, in [-1, 1].
        encoding: the scheme by which it was made.

    Returns:
        `(rows, columns)` float64 in [0, 1], as it sounded: after the contrast, which cannot be
        undone where it saturates;
        in grey levels where the encoding has them. A negative is turned back.

    Raises:
        ValueError: if the sound does not have the encoding's length and channels.
    """
    shape = (2, encoding.samples) if encoding.stereo else (encoding.samples,)
    if (
        tuple(soundscape.shape) != shape
        or not soundscape.is_floating_point()
        or not soundscape.isfinite().all()
    ):
        raise ValueError(
            f"the sound has the shape {tuple(soundscape.shape)}, but the encoding makes finite samples of {shape}; "
            "give the encoding that it was made with."
        )
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # the way back is a gradient, wherever this is called
        return _inverted(soundscape.detach().double().cpu().clone(), encoding)


def _inverted(heard: Tensor, encoding: Encoding) -> Tensor:
    translator = VoiceTranslator(encoding).double()
    shape = tuple(heard.shape)
    known = heard.abs() < 1 - 2**-14  # what was clipped says only that it was loud
    grid = (1, encoding.rows, encoding.columns)
    silence = translator.sound(torch.zeros(grid, dtype=torch.float64)).view(
        shape
    )  # but for the click

    def sounded(amplitudes: np.ndarray) -> np.ndarray:
        sound = translator.sound(torch.from_numpy(amplitudes).view(grid)).view(shape)
        return ((sound - silence) * known).flatten().numpy()

    def transposed(samples: np.ndarray) -> np.ndarray:
        amplitudes = torch.zeros(grid, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            translator.sound(amplitudes).view(shape),
            amplitudes,
            torch.from_numpy(samples).view(shape) * known,
        )
        return gradient.flatten().numpy()

    size = (math.prod(shape), math.prod(grid))
    scheme = LinearOperator(size, matvec=sounded, rmatvec=transposed, dtype=np.float64)
    solution = lsqr(scheme, ((heard - silence) * known).flatten().numpy(), damp=1e-3, iter_lim=100)[
        0
    ]
    amplitudes = torch.from_numpy(solution).view(grid[1:]).clamp(min=1e-9)
    if encoding.grey_levels is None:
        pixels = (16 * (10 * amplitudes.log10() + 15) / 255).clamp(0, 1)
    else:
        top = encoding.grey_levels - 1
        pixels = ((amplitudes.log10() / 1.5 + 1) * top).round().clamp(0, top) / top
    return 1 - pixels if encoding.negative else pixels


if __name__ == "__main__":
    import runpy

    runpy.run_module(
        "tools.translate", run_name="__main__"
    )  # the command; this module is the library alone
