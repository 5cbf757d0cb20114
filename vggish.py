"""The front end of the audio network: from an image through its soundscape to a log-mel
spectrogram.

`LogMel` is the front end of Google's VGGish (AudioSet): 25 ms periodic Hann windows every 10 ms, no
padding, magnitude of a 512-point Fourier transform, 64 mel bands from 125 to 7500 Hz, ln(x + 0.01).
Source: `mel_features.py` and `vggish_params.py` of
github.com/tensorflow/models/tree/master/research/audioset/vggish. `ImageToLogMel` puts the
translator before it."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voice_translator import Encoding, VoiceTranslator

SAMPLE_RATE = 16000  # Hz
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FFT = 512  # points
BANDS = 64
LOWEST_HZ, HIGHEST_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01
POOLING = 16  # the network halves the frames four times, each time rounding down
CPU_CHUNK = 8  # sounds at a time; on the CPU, more would leave the cache
GPU_CHUNK = 2**26  # samples of windows at a time; they take some GB while they are transformed
# images at a time in an evaluation; with 256, the network's maps would leave the cache
EVAL_BATCH = 64
LARGEST_RESAMPLER = (
    2**22
)  # phases times step: some 100 MB while it is made. 22,050 Hz to 16,000 takes 141,120
# bands whose triangles are multiplied together: they reach over few bins, all 64 over all
BLOCK = 16


class LogMel(nn.Module):
    """Sounds -> log-mels, for a batch at once, differentiable.

    Args:
        sample_rate: of the sounds, in Hz; they are resampled when it is not 16000.
        hop: samples at 16 kHz from one frame to the next. Google's: 160.

    Raises:
        ValueError: if `hop` is not from 1 to the window's 400, beyond which samples between two
            frames were not heard.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE, hop: int = HOP) -> None:
        super().__init__()
        if not 1 <= hop <= WINDOW:
            raise ValueError(
                f"hop is {hop} samples, but must be from 1 to {WINDOW}, the window's length."
            )
        self.hop = hop
        self.resample = (
            Resample(sample_rate, SAMPLE_RATE) if sample_rate != SAMPLE_RATE else nn.Identity()
        )
        hann = 0.5 - 0.5 * torch.cos(
            2 * math.pi * torch.arange(WINDOW, dtype=torch.float64) / WINDOW
        )
        # The window is followed by zeros to the transform's length, which spares padding every
        # frame.
        self.register_buffer("hann", F.pad(hann, (0, FFT - WINDOW)).float(), persistent=False)
        self.register_buffer("mel", mel_filters().float(), persistent=False)
        self.blocks = []  # first band, first bin, last bin + 1
        for band in range(0, BANDS, BLOCK):
            bins = self.mel[:, band : band + BLOCK].any(1).nonzero()
            self.blocks.append((band, int(bins.min()), int(bins.max()) + 1))

    def forward(self, sounds: Tensor, silence: int = 0) -> Tensor:
        """`(B, samples)` in [-1, 1], followed by `silence` more samples -> `(B, frames, 64)`,
        natural log; frames = 1 + floor((n - 400) / hop), where n is the number of samples at 16
        kHz. float32, or float64 in a module that was moved to it.

        Raises:
            ValueError: if `sounds` is no batch, or shorter than one window.
        """
        if sounds.dim() != 2 or not sounds.is_floating_point():
            raise ValueError(
                f"sounds are {sounds.dtype} of the shape {tuple(sounds.shape)}; the front end takes floating point in "
                "[-1, 1], (B, samples)."
            )
        if not len(sounds):  # of which MKL makes no Fourier transform
            return self(F.pad(sounds, (0, 0, 0, 1)), silence)[:0]
        frames = max(1, (sounds.shape[1] + silence) // self.hop)
        together = CPU_CHUNK if sounds.device.type == "cpu" else max(1, GPU_CHUNK // (frames * FFT))
        with torch.autocast(sounds.device.type, enabled=False):
            return torch.cat(
                [
                    self._logmels(part.to(self.hann.dtype), silence)
                    for part in sounds.split(together)
                ]
            )

    def _logmels(self, sounds: Tensor, silence: int) -> Tensor:
        # Padded twice, and a few sounds at a time: the batch, copied whole, costs as much as its
        # Fourier transforms.
        sounds = self.resample(F.pad(sounds, (0, silence)))
        if sounds.shape[1] < WINDOW:
            raise ValueError(
                f"sounds of {sounds.shape[1]} samples at 16 kHz are shorter than one window of {WINDOW}."
            )
        sounds = F.pad(sounds, (0, FFT - WINDOW))
        frames = sounds.unfold(1, FFT, self.hop) * self.hann  # B x frames x 512
        magnitudes = Magnitude.apply(torch.fft.rfft(frames))  # B x frames x 257
        bands = [
            magnitudes[..., low:high] @ self.mel[low:high, k : k + BLOCK]
            for k, low, high in self.blocks
        ]
        return torch.cat(bands, -1).add_(LOG_OFFSET).log_()  # B x frames x 64


class Magnitude(torch.autograd.Function):
    """`z.abs()`, and its gradient with 0 where z is 0, in a third of the time: without its guard
    against overflow beyond 1e19, and the magnitude is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        squares = torch.view_as_real(z).square()
        magnitude = torch.add(squares[..., 0], squares[..., 1]).sqrt_()
        ctx.save_for_backward(z, magnitude)
        return magnitude

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        z, magnitude = ctx.saved_tensors
        return z * torch.where(magnitude > 0, gradient / magnitude, 0)


def mel_filters() -> Tensor:
    """VGGish's filter bank, `(257, 64)` float64: triangles of peak 1 whose flanks are linear in
    mel, the DC bin zero.

    librosa's triangles are linear in Hz, also with `htk=True, norm=None`, and differ by up to
    0.0044."""
    bins = _mel(torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64))[:, None]
    low, high = _mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[0] = 0
    return filters


def _mel(hz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hz / 700)


class Resample(nn.Module):
    """Polyphase resampling by a rational factor, the same as `scipy.signal.resample_poly` (its
    Kaiser 5.0 window).

    Every one of the `up` phases of the filter is one column of a matrix, by which overlapping
    blocks are multiplied; by default a GPU computes a convolution in TF32, with 10 bits, but not a
    matrix product."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        super().__init__()
        common = math.gcd(from_hz, to_hz)
        self.up, self.down = to_hz // common, from_hz // common
        if self.up * self.down > LARGEST_RESAMPLER:
            raise ValueError(
                f"sounds of {from_hz} Hz cannot be resampled to {to_hz} Hz within memory: the rates have only {common} in "
                "common; set sample_rate to 16000, 22050, 44100 or 48000."
            )
        from scipy.signal import (
            firwin,  # a tenth of the start of a stage, and 16,000 Hz needs no resampling
        )

        half = 10 * max(self.up, self.down)
        taps = self.up * firwin(2 * half + 1, 1 / max(self.up, self.down), window=("kaiser", 5.0))
        # Output n is sum over k of taps[half + n * down - k * up] * x[k]. Of one block of `up`
        # outputs, that needs the inputs from -reach to down + reach around the block's start.
        self.reach = half // self.up + 1
        k = np.arange(-self.reach, self.down + self.reach + 1)
        index = half + np.arange(self.up)[:, None] * self.down - k * self.up
        kernel = np.where(
            (index >= 0) & (index < taps.size), taps[index.clip(0, taps.size - 1)], 0.0
        )
        self.register_buffer(
            "kernel", torch.from_numpy(kernel.T).float().contiguous(), persistent=False
        )

    def forward(self, sounds: Tensor) -> Tensor:
        """`(B, n)` -> `(B, ceil(n * up / down))`."""
        n = sounds.shape[1]
        blocks = math.ceil(n / self.down)
        padded = F.pad(sounds, (self.reach, blocks * self.down - n + self.reach + 1))
        phases = padded.unfold(1, len(self.kernel), self.down) @ self.kernel.to(
            sounds.dtype
        )  # B x blocks x up
        return phases.flatten(1)[:, : math.ceil(n * self.up / self.down)]


def frames_to_cover(encoding: Encoding, hop: int = HOP) -> int:
    """The fewest log-mel frames that lose no sample of a soundscape, neither to the framing nor to
    the network's pooling: 112 for 1.05 s, 208 for 2 s, and 112 for 2 s with a hop of 305
    samples."""
    samples = math.ceil(encoding.samples * SAMPLE_RATE / encoding.sample_rate)
    frames = 1 + max(0, math.ceil((samples - WINDOW) / hop))
    return math.ceil(frames / POOLING) * POOLING


class ImageToLogMel(nn.Module):
    """Images -> what the network hears: the translator and the front end in one.

    Args:
        encoding: the scheme by which images become sound.
        frames: how many log-mel frames the network hears. None: `frames_to_cover`, the soundscape
            followed by silence, so that no column of the image is cut off. 96 is the published cut:
            at 1.05 s it loses the last 0.075 s, which is 2.0 of 28 columns.
        hop: samples at 16 kHz from one frame to the next. A hop of 305 hears 2.0 s in the frames a
            column that 160 gives 1.05 s, so that a longer sound need not mean a larger network.

    Raises:
        ValueError: if `frames` is not a multiple of 16, to which the network's four pooling layers
            would cut it, or `hop` is longer than the window.
    """

    def __init__(self, encoding: Encoding, frames: int | None = None, hop: int = HOP) -> None:
        super().__init__()
        self.logmel = LogMel(encoding.sample_rate, hop)
        self.frames = frames_to_cover(encoding, hop) if frames is None else frames
        if self.frames < POOLING or self.frames % POOLING:
            raise ValueError(
                f"frames is {frames}, but must be a multiple of {POOLING}: the network's pooling would cut off the rest."
            )
        self.translator = VoiceTranslator(encoding)
        needed = (self.frames - 1) * hop + WINDOW  # samples at 16 kHz
        self.silence = max(
            0, math.ceil(needed * encoding.sample_rate / SAMPLE_RATE) - encoding.samples
        )  # samples

    @property
    def encoding(self) -> Encoding:
        return self.translator.encoding

    @property
    def hop(self) -> int:
        return self.logmel.hop

    def forward(self, images: Tensor, straight_through: float = 0.0) -> Tensor:
        """Images, and `straight_through`, as in `VoiceTranslator.forward` -> `(B, 1, frames, 64)`
        float32 log-mels."""
        return self.log_mel(self.translator(images, straight_through))

    def log_mel(self, soundscapes: Tensor) -> Tensor:
        """`(B, samples)` soundscapes in [-1, 1] -> `(B, 1, frames, 64)` float32 log-mels. In
        stereo, `(B, 2, samples)`, the mean of the ears is heard, as Google's front end takes the
        mean of the channels.

        Raises:
            ValueError: if they have not as many samples as the encoding makes.
        """
        if soundscapes.shape[-1] != self.encoding.samples:
            raise ValueError(
                f"the soundscapes have {soundscapes.shape[-1]} samples, but this encoding's have {self.encoding.samples}."
            )
        if soundscapes.dim() == 3:
            soundscapes = soundscapes.mean(1)
        return self.logmel(soundscapes, self.silence)[:, None, : self.frames]


def audio_fingerprint(front_end: ImageToLogMel) -> Tensor:
    """The log-mel of one fixed image, `(frames, 64)` float32.

    It is kept in the checkpoints. The settings say which encoding was learned; the fingerprint
    shows whether the code still makes the same sounds."""
    image = (
        (torch.arange(28 * 28) * 37 % 256).byte().view(1, 28, 28)
    )  # all grey levels, in no order
    with torch.no_grad():
        return front_end(image.to(front_end.logmel.mel.device))[0, 0]


def fingerprints_match(one: Any, other: Tensor) -> bool:
    """Whether two fingerprints are equal up to rounding."""
    if not isinstance(one, Tensor) or one.shape != other.shape:
        return False
    return bool((one.to(other.device) - other).abs().mean() < 0.01)


def require_same_sounds(front_end: ImageToLogMel, fingerprint: Any) -> None:
    """Compare the stored fingerprint with the current one.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    if not fingerprints_match(fingerprint, audio_fingerprint(front_end)):
        raise ValueError(
            "the code that makes the sounds of this encoding was changed since they were learned"
        )
