"""Untrusted files: a checkpoint, a record, a picture, a sound or a data set is read, or refused in
one sentence.

`LISTEN_THOROUGH=20` tries twenty times as many mutations.
"""

import json
import os
import pickle
import resource
import signal
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, PngImagePlugin
from test_data import numbered, write_idx
from test_safety import THOROUGH, in_a_child
from torchvision import datasets

import common.files
import common.media
import voice_translator
from common.checkpoint import CHECKPOINT_VERSION
from common.files import UserError
from common.media import read_picture, read_sound
from data import Digits, load_digits
from models.vggish import VGGish, load_audioset_convolutions
from training import loop
from training.run import read_log, read_metrics
from training.upstream import load_audio_network
from vggish import ImageToLogMel, audio_fingerprint
from voice_translator import Encoding

E = Encoding(rows=4, columns=4, seconds=0.1)


def checkpoint() -> dict:
    """A checkpoint of stage one, as small as possible."""
    torch.manual_seed(0)
    return {
        "stage": "train_vggish",
        "version": CHECKPOINT_VERSION,
        "config": {
            "encoding": asdict(E),
            "frames": 16,
            "hop": 160,
            "width": 1,
            "dataset": "handwritten",
            "classes": 10,
        },
        "networks": {"vggish": VGGish(16, 1).state_dict()},
        "epoch": 1,
        "metrics": {"epoch": 1, "loss": 0.5},
        "seed": 0,
        "revision": None,
        "versions": {},
        "fingerprint": audio_fingerprint(ImageToLogMel(E, 16, 160)),
    }


# -- checkpoints


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times: int) -> list:
    """2 ** times values, of which a file needs only `times`."""
    value: list = [0]
    for _ in range(times):
        value = [value, value]
    return value


FIRST = "features.0.weight"
DAMAGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (
        lambda c: c["networks"]["vggish"].pop(FIRST),
        f"do not fit VGGish \\({FIRST} is missing\\)",
    ),
    "extra": (
        lambda c: c["networks"]["vggish"].update(more=torch.ones(1)),
        "do not fit VGGish \\('more' is unknown\\)",
    ),
    "shape": (
        lambda c: c["networks"]["vggish"].update({FIRST: torch.ones(2, 1, 3, 3)}),
        "size mismatch of features.0",
    ),
    "type": (
        lambda c: c["networks"]["vggish"].update({FIRST: torch.ones(1, 1, 3, 3).int()}),
        "is torch.int32, not",
    ),
    "complex": (
        lambda c: c["networks"]["vggish"].update({FIRST: torch.ones(1, 1, 3, 3) * 1j}),
        "is torch.complex64, not",
    ),
    "no tensor": (
        lambda c: c["networks"]["vggish"].update({FIRST: [1.0]}),
        "features.0.weight is missing",
    ),
    "sparse": (
        lambda c: c["networks"]["vggish"].update({FIRST: torch.ones(3).to_sparse()}),
        "a tensor that is not dense",
    ),
    "nan": (lambda c: c["networks"]["vggish"][FIRST].fill_(torch.nan), "are not finite"),
    "stage": (
        lambda c: c.update(stage="judge_cnn"),
        "is a checkpoint of 'judge_cnn', not of 'train_vggish'; run train_vggish.py",
    ),
    "escape": (lambda c: c.update(stage="\x1b[2J"), r"is a checkpoint of '\\x1b\[2J', not of"),
    "version": (
        lambda c: c.update(version=99),
        "has checkpoint version 99, but this code reads version 2; run train_vggish.py",
    ),
    "older version": (
        lambda c: c.update(version=1),
        "t.pt has checkpoint version 1, but this code reads version 2; run train_vggish.py.$",
    ),
    "epoch": (lambda c: c.update(epoch="one"), "is no checkpoint of this project"),
    "config": (lambda c: c.update(config=["width"]), "is no checkpoint of this project"),
    "networks": (lambda c: c.update(networks={"vggish": 3}), "holds no weights"),
    "other network": (
        lambda c: c.update(networks={}),
        "is no whole checkpoint \\(no 'vggish'\\); run train_vggish.py",
    ),
    "no width": (lambda c: c["config"].pop("width"), "is no whole checkpoint \\(no 'width'\\)"),
    "width": (lambda c: c["config"].update(width="64"), "is no whole checkpoint"),
    "huge": (lambda c: c["config"].update(width=10**6), "do not fit VGGish \\(size mismatch"),
    "long sound": (
        lambda c: c["config"].update(frames=16 * 10**6),
        "its fingerprint does not fit its frames",
    ),
    "negative": (lambda c: c["config"].update(width=-1), "is no whole checkpoint|do not fit"),
    "frames": (
        lambda c: c.update(config={**c["config"], "frames": 17}, fingerprint=torch.zeros(17, 64)),
        "multiple of 16",
    ),
    "no fingerprint": (lambda c: c.update(fingerprint=None), "is no whole checkpoint"),
    "fingerprint": (lambda c: c["fingerprint"].add_(1), "sounds of this encoding was changed"),
    "hop": (lambda c: c["config"].update(hop=10**9), "is no whole checkpoint"),
    "encoding": (lambda c: c["config"]["encoding"].update(seconds=1e6), "take too much memory"),
    "rate": (
        lambda c: c["config"]["encoding"].update(sample_rate=16001),
        "cannot be resampled to 16000 Hz within memory",
    ),
    "curve": (
        lambda c: c["config"]["encoding"].update(curve="steep"),
        "curve is 'steep', but must be one of",
    ),
    "field": (
        lambda c: c["config"]["encoding"].update(more=1),
        "unexpected keyword argument 'more'",
    ),
    "nested": (lambda c: c.update(more=nested(50)), "holds too many values"),
    "doubled": (lambda c: c.update(more=doubled(40)), "holds too many values"),
    "stretched": (
        lambda c: c.update(more=torch.ones(1).expand(10**9)),
        "its tensors are larger than the file",
    ),
    "long": (lambda c: c.update(version=2**100), r"holds what no checkpoint does \(int\)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    change, said = DAMAGES[damage]
    damaged = checkpoint()
    change(damaged)
    torch.save(damaged, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=said) as refusal:
        load_audio_network(tmp_path)
    assert len(str(refusal.value)) < 1000


def test_a_valid_checkpoint_is_read_and_code_in_it_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint(), path)
    front_end, network, _ = load_audio_network(tmp_path)
    assert (front_end.encoding, network.width) == (E, 1)
    torch.save({**checkpoint(), "more": Code()}, path)
    for content in (path.read_bytes(), pickle.dumps(Code()), b"", b"PK\3\4"):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match="checkpoint.pt is damaged or no checkpoint; run train_vggish.py"
        ):
            load_audio_network(tmp_path)
    assert not Path("executed").exists()


