"""The command lines of the stages: presets, help, limits of the settings, and errors in one
sentence."""

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import CHAIN, ROOT, header, script

import emnist_dcgan
import mnist_classify_train
import train_all
import train_vggish
from common.cli import command_line, parse, setting_groups, validate_settings
from common.files import UserError
from voice_translator import Encoding

STAGES = (train_vggish, mnist_classify_train, emnist_dcgan, train_all)
by_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)


@pytest.fixture
def run_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, int, str]]:
    """Run a command line of a stage in this process, without its work; returns the settings that
    `main` was given, the exit code, and what was written to stderr."""

    def run(stage: ModuleType, *arguments: str) -> tuple[Any, int, str]:
        given: list[Any] = []
        monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *arguments])
        code = 0
        try:
            command_line(stage.Config, given.append, stage.__doc__, stage.PRESETS)
        except SystemExit as ended:
            code = ended.code
        return (given or [None])[0], code, capsys.readouterr().err

    return run


# -- presets


@by_stage
def test_every_preset_is_valid_and_the_first_one_is_the_header(stage: ModuleType) -> None:
    names = list(stage.PRESETS)
    assert names[0] == "published" and {"small", "demo"} <= set(names)
    assert stage.PRESETS["published"] == stage.Config()
    for preset in stage.PRESETS.values():
        validate_settings(preset)


@by_stage
def test_without_a_preset_the_first_one_holds_and_flags_change_it(
    stage: ModuleType, run_line: Callable
) -> None:
    assert run_line(stage)[0] == stage.Config()
    changed = dataclasses.replace(stage.Config(), epochs=3, seed=7)
    assert run_line(stage, "--epochs", "3", "--seed", "7")[0] == changed


@by_stage
def test_a_preset_gives_all_its_settings_and_a_flag_behind_it_changes_one(
    stage: ModuleType, run_line: Callable
) -> None:
    for name, preset in stage.PRESETS.items():
        assert run_line(stage, name)[0] == preset
        assert run_line(stage, name, "--seed", "7")[0] == dataclasses.replace(preset, seed=7)


def test_the_sound_consistent_preset_has_a_folder_and_an_objective_of_its_own(
    run_line: Callable,
) -> None:
    settings, *_ = run_line(train_all, "sound-consistent", "--epochs", "9")
    assert settings.name == "train_all_sound_consistent"
    assert (settings.epochs, settings.joint_epochs, settings.dropout) == (9, 6, False)
    assert settings.sound_consistency == 1 and settings.replay_weight == 5
    assert train_all.Config().sound_consistency == 0 and train_all.Config().name == "train_all"


def test_an_unknown_preset_is_refused_with_the_names(run_line: Callable) -> None:
    given, code, said = run_line(train_all, "sound", "--epochs", "3")
    assert (given, code, said.count("\n")) == (None, 2, 1)
    names = "published, sound-consistent, small, demo, small-sound-consistent"
    assert f"there is no preset 'sound'; give one of {names}." in said


def test_settings_of_an_encoding_are_flags_too(run_line: Callable) -> None:
    settings, *_ = run_line(train_vggish, "demo", "--encoding.curve", "linear")
    assert settings.encoding == Encoding(curve="linear")
    assert settings.width == train_vggish.PRESETS["demo"].width


def test_the_chain_of_the_tests_runs_valid_settings(tmp_path: Path) -> None:
    assert list(CHAIN) == [f"{stage.__name__}.py" for stage in STAGES]
    for stage in STAGES:
        validate_settings(header(stage, tmp_path))


# -- help


def comments(config_type: type) -> dict[str, str]:
    """Field -> its whole comment: the lines above it, and what follows it on its own line."""
    above: list[str] = []
    found = {}
    for line in inspect.getsource(config_type).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above = [] if comment[1].startswith("-- ") else [*above, comment[1]]
        elif (field := re.match(r"    (\w+):", line)) and "=" in line:
            found[field[1]] = " ".join([*above, line.partition("  # ")[2]]).strip()
            above = []
        else:
            above = []
    names = {field.name for field in dataclasses.fields(config_type)}
    return {name: comment for name, comment in found.items() if name in names}


