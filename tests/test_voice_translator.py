"""The translator against its formulas, written out slowly in float64, and the properties of the
sound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voice_translator import Encoding, VoiceTranslator

# float32 amplitudes are right to some 1e-6, and up to 64 of them of at most 0.12 are added: a third
# of a 16-bit step.
SOUND_TOLERANCE = 1e-5
SMALL = Encoding(rows=7, columns=5, seconds=0.05)  # for what does not depend on the size


# The reference, in float64, one sample at a time, row 0 at the bottom as in the formulas.


def slow_frequencies(e: Encoding) -> list[float]:
    rows, low, high = e.rows, e.lowest_hz, e.highest_hz
    if e.curve == "exponential":
        return [low * (high / low) ** (i / (rows - 1)) for i in range(rows)]
    if e.curve == "linear":
        return [low + (high - low) * i / (rows - 1) for i in range(rows)]
    slope = e.tanh_slope / rows  # of one row
    return [low + (high - low) / 2 * (1 + math.tanh(slope * (i - rows / 2))) for i in range(rows)]


def slow_phases(rows: int) -> list[float]:
    phases, r = [], 0
    while len(phases) < rows:
        r = (9301 * r + 49297) % 233280
        phases.append(2 * math.pi * (r / 233280))
    return phases


def slow_order(e: Encoding) -> list[int]:
    """Which frequency each row takes: for the middle, even ranks going up, odd ones coming down."""
    if e.pitch_position == "top":
        return list(range(e.rows))
    if e.pitch_position == "bottom":
        return list(reversed(range(e.rows)))
    up, down = [], []
    for rank in range(e.rows):
        (down if rank % 2 else up).append(rank)
    return up + down[::-1]


def slow_amplitudes(image: np.ndarray, e: Encoding) -> np.ndarray:
    """`image` of grey levels 0..255, top row first -> amplitudes, top row first."""
    mean = sum(float(px) for px in image.flat) / image.size
    amplitudes = np.zeros(image.shape)
    for place, px in np.ndenumerate(image.astype(np.float64)):
        px = min(max(px + e.contrast * (px - mean), 0.0), 255.0)
        amplitudes[place] = 10 ** ((px / 16 - 15) / 10) if px != 0 else 0.0
    return amplitudes


def slow_soundscape(image: np.ndarray, e: Encoding) -> np.ndarray:
    """The sum over the rows at every sample, before the clip to [-1, 1]."""
    order = slow_order(e)
    f = np.array(slow_frequencies(e))[order]
    phi = np.array(slow_phases(e.rows))[order]
    amplitudes = slow_amplitudes(image, e)[::-1]  # from here on row 0 is the bottom one
    # In whole milliseconds, since 16000 * 1.05 is 16800.000000000004.
    ns = 2 * (e.sample_rate * round(1000 * e.seconds) // 2000)
    m = ns // e.columns
    sound = np.zeros(ns)
    for k in range(ns):
        j = min(k // m, e.columns - 1)
        sound[k] = np.sum(amplitudes[:, j] * np.sin(2 * np.pi * f * (k / e.sample_rate) + phi))
    return sound * 0.5 / math.sqrt(e.rows)


def digitlike(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random grey levels, two thirds of them black: uint8."""
    random = np.random.default_rng(seed)
    return (random.integers(1, 256, shape) * (random.random(shape) < 1 / 3)).astype(np.uint8)


def translate(e: Encoding, images: np.ndarray) -> torch.Tensor:
    return VoiceTranslator(e)(torch.from_numpy(images))


# Agreement with the formulas.


@pytest.mark.parametrize(
    "e",
    [
        Encoding(),
        Encoding(sample_rate=22050),  # a tail of 24 samples
        Encoding(rows=64, columns=64, sample_rate=22050),  # a tail of 48
        Encoding(seconds=2.0, curve="tanh"),
        Encoding(
            rows=27, columns=13, seconds=0.4, pitch_position="middle", contrast=0.5
        ),  # both odd, a tail of 4
        Encoding(
            rows=9, columns=31, seconds=0.2, sample_rate=11025, highest_hz=5000.0, contrast=0.0
        ),  # a tail of 4
    ],
    ids=lambda e: (
        f"{e.rows}x{e.columns}-{e.sample_rate}Hz-{e.seconds}s-{e.curve}-{e.pitch_position}"
    ),
)
def test_agrees_with_the_formulas(e: Encoding) -> None:
    images = digitlike((2, e.rows, e.columns))
    expected = np.stack([slow_soundscape(image, e).clip(-1, 1) for image in images])
    np.testing.assert_allclose(translate(e, images), expected, rtol=0, atol=SOUND_TOLERANCE)


