"""The front end of the audio network: image -> soundscape -> log-mel spectrogram.

`LogMel` is the front end of Google's VGGish (AudioSet): 25 ms periodic Hann windows every 10 ms, no
padding, magnitude of a 512-point Fourier transform, 64 mel bands from 125 to 7500 Hz, ln(x + 0.01).
Source: `mel_features.py` and `vggish_params.py` of
github.com/tensorflow/models/tree/master/research/audioset/vggish. `ImageToLogMel` puts the
translator before it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voice_translator import ConstantModule, Encoding, VoiceTranslator

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
EVAL_BATCH = 64  # images at a time in an evaluation; with 256, the maps would leave the cache
BLOCK = 16  # bands that are multiplied together; their triangles reach over few bins
ZERO_CROSSINGS, ROLL_OFF, KAISER_BETA = 64, 0.9475937167399596, 14.769656459379492  # kaiser_best
LARGEST_RESAMPLER = 2**22  # up times down; 141,120 from 22,050 Hz. It takes 100 MB while it is made


class LogMel(ConstantModule):
    """Sounds -> log-mels, for a batch at once, differentiable.

    Args:
        sample_rate: of the sounds, in Hz; they are resampled when it is not 16000.
        hop: samples at 16 kHz from one frame to the next. Google's: 160.

    Raises:
        ValueError: if `hop` is not from 1 to 400; beyond that, frames would leave out samples.
    """

    hann: Tensor
    mel: Tensor

    def __init__(self, sample_rate: int = SAMPLE_RATE, hop: int = HOP) -> None:
        super().__init__()
        if not 1 <= hop <= WINDOW:
            raise ValueError(f"hop is {hop} samples, but must be from 1 to {WINDOW}.")
        self.hop = hop
        resamples = sample_rate != SAMPLE_RATE
        self.resample = Resample(sample_rate, SAMPLE_RATE) if resamples else nn.Identity()
        self.reset_constants()
        self.blocks = []  # first band, first bin, last bin + 1
        for band in range(0, BANDS, BLOCK):
            bins = mel_filters()[:, band : band + BLOCK].any(1).nonzero()
            self.blocks.append((band, int(bins.min()), int(bins.max()) + 1))

    def make_constants(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The Hann window, followed by zeros to the transform's length, and the mel filters."""
        angle = 2 * math.pi * torch.arange(WINDOW, dtype=torch.float64) / WINDOW
        hann = F.pad(0.5 - 0.5 * angle.cos(), (0, FFT - WINDOW))
        return {"hann": hann, "mel": mel_filters()}

    def forward(self, sounds: Tensor, silence: int = 0) -> Tensor:
        """Compute log-mels, `(B, frames, 64)`, natural log. frames = 1 + floor((n - 400) / hop),
        where n counts samples at 16 kHz. float32, or float64 in a module that was moved to it.

        Args:
            sounds: `(B, samples)` in [-1, 1].
            silence: samples of silence that follow them.

        Raises:
            ValueError: if `sounds` has another shape or type, or is shorter than one window.
        """
        if sounds.dim() != 2 or not sounds.is_floating_point():
            raise ValueError(
                f"sounds are {sounds.dtype} of the shape {tuple(sounds.shape)}; the front end "
                "takes floating point in [-1, 1], (B, samples)."
            )
        with torch.autocast(sounds.device.type, enabled=False):
            if torch.compiler.is_compiling():  # one graph for every batch size
                return self._logmels(sounds.to(self.hann.dtype), silence)
            if not len(sounds):  # MKL makes no Fourier transform of nothing
                return self(F.pad(sounds, (0, 0, 0, 1)), silence)[:0]
            frames = max(1, (sounds.shape[1] + silence) // self.hop)
            chunk = CPU_CHUNK if sounds.device.type == "cpu" else GPU_CHUNK // (frames * FFT)
            parts = sounds.to(self.hann.dtype).split(max(1, chunk))
            return torch.cat([self._logmels(part, silence) for part in parts])

    def _logmels(self, sounds: Tensor, silence: int) -> Tensor:
        # Padded a few sounds at a time: to copy the whole batch costs as much as the transforms.
        sounds = self.resample(F.pad(sounds, (0, silence)))
        if sounds.shape[1] < WINDOW:
            found = f"sounds of {sounds.shape[1]} samples at 16 kHz"
            raise ValueError(f"{found} are shorter than one window of {WINDOW}.")
        sounds = F.pad(sounds, (0, FFT - WINDOW))
        frames = sounds.unfold(1, FFT, self.hop) * self.hann  # B x frames x 512
        spectrum = torch.view_as_real(torch.fft.rfft(frames))  # B x frames x 257 x 2
        magnitudes = Magnitude.apply(spectrum)  # B x frames x 257
        bands = [
            magnitudes[..., low:high] @ self.mel[low:high, k : k + BLOCK]
            for k, low, high in self.blocks
        ]
        return torch.cat(bands, -1).add(LOG_OFFSET).log()  # B x frames x 64


class Magnitude(torch.autograd.Function):
    """The magnitude of `(..., 2)` complex numbers, `(...)`; its gradient is 0 where it is 0. It
    takes a third of the time of `z.abs()`, without a guard against overflow beyond 1e19."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        squares = z.square()
        return torch.add(squares[..., 0], squares[..., 1]).sqrt_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        z, magnitude = ctx.saved_tensors
        return z * torch.where(magnitude > 0, gradient / magnitude, 0)[..., None]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        z, magnitude = ctx.saved_tensors
        return torch.where(magnitude > 0, (z * tangent).sum(-1) / magnitude, 0)


def mel_filters() -> Tensor:
    """VGGish's filter bank, `(257, 64)` float64: triangles of peak 1 whose flanks are linear in
    mel, the DC bin zero. librosa's are linear in Hz, and differ by up to 0.0044."""
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


def band_of(hz: float) -> float:
    """The mel band of a frequency, from 0 to 64, for the axis of a picture."""
    low, high, at = _mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ, hz], dtype=torch.float64)).tolist()
    return (at - low) / (high - low) * (BANDS + 1) - 0.5


