"""Stage one: what it leaves, what it learns, and what it refuses."""

import copy
import dataclasses
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import header, weights

import train_vggish
from common.files import UserError
from data import load_digits
from training.figures import save_soundscapes
from training.run import Run
from training.upstream import load_audio_network
from vggish import ImageToLogMel
from voice_translator import Encoding

pytestmark = pytest.mark.usefixtures("fewer_digits", "no_curves")


def test_soundscapes_wav_holds_the_sounds_of_the_translator(chain: Path) -> None:
    wave, rate = soundfile.read(chain / "train_vggish" / "soundscapes.wav")
    digits = load_digits("handwritten", "test", Path(), "cpu")
    first = ImageToLogMel(Encoding()).translator(digits.images[digits.labels == 0][:1])[0]
    assert rate == 16000
    assert len(wave) == 10 * (16800 + 8000)
    # 16 bits round by half a step, and libsndfile writes 1.0 as 32767 but reads 32768 as 1.0.
    torch.testing.assert_close(
        torch.from_numpy(wave[:16800]).float(), first, atol=1.6 / 32768, rtol=0
    )


def test_a_full_disk_while_soundscapes_are_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    digits = load_digits("handwritten", "test", Path(), "cpu")
    front_end = ImageToLogMel(Encoding(seconds=0.3))
    message = r"soundscapes.wav cannot be written .*No space left on device.*; free or unlock"
    with pytest.raises(UserError, match=message):
        save_soundscapes(tmp_path, front_end, digits.images[:2], digits.labels[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["soundscapes.png"]


def test_another_seed_gives_other_weights_and_an_older_run_is_kept(results: Path) -> None:
    before = (results / "train_vggish" / "metrics.json").read_text()
    train_vggish.main(header(train_vggish, results, epochs=1))
    train_vggish.main(header(train_vggish, results, epochs=1, seed=1))
    assert (results / "train_vggish.1" / "metrics.json").read_text() == before
    one, other = (weights(results / name) for name in ("train_vggish.2", "train_vggish"))
    name = "vggish.features.0.weight"
    assert not torch.equal(one[name], other[name])


def test_it_learns_to_classify_sounds(tmp_path: Path) -> None:
    settings = {"epochs": 3, "images_per_epoch": None, "learning_rate": 3e-3, "late_epoch": 3}
    metrics = train_vggish.main(header(train_vggish, tmp_path, **settings))
    assert metrics["test_accuracy"] > 0.6  # chance is 0.1


def test_the_published_cut_is_available(tmp_path: Path) -> None:
    train_vggish.main(header(train_vggish, tmp_path, frames=96, epochs=1))
    front_end, network, _ = load_audio_network(tmp_path / "train_vggish")
    assert (front_end.frames, network.embedding[0].in_features) == (96, 96 // 16 * 4 * 8 * 4)


def test_frames_that_pooling_would_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        train_vggish.main(header(train_vggish, tmp_path, frames=100))


def test_resume_refuses_other_settings_and_damaged_states(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "metrics.json was made with another seed .*; set the header back, or leave out"
    with pytest.raises(UserError, match=message):
        train_vggish.main(header(train_vggish, results, seed=1, resume=True))
    end_epoch = Run.end_epoch

    def stopping(run: Run, *rest: object, **named: object) -> None:
        end_epoch(run, *rest, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "end_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_vggish.main(header(train_vggish, results))
    settings = header(train_vggish, results, resume=True)
    with pytest.raises(UserError, match=r"another learning_rate \(learning_rate: 0.001\)"):
        train_vggish.main(dataclasses.replace(settings, learning_rate=0.1))
    path = results / "train_vggish" / "last.pt"
    last = torch.load(path, weights_only=True)
    other_data = {**last["sha256"], "data/train": "0"}
    flat = copy.deepcopy(last["state"])  # a fused optimiser would read beyond such a tensor
    for moments in flat["optimiser"]["state"].values():
        moments["exp_avg"] = torch.tensor(0.0)
    for key, damaged, message in (
        ("state", {}, r"last.pt is no whole checkpoint \(no 'optimiser'\); leave out --resume"),
        ("state", flat, "the state of optimiser does not fit"),
        ("history", [], "its epochs do not follow one another"),
        ("sha256", other_data, "was made from another data/train than is here now; put it back"),
        ("version", 1, "has checkpoint version 1, but this code reads version 2; leave out"),
    ):
        torch.save({**last, key: damaged}, path)
        with pytest.raises(UserError, match=message):
            train_vggish.main(settings)
