"""The vOICe translator: a batch of images in, a batch of soundscapes out.

An image is scanned from left to right in `seconds`. Each column sounds for an equal share of that time, each row of it
as a sinusoid: the higher the row, the higher the pitch; the brighter the pixel, the louder. Source: P. B. L. Meijer, "An
experimental system for auditory image representations", IEEE Trans. Biomed. Eng. 39(2):112-121, 1992, in the form in
which Hu et al., "Listen to the Image", CVPR 2019, used it (rectangular time window, continuous grey levels, mono).

    from voice_translator import Encoding, VoiceTranslator
    soundscapes = VoiceTranslator(Encoding())(images)  # (B, 28, 28) uint8 -> (B, 16800) float32 in [-1, 1]
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Encoding:
    """Every choice of an image-to-sound scheme. The defaults are the scheme of the paper's late-blind model.

    Raises ValueError, in one sentence, for a scheme that cannot be heard (such as a pitch above the Nyquist frequency).
    """

    rows: int = 28  # sinusoids; an image of another height is resized. Published: 28, MNIST's own
    columns: int = 28  # time steps; an image of another width is resized. Published: 28, MNIST's own
    lowest_hz: float = 80.0  # pitch of the lowest row. Published: 80
    highest_hz: float = 7600.0  # pitch of the highest row. Published: 7600
    curve: Literal["exponential", "linear", "tanh"] = "exponential"  # row -> pitch. Published: all three are compared
    tanh_slope: float = 3.84  # of the tanh curve, over all rows. Published: 0.06 a row, which is 3.84 at 64 rows and
    # would leave only 1261..6294 Hz at 28; for that literal slope, set 0.06 * rows
    pitch_position: Literal["top", "middle", "bottom"] = "top"  # where the high pitch sits. Published: all are compared
    seconds: float = 1.05  # one scan. Published: 1.05, and 2.0 as the longer variant
    sample_rate: int = 16000  # Hz. Published: 22050; VGGish hears at 16000, and 7600 Hz is below its Nyquist frequency,
    # so a soundscape made at 16000 needs no resampler, has 600 samples in each of 28 columns, and no tail
    contrast: float = 2.0  # px + contrast * (px - mean(px)). Published: 2

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "sample_rate"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"encoding: {name} is {value!r}, but must be a whole number of at least 1.")
        for name in ("lowest_hz", "highest_hz", "tanh_slope", "seconds", "contrast"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"encoding: {name} is {value!r}, but must be a finite number.")
        for name, choices in (
            ("curve", ("exponential", "linear", "tanh")),
            ("pitch_position", ("top", "middle", "bottom")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"encoding: {name} is {getattr(self, name)!r}, but must be one of {', '.join(choices)}.")
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
        if self.tanh_slope <= 0 or self.seconds <= 0 or self.contrast < 0:
            raise ValueError("encoding: tanh_slope and seconds must be above 0, and contrast at least 0.")
        if not math.isfinite(self.seconds * self.sample_rate) or self.samples < self.columns:
            raise ValueError(
                f"encoding: {self.seconds} s at {self.sample_rate} Hz do not give each of {self.columns} columns a sample; "
                "change seconds, or raise sample_rate."
            )

    @classmethod
    def congenitally_blind(cls) -> "Encoding":
        """The scheme of the paper's congenitally-blind model: 64 x 64, all else as for the late-blind."""
        return cls(rows=64, columns=64)

    @property
    def samples(self) -> int:
        """Length of a soundscape, always even: 2 * floor(rate * seconds / 2)."""
        # The product is rounded first: 16000 * 1.05 is 16800.000000000004 in floating point, and others fall just below.
        return 2 * math.floor(round(self.sample_rate * self.seconds, 6) / 2)

    @property
    def samples_per_column(self) -> int:
        """Samples of one column; the `samples` that are left over at the end prolong the last one."""
        return self.samples // self.columns

    def frequencies(self) -> Tensor:
        """Pitch of each row in Hz, `(rows,)` float64, bottom row first."""
        rank = torch.arange(self.rows, dtype=torch.float64)
        position = rank / max(self.rows - 1, 1)
        span = self.highest_hz - self.lowest_hz
        if self.curve == "exponential":
            hz = self.lowest_hz * (self.highest_hz / self.lowest_hz) ** position
        elif self.curve == "linear":
            hz = self.lowest_hz + span * position
        else:
            hz = self.lowest_hz + span / 2 * (1 + torch.tanh(self.tanh_slope * (rank / self.rows - 0.5)))
        return hz[self._ranks()]

    def phases(self) -> Tensor:
        """Phase of each row in radians, `(rows,)` float64, bottom row first: one fixed set per encoding.

        A linear congruential stream (9301 r + 49297 mod 233280, from 0), as in Meijer's published program. The
        published congenitally-blind encoder drew new phases at every call, so that one image had many sounds.
        """
        r, phases = 0, []
        for _ in range(self.rows):
            r = (9301 * r + 49297) % 233280
            phases.append(2 * math.pi * r / 233280)
        return torch.tensor(phases, dtype=torch.float64)[self._ranks()]

    def _ranks(self) -> Tensor:
        """The frequency rank that each row plays, `(rows,)`, bottom row first. Phases move with their frequencies."""
        ranks = torch.arange(self.rows)
        if self.pitch_position == "bottom":
            return ranks.flip(0)
        if self.pitch_position == "middle":  # 0, 2, 4, ... from the bottom up to the middle, and ..., 5, 3, 1 above it
            return torch.cat([ranks[0::2], ranks[1::2].flip(0)])
        return ranks


