"""The front end, compared with a slow reference, SciPy and librosa; the cache; the
loading of weights."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_gpu import PretendedGPU
from scipy.signal import resample_poly

import vggish
from common.checkpoint import CHECKPOINT_VERSION
from common.files import UserError, save_tensors
from data import load_digits
from data.augment import augment_uint8
from models.late_blind import LateBlind
from models.vggish import VGGish, load_audioset_convolutions
from training.logmels import LogMelCache
from training.upstream import load_audio_network
from vggish import (
    CPU_CHUNK,
    FFT,
    ImageToLogMel,
    LogMel,
    Magnitude,
    Resample,
    audio_fingerprint,
    fingerprints_match,
    frames_to_cover,
    mel_filters,
)
from voice_translator import Encoding

# For noise, which fills every band: ten times the rounding that float32 was seen to leave, 1e-6.
FLOAT32_TOLERANCE = 1e-5
# A module that was moved to float64 computes its constants in float64 too.
FLOAT64_TOLERANCE = 1e-11
# For tones: between them a band holds nothing but what rounding spills, 1e-5 of a peak of 200
# against the offset of 0.01.
TONES_TOLERANCE = 2e-3


# The reference, in float64, frame by frame and weight by weight.


def slow_mel_matrix() -> np.ndarray:
    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    low, high = mel(125), mel(7500)
    edges = [low + (high - low) * i / 65 for i in range(66)]
    matrix = np.zeros((257, 64))
    for k in range(1, 257):  # bin 0 stays zero
        at = mel(k * 16000 / 512)
        for b in range(64):
            left, top, right = edges[b : b + 3]
            if left < at <= top:
                matrix[k, b] = (at - left) / (top - left)
            elif top < at < right:
                matrix[k, b] = (right - at) / (right - top)
    return matrix


def slow_logmel(sound: np.ndarray, hop: int = 160) -> np.ndarray:
    matrix = slow_mel_matrix()
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)]
    frames = []
    start = 0
    while start + 400 <= len(sound):
        magnitudes = np.abs(np.fft.rfft(sound[start : start + 400] * window, 512))
        frames.append(np.log(magnitudes @ matrix + 0.01))
        start += hop
    return np.array(frames)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return (
        torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        - 1
    )


# The log-mel.


@pytest.mark.parametrize("samples", [400, 5000, 16800])
def test_logmel_agrees_with_its_description(samples: int) -> None:
    sounds = torch.stack(
        [noise(samples), 0.01 * noise(samples, seed=1), torch.zeros(samples, dtype=torch.float64)]
    )
    expected = np.stack([slow_logmel(sound) for sound in sounds.numpy()])
    np.testing.assert_allclose(LogMel().double()(sounds), expected, rtol=0, atol=FLOAT64_TOLERANCE)
    heard = LogMel()(sounds.float())
    assert heard.dtype == torch.float32
    np.testing.assert_allclose(heard, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_mel_filters_agree_with_their_description() -> None:
    filters = mel_filters()
    assert filters.dtype == torch.float64
    # Both flanks are differences of mels of up to 2840 over widths of 40, in float64.
    np.testing.assert_allclose(filters, slow_mel_matrix(), rtol=0, atol=1e-12)
    assert filters[0].count_nonzero() == 0


def test_mel_filters_are_close_to_those_of_librosa_but_not_the_same() -> None:
    """librosa's triangles are linear in Hz, VGGish's in mel."""
    from librosa.filters import mel  # slow to import

    librosas = mel(sr=16000, n_fft=512, n_mels=64, fmin=125, fmax=7500, htk=True, norm=None)
    difference = np.abs(librosas.T - mel_filters().numpy()).max()
    assert 0.004 < difference <= 0.0045


def test_a_sine_gives_the_published_numbers() -> None:
    """Three seconds of 1 kHz, amplitude 1, give 3 examples of 96 frames. Origin: computed in
    float64 from the front end's description, to five decimals.

    Most bands hold only the leakage of the window, so the mean hangs on the last digits of window
    and sine: half a sample later it is -3.42981. Computed here it is -3.429619, a unit of the fifth
    decimal from the origin's -3.42963, hence 2e-5; float32 leaves 2.4e-5."""
    sine = torch.sin(2 * math.pi * 1000 * torch.arange(48000, dtype=torch.float64) / 16000)[None]
    exact = slow_logmel(sine[0].numpy())
    for front_end, sound, tolerance in (
        (LogMel().double(), sine, 2e-5),
        (LogMel(), sine.float(), 1e-4),
    ):
        logmels = front_end(sound)[0]
        np.testing.assert_allclose(logmels, exact, rtol=0, atol=TONES_TOLERANCE)
        examples = logmels[: 3 * 96].reshape(3, 96, 64)
        assert examples.mean().item() == pytest.approx(-3.42963, abs=tolerance)
        assert examples.std(correction=0).item() == pytest.approx(2.12658, abs=tolerance)
        assert examples.max().item() == pytest.approx(4.81112, abs=tolerance)