@pytest.mark.parametrize("curve", ["exponential", "linear", "tanh"])
@pytest.mark.parametrize("pitch_position", ["top", "middle", "bottom"])
@pytest.mark.parametrize("rows", [8, 9])
def test_every_scheme_agrees_with_the_formulas(curve: str, pitch_position: str, rows: int) -> None:
    e = Encoding(rows=rows, columns=6, seconds=0.1, curve=curve, pitch_position=pitch_position)
    image = digitlike((rows, 6))
    np.testing.assert_allclose(
        translate(e, image[None])[0], slow_soundscape(image, e), rtol=0, atol=SOUND_TOLERANCE
    )


@pytest.mark.parametrize("contrast", [0.0, 1.0, 2.0])
def test_amplitudes_agree_with_the_formulas(contrast: float) -> None:
    e = Encoding(contrast=contrast)
    image = digitlike((28, 28))
    amplitudes = VoiceTranslator(e).amplitudes(torch.from_numpy(image)[None])[0]
    # Grey levels of up to 765 before the clip carry a float32 error of 6e-5 of a level, or 1e-6 of
    # an amplitude.
    np.testing.assert_allclose(amplitudes, slow_amplitudes(image, e), rtol=0, atol=2e-6)


# Check values of the reference, computed from the formulas.


@pytest.mark.parametrize(
    ("rate", "seconds", "columns", "samples", "per_column", "tail"),
    [
        (44100, 1.05, 64, 46304, 723, 32),
        (22050, 1.05, 64, 23152, 361, 48),
        (22050, 1.05, 28, 23152, 826, 24),
        (22050, 2.0, 64, 44100, 689, 4),
        (16000, 1.05, 28, 16800, 600, 0),
    ],
)
def test_samples_columns_and_tail(
    rate: int, seconds: float, columns: int, samples: int, per_column: int, tail: int
) -> None:
    e = Encoding(rows=2, sample_rate=rate, seconds=seconds, columns=columns)
    assert (e.samples, e.samples_per_column) == (samples, per_column)
    assert e.samples - e.columns * e.samples_per_column == tail
    sound = translate(e, np.full((1, 2, columns), 200, np.uint8))[0]
    assert sound.shape == (samples,)
    assert (
        sound[per_column * columns :].count_nonzero() == tail
    )  # the tail prolongs the last column


@settings(max_examples=50, deadline=None)
@given(rate=st.integers(16000, 48000), hundredths=st.integers(1, 300))
def test_samples_are_exact_in_spite_of_floating_point(rate: int, hundredths: int) -> None:
    assert Encoding(sample_rate=rate, seconds=hundredths / 100).samples == 2 * (
        rate * hundredths // 200
    )


def test_phases_are_the_published_stream() -> None:
    stream = Encoding().phases() / (2 * math.pi) * 233280
    expected = [49297, 165494, 127551, 172348, 191165, 14802, 87499, 196856]
    np.testing.assert_allclose(stream[:8], expected, rtol=1e-12)


def test_tanh_pitches() -> None:
    ends = Encoding(rows=64, columns=64, curve="tanh").frequencies()[[0, -1]]
    assert ends[0] == pytest.approx(238.2, abs=0.05)  # as many digits as the reference gives
    assert ends[1] == pytest.approx(7422, abs=0.5)
    literal = Encoding(curve="tanh", tanh_slope=0.06 * 28).frequencies()[[0, -1]]
    np.testing.assert_allclose(literal, [1261, 6294], rtol=0, atol=0.5)


@pytest.mark.parametrize("curve", ["exponential", "linear"])
def test_pitches_run_from_the_lowest_to_the_highest(curve: str) -> None:
    np.testing.assert_allclose(Encoding(curve=curve).frequencies()[[0, -1]], [80, 7600], rtol=1e-12)


