"""The real vOICe and all other schemes, against an output of Meijer's program, and against the
formulas written out one sample at a time, with the output filter's recursion as published; then the
estimate of the image from its sound."""

import dataclasses
import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pretended_gpu import PretendedGPU
from scipy.signal import butter, sosfilt
from torch.autograd import forward_ad

import voice_translator
from vggish import ImageToLogMel
from voice_translator import (
    CURVES,
    Encoding,
    VoiceTranslator,
    estimate_image,
    find_start,
    to_pcm16,
    undo_contrast,
)

SMALL = {
    "rows": 5,
    "columns": 4,
    "seconds": 0.02,
    "lowest_hz": 500.0,
    "highest_hz": 5000.0,
    "sample_rate": 16000,
}


# The reference, in float64, row 0 at the bottom.


def slow_stream(count: int) -> list[float]:
    r, drawn = 0, []
    for _ in range(count):
        r = (9301 * r + 49297) % 233280
        drawn.append(r / 233280)
    return drawn


def slow_frequencies(e: Encoding) -> list[float]:
    """mel and bark by stepping through the scale and looking up its inverse numerically."""
    if e.curve in ("mel", "bark"):

        def scale(f: float) -> float:
            return (
                1127 * math.log(1 + f / 700) if e.curve == "mel" else 26.81 * f / (1960 + f) - 0.53
            )

        grid = np.linspace(e.lowest_hz, e.highest_hz, 200_001)
        scaled = np.array([scale(f) for f in (e.lowest_hz, e.highest_hz)])
        wanted = np.linspace(*scaled, e.rows)
        return np.interp(wanted, np.vectorize(scale)(grid), grid).tolist()
    ends = e.highest_hz / e.lowest_hz, e.highest_hz - e.lowest_hz
    ranks = [i / (e.rows - 1) for i in range(e.rows)]
    if e.curve == "exponential":
        return [e.lowest_hz * ends[0] ** rank for rank in ranks]
    if e.curve == "linear":
        return [e.lowest_hz + ends[1] * rank for rank in ranks]
    return [
        e.lowest_hz + ends[1] / 2 * (1 + math.tanh(e.tanh_slope * (i / e.rows - 0.5)))
        for i in range(e.rows)
    ]


def slow_scan(image: np.ndarray, e: Encoding) -> np.ndarray:
    """The image as time (to the right) and pitch (up) go through it: one pixel at a time."""
    turned = np.zeros((e.rows, e.columns), image.dtype)
    for (row, column), value in np.ndenumerate(image):
        time = {
            "left_to_right": column,
            "right_to_left": image.shape[1] - 1 - column,
            "top_to_bottom": row,
            "bottom_to_top": image.shape[0] - 1 - row,
        }[e.scan]
        height = image.shape[0] - 1 - row  # from the bottom
        pitch = column if e.scan in ("top_to_bottom", "bottom_to_top") else height
        turned[e.rows - 1 - pitch, time] = value
    return turned


def slow_amplitudes(image: np.ndarray, e: Encoding) -> np.ndarray:
    px = slow_scan(image, e).astype(np.float64)
    if e.negative:
        px = 255 - px
    px = px + e.contrast * (px - px.mean())
    if e.lowest_level_sounds:
        px = np.trunc(px)  # the program of 2013 keeps it as an integer
    px = np.clip(px, 0, 255)
    amplitudes = np.zeros(px.shape)
    for place, value in np.ndenumerate(px):
        if e.lowest_level_sounds:
            level = math.floor(value * e.grey_levels / 256)
            top = e.grey_levels - 1
            amplitudes[place] = 10 ** (1.5 * (level - top) / top) if value != 0 else 0
        elif e.grey_levels is not None:
            level = math.floor(value * e.grey_levels / 256 + 1e-9)
            # 16 levels: 2 dB each, 10 ^ ((L - 15) / 10)
            amplitudes[place] = (
                10 ** (15 / 10 * (level - (e.grey_levels - 1)) / (e.grey_levels - 1))
                if level
                else 0
            )
        elif value > 0:
            amplitudes[place] = 10 ** ((value / 16 - 15) / 10)
    return amplitudes[::-1]