def test_silence_gives_the_logarithm_of_the_offset() -> None:
    assert LogMel()(torch.zeros(1, 400)).allclose(torch.tensor(math.log(0.01)))


def test_a_tone_is_loudest_in_the_band_of_its_pitch() -> None:
    centres = 700 * (
        np.exp(
            np.linspace(1127 * math.log1p(125 / 700), 1127 * math.log1p(7500 / 700), 66)[1:-1]
            / 1127
        )
        - 1
    )
    t = torch.arange(1600) / 16000
    for band in (20, 40, 60):  # below them a band is narrower than a bin
        loudest = LogMel()(torch.sin(2 * math.pi * float(centres[band]) * t)[None]).mean(1).argmax()
        assert loudest == band


@pytest.mark.parametrize(
    ("samples", "frames"), [(400, 1), (559, 1), (560, 2), (15600, 96), (16800, 103), (48000, 298)]
)
def test_frame_counts(samples: int, frames: int) -> None:
    assert LogMel()(torch.zeros(2, samples)).shape == (2, frames, 64)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(400, 4000))
def test_there_is_a_frame_for_each_whole_hop_after_the_first_window(samples: int) -> None:
    assert LogMel()(torch.zeros(1, samples)).shape[1] == 1 + (samples - 400) // 160


@pytest.mark.parametrize("rate", [16000, 22050])
def test_a_batch_equals_its_sounds_one_by_one(rate: int) -> None:
    sounds, front_end = noise(5, 3000).float(), LogMel(rate)
    singles = torch.cat([front_end(sound[None]) for sound in sounds])
    torch.testing.assert_close(front_end(sounds), singles, rtol=0, atol=FLOAT32_TOLERANCE)


def test_an_empty_batch_gives_no_log_mel() -> None:
    assert LogMel()(torch.zeros(0, 1000), 240).shape == (0, 6, 64)
    assert ImageToLogMel(Encoding())(torch.zeros(0, 28, 28, dtype=torch.uint8)).shape == (
        0,
        1,
        112,
        64,
    )