def test_a_checkpoint_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({**checkpoint(), "more": torch.zeros(10**6)}, path)
    (tmp_path / "bomb").mkdir()
    with (
        zipfile.ZipFile(path) as whole,
        zipfile.ZipFile(tmp_path / "bomb" / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry))
    assert (tmp_path / "bomb" / "checkpoint.pt").stat().st_size < 1_500_000
    with pytest.raises(UserError, match="bomb/checkpoint.pt is damaged or no checkpoint"):
        load_audio_network(tmp_path / "bomb")
    monkeypatch.setattr(common.files, "MAX_FILE", 1000)
    with pytest.raises(UserError, match="checkpoint.pt has 0.0 GB, more than any checkpoint"):
        load_audio_network(tmp_path)


def test_a_damaged_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    for content in (b"{", b"[1]", b'{"config": 3}', b"\xff\xfe", b"[" * 10**5, b""):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match="metrics.json is (missing or damaged|no record of a run); run"
        ):
            read_metrics(tmp_path)
    for content in (
        b"",
        b"3\n",
        b'{"epoch": 2}\n',
        b'{"epoch": 1}\n{"epoch": 3}',
        b'{"epoch": 1, "loss": [1]}',
        b'{"epoch": 1, "loss": "0.5"}',
        b'{"epoch": 1, "loss": ' + b"9" * 4000 + b"}",
    ):
        (tmp_path / "log.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"log.jsonl is (missing or damaged|no whole)"):
            read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}')
    with pytest.raises(UserError, match=r"log.jsonl is no whole checkpoint \(no 'loss'\)"):
        read_log(tmp_path / "log.jsonl", numbers=("loss",))
    (tmp_path / "log.jsonl").unlink()
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="log.jsonl is missing or damaged"):
        read_log(tmp_path / "log.jsonl")
    monkeypatch.setattr(common.files, "MAX_RECORD", 10)
    path.write_text(json.dumps({"config": {}}))
    with pytest.raises(UserError, match="metrics.json is missing or damaged"):
        read_metrics(tmp_path)


# -- data sets