class VoiceTranslator(nn.Module):
    """Images -> soundscapes, for a batch at once, differentiable in the image, the same on the CPU and the GPU.

    Between two clips, of the grey levels and of the samples, the sound is a fixed linear map of the amplitudes. So each
    column is one product of `(B, rows)` amplitudes with a `(rows, samples)` bank of sinusoids that is computed once.

    Args:
        encoding: the scheme; kept as the attribute `encoding`.
    """

    def __init__(self, encoding: Encoding = Encoding()) -> None:
        super().__init__()
        self.encoding = encoding
        per_column, used = encoding.samples_per_column, encoding.samples_per_column * encoding.columns
        seconds = torch.arange(encoding.samples, dtype=torch.float64) / encoding.sample_rate
        # float64 until here: the phase of the last sample is some 50,000 radians, of which float32 loses 0.004.
        waves = torch.sin(2 * math.pi * encoding.frequencies()[:, None] * seconds + encoding.phases()[:, None])
        waves = (0.5 / math.sqrt(encoding.rows) * waves).flip(0).float()  # top row first, as in an image
        bank = waves[:, :used].reshape(encoding.rows, encoding.columns, per_column).transpose(0, 1).contiguous()
        self.register_buffer("bank", bank, persistent=False)  # columns x rows x samples_per_column
        self.register_buffer("tail", waves[:, used:].contiguous(), persistent=False)  # rows x (samples - used)

    def forward(self, images: Tensor, leak: float = 0.0) -> Tensor:
        """Translate images to soundscapes.

        Args:
            images: `(B, H, W)` or `(B, 1, H, W)`, uint8 in 0..255 or floating point in [0, 1]; black is silent. Another
                size than the encoding's is resized: bilinear with antialiasing when an edge shrinks, else to the
                nearest pixel (as the paper enlarges MNIST).
            leak: share of the gradient that passes a grey level which the contrast drives beyond black or white. It changes
                no sound. 0 is the true gradient: none reaches such a pixel, be it right or wrong.

        Returns:
            `(B, samples)` float32 in [-1, 1], at `encoding.sample_rate`.

        Raises:
            ValueError: if the shape or the type is another.
        """
        amplitudes = self.amplitudes(images, leak).permute(2, 0, 1)  # columns x B x rows
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would leave 8 bits of the sound
            sound = torch.bmm(amplitudes, self.bank).transpose(0, 1).flatten(1)  # B x (columns * samples_per_column)
            if self.tail.shape[1]:
                sound = torch.cat([sound, amplitudes[-1] @ self.tail], dim=1)
        return sound.clamp(-1, 1)

    def amplitudes(self, images: Tensor, leak: float = 0.0) -> Tensor:
        """The amplitude of every row and column, `(B, rows, columns)` float32, top row first: 0 for black, else
        10 ^ ((px / 16 - 15) / 10) of the grey level `px` in 0..255 after contrast. Arguments as in `forward`."""
        pixels = self._resized(images)
        with torch.autocast(images.device.type, enabled=False):
            mean = pixels.mean(dim=(1, 2), keepdim=True)
            pixels = pixels + self.encoding.contrast * (pixels - mean)
            clipped = pixels.clamp(0, 255)
            if not leak:
                return torch.where(clipped > 0, _loudness(clipped), 0)
            # In value the same; in gradient, that of the clipped level's loudness, leaking where there would be none.
            beyond = pixels - clipped
            leaking = clipped + leak * (beyond - beyond.detach())
            loudness = _loudness(leaking)
            return torch.where(clipped > 0, loudness, loudness - loudness.detach())

    def _resized(self, images: Tensor) -> Tensor:
        """`(B, rows, columns)` float32 grey levels in 0..255."""
        if images.dim() == 4 and images.shape[1] == 1:
            images = images[:, 0]
        if images.dim() != 3 or 0 in images.shape[1:]:
            raise ValueError(f"images have the shape {tuple(images.shape)}; the translator takes (B, H, W) or (B, 1, H, W).")
        if images.dtype == torch.uint8:
            pixels = images.float()
        elif images.is_floating_point():
            pixels = images.float() * 255
        else:
            raise ValueError(f"images are {images.dtype}; the translator takes uint8, or floating point in [0, 1].")
        size = (self.encoding.rows, self.encoding.columns)
        if pixels.shape[1:] == size:
            return pixels
        shrinks = pixels.shape[1] > size[0] or pixels.shape[2] > size[1]
        mode = {"mode": "bilinear", "antialias": True} if shrinks else {"mode": "nearest-exact"}
        return F.interpolate(pixels[:, None], size, **mode)[:, 0]


def _loudness(pixels: Tensor) -> Tensor:
    return 10 ** ((pixels / 16 - 15) / 10)