def test_other_sample_rates_are_resampled_first() -> None:
    sound = noise(1, 3001)
    expected = slow_logmel(slow_resampled(sound.numpy(), 22050)[0])
    np.testing.assert_allclose(
        LogMel(22050).double()(sound)[0], expected, rtol=0, atol=FLOAT64_TOLERANCE
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_gives_float32(dtype: torch.dtype) -> None:
    sounds = noise(1, 1000).to(dtype)
    heard = LogMel()(sounds)
    assert heard.dtype == torch.float32
    assert heard.equal(LogMel()(sounds.float()))


@pytest.mark.parametrize("rate", [16000, 22050])
def test_bfloat16_autocast_does_not_change_the_log_mel(rate: int) -> None:
    sounds, front_end = noise(2, 2000).float(), LogMel(rate)
    with torch.autocast("cpu", torch.bfloat16):
        heard = front_end(sounds)
    assert heard.dtype == torch.float32
    assert heard.equal(front_end(sounds))


@pytest.mark.parametrize("rate", [16000, 22050])
def test_logmel_is_differentiable(rate: int) -> None:
    """The slope along a random direction agrees with a finite difference, in float64."""
    front_end, sound, direction = LogMel(rate).double(), noise(1, 1500), noise(1, 1500, seed=1)
    sound.requires_grad_()
    front_end(sound).sum().backward()
    step = 1e-6  # rounding leaves 1e-16 / 1e-6 of each of some thousand logarithms
    with torch.no_grad():
        numeric = (
            front_end(sound + step * direction) - front_end(sound - step * direction)
        ).sum() / (2 * step)
    assert (sound.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5)


def test_the_gradient_of_silence_is_finite() -> None:
    silence = torch.zeros(1, 1000, requires_grad=True)
    LogMel()(silence).sum().backward()
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize(
    "sounds", [torch.zeros(16000), torch.zeros(1, 1, 16000), torch.zeros(1, 16000).short()]
)
def test_sounds_of_another_shape_or_type_are_refused(sounds: torch.Tensor) -> None:
    with pytest.raises(
        ValueError,
        match=r"sounds are .* the front end takes floating point in \[-1, 1\], \(B, samples\)",
    ):
        LogMel()(sounds)


@pytest.mark.parametrize(("rate", "samples", "left"), [(16000, 399, 399), (22050, 549, 399)])
def test_sounds_shorter_than_a_window_are_refused(rate: int, samples: int, left: int) -> None:
    with pytest.raises(
        ValueError, match=f"sounds of {left} samples at 16 kHz are shorter than one window of 400"
    ):
        LogMel(rate)(torch.zeros(1, samples))


# Resampling.


def slow_resampled(sounds: np.ndarray, rate: int) -> np.ndarray:
    """`(B, n)` of `rate` Hz at 16 kHz: SciPy's polyphase resampling with the filter of resampy's
    kaiser_best."""
    common = math.gcd(rate, 16000)
    up, down = 16000 // common, rate // common
    step = max(up, down)  # samples at the common rate in a zero crossing
    time = np.arange(-64 * step, 64 * step + 1) / step
    rolloff, beta = 0.9475937167399596, 14.769656459379492
    taps = rolloff * np.sinc(rolloff * time) * np.kaiser(len(time), beta) / step
    return resample_poly(sounds, up, down, axis=1, window=taps)


@pytest.mark.parametrize("rate", [22050, 44100, 8000, 48000, 11025])
@pytest.mark.parametrize("samples", [1, 2, 160, 441, 1000, 1001, 3333])
def test_resampling_agrees_with_scipy(rate: int, samples: int) -> None:
    sounds, resample = noise(2, samples), Resample(rate, 16000)
    expected = slow_resampled(sounds.numpy(), rate)
    resampled = resample(sounds.float())
    assert resampled.shape == expected.shape
    np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(resample.double()(sounds), expected, rtol=0, atol=1e-12)


def test_resampling_agrees_with_scipy_at_any_length() -> None:
    resample = Resample(22050, 16000).double()
    for samples in range(1, 2000, 37):
        sound = noise(1, samples, seed=samples)
        expected = slow_resampled(sound.numpy(), 22050)
        np.testing.assert_allclose(resample(sound), expected, rtol=0, atol=1e-12)


def test_resampling_keeps_tones_below_the_nyquist_frequency_and_removes_those_above() -> None:
    time = torch.arange(8000, dtype=torch.float64) / 22050
    for hz, least, most in ((7000, 0.99, 1.01), (8300, 0, 10 ** (-90 / 20))):
        resampled = Resample(22050, 16000).double()(torch.sin(2 * math.pi * hz * time)[None])
        middle = resampled[0, 1000:-1000]
        assert least <= 2**0.5 * middle.square().mean().sqrt() <= most


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_a_model_of_half_precision_the_front_end_stays_float32(
    rate: int, dtype: torch.dtype
) -> None:
    sounds, front_end = noise(2, 2000).float(), LogMel(rate)
    expected = front_end(sounds)
    assert front_end.to(dtype)(sounds).equal(expected)
    assert front_end.double().float()(sounds).equal(expected)


# From images to log-mels.


def dot(column: int) -> torch.Tensor:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 14, column] = 255
    return image


