"""The comparison of encodings: what it runs and runs again, its engine, its linear decoder, and its
tables."""

import base64
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy import stats

import compare_encodings
import emnist_dcgan
import evaluate
import mnist_classify_train
import train_all
import train_vggish
from common.cli import command_line
from common.files import UserError
from compare_encodings import PRESETS, Config, schedule_of
from data import load_digits
from data.resize import upsample
from evaluation.compare import COLUMNS
from evaluation.encoding_report import RATINGS, conclusions, draw_ratings, tables
from evaluation.encodings import BASELINE, ENCODINGS, Condition
from evaluation.linear_decoder import PENALTIES, decode_linearly
from evaluation.metrics import correlation
from evaluation.significance import differences, t_interval
from evaluation.sweep import Schedule, Sweep, Trial, run_local, worker_devices
from training.figures import first_of_each_class
from training.run import Run, read_metrics
from vggish import ImageToLogMel
from voice_translator import Encoding, VoiceTranslator, to_pcm16

SMALL: dict[str, Any] = {"images_per_epoch": 96, "batch": 32}
SCHEDULE = Schedule(
    train_vggish.Config("handwritten", width=4, epochs=1, learning_rate=1e-3, **SMALL),
    mnist_classify_train.Config(
        "handwritten", epochs=1, cnn_epochs=1, vit_epochs=1, kernel_centres=100, **SMALL
    ),
    emnist_dcgan.Config("printed", width=4, epochs=1, **SMALL),
    train_all.Config(epochs=1, joint_epochs=1, **SMALL),
    evaluate.Config(),
    linear_images=300,
)
TWO = {
    BASELINE: Condition(Encoding(seconds=0.3)),
    "line": Condition(Encoding(seconds=0.3, curve="linear")),
}
FLAGS = ("--seeds", "0", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """Two encodings and stages of seconds, without curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_encodings, "ENCODINGS", TWO)
        patch.setattr(compare_encodings, "schedule_of", lambda config: SCHEDULE)
        patch.setattr(Run, "_draw", lambda run: None)
        patch.setattr(train_vggish, "save_soundscapes", lambda *_: None)
        yield


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run from now on, in order: `<script> of <encoding>`; stage two is `of encodings`."""
    ran: list[str] = []

    def watch(module: Any, function: str, name: str, folder: Callable[..., Path]) -> None:
        original = getattr(module, function)

        def watched(*args: Any) -> Any:
            ran.append(f"{name} of {folder(*args).parent.name.split('-')[0]}")
            return original(*args)

        monkeypatch.setattr(module, function, watched)

    for script in (train_vggish, mnist_classify_train, emnist_dcgan, train_all, evaluate):
        watch(script, "main", script.__name__, lambda config: config.results)
    decoder = sys.modules["evaluation.sweep"]
    watch(decoder, "decode_linearly", "decoder", lambda *args: args[-1])
    return ran


def compare(monkeypatch: pytest.MonkeyPatch, results: Path, *flags: str) -> int:
    """Run the command; returns the exit code."""
    arguments = ["compare_encodings.py", *FLAGS, *flags, "--results", str(results)]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        command_line(Config, compare_encodings.main, None, PRESETS)
    except SystemExit as end:
        return int(str(end.code))
    return 0


def folders(results: Path) -> dict[str, Path]:
    """Encoding -> its folder, and `memory`."""
    paths = (path for path in (results / "encodings").iterdir() if path.is_dir())
    return {path.name.split("-")[0]: path for path in paths}


def read_rows(results: Path) -> list[dict[str, str]]:
    with (results / "encodings" / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_conclusions(results: Path) -> str:
    return (results / "encodings" / "conclusions.md").read_text()


# -- the trials


class Outcome(NamedTuple):
    """How a command went."""

    code: int
    ran: list[str]
    rows: list[dict[str, str]]
    conclusions: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A results folder and three runs of one command. In the first, Ctrl-C stops a rating."""
    results = tmp_path_factory.mktemp("story")
    outcomes = []
    for number in range(3):
        with pytest.MonkeyPatch.context() as patch:
            if number == 0:

                def stop(config: Any) -> None:
                    raise KeyboardInterrupt

                patch.setattr(evaluate, "main", stop)
            ran = spy(patch)
            code = compare(patch, results)
            rows = read_rows(results) if number else []
            outcomes.append(Outcome(code, ran, rows, read_conclusions(results)))
    return results, outcomes


@pytest.fixture
def finished(story: tuple[Path, list[Outcome]]) -> Path:
    """The results at the end. Read them only."""
    return story[0]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A writable copy of the results at the end."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


def test_a_stopped_comparison_continues_and_runs_nothing_twice(
    story: tuple[Path, list[Outcome]],
) -> None:
    results, (first, second, third) = story
    assert [one.code for one in (first, second, third)] == [130, 0, 0]
    shared = ["mnist_classify_train of encodings", "emnist_dcgan of encodings"]
    decoders = [f"decoder of {BASELINE}", "decoder of line"]
    trial = ["train_vggish of {}", "train_all of {}", "evaluate of {}"]
    assert first.ran == [*shared, *decoders, *(one.format(BASELINE) for one in trial)]
    assert f"Not finished: {BASELINE}, seed 0; line, seed 0." in first.conclusions
    assert second.ran == [f"evaluate of {BASELINE}", *(one.format("line") for one in trial)]
    assert [row["encoding"] for row in second.rows] == [BASELINE, "line"]
    assert "Not finished" not in second.conclusions
    assert third.ran == []
    assert (third.rows, third.conclusions) == (second.rows, second.conclusions)
    assert set(folders(results)) == {"memory", BASELINE, "line"}
    assert not list(results.rglob("last.pt"))
    assert not list(results.rglob(".*.lock"))


def test_the_table_is_printed(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, copied) == 0
    said = capsys.readouterr().out
    table = said[said.index("## right") : said.index("4 of 4")]
    assert read_conclusions(copied).endswith(table.rstrip() + "\n")
    assert "4 of 4 trials are finished." in said


def test_the_pictures_are_written(finished: Path) -> None:
    with Image.open(finished / "encodings" / "sheet.png") as sheet:
        assert sheet.width > 3 * sheet.height  # three strips of ten digits, and three rows
    with Image.open(finished / "encodings" / "ratings.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) == 255


def test_the_page_holds_the_translators_sounds(finished: Path) -> None:
    page = (finished / "encodings" / "sounds.html").read_text(encoding="utf-8")
    sounds = [base64.b64decode(one) for one in re.findall(r"data:audio/wav;base64,([^\"]+)", page)]
    digits = load_digits("handwritten", "test", Path(), "cpu")
    first = digits.images[first_of_each_class(digits.labels, 1)[:, 0]]
    assert len(sounds) == 10 * len(TWO)
    heard = [soundfile.read(io.BytesIO(one), dtype="int16")[0] for one in sounds[:2]]
    for condition in TWO.values():
        expected = to_pcm16(VoiceTranslator(condition.encoding)(first))[0].numpy()
        assert any(np.array_equal(one, expected) for one in heard)


def test_the_rows_hold_the_numbers_of_the_ratings(finished: Path) -> None:
    for row in read_rows(finished):
        folder = folders(finished)[row["encoding"]] / row["seed"]
        rating = json.loads((folder / "train_all" / "evaluation" / "metrics.json").read_text())
        assert float(row["judges_mean"]) == rating["judges_mean"]["accuracy"]
        assert set(COLUMNS) < set(row)
        stage = read_metrics(folder / "train_all")
        assert float(row["correlation"]) == pytest.approx(stage["correlation"], abs=1e-6)
        assert float(row["cnn"]) == pytest.approx(stage["judge_accuracy"])
        linear = read_metrics(folder.parent / "linear")
        assert float(row["linear_correlation"]) == linear["correlation"]["mean"]
        assert (row["frames"], row["frames_a_column"]) == ("32", "1.07")  # 0.3 s / 28 / 10 ms
        heard = torch.load(folder / "train_vggish" / "checkpoint.pt", weights_only=True)["config"]
        assert heard["encoding"] == dataclasses.asdict(TWO[row["encoding"]].encoding)


def test_stage_two_is_shared_without_links_and_the_results_can_be_moved(copied: Path) -> None:
    memory = folders(copied)["memory"].resolve()
    for name in TWO:
        trial = folders(copied)[name] / "0"
        assert {path.name for path in trial.iterdir() if path.is_dir()} == {
            "train_vggish", "train_all",
        }  # fmt: skip
        assert not any(path.is_symlink() for path in trial.iterdir())
        upstream = read_metrics(trial / "train_all")["config"]["upstream"]
        generator = (trial / "train_all" / upstream["emnist_dcgan"]).resolve()
        assert generator == memory / "emnist_dcgan"


def test_an_encoding_whose_code_was_changed_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, frequencies, folder = spy(monkeypatch), Encoding.frequencies, folders(copied)["line"]
    monkeypatch.setattr(
        Encoding, "frequencies", lambda e: frequencies(e) * (1.01 if e.curve == "linear" else 1)
    )
    assert compare(monkeypatch, copied) == 2
    said = capsys.readouterr().err
    assert f"the encoding line was changed after {folder} was begun; delete that folder" in said
    (folder / "sound.pt").write_bytes(b"x")
    assert compare(monkeypatch, copied) == 2
    assert f"delete {folder}/sound.pt, and run again" in capsys.readouterr().err
    assert ran == []


def test_a_failed_trial_is_reported_and_the_others_are_finished(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "mel": Condition(Encoding(seconds=0.3, curve="mel")),
        "line": Condition(Encoding(seconds=0.25, curve="linear")),
        "bark": Condition(Encoding(seconds=0.3, curve="bark")),
    }
    monkeypatch.setattr(compare_encodings, "ENCODINGS", {**TWO, **more})
    ran, original = spy(monkeypatch), train_vggish.main

    def fail(config: train_vggish.Config) -> Any:
        if config.encoding.curve == "mel":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if config.encoding.curve == "bark":
            raise KeyError("a mistake")
        return original(config)

    monkeypatch.setattr(train_vggish, "main", fail)
    old = folders(copied)["line"].name
    assert compare(monkeypatch, copied) == 2
    assert ran[3:] == ["train_vggish of line", "train_all of line", "evaluate of line"]
    mel, bark, end = capsys.readouterr().err.splitlines()
    assert mel.startswith("mel, seed 0: the memory does not suffice (CUDA out of memory.")
    assert bark.startswith("bark, seed 0: KeyError ('a mistake'); see ")
    assert "Traceback" in (folders(copied)["bark"] / "0" / "output.txt").read_text()
    assert "2 of 8 trials failed, as said above" in end
    assert "Not finished: mel, seed 0; bark, seed 0." in read_conclusions(copied)

    # An encoding that is not in the header any more counts too, under the name of its folder.
    assert [row["encoding"] for row in read_rows(copied)] == [BASELINE, "line", old]
    # The table does not depend on --only.
    assert compare(monkeypatch, copied, "--only", BASELINE) == 0
    assert [row["encoding"] for row in read_rows(copied)] == [BASELINE, "line", old]
    # Without a trial of the named seed there is nothing in the table.
    monkeypatch.setattr(train_vggish, "main", lambda config: fail(config) and 1 / 0)
    assert compare(monkeypatch, copied, "--only", "mel", "--seeds", "5") == 2
    assert read_rows(copied) == []


def sweep(schedule: Schedule, encodings: dict[str, Condition] = TWO) -> Sweep:
    return Sweep(encodings, (), (0, 1), schedule, {}, Path("data"), Path("results"))


def test_the_key_stands_for_what_is_computed() -> None:
    longer, moved = (
        dataclasses.replace(SCHEDULE, vggish=dataclasses.replace(SCHEDULE.vggish, **change))
        for change in ({"epochs": 7}, {"seed": 7, "results": Path("elsewhere"), "device": "cpu"})
    )
    assert sweep(longer).memory == sweep(SCHEDULE).memory
    known = {trial.folder for trial in sweep(SCHEDULE).trials()}
    assert known.isdisjoint(trial.folder for trial in sweep(longer).trials())
    assert known == {trial.folder for trial in sweep(moved).trials()}


@pytest.mark.parametrize(
    ("flags", "encodings", "message"),
    [
        (("--only", "mystery"), {}, "there is no encoding mystery; give some of primary, line"),
        (("--seeds", "1", "1"), {}, "give at least one seed, and each once"),
        (("--seeds", "9999999999999"), {}, "--seed is 9999999999999; give at most"),
        ((), {"a/b": Condition()}, "the encoding 'a/b' cannot name a folder"),
        ((), {"odd": Condition(frames=100)}, "odd: frames is 100, but must be a multiple of 16"),
        ((), {"odd": Condition(frames=96)}, "odd: 96 frames cut its sound off; give 112, or None"),
        ((), {"odd": Condition(hop=500)}, "odd: hop is 500 samples, but must be from 1 to 400"),
    ],
)
def test_an_impossible_comparison_is_refused_before_any_work(
    flags: tuple, encodings: dict, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(compare_encodings, "ENCODINGS", {**TWO, **encodings})
    ran = spy(monkeypatch)
    assert compare(monkeypatch, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert ran == []


def test_an_impossible_setting_of_a_stage_is_refused() -> None:
    with pytest.raises(UserError, match="--batch is 0; give at least 2"):
        sweep(dataclasses.replace(SCHEDULE, joint=train_all.Config(batch=0)))


# -- presets


def test_the_presets_are_those_of_the_stages() -> None:
    schedule = schedule_of(PRESETS["published"])
    assert schedule.vggish == train_vggish.PRESETS["published"]
    assert schedule.classifier == mnist_classify_train.PRESETS["published"]
    assert schedule.gan == emnist_dcgan.PRESETS["published"]
    assert schedule.joint == train_all.PRESETS["sound-consistent"]
    changed = dataclasses.replace(PRESETS["demo"], objective="published", split="byclass")
    schedule = schedule_of(changed)
    assert schedule.joint == train_all.PRESETS["demo"]
    assert schedule.gan == dataclasses.replace(emnist_dcgan.PRESETS["demo"], split="byclass")
    small = schedule_of(PRESETS["small"]).joint
    assert dataclasses.replace(
        small, epochs=10, joint_epochs=9, images_per_epoch=15_000
    ) == train_all.PRESETS["small-sound-consistent"]  # fmt: skip


def test_every_encoding_is_heard_to_its_end_and_most_by_the_network_of_the_baseline() -> None:
    found = sweep(SCHEDULE, ENCODINGS).trials()
    assert [trial.name for trial in found if trial.seed == 1] == list(ENCODINGS)
    assert len({trial.folder.parent for trial in found}) == len(ENCODINGS) >= 11
    frames = {
        name: ImageToLogMel(one.encoding, one.frames, one.hop).frames
        for name, one in ENCODINGS.items()
    }
    others = {name: count for name, count in frames.items() if count != 112}
    assert others == {"longer": 208, "primary_in_208_frames": 208, "shorter": 64}


# -- the engine


def note_process(trial: Trial, device: str) -> tuple[Trial, str]:
    """A trial that writes which device it got, and which process ran it."""
    (trial.folder / trial.name).write_text(f"{device} {os.getpid()}")
    if trial.name == "killed":
        os._exit(1)
    return trial, "a reason" if trial.name == "1" else ""


def trials_in(folder: Path, *names: str) -> list[Trial]:
    return [Trial(name, Condition(), 0, folder, folder) for name in names]


def test_workers_run_the_trials_each_on_its_own_device(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, *map(str, range(6)))
    results = dict(run_local(note_process, trials, ["cuda:0", "cuda:1"], tmp_path))
    assert results == {trial: "a reason" if trial.name == "1" else "" for trial in trials}
    noted = [(tmp_path / trial.name).read_text().split() for trial in trials]
    assert {device for device, _ in noted} <= {"cuda:0", "cuda:1"}
    assert str(os.getpid()) not in {process for _, process in noted}
    assert not list(tmp_path.glob(".*.lock"))
    # One worker is this process.
    assert dict(run_local(note_process, trials, ["cpu"], tmp_path)) == results
    assert (tmp_path / "0").read_text() == f"cpu {os.getpid()}"


def test_a_killed_worker_ends_the_comparison_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a worker was killed, .* with fewer --workers"):
        list(run_local(note_process, trials_in(tmp_path, "0", "killed"), ["a", "b"], tmp_path))


def test_each_worker_gets_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_devices(None, "auto") == ["auto"]
    assert worker_devices(2, "cpu") == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_devices(None, "auto") == ["cuda:0", "cuda:1"]
    assert worker_devices(3, "auto") == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_devices(None, "cuda:1") == ["cuda:1"]


# -- the linear decoder


def fit_by_hand(x: np.ndarray, y: np.ndarray, unseen: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge regression in its dual form, by NumPy."""
    centre, offset = x.mean(0), y.mean(0)
    gram = (x - centre) @ (x - centre).T
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram) / len(gram)
    weights = (x - centre).T @ np.linalg.solve(gram, y - offset)
    return (unseen - centre) @ weights + offset


def test_the_linear_decoder_agrees_with_a_ridge_regression_by_hand(finished: Path) -> None:
    metrics = read_metrics(folders(finished)[BASELINE] / "linear")
    front_end = ImageToLogMel(TWO[BASELINE].encoding)
    train, test = (load_digits("handwritten", part, Path(), "cpu") for part in ("train", "test"))
    hear = lambda images: front_end(images).flatten(1).double().numpy()  # noqa: E731
    pixels = train.images[:300].flatten(1).double().numpy() / 255
    logmels, unseen = hear(train.images[:300]), hear(test.images)
    decoded = torch.from_numpy(fit_by_hand(logmels, pixels, unseen, metrics["penalty"]))
    decoded = upsample(255 * decoded.float().clamp(0, 1).unflatten(1, (28, 28)))
    expected = correlation(decoded, upsample(test.images)).double().mean().item()
    assert metrics["correlation"]["mean"] == pytest.approx(expected, abs=1e-6)


def test_the_linear_decoder_recovers_unseen_digits(finished: Path) -> None:
    metrics = read_metrics(folders(finished)[BASELINE] / "linear")
    assert metrics["correlation"]["mean"] > 0.9
    assert metrics["retrieval"]["overall"]["accuracy"] > 0.8
    assert metrics["images"] == 300
    scores = metrics["validation_correlation"]
    assert len(scores) == len(PENALTIES)
    assert scores[str(metrics["penalty"])] == max(scores.values()) > min(scores.values())
    folder = folders(finished)[BASELINE]
    decoded = torch.load(folder / "linear" / "shown.pt", weights_only=True)["decoded"]
    heard = torch.load(folder / "0" / "shown.pt", weights_only=True)["heard"]
    assert np.corrcoef(decoded.flatten(), heard.flatten())[0, 1] > 0.9  # the same digits


def test_the_linear_decoder_recovers_less_from_a_coarse_sound(
    finished: Path, tmp_path: Path
) -> None:
    coarse = Condition(Encoding(seconds=0.3, rows=4, columns=4))
    decode_linearly(coarse, "handwritten", 300, Path(), torch.device("cpu"), tmp_path)
    fine = read_metrics(folders(finished)[BASELINE] / "linear")
    assert read_metrics(tmp_path)["correlation"]["mean"] < fine["correlation"]["mean"] - 0.05


# -- the tables


def make_rows(values: dict[str, list[float]], linear: float | None = None) -> list[dict]:
    more = {"linear_correlation": linear, "linear_retrieval": linear}
    return [
        {"encoding": name, "seed": seed, **dict.fromkeys(RATINGS, value), **more}
        for name, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]


def cells(text: str, name: str) -> list[str]:
    """The cells of the first line of an encoding."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


VALUES = {
    BASELINE: [0.90, 0.92, 0.91],
    "far": [0.50, 0.52, 0.51],
    "near": [0.91, 0.93, 0.90],
    "above": [0.990, 0.991, 0.992],
    "lonely": [0.2],
}


def test_the_differences_agree_with_welch_and_holm_by_hand() -> None:
    found = differences(VALUES)
    assert set(found) == {"far", "near", "above"}
    p, reference = {}, np.array(VALUES[BASELINE])
    for name in found:
        values = np.array(VALUES[name])
        parts = values.var(ddof=1) / len(values), reference.var(ddof=1) / len(reference)
        # Welch and Satterthwaite, 3 - 1 = 2 each
        freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
        t = (values.mean() - reference.mean()) / sum(parts) ** 0.5
        p[name] = 2 * stats.t.sf(abs(t), freedom)
        assert found[name].mean == pytest.approx(values.mean() - reference.mean())
        low, high = found[name].interval
        assert low < found[name].mean < high
        assert found[name].significant == (low > 0 or high < 0)
        level = {"far": 0.05 / 3, "above": 0.05 / 2, "near": 0.05}[name]
        half = stats.t.ppf(1 - level / 2, freedom) * sum(parts) ** 0.5
        assert (high - low) / 2 == pytest.approx(half)
    assert p["far"] < p["above"] < p["near"]
    expected = {"far": 3 * p["far"], "above": 2 * p["above"], "near": p["near"]}
    assert {name: one.p for name, one in found.items()} == pytest.approx(expected)
    assert [name for name in found if found[name].significant] == ["far", "above"]


def test_a_difference_that_is_significant_alone_need_not_be_so_among_others() -> None:
    """Two encodings at p = 0.03 each."""
    one = [0.0, 1.0, 2.0]
    shifted = next(
        [value + shift for value in one]
        for shift in np.arange(1, 9, 0.01)
        if stats.ttest_ind([value + shift for value in one], one, equal_var=False).pvalue < 0.03
    )
    assert differences({BASELINE: one, "a": shifted})["a"].significant
    together = differences({BASELINE: one, "a": shifted, "b": shifted})
    assert [one.significant for one in together.values()] == [False, False]
    assert [one.p for one in together.values()] == pytest.approx([0.06, 0.06], abs=1e-3)
    assert all(one.interval[0] < 0 for one in together.values())


def test_the_seeds_needed_give_a_power_of_80_percent() -> None:
    found = differences({BASELINE: [0.0, 1.0, 2.0], "a": [0.8, 1.8, 2.8], "b": [0.001, 1, 2]})
    assert found["b"].seeds_needed is None
    needed, level = found["a"].seeds_needed, 0.05 / 2  # of a spread of 1, and a difference of 0.8
    assert needed
    power = []
    for count in (needed - 1, needed):
        freedom = 2 * count - 2
        limit = stats.t.ppf(1 - level / 2, freedom)
        power.append(stats.nct.sf(limit, freedom, 0.8 * (count / 2) ** 0.5))
    assert power[0] < 0.8 <= power[1]
    # Two seeds a group find a difference of 4.4 deviations in half of the cases only.
    assert differences({BASELINE: [0.0, 1.0], "a": [3.1, 4.1]})["a"].seeds_needed == 3
    assert differences({BASELINE: [0.0, 1e-9], "a": [3.1, 3.1]})["a"].seeds_needed == 2


def test_the_table_says_what_is_significant_and_over_how_many_encodings() -> None:
    text = conclusions(make_rows(VALUES, linear=0.95), "Tiny.", ["near, seed 3"])
    above = cells(text, "above")
    assert above[:4] == ["above", "3", "0.991 ± 0.001", "+0.081"]
    assert above[4].startswith("+0.0") and above[6] == "yes"
    assert cells(text, "far")[6] == "yes"
    near = cells(text, "near")
    assert near[3] == "+0.003" and near[4].startswith("-0.") and near[6] == "no"
    assert float(near[5]) > 0.05 and int(near[7]) > 3
    assert cells(text, "lonely")[1:] == ["1", "0.200", "", "", "", "", ""]
    assert text.count("Encodings in the correction: 3.") == 3
    assert "Not finished: near, seed 3." in text
    assert "The seeds are few." in text
    order = [text.index(f"| {name} ") for name in ("above", "near", BASELINE, "far", "lonely")]
    assert order == sorted(order)
    correlations = tables(make_rows(VALUES, linear=0.95)).split("## ")[2]
    assert cells(correlations, "far")[8] == "0.950"


@pytest.mark.parametrize(
    "values",
    [{}, {BASELINE: [0.9]}, {BASELINE: [0.9, 0.8]}, {BASELINE: [0.9], "far": [0.1]},
     {"far": [0.1, 0.2], "near": [0.8, 0.9]}, {BASELINE: [0.5, 0.5], "same": [0.4, 0.4]}],
)  # fmt: skip
def test_without_a_baseline_another_encoding_and_two_seeds_nothing_is_tested(values: dict) -> None:
    text = conclusions(make_rows(values), "Tiny.", [])
    assert text.count("No difference is tested") == 3
    assert "correction: 0" not in text
    assert " yes " not in text


def test_many_seeds_are_not_called_few() -> None:
    rows = make_rows({BASELINE: [0.9, 0.91, 0.92, 0.93]})
    assert "few" not in conclusions(rows, "Tiny.", [])


def test_the_interval_is_students() -> None:
    values = [0.9, 0.95, 0.91]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert t_interval([0.9]) is None
    assert t_interval([0.9, 0.9]) == (0.9, 0.9)


def test_the_intervals_in_the_picture_stay_within_what_a_share_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot

    def watch(axes: Any, x: Any, *args: Any, **more: Any) -> Any:
        drawn.extend(np.ravel(x))
        return plot(axes, x, *args, **more)

    monkeypatch.setattr(Axes, "plot", watch)
    values = {BASELINE: [0.99, 1.0, 0.8], "far": [0.0, 0.2, 0.01]}
    draw_ratings(tmp_path / "ratings.png", make_rows(values, linear=0.95))
    assert t_interval(values[BASELINE])[1] > 1 == max(drawn)
    assert min(drawn) < 0  # a correlation may be
