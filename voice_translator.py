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

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How many numbers are computed at a time. On the CPU, more would leave the cache. On a GPU, fewer
# would cost launches of kernels.
CPU_CHUNK, GPU_CHUNK = 1 << 19, 1 << 27
# Images that are translated together, some columns at a time, so that the bank of sinusoids is read
# once for all of them.
IMAGE_CHUNK = 64
PCM_CHUNK = 1 << 17  # samples that are quantized at a time; one soundscape, which is in the cache
# Beyond this factor a GPU shrinks images by matrix products. PyTorch's own kernel keeps its weights
# in shared memory. It fails at 47 in float64, and at 95 in float32.
STEEPEST_RESIZE = 40
# The largest ratio of the sample rate to the highest frequency with `smoothing`. The filter has
# some 1,500 taps then.
STEEPEST_FILTER = 1000
LARGEST = 2**26  # rows times samples: 268 MB in float32; hificode's are 3 million
HEAD_METRES = 0.20  # between the ears
SOUND_METRES_A_SECOND = 340.0
SPEAKER_ORDER = 4  # of the Butterworth filter at each edge of `speaker_band_hz`: 24 dB an octave
NOISE_SAMPLES = 2**20  # of the recording from which `noise_snr_db` takes its noise
# A float image may lie beyond [0, 1] by less than half a grey level, as rounding leaves it.
RANGE_SLACK = 0.5 / 255


def _bark(position: Tensor, e: "Encoding") -> Tensor:
    low, high = (hz / (1960 + hz) for hz in (e.lowest_hz, e.highest_hz))
    share = low + (high - low) * position
    return 1960 * share / (1 - share)


def _tanh(position: Tensor, e: "Encoding") -> Tensor:
    slope = e.tanh_slope * (torch.arange(e.rows, dtype=torch.float64) / e.rows - 0.5)
    return e.lowest_hz + (e.highest_hz - e.lowest_hz) / 2 * (1 + torch.tanh(slope))


# Name -> the frequencies of the rows in Hz. A curve takes the rows' positions, float64 from 0
# (bottom) to 1 (top), and the encoding. mel: D. O'Shaughnessy's 1127 ln(1 + f / 700). bark: H.
# Traunmüller's 26.81 f / (1960 + f) - 0.53, J. Acoust. Soc. Am. 88:97-100, 1990. In both the rows
# are equally far apart.
CURVES: dict[str, Callable[[Tensor, "Encoding"], Tensor]] = {
    "exponential": lambda position, e: e.lowest_hz * (e.highest_hz / e.lowest_hz) ** position,
    "linear": lambda position, e: e.lowest_hz + (e.highest_hz - e.lowest_hz) * position,
    "tanh": _tanh,
    "mel": lambda position, e: (
        (700 + e.lowest_hz) * ((700 + e.highest_hz) / (700 + e.lowest_hz)) ** position - 700
    ),
    "bark": _bark,
}
if TYPE_CHECKING:
    Curve = str
else:
    Curve = Literal[tuple(CURVES)]
SCANS = ("left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top")
CHOICES = {
    "curve": CURVES,
    "scan": SCANS,
    "pitch_position": ("top", "middle", "bottom"),
    "window": ("rectangular", "spline"),
}