@pytest.mark.parametrize(
    "head",
    [struct.pack(">IIII", 2051, 2**31, 28, 28), struct.pack(">IIII", 2052, 20, 28, 28), b"\0\0"],
)
def test_a_false_header_of_an_idx_file_is_refused_before_it_is_read(
    head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    for prefix in ("train", "t10k"):
        write_idx(folder, prefix, numbered(20), np.arange(20) % 10)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(head + path.read_bytes()[16:])
    monkeypatch.setattr(datasets.MNIST, "_load_data", lambda _: pytest.fail("it was read"))
    with pytest.raises(
        UserError, match="train-images-idx3-ubyte is damaged; delete it and put a whole"
    ):
        load_digits("mnist", "train", tmp_path, "cpu")


def test_labels_that_are_no_digits_or_too_many_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, "train", numbered(20), np.arange(20))
    write_idx(folder, "t10k", numbered(20), np.arange(30) % 10)
    for part, message in (
        ("train", "raw/train-labels-idx1-ubyte holds no labels of MNIST; put another there"),
        ("test", "holds damaged files; .*: t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte.$"),
    ):
        with pytest.raises(UserError, match=message):
            load_digits("mnist", part, tmp_path, "cpu")
    write_idx(folder, "train", numbered(20), np.arange(20) % 10)
    with pytest.raises(
        UserError, match="holds 20 training images, but 5000 are needed for validation"
    ):
        load_digits("mnist", "train", tmp_path, "cpu")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("train-images.idx3-ubyte", "rename train-images.idx3-ubyte to train-images-idx3-ubyte"),
        ("t10k-labels-idx1-ubyte.gz", "unpack t10k-labels-idx1-ubyte.gz to t10k-labels-idx1-ubyte"),
    ],
)
def test_a_file_of_mnist_under_another_name_is_found(
    name: str, way_out: str, tmp_path: Path, no_download: None
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    for prefix in ("train", "t10k"):
        write_idx(folder, prefix, numbered(20), np.arange(20) % 10)
    (folder / name.replace(".idx", "-idx").removesuffix(".gz")).rename(folder / name)
    with pytest.raises(UserError, match=f"cannot be downloaded; {way_out}, or name their folder"):
        load_digits("mnist", "train", tmp_path, "cpu")


@pytest.mark.parametrize("place", ["mistyped/data", "MNIST", "."])
def test_a_refused_data_folder_is_left_as_it_was(
    place: str, tmp_path: Path, no_download: None
) -> None:
    (tmp_path / "MNIST").mkdir()
    with pytest.raises(UserError, match="cannot be downloaded; put there the files train-images"):
        load_digits("mnist", "train", tmp_path / place, "cpu")
    assert list(tmp_path.rglob("*")) == [tmp_path / "MNIST"]


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])


def test_fewer_images_than_an_epoch_or_a_batch_takes_are_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    loop.say_once.cache_clear()
    sizes = []
    for batch, take in ((4, None), (4, 30), (4, 30), (64, None), (8, 6)):
        config = SimpleNamespace(seed=0, epochs=2, batch=batch, images_per_epoch=take)
        batches = list(loop.epoch_batches(config, 2, 20, torch.device("cpu")))
        sizes.append([len(index) for index, _ in batches])
        assert [done for _, done in batches][0] == 0.5
    assert sizes == [[4] * 5, [4] * 5, [4] * 5, [20], [6]]
    assert capsys.readouterr().out.splitlines() == [
        "--images-per-epoch is 30, but there are 20 images; all are used.",
        "--batch is 64, more than an epoch's images; an epoch is one step of them.",
        "--batch is 8, more than an epoch's images; an epoch is one step of them.",
    ]


# -- pictures


