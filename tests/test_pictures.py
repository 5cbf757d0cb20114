"""The translator's command, as people use it, and the files that it reads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from PIL import Image
from pretended_gpu import PretendedGPU

import voice_translator
from common.files import UserError
from common.media import read_picture, read_sound
from voice_translator import Config, Encoding, VoiceTranslator, estimate_image, main, to_pcm16

E = Encoding(rows=8, columns=6, seconds=0.1)
RAMP = np.linspace(0, 255, 20 * 30).round().astype(np.uint8).reshape(20, 30)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(RAMP).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "voice_translator.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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


def test_flags_start_from_the_preset_and_an_impossible_one_is_refused_in_one_line(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["voice_translator.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            voice_translator._command()
        return stopped.value.code

    assert command(str(photo), "-o", "x.wav", "--rows", "64", "--highest-hz", "9000") == 2
    assert capsys.readouterr().err == (
        "voice_translator.py: encoding: highest_hz 9000.0 lies above 8000.0 Hz, the Nyquist frequency; lower it or raise "
        "sample_rate.\n"
    )
    assert command("--preset", "hificode", "--help") == 0
    shown = capsys.readouterr().out
    assert "default: 44100" in shown
    assert "--tanh-slope" in shown
    monkeypatch.setattr(Config, "preset", "hificode")  # as in an edited header
    assert command("--help") == 0
    assert "default: 44100" in capsys.readouterr().out
    for number in ("18446744073709551616", "1" + "0" * 400):
        assert command(str(photo), "-o", "x.wav", "--device", "cpu", "--contrast", number) == 2
        assert "contrast" in capsys.readouterr().err


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


def test_on_a_gpu_a_picture_is_shrunk_on_the_cpu_or_by_products_where_it_is_large(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own kernel for GPUs refuses to shrink what is 47 times as large, in float64."""
    e = Encoding(rows=8, columns=6, seconds=0.3)
    main(Config((photo,), photo.parent / "cpu.wav", encoding=e, device="cpu"))
    shrunk, products, by_products = (
        voice_translator.shrunk,
        voice_translator._shrunk_by_products,
        [],
    )
    places = []
    monkeypatch.setattr(
        voice_translator, "shrunk", lambda x, size: (places.append(x.is_cuda), shrunk(x, size))[1]
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
    voice_translator._shrinking.cache_clear()  # no other test shall meet this GPU's
    assert (places, by_products) == ([False, True, True], [47 * 8])
    torch.testing.assert_close(small, VoiceTranslator(e).resized(large))
    sounds = [
        soundfile.read(photo.parent / name, dtype="int16")[0].astype(int)
        for name in ("cpu.wav", "gpu.wav")
    ]
    assert abs(sounds[0] - sounds[1]).max() <= 1


@pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])
def test_there_and_back(photo: Path, stereo: bool, capsys: pytest.CaptureFixture[str]) -> None:
    e = Encoding(rows=8, columns=6, seconds=0.3, contrast=0.0, stereo=stereo)
    sound, back = photo.with_suffix(".flac"), photo.parent / "back.png"
    main(Config((photo,), sound, encoding=e, device="cpu"))
    main(Config((photo,), back, decode=sound, encoding=e))
    said = capsys.readouterr().out.split("Its correlation with")[1].split(" is ")[1]
    with Image.open(back) as image:
        shrunk = VoiceTranslator(e).resized(torch.from_numpy(RAMP)[None])[0].numpy()
        np.testing.assert_allclose(np.asarray(image), shrunk, rtol=0, atol=6)
        assert float(said.rstrip(".\n")) == pytest.approx(
            np.corrcoef(np.asarray(image).ravel(), shrunk.ravel())[0, 1], abs=1e-3
        )


def test_one_bad_picture_does_not_cost_the_others(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "bad.png").write_bytes(photo.read_bytes()[:60])
    with pytest.raises(
        UserError, match=r"1 of 2 pictures were not translated: .*bad.png is damaged"
    ):
        main(Config((photo, tmp_path / "bad.png"), tmp_path / "out", encoding=E, device="cpu"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.wav"]


def test_one_picture_of_a_glob_goes_into_a_folder_and_a_long_name_or_a_hidden_file_costs_nothing(
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


def test_what_one_writes_is_for_whom_one_lets_read(photo: Path) -> None:
    before = os.umask(0o027)
    try:
        done = command("photo.png", "-o", "x.wav", "--device", "cpu", cwd=photo.parent)
        (photo.parent / "plain").touch()
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert (photo.parent / "x.wav").stat().st_mode == (photo.parent / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform != "linux", reason="where names are bytes")
def test_a_name_that_no_terminal_shows_is_written_all_the_same(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_of_a_picture_of_one_grey_no_correlation_is_told(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (6, 8), 255).save(photo)
    main(Config((photo,), photo.parent / "x.wav", encoding=E, device="cpu"))
    main(Config((photo,), photo.parent / "back.png", decode=photo.parent / "x.wav", encoding=E))
    assert "photo.png cannot be told, as one of them is of one grey" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_way_back_is_found_wherever_it_is_asked_for(mode: type) -> None:
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
        ({"output": "x.wav", "batch": 0}, "--batch is 0"),
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
            r"other.wav has 50 samples at 8000 Hz in 1 channel\(s\), but .* 1600 at",
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
def test_a_mistake_is_told_in_a_sentence(
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


def test_a_picture_of_12_bits_in_16_is_told(
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
    monkeypatch.setattr(pictures, "MAX_PIXELS", 99)
    with pytest.raises(UserError, match="small.png has more than"):
        read_picture(tmp_path / "small.png")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, photo: Path) -> None:
    whole = photo.read_bytes()
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    broken = (
        whole[:36] + b"\0" + whole[37:]
    )  # the second chunk's length, for which Pillow raises a SyntaxError
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