def test_the_middle_scheme_puts_low_pitches_at_both_edges() -> None:
    ranks = {rank: i for i, rank in enumerate(Encoding(rows=8).frequencies().tolist())}
    middle = Encoding(rows=8, pitch_position="middle").frequencies().tolist()
    assert [ranks[hz] for hz in middle] == [0, 2, 4, 6, 7, 5, 3, 1]


def test_the_amplitude_of_white_and_of_black() -> None:
    amplitudes = VoiceTranslator(Encoding(contrast=0.0)).amplitudes(
        torch.tensor([0, 255]).byte().repeat(1, 28, 14)
    )
    assert amplitudes[0, 0, 1].item() == pytest.approx(1.241, abs=5e-4)
    assert amplitudes[0, 0, 0] == 0


def test_the_congenitally_blind_scheme_is_64_by_64() -> None:
    assert Encoding.congenitally_blind() == Encoding(rows=64, columns=64)


def test_a_single_row_and_column_is_one_tone() -> None:
    e = Encoding(rows=1, columns=1, seconds=0.1, contrast=0.0)
    t = np.arange(1600) / 16000
    tone = 0.5 * 10 ** ((240 / 16 - 15) / 10) * np.sin(2 * np.pi * 80 * t + slow_phases(1)[0])
    np.testing.assert_allclose(
        translate(e, np.full((1, 1, 1), 240, np.uint8))[0], tone, rtol=0, atol=SOUND_TOLERANCE
    )


# Properties of the sound.


def test_black_is_silent() -> None:
    assert (
        translate(Encoding(sample_rate=22050), np.zeros((3, 28, 28), np.uint8)).count_nonzero() == 0
    )


@pytest.mark.parametrize("negative", [False, True])
def test_a_level_that_rounds_to_black_is_silent_and_has_a_gradient(negative: bool) -> None:
    e = Encoding(contrast=0.0, negative=negative)
    for grey, sounds in ((-0.4, False), (1e-6, False), (0.49, False), (0.51, True)):
        level = torch.full(
            (1, 28, 28),
            (255 - grey if negative else grey) / 255,
            dtype=torch.float64,
            requires_grad=True,
        )
        amplitudes = VoiceTranslator(e).double().amplitudes(level, straight_through=1.0)
        assert bool(amplitudes.count_nonzero()) == sounds
        amplitudes.sum().backward()
        assert (level.grad * (-1 if negative else 1) > 0).all()


def peaks(e: Encoding) -> np.ndarray:
    """The pitch of a dot in each row, from the top row down, in Hz, by the peak of the spectrum of
    its column."""
    dots = torch.eye(e.rows).reshape(e.rows, e.rows, 1) * (torch.arange(e.columns) == 1)
    column = VoiceTranslator(e)(dots)[:, e.samples_per_column : 2 * e.samples_per_column].numpy()
    spectrum = np.abs(np.fft.rfft(column * np.hanning(column.shape[1]), 1 << 16))
    return spectrum.argmax(1) * e.sample_rate / (1 << 16)


@pytest.mark.parametrize("curve", ["exponential", "linear", "tanh"])
def test_a_dot_moved_up_raises_its_pitch(curve: str) -> None:
    # With four columns one of them lasts 0.26 s, long enough to separate the lowest rows,
    # which are 14 Hz apart.
    e = Encoding(columns=4, curve=curve)
    heard = peaks(e)
    assert (np.diff(heard) < 0).all()  # from the top row down
    np.testing.assert_allclose(
        heard[::-1], e.frequencies(), rtol=0, atol=2
    )  # Hz; the spectrum's leakage at 80 Hz


def test_where_the_high_pitch_sits() -> None:
    assert (np.diff(peaks(Encoding(columns=4, pitch_position="bottom"))) > 0).all()
    middle = peaks(Encoding(columns=4, pitch_position="middle"))  # 28 rows
    assert (np.diff(middle[:14]) > 0).all()
    assert (np.diff(middle[14:]) < 0).all()


@pytest.mark.parametrize("rate", [16000, 22050])
def test_a_dot_moved_right_has_a_later_onset(rate: int) -> None:
    e = Encoding(sample_rate=rate)
    dots = torch.zeros(28, 28, 28)
    dots[torch.arange(28), 10, torch.arange(28)] = 1  # one image for each column
    sounding = (
        VoiceTranslator(e)(dots).abs() > 1e-3
    )  # a thousandth: no two samples in a row of a tone are below it
    for column, where in enumerate(sounding):
        first, last = where.nonzero()[[0, -1], 0].tolist()
        begin = column * e.samples_per_column
        end = e.samples if column == 27 else begin + e.samples_per_column
        assert begin <= first <= begin + 1
        assert end - 2 <= last < end


