"""The comparison of encodings: killed and gone on with, shared by processes, its linear inverse,
and what it concludes."""

import csv
import dataclasses
import fcntl
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT, script
from PIL import Image
from scipy import stats
from sklearn.linear_model import Ridge

import compare_encodings
import emnist_dcgan
import evaluate
import mnist_classify_train
import train_all
import train_vggish
from common.cli import command_line
from common.files import UserError
from common.locks import FolderLocked
from compare_encodings import ENCODINGS, FULL, QUICK, Config, main, scheduled
from emnist_dcgan import Config
from evaluate import Config
from evaluation.compare import COLUMNS
from evaluation.encoding_report import conclusions
from evaluation.linear_decoder import PENALTIES, fit_ridges, invert_linearly
from evaluation.significance import differences, t_interval
from evaluation.sweep import (
    BASELINE,
    Condition,
    Trial,
    hyperparameters,
    link_upstream,
    list_trials,
    locked,
    upstream_settings,
)
from mnist_classify_train import Config
from train_all import Config
from train_vggish import Config, main
from training.run import read_metrics
from vggish import ImageToLogMel
from voice_translator import Encoding

# What a user would write into the header: seconds a cell. In the script's own copy for the process
# that is killed, and in the module for those in this one.
HEADER = """
small = {"images_per_epoch": 96, "batch": 32}
ENCODINGS = {
    BASELINE: Condition(Encoding(seconds=0.3)),
    "line": Condition(Encoding(seconds=0.3, curve="linear")),
}
QUICK = Schedule(
    hear=Config(dataset="handwritten", width=4, epochs=1, learning_rate=1e-3, **small),
    read=Config(dataset="handwritten", epochs=1, judge_epochs=1, **small),
    remember=Config(dataset="printed", width=4, epochs=1, **small),
    imagine=Config(epochs=1, joint_epochs=1, **small),
    rate=Config(judges_epochs=1, judges_batch=64, kernel_centres=200),
    linear_images=300,
)
"""
LISTED = ENCODINGS  # the script's own
FLAGS = ("--quick", "--seeds", "0", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def header() -> Iterator[None]:
    edited = dict(vars(compare_encodings))
    exec(HEADER, edited)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("ENCODINGS", "QUICK"):
            monkeypatch.setattr(compare_encodings, name, edited[name])
        for name in (
            "save_curves",
            "save_soundscapes",
        ):  # half of a cell's time, and tested with the stages
            monkeypatch.setattr(figures, name, lambda *_: None)
        yield


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run from now on, in order: `<script> of <encoding>`; stage two is `of results`."""
    ran: list[str] = []

    def watch(module: object, function: str, named: str, where: Callable[..., Path]) -> None:
        original = getattr(module, function)

        def watched(*args: object) -> object:
            ran.append(f"{named} of {where(*args).name.split('-')[0]}")
            return original(*args)

        monkeypatch.setattr(module, function, watched)

    for stage in (train_vggish, mnist_classify_train, emnist_dcgan, train_all, evaluate):
        watch(stage, "main", stage.__name__, lambda config: config.results.parent)
    watch(
        compare_encodings,
        "invert_linearly",
        "linear",
        lambda config, schedule, cell, device: cell.folder.parent,
    )
    return ran


def compare(monkeypatch: pytest.MonkeyPatch, results: Path, *flags: str) -> int:
    """Give the command; the exit code."""
    monkeypatch.setattr(
        sys, "argv", ["compare_encodings.py", *FLAGS, *flags, "--results", str(results)]
    )
    try:
        command_line(Config, main, None)
    except SystemExit as end:
        return end.code
    return 0


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """As another process would: the lock is on the open file, not on the process that opened it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        file.write("process 7 on another machine")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cells(results: Path) -> dict[str, Path]:
    return {
        path.name.split("-")[0]: path for path in (results / "encodings").iterdir() if path.is_dir()
    }


def read_rows(results: Path) -> list[dict[str, str]]:
    with (results / "encodings" / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- the work ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a process that was killed before the first rating."""
    folder = tmp_path_factory.mktemp("killed")
    text = (ROOT / "compare_encodings.py").read_text()
    guard = 'if __name__ == "__main__":'
    assert text.count(guard) == 1
    kill = "import signal\nevaluate.main = lambda config: os.kill(os.getpid(), signal.SIGKILL)\n"
    (folder / "compare_encodings.py").write_text(text.replace(guard, HEADER + kill + guard))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        done = script(
            str(folder / "compare_encodings.py"), *FLAGS, "--results", str(folder / "results")
        )
    assert done.returncode == -9, done.stderr
    return folder / "results"


class Went(NamedTuple):
    """How a command went."""

    code: int
    ran: list[str]
    rows: list[dict[str, str]]
    conclusions: str


@pytest.fixture(scope="module")
def story(killed: Path) -> tuple[Path, list[Went]]:
    """The killed process's results, and the same command three times more; in the first, another
    holds one of the cells."""
    told = []
    line = cells(killed)["line"] / "0"
    for held in (True, False, False):
        with pytest.MonkeyPatch.context() as monkeypatch:
            ran = spy(monkeypatch)
            with held_by_another(line) if held else nullcontext():
                code = compare(monkeypatch, killed)
        told.append(
            Went(
                code, ran, read_rows(killed), (killed / "encodings" / "conclusions.md").read_text()
            )
        )
    return killed, told


@pytest.fixture
def finished(story: tuple[Path, list[Went]]) -> Path:
    """The results at the end. Read them only."""
    return story[0]


def test_it_goes_on_where_it_was_killed_and_leaves_to_others_what_they_hold(
    story: tuple[Path, list[Went]],
) -> None:
    results, (first, second, third) = story
    assert set(cells(results)) == {"memory", BASELINE, "line"}
    assert [went.code for went in (first, second, third)] == [0, 0, 0]
    assert first.ran == [
        f"evaluate of {BASELINE}"
    ]  # of the killed cell, only what was not finished
    assert [row["encoding"] for row in first.rows] == [BASELINE]
    assert "Not finished yet**, 1 cells: line, seed 0." in first.conclusions
    assert second.ran == ["train_vggish of line", "train_all of line", "evaluate of line"]
    assert [row["encoding"] for row in second.rows] == [BASELINE, "line"]
    assert "Not finished" not in second.conclusions
    assert third.ran == []
    assert (third.rows, third.conclusions) == (second.rows, second.conclusions)
    assert not list(results.rglob(".*.lock"))


def test_who_holds_a_cell_is_said(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    line = Trial("line", ENCODINGS["line"], 5, cells(finished)["line"] / "5")
    monkeypatch.setattr(compare_encodings, "list_cells", lambda *_: [line])
    monkeypatch.setattr(compare_encodings, "summarise", lambda *_: [])
    with held_by_another(line.folder):
        assert compare(monkeypatch, finished) == 0
    said = capsys.readouterr().out
    assert f"{line.folder} is in use by process 7 on another machine" in said
    assert "0 of 1 cells are finished" in said
    assert "in other processes' hands" in said


def test_the_pictures_are_there(finished: Path) -> None:
    with Image.open(finished / "encodings" / "sheet.png") as sheet:
        assert (
            sheet.width > 3 * sheet.height
        )  # three strips of ten digits, for an image and two encodings
    with Image.open(finished / "encodings" / "ratings.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) == 255


def test_the_numbers_are_evaluates(finished: Path) -> None:
    for row in read_rows(finished):
        folder = cells(finished)[row["encoding"]] / row["seed"]
        rating = json.loads((folder / "evaluation" / "metrics.json").read_text())
        assert float(row["judges_mean"]) == rating["judges_mean"]["accuracy"]
        assert set(COLUMNS) < set(row)
        stage = read_metrics(folder / "train_all")
        assert float(row["correlation"]) == pytest.approx(stage["correlation"], abs=1e-6)
        assert float(row["residual"]) == pytest.approx(stage["judge_accuracy"])
        assert float(row["sound_classifier"]) == pytest.approx(
            read_metrics(folder / "train_vggish")["test_accuracy"]
        )
        linear = read_metrics(folder.parent / "linear")
        assert float(row["linear_correlation"]) == linear["correlation"]["mean"]
        assert (row["frames"], row["frames_a_column"]) == ("32", "1.07")  # 0.3 s / 28 / 10 ms
        heard = torch.load(folder / "train_vggish" / "checkpoint.pt", weights_only=True)["config"]
        assert heard["encoding"] == dataclasses.asdict(ENCODINGS[row["encoding"]].encoding)


def test_stage_two_is_shared_and_a_moved_folder_still_has_it(
    finished: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(finished, tmp_path / "elsewhere", symlinks=True))
    for name in (BASELINE, "line"):
        for stage in ("mnist_classify_train", "judge", "emnist_dcgan"):
            link = cells(moved)[name] / "0" / stage
            assert link.is_symlink()
            assert link.resolve() == (cells(moved)["memory"] / stage).resolve()
        assert not (cells(moved)[name] / "0" / "judges").exists()


def test_a_rating_by_other_judges_is_not_taken_for_the_cells_own(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results = Path(shutil.copytree(finished, tmp_path / "results", symlinks=True))
    path = cells(results)["line"] / "0" / "evaluation" / "metrics.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {**record, "config": {**record["config"], "judges_epochs": 8, "part": "validation"}}
        )
    )
    ran, before = spy(monkeypatch), (results / "encodings" / "comparison.csv").read_bytes()
    assert compare(monkeypatch, results) == 2
    said = capsys.readouterr().err
    assert f"{path} is another rating than the comparison's (judges_epochs, part)" in said
    assert f"delete {path.parent}, and run again" in said
    assert ran == [] and (results / "encodings" / "comparison.csv").read_bytes() == before
    older = json.loads(json.dumps(record))
    del older["ssim"]["white"]
    path.write_text(json.dumps(older))
    assert compare(monkeypatch, results) == 2
    said = capsys.readouterr().err
    assert (
        "is no rating of this version (KeyError('white'))" in said
        and f"delete {path.parent}, and run again" in said
    )
    shutil.rmtree(path.parent)
    assert compare(monkeypatch, results) == 0
    assert ran == ["evaluate of line"]
    assert json.loads(path.read_text())["judges"] == record["judges"]


def test_an_encoding_whose_code_was_changed_is_not_taken_for_the_old_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results = Path(shutil.copytree(finished, tmp_path / "results", symlinks=True))
    ran, frequencies = spy(monkeypatch), Encoding.frequencies
    with monkeypatch.context() as changed:
        curve = lambda e: frequencies(e) * (1.01 if e.curve == "linear" else 1)  # noqa: E731
        changed.setattr(Encoding, "frequencies", curve)
        assert compare(changed, results) == 2
        said = capsys.readouterr().err
        folder = cells(results)["line"]
        assert (
            f"line sounds otherwise than in {folder}: the code of its encoding was changed; delete {folder}"
            in said
        )
        assert ran == []
        (folder / "sounds.pt").write_bytes(b"x")
        assert compare(changed, results) == 2
        assert f"delete {folder}/sounds.pt, and run again" in capsys.readouterr().err
        (folder / "sounds.pt").unlink()
        assert compare(changed, results) == 0  # as a folder of before they were kept
        assert f"{folder} was begun before its sounds were kept; whether" in capsys.readouterr().out
        shutil.rmtree(folder)
        assert compare(changed, results) == 0
        assert ran == [
            "linear of line",
            "train_vggish of line",
            "train_all of line",
            "evaluate of line",
        ]


def test_what_lies_in_the_place_of_a_link_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "judge").touch()
    with pytest.raises(
        UserError, match="judge cannot be made .*; give --results where symbolic links can be"
    ):
        link_upstream(tmp_path, tmp_path / "memory")


def test_a_changed_header_runs_only_what_is_new_and_a_cell_that_fails_stops_no_other(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results = Path(shutil.copytree(finished, tmp_path / "results", symlinks=True))
    new = {
        "mel": Condition(Encoding(seconds=0.3, curve="mel")),
        "line": Condition(Encoding(seconds=0.25, curve="linear")),
    }
    monkeypatch.setattr(compare_encodings, "ENCODINGS", {**ENCODINGS, **new})

    ran = spy(monkeypatch)
    spied, schedule = main, QUICK

    def diverges(config: Config) -> dict:
        if config.encoding.curve == "mel":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return spied(config)

    monkeypatch.setattr(train_vggish, "main", diverges)
    assert compare(monkeypatch, results) == 2
    assert ran == [
        "linear of line",
        "linear of mel",
        "train_vggish of line",
        "train_all of line",
        "evaluate of line",
    ]
    errors = capsys.readouterr().err.splitlines()
    assert (
        "the memory does not suffice (CUDA out of memory. Tried to allocate 2.00 GiB.); lower --batch"
        in errors[0]
    )
    assert errors[-1].endswith("/0 failed, as said above; hint it, and run again.")
    assert [row["encoding"] for row in read_rows(results)] == [BASELINE, "line"]

    # Of another schedule, everything is new, but for the memory that it does not change.
    longer = dataclasses.replace(schedule, hear=dataclasses.replace(schedule.hear, epochs=7))
    assert upstream_settings(longer) == upstream_settings(schedule)
    both = [list_trials(Config(), one, results) for one in (schedule, longer)]
    assert {cell.folder for cell in both[0]}.isdisjoint(cell.folder for cell in both[1])
    seeds = dataclasses.replace(
        schedule, hear=dataclasses.replace(schedule.hear, seed=7, results=tmp_path, device="cpu")
    )
    assert list_trials(Config(), seeds, results) == both[0]


def test_ctrl_c_says_that_it_goes_on_and_torchrun_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist_classify_train, "main", stop)
    assert compare(monkeypatch, tmp_path) == 130
    assert capsys.readouterr().err == "\nStopped. The same command goes on.\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert compare(monkeypatch, tmp_path) == 2
    assert "start this script once for each GPU" in capsys.readouterr().err


def test_a_second_process_waits_for_what_all_need(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, entered = tmp_path / "memory", threading.Event()

    def second() -> None:
        with locked(folder):
            entered.set()

    with held_by_another(folder):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.7)
        with pytest.raises(FolderLocked), locked(folder, patient=False):
            pass
    thread.join(timeout=20)
    assert entered.is_set()
    assert (
        capsys.readouterr().out == f"waiting: {folder} is in use by process 7 on another machine\n"
    )


def test_the_objective_and_the_memory_that_are_named_reach_the_stages() -> None:
    config = Config(quick=True, split="byclass", file="test")
    schedule = scheduled(config)
    imagine = schedule.imagine
    assert (
        imagine.sound_consistency,
        imagine.detail,
        imagine.grey,
        imagine.generator_lr_scale,
    ) == (1, 10, 1, 0.2)
    assert (imagine.distance, imagine.loudness_fraction, imagine.rehearsal) == (
        "multiscale",
        0.8,
        5,
    )
    assert (imagine.augmentation, imagine.classifier_augmentation) == (0.5, 1)
    assert not schedule.imagine.dropout
    assert (schedule.remember.split, schedule.remember.file) == ("byclass", "test")
    published = scheduled(Config(objective="published")).imagine
    assert (published.sound_consistency, published.detail, published.grey, published.dropout) == (
        0,
        0,
        0,
        True,
    )


def test_a_schedule_that_nothing_can_be_computed_with_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impossible = dataclasses.replace(QUICK, imagine=Config(batch=0))
    monkeypatch.setattr(compare_encodings, "QUICK", impossible)
    with pytest.raises(UserError, match="--batch is 0; give at least 2"):
        scheduled(Config(quick=True))


def test_the_judges_of_the_full_schedule_are_in_numbers_by_which_its_cells_are_found_again() -> (
    None
):
    rated = hyperparameters(FULL.rate)
    assert (rated["judges_epochs"], rated["judges_batch"]) == (8, 128)


@pytest.mark.parametrize(
    ("flags", "encodings", "message"),
    [
        (("--only", "mystery"), {}, "there is no encoding mystery; give some of primary, line"),
        (("--seeds", "1", "1"), {}, "give at least one seed, and each once"),
        ((), {"a/b": Condition()}, "'a/b' is no name of a folder"),
        ((), {"odd": Condition(frames=100)}, "odd: frames is 100, but must be a multiple of 16"),
        (
            (),
            {"odd": Condition(frames=96)},
            "odd: 96 frames cut its sound off, so it could not be compared; give 112",
        ),
        ((), {"odd": Condition(hop=500)}, "odd: hop is 500 samples, but must be from 1 to 400"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    flags: tuple, encodings: dict, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(compare_encodings, "ENCODINGS", {**ENCODINGS, **encodings})
    ran = spy(monkeypatch)
    assert compare(monkeypatch, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert ran == []


def test_the_encodings_of_the_header_are_heard_whole_and_all_but_the_longer_by_the_primarys_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare_encodings, "ENCODINGS", LISTED)
    found = list_trials(Config(), FULL, Path("results"))
    assert [cell.name for cell in found if cell.seed == 1] == list(LISTED)
    assert len({cell.folder.parent for cell in found}) == len(LISTED) >= 11
    frames = {
        name: ImageToLogMel(one.encoding, one.frames, one.hop).frames
        for name, one in LISTED.items()
    }
    assert {name: count for name, count in frames.items() if count != 112} == {
        "longer": 208,
        "primary_in_208_frames": 208,
    }


# -- the linear inverse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sounds", "numbers"), [(60, 20), (20, 60)])
def test_the_ridge_agrees_with_scikit_learn(sounds: int, numbers: int) -> None:
    random = np.random.default_rng(0)
    x, y, unseen = (
        random.normal(2, 1, (sounds, numbers)),
        random.normal(1, 1, (sounds, 5)),
        random.normal(2, 1, (7, numbers)),
    )
    penalties = (1e-3, 0.5)
    for penalty, ridge in zip(
        penalties, fit_ridges(*map(torch.from_numpy, (x, y)), penalties), strict=True
    ):
        alpha = penalty * ((x - x.mean(0)) ** 2).sum(1).mean()
        expected = Ridge(alpha=alpha).fit(x, y).predict(unseen)
        np.testing.assert_allclose(
            ridge(ridge.kernels(torch.from_numpy(unseen))), expected, rtol=0, atol=1e-9
        )


def test_the_linear_inverse_recovers_unseen_digits_and_its_ridge_is_the_validation_parts(
    finished: Path,
) -> None:
    metrics = read_metrics(cells(finished)[BASELINE] / "linear")
    assert metrics["correlation"]["mean"] > 0.9
    assert metrics["retrieval"]["overall"]["accuracy"] > 0.8
    assert metrics["images"] == 300
    scores = metrics["validation_correlation"]
    assert len(scores) == len(PENALTIES)
    assert scores[str(metrics["penalty"])] == max(scores.values()) > min(scores.values())
    shown = torch.load(cells(finished)[BASELINE] / "linear" / "shown.pt", weights_only=True)[
        "recovered"
    ]
    heard = torch.load(cells(finished)[BASELINE] / "0" / "shown.pt", weights_only=True)["heard"]
    assert (
        np.corrcoef(shown.flatten(), heard.flatten())[0, 1] > 0.9
    )  # the same digits in the same order


def test_the_linear_inverse_finds_less_where_less_is_to_be_heard(
    finished: Path, tmp_path: Path
) -> None:
    coarse = Condition(Encoding(seconds=0.3, rows=4, columns=4))
    cell = Trial("coarse", coarse, None, tmp_path / "linear")
    invert_linearly(Config(), QUICK, cell, torch.device("cpu"))
    fine = read_metrics(cells(finished)[BASELINE] / "linear")
    assert read_metrics(cell.folder)["correlation"]["mean"] < fine["correlation"]["mean"] - 0.05


# -- what is concluded -------------------------------------------------------------------------------------------------


def rows(
    values: dict[str, list[float]], linear: dict[str, float] | None = None, **more: object
) -> list[dict]:
    return [
        {
            "encoding": name, "seed": seed, "judges_mean": value, "correlation": value, "retrieval": value,
            "linear_correlation": (linear or {}).get(name), "linear_retrieval": (linear or {}).get(name),
            "frames": 112, "frames_a_column": 3.75, **more,
        }
        for name, of_seeds in values.items() for seed, value in enumerate(of_seeds)
    ]  # fmt: skip


def paragraph(text: str, title: str) -> str:
    return next(part for part in text.split("\n\n") if part.startswith(f"**{title}"))


VALUES = {
    BASELINE: [0.90, 0.92, 0.91],
    "far": [0.50, 0.52, 0.51],
    "near": [0.91, 0.93, 0.90],
    "above": [0.990, 0.991, 0.992],
    "lonely": [0.2],
}


def test_the_rule_agrees_with_welch_and_holm_by_hand() -> None:
    found = differences(VALUES)
    assert set(found) == {"far", "near", "above"}
    p, reference = {}, np.array(VALUES[BASELINE])
    for name in found:
        values = np.array(VALUES[name])
        parts = values.var(ddof=1) / len(values), reference.var(ddof=1) / len(reference)
        freedom = sum(parts) ** 2 / sum(
            part**2 / 2 for part in parts
        )  # Welch and Satterthwaite, 3 - 1 = 2 each
        t = (values.mean() - reference.mean()) / sum(parts) ** 0.5
        p[name] = 2 * stats.t.sf(abs(t), freedom)
        assert found[name].mean == pytest.approx(values.mean() - reference.mean())
        low, high = found[name].interval
        assert low < found[name].mean < high
        assert found[name].outside == (low > 0 or high < 0)
        level = {"far": 0.05 / 3, "above": 0.05 / 2, "near": 0.05}[name]
        half = stats.t.ppf(1 - level / 2, freedom) * sum(parts) ** 0.5
        assert (high - low) / 2 == pytest.approx(half)
    assert p["far"] < p["above"] < p["near"]
    assert [name for name in found if found[name].outside] == ["far", "above"]


def test_what_passes_alone_does_not_pass_among_many_and_nothing_passes_behind_a_failure() -> None:
    """Two encodings at p = 0.03 each: outside the spread alone, inside it together."""
    one = [0.0, 1.0, 2.0]
    shifted = next(
        [value + shift for value in one]
        for shift in np.arange(1, 9, 0.01)
        if stats.ttest_ind([value + shift for value in one], one, equal_var=False).pvalue < 0.03
    )
    assert differences({BASELINE: one, "a": shifted})["a"].outside
    together = differences({BASELINE: one, "a": shifted, "b": shifted})
    assert not together["a"].outside and not together["b"].outside
    assert all(difference.interval[0] < 0 for difference in together.values())


def test_inside_the_spread_is_said_to_be_inside_and_outside_to_be_outside() -> None:
    text = conclusions(rows(VALUES), "Tiny.", ["near, seed 3"])
    said = paragraph(text, "Digits read right")
    better, rest = said.split("Worse: ")
    worse, rest = rest.split("Inside the spread, so that nothing can be concluded: ")
    inside, unknown = rest.split("The spread is unknown, so that nothing can be concluded: ")
    assert "Better than it: `above` by +0.081" in better
    assert worse.startswith("`far` by -0.400 [") and "near" not in worse
    assert inside.startswith("`near` by +0.003 [-0.")
    assert unknown == "`lonely`."
    assert "1 cells: near, seed 3" in text
    assert (
        "over the 3 encodings beside it that have a spread" in text
    )  # above, far and near; the lonely has none
    assert "| above | 0.991 ± 0.001 (3 seeds)" in text
    assert (
        text.index("| above")
        < text.index("| near")
        < text.index(f"| {BASELINE}")
        < text.index("| far")
    )


def test_with_one_seed_or_without_the_primary_nothing_is_concluded() -> None:
    text = conclusions(rows({BASELINE: [0.9], "far": [0.1]}), "Tiny.", [])
    assert "Better" not in text and "Worse" not in text
    assert text.count("The spread is unknown, so that nothing can be concluded: `far`.") == 3
    text = conclusions(rows({"far": [0.1, 0.2], "near": [0.8, 0.9]}), "Tiny.", [])
    assert text.count(f"`{BASELINE}` is not there to be held against.") == 3
    assert "Better" not in text and "Worse" not in text
    assert conclusions([], "Tiny.", ["all"])
    assert (
        differences({BASELINE: [0.5, 0.5], "same": [0.4, 0.4]}) == {}
    )  # without spread there is nothing to test by


def test_a_weak_listener_is_not_taken_for_a_weak_sound() -> None:
    linear = {BASELINE: 0.95, "far": 0.97, "near": 0.94, "above": 0.9}
    said = paragraph(conclusions(rows(VALUES, linear), "Tiny.", []), "The listener or the sound")
    assert "correlation of 0.950" in said
    assert (
        "of no less to the linear inverse: `far` (0.970); there the listener or its schedule may be at fault"
        in said
    )
    linear["far"] = 0.6
    said = paragraph(conclusions(rows(VALUES, linear), "Tiny.", []), "The listener or the sound")
    assert "of less to the linear inverse as well: `far` (0.600)" in said
    assert "at fault" not in said and "`near`" not in said


def test_a_larger_network_is_not_taken_for_a_better_sound() -> None:
    some = rows({BASELINE: [0.9, 0.91]}) + rows(
        {"longer": [0.9, 0.92]}, frames=208, frames_a_column=7.14
    )
    said = paragraph(conclusions(some, "Tiny.", []), "The network or the sound")
    assert (
        "`primary` in 112 frames; in another number, and so by a network of another size: `longer` (208)"
        in said
    )
    assert "It has 3.75 frames a column; another number have `longer` (7.14)" in said
    said = paragraph(conclusions(rows(VALUES), "Tiny.", []), "The network or the sound")
    assert said.endswith("in 112 frames. It has 3.75 frames a column.")


def test_the_interval_is_students() -> None:
    values = [0.9, 0.95, 0.91]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert t_interval([0.9]) is None
    assert t_interval([0.9, 0.9]) == (0.9, 0.9)