def slow_soundscape(image: np.ndarray, e: Encoding) -> np.ndarray:
    """Before the clip and the quantiser, `(channels, samples)`."""
    A, M, N = slow_amplitudes(image, e), e.rows, e.columns
    ns = 2 * math.floor(round(e.sample_rate * e.seconds, 6) / 2)
    m, dt, s0 = ns // N, 1 / e.sample_rate, 0.5 / math.sqrt(M)
    ranks = list(range(M))
    if e.pitch_position == "bottom":
        ranks.reverse()
    if e.pitch_position == "middle":
        ranks = ranks[0::2] + ranks[1::2][::-1]
    clicks = ns // (5 * N) if e.click else 0
    stream = slow_stream(M + clicks)
    f = [slow_frequencies(e)[rank] for rank in ranks]
    phi = [2 * math.pi * stream[rank] for rank in ranks]
    out = np.zeros((2 if e.stereo else 1, ns))
    for k in range(ns):
        j, q = min(k // m, N - 1), (k % m) / (m - 1) if m > 1 else 0
        a = A[:, j]
        if e.window == "spline":
            a = (
                0.5 * (1 - q) ** 2 * A[:, max(j - 1, 0)]
                + (0.5 + q - q * q) * a
                + 0.5 * q * q * A[:, min(j + 1, N - 1)]
            )
        r = k / (ns - 1)
        if e.scan == "right_to_left":
            r = 1 - r
        theta = (r - 0.5) * 2 * math.pi / 3
        x = 0.5 * 0.20 * (theta + math.sin(theta))
        for i in range(M):
            t = k * dt
            wave = math.sin(2 * math.pi * f[i] * t + phi[i])
            if not e.stereo:
                out[0, k] += a[i] * wave
                continue
            H = min(1, 340 / f[i] / abs(x)) if x else 1
            L, R = (1, H) if theta < 0 else (H, 1)
            late = t + x / 340
            delayed = math.sin(2 * math.pi * f[i] * late + phi[i]) if late >= 0 else 0
            out[0, k] += a[i] * wave * L * (1 - 0.7 * r)
            out[1, k] += a[i] * delayed * R * (0.3 + 0.7 * r)
        if k < clicks:
            out[0, k] = (2 * stream[M + k] - 1) / s0
    if e.smoothing:
        tau1 = 0.5 / (2 * math.pi * max(f))
        tau2 = tau1**2 / 4
        g = tau1 / dt + tau2 / dt**2
        for channel in out:
            y = z = 0.0
            for k in range(ns):
                now = (channel[k] + g * y + tau2 / dt * z) / (1 + g)
                y, z = now, (now - y) / dt
                channel[k] = now
    return out * s0


def slow_pcm16(sound: np.ndarray) -> np.ndarray:
    return np.trunc(np.clip(32768 * sound + 0.5, -32768, 32767)).astype(np.int16)


def greys(e: Encoding, seed: int = 0, count: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *e.image_size)).astype(np.uint8)


# The real vOICe.


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """One output of the original program (P. B. L. Meijer, hificode, CC BY 4.0), of a picture with
    16 grey levels."""
    with np.load(Path(__file__).parent / "hificode_dot.npz") as file:
        return dict(file)


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
def test_hificode_to_the_last_bit(golden: dict[str, np.ndarray], stereo: bool) -> None:
    levels = torch.from_numpy(golden["image_levels"])
    images = torch.stack([levels * 16, levels * 16 + 15])  # the grey level is value // 16
    expected = torch.from_numpy(golden["stereo"].T.copy() if stereo else golden["mono"]).expand(
        2, *[-1] * (1 + stereo)
    )
    translator = VoiceTranslator(Encoding.hificode(stereo))
    assert (to_pcm16(translator(images)).int() - expected.int()).abs().max() <= 1
    assert to_pcm16(translator.double()(images)).equal(expected)