def test_a_brighter_dot_is_louder() -> None:
    dots = torch.zeros(255, 7, 5)
    dots[:, 3, 2] = torch.arange(1, 256) / 255
    loudness = (
        VoiceTranslator(Encoding(rows=7, columns=5, seconds=0.05, contrast=0.0))(dots)
        .square()
        .mean(1)
    )
    assert (loudness.diff() > 0).all()


# A batch, its types and shapes.


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 9), seed=st.integers(0, 1000))
def test_a_batch_equals_its_images_one_by_one(batch: int, seed: int) -> None:
    translator = VoiceTranslator(SMALL)
    images = torch.from_numpy(digitlike((batch, 7, 5), seed))
    singles = torch.cat([translator(image[None]) for image in images])
    # Other batch sizes may add the products of a matrix product in another order.
    torch.testing.assert_close(translator(images), singles, rtol=0, atol=1e-6)


def test_an_empty_batch_gives_no_soundscapes() -> None:
    assert VoiceTranslator()(torch.zeros(0, 28, 28)).shape == (0, 16800)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_equals_floating_point(dtype: torch.dtype) -> None:
    images = torch.from_numpy(digitlike((4, 28, 28)))
    translator = VoiceTranslator()
    torch.testing.assert_close(
        translator(images.to(dtype) / 255), translator(images), rtol=0, atol=SOUND_TOLERANCE
    )


def test_a_channel_dimension_changes_nothing() -> None:
    images = torch.from_numpy(digitlike((4, 28, 28)))
    translator = VoiceTranslator()
    assert translator(images[:, None]).equal(translator(images))


def test_the_input_is_left_as_it_was() -> None:
    images = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    VoiceTranslator()(images)
    assert images.equal(before)


@pytest.mark.parametrize("sample_rate", [16000, 22050])
def test_deterministic(sample_rate: int) -> None:
    """Two calls, and two translators of the same encoding, give the same sound, and draw no random
    number."""
    images = torch.from_numpy(digitlike((4, 28, 28)))
    state = torch.get_rng_state()
    first, second = (
        VoiceTranslator(Encoding(sample_rate=sample_rate)),
        VoiceTranslator(Encoding(sample_rate=sample_rate)),
    )
    sound = first(images)
    assert first(images).equal(sound)
    assert second(images).equal(sound)
    assert torch.get_rng_state().equal(state)


def test_a_loud_image_is_clipped_to_float32_in_minus_one_to_one() -> None:
    """At the published scale a busy image clips: what lies beyond is cut, and nothing else
    changes."""
    e = Encoding()
    image = (np.random.default_rng(0).random((28, 28)) < 0.5).astype(np.uint8) * 255
    unclipped = slow_soundscape(image, e)
    assert np.abs(unclipped).max() > 1.1
    sound = translate(e, image[None])[0]
    assert sound.dtype == torch.float32
    assert sound.max() == 1
    assert sound.min() == -1
    np.testing.assert_allclose(sound, unclipped.clip(-1, 1), rtol=0, atol=SOUND_TOLERANCE)