def test_a_picture_that_unpacks_to_much_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 50_000_000, zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "bomb.png", pnginfo=text)
    with pytest.raises(UserError, match="bomb.png is damaged, or no picture"):
        read_picture(tmp_path / "bomb.png")
    # Were it opened, Pillow would start Ghostscript, which a machine may lack; this one stands in
    # for it.
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda tile, size, *_: Image.new("RGB", size).im
    )
    (tmp_path / "x.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(UserError, match="x.eps is damaged, or no picture"):
        read_picture(tmp_path / "x.eps")
    exif = Image.Exif()
    exif[0x0112] = 99  # no such orientation
    Image.new("L", (4, 4)).save(tmp_path / "odd.jpg", exif=exif)
    assert read_picture(tmp_path / "odd.jpg").shape == (4, 4)


# -- fuzz

# bytes beyond what the process had; the files below are small, and so are those they may claim to
# be
MEMORY = 300_000_000
SECONDS = 120  # for one file, on the slowest machine


def mutations(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    """Valid files with bytes changed, cut out, put in and copied; their beginnings; and random
    bytes."""
    place = st.integers(0, max(map(len, valid)))
    near = st.one_of(
        place, st.integers(0, 100), place.map(lambda p: -p % 400)
    )  # headers, and directories at the end

    def mutated(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for start, end, new in edits:
            start, end = start % (len(content) + 1), end % (len(content) + 1)
            content = (
                content[:start]
                + (new or content[min(start, end) : end])
                + content[start + len(new) :]
            )
        return content

    edits = st.lists(st.tuples(near, near, st.binary(max_size=8)), min_size=1, max_size=6)
    cut = st.tuples(st.sampled_from(valid), place).map(lambda pair: pair[0][: pair[1]])
    return st.one_of(
        st.builds(mutated, st.sampled_from(valid), edits), cut, st.binary(max_size=200)
    )


def saved(folder: Path, name: str, write: Callable[[Path], object]) -> bytes:
    write(folder / name)
    return (folder / name).read_bytes()


def readers(folder: Path) -> dict[str, tuple[list[bytes], Callable[[Path], object]]]:
    """Name -> files that are read, and the reader."""
    image = np.linspace(0, 255, 20 * 30).round().astype(np.uint8).reshape(20, 30)
    grey, colours = (
        Image.fromarray(image),
        Image.fromarray(np.stack([image, image[::-1], image[:, ::-1]], 2)),
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    drawn = [
        saved(folder, "a.png", grey.save),
        saved(folder, "b.png", Image.fromarray(image.astype(np.uint16) * 257).save),
        saved(folder, "c.png", colours.quantize(16).save),
        saved(folder, "d.jpg", lambda path: colours.save(path, exif=turned)),
        saved(folder, "e.jpg", colours.convert("CMYK").save),
        saved(
            folder,
            "f.gif",
            lambda path: grey.save(path, save_all=True, append_images=[grey.rotate(90)]),
        ),
        saved(folder, "g.tif", lambda path: colours.save(path, compression="tiff_lzw")),
        saved(folder, "h.bmp", colours.save),
        saved(folder, "i.webp", colours.save),
        saved(folder, "j.ppm", colours.save),
    ]
    noise = np.random.default_rng(0).uniform(-1, 1, E.samples)
    sounds = [
        saved(
            folder,
            f"k{kind}.{ending}",
            lambda p, k=kind: soundfile.write(p, noise, E.sample_rate, k),
        )
        for kind, ending in (("PCM_16", "wav"), ("FLOAT", "wav"), ("PCM_24", "flac"))
    ]
    kept = checkpoint()
    networks = [saved(folder, "l.pt", lambda path: torch.save(kept, path))]
    released = {
        f"features.{name}": value for name, value in VGGish(16, 1).features.state_dict().items()
    }
    old = [
        saved(
            folder,
            "m.pt",
            lambda p: torch.save(OrderedDict(released), p, _use_new_zipfile_serialization=False),
        ),
        saved(folder, "n.pt", lambda path: torch.save(released, path)),
    ]
    write_idx(folder / "MNIST" / "raw", "t10k", numbered(4), np.arange(4))
    write_idx(folder / "MNIST" / "raw", "train", numbered(4), np.arange(4))
    idx = folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte"

    def read_idx(path: Path) -> Digits:
        idx.write_bytes(path.read_bytes())
        return load_digits("mnist", "test", folder, "cpu")

    def read_record(path: Path) -> dict:
        path.rename(folder / "metrics.json")
        return read_metrics(folder)

    def read_network(path: Path) -> object:
        path.rename(folder / "checkpoint.pt")
        return load_audio_network(folder)

    record = json.dumps(
        {"config": {"seed": 0}, "stage": "judge_cnn", "test_accuracy": 0.5}
    ).encode()
    return {
        "picture": (drawn, read_picture),
        "sound": (sounds, lambda path: read_sound(path, E.sample_rate, (E.samples,))),
        "checkpoint": (networks, read_network),
        "released weights": (old, lambda path: load_audioset_convolutions(VGGish(16, 1), path)),
        "data set": ([idx.read_bytes()], read_idx),
        "record": ([record], read_record),
        "log": ([b'{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.25}\n'], read_log),
    }


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@pytest.mark.parametrize(
    "reader", ["picture", "sound", "checkpoint", "released weights", "data set", "record", "log"]
)
def test_any_file_is_read_or_refused_in_one_sentence(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No other exception, no hang, no memory beyond the bound."""
    monkeypatch.setattr(common.media, "MAX_PIXELS", 1_000_000)  # 28 MB
    monkeypatch.setattr(voice_translator, "LARGEST", 1_000_000)  # 8 MB in float64
    valid, read = readers(tmp_path)[reader]
    path = tmp_path / "fuzzed"

    @settings(
        max_examples=40 * THOROUGH, deadline=None, database=None, derandomize=THOROUGH == 1,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutations(valid))
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        before = peak()
        signal.alarm(SECONDS)
        try:
            read(path)
        except UserError as error:
            assert len(str(error)) < 1000
        finally:
            signal.alarm(0)
        assert peak() - before < MEMORY  # of one file: hypothesis keeps what it tried

    def fuzz_within_bounds() -> None:
        for content in valid:  # they are read, and the libraries are loaded
            path.write_bytes(content)
            read(path)
        fuzz()

    code = in_a_child(fuzz_within_bounds)
    assert code == 0, capfd.readouterr().err