class Resample(ConstantModule):
    """Polyphase resampling by a rational factor, with the filter of resampy's `kaiser_best`.

    Google's front end resamples with that filter: a sinc of 64 zero crossings on either side, cut
    off at 0.948 of the lower Nyquist frequency, in a Kaiser window of beta 14.77. From 22,050 to
    16,000 Hz it takes 1.1 dB at 7,400 Hz, 3.1 dB at 7,500 Hz and over 95 dB above 8,000 Hz.

    Each of the `up` phases of the filter is a column of a matrix by which overlapping blocks are
    multiplied. By default, a GPU computes convolutions in TensorFloat-32, but not matrix products.

    Raises:
        ValueError: if the two rates have so little in common that the filter takes too much memory.
    """

    kernel: Tensor

    def __init__(self, from_hz: int, to_hz: int) -> None:
        super().__init__()
        common = math.gcd(from_hz, to_hz)
        self.up, self.down = to_hz // common, from_hz // common
        if self.up * self.down > LARGEST_RESAMPLER:
            raise ValueError(
                f"sounds of {from_hz} Hz cannot be resampled to {to_hz} Hz within memory; set "
                "sample_rate to 16000, 22050, 44100 or 48000."
            )
        self.reach = ZERO_CROSSINGS * max(self.up, self.down) // self.up + 1
        self.reset_constants()

    def make_constants(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The filter, a column for each phase, `(2 * reach + down + 1, up)`."""
        step = max(self.up, self.down)
        half = ZERO_CROSSINGS * step
        time = torch.arange(-half, half + 1, dtype=torch.float64) / step
        window = torch.kaiser_window(2 * half + 1, False, beta=KAISER_BETA, dtype=torch.float64)
        taps = self.up / step * ROLL_OFF * torch.sinc(ROLL_OFF * time) * window
        # Output n is the sum over k of taps[half + n * down - k * up] * x[k]. A block of `up`
        # outputs needs the inputs from -reach to down + reach.
        k = torch.arange(-self.reach, self.down + self.reach + 1)
        index = half + torch.arange(self.up)[:, None] * self.down - k * self.up
        inside = (index >= 0) & (index < len(taps))
        return {"kernel": torch.where(inside, taps[index.clamp(0, len(taps) - 1)], 0).T}

    def forward(self, sounds: Tensor) -> Tensor:
        """`(B, n)` -> `(B, ceil(n * up / down))`."""
        n = sounds.shape[1]
        blocks = math.ceil(n / self.down)
        padded = F.pad(sounds, (self.reach, blocks * self.down - n + self.reach + 1))
        phases = padded.unfold(1, len(self.kernel), self.down) @ self.kernel  # B x blocks x up
        return phases.flatten(1)[:, : math.ceil(n * self.up / self.down)]


def frames_to_cover(encoding: Encoding, hop: int = HOP) -> int:
    """The fewest log-mel frames that lose no sample of a soundscape, neither to the framing nor to
    the pooling: 112 for 1.05 s, 208 for 2 s, and 112 for 2 s with a hop of 305 samples."""
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
        hop: samples at 16 kHz from one frame to the next. With 305, a network hears 2.0 s in as
            many frames as 1.05 s with 160.

    Raises:
        ValueError: if `frames` is not a multiple of 16, or `hop` is longer than the window.
    """

    def __init__(self, encoding: Encoding, frames: int | None = None, hop: int = HOP) -> None:
        super().__init__()
        self.encoding, self.hop = encoding, hop
        self.logmel = LogMel(encoding.sample_rate, hop)
        self.frames = frames_to_cover(encoding, hop) if frames is None else frames
        if self.frames < POOLING or self.frames % POOLING:
            raise ValueError(
                f"frames is {frames}, but must be a multiple of {POOLING}: the network's pooling "
                "would cut off the rest."
            )
        self.translator = VoiceTranslator(encoding)
        needed = (self.frames - 1) * hop + WINDOW  # samples at 16 kHz
        needed = math.ceil(needed * encoding.sample_rate / SAMPLE_RATE)
        self.silence = max(0, needed - encoding.samples)  # samples behind the soundscape

    def forward(
        self, images: Tensor, straight_through: float = 0.0, validate: bool | None = None
    ) -> Tensor:
        """Turn images into `(B, 1, frames, 64)` float32 log-mels. Arguments and errors are those of
        `VoiceTranslator.forward`."""
        return self.log_mel(self.translator(images, straight_through, validate))

    def log_mel(self, soundscapes: Tensor) -> Tensor:
        """`(B, samples)` soundscapes in [-1, 1] -> `(B, 1, frames, 64)` float32 log-mels. In
        stereo, `(B, 2, samples)`, the mean of both ears is taken, as in Google's front end.

        Raises:
            ValueError: if they have not as many samples as the encoding makes.
        """
        if soundscapes.shape[-1] != self.encoding.samples:
            raise ValueError(
                f"the soundscapes have {soundscapes.shape[-1]} samples, but this encoding's have "
                f"{self.encoding.samples}."
            )
        if soundscapes.dim() == 3:
            soundscapes = soundscapes.mean(1)
        return self.logmel(soundscapes, self.silence)[:, None, : self.frames]


def audio_fingerprint(front_end: ImageToLogMel) -> Tensor:
    """The log-mel of one fixed image, `(frames, 64)` float32. Kept in the checkpoints, it shows
    whether the code still makes the sounds that were learned."""
    image = (torch.arange(28 * 28) * 37 % 256).byte().view(1, 28, 28)  # all levels, in no order
    with torch.no_grad():
        return front_end(image.to(front_end.logmel.mel.device))[0, 0]


def fingerprints_match(one: Any, other: Tensor) -> bool:
    """Whether two fingerprints are equal up to rounding."""
    fits = isinstance(one, Tensor) and one.shape == other.shape
    return fits and bool((one.to(other.device) - other).abs().mean() < 0.01)