def test_bfloat16_autocast_does_not_change_the_sound() -> None:
    images = torch.from_numpy(digitlike((2, 20, 40))).float() / 255  # resized, too
    for e in (Encoding(), Encoding(sample_rate=22050)):
        translator = VoiceTranslator(e)
        with torch.autocast("cpu", torch.bfloat16):
            sound = translator(images)
        assert sound.dtype == torch.float32
        assert sound.equal(translator(images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")
@pytest.mark.parametrize(
    "e", [Encoding(), Encoding(rows=64, columns=64, sample_rate=22050)], ids=["28", "64"]
)
def test_the_gpu_gives_the_sound_of_the_cpu(e: Encoding) -> None:
    images = torch.from_numpy(digitlike((16, 28, 28)))
    translator = VoiceTranslator(e)
    expected = translator(images)
    with torch.autocast("cuda", torch.bfloat16):
        sound = translator.to("cuda")(images.to("cuda"))
    torch.testing.assert_close(sound.cpu(), expected, rtol=0, atol=SOUND_TOLERANCE)


# Resizing.


def slow_resize(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear with antialiasing: a triangle as wide as the shrinking factor, at least one pixel to
    each side."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            for j in range(old):
                matrix[i, j] = max(
                    0.0, 1 - abs((j + 0.5) - (i + 0.5) * old / new) / max(1.0, old / new)
                )
            matrix[i] /= matrix[i].sum()
        return matrix

    return (
        weights(image.shape[0], rows)
        @ image.astype(np.float64)
        @ weights(image.shape[1], columns).T
    )


def test_a_smaller_image_is_enlarged_to_the_nearest_pixel() -> None:
    images = digitlike((2, 28, 28))
    nearest = [int((i + 0.5) * 28 / 64) for i in range(64)]
    e = Encoding.congenitally_blind()
    enlarged = translate(e, images[:, nearest][:, :, nearest])
    torch.testing.assert_close(translate(e, images), enlarged, rtol=0, atol=SOUND_TOLERANCE)


@pytest.mark.parametrize("size", [(64, 64), (28, 45), (14, 56), (100, 28)])
def test_a_larger_image_is_shrunk_with_antialiasing(size: tuple[int, int]) -> None:
    e = Encoding(contrast=0.0)  # so that no rounding decides what is black
    image = np.random.default_rng(0).integers(20, 236, size).astype(np.uint8)
    expected = slow_amplitudes(slow_resize(image, 28, 28), e)
    amplitudes = VoiceTranslator(e).amplitudes(torch.from_numpy(image)[None])[0]
    np.testing.assert_allclose(amplitudes, expected, rtol=0, atol=1e-5)


def test_a_resized_image_gives_soundscapes_of_the_same_length() -> None:
    assert translate(Encoding(), digitlike((2, 50, 9))).shape == (2, 16800)


# Linear, and differentiable.


@settings(max_examples=20, deadline=None)
@given(a=st.floats(0.5, 2), b=st.floats(0.5, 2), seed=st.integers(0, 1000))
def test_the_sound_is_linear_in_the_amplitudes_below_the_clip(
    a: float, b: float, seed: int
) -> None:
    e = Encoding(
        rows=4, columns=5, seconds=0.05, sample_rate=16040, contrast=0.0
    )  # 4 rows below 0.9 never reach 1
    translator = VoiceTranslator(e)
    x, y = torch.randint(16, 100, (2, 1, 4, 5), generator=torch.Generator().manual_seed(seed)) / 255
    wanted = a * translator.amplitudes(x) + b * translator.amplitudes(y)
    mixed = (10 * wanted.log10() + 15) * 16 / 255  # the image that has these amplitudes
    torch.testing.assert_close(translator.amplitudes(mixed), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        translator(mixed), a * translator(x) + b * translator(y), rtol=0, atol=2e-6
    )


def test_gradients_agree_with_finite_differences_where_it_is_smooth() -> None:
    """Mid-grey images clip neither in the grey levels nor in the samples."""
    random = torch.Generator().manual_seed(0)
    translator = VoiceTranslator(SMALL)
    image = (0.45 + 0.1 * torch.rand(1, 7, 5, generator=random)).requires_grad_()
    weights = torch.randn(SMALL.samples, generator=random, dtype=torch.float64)

    def loss(image: torch.Tensor) -> torch.Tensor:
        sound = translator(image)
        assert sound.abs().max() < 1
        return (sound.double() * weights).sum()

    loss(image).backward()
    # A step of 2e-3: its own error is some (11 * 2e-3)^2 / 6 = 1e-4, and float32 leaves about as
    # much.
    step = 2e-3
    numeric = torch.zeros_like(image)
    for place in np.ndindex(*image.shape):
        nudge = torch.zeros_like(image)
        nudge[place] = step
        numeric[place] = (
            (loss(image.detach() + nudge) - loss(image.detach() - nudge)) / (2 * step)
        ).float()
    torch.testing.assert_close(image.grad, numeric, rtol=0, atol=0.005 * numeric.abs().max().item())


@pytest.mark.parametrize("size", [(28, 28), (64, 64)])
def test_gradients_reach_a_digit_and_stay_finite_on_black(size: tuple[int, int]) -> None:
    image = torch.zeros(1, 1, *size)
    image[..., size[0] // 2, 5:15] = (
        0.2  # brighter than a third, contrast 2 makes it white, which has no slope
    )
    image.requires_grad_()
    VoiceTranslator()(image).square().sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad[0, 0, size[0] // 2, 6:14].count_nonzero() == 8


def test_the_translator_has_nothing_to_train_or_to_save() -> None:
    assert not list(VoiceTranslator().parameters())
    assert not VoiceTranslator().state_dict()


# Refusals.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            ({name: 0}, f"{name} is 0, but must be a whole number")
            for name in ("rows", "columns", "sample_rate")
        ],
        *[
            ({name: 28.0}, f"{name} is 28.0, but must be a whole number")
            for name in ("rows", "columns", "sample_rate")
        ],
        ({"rows": True}, "rows is True, but must be a whole number"),
        *[
            ({name: value}, f"{name} is {value!r}, but must be a finite number")
            for name in ("lowest_hz", "highest_hz", "tanh_slope", "seconds", "contrast")
            for value in (math.nan, math.inf, "1")
        ],
        (
            {"curve": "erb"},
            "curve is 'erb', but must be one of exponential, linear, tanh, mel, bark",
        ),
        (
            {"pitch_position": "left"},
            "pitch_position is 'left', but must be one of top, middle, bottom",
        ),
        ({"lowest_hz": 0.0}, "from 0.0 to 7600.0 Hz do not rise"),
        ({"lowest_hz": -80.0}, "from -80.0 to 7600.0 Hz do not rise"),
        ({"lowest_hz": 500.0, "highest_hz": 400.0}, "from 500.0 to 400.0 Hz do not rise"),
        ({"sample_rate": 15000}, r"highest_hz 7600.0 lies above 7500.0 Hz, the Nyquist frequency"),
        ({"highest_hz": 8000.5}, r"highest_hz 8000.5 lies above 8000.0 Hz, the Nyquist frequency"),
        *[
            ({name: 0.0}, "tanh_slope and seconds must be above 0")
            for name in ("tanh_slope", "seconds")
        ],
        ({"seconds": -1.0}, "tanh_slope and seconds must be above 0"),
        ({"contrast": -0.1}, "contrast from 0 to a million"),
        (
            {"seconds": 0.001, "columns": 17},
            "0.001 s at 16000 Hz do not give each of 17 columns a sample",
        ),
    ],
)
def test_an_impossible_encoding_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"encoding: .*{message}"):
        Encoding(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"highest_hz": 8000.0},
        {"lowest_hz": 7600.0},
        {"contrast": 0},
        {"seconds": 0.001, "columns": 16},
    ],
)
def test_the_limits_themselves_are_allowed(change: dict) -> None:
    e = Encoding(**change)
    assert VoiceTranslator(e)(torch.rand(1, 28, 28)).isfinite().all()