BLACK = torch.zeros(1, 28, 28, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("encoding", "frames"),
    [
        (Encoding(), 112),
        (Encoding(seconds=2.0), 208),
        (Encoding(sample_rate=22050), 112),
        (Encoding.congenitally_blind(), 112),
        (Encoding(seconds=0.01), 16),
    ],
    ids=["default", "2 s", "22050 Hz", "64x64", "10 ms"],
)
def test_the_number_of_frames_follows_from_the_encoding(encoding: Encoding, frames: int) -> None:
    front_end = ImageToLogMel(encoding)
    assert front_end.frames == frames
    heard = front_end(torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert heard.shape == (2, 1, frames, 64)
    assert heard.dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(hundredths=st.integers(5, 300), rate=st.sampled_from([16000, 22050, 44100, 48000]))
def test_the_frames_cover_every_sample_and_are_no_more_than_needed(
    hundredths: int, rate: int
) -> None:
    """The frames reach over all samples at 16 kHz, and 16 fewer would not."""
    encoding = Encoding(seconds=hundredths / 100, sample_rate=rate)
    frames = frames_to_cover(encoding)
    samples = math.ceil(encoding.samples * 16000 / rate)
    assert frames % 16 == 0
    assert (frames - 1) * 160 + 400 >= samples
    assert frames == 16 or (frames - 17) * 160 + 400 < samples


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("seconds", [1.05, 2.0, 0.37])
@pytest.mark.parametrize("frames", [None, 16, 96, 240])
def test_the_number_of_frames_can_be_set(rate: int, seconds: float, frames: int | None) -> None:
    front_end = ImageToLogMel(Encoding(sample_rate=rate, seconds=seconds), frames)
    assert front_end(BLACK).shape == (1, 1, frames or front_end.frames, 64)


@pytest.mark.parametrize("rate", [16000, 22050])
def test_every_column_changes_the_log_mel(rate: int) -> None:
    front_end = ImageToLogMel(Encoding(sample_rate=rate))
    silence = front_end(BLACK)
    for column in range(28):
        assert (front_end(dot(column)) - silence).abs().max() > 1, column


def test_the_published_cut_loses_the_last_two_columns() -> None:
    """96 frames end with sample 15,600 of 16,800; a column has 600."""
    front_end = ImageToLogMel(Encoding(), frames=96)
    silence = front_end(BLACK)
    assert front_end(dot(27)).equal(silence)
    assert front_end(dot(26)).equal(silence)
    assert (front_end(dot(25)) - silence).abs().max() > 1


def test_the_log_mel_is_that_of_the_soundscape_followed_by_silence() -> None:
    front_end = ImageToLogMel(Encoding())
    images = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    sounds = front_end.translator(images)
    assert front_end(images).equal(front_end.log_mel(sounds))
    followed = torch.cat([sounds, torch.zeros(2, 4000)], 1).double().numpy()
    expected = np.stack([slow_logmel(sound)[:112] for sound in followed])
    np.testing.assert_allclose(front_end(images)[:, 0], expected, rtol=0, atol=TONES_TOLERANCE)
    assert front_end.encoding == Encoding()


@pytest.mark.parametrize("samples", [16_799, 16_801, 100_000])
def test_a_sound_of_another_length_is_refused(samples: int) -> None:
    with pytest.raises(
        ValueError, match=f"the soundscapes have {samples} samples, but this encoding's have 16800"
    ):
        ImageToLogMel(Encoding()).log_mel(torch.zeros(1, samples))


def test_a_checkpoint_that_learned_other_sounds_than_the_code_makes_is_refused(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting shows a change in the code, for example in a curve that a researcher wrote."""
    runs = {load_audio_network: chain / "train_vggish", LateBlind.load: chain / "train_all"}
    for load, run in runs.items():
        load(run)
        checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
        assert checkpoint["fingerprint"].shape == (112, 64)
    frequencies = Encoding.frequencies
    # a sixth of a semitone
    monkeypatch.setattr(Encoding, "frequencies", lambda self: frequencies(self) * 1.01)
    message = "the code that makes the sounds of this encoding was changed since"
    for load, run in runs.items():
        with pytest.raises(UserError, match=message):
            load(run)


def test_fingerprints_match_up_to_rounding_only() -> None:
    fingerprint = audio_fingerprint(ImageToLogMel(Encoding()))
    assert fingerprints_match(fingerprint + 1e-4, fingerprint)
    assert not fingerprints_match(None, fingerprint)
    assert not fingerprints_match(fingerprint[:96], fingerprint)
    other = audio_fingerprint(ImageToLogMel(Encoding(contrast=0.9)))
    assert not fingerprints_match(other, fingerprint)


@pytest.mark.parametrize("hop", [1, 305, 400])
def test_another_hop_agrees_with_its_description(hop: int) -> None:
    sound = noise(1200).numpy()
    heard = LogMel(hop=hop).double()(torch.from_numpy(sound)[None])[0]
    np.testing.assert_allclose(
        heard, slow_logmel(sound, hop), rtol=0, atol=1e-6
    )  # the filters are kept in float32


def test_with_a_longer_hop_two_seconds_fit_into_112_frames() -> None:
    front_end = ImageToLogMel(Encoding(seconds=2.0), hop=305)
    assert (front_end.frames, front_end.hop) == (112, 305)
    sound = front_end.translator(dot(27))
    followed = torch.cat([sound, torch.zeros(1, 4000)], 1).double().numpy()
    np.testing.assert_allclose(
        front_end(dot(27))[0, 0], slow_logmel(followed[0], 305)[:112], rtol=0, atol=TONES_TOLERANCE
    )
    assert (front_end(dot(27)) - front_end(BLACK)).abs().max() > 1
    assert frames_to_cover(Encoding(seconds=2.0), 305) == 112


@pytest.mark.parametrize("hop", [0, 401])
def test_a_hop_beyond_the_window_is_refused(hop: int) -> None:
    with pytest.raises(ValueError, match=f"hop is {hop} samples, but must be from 1 to 400"):
        ImageToLogMel(Encoding(), hop=hop)


def test_gradients_reach_the_image() -> None:
    image = torch.full((1, 1, 28, 28), 0.25).requires_grad_()
    ImageToLogMel(Encoding(sample_rate=22050))(image).sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad[..., -1].abs().max() > 0


@pytest.mark.parametrize("frames", [97, 8, 0, -16])
def test_frames_that_pooling_would_cut_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"frames is {frames}, but must be a multiple of 16"):
        ImageToLogMel(Encoding(), frames)


# The weights of AudioSet.


def audioset_state() -> dict[str, torch.Tensor]:
    """Random weights in torchvggish's layout; its fully connected layers are here smaller than they
    are."""
    random = torch.Generator().manual_seed(0)
    state = {}
    sizes = {0: (1, 64), 3: (64, 128), 6: (128, 256), 8: (256, 256), 11: (256, 512), 13: (512, 512)}
    for index, (channels_in, channels_out) in sizes.items():
        state[f"features.{index}.weight"] = torch.randn(
            channels_out, channels_in, 3, 3, generator=random
        )
        state[f"features.{index}.bias"] = torch.randn(channels_out, generator=random)
    for index in (0, 2, 4):
        state[f"embeddings.{index}.weight"] = torch.randn(8, 8, generator=random)
        state[f"embeddings.{index}.bias"] = torch.randn(8, generator=random)
    return state


@pytest.fixture(scope="module")
def network() -> VGGish:
    return VGGish(frames=16)


def test_audioset_weights_replace_the_convolutions_only(network: VGGish, tmp_path: Path) -> None:
    state = audioset_state()
    torch.save(state, tmp_path / "vggish.pth")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_audioset_convolutions(network, tmp_path / "vggish.pth")
    for key, value in network.state_dict().items():
        assert value.equal(state[key] if key.startswith("features.") else before[key]), key


def test_a_missing_audioset_file_is_refused(network: VGGish, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere\.pth is missing; give the local path of torchvggish's state dict"
    ):
        load_audioset_convolutions(network, tmp_path / "nowhere.pth")


def test_audioset_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    torch.save(audioset_state(), tmp_path / "vggish.pth")
    with pytest.raises(UserError, match=r"vggish\.pth do not fit Sequential \(size mismatch"):
        load_audioset_convolutions(VGGish(frames=16, width=4), tmp_path / "vggish.pth")


def test_a_garbage_audioset_file_is_refused(network: VGGish, tmp_path: Path) -> None:
    (tmp_path / "vggish.pth").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(
        UserError, match=r"vggish\.pth is damaged or no checkpoint; give the local path"
    ):
        load_audioset_convolutions(network, tmp_path / "vggish.pth")


@pytest.mark.parametrize(
    "state", [{}, {"embeddings.0.weight": torch.zeros(1)}], ids=["empty", "no convolutions"]
)
def test_a_file_without_convolutions_is_refused(
    network: VGGish, tmp_path: Path, state: dict
) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth holds no VGGish convolutions"):
        load_audioset_convolutions(network, tmp_path / "other.pth")


# The audio network of a run.

HEARD = Encoding(
    seconds=0.3, curve="linear", sample_rate=22050
)  # no default, to see that it travels


def checkpoint_of(network: VGGish, frames: int | None, **changed: object) -> dict:
    """A stage-one checkpoint, as a run writes it."""
    return {
        "stage": "train_vggish",
        "version": CHECKPOINT_VERSION,
        "config": {
            "encoding": dataclasses.asdict(HEARD),
            "frames": frames,
            "hop": 160,
            "width": 4,
            "dataset": "handwritten",
            "classes": 10,
        },
        "networks": {"vggish": network.state_dict()},
        "fingerprint": audio_fingerprint(ImageToLogMel(HEARD, frames)),
        "epoch": 1,
        "metrics": {"epoch": 1},
        "seed": 0,
        "revision": None,
        "versions": {},
        **changed,
    }


@pytest.mark.parametrize(("frames", "heard"), [(None, 32), (16, 16)])
def test_the_loaded_audio_network_is_the_saved_one(
    tmp_path: Path, frames: int | None, heard: int
) -> None:
    network = VGGish(frames=heard, width=4)
    network(
        torch.randn(8, 1, heard, 64, generator=torch.Generator().manual_seed(0))
    )  # moves BatchNorm's statistics
    save_tensors(tmp_path / "checkpoint.pt", checkpoint_of(network, frames))
    front_end, loaded, _ = load_audio_network(tmp_path)
    assert front_end.encoding == HEARD
    assert front_end.frames == heard
    assert not any(layer.training for layer in loaded.modules())
    logmels = front_end(torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(1)))
    network.to(memory_format=torch.channels_last).eval()  # as the loaded is
    assert loaded.embed(logmels).equal(network.embed(logmels))
    assert loaded(logmels).equal(network(logmels))


@pytest.fixture(scope="module")
def small() -> VGGish:
    return VGGish(frames=32, width=4)


def test_a_missing_audio_network_is_refused(tmp_path: Path) -> None:
    message = r"nowhere/checkpoint\.pt is missing; run train_vggish\.py"
    with pytest.raises(UserError, match=message):
        load_audio_network(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"stage": "emnist_dcgan"},
            r"is a checkpoint of 'emnist_dcgan', not of 'train_vggish'; run train_vggish\.py",
        ),
        (
            {"version": 1},
            r"has checkpoint version 1, but this code reads version 2; run train_vggish\.py",
        ),
    ],
    ids=["stage", "version"],
)
def test_another_checkpoint_is_refused(
    small: VGGish, tmp_path: Path, changed: dict, message: str
) -> None:
    save_tensors(tmp_path / "checkpoint.pt", checkpoint_of(small, None, **changed))
    with pytest.raises(UserError, match=message):
        load_audio_network(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(small: VGGish, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="is no checkpoint of this project; run train_vggish.py"):
        load_audio_network(tmp_path)
    torch.save(torch.zeros(3), tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="is no checkpoint; run train_vggish.py"):
        load_audio_network(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(small: VGGish, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "checkpoint.pt"
    save_tensors(path, checkpoint_of(small, None))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(
        UserError, match=r"checkpoint\.pt is damaged or no checkpoint; run train_vggish\.py"
    ):
        load_audio_network(tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(small: VGGish, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harm",))

    save_tensors(tmp_path / "checkpoint.pt", checkpoint_of(small, None, metrics=Harm()))
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged or no checkpoint"):
        load_audio_network(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(small: VGGish, tmp_path: Path, bad: float) -> None:
    state = {key: value.clone() for key, value in small.state_dict().items()}
    state["features.3.weight"][0, 0, 0, 0] = bad
    save_tensors(tmp_path / "checkpoint.pt", checkpoint_of(small, None, networks={"vggish": state}))
    with pytest.raises(
        UserError, match=r"the weights in .*checkpoint\.pt are not finite; train it again"
    ):
        load_audio_network(tmp_path)


def test_weights_that_do_not_fit_are_refused(small: VGGish, tmp_path: Path) -> None:
    save_tensors(
        tmp_path / "checkpoint.pt", checkpoint_of(small, 16)
    )  # the network heard 32 frames
    with pytest.raises(
        UserError, match=r"the weights in .*checkpoint\.pt do not fit VGGish \(size mismatch"
    ):
        load_audio_network(tmp_path)


def test_magnitude_and_its_gradient_agree_with_abs_and_silence_has_none() -> None:
    z = torch.randn(3, 5, 7, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    z[0] = 0
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    weights = torch.linspace(-1, 1, 105, dtype=torch.float64).view(3, 5, 7)
    (Magnitude.apply(torch.view_as_real(ours)) * weights).sum().backward()
    (theirs.abs() * weights).sum().backward()
    assert torch.allclose(Magnitude.apply(torch.view_as_real(z)), z.abs(), rtol=1e-14, atol=0)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-13, atol=1e-15)
    assert not ours.grad[0].any()
    pairs = torch.view_as_real(z[1:]).clone().requires_grad_()
    assert torch.autograd.gradcheck(Magnitude.apply, pairs, check_forward_ad=True)


def test_the_chunk_of_a_sound_does_not_change_its_log_mel(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = torch.rand(2 * CPU_CHUNK + 3, 4000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = LogMel()(sounds)
    assert together.shape == (len(sounds), 23, 64)
    for k in (0, CPU_CHUNK, len(sounds) - 1):
        assert torch.allclose(LogMel()(sounds[k : k + 1])[0], together[k], atol=1e-5)
    monkeypatch.setattr(vggish, "GPU_CHUNK", 3 * 25 * FFT)  # three sounds of 4,000 samples, 25 hops
    parts, logmels = [], LogMel._logmels
    monkeypatch.setattr(
        LogMel,
        "_logmels",
        lambda self, x, *more: (parts.append(len(x)), logmels(self, x, *more))[1],
    )
    with PretendedGPU():
        by_threes = LogMel().to("cuda:0")(sounds.to("cuda:0")).cpu()
    assert set(parts) == {3, len(sounds) % 3} - {0}
    assert torch.allclose(by_threes, together, atol=1e-5)


def test_log_mels_are_cached_in_float16_where_they_fit() -> None:
    front_end = ImageToLogMel(Encoding())
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8, generator=random)
    index = torch.tensor([3, 39, 3])
    size = 40 * 112 * 64 * 2 / 1e9
    cached = LogMelCache(front_end, images, 41, size)
    used_once = LogMelCache(front_end, images, 40, size)
    too_large = LogMelCache(front_end, images, 41, 0.99 * size)
    assert cached.kept.dtype == torch.float16
    assert used_once.kept is too_large.kept is None
    for logmels in (cached, used_once, too_large):
        assert logmels[index].shape == (3, 1, 112, 64)
        assert logmels[index].dtype == torch.float32
        assert not logmels[index].requires_grad
    assert torch.equal(used_once[index], front_end(images[index]))
    assert 0 < (cached[index] - front_end(images[index])).abs().max() <= 0.002


def test_augmented_images_are_drawn_each_time_and_never_cached() -> None:
    front_end = ImageToLogMel(Encoding())
    images = load_digits("handwritten", "test", Path("/nonexistent"), "cpu").images[:8]
    logmels = LogMelCache(front_end, images, 41, 1.0, augmentation=0.5)
    assert logmels.kept is None
    index = torch.tensor([3, 7, 3])
    torch.manual_seed(0)
    first, second = logmels[index], logmels[index]
    assert not first.requires_grad
    assert len({tuple(one.flatten().tolist()) for one in (*first, *second)}) == 6
    torch.manual_seed(0)
    assert torch.equal(first, front_end(augment_uint8(images[index], 0.5)))