def test_hificode_is_the_published_preset() -> None:
    e = Encoding.hificode()
    assert (e.rows, e.columns, e.lowest_hz, e.highest_hz, e.curve) == (
        64,
        64,
        500,
        5000,
        "exponential",
    )
    assert (e.sample_rate, e.seconds, e.samples, e.contrast, e.grey_levels) == (
        44100,
        1.05,
        46304,
        0,
        16,
    )
    assert len(e.click_samples()) == 144
    assert VoiceTranslator(Encoding.hificode(stereo=True))(torch.zeros(2, 64, 64)).shape == (
        2,
        2,
        46304,
    )


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
def test_the_program_of_2013_to_the_last_bit(stereo: bool) -> None:
    """On a smaller grid, which the slow reference can compute. The images have greys of 1 to 15,
    and greys that the contrast clips."""
    whole = Encoding.hificode_2013(stereo)
    assert (whole.rows, whole.columns, whole.contrast, whole.grey_levels) == (64, 176, 2, 16)
    e = dataclasses.replace(whole, rows=6, columns=11, seconds=0.06)
    images = greys(e, seed=3, count=3)
    images[1] //= 12  # faint
    images[2] = np.where(images[2] < 128, 100 + images[2] // 32, 110)  # around their mean
    translator = VoiceTranslator(e).double()
    expected = np.stack([slow_pcm16(slow_soundscape(image, e)) for image in images])
    sound = to_pcm16(translator(torch.from_numpy(images))).numpy()
    np.testing.assert_array_equal(sound.reshape(expected.shape), expected)
    sound = to_pcm16(translator(torch.from_numpy(images) / 255.0)).numpy()  # of floating point
    assert np.abs(sound.reshape(expected.shape).astype(int) - expected).max() <= 1
    older = VoiceTranslator(dataclasses.replace(e, lowest_level_sounds=False)).double()
    assert (to_pcm16(older(torch.from_numpy(images))).numpy() != sound).mean() > 0.2


def test_since_2013_only_black_is_silent() -> None:
    e = Encoding.hificode_2013()
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    small = dataclasses.replace(e, rows=16, columns=16, contrast=0.0)
    for images in (ramp, ramp / 255, ramp.double() / 255):
        amplitudes = VoiceTranslator(small).double().amplitudes(images).flatten()
        expected = 10 ** ((torch.arange(256) // 16 - 15) / 10).double()
        expected[0] = 0
        torch.testing.assert_close(amplitudes, expected)
    with pytest.raises(ValueError, match="lowest_level_sounds needs grey_levels"):
        Encoding(lowest_level_sounds=True)


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
@pytest.mark.parametrize("curve", ["exponential", "linear"])
def test_loud_soundscapes_clip_as_in_the_program(curve: str, stereo: bool) -> None:
    """White clips on both sides, and the quantiser gives -32768 there, not -32767."""
    e = Encoding(
        **SMALL,
        contrast=0.0,
        grey_levels=16,
        window="spline",
        smoothing=True,
        click=True,
        curve=curve,
        stereo=stereo,
    )
    image = np.full((1, 5, 4), 255, np.uint8)
    image[0, 2, 1] = 0
    loud = 2.5 * slow_soundscape(image[0], e)  # five rows alone stay below the clip
    expected = slow_pcm16(loud)
    assert expected.min() == -32768
    assert expected.max() == 32767
    translator = VoiceTranslator(e).double()
    sound = voice_translator._clip(
        2.5 * translator.sound(translator.amplitudes(torch.from_numpy(image)))
    )[0]
    assert sound.abs().max() == 1
    np.testing.assert_array_equal(to_pcm16(sound).numpy(), expected)


def test_the_quantiser() -> None:
    step = 1 / 32768
    sound = torch.tensor(
        [
            0,
            0.4 * step,
            0.6 * step,
            -0.4 * step,
            -1.4 * step,
            -1.6 * step,
            1,
            -1,
            0.5,
            -(1 - 2**-24),
        ]
    )
    # Towards zero of v + 0.5: 0.6 -> 1, -1.4 -> trunc(-0.9) = 0, -1.6 -> trunc(-1.1) = -1
    assert to_pcm16(sound).tolist() == [0, 0, 1, 0, 0, -1, 32767, -32768, 16384, -32767]
    for wrong in (torch.tensor([math.nan]), torch.tensor([math.inf]), torch.tensor([1])):
        with pytest.raises(ValueError, match="takes soundscapes of finite floating-point numbers"):
            to_pcm16(wrong)


def test_the_quantizer_in_parts_equals_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the ends, and around each half step, also in float32, where a sum may round."""
    monkeypatch.setattr(voice_translator, "PCM_CHUNK", 1000)
    halves = (torch.arange(-32769, 32769) + 0.5) / 32768
    for dtype in (torch.float32, torch.float64):
        near = [halves.to(dtype)]
        for end in (-2.0, 2.0):
            near += [torch.nextafter(near[0], torch.tensor(end, dtype=dtype)), -near[0]]
        sound = torch.cat([*near, torch.tensor([-1, 1, 0], dtype=dtype)]).clamp(-1, 1)
        exact = torch.where(sound <= -1, -2, sound.double())
        expected = (32768 * exact + 0.5).clamp(-32768, 32767).trunc().to(torch.int16)
        assert to_pcm16(sound).equal(expected)
        assert to_pcm16(sound.view(-1, 3).T).equal(expected.view(-1, 3).T)
    assert to_pcm16(torch.zeros(2, 0)).shape == (2, 0)


# All schemes.

schemes = st.builds(
    lambda stereo, **settings: Encoding(
        stereo=stereo and not settings["scan"].endswith(("bottom", "top")), **settings
    ),
    rows=st.integers(2, 6), columns=st.integers(1, 5), seconds=st.sampled_from([0.004, 0.009]),
    lowest_hz=st.sampled_from([80.0, 500.0]), highest_hz=st.sampled_from([3000.0, 5500.0]),
    sample_rate=st.sampled_from([11025, 16000, 22050]),
    curve=st.sampled_from(["exponential", "linear", "tanh", "mel", "bark"]),
    scan=st.sampled_from(["left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top"]),
    pitch_position=st.sampled_from(["top", "middle", "bottom"]),
    contrast=st.sampled_from([0.0, 2.0]), negative=st.booleans(),
    grey_levels=st.sampled_from([None, 2, 16, 256]),
    window=st.sampled_from(["rectangular", "spline"]), click=st.booleans(),
    smoothing=st.booleans(), stereo=st.booleans(),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(e=schemes, seed=st.integers(0, 1000))
def test_every_scheme_agrees_with_the_formulas(e: Encoding, seed: int) -> None:
    images = greys(e, seed, 2)
    expected = np.stack([slow_soundscape(image, e) for image in images]).clip(-1, 1)
    expected = expected if e.stereo else expected[:, 0]
    translator = VoiceTranslator(e)
    images = torch.from_numpy(images)
    np.testing.assert_allclose(translator(images), expected, rtol=0, atol=1e-5)
    # The lookup of mel and bark in the reference is right to some 1e-4 Hz.
    exact = 1e-6 if e.curve in ("mel", "bark") else 1e-11
    np.testing.assert_allclose(translator.double()(images), expected, rtol=0, atol=exact)


@settings(max_examples=20, deadline=None)
@given(e=schemes, seed=st.integers(0, 1000))
def test_a_batch_equals_its_images_and_uint8_equals_floating_point(e: Encoding, seed: int) -> None:
    images = torch.from_numpy(greys(e, seed, 3))
    translator = VoiceTranslator(e)
    together = translator(images)
    torch.testing.assert_close(
        torch.cat([translator(image[None]) for image in images]), together, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(translator(images / 255), together, rtol=0, atol=1e-5)


def dots(e: Encoding, places: list[tuple[int, int]]) -> torch.Tensor:
    """What each ear hears of single dots, without the click: `(dots, channels, samples)`. Places
    are (row, column), where columns follow in time and the top row has the highest pitch."""
    e = dataclasses.replace(e, scan="left_to_right")
    images = torch.zeros(1 + len(places), e.rows, e.columns, dtype=torch.uint8)
    for image, place in zip(images[1:], places, strict=True):
        image[place] = 255
    sound = VoiceTranslator(e)(255 - images if e.negative else images).view(
        len(images), -1, e.samples
    )
    return sound[1:] - sound[:1]


@settings(max_examples=20, deadline=None)
@given(e=schemes)
def test_black_is_silent_in_every_scheme(e: Encoding) -> None:
    black = torch.full((1, 9, 9), 255 if e.negative else 0, dtype=torch.uint8)
    sound = VoiceTranslator(e)(black).view(-1, e.samples)
    ringing = 100 if e.smoothing else 0
    assert (sound[:, len(e.click_samples()) + ringing :].abs() < 1e-9).all()
    assert e.click or sound.count_nonzero() == 0
    assert not e.stereo or sound[1].count_nonzero() == 0


@settings(max_examples=20, deadline=None)
@given(e=schemes, row=st.integers(0, 5))
def test_right_is_later_in_every_scheme(e: Encoding, row: int) -> None:
    power = dots(e, [(row % e.rows, column) for column in range(e.columns)])[:, 0].double().square()
    middle = (power * torch.arange(e.samples)).sum(1) / power.sum(1)  # in time
    assert (middle.diff() > 0).all()


@settings(max_examples=20, deadline=None)
@given(e=schemes)
def test_higher_is_higher_in_every_scheme(e: Encoding) -> None:
    """Each row has its pitch, from the bottom row up; and these rise, but for the schemes that say
    otherwise."""
    e = dataclasses.replace(e, seconds=0.3, columns=2)  # long enough to tell pitches apart
    sound = dots(e, [(row, 0) for row in range(e.rows)])[:, 0]  # the left ear hears without delay
    spectrum = torch.fft.rfft(sound * torch.hann_window(e.samples), 1 << 15).abs()
    heard = spectrum.argmax(1).flip(0) * e.sample_rate / (1 << 15)
    np.testing.assert_allclose(heard, e.frequencies(), rtol=0.005, atol=10)
    if e.pitch_position != "middle":
        assert (heard.diff() > 0).all() if e.pitch_position == "top" else (heard.diff() < 0).all()


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
def test_a_large_batch_is_translated_in_chunks_that_change_nothing(
    monkeypatch: pytest.MonkeyPatch, stereo: bool
) -> None:
    e = Encoding(**SMALL, window="spline", stereo=stereo, smoothing=True, click=True)
    images = torch.from_numpy(greys(e, count=43)) / 255
    translator = VoiceTranslator(e)
    whole = translator(images)
    # One column of eight images, three powers of it; the filter then takes six soundscapes and two.
    monkeypatch.setattr(
        voice_translator, "CPU_CHUNK", 8 * 3 * translator.channels * e.samples_per_column
    )
    monkeypatch.setattr(voice_translator, "IMAGE_CHUNK", 8)  # eight images, eight, ... and three
    torch.testing.assert_close(translator(images), whole, rtol=0, atol=1e-6)
    leaf = images.clone().requires_grad_()
    parts = translator(leaf)
    torch.testing.assert_close(parts.detach(), whole, rtol=0, atol=1e-6)
    assert (torch.autograd.grad(parts.square().sum(), leaf)[0].flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_grey_levels_of_all_256_values(levels: int) -> None:
    e = Encoding(
        **{**SMALL, "rows": 256, "columns": 1, "highest_hz": 5000.0},
        contrast=0.0,
        grey_levels=levels,
    )
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1)
    translator = VoiceTranslator(e)
    level = (values[0, :, 0].int() * levels) // 256
    expected = torch.where(level > 0, 10 ** (1.5 * (level / (levels - 1) - 1)), 0)
    for images in (values, values / 255, values.double() / 255):
        torch.testing.assert_close(translator.amplitudes(images)[0, :, 0], expected)


def test_a_filter_that_would_fill_the_memory_is_refused() -> None:
    low = {"lowest_hz": 0.1, "highest_hz": 0.1}
    assert VoiceTranslator(Encoding(**low)).smoother.numel() == 0
    with pytest.raises(
        ValueError,
        match=r"the output filter for 0.1 Hz .* raise highest_hz, lower sample_rate, or leave out",
    ):
        Encoding(**low, smoothing=True)
    longest = Encoding(
        rows=1, columns=1, seconds=1.0, lowest_hz=16.0, highest_hz=16.0, smoothing=True
    )
    assert VoiceTranslator(longest).double().smoother.shape[1] < 10_000


def test_black_is_silent_but_for_the_click_in_the_left_ear() -> None:
    e = Encoding.hificode(stereo=True)
    sound = VoiceTranslator(e)(torch.zeros(1, 64, 64))[0]
    assert sound[0, :144].abs().max() > 0.3
    assert sound[0, 200:].abs().max() < 1e-9  # the filter rings
    assert sound[1].count_nonzero() == 0


def test_a_negative_sounds_as_its_positive() -> None:
    images = torch.from_numpy(greys(Encoding(**SMALL)))
    positive, negative = (
        VoiceTranslator(Encoding(**SMALL)),
        VoiceTranslator(Encoding(**SMALL, negative=True)),
    )
    torch.testing.assert_close(negative(255 - images), positive(images), rtol=0, atol=1e-6)


def test_a_dot_on_the_left_is_louder_and_earlier_in_the_left_ear() -> None:
    """By the head's width: 60 degrees are 0.2 / 2 * (pi / 3 + sin(pi / 3)) / 340 s, or 24.8 samples
    at 44.1 kHz."""
    e = Encoding(
        rows=9,
        columns=40,
        lowest_hz=300.0,
        highest_hz=1000.0,
        sample_rate=44100,
        contrast=0.0,
        stereo=True,
    )
    image = torch.zeros(2, 9, 40)
    image[0, 4, 0], image[1, 4, 39] = 1, 1
    left_dot, right_dot = VoiceTranslator(e)(image)
    for near, far, here in (
        (left_dot[0], left_dot[1], slice(100, 1100)),
        (right_dot[1], right_dot[0], slice(-1100, -100)),
    ):
        assert near[here].square().mean() > 4 * far[here].square().mean()
    delays = range(-40, 41)
    match = [(left_dot[0, 100:1000] * left_dot[1, 100 + d : 1000 + d]).sum() for d in delays]
    assert delays[int(torch.stack(match).argmax())] in (23, 24, 25)


@pytest.mark.parametrize("curve", ["mel", "bark"])
def test_mel_and_bark_run_from_the_lowest_to_the_highest_in_equal_steps(curve: str) -> None:
    hz = Encoding(curve=curve).frequencies()
    np.testing.assert_allclose(hz[[0, -1]], [80, 7600], rtol=1e-12)
    np.testing.assert_allclose(hz, slow_frequencies(Encoding(curve=curve)), rtol=1e-6)
    assert (hz.diff().diff() > 0).all()  # ever wider apart, in Hz


# Precision, and where it runs.


def test_float64_constants_are_computed_again_and_half_precision_keeps_float32() -> None:
    e = Encoding(**SMALL)
    translator = VoiceTranslator(e)
    single = translator.bank.clone()
    for cast in (torch.bfloat16, torch.float16, torch.float32):
        assert translator.to(cast).bank.equal(single)
    exact = translator.to(torch.float64).bank
    assert exact.dtype == torch.float64
    assert (exact - single).abs().max() > 1e-10  # a cast would have kept float32's errors
    assert translator.float().bank.equal(single)
    ear = ImageToLogMel(e, frames=16).to(torch.bfloat16)  # as a part of a model that is cast
    assert ear.translator.bank.equal(single)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "window": "spline",
            "stereo": True,
            "smoothing": True,
            "click": True,
            "negative": True,
            "contrast": 0.5,
        },
    ],
    ids=["the paper's", "all cues"],
)
def test_gradients_in_float64(changes: dict) -> None:
    e = Encoding(**{**SMALL, "rows": 3, "columns": 3, "seconds": 0.004, **changes})
    random = torch.Generator().manual_seed(0)
    image = (
        0.45 + 0.1 * torch.rand(1, 3, 3, generator=random, dtype=torch.float64)
    ).requires_grad_()
    assert torch.autograd.gradcheck(VoiceTranslator(e).double(), (image,))


def test_straight_through_passes_the_rounding_to_grey_levels_and_changes_no_sound() -> None:
    translator = VoiceTranslator(Encoding(**SMALL, grey_levels=16))
    image = (torch.from_numpy(greys(Encoding(**SMALL))) / 255).requires_grad_()
    sound = translator(image)
    assert (
        not sound.requires_grad or torch.autograd.grad(sound.sum(), image)[0].count_nonzero() == 0
    )
    passing = translator(image, straight_through=1.0)
    assert passing.equal(sound)
    assert torch.autograd.grad(passing.square().sum(), image)[0].count_nonzero() > 10


def test_compiles_as_one_graph_and_autocast_leaves_the_sound_alone() -> None:
    e = Encoding(**SMALL, window="spline", stereo=True, smoothing=True, click=True)
    translator, images = VoiceTranslator(e), torch.from_numpy(greys(e, count=2))
    expected = translator(images)
    compiled = torch.compile(translator, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert translator(images).equal(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")
@settings(max_examples=20, deadline=None)
@given(e=schemes, seed=st.integers(0, 1000))
def test_every_scheme_sounds_the_same_on_the_gpu(e: Encoding, seed: int) -> None:
    images, translator = torch.from_numpy(greys(e, seed, 3)), VoiceTranslator(e)
    expected = translator(images)
    torch.testing.assert_close(
        translator.to("cuda")(images.to("cuda")).cpu(), expected, rtol=0, atol=1e-5
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")
@pytest.mark.parametrize("playback", [False, True], ids=["alone", "played"])
def test_the_gpu_gives_the_sound_of_the_cpu(playback: bool) -> None:
    e = dataclasses.replace(Encoding.hificode(stereo=True), **(PLAYBACK if playback else {}))
    images = torch.from_numpy(greys(e, count=3))
    translator = VoiceTranslator(e)
    expected = translator(images)
    torch.testing.assert_close(
        translator.to("cuda")(images.to("cuda")).cpu(), expected, rtol=0, atol=1e-5
    )
    exact = VoiceTranslator(e).double()(images)
    torch.testing.assert_close(
        VoiceTranslator(e).double().to("cuda")(images.to("cuda")).cpu(), exact, rtol=0, atol=1e-11
    )


@pytest.mark.parametrize(
    "scan", ["left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top"]
)
def test_the_scan_decides_which_dot_sounds_first_and_which_is_highest(scan: str) -> None:
    e = Encoding(rows=9, columns=9, seconds=0.3, scan=scan, contrast=0.0)
    images = torch.zeros(4, 9, 9, dtype=torch.uint8)
    for image, place in zip(images, ((4, 0), (4, 8), (0, 4), (8, 4)), strict=True):
        image[place] = 255
    sound = VoiceTranslator(e)(images)
    onset = (sound.abs() > 1e-3).int().argmax(1)
    pitch = torch.fft.rfft(sound).abs().argmax(1)
    left, right, top, bottom = range(4)
    first, last, low, high = {
        "left_to_right": (left, right, bottom, top),
        "right_to_left": (right, left, bottom, top),
        "top_to_bottom": (top, bottom, left, right),
        "bottom_to_top": (bottom, top, left, right),
    }[scan]
    assert onset[first] == 0 and onset[last] > 0.8 * e.samples
    assert pitch[low] < 0.1 * pitch[high]


def test_a_vertical_scan_resizes_the_width_to_rows_and_refuses_stereo() -> None:
    e = Encoding(rows=5, columns=4, seconds=0.02, scan="top_to_bottom")
    image = torch.from_numpy(greys(e))  # 4 x 5
    assert VoiceTranslator(e).resized(image).equal(image.float())
    assert VoiceTranslator(e).amplitudes(image).shape == (1, 5, 4)
    assert VoiceTranslator(e)(image.repeat_interleave(2, 2)).shape == (1, e.samples)
    with pytest.raises(ValueError, match="stereo moves with a horizontal scan, but scan is bottom"):
        Encoding(scan="bottom_to_top", stereo=True)


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
@pytest.mark.parametrize(("rate", "band"), [(16000, (300, 3400)), (22050, (60.0, 9000.0))])
def test_the_loudspeaker_is_the_butterworth_band_pass(
    rate: int, band: tuple[float, float], stereo: bool
) -> None:
    """The reference filters one sample after another."""
    e = Encoding(rows=5, columns=4, seconds=0.1, sample_rate=rate, stereo=stereo)
    images = torch.from_numpy(greys(e, count=3))
    through = dataclasses.replace(e, speaker_band_hz=band)
    sections = butter(4, band, "bandpass", output="sos", fs=rate)
    expected = sosfilt(sections, VoiceTranslator(e).double()(images).numpy(), axis=-1).clip(-1, 1)
    np.testing.assert_allclose(VoiceTranslator(through)(images), expected, rtol=0, atol=1e-5)
    exact = VoiceTranslator(through).double()(images)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-8)


def slow_noise(image: np.ndarray, count: int) -> np.ndarray:
    """The noise of power 1 of an image, of which each pixel moves the begin in the recording."""
    recording, begin = np.random.RandomState(0).standard_normal(2**20), 0
    for number, value in enumerate(image.flat):
        begin += int(value) * (number * 2654435761 + 1)
    return np.array([recording[(begin + k) % 2**20] for k in range(count)])


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
@pytest.mark.parametrize("snr", [0.0, 20.0, -3.0])
def test_the_noise_has_the_ratio_that_was_set(snr: float, stereo: bool) -> None:
    e = Encoding(rows=5, columns=4, seconds=0.1, stereo=stereo)
    images = torch.from_numpy(greys(e, count=3) // 2)
    sound = VoiceTranslator(e).double()(images).view(3, -1).numpy()
    noises = np.stack([slow_noise(image, sound.shape[1]) for image in images.numpy()])
    level = np.sqrt(np.mean(sound**2, axis=1, keepdims=True)) / 10 ** (snr / 20)
    expected = (sound + level * noises).clip(-1, 1)
    noisy = VoiceTranslator(dataclasses.replace(e, noise_snr_db=snr))
    np.testing.assert_allclose(noisy(images).view(3, -1), expected, rtol=0, atol=1e-5)
    exact = noisy.double()(images).view(3, -1)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-12)
    # Each image has its own noise, always the same, however many are translated together.
    assert noisy(images[1:2]).view(1, -1).equal(exact[1:2])
    assert abs(np.corrcoef(noises)[0, 1]) < 0.1


def test_silence_has_no_noise_and_the_playback_passes_gradients() -> None:
    e = Encoding(**SMALL, contrast=0.0, speaker_band_hz=(300, 3400), noise_snr_db=10.0)
    images = torch.rand(2, 5, 4, dtype=torch.float64)
    images[1] = 0
    translator = VoiceTranslator(e).double()
    assert translator(images)[1].count_nonzero() == 0
    leaf = images[:1].clone().requires_grad_()
    sound = translator(leaf)
    weights = torch.randn(sound.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((sound * weights).sum(), leaf)
    # The noise passes no gradient: it is that of the sound through the loudspeaker alone.
    quiet = VoiceTranslator(dataclasses.replace(e, noise_snr_db=None)).double()
    (expected,) = torch.autograd.grad((quiet(leaf) * weights).sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_the_log_mel_is_of_the_mean_of_both_ears() -> None:
    e = Encoding(stereo=True)
    ear, images = ImageToLogMel(e), torch.from_numpy(greys(e))
    heard = ear(images)
    assert heard.shape == (1, 1, 112, 64)
    assert heard.equal(ear.log_mel(VoiceTranslator(e)(images).mean(1)))


def test_examples_of_the_docstring() -> None:
    done = doctest.testmod(voice_translator)
    assert done.attempted >= 5
    assert done.failed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grey_levels": 1}, "grey_levels is 1, but must be a whole number of at least 2"),
        ({"grey_levels": 16.0}, "grey_levels is 16.0, but must be a whole number"),
        ({"window": "hann"}, "window is 'hann', but must be one of rectangular, spline"),
        ({"scan": "up"}, "scan is 'up', but must be one of left_to_right, right_to_left"),
        ({"noise_snr_db": math.inf}, "noise_snr_db is inf, but must be a number from -100"),
        *[
            ({"speaker_band_hz": band}, "speaker_band_hz is .*, but must be two numbers, from 20")
            for band in (
                (3400.0, 300.0),
                (300.0, 301.0),
                (300.0,),
                (0.0, 300.0),
                (300.0, 8000.0),
                300.0,
                "ab",
            )
        ],
        *[
            ({name: 1}, f"{name} is 1, but must be True or False")
            for name in ("negative", "click", "smoothing", "stereo")
        ],
    ],
)
def test_an_impossible_encoding_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"encoding: .*{message}"):
        Encoding(**change)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 5, 4), math.nan), "images range from nan to nan; the translator takes"),
        (torch.linspace(-1, 1, 20).view(1, 5, 4), "images range from -1 to 1; the translator"),
        (torch.full((1, 5, 4), 255.0), "images range from 255 to 255; the translator takes"),
        (np.full((1, 5, 4), 255.0), "images range from 255 to 255"),
        (Image.new("L", (4, 5)), "images are Image; the translator takes a tensor or a NumPy"),
        ([[[0.0]]], "images are list; the translator takes a tensor or a NumPy array"),
        (np.zeros((1, 5, 4), np.int16), "images are torch.int16; the translator takes uint8"),
    ],
)
def test_an_impossible_image_is_refused(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VoiceTranslator(Encoding(**SMALL))(images)


def test_the_range_is_validated_on_the_cpu_or_if_demanded() -> None:
    translator, images = VoiceTranslator(Encoding(**SMALL)), torch.full((1, 5, 4), 2.0)
    assert translator(images, validate=False).isfinite().all()
    with PretendedGPU():
        translator.to("cuda:0")
        assert translator(images.to("cuda:0")).isfinite().all()
        with pytest.raises(ValueError, match="images range from 2 to 2"):
            translator(images.to("cuda:0"), validate=True)


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_a_numpy_array_is_an_image(kind: type) -> None:
    e = Encoding(**SMALL)
    images = greys(e, count=2).astype(kind) / (1 if kind is np.uint8 else kind(255))
    images = images.astype(kind)
    images.setflags(write=False)
    translator = VoiceTranslator(e)
    assert translator(images).equal(translator(torch.tensor(images)))


def test_numpy_numbers_are_numbers() -> None:
    e = Encoding(rows=np.int64(28), seconds=np.float64(1.05), click=np.bool_(True))
    assert e == Encoding(click=True)
    assert type(e.rows) is int and type(e.click) is bool
    assert Encoding(contrast=np.float32(0.5)).contrast == 0.5
    with pytest.raises(ValueError, match="rows is 28.0, but must be a whole number"):
        Encoding(rows=np.float32(28))


def test_a_curve_is_one_entry_and_an_unknown_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in CURVES:
        assert Encoding(curve=name).frequencies().shape == (28,)
    with pytest.raises(ValueError, match="must be one of exponential, linear, tanh, mel, bark"):
        Encoding(curve="quadratic")
    monkeypatch.setitem(CURVES, "quadratic", lambda position, e: 80 + 1000 * position**2)
    assert Encoding(curve="quadratic").frequencies()[-1] == 1080


ALL_CUES = {"window": "spline", "stereo": True, "smoothing": True, "click": True}
PLAYBACK = {"scan": "right_to_left", "speaker_band_hz": (300.0, 3400.0), "noise_snr_db": 10.0}
by_cues = pytest.mark.parametrize(
    "changes", [{}, ALL_CUES, PLAYBACK], ids=["the paper's", "all cues", "playback"]
)


@by_cues
def test_transforms_of_torch_func(changes: dict) -> None:
    e = Encoding(**{**SMALL, "sample_rate": 16040, **changes})
    translator = VoiceTranslator(e).double()
    images = 0.4 + 0.1 * torch.from_numpy(greys(e, count=3)).double() / 255
    expected = torch.autograd.functional.jacobian(translator, images[:1])
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(translator)(images[:1]), expected)
    one_by_one = torch.func.vmap(lambda image: translator(image[None])[0])(images)
    torch.testing.assert_close(one_by_one, translator(images))
    with forward_ad.dual_level():
        sound = translator(forward_ad.make_dual(images[:1], images[:1]))
        tangent = forward_ad.unpack_dual(sound).tangent
    torch.testing.assert_close(
        tangent.flatten(), expected.flatten(0, -4).flatten(1) @ images[0].flatten()
    )


@by_cues
@pytest.mark.parametrize("size", [(5, 4), (9, 7)], ids=["same", "larger"])
def test_export_with_a_dynamic_batch(changes: dict, size: tuple[int, int]) -> None:
    translator = VoiceTranslator(Encoding(**{**SMALL, **changes}))
    images = torch.rand(70, *size, generator=torch.Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")}, None, None)
    exported = torch.export.export(translator, (images[:2],), dynamic_shapes=batch[:1])
    for count in (1, 3, 70):
        sound = exported.module()(images[:count])
        torch.testing.assert_close(sound, translator(images[:count]), rtol=0, atol=1e-6)


def test_a_constant_that_was_made_in_inference_mode_takes_part_in_gradients() -> None:
    voice_translator._shrinking.cache_clear()
    with torch.inference_mode():
        voice_translator._shrunk_by_products(torch.rand(1, 1, 8, 8), (4, 4))
    images = torch.rand(1, 1, 8, 8, requires_grad=True)
    voice_translator._shrunk_by_products(images, (4, 4)).sum().backward()
    assert images.grad.count_nonzero() == 64


# The image from its sound.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stereo": True, "window": "spline", "smoothing": True, "click": True, "negative": True},
        {"curve": "linear", "pitch_position": "middle"},
        {"scan": "top_to_bottom"},
        {"scan": "bottom_to_top", "negative": True},
        {"scan": "right_to_left", "stereo": True},
    ],
    ids=["plain", "all cues", "middle", "top to bottom", "bottom to top", "right to left"],
)
def test_the_image_is_found_in_its_sound(changes: dict) -> None:
    e = Encoding(**{**SMALL, "columns": 6, "seconds": 0.3, "contrast": 0.0, **changes})
    images = torch.from_numpy(greys(e, seed=1)).clamp(min=30)
    found = estimate_image(to_pcm16(VoiceTranslator(e)(images))[0] / 32768, e)
    torch.testing.assert_close(found, images[0].double() / 255, rtol=0, atol=0.02)


def test_grey_levels_are_found_exactly_and_another_scheme_gives_another_image() -> None:
    e = Encoding(**{**SMALL, "seconds": 0.3}, contrast=0.0, grey_levels=16, smoothing=True)
    images = torch.from_numpy(greys(e, seed=2))
    sound = VoiceTranslator(e)(images)[0]
    assert estimate_image(sound, e).mul(15).round().equal((images[0] // 16).double())
    other = Encoding(
        **{**SMALL, "seconds": 0.3}, contrast=0.0, grey_levels=16, pitch_position="bottom"
    )
    assert not estimate_image(sound, other).mul(15).round().equal((images[0] // 16).double())


@pytest.mark.parametrize(
    "sound",
    [torch.zeros(100), torch.zeros(2, 320), torch.zeros(320).int(), torch.full((320,), math.nan)],
)
def test_a_sound_of_another_scheme_is_refused(sound: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="give the encoding that it was made with"):
        estimate_image(sound, Encoding(**SMALL))


def test_a_sound_that_is_clipped_throughout_is_refused() -> None:
    e = Encoding(**SMALL)
    with pytest.raises(ValueError, match="clipped in more than half of its samples"):
        estimate_image(torch.randn(e.samples).sign(), e)


@pytest.mark.parametrize("negative", [False, True])
def test_the_contrast_is_undone_where_it_did_not_saturate(negative: bool) -> None:
    e = Encoding(**{**SMALL, "columns": 6, "seconds": 0.3}, contrast=1.0, negative=negative)
    grey = 100 + torch.from_numpy(greys(e, seed=4)).long() % 40
    found, lost = undo_contrast(estimate_image(VoiceTranslator(e)(grey.byte())[0], e), e)
    assert not lost.any()
    torch.testing.assert_close(found, grey[0].double() / 255, rtol=0, atol=0.01)
    grey[0, 0, 0], grey[0, 1, 1] = 255, 0  # beyond the range
    found, lost = undo_contrast(estimate_image(VoiceTranslator(e)(grey.byte())[0], e), e)
    assert lost.sum() == 2 and lost[0, 0] and lost[1, 1]
    torch.testing.assert_close(found, grey[0].double() / 255, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "changes",
    [{}, ALL_CUES, {"curve": "mel", "pitch_position": "middle", "negative": True}],
    ids=["the paper's", "all cues", "middle"],
)
def test_the_start_of_a_soundscape_is_found_in_a_recording(changes: dict) -> None:
    e = Encoding(rows=9, columns=7, seconds=0.3, highest_hz=5000.0, **changes)
    sound = VoiceTranslator(e)(torch.from_numpy(greys(e)))[0]
    random = torch.Generator().manual_seed(0)
    recording = 0.01 * torch.randn(*sound.shape[:-1], e.samples + 3000, generator=random)
    recording[..., 1234 : 1234 + e.samples] += sound
    assert find_start(recording, e) == 1234
    with pytest.raises(ValueError, match="fits nowhere in the recording; cut the recording to"):
        find_start(torch.randn(e.samples + 500, generator=random), e)
    twice = torch.cat([sound, sound], -1)
    with pytest.raises(ValueError, match="fits in several places in the recording"):
        find_start(twice, e)