@dataclass(frozen=True)
class Encoding:
    """Every setting of an image-to-sound scheme. The defaults are the scheme of the paper's
    late-blind model.

    Raises ValueError, in one sentence, for a scheme that cannot be heard, as one with a frequency
    above the Nyquist frequency."""

    # Sinusoids. An image of another height is resized. Published: 28, the height of an MNIST image.
    rows: int = 28
    # Time steps. An image of another width is resized. Published: 28, the width of an MNIST image.
    columns: int = 28
    lowest_hz: float = 80.0  # Frequency of the lowest row, in Hz. Published: 80.
    highest_hz: float = 7600.0  # Frequency of the highest row, in Hz. Published: 7600.
    # The curve from rows to frequencies. Published: exponential, linear and tanh are compared.
    curve: Curve = "exponential"
    # Slope of the tanh curve over all rows. Published: 0.06 a row, which is 3.84 at 64 rows. At 28
    # rows that would leave only 1261 to 6294 Hz. For that literal slope, set 0.06 times rows.
    tanh_slope: float = 3.84
    # Direction of the scan. In the two vertical ones time is the height and pitch is the width:
    # `rows` divides the width, and the right is highest. Published: left_to_right.
    scan: Literal["left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top"] = (
        "left_to_right"
    )
    # Where the high frequencies are in the image. Published: all three are compared.
    pitch_position: Literal["top", "middle", "bottom"] = "top"
    seconds: float = 1.05  # Duration of a scan. Published: 1.05, and 2.0 as the longer variant.
    # Samples a second. Published: 22050. VGGish hears at 16000, where 7600 Hz still fits. A
    # soundscape of 16000 needs no resampler.
    sample_rate: int = 16000
    contrast: float = 2.0  # The grey levels become px + contrast * (px - mean(px)). Published: 2.
    negative: bool = False  # Dark pixels are loud. Published: no.
    # Equal steps of 30 dB together, from silence to an amplitude of 1. hificode: 16, of 2 dB each.
    # None: continuous, as published.
    grey_levels: int | None = None
    # Level 0 of the grey levels sounds, at -30 dB. Only a whole grey of 0 of 255 is silent, as in
    # the vOICe since 2013. Published: no.
    lowest_level_sounds: bool = False
    # Window of a column in time. spline: a quadratic B-spline, which fades one column into the
    # next, as in hificode. Published: rectangular.
    window: Literal["rectangular", "spline"] = "rectangular"
    # Noise at the start of the scan, for a fifth of a column, in the left ear, as in hificode.
    # Published: no.
    click: bool = False
    # A second-order low-pass over the output, as in hificode. Published: no.
    smoothing: bool = False
    # The sound moves with a horizontal scan, by delay, diffraction and fading, as in hificode.
    # Published: no.
    stereo: bool = False
    # Playback by a loudspeaker that passes only from the first to the second frequency, in Hz: a
    # Butterworth band-pass. None: all frequencies, as published.
    speaker_band_hz: tuple[float, float] | None = None
    # White noise around the listener: the power of the sound over that of the noise, in dB. Each
    # image has its own noise, always the same. None: no noise, as published.
    noise_snr_db: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value, default = field.name, getattr(self, field.name), field.default
            if isinstance(value, np.generic):  # NumPy's numbers are numbers too
                value = value.item()
                object.__setattr__(self, name, value)
            least = 2 if name == "grey_levels" else 1
            if name == "speaker_band_hz":
                if isinstance(value, list):  # from JSON
                    value = tuple(value)
                    object.__setattr__(self, name, value)
                valid = value is None or _is_band(value, self.sample_rate)
                wanted = (
                    "two numbers, from 20 up to less than half of sample_rate, the second at least "
                    "1.1 times the first"
                )
            elif name in CHOICES:
                choices = tuple(CHOICES[name])
                valid, wanted = value in choices, f"one of {', '.join(choices)}"
            elif isinstance(default, bool):
                valid, wanted = isinstance(value, bool), "True or False"
            elif name == "noise_snr_db":
                valid = value is None or type(value) in (int, float) and -100 <= value <= 100
                wanted = "a number from -100 to 100"
            elif isinstance(default, float):
                valid = type(value) in (int, float) and -1e300 < value < 1e300
                wanted = "a finite number"
            else:
                valid = type(value) is int and value >= least or value is default is None
                wanted = f"a whole number of at least {least}"
            _require(valid, f"{name} is {value!r}, but must be {wanted}")
        low, high, rate = self.lowest_hz, self.highest_hz, self.sample_rate
        _require(
            0 < low <= high,
            f"pitches from {low} to {high} Hz do not rise; set 0 < lowest_hz <= highest_hz",
        )
        _require(
            high <= rate / 2,
            f"highest_hz {high} lies above {rate / 2} Hz, the Nyquist frequency; lower it or raise "
            "sample_rate",
        )
        _require(
            self.tanh_slope > 0 and self.seconds > 0 and 0 <= self.contrast <= 1e6,
            "tanh_slope and seconds must be above 0, and contrast from 0 to a million",
        )
        _require(
            math.isfinite(self.seconds * rate) and self.samples >= self.columns,
            f"{self.seconds} s at {rate} Hz do not give each of {self.columns} columns a sample; "
            "change seconds, or raise sample_rate",
        )
        _require(
            not self.smoothing or rate <= STEEPEST_FILTER * high,
            f"the output filter for {high} Hz would reach over thousands of samples at {rate} Hz; "
            "raise highest_hz, lower sample_rate, or leave out smoothing",
        )
        _require(
            not (self.stereo and self.is_vertical),
            f"stereo moves with a horizontal scan, but scan is {self.scan}; change one of them",
        )
        _require(
            not self.lowest_level_sounds or self.grey_levels is not None,
            "lowest_level_sounds needs grey_levels; set both or neither",
        )
        _require(
            self.rows * self.samples <= LARGEST,
            f"{self.rows} rows of {self.samples} samples take too much memory; lower rows, seconds "
            "or sample_rate",
        )

    @classmethod
    def congenitally_blind(cls) -> "Encoding":
        """The scheme of the paper's congenitally-blind model: 64 x 64, all else as for the
        late-blind."""
        return cls(rows=64, columns=64)

    @classmethod
    def hificode(cls, stereo: bool = False) -> "Encoding":
        """The vOICe as Meijer's program of 1996 has it. Of uint8 images, level = value // 16."""
        return cls(
            rows=64, columns=64, lowest_hz=500.0, highest_hz=5000.0, sample_rate=44100,
            contrast=0.0, grey_levels=16,
            window="spline", click=True, smoothing=True, stereo=stereo,
        )  # fmt: skip

    @classmethod
    def hificode_2013(cls, stereo: bool = False) -> "Encoding":
        """The vOICe as Meijer's camera program of 2013 to 2016 has it: 176 columns, contrast 2, and
        only black is silent."""
        changes = {"columns": 176, "contrast": 2.0, "lowest_level_sounds": True}
        return dataclasses.replace(cls.hificode(stereo), **changes)

    @property
    def samples(self) -> int:
        """Length of a soundscape, always even: 2 * floor(rate * seconds / 2)."""
        # The product is rounded first: 16000 * 1.05 is 16800.000000000004 in floating point, and
        # others fall just below.
        return 2 * math.floor(round(self.sample_rate * self.seconds, 6) / 2)

    @property
    def is_vertical(self) -> bool:
        """Whether time is the height of the image, and pitch its width."""
        return self.scan in ("top_to_bottom", "bottom_to_top")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width to which an image is resized."""
        return (self.columns, self.rows) if self.is_vertical else (self.rows, self.columns)

    @property
    def samples_per_column(self) -> int:
        """Samples of one column; the `samples` that are left over at the end prolong the last
        one."""
        return self.samples // self.columns

    def frequencies(self) -> Tensor:
        """Frequency of each row in Hz, `(rows,)` float64, bottom row first."""
        position = torch.arange(self.rows, dtype=torch.float64) / max(self.rows - 1, 1)
        return CURVES[self.curve](position, self)[self._ranks()]

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


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"encoding: {message}.")


def _is_band(value: Any, sample_rate: Any) -> bool:
    """Whether `value` is a band that `speaker_band_hz` may have."""
    if not isinstance(value, tuple) or [type(hz) in (int, float) for hz in value] != [True, True]:
        return False
    low, high = value
    return low >= 20 and 1.1 * low <= high < sample_rate / 2


def _uniform(count: int) -> Tensor:
    """The first numbers in [0, 1) of the linear congruential stream of Meijer's program, 9301 r +
    49297 mod 233280."""
    r, drawn = 0, []
    for _ in range(count):
        r = (9301 * r + 49297) % 233280
        drawn.append(r / 233280)
    return torch.tensor(drawn, dtype=torch.float64)


def turn_to_scan(images: Tensor, encoding: Encoding) -> Tensor:
    """Turn `(..., H, W)` images so that time runs from left to right, and pitch from the bottom up:
    `(..., W, H)` for a vertical scan."""
    if encoding.is_vertical:
        images = images.transpose(-2, -1).flip(-2)
    return images.flip(-1) if encoding.scan in ("right_to_left", "bottom_to_top") else images


def turn_back(images: Tensor, encoding: Encoding) -> Tensor:
    """The inverse of `turn_to_scan`."""
    if encoding.scan in ("right_to_left", "bottom_to_top"):
        images = images.flip(-1)
    return images.flip(-2).transpose(-2, -1) if encoding.is_vertical else images


class ConstantModule(nn.Module):
    """A module whose buffers are constants, computed in float64 and kept in float32 or float64.

    A subclass defines `make_constants` and calls `self.reset_constants()` at the end of `__init__`.
    A change of precision computes them again: a cast would keep the errors of the old precision.
    """

    precision: Tensor  # empty; it follows the module's device and precision

    def make_constants(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Name -> constant, for a module of this precision."""
        raise NotImplementedError

    def reset_constants(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        """Compute the constants, whatever mode or default device the caller has set."""
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            for name, constant in self.make_constants(dtype).items():
                kept = constant.to(device, dtype).contiguous()
                self.register_buffer(name, kept, persistent=False)
        self.register_buffer(
            "precision", torch.empty(0, dtype=dtype, device=device), persistent=False
        )

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """Move the module, as `.to()` does. In half precision the constants stay float32."""
        before = self.precision.dtype
        super()._apply(fn, recurse)
        after = self.precision.dtype
        if after != before or getattr(fn, "__qualname__", "").startswith("Module.to_empty"):
            wide = torch.float64 if after == torch.float64 else torch.float32
            self.reset_constants(wide, self.precision.device)
        return self


class VoiceTranslator(ConstantModule):
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

    bank: Tensor
    tail: Tensor
    powers: Tensor
    click: Tensor
    smoother: Tensor
    speaker: Tensor
    noise: Tensor

    def __init__(self, encoding: Encoding = Encoding()) -> None:
        super().__init__()
        self.encoding = encoding
        self.channels = 2 if encoding.stereo else 1
        self.reset_constants()

    def make_constants(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The bank of sinusoids and the rest that is computed once. In float64 until the end: the
        phase of the last sample is some 50,000 radians, of which float32 loses 0.004."""
        encoding = self.encoding
        columns, per_column = encoding.columns, encoding.samples_per_column
        # channels x rows, the top row first, as in an image x samples
        waves = _ears(encoding).flip(1)
        waves *= 0.5 / math.sqrt(encoding.rows)
        used = columns * per_column
        bank = waves[..., :used].unflatten(2, (columns, per_column)).permute(2, 1, 0, 3).flatten(2)
        # time within a column
        q = torch.arange(per_column, dtype=torch.float64) / max(per_column - 1, 1)
        smoother = _smoother(encoding, torch.finfo(dtype).eps) if encoding.smoothing else None
        return {
            "bank": bank,  # columns x rows x (channels * samples_per_column)
            "tail": waves[..., used:].transpose(0, 1).flatten(1),  # rows x (channels * the rest)
            "powers": torch.stack([q, q * q]),  # 2 x samples_per_column
            "click": encoding.click_samples(),
            "smoother": torch.empty(0) if smoother is None else smoother,
            "speaker": _speaker(encoding),  # frequencies x (real, imaginary)
            "noise": _noise(encoding),
        }

    def forward(
        self, images: Tensor, straight_through: float = 0.0, validate: bool | None = None
    ) -> Tensor:
        """Translate images to soundscapes.

        Args:
            images: `(B, H, W)` or `(B, 1, H, W)`, uint8 in 0..255 or floating point in [0, 1], a
                tensor or a NumPy array. Black is silent, also what only rounds to it. Images of
                another size than the encoding's are resized: bilinear with antialiasing if an edge
                shrinks, else to the nearest pixel, as the paper enlarges MNIST.
            straight_through: the share of the gradient that passes where the true one is 0: at a
                grey level that the contrast drives beyond black or white, and at the rounding to
                `grey_levels`. It changes no sound. 0 is the true gradient.
            validate: refuse floating point beyond [0, 1]. None: on the CPU only, as a GPU would
                wait for it.

        Returns:
            `(B, samples)`, or `(B, 2, samples)` in stereo, left first; float32 in [-1, 1], at
            `encoding.sample_rate`.

        Raises:
            ValueError: if the shape, the type or the range is another.
        """
        amplitudes = self.amplitudes(images, straight_through, validate)
        numbers = self.channels * self.encoding.samples  # of a soundscape
        if _is_traced():
            sounds = _clip(self.sound(amplitudes))
        else:
            # The spline takes three times the numbers.
            parts = amplitudes.split(max(IMAGE_CHUNK, _chunk(amplitudes, 3 * numbers)))
            if amplitudes.requires_grad:
                sounds = torch.cat([_clip(self.sound(part)) for part in parts])
            else:
                sounds = amplitudes.new_empty(len(amplitudes), self.channels, self.encoding.samples)
                few = _chunk(amplitudes, numbers)
                for part, place in zip(parts, sounds.split(len(parts[0])), strict=True):
                    self._write_sound(part, place)
                    for sound in place.split(few):
                        sound.copy_(_clip(self._smoothed(sound)))
        if self.encoding.speaker_band_hz or self.encoding.noise_snr_db is not None:
            sounds = _clip(self._played(sounds, images))
        return sounds if self.encoding.stereo else sounds[:, 0]

    def _played(self, sounds: Tensor, images: Tensor) -> Tensor:
        """The soundscapes as they reach the ears: behind the loudspeaker, and with noise."""
        samples, snr = self.encoding.samples, self.encoding.noise_snr_db
        with torch.autocast(sounds.device.type, enabled=False):
            if self.encoding.speaker_band_hz:
                response = torch.view_as_complex(self.speaker)
                spectrum = torch.fft.rfft(sounds, 2 * (len(response) - 1)) * response
                sounds = torch.fft.irfft(spectrum)[..., :samples]
            if snr is not None:
                # Where in the recording an image's noise begins follows from its pixels. A GPU may
                # round a resized pixel otherwise than the CPU, and then it begins elsewhere.
                pixels = self.resized(images, False).detach().round().long().flatten(1)
                factors = torch.arange(pixels.shape[1], device=pixels.device) * 2654435761 + 1
                begin = (pixels * factors).sum(1).view(-1, 1, 1)
                within = torch.arange(self.channels * samples, device=pixels.device)
                places = (begin + within.view(self.channels, samples)) % NOISE_SAMPLES
                power = sounds.detach().square().mean((1, 2), keepdim=True)
                sounds = sounds + self.noise[places] * power.sqrt() * 10 ** (-snr / 20)
        return sounds

    def sound(self, amplitudes: Tensor) -> Tensor:
        """`(B, rows, columns)` amplitudes, top row first -> the soundscapes before they are
        clipped, `(B, 1 or 2, samples)`; linear in the amplitudes, except for the click."""
        encoding = self.encoding
        if not (amplitudes.requires_grad or _is_traced()):
            sound = amplitudes.new_empty(len(amplitudes), self.channels, encoding.samples)
            self._write_sound(amplitudes, sound)
            return self._smoothed(sound)
        with torch.autocast(amplitudes.device.type, enabled=False):
            powers = self._powers_of_time(amplitudes)
            products = torch.bmm(powers, self.bank)
            columns = self._windowed(products, encoding.samples_per_column)
            sound = columns.permute(1, 2, 0, 3).flatten(2)  # B x channels x samples
            if self.tail.shape[1]:
                sound = torch.cat([sound, self._tail(powers)], 2)
            if encoding.click:
                click = self.click.expand(sound.shape[0], 1, -1)
                left = torch.cat([click, sound[:, :1, click.shape[2] :]], 2)
                sound = torch.cat([left, sound[:, 1:]], 1)
        return self._smoothed(sound)

    def _write_sound(self, amplitudes: Tensor, sound: Tensor) -> None:
        """Write the soundscapes before the output filter into `sound`, some columns at a time.
        Without gradients: on the way back, each write into a part would copy the whole."""
        encoding = self.encoding
        used = encoding.columns * encoding.samples_per_column
        with torch.autocast(amplitudes.device.type, enabled=False):
            powers = self._powers_of_time(amplitudes)
            places = sound[..., :used].unflatten(2, (encoding.columns, -1)).permute(2, 0, 1, 3)
            some = _chunk(powers, powers.shape[1] * self.bank.shape[2])
            for k in range(0, encoding.columns, some):
                products = torch.bmm(powers[k : k + some], self.bank[k : k + some])
                self._windowed(products, encoding.samples_per_column, places[k : k + some])
            if self.tail.shape[1]:
                sound[..., used:] = self._tail(powers)
            if encoding.click:
                sound[:, 0, : len(self.click)] = self.click

    def _powers_of_time(self, amplitudes: Tensor) -> Tensor:
        """`(B, rows, columns)` amplitudes -> `(columns, powers * B, rows)`.

        The spline's weights of the column before, this one and the next one are 0.5 (1 - q)^2, 0.5
        + q - q^2 and 0.5 q^2. Sorted by the powers of the time q, all three meet the same bank."""
        levels = amplitudes.permute(2, 0, 1).contiguous()
        if self.encoding.window == "rectangular":
            return levels
        before = torch.cat([levels[:1], levels[:-1]])
        behind = torch.cat([levels[1:], levels[-1:]])
        return torch.cat(
            [(before + levels) / 2, levels - before, (before + behind) / 2 - levels], 1
        )

    def _tail(self, powers: Tensor) -> Tensor:
        """The samples after the last column, `(B, channels, rest)`. The last column goes on, and
        its window begins again, as in hificode."""
        rest = self.tail.shape[1] // self.channels
        return self._windowed((powers[-1] @ self.tail)[None], rest)[0]

    def _smoothed(self, sound: Tensor) -> Tensor:
        """The sound behind the output filter, if the encoding has one."""
        if not self.encoding.smoothing:
            return sound
        # A product of overlapping blocks with a matrix. A convolution of one channel is several
        # times as slow.
        reach, block = self.smoother.shape
        with torch.autocast(sound.device.type, enabled=False):
            padded = F.pad(sound.flatten(0, 1), (reach - block, -self.encoding.samples % block))
            smooth = padded.unfold(1, reach, block) @ self.smoother
            return smooth.flatten(1)[:, : self.encoding.samples].view_as(sound)

    def _windowed(self, products: Tensor, length: int, out: Tensor | None = None) -> Tensor:
        """Each column's products with the bank, `(columns, powers * B, channels * length)` -> its
        sound, `(columns, B, channels, length)`, also written into `out`."""
        products = products.unflatten(2, (self.channels, length))
        if self.encoding.window == "rectangular":
            return products if out is None else out.copy_(products)
        constant, linear, quadratic = products.unflatten(1, (3, -1)).unbind(1)
        powers = self.powers[:, :length]
        if powers.shape[1] < length:  # a tail longer than a column
            powers = powers.repeat(1, math.ceil(length / powers.shape[1]))[:, :length]
        if out is None:
            return constant.addcmul(linear, powers[0]).addcmul(quadratic, powers[1])
        constant.addcmul_(linear, powers[0])  # in place, which spares memory
        return torch.addcmul(constant, quadratic, powers[1], out=out)

    def amplitudes(
        self, images: Tensor, straight_through: float = 0.0, validate: bool | None = None
    ) -> Tensor:
        """The amplitude of every row and column, `(B, rows, columns)`, top row first. Arguments as
        in `forward`.

        It is 10 ^ ((px / 16 - 15) / 10) of the grey level `px` in 0..255 after contrast, and 0 for
        black. Black is what is below half a grey level before the contrast, or not above 0 after
        it. With n `grey_levels`, it is 10 ^ (1.5 (L / (n - 1) - 1)) of the level L = floor(n px /
        256), and 0 for level 0."""
        pixels = turn_to_scan(self.resized(images, validate), self.encoding)
        with torch.autocast(pixels.device.type, enabled=False):
            if self.encoding.negative:
                pixels = 255 - pixels
            # What rounds to black is black, or an imagined black would hiss: silence is a jump away
            # from the faintest grey. Its gradient is that of the grey.
            pixels = pixels - pixels.detach() * (pixels.abs() < 0.5)
            mean = pixels.mean(dim=(1, 2), keepdim=True)
            pixels = torch.add(pixels, pixels - mean, alpha=self.encoding.contrast)
            clipped = pixels.clamp(0, 255)
            if not straight_through:
                return self._loudness(clipped)
            # The value is the same. The gradient is that of the clipped level's loudness, and the
            # share of it where there would be none.
            beyond = pixels - clipped
            passing = clipped + straight_through * (beyond - beyond.detach())
            return self._loudness(passing, straight_through)

    def _loudness(self, pixels: Tensor, straight_through: float = 0.0) -> Tensor:
        levels = self.encoding.grey_levels
        if levels is None:
            audible, decades = pixels > 0, pixels / 160 - 1.5
        else:
            grey = pixels.detach()
            if self.encoding.lowest_level_sounds:
                # Cut to a whole grey first, as in the program of 2013. What floating point leaves
                # just below a whole grey is that grey.
                grey = torch.floor(grey + (1e-9 if grey.dtype == torch.float64 else 1e-4))
                audible = grey > 0
                level = torch.floor(grey * (levels / 256))
            else:
                # The 1e-4 of a level: 16 / 255 * 255 may fall just below 16.
                level = torch.floor(grey * (levels / 256) + 1e-4)
                audible = level > 0
            if straight_through:
                slope = straight_through * pixels * (levels / 256)
                level = level + (slope - slope.detach())
            decades = level * (1.5 / (levels - 1)) - 1.5
        loudness = torch.exp(math.log(10) * decades)  # twice as fast as a power of 10
        if straight_through:
            return torch.where(audible, loudness, loudness - loudness.detach())
        return loudness * audible

    def resized(self, images: Tensor, validate: bool | None = None) -> Tensor:
        """The images resized to `encoding.image_size`, `(B, rows, columns)` grey levels in 0..255,
        or `(B, columns, rows)` for a vertical scan. Arguments as in `forward`."""
        if isinstance(images, np.ndarray):
            images = torch.tensor(images, device=self.bank.device)
        if not isinstance(images, Tensor):
            raise ValueError(
                f"images are {type(images).__name__}; the translator takes a tensor or a NumPy "
                "array of (B, H, W) or (B, 1, H, W)."
            )
        if images.dim() == 4 and images.shape[1] == 1:
            images = images[:, 0]
        if images.dim() != 3 or 0 in images.shape[1:]:
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; the translator takes (B, H, W) or "
                "(B, 1, H, W)."
            )
        if images.dtype == torch.uint8:
            pixels = images.to(self.bank.dtype)
        elif images.is_floating_point():
            if validate is None:
                validate = images.device.type == "cpu"
            if validate and not _is_traced() and images.numel():
                low, high = (end.item() for end in images.detach().aminmax())
                if not (low > -RANGE_SLACK and high < 1 + RANGE_SLACK):  # NaN too
                    raise ValueError(
                        f"images range from {low:.4g} to {high:.4g}; the translator takes floating "
                        "point in [0, 1], from black to white."
                    )
            pixels = images.to(self.bank.dtype) * 255
        else:
            raise ValueError(
                f"images are {images.dtype}; the translator takes uint8, or floating point in "
                "[0, 1]."
            )
        size = self.encoding.image_size
        if pixels.shape[1:] == size:
            return pixels
        if pixels.shape[1] > size[0] or pixels.shape[2] > size[1]:
            return shrink(pixels[:, None], size)[:, 0]
        return F.interpolate(pixels[:, None], size, mode="nearest-exact")[:, 0]


def _chunk(like: Tensor, numbers: int) -> int:
    """How many things of so many numbers each are computed at a time."""
    return max(1, (GPU_CHUNK if like.is_cuda else CPU_CHUNK) // max(1, numbers))


def _is_traced() -> bool:
    """Whether torch.compile, torch.export, a transform of torch.func or forward-mode gradients run.
    Then no step may depend on a value, and none may write into a part of a tensor."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(B, 1, H, W)` images to a smaller `size`, bilinear and antialiased.

    A GPU does it by two equal matrix products, if it must be deterministic, or where its own
    kernel would not hold the weights."""
    steepest = max(old / new for old, new in zip(images.shape[2:], size, strict=True))
    if images.is_cuda and (
        steepest > STEEPEST_RESIZE or torch.are_deterministic_algorithms_enabled()
    ):
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
    """The matrix that shrinks `old` rows to `new` rows, `(new, old)`. It is computed on the CPU,
    and outside of the caller's inference mode, in which it could take part in no gradient."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        identity = torch.eye(old, dtype=dtype)[None, None]
        shrunk = F.interpolate(identity, (new, old), mode="bilinear", antialias=True)[0, 0]
        return shrunk.to(device)


def _ears(encoding: Encoding) -> Tensor:
    """The sinusoid of every row at every sample, as each ear hears it: `(1 or 2, rows, samples)`
    float64, bottom row first."""
    hz, phases = encoding.frequencies()[:, None], encoding.phases()[:, None]
    seconds = torch.arange(encoding.samples, dtype=torch.float64) / encoding.sample_rate
    ears = torch.empty(1 + encoding.stereo, encoding.rows, encoding.samples, dtype=torch.float64)
    # In place throughout, as most of the time goes into new memory.
    torch.mul(2 * math.pi * hz, seconds, out=ears[0]).add_(phases).sin_()
    if not encoding.stereo:
        return ears
    # The scan goes from 0 at the left to 1 at the right, 60 degrees to either side.
    scanned = torch.arange(encoding.samples, dtype=torch.float64) / max(encoding.samples - 1, 1)
    if encoding.scan == "right_to_left":
        scanned = 1 - scanned
    azimuth = (scanned - 0.5) * 2 * math.pi / 3  # radians
    # Metres further to the right ear; negative: nearer.
    detour = 0.5 * HEAD_METRES * (azimuth + azimuth.sin())
    arrival = seconds + detour / SOUND_METRES_A_SECOND
    torch.mul(2 * math.pi * hz, arrival, out=ears[1]).add_(phases).sin_()
    ears[1].masked_fill_(arrival < 0, 0)
    # Of the far ear, by diffraction around the head.
    shade = (SOUND_METRES_A_SECOND / hz / detour.abs()).clamp_(max=1)
    left, right = azimuth >= 0, azimuth < 0  # where this ear is the far one
    for ear, far, fade in ((0, left, 1 - 0.7 * scanned), (1, right, 0.3 + 0.7 * scanned)):
        ears[ear] *= torch.where(far, shade, 1) * fade
    return ears


def _speaker(encoding: Encoding) -> Tensor:
    """The loudspeaker's frequency response at equal steps up to half of the sample rate,
    `(frequencies, 2)` float64, real and imaginary part."""
    if not encoding.speaker_band_hz:
        return torch.empty(0)
    from scipy.signal import butter, freqz_zpk

    rate, band = encoding.sample_rate, encoding.speaker_band_hz
    # SciPy's types do not know that `output` decides on the result
    design: Any = butter(SPEAKER_ORDER, band, "bandpass", output="zpk", fs=rate)
    zeros, poles, gain = design
    # The transform is so long that the filter's response has decayed before it wraps around.
    decay = math.log(1e-9) / math.log(abs(poles).max())
    points = 2 ** math.ceil(math.log2(encoding.samples + decay))
    hz = np.arange(points // 2 + 1) * (rate / points)
    response = torch.as_tensor(freqz_zpk(zeros, poles, gain, hz, fs=rate)[1])
    return torch.view_as_real(response)


def _noise(encoding: Encoding) -> Tensor:
    """A recording of white noise of power 1, `(NOISE_SAMPLES,)` float64."""
    if encoding.noise_snr_db is None:
        return torch.empty(0)
    # The stream of RandomState is the same in every version of NumPy.
    return torch.from_numpy(np.random.RandomState(0).standard_normal(NOISE_SAMPLES))


def _pole(encoding: Encoding) -> float:
    """The pole of each of the output filter's two equal one-pole smoothers."""
    highest = encoding.frequencies().max().item()
    return encoding.sample_rate / (encoding.sample_rate + 8 * math.pi * highest)


def _smoother(encoding: Encoding, precision: float) -> Tensor:
    """hificode's second-order filter, as the matrix from `before + block` samples to the last
    `block` of them, filtered, `(before + block, block)` float64. Its response ends where it falls
    below `precision`."""
    pole = _pole(encoding)
    n = torch.arange(100_000, dtype=torch.float64)
    response = (1 - pole) ** 2 * (n + 1) * pole**n
    taps = int((response > precision / 8).nonzero().max()) + 1
    block = max(16, taps)
    delay = torch.arange(block) + taps - 1 - torch.arange(taps - 1 + block)[:, None]
    return torch.where((delay >= 0) & (delay < taps), response[delay.clamp(0, taps - 1)], 0)


def _clip(sound: Tensor) -> Tensor:
    """Clip to [-1, 1]; in place, without gradients.

    The quantizer gives -32768 from half a 16-bit step beyond -1, and -32767 just before it. So in
    float64, which is exact, -1 is kept for the former. In float32, which promises one step, that
    would cost half of the time."""
    if sound.dtype == torch.float64:
        beyond = sound.detach() <= -1 - 2**-16
        return torch.where(beyond, -1, sound.clamp(-1 + 2**-53, 1))
    return sound.clamp(-1, 1) if sound.requires_grad else sound.clamp_(-1, 1)


def to_pcm16(soundscapes: Tensor) -> Tensor:
    """Quantize to 16 bits as hificode does: soundscapes in [-1, 1], of any shape -> int16.

    It truncates 32768 y + 0.5 towards zero. -1, which stands for all that was clipped there, is
    -32768.

    Raises:
        ValueError: if they are not finite floating-point numbers.
    """
    message = "to_pcm16 takes soundscapes of finite floating-point numbers in [-1, 1]."
    if not soundscapes.is_floating_point():
        raise ValueError(message)
    pcm = torch.empty(soundscapes.shape, dtype=torch.int16, device=soundscapes.device)
    chunk = GPU_CHUNK if pcm.is_cuda else PCM_CHUNK
    parts = soundscapes.detach().reshape(-1).split(chunk)
    for part, place in zip(parts, pcm.view(-1).split(chunk), strict=True):
        if not part.numel():
            continue
        wide = part if part.dtype == torch.float64 else part.float()
        low, high = (end.item() for end in wide.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(message)
        # In float32, 0.5 would round 0.49999997 + 0.5 up to 1. The number below it rounds no sum of
        # float32 to another whole number than the exact sum.
        half = 0.5 if wide.dtype == torch.float64 else 0.5 - 2**-25
        scaled = torch.add(torch.mul(wide, 32768), half)
        if low <= -1:
            scaled.masked_fill_(wide <= -1, -32768)
        place.copy_(scaled.clamp_(-32768, 32767))  # towards zero
    return pcm


def estimate_image(soundscape: Tensor, encoding: Encoding) -> Tensor:
    """Estimate by least squares the image that sounds like this. Meijer checked his device by such
    an inverse mapping.

    Where the sound did not clip it is linear in the amplitudes in every scheme, so LSQR (C. Paige
    and M. Saunders, ACM Trans. Math. Softw. 8(1):43-71, 1982) inverts the translator itself. Rows
    whose frequencies are closer than a column can resolve stay blurred.

    Args:
        soundscape: `(samples,)`, or `(2, samples)` in stereo, in [-1, 1].
        encoding: the scheme by which it was made.

    Returns:
        `(rows, columns)` float64 in [0, 1], as it sounded: after the contrast (see
        `undo_contrast`), in grey levels where the encoding has them. A negative and the direction
        of the scan are turned back, so it is `(columns, rows)` for a vertical scan. The loudspeaker
        and the noise are not undone.

    Raises:
        ValueError: if the sound does not have the encoding's length and channels, or is clipped in
            more than half of its samples.
    """
    shape = (2, encoding.samples) if encoding.stereo else (encoding.samples,)
    if (
        tuple(soundscape.shape) != shape
        or not soundscape.is_floating_point()
        or not soundscape.isfinite().all()
    ):
        raise ValueError(
            f"the sound has the shape {tuple(soundscape.shape)}, but the encoding makes finite "
            f"samples of {shape}; give the encoding that it was made with."
        )
    # What was clipped says only that it was loud.
    known = soundscape.detach().cpu().abs() < 1 - 2**-14
    if known.double().mean() < 0.5:
        raise ValueError(
            "the sound is clipped in more than half of its samples, so no image can be found in it;"
            " give a sound in [-1, 1] that was not amplified."
        )
    # Transposing is a gradient, whatever the caller's mode is.
    with torch.inference_mode(False), torch.enable_grad():
        return _inverted(soundscape.detach().double().cpu().clone(), known.clone(), encoding)


def _inverted(sound: Tensor, known: Tensor, encoding: Encoding) -> Tensor:
    from scipy.sparse.linalg import LinearOperator, lsqr

    translator = VoiceTranslator(encoding).double()
    shape, grid = tuple(sound.shape), (1, encoding.rows, encoding.columns)
    black = torch.zeros(grid, dtype=torch.float64)
    silence = translator.sound(black).view(shape)  # only the click

    def forward(amplitudes: np.ndarray) -> np.ndarray:
        made = translator.sound(torch.from_numpy(amplitudes).view(grid)).view(shape)
        return ((made - silence) * known).flatten().numpy()

    def transposed(samples: np.ndarray) -> np.ndarray:
        amplitudes = torch.zeros(grid, dtype=torch.float64, requires_grad=True)
        made = translator.sound(amplitudes).view(shape)
        weights = torch.from_numpy(samples).view(shape) * known
        (gradient,) = torch.autograd.grad(made, amplitudes, weights)
        return gradient.flatten().numpy()

    size = (math.prod(shape), math.prod(grid))
    operator: Any = LinearOperator  # SciPy's types do not know its arguments
    scheme = operator(size, matvec=forward, rmatvec=transposed, dtype=np.float64)
    target = ((sound - silence) * known).flatten().numpy()
    solution = lsqr(scheme, target, damp=1e-3, iter_lim=100)[0]
    amplitudes = torch.from_numpy(solution).view(grid[1:]).clamp(min=1e-9)
    if encoding.grey_levels is None:
        pixels = (16 * (10 * amplitudes.log10() + 15) / 255).clamp(0, 1)
    else:
        top = encoding.grey_levels - 1
        pixels = ((amplitudes.log10() / 1.5 + 1) * top).round().clamp(0, top) / top
    return turn_back(1 - pixels if encoding.negative else pixels, encoding)


def undo_contrast(image: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """Undo the contrast of an image that `estimate_image` returned.

    The contrast is px + contrast * (px - mean). Where it left [0, 255] the original is lost: such
    a pixel stays black or white. The mean follows from all pixels.

    Returns:
        The image in [0, 1], and where the contrast saturated, bool, both in the shape of `image`.
    """
    contrast = encoding.contrast
    seen = 1 - image if encoding.negative else image
    step = 1 / 510 if encoding.grey_levels is None else 0.5 / (encoding.grey_levels - 1)
    white = seen > 1 - step
    lost = (white | (seen < step)) & (contrast > 0)
    # Of n pixels, those that are not lost are (seen + contrast * mean) / (1 + contrast).
    kept = (~lost).sum().item()
    total = torch.where(lost, white * (1 + contrast), seen).sum()
    mean = total / (image.numel() * (1 + contrast) - kept * contrast)
    undone = torch.where(lost, white.to(seen.dtype), (seen + contrast * mean) / (1 + contrast))
    undone = undone.clamp(0, 1)
    return (1 - undone if encoding.negative else undone), lost


def find_start(recording: Tensor, encoding: Encoding) -> int:
    """Find where a soundscape begins in a recording that is longer.

    Every row is a sinusoid of one frequency and phase. At the right start the sound of each column
    has these phases; elsewhere its phases are random. The first channel decides.

    Args:
        recording: `(n,)` or `(2, n)`, with n samples or more than the encoding has.
        encoding: the scheme by which it was made.

    Returns:
        The index of the soundscape's first sample.

    Raises:
        ValueError: if no place fits, or several do.
    """
    sound = recording.reshape(-1, recording.shape[-1])[0].detach().double().cpu().numpy()
    starts, length = len(sound) - encoding.samples + 1, encoding.samples_per_column
    column_starts = np.arange(encoding.columns) * length
    time = np.arange(len(sound)) / encoding.sample_rate
    fitting, heard = np.zeros(starts), np.full(starts, 1e-9)
    pole = _pole(encoding) if encoding.smoothing else 0.0
    for hz, phase in zip(encoding.frequencies().tolist(), encoding.phases().tolist(), strict=True):
        angle = 2 * math.pi * hz
        one_pole = (1 - pole) / (1 - pole * np.exp(-1j * angle / encoding.sample_rate))
        expected = 1j * np.exp(-1j * phase) * np.conj(one_pole) ** 2
        sums = np.concatenate([[0], np.cumsum(sound * np.exp(-1j * angle * time))])
        turned = np.exp(1j * angle * time[:starts]) * expected / abs(expected)
        for begin in column_starts:  # the correlation of the column at each start of the scan
            span = sums[begin + length : begin + length + starts] - sums[begin : begin + starts]
            fitting += (span * turned).real
            heard += np.abs(span)
    fit = fitting / heard
    best = int(fit.argmax())
    far = np.abs(np.arange(starts) - best) > encoding.sample_rate / 1000
    rival = fit[far].max(initial=0.0)
    least = max(0.35, 5 / math.sqrt(2 * encoding.rows * encoding.columns))  # of noise, it is less
    if fit[best] < least or rival > 0.9 * fit[best]:
        several = "in several places" if fit[best] >= least else "nowhere"
        raise ValueError(
            f"a soundscape of this encoding fits {several} in the recording; cut the recording to "
            f"its {encoding.samples} samples, or give another encoding."
        )
    return best


if __name__ == "__main__":
    import runpy
    import sys
    from pathlib import Path

    # `python -P` and `python -I` leave out the folder of the script.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    runpy.run_module("tools.translate", run_name="__main__")