@pytest.mark.parametrize(
    "shape", [(28,), (28, 28), (2, 3, 28, 28), (1, 2, 1, 28, 28), (2, 0, 28), (2, 1, 28, 0)]
)
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"images have the shape .*takes \(B, H, W\) or \(B, 1, H, W\)"
    ):
        VoiceTranslator()(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool, torch.complex64])
def test_an_impossible_type_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=f"images are {dtype}; the translator takes uint8, or floating point"
    ):
        VoiceTranslator()(torch.zeros(1, 28, 28).to(dtype))


def test_straight_through_changes_no_sound_and_passes_the_gradient_of_saturated_pixels() -> None:
    translator = VoiceTranslator()
    image = torch.zeros(1, 28, 28)
    image[:, 5:20, 8:20] = 1.0  # white and black, all of it beyond the contrast's range
    gradients = {}
    for straight_through in (0.0, 0.5, 1.0):
        leaf = image.clone().requires_grad_()
        sound = translator(leaf, straight_through)
        assert torch.equal(sound, translator(image))
        translator.amplitudes(leaf, straight_through)[
            0, [0, 10], [0, 10]
        ].sum().backward()  # one black pixel, one white
        gradients[straight_through] = leaf.grad[0, [0, 10], [0, 10]]
    assert gradients[0.0].abs().max() == 0
    assert gradients[1.0].min() > 0
    torch.testing.assert_close(gradients[0.5], gradients[1.0] / 2)
