"""The translator's command, and the picture and sound files that it reads and writes."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from PIL import Image
from pretended_gpu import PretendedGPU
from test_cli import comments, help_of

import common.media
import voice_translator
from common.files import UserError
from common.media import find_pictures, read_picture, read_sound
from tools import translate
from tools.translate import COMMENT, PRESETS, Config, main
from voice_translator import Encoding, VoiceTranslator, estimate_image, to_pcm16

E = Encoding(rows=8, columns=6, seconds=0.1)
RAMP = np.linspace(0, 255, 20 * 30).round().astype(np.uint8).reshape(20, 30)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(RAMP).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def command(
    *arguments: str, cwd: Path, python: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *python, str(ROOT / "voice_translator.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        line, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def sound_of(image: np.ndarray, e: Encoding) -> np.ndarray:
    return to_pcm16(VoiceTranslator(e)(torch.from_numpy(image.copy())[None]))[0].numpy().T


def test_a_photo_becomes_a_stereo_soundscape_and_a_picture_of_it(photo: Path) -> None:
    flags = ("--preset", "hificode", "--stereo", "--spectrogram", "seen.png", "--device", "cpu")
    done = command("photo.png", "-o", "photo.wav", *flags, cwd=photo.parent)
    assert done.returncode == 0, done.stderr
    samples, rate = soundfile.read(photo.with_suffix(".wav"), dtype="int16")
    assert (rate, samples.shape) == (44100, (46304, 2))
    assert np.abs(samples.astype(int) - sound_of(RAMP, Encoding.hificode(stereo=True))).max() <= 1
    with Image.open(photo.parent / "seen.png") as seen:
        assert seen.width > 1000


def test_flags_start_from_the_preset_and_an_impossible_one_is_refused(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["voice_translator.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            translate.run()
        return stopped.value.code

    assert command(str(photo), "-o", "x.wav", "--rows", "64", "--highest-hz", "9000") == 2
    assert capsys.readouterr().err == (
        "voice_translator.py: encoding: highest_hz 9000.0 lies above 8000.0 Hz, the Nyquist "
        "frequency; lower it or raise sample_rate.\n"
    )
    assert command("--preset", "hificode", "--help") == 0
    shown = capsys.readouterr().out
    assert "default: 44100" in shown
    assert "--tanh-slope" in shown
    for name in PRESETS:
        assert command(str(photo), "--preset", name, "-o", "x.wav", "--batch", "0") == 2
        assert "--batch is 0; give at least 1" in capsys.readouterr().err
    assert command(str(photo), "--preset", "hifi", "-o", "x.wav") == 2
    assert "hificode-2013" in capsys.readouterr().err
    monkeypatch.setattr(Config, "preset", "hificode")  # as in an edited header
    assert command("--help") == 0
    assert "default: 44100" in capsys.readouterr().out
    for number in ("18446744073709551616", "1" + "0" * 400):
        assert command(str(photo), "-o", "x.wav", "--device", "cpu", "--contrast", number) == 2
        assert "contrast" in capsys.readouterr().err


def test_the_help_of_each_setting_is_its_whole_comment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(Config, monkeypatch, capsys)
    written = comments(Config)
    assert set(written) == {field.name for field in dataclasses.fields(Config)}
    for name, comment in written.items():
        assert name == "encoding" or (comment.endswith(".") and comment in shown), name


def test_a_folder_and_a_glob_become_a_folder_of_sounds(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 6)).astype(np.uint8)
    for name, image in zip("edcba", images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no picture")
    main(Config((folder,), tmp_path / "sounds", encoding=E, batch=2, device="cpu"))
    main(Config((folder / "[ab].png",), tmp_path / "flac", format="flac", encoding=E, device="cpu"))
    assert sorted(path.name for path in (tmp_path / "sounds").iterdir()) == [
        f"{name}.wav" for name in "abcde"
    ]
    assert sorted(path.name for path in (tmp_path / "flac").iterdir()) == ["a.flac", "b.flac"]
    for name, image in zip("edcba", images, strict=True):
        samples, rate = soundfile.read(tmp_path / "sounds" / f"{name}.wav", dtype="int16")
        assert rate == 16000
        assert np.abs(samples.astype(int) - sound_of(image, E)).max() <= 1
    assert soundfile.info(tmp_path / "flac" / "a.flac").subtype == "PCM_16"


def test_a_picture_is_shrunk_on_the_cpu_and_a_large_one_on_a_gpu_by_products(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own kernel for GPUs refuses to shrink by a factor of 47 in float64."""
    e = Encoding(rows=8, columns=6, seconds=0.3)
    main(Config((photo,), photo.parent / "cpu.wav", encoding=e, device="cpu"))
    shrink, products = voice_translator.shrink, voice_translator._shrunk_by_products
    places, by_products = [], []
    monkeypatch.setattr(
        voice_translator, "shrink", lambda x, size: (places.append(x.is_cuda), shrink(x, size))[1]
    )
    monkeypatch.setattr(
        voice_translator,
        "_shrunk_by_products",
        lambda x, size: (by_products.append(x.shape[2]), products(x, size))[1],
    )
    large = torch.rand(2, 47 * 8, 10)
    with PretendedGPU():
        main(Config((photo,), photo.parent / "gpu.wav", encoding=e, device="cuda:0"))
        assert (places, by_products) == ([False], [])
        translator = VoiceTranslator(e).to("cuda:0")
        small = translator.resized(large.to("cuda:0")).cpu()
        translator.resized(large[:, ::2].to("cuda:0"))
    voice_translator._shrinking.cache_clear()  # made on the pretended GPU
    assert (places, by_products) == ([False, True, True], [47 * 8])
    torch.testing.assert_close(small, VoiceTranslator(e).resized(large))
    sounds = [
        soundfile.read(photo.parent / name, dtype="int16")[0].astype(int)
        for name in ("cpu.wav", "gpu.wav")
    ]
    assert abs(sounds[0] - sounds[1]).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 8, "columns": 6},
        {"rows": 8, "columns": 6, "stereo": True},
        {"rows": 6, "columns": 8, "scan": "bottom_to_top"},
    ],
    ids=["mono", "stereo", "bottom to top"],
)
def test_a_sound_is_decoded_to_its_image(
    photo: Path, changes: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    """The decoded image is enlarged to its original's size."""
    e = Encoding(seconds=0.3, contrast=0.0, **changes)
    sound, back = photo.with_suffix(".flac"), photo.parent / "back.png"
    main(Config((photo,), sound, encoding=e, device="cpu"))
    main(Config((photo,), back, decode=sound, encoding=e))
    said = capsys.readouterr().out.split("Its correlation with")[1].split(" is ")[1]
    with Image.open(back) as image:
        assert image.size == (30, 20)
        decoded = np.asarray(image.resize((6, 8), Image.Resampling.NEAREST))
    seen = VoiceTranslator(e).resized(torch.from_numpy(RAMP)[None])[0].numpy()
    np.testing.assert_allclose(decoded, seen, rtol=0, atol=6)
    correlation = np.corrcoef(decoded.ravel(), seen.ravel())[0, 1]
    assert float(said.rstrip(".\n")) == pytest.approx(correlation, abs=1e-3)


def test_the_others_are_translated_when_one_picture_is_damaged(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "bad.png").write_bytes(photo.read_bytes()[:60])
    with pytest.raises(
        UserError, match=r"1 of 2 pictures were not translated: .*bad.png is damaged"
    ):
        main(Config((photo, tmp_path / "bad.png"), tmp_path / "out", encoding=E, device="cpu"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.wav"]


def test_one_picture_of_a_glob_goes_into_a_folder_and_hidden_files_are_left_out(
    photo: Path,
) -> None:
    folder = photo.parent / "in"
    folder.mkdir()
    for name in ("n" * 250 + ".png", "é" * 120 + ".png"):
        Image.fromarray(RAMP).save(folder / name)
    (folder / "._n.png").write_bytes(b"of macOS")
    main(Config((folder,), photo.parent / "out", encoding=E, device="cpu"))
    assert sorted(path.stem[0] for path in (photo.parent / "out").iterdir()) == ["n", "é"]
    (folder / "folder").mkdir()
    main(Config((folder / "[!é]*",), photo.parent / "one", encoding=E, device="cpu"))
    assert [path.stem[0] for path in (photo.parent / "one").iterdir()] == ["n"]


def test_an_output_has_the_permissions_of_other_new_files(photo: Path) -> None:
    before = os.umask(0o027)
    try:
        done = command("photo.png", "-o", "x.wav", "--device", "cpu", cwd=photo.parent)
        (photo.parent / "plain").touch()
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert (photo.parent / "x.wav").stat().st_mode == (photo.parent / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform != "linux", reason="where names are bytes")
def test_a_file_name_that_is_no_utf8(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in any locale but C
    done = command(
        "photo.png", "-o", os.fsdecode(b"x\xff.wav"), "--device", "cpu", cwd=photo.parent
    )
    assert done.returncode == 0, done.stderr
    assert "x\\udcff.wav" in done.stdout
    assert os.path.getsize(os.fsencode(photo.parent) + b"/x\xff.wav") > 44


def test_a_short_sound_is_drawn_too(photo: Path) -> None:
    main(
        Config(
            (photo,),
            None,
            spectrogram=photo.parent / "s.png",
            encoding=Encoding(rows=3, columns=3, seconds=0.001),
        )
    )
    with Image.open(photo.parent / "s.png") as drawn:
        assert drawn.width > 100


def test_a_picture_of_one_grey_has_no_correlation(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (6, 8), 255).save(photo)
    main(Config((photo,), photo.parent / "x.wav", encoding=E, device="cpu"))
    main(Config((photo,), photo.parent / "back.png", decode=photo.parent / "x.wav", encoding=E))
    assert "photo.png is not defined, as one of them has one grey only" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_image_is_estimated_in_any_mode(mode: type) -> None:
    sound = VoiceTranslator(E)(torch.from_numpy(RAMP[None, :8, :6]))[0]
    with mode():
        assert torch.equal(estimate_image(sound.clone(), E), expected := estimate_image(sound, E))
    assert torch.equal(estimate_image(sound, E), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing would be written; give -o, or --spectrogram"),
        ({"output": "x.wav", "pictures": ()}, "no picture is given"),
        ({"output": "x.mp3"}, "x.mp3 has no ending of a sound; name it .wav or .flac"),
        ({"spectrogram": "x.txt"}, "x.txt has no ending of a drawing; name it .png, .pdf"),
        (
            {"output": "x.wav", "pictures": ("photo.png", "photo.png", "other.png")},
            "x.wav is one sound, but a folder or several",
        ),
        (
            {"spectrogram": "x.png", "pictures": ("photo.png", "other.png")},
            "draws one picture, but a folder or several",
        ),
        ({"spectrogram": "x.txt", "output": "x.wav"}, "x.txt has no ending of a drawing"),
        (
            {"output": "x.wav", "spectrogram": "photo.png"},
            "photo.png would be replaced by what is made of it; give another",
        ),
        ({"output": "photo.png", "decode": "right.wav"}, "photo.png would be replaced"),
        (
            {"output": "x.wav", "pictures": ("phot*.png",)},
            "x.wav is one sound, but a folder or several",
        ),
        (
            {"output": "x", "pictures": ("photo.png", "photo.jpg")},
            "two pictures would become photo.wav",
        ),
        (
            {"output": "x.wav", "pictures": ("nothing*.png",)},
            "names no picture; give a picture, a folder",
        ),
        ({"output": "x.wav", "crop": True, "fit": True}, "--crop and --fit exclude each other"),
        ({"decode": "photo.wav", "spectrogram": "x.png"}, "--decode makes one image"),
        (
            {"decode": "missing.wav", "output": "x.png"},
            "missing.wav is missing; give a WAV or FLAC file",
        ),
        (
            {"decode": "photo.png", "output": "x.png"},
            "photo.png is damaged, or no sound that libsndfile reads",
        ),
        (
            {"decode": "other.wav", "output": "x.png"},
            r"other.wav has 50 samples at 8000 Hz in 1 channel\(s\), but .* 1600 at 16000",
        ),
        ({"decode": "right.wav", "output": "x.foo"}, "x.foo has no ending of a picture"),
        (
            {"decode": "right.wav", "output": "x.psd"},
            "x.psd has no ending of a picture",
        ),  # which Pillow reads only
        (
            {"decode": "right.wav", "output": "x.qoi"},
            "x.qoi has no ending of a picture",
        ),  # which has no grey levels
        (
            {"decode": "right.raw", "output": "x.png"},
            "right.raw is damaged, or no sound",
        ),  # which tells no sample rate
        ({"output": "file/x.wav"}, "file/x.wav cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(
    photo: Path, settings: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    for name in ("other.png", "photo.jpg"):
        Image.fromarray(RAMP).save(name)
    soundfile.write("other.wav", np.zeros(50), 8000)
    soundfile.write("right.wav", np.zeros(E.samples), E.sample_rate)
    Path("right.raw").write_bytes(bytes(2 * E.samples))
    Path("file").touch()
    settings = {"pictures": ("photo.png",), "encoding": E, "device": "cpu", **settings}
    settings["pictures"] = tuple(Path(name) for name in settings["pictures"])
    settings |= {
        name: Path(settings[name])
        for name in ("output", "spectrogram", "decode")
        if name in settings
    }
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=message):
        main(Config(**settings))
    assert sorted(Path().iterdir()) == before


# What a sound file says of itself.


def sound_file(path: Path, e: Encoding, image: np.ndarray = RAMP) -> Path:
    Image.fromarray(image).save(path.with_suffix(".png"))
    main(Config((path.with_suffix(".png"),), path, encoding=e, device="cpu"))
    return path


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_sound_file_names_its_encoding(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    e = Encoding(rows=8, columns=6, seconds=0.3, contrast=0.0, curve="mel", stereo=True)
    path = sound_file(tmp_path / f"x{suffix}", e)
    with soundfile.SoundFile(path) as file:
        assert json.loads(file.comment) == {COMMENT: dataclasses.asdict(e)}
    main(Config(output=tmp_path / "named.png", decode=path))
    main(Config(output=tmp_path / "given.png", decode=path, encoding=e))
    assert (tmp_path / "named.png").read_bytes() == (tmp_path / "given.png").read_bytes()
    other = dataclasses.replace(e, curve="bark", pitch_position="bottom")
    wrong = {"preset": "late-blind"}, {"encoding": other}
    for changes, said in zip(wrong, ("rows 8, not 28", "curve mel, not bark"), strict=True):
        with pytest.raises(UserError, match=f"was made with another encoding .*{said}.*leave out"):
            main(Config(output=tmp_path / "wrong.png", decode=path, **changes))
    assert not (tmp_path / "wrong.png").exists()


@pytest.mark.parametrize(
    "comment",
    ["{", "[" * 900, '{"rows": -1}', '{"unknown": 1}', "3", '{"rows": 1e999}', '{"rows": null}'],
)
def test_a_damaged_comment_is_refused(tmp_path: Path, comment: str) -> None:
    with soundfile.SoundFile(tmp_path / "x.wav", "w", 16000, 1, "PCM_16") as file:
        file.comment = f'{{"{COMMENT}": {comment}}}'
        file.write(np.zeros(16800))
    with pytest.raises(UserError, match="x.wav names an encoding that this version does not know"):
        main(Config(output=tmp_path / "x.png", decode=tmp_path / "x.wav"))


def test_a_sound_without_a_comment_is_decoded_by_the_flags(tmp_path: Path) -> None:
    e = Encoding(rows=8, columns=6, seconds=0.3, contrast=0.0)
    samples, rate = soundfile.read(sound_file(tmp_path / "x.wav", e), dtype="int16")
    for comment in ("made by hand", '{"other": 1}'):
        with soundfile.SoundFile(tmp_path / "plain.wav", "w", rate, 1, "PCM_16") as file:
            file.comment = comment
            file.write(samples)
        main(Config(output=tmp_path / "x2.png", decode=tmp_path / "plain.wav", encoding=e))
        main(Config(output=tmp_path / "x3.png", decode=tmp_path / "x.wav"))
        assert (tmp_path / "x2.png").read_bytes() == (tmp_path / "x3.png").read_bytes()


def test_a_recording_with_a_lead_in_and_a_tail_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e = Encoding(rows=8, columns=6, seconds=0.3)
    samples, rate = soundfile.read(sound_file(tmp_path / "x.wav", e), dtype="int16")
    soundfile.write(tmp_path / "long.wav", np.pad(samples, (800, 2000)), rate)
    main(Config(output=tmp_path / "a.png", decode=tmp_path / "x.wav"))
    main(Config(output=tmp_path / "b.png", decode=tmp_path / "long.wav", encoding=e))
    assert "The soundscape begins at 0.0500 s." in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    noise = np.random.default_rng(0).normal(0, 0.1, 6000)
    soundfile.write(tmp_path / "noise.wav", noise, rate)
    with pytest.raises(UserError, match="noise.wav: .* fits nowhere in the recording"):
        main(Config(output=tmp_path / "c.png", decode=tmp_path / "noise.wav", encoding=e))


def test_a_sound_that_is_no_soundscape_is_named(tmp_path: Path) -> None:
    samples = np.zeros(E.samples)
    shape = (E.samples,)
    soundfile.write(tmp_path / "loud.wav", samples + 32768, E.sample_rate, "FLOAT")
    with pytest.raises(
        UserError, match=r"loud.wav has samples of up to 3.277e\+04, but a soundscape"
    ):
        read_sound(tmp_path / "loud.wav", E.sample_rate, shape)
    square = np.sign(np.random.default_rng(0).normal(size=E.samples))
    soundfile.write(tmp_path / "clipped.wav", square, E.sample_rate, "PCM_16")
    with pytest.raises(UserError, match="clipped.wav: the sound is clipped in more than half"):
        main(Config(output=tmp_path / "x.png", decode=tmp_path / "clipped.wav", encoding=E))
    for subtype in ("IMA_ADPCM", "ULAW", "GSM610"):
        rate = 8000 if subtype == "GSM610" else E.sample_rate
        soundfile.write(tmp_path / "small.wav", samples, rate, subtype)
        with pytest.raises(UserError, match="small.wav is compressed .*save the soundscape as WAV"):
            read_sound(tmp_path / "small.wav", E.sample_rate, shape)
    soundfile.write(tmp_path / "none.wav", samples[:0], E.sample_rate, "PCM_16")
    with pytest.raises(UserError, match="none.wav says that it holds no samples; save it again"):
        read_sound(tmp_path / "none.wav", E.sample_rate, shape)


def test_saturated_pixels_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    e = Encoding(rows=8, columns=6, seconds=0.3)
    main(Config(output=tmp_path / "y.png", decode=sound_file(tmp_path / "x.wav", e)))
    grey = VoiceTranslator(e).resized(torch.from_numpy(RAMP)[None])
    grey += e.contrast * (grey - grey.mean())
    count = ((grey < 0.5) | (grey > 254.5)).sum()
    assert f"The contrast saturated in {count} of 48 pixels" in capsys.readouterr().out


# Proportions, paths and how Python is started.


def test_a_picture_of_other_proportions_is_squeezed_cut_or_gets_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e = Encoding(rows=8, columns=8, seconds=0.1, contrast=0.0)
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    images = {}
    for flag in ("squeezed", "crop", "fit"):
        changes = {} if flag == "squeezed" else {flag: True}
        sound = tmp_path / f"{flag}.wav"
        main(Config((tmp_path / "wide.png",), sound, encoding=e, device="cpu", **changes))
        said = capsys.readouterr().out
        assert ("squeezed to the proportions of 8 x 8: " in said) == (flag == "squeezed")
        pcm = soundfile.read(sound, dtype="int16")[0].astype(int)
        images[flag] = pcm
    assert np.abs(images["crop"] - sound_of(wide[:, 20:40], e)).max() <= 1
    assert np.abs(images["squeezed"] - sound_of(wide, e)).max() <= 1
    assert np.abs(images["fit"] - sound_of(np.pad(wide, ((20, 20), (0, 0))), e)).max() <= 1
    original = (tmp_path / "wide.png",)
    main(Config(original, tmp_path / "c.png", decode=tmp_path / "crop.wav", crop=True))
    with Image.open(tmp_path / "c.png") as decoded:
        assert decoded.size == (20, 20)


def test_names_of_any_language_work_in_any_locale(photo: Path) -> None:
    photo.rename(photo.with_name("é.png"))
    for line in (("-o", "é.flac"), ("--decode", "é.flac", "-o", "ö.png")):
        done = command("é.png", *line, cwd=photo.parent, LC_ALL="C", PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr
    names = {os.fsencode(path.name) for path in photo.parent.iterdir()}
    assert names == {name.encode() for name in ("é.png", "é.flac", "ö.png")}


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(photo: Path) -> None:
    home = photo.parent / "home"
    home.mkdir()
    done = command("photo.png", "--output=~/x.wav", cwd=photo.parent, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert (home / "x.wav").exists()
    assert not (photo.parent / "~").exists()


def test_the_command_runs_without_its_folder_on_the_path(photo: Path) -> None:
    """As `python -P` and `python -I` start it."""
    done = command("photo.png", "-o", "x.wav", cwd=photo.parent, python=("-I",))
    assert done.returncode == 0, done.stderr


def test_the_command_imports_no_slow_library(photo: Path) -> None:
    slow = ("matplotlib", "scipy", "torchvision", "sklearn", "torchmetrics")
    code = (
        f"import sys; sys.argv = ['x', {str(photo)!r}, '-o', {str(photo.with_suffix('.wav'))!r}]\n"
        "from tools import translate; translate.run()\n"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("[]\n")


# Pictures, which are not trusted.


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], 2)
    grey = np.asarray(Image.fromarray(colours).convert("L")).astype(int)
    half = np.dstack([colours, np.full((20, 30), 128, np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    saved = {  # file -> what is to be read, and how far off it may be
        "l.png": (Image.fromarray(RAMP), {}, RAMP, 0),
        "rgb.bmp": (Image.fromarray(colours), {}, grey, 0),
        "wide.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, RAMP, 0),
        "wide.tif": (Image.fromarray(RAMP.astype(np.int32) * 257), {}, RAMP, 0),
        "alpha.png": (Image.fromarray(half), {}, grey * 128 / 255, 1),  # over black
        "palette.gif": (Image.fromarray(RAMP).quantize(256), {}, RAMP, 1),
        "cmyk.jpg": (Image.fromarray(colours).convert("CMYK"), {"quality": 100}, grey, 12),
        "bilevel.png": (Image.fromarray(RAMP > 127), {}, (RAMP > 127) * 255, 0),
        "animated.gif": (
            Image.fromarray(RAMP),
            {"save_all": True, "append_images": [Image.new("L", (30, 20))]},
            RAMP,
            1,
        ),
        "turned.jpg": (
            Image.fromarray(RAMP),
            {"exif": turned, "quality": 100},
            np.rot90(RAMP, -1),
            4,
        ),
        "dot.png": (Image.new("L", (1, 1), 7), {}, np.array([[7]]), 0),
    }
    for name, (picture, how, expected, tolerance) in saved.items():
        picture.save(tmp_path / name, **how)
        image = read_picture(tmp_path / name)
        assert image.dtype == torch.uint8, name
        assert image.shape == expected.shape, name
        assert np.abs(image.int().numpy() - expected).max() <= tolerance, name


def test_a_picture_of_12_bits_in_16_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    read_picture(tmp_path / "twelve.png")
    assert (
        f"twelve.png: its brightest level is {int(RAMP.max()) * 16} of 65,535, so it is faint"
        in capsys.readouterr().out
    )
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    read_picture(tmp_path / "sixteen.png")
    assert not capsys.readouterr().out


def tiff(path: Path, levels: np.ndarray, bits: int, photometric: int) -> None:
    """Write grey levels as a TIFF of one strip, by its specification."""
    if bits == 16:
        data = levels.astype("<u2").tobytes()
    elif bits == 8:
        data = levels.astype(np.uint8).tobytes()
    else:
        data = np.packbits(levels.astype(np.uint8), axis=1).tobytes()
    height, width = levels.shape
    tags = ((256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8),
            (277, 1), (278, height), (279, len(data)))  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    padding = b"\0" * (len(data) % 2)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    start = 8 + len(data) + len(padding)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data + padding + directory)


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_a_tiff_of_any_depth_and_photometric_interpretation(
    tmp_path: Path, bits: int, photometric: int
) -> None:
    white = 2**bits - 1
    seen = np.array([[0, white, 0, white], [white, white, 0, 0], [white // 2, 0, 0, white]])
    tiff(tmp_path / "x.tif", seen if photometric else white - seen, bits, photometric)
    expected = (seen * 255 + white // 2) // white
    np.testing.assert_array_equal(read_picture(tmp_path / "x.tif").numpy(), expected)


@pytest.mark.parametrize(
    ("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]
)
@pytest.mark.parametrize("transparent", [False, True], ids=["opaque", "transparent"])
def test_a_png_of_any_depth_with_a_transparent_colour(
    tmp_path: Path, bits: int, colour: int, transparent: bool
) -> None:
    """A PNG by its specification; colour 0 is grey, 2 is RGB. The second level is transparent."""
    white = 2**bits - 1
    levels = np.array([0, white, white // 2, white, white - white // 4, 0, 0, white])
    samples = levels.repeat(3 if colour else 1)
    if bits == 16:
        row = samples.astype(">u2").tobytes()
    else:
        row = np.packbits(np.unpackbits(samples.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :])
        row = row.tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )  # fmt: skip

    key = struct.pack(">H", white) * (3 if colour else 1)
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", len(levels), 1, bits, colour, 0, 0, 0)
    )
    if transparent:
        content += chunk(b"tRNS", key)
    content += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    seen = np.where(levels == white, 0, levels) if transparent else levels
    found = read_picture(tmp_path / "x.png").int().numpy()[0]
    assert np.abs(found - seen * 255 / white).max() <= 1


@pytest.mark.parametrize("name", ["x.jp2", "x.tga"])
def test_jpeg_2000_and_tga_are_read(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    assert np.abs(read_picture(tmp_path / name).int().numpy() - RAMP).max() <= 2
    assert find_pictures([tmp_path]) == [tmp_path / name]
    (tmp_path / name).rename(tmp_path / "x.png")  # only its name says that it is a TGA
    if name == "x.tga":
        with pytest.raises(UserError, match="x.png is damaged, or no picture that Pillow reads"):
            read_picture(tmp_path / "x.png")


def test_a_transparent_palette_is_read_over_black(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette([255, 255, 255, 200, 200, 200])
    picture.save(tmp_path / "p.png", transparency=0)
    assert read_picture(tmp_path / "p.png").tolist() == [[0, 200]]


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.fromarray(RAMP[:10, :10]).save(tmp_path / "small.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(
        UserError, match="huge.png has more than 64 million pixels; make it smaller"
    ):
        read_picture(tmp_path / "huge.png")
    monkeypatch.setattr(common.media, "MAX_PIXELS", 99)
    with pytest.raises(UserError, match="small.png has more than"):
        read_picture(tmp_path / "small.png")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, photo: Path) -> None:
    whole = photo.read_bytes()
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    # Of the second chunk's length; Pillow raises a SyntaxError.
    broken = whole[:36] + b"\0" + whole[37:]
    contents = {
        "cut.png": whole[: len(whole) // 2],
        "broken.png": broken,
        "empty.png": b"",
        "text.png": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"float.tif has floating-point pixels, and so no agreed white; save it in 8",
    ):
        read_picture(tmp_path / "float.tif")
    for value in (-1, 65536):
        Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "wide.tif")
        with pytest.raises(UserError, match="wide.tif has levels below 0 or above 65,535"):
            read_picture(tmp_path / "wide.tif")
    for name in contents:
        with pytest.raises(UserError, match=f"{name} is damaged, or no picture that Pillow reads"):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match="missing.png is missing; give a picture"):
        read_picture(tmp_path / "missing.png")
    soundfile.write(tmp_path / "nan.wav", np.full(E.samples, np.nan), E.sample_rate, "FLOAT")
    with pytest.raises(UserError, match="holds samples that are no numbers"):
        read_sound(tmp_path / "nan.wav", E.sample_rate, (E.samples,))
    (tmp_path / "short.wav").write_bytes((tmp_path / "nan.wav").read_bytes()[:200])
    with pytest.raises(UserError, match="short.wav (has|is damaged|ends early)"):
        read_sound(tmp_path / "short.wav", E.sample_rate, (E.samples,))