def help_of(
    config_type: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `--help` prints, each setting in a line."""
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        parse(config_type, config_type(), ["--help"], "")
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


SCRIPTS = [stage.__name__ for stage in STAGES] + ["evaluate", "compare_encodings"]


@pytest.mark.parametrize("name", [*SCRIPTS, "encoding"])
def test_the_help_of_each_setting_is_its_whole_comment(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config_type = Encoding if name == "encoding" else importlib.import_module(name).Config
    written = comments(config_type)
    assert set(written) == {field.name for field in dataclasses.fields(config_type)}
    shown = help_of(config_type, monkeypatch, capsys)
    for field, comment in written.items():
        flag = f"--{field.replace('_', '-')}"
        if field == "encoding":  # its settings are shown in its place
            continue
        assert comment.endswith("."), f"{field} has no full sentence: {comment!r}"
        # between them stands only what the flag takes, or its negation
        pattern = rf"{flag}(?:, --no-\S+| [A-Z{{\[](?:(?!--).)*?)? {re.escape(comment)} \("
        assert re.search(pattern, shown), f"{flag}: {comment}"


@by_stage
def test_the_help_is_grouped_as_the_header_is(stage: ModuleType) -> None:
    groups = setting_groups(stage.Config)
    assert len(groups) >= 3
    names = [name for group in groups.values() for name in group]
    assert names == [field.name for field in dataclasses.fields(stage.Config)]


def test_help_into_a_closed_pipe_ends_without_a_traceback() -> None:
    """As in `python train_all.py --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "train_all.py", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(writer)
    assert done.stderr == b""


def test_help_needs_no_slow_import() -> None:
    slow = ("matplotlib.pyplot", "torchvision", "scipy.stats", "torchmetrics", "sklearn")
    code = f"import sys, train_all; print([name for name in {slow} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


# -- mistakes


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, run_line: Callable) -> None:
    done = script("train_all.py", "--results", str(tmp_path / "empty"), "--device", "cpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run train_vggish.py" in done.stderr
    _, code, said = run_line(train_vggish, "--encoding.highest-hz", "9000")
    assert (code, "Nyquist" in said, "Traceback" in said) == (2, True, False)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--lr=1", "--learning-rate"),
        ("--jlr", "--joint-learning-rate"),
    ],
)
def test_a_flag_of_initials_suggests_the_setting(flag: str, meant: str, run_line: Callable) -> None:
    given, code, said = run_line(train_all, flag, "1e-3")
    assert (given, code) == (None, 2)
    assert said == f"train_all.py: there is no setting {flag}; perhaps you meant {meant}.\n"


def test_a_misspelt_flag_suggests_the_setting(run_line: Callable) -> None:
    _, code, said = run_line(train_all, "--learning-rat", "1e-3")
    assert code == 2 and "--learning-rate" in said


def test_stage_three_has_no_flag_for_the_encoding(run_line: Callable) -> None:
    """The checkpoint of stage one decides, so a demand could only be ignored."""
    given, code, said = run_line(train_all, "--encoding.curve", "tanh")
    assert (given, code) == (None, 2) and "--encoding.curve" in said


NAN, INFINITY = float("nan"), float("inf")
COUNTS = ("epochs", "joint_epochs", "cnn_epochs", "vit_epochs", "kernel_centres", "late_epoch",
          "images_per_epoch", "batch", "width", "frames", "hop")  # fmt: skip
INVALID = [
    *[(stage, name, -1) for stage in STAGES for name in COUNTS],
    *[(stage, "batch", 1) for stage in STAGES],
    *[(stage, "images_per_epoch", 1) for stage in STAGES],
    *[(stage, "epochs", 0) for stage in STAGES],
    *[(stage, "learning_rate", value) for stage in STAGES for value in (0.0, NAN, INFINITY)],
    *[(stage, "seed", value) for stage in STAGES for value in (10**13, -(10**13))],
    (train_all, "joint_learning_rate", -1e-4),
    (train_all, "binarization_weight", NAN),
    (train_all, "generator_lr_scale", -0.1),
    (train_all, "loudness_fraction", 1.1),
    (emnist_dcgan, "discriminator_learning_rate", 0.0),
    (emnist_dcgan, "beta1", 1.0),
    (emnist_dcgan, "instance_noise", -0.1),
    (mnist_classify_train, "rotation", 181.0),
    (mnist_classify_train, "cnn_learning_rate", 0.0),
    (train_vggish, "hop", 401),
]  # fmt: skip
INVALID = [row for row in INVALID if row[1] in vars(row[0].Config())]


@pytest.mark.parametrize(
    ("stage", "name", "value"), INVALID, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_number_out_of_range_is_refused(stage: ModuleType, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is {value}; give "):
        validate_settings(dataclasses.replace(stage.Config(), **{name: value}))


def test_numbers_at_the_ends_of_their_ranges_are_accepted() -> None:
    ends = {"joint_epochs": 0, "generator_lr_scale": 0.0, "images_per_epoch": 2, "batch": 2}
    validate_settings(train_all.Config(**ends, seed=-(10**12), loudness_fraction=1.0))


@by_stage
def test_a_number_out_of_range_is_refused_before_any_work(
    stage: ModuleType, tmp_path: Path, run_line: Callable
) -> None:
    given, code, said = run_line(stage, "--batch", "1", "--results", str(tmp_path / "results"))
    assert (given, code) == (None, 2)
    assert said == f"{stage.__name__}.py: --batch is 1; give at least 2.\n"
    assert not list(tmp_path.iterdir())


def test_a_whole_number_of_any_size_is_refused_in_one_sentence() -> None:
    for seed in (2**70, -(10**400)):
        with pytest.raises(UserError, match="^--seed is -?1[0-9]*; give at (most|least) -?1"):
            validate_settings(train_all.Config(seed=seed))


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "a/b", "a\\b"])
def test_a_name_that_no_folder_can_have_is_refused(name: str) -> None:
    message = "^--name is '.*', but it must name a folder in results; give a word"
    with pytest.raises(UserError, match=message):
        validate_settings(train_all.Config(name=name))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/elsewhere/checkpoint.pt"),
         "/elsewhere/checkpoint.pt cannot be used (Permission denied); unlock it, make room, or"),
        (OSError("the socket is gone"), "a file cannot be used (the socket is gone); unlock it"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB.\nSee the manual"),
         "the memory does not suffice (CUDA out of memory. Tried 9 GiB.); lower --batch, end"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
         "the memory does not suffice ([enforce fail] DefaultCPUAllocator"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
         "the memory does not suffice (CUDA error: out of memory); lower --batch"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
         "the memory does not suffice (CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        (MemoryError(), "the memory does not suffice (none is left)"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_one_sentence_and_exit_code_2(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def main(_: object) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["train_vggish.py"])
    with pytest.raises(SystemExit) as ended:
        command_line(train_vggish.Config, main, "")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"train_vggish.py: {sentence}") and said.count("\n") == 1


def test_a_defect_of_the_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(sys, "argv", ["train_vggish.py"])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        command_line(train_vggish.Config, main, "")


@by_stage
def test_ctrl_c_ends_with_an_advice(
    stage: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def main(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py"])
    with pytest.raises(SystemExit) as ended:
        command_line(stage.Config, main, "", stage.PRESETS)
    assert ended.value.code == 130
    assert "Add --resume to continue after the last finished epoch." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_vggish.py", "evaluate.py", "voice_translator.py"])
def test_a_script_runs_where_python_leaves_out_its_folder(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / name), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
