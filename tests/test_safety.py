"""No result is lost: two runs in one folder, killed runs, full disks, folders that vanish, and
training that diverges.

`LISTEN_THOROUGH=20` does everything random twenty times as often.
"""

import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CHAIN, ROOT, assert_equal_weights, header, script, weights
from PIL import Image
from torch import Tensor, nn

import data.synthetic
import emnist_dcgan
import mnist_classify_train
import train_all
import train_vggish
import training.run
import voice_translator
from common import provenance
from common.checkpoint import all_finite, load_checkpoint
from common.cli import command_line
from common.files import UNFINISHED, UserError, file_sha256, folder_megabytes, write_file
from common.locks import FolderLocked, lock_folder, unlock_folder
from common.media import write_sound
from data.synthetic import load_printed
from emnist_dcgan import gan_failure
from training.loop import RunningMean, optimizer_step, seed_epoch
from training.run import NOT_HYPERPARAMETERS, Run, is_complete, read_metrics

THOROUGH = int(os.environ.get("LISTEN_THOROUGH", 1))
STAGES = (train_vggish, mnist_classify_train, emnist_dcgan, train_all)
JUDGES = ("judges/cnn", "judges/vit", "judges/kernel")


# -- two runs in one folder


def test_lock_and_unlock(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "run"
    lock_folder(folder)
    lock_folder(folder)  # again in the same process
    lock = folder.with_name(".run.lock")
    assert f"process {os.getpid()} on " in lock.read_text()
    unlock_folder(folder)
    unlock_folder(folder)
    assert not lock.exists()
    lock.write_text("what a killed process left")
    lock_folder(folder)
    unlock_folder(folder)
    assert not lock.exists()


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"folder = Path({str(folder)!r}); lock_folder(folder); print('ready', flush=True); "
    code += "time.sleep(60)"
    before = "import time; from pathlib import Path; from common.locks import lock_folder\n"
    first = subprocess.Popen(
        [sys.executable, "-c", before + code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert first.stdout.readline() == "ready\n"
    today = time.strftime("%Y-")
    with pytest.raises(
        FolderLocked,
        match=rf"run is in use by process {first.pid} on .+ since {today}.*; wait until it ends",
    ):
        lock_folder(folder)
    first.kill()
    first.wait()
    lock_folder(folder)
    unlock_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_refused_while_another_one_runs(tmp_path: Path) -> None:
    lock_folder(tmp_path / "train_vggish")
    done = script("train_vggish.py", *CHAIN["train_vggish.py"], "--results", str(tmp_path))
    unlock_folder(tmp_path / "train_vggish")
    assert (done.returncode, list((tmp_path / "train_vggish").glob("*"))) == (2, [])
    assert f"is in use by process {os.getpid()} on " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "hard link", "FIFO"])
def test_a_lock_file_that_is_no_file_of_its_own_is_refused(tmp_path: Path, kind: str) -> None:
    lock, other = tmp_path / ".small.lock", tmp_path / "precious.txt"
    if kind != "dangling link":
        other.write_text("mine")
    if kind == "FIFO":
        os.mkfifo(lock)
    elif kind == "hard link":
        lock.hardlink_to(other)
    else:
        lock.symlink_to(other)
    with pytest.raises(UserError, match=r"small.lock is (no regular|also another) file.*remove it"):
        lock_folder(tmp_path / "small")
    assert other.exists() == (kind != "dangling link")
    assert kind == "dangling link" or other.read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="small cannot be locked .* on another file system"):
        lock_folder(tmp_path / "small")


def test_a_run_on_another_disk_by_a_link_is_locked_and_stays_there(
    tmp_path: Path, small: None
) -> None:
    results, disk = tmp_path / "results", tmp_path / "disk"
    results.mkdir()
    (disk / "small").mkdir(parents=True)
    (results / "small").symlink_to(disk / "small")
    for settings in (Settings(results), Settings(disk)):  # by the link, and by its target
        lock_folder(results / "small")
        assert in_a_child(lambda settings=settings: small_stage(settings)) == 2
        unlock_folder(results / "small")
    small_stage(Settings(results))
    small_stage(Settings(results, seed=1))
    assert (results / "small").readlink() == disk / "small"
    assert read_metrics(disk / "small")["seed"] == 1
    assert read_metrics(disk / "small.1")["seed"] == 0


def test_a_run_stops_when_its_link_is_changed(
    tmp_path: Path, small: None, capfd: pytest.CaptureFixture[str]
) -> None:
    for disk in ("one", "other"):
        (tmp_path / disk / "small").mkdir(parents=True)
    (tmp_path / "small").symlink_to(tmp_path / "one" / "small")
    (tmp_path / "other" / ".small.lock").write_text("of another run")

    def change(folder: Path) -> None:
        folder.unlink()
        folder.symlink_to(tmp_path / "other" / "small")

    said = said_in_a_child(lambda: small_stage(Settings(tmp_path), change), capfd)
    assert "small was removed while the run went on" in said
    assert list((tmp_path / "other" / "small").iterdir()) == []


# -- kills
# A child is forked, so that PyTorch need not be imported again, and killed. The parent looks at
# what is left.


def in_a_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """The exit code of `work` in a forked process: 0, 2 for a UserError, 1 for any other
    error, -9 if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            work()
            code = 0
        except UserError as error:
            print(error, file=sys.stderr)
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def killed_before_write(number: int, work: Callable[[], object]) -> Callable[[], None]:
    """`work`, ended by SIGKILL just before its `number`-th change of the file system."""

    def doomed() -> None:
        left = number

        def hook(event: str, arguments: tuple) -> None:
            nonlocal left
            written = (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if event in WRITES or written:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return doomed


def check_whole(results: Path) -> None:
    """Every file is whole, but for those with the name of an unfinished one."""
    for path in results.rglob("*"):
        if path.name.startswith(UNFINISHED) or not path.is_file():
            continue
        if path.suffix == ".pt":
            stage = torch.load(path, weights_only=True)["stage"]
            assert all(
                all_finite(state) for state in load_checkpoint(path, stage)["networks"].values()
            )
        elif path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict)
        elif path.suffix == ".jsonl":
            assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()][:1] in (
                [],
                [1],
            )
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".wav":
            assert path.stat().st_size == int.from_bytes(path.read_bytes()[4:8], "little") + 8
        else:
            assert path.name.endswith(".lock"), path


def assert_same_run(one: Path, other: Path) -> None:
    """Both folders hold the same files with the same weights, numbers and pictures. Only seconds
    and paths differ."""

    def numbers(folder: Path) -> object:
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["sha256"].pop("checkpoint.pt") == file_sha256(folder / "checkpoint.pt")
        metrics["sha256"] = {
            name: digest for name, digest in metrics["sha256"].items() if name.startswith("data/")
        }
        metrics.pop("revision")  # of the code, which may be edited while the tests run
        for place in NOT_HYPERPARAMETERS:
            metrics["config"].pop(place, None)
        return [{k: v for k, v in record.items() if k != "seconds"} for record in (*log, metrics)]

    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    assert names[0] == names[1]
    assert numbers(one) == numbers(other)
    assert_equal_weights(one, other)
    for picture in (*one.glob("*.png"), *one.glob("*.wav")):
        if picture.name != "curves.png":  # which may say seconds one day
            assert picture.read_bytes() == (other / picture.name).read_bytes(), picture.name


@dataclass(frozen=True)
class Settings:
    results: Path
    seed: int = 0
    resume: bool = False
    epochs: int = 2


def draw_losses(folder: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    grey = (50 * np.array([losses])).astype(np.uint8)
    write_file(folder / "x.png", Image.fromarray(grey).save)


def small_stage(
    config: Settings, draw: Callable[[Path], object] = draw_losses, **more: object
) -> dict:
    """Do all that a stage does with its folder, with a network of eight weights."""
    torch.manual_seed(config.seed)
    network = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters(), 0.1)
    run = Run("small", config, torch.device("cpu"), sha256={"data/train": "0"}, draw=draw, **more)
    if run.finished_metrics:
        return run.finished_metrics
    first = run.start_or_resume(network=network, optimiser=optimiser)
    for epoch in range(first, config.epochs + 1):
        seed_epoch(config.seed, epoch)
        mean = RunningMean("the loss", epoch)
        for _ in range(3):
            loss = network(torch.rand(4, 3)).square().mean()
            optimizer_step(loss, optimiser)
            mean.add(loss)
        write_file(
            run.folder / f"picture_{epoch}.png", Image.new("L", (1, 1)).save
        )  # before the epoch counts
        run.end_epoch({"epoch": epoch, "loss": mean.compute()}, best=epoch == 1)
    run.load_best()
    metrics = {"loss": run.history[-1]["loss"]}
    run.finish(metrics)
    return metrics


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stage does not call git, which takes long, and draws in every epoch."""
    monkeypatch.setattr(training.run, "code_revision", lambda: None)
    monkeypatch.setattr(training.run, "DRAWN_EVERY", 0)


def test_a_kill_before_any_write_loses_nothing(tmp_path: Path, small: None) -> None:
    undisturbed = Settings(tmp_path / "undisturbed")
    small_stage(undisturbed)
    start = tmp_path / "start"
    for seed in (7, 8):  # the new run finds a complete run, and an older one that was moved aside
        small_stage(Settings(start, seed))
    kept = {7: weights(start / "small.1"), 8: weights(start / "small")}

    number, code = 0, -9
    while code == -9:
        number += 1
        results = tmp_path / "results"
        shutil.rmtree(results, ignore_errors=True)
        shutil.copytree(start, results)
        config = Settings(results)
        code = in_a_child(killed_before_write(number, lambda config=config: small_stage(config)))
        check_whole(results)
        there = [weights(path.parent) for path in results.rglob("checkpoint.pt")]
        for older in kept.values():
            assert any(all(torch.equal(one[key], older[key]) for key in one) for one in there)
        if code == -9:
            try:
                small_stage(replace(config, resume=True))
            except UserError as error:  # the older run is still there, and is complete
                assert "small/metrics.json was made with another seed" in str(error)
                small_stage(config)
        assert_same_run(results / "small", tmp_path / "undisturbed" / "small")
        names = sorted(path.name for path in results.iterdir())
        assert names == ["small", "small.1", "small.2"], number
        for name, older in (("small.1", kept[7]), ("small.2", kept[8])):
            assert torch.equal(weights(results / name)["network.weight"], older["network.weight"])
    assert code == 0
    assert number > 30


@pytest.mark.parametrize(("every", "seen"), [(0, [1, 2, 3, 3]), (1e9, [3])])
def test_curves_are_drawn_every_few_seconds_and_at_the_end(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, every: float, seen: list[int]
) -> None:
    monkeypatch.setattr(training.run, "DRAWN_EVERY", every)
    drawn: list[int] = []
    small_stage(
        Settings(tmp_path, epochs=3),
        lambda folder: drawn.append((folder / "log.jsonl").read_text().count("\n")),
    )
    assert drawn == seen


def test_a_run_records_the_code_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.run, "code_revision", lambda: "old")
    committed = lambda folder: monkeypatch.setattr(training.run, "code_revision", lambda: "new")  # noqa: E731
    monkeypatch.setattr(training.run, "DRAWN_EVERY", 0)
    small_stage(Settings(tmp_path), committed)
    assert read_metrics(tmp_path / "small")["revision"] == "old"


def test_a_run_that_is_killed_often_ends_as_an_undisturbed_one(tmp_path: Path, small: None) -> None:
    small_stage(Settings(tmp_path / "undisturbed"))
    draw = random.Random(0)
    for attempt in range(4 * THOROUGH):
        config = Settings(
            tmp_path / f"{attempt}", resume=True
        )  # a loop with --resume from the start
        while (
            in_a_child(
                killed_before_write(draw.randint(1, 60), lambda config=config: small_stage(config))
            )
            == -9
        ):
            check_whole(config.results)
        assert_same_run(config.results / "small", tmp_path / "undisturbed" / "small")
        assert [path.name for path in config.results.iterdir()] == ["small"]


def test_a_run_that_goes_on_in_another_precision_says_so(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Settings(tmp_path)
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    gpu = "float32, on a GPU with --deterministic"
    for precision, deterministic, now in (
        ("float32", False, ""),
        ("bfloat16", False, "bfloat16, on the CPU"),
        ("float32", True, gpu),
    ):
        assert in_a_child(lambda: small_stage(config, killed_in_epoch_2)) == -9
        with monkeypatch.context() as elsewhere:
            name = lambda device, precision=precision: precision  # noqa: E731
            elsewhere.setattr(training.run, "precision_name", name)
            elsewhere.setattr(
                torch, "are_deterministic_algorithms_enabled", lambda so=deterministic: so
            )
            device = torch.device("cuda" if deterministic else "cpu")
            run = Run("small", replace(config, resume=True), device)
            network = nn.Linear(3, 2)
            optimiser = torch.optim.Adam(network.parameters())
            run.start_or_resume(network=network, optimiser=optimiser)
            unlock_folder(run.folder)
        line = capsys.readouterr().out.strip().splitlines()[-1]
        said = f"It began with float32, on the CPU. It goes on with {now}, so the result will"
        assert line.startswith(said if now else f"resumed: {tmp_path}/small after epoch 1")


@pytest.fixture
def printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_printed()
    monkeypatch.setattr(data.synthetic, "load_printed", lambda: digits)


def runs_of(stage: ModuleType) -> tuple[str, ...]:
    return (stage.__name__, *(JUDGES if stage is mnist_classify_train else ()))


def clear(results: Path, stage: ModuleType) -> None:
    for name in runs_of(stage):
        shutil.rmtree(results / name)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_that_is_killed_at_random_ends_as_an_undisturbed_one(
    stage: ModuleType, chain: Path, results: Path, printed_once: None
) -> None:
    clear(results, stage)
    draw, config = random.Random(stage.__name__), header(stage, results, resume=True)
    seconds = sum(read_metrics(chain / name)["seconds"] for name in runs_of(stage))
    for _ in range(3 * THOROUGH):
        code = in_a_child(lambda: stage.main(config), kill_after=draw.uniform(0, seconds))
        assert code in (-9, 0)
        check_whole(results)
    assert in_a_child(lambda: stage.main(config)) == 0
    for name in runs_of(stage):
        assert_same_run(results / name, chain / name)
    assert not list(results.rglob(f"{UNFINISHED}*"))


# -- the same numbers again


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_the_same_settings_give_the_same_numbers_and_pictures_change_nothing(
    stage: ModuleType,
    chain: Path,
    results: Path,
    printed_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pictures draw random numbers here. The other run is of the command line."""
    clear(results, stage)
    for name in ("save_grid", "save_pairs", "save_curves", "save_soundscapes"):
        if save := getattr(stage, name, None):

            def drawing(*arguments: object, save: Callable = save, **named: object) -> None:
                torch.rand(3), np.random.rand(3), random.random()
                save(*arguments, **named)

            monkeypatch.setattr(stage, name, drawing)
    torch.rand(7)
    flags = (f"{stage.__name__}.py", *CHAIN[f"{stage.__name__}.py"], "--results", str(results))
    monkeypatch.setattr(sys, "argv", list(flags))
    command_line(stage.Config, stage.main, "", stage.PRESETS)
    for name in runs_of(stage):
        assert_same_run(results / name, chain / name)


@pytest.mark.parametrize("size", [(64, 48), (3000, 40), (28, 4000)])
def test_the_resize_for_deterministic_gpus_equals_pytorchs(size: tuple[int, int]) -> None:
    images = torch.rand(2, 1, *size, dtype=torch.float64, requires_grad=True)
    one = F.interpolate(images, (28, 31), mode="bilinear", antialias=True)
    other = voice_translator._shrunk_by_products(images, (28, 31))
    torch.testing.assert_close(other, one)
    gradients = [torch.autograd.grad(shrunk.square().sum(), images)[0] for shrunk in (one, other)]
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_gpu_gives_the_same_bits_again(stage: ModuleType, chain: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(chain, tmp_path / name)
        clear(tmp_path / name, stage)
        flags = [
            *CHAIN[f"{stage.__name__}.py"],
            "--device",
            "cuda",
            "--deterministic",
            "--results",
            str(tmp_path / name),
        ]
        flags += ["--classifier-augmentation", "1"] if stage is train_all else []
        done = script(f"{stage.__name__}.py", *flags)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one" / stage.__name__, tmp_path / "other" / stage.__name__)


# -- full disks, folders that cannot be written, or are not there any more


def killed_in_epoch_2(folder: Path) -> None:
    if len((folder / "log.jsonl").read_text().splitlines()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def said_in_a_child(work: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert in_a_child(work) == 2
    return capfd.readouterr().err


def test_a_full_disk_is_an_error_and_the_last_epoch_stays(
    tmp_path: Path, small: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Settings(tmp_path)
    assert in_a_child(lambda: small_stage(config, killed_in_epoch_2)) == -9
    before = load_checkpoint(tmp_path / "small" / "last.pt", "small")

    def with_little_space() -> None:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (1500, 1500)
        )  # bytes: the log fits, a checkpoint does not
        small_stage(replace(config, resume=True), draw=lambda folder: None)

    said = said_in_a_child(with_little_space, capfd)
    assert "cannot be written" in said and "free or unlock the folder" in said
    after = load_checkpoint(tmp_path / "small" / "last.pt", "small")
    assert after["epoch"] == before["epoch"] < config.epochs
    assert not list(tmp_path.rglob(f"{UNFINISHED}*"))
    assert in_a_child(lambda: small_stage(replace(config, resume=True))) == 0


def test_a_read_only_folder_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def as_another(work: Callable[[], object]) -> None:
        if os.getuid() == 0:  # who may write everywhere
            os.setuid(65534)
        work()

    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path(path.anchor):
            path.chmod(path.stat().st_mode | 0o011)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    sound = torch.zeros(100, dtype=torch.int16)
    for name, work in {
        "small": lambda: small_stage(Settings(tmp_path / "locked")),
        "x.wav": lambda: write_sound(
            tmp_path / "locked" / "x.wav", sound, 16000
        ),  # by a library in C
    }.items():
        said = said_in_a_child(lambda work=work: as_another(work), capfd)
        assert f"locked/{name} cannot be written ([Errno 13] Permission denied" in said


def test_a_folder_that_vanishes_is_an_error(
    tmp_path: Path, small: None, capfd: pytest.CaptureFixture[str]
) -> None:
    def vanishing(folder: Path) -> None:
        if len((folder / "log.jsonl").read_text().splitlines()) == 2:
            shutil.rmtree(folder.parent)

    said = said_in_a_child(lambda: small_stage(Settings(tmp_path / "results"), vanishing), capfd)
    assert "small was removed while the run went on" in said


def test_a_folder_that_holds_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "diary.txt").write_text("mine")
    with pytest.raises(
        UserError, match="small holds diary.txt, but no run; give another --results or --name"
    ):
        small_stage(Settings(tmp_path))
    unlock_folder(tmp_path / "small")
    assert (tmp_path / "small" / "diary.txt").read_text() == "mine"


def test_older_runs_are_kept_and_a_complete_one_is_not_run_again(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Settings(tmp_path)
    assert in_a_child(lambda: small_stage(config, killed_in_epoch_2)) == -9
    stopped = load_checkpoint(tmp_path / "small" / "last.pt", "small")
    for seed, kind in ((1, "stopped"), (2, "complete")):
        small_stage(replace(config, seed=seed))
        aside = tmp_path / f"small.{seed}"
        said = f"The {kind} run that was there is now in {aside} ({folder_megabytes(aside):.0f} MB)"
        assert said in capsys.readouterr().out
    kept = load_checkpoint(tmp_path / "small.1" / "last.pt", "small")
    assert torch.equal(
        kept["networks"]["network"]["weight"], stopped["networks"]["network"]["weight"]
    )
    before = (tmp_path / "small" / "metrics.json").read_bytes()
    small_stage(replace(config, seed=2, resume=True))
    assert (tmp_path / "small" / "metrics.json").read_bytes() == before


def test_a_complete_run_of_an_encoding_with_a_tuple_is_not_run_again(
    tmp_path: Path, small: None
) -> None:
    inherited = {"encoding": {"speaker_band_hz": (300.0, 3400.0)}}
    small_stage(Settings(tmp_path), **inherited)
    before = (tmp_path / "small" / "metrics.json").read_bytes()
    small_stage(Settings(tmp_path, resume=True), **inherited)
    assert (tmp_path / "small" / "metrics.json").read_bytes() == before


def test_the_users_files_stay_in_a_run_that_was_stopped_before_its_first_epoch(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setattr(RunningMean, "add", stop)
        small_stage(Settings(tmp_path))
    unlock_folder(tmp_path / "small")
    for name in ("notes.txt", "photo_001.png"):
        (tmp_path / "small" / name).write_text("mine")
    small_stage(Settings(tmp_path, seed=1))
    for name in ("notes.txt", "photo_001.png"):
        assert (tmp_path / "small" / name).read_text() == "mine"


# -- a run is prolonged


def test_a_prolonged_run_equals_one_of_as_many_epochs(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    small_stage(Settings(tmp_path / "whole", epochs=3), prolongs=True)
    small_stage(Settings(tmp_path / "longer", epochs=1), prolongs=True)
    longer = Settings(tmp_path / "longer", epochs=2, resume=True)
    assert in_a_child(lambda: small_stage(longer, killed_in_epoch_2, prolongs=True)) == -9
    assert not is_complete(tmp_path / "longer" / "small")
    small_stage(longer, prolongs=True)
    capsys.readouterr()
    small_stage(replace(longer, epochs=3), prolongs=True)
    assert "small is prolonged to 3 epochs" in capsys.readouterr().out
    assert_same_run(tmp_path / "longer" / "small", tmp_path / "whole" / "small")
    with pytest.raises(UserError, match=r"metrics.json was made with another epochs \(epochs: 3\)"):
        small_stage(longer, prolongs=True)
    (tmp_path / "longer" / "small" / "last.pt").unlink()
    with pytest.raises(UserError, match="small/last.pt is missing; leave out --resume"):
        small_stage(replace(longer, epochs=4), prolongs=True)
    assert read_metrics(tmp_path / "longer" / "small")["config"]["epochs"] == 3


@pytest.mark.parametrize("stage", [train_vggish, mnist_classify_train])
def test_stage_one_and_the_classifier_are_prolonged(
    stage: ModuleType, results: Path, tmp_path: Path
) -> None:
    name = stage.__name__
    epochs = header(stage, results).epochs
    stage.main(header(stage, results, epochs=epochs + 1, resume=True))
    stage.main(header(stage, tmp_path / "whole", epochs=epochs + 1))
    assert_equal_weights(results / name, tmp_path / "whole" / name)
    assert len((results / name / "log.jsonl").read_text().splitlines()) == epochs + 1


@pytest.mark.parametrize(
    ("stage", "reason"),
    [(emnist_dcgan, "the instance noise falls"), (train_all, "its learning rate falls along")],
)
def test_a_run_whose_schedule_covers_all_epochs_is_not_prolonged(
    stage: ModuleType, reason: str, results: Path, printed_once: None
) -> None:
    before = header(stage, results).epochs
    said = f"begun with {before} epochs and cannot be prolonged, because {reason}.*; set --epochs"
    with pytest.raises(UserError, match=said):
        stage.main(header(stage, results, epochs=before + 1, resume=True))
    assert not (results / stage.__name__ / "last.pt").exists()


def test_a_new_stage_names_the_runs_that_no_longer_fit(
    results: Path, fewer_digits: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(results / "train_all", results / "train_all.1")  # one that was moved aside
    (results / "other").mkdir()
    train_vggish.main(header(train_vggish, results / "other", epochs=1))
    assert "do not fit" not in capsys.readouterr().out
    train_vggish.main(header(train_vggish, results, epochs=1))
    said = f"\n{results}/train_all and the ratings in there do not fit the new train_vggish; run"
    assert said in capsys.readouterr().out


def test_a_missing_stage_is_named_with_its_whole_path(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        train_all.main(header(train_all, Path("elsewhere")))
    path = tmp_path / "elsewhere" / "train_vggish" / "checkpoint.pt"
    wanted = f"{path} is missing; run train_vggish.py, or give the --results folder that holds it."
    assert str(refusal.value) == wanted


# -- the environment


def test_every_command_works_with_the_backend_of_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://no.such.backend")
    done = script("train_vggish.py", *CHAIN["train_vggish.py"], "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "train_vggish" / "soundscapes.png").exists()
    assert script("evaluate.py", "--help").returncode == 0


@pytest.mark.parametrize("where", ["inside another repository", "with another GIT_DIR"])
def test_the_revision_is_never_that_of_another_repository(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(repository: Path) -> str:
        git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for arguments in (
            ["init", "-q"],
            ["add", "."],
            ["commit", "-q", "--allow-empty", "-m", "a"],
        ):
            subprocess.run([*git, *arguments], check=True, stdout=subprocess.DEVNULL)
        command = [*git, "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()

    code = tmp_path / "outer" / "code"
    (code / "common").mkdir(parents=True)
    file = Path(shutil.copy(ROOT / "common" / "provenance.py", code / "common"))
    expected = None
    if where == "with another GIT_DIR":
        (code / "x").write_text("x")
        expected = commit(code)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "y").write_text("y")
        commit(tmp_path / "other")
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    else:
        commit(tmp_path / "outer")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.code_revision() == expected


@pytest.mark.parametrize("name", [b"r\xe9s", b"data\r"])
@pytest.mark.parametrize("flag", ["--results", "--data-root"])
def test_names_that_libraries_cannot_open_are_refused_at_the_start(
    flag: str,
    name: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    monkeypatch.setattr(sys, "argv", ["train_vggish.py", "demo", flag, path])
    with pytest.raises(SystemExit, match="2"):
        command_line(train_vggish.Config, train_vggish.main, "", train_vggish.PRESETS)
    said = capsys.readouterr().err
    assert said.startswith(f"train_vggish.py: {flag} is {tmp_path}")
    assert said.endswith("a control character or is no UTF-8; give another name.\n")
    assert list(tmp_path.iterdir()) == []


def test_names_in_utf8_are_refused_at_the_start_where_python_reads_ascii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    done = script("train_vggish.py", "demo", "--results", f"{tmp_path}/résultats")
    assert done.returncode == 2
    assert done.stderr.endswith("or is no UTF-8; give another name.\n")


def test_control_characters_in_an_error_are_printed_as_escapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise UserError("a\x1b[2J\r\u202eb é 猫")

    monkeypatch.setattr(sys, "argv", ["train_vggish.py"])
    with pytest.raises(SystemExit, match="2"):
        command_line(train_vggish.Config, refuse, "", train_vggish.PRESETS)
    assert capsys.readouterr().err == "train_vggish.py: a\\x1b[2J\\r\\u202eb é 猫\n"


# -- divergence


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_epoch_stays(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, seen = RunningMean.add, []
    monkeypatch.setattr(
        RunningMean,
        "add",
        lambda mean, loss: (seen.append(0), add(mean, loss * (torch.inf if len(seen) == 5 else 1))),
    )
    with pytest.raises(
        UserError, match="the loss is inf in epoch 2, step 2: training diverged; lower the learning"
    ):
        small_stage(Settings(tmp_path))
    unlock_folder(tmp_path / "small")
    assert len(seen) == 5
    assert load_checkpoint(tmp_path / "small" / "last.pt", "small")["epoch"] == 1


def test_the_step_of_a_loss_that_is_not_finite_is_named_on_a_gpu_too() -> None:
    mean = RunningMean("the loss", 3)
    for step in range(1, 5):
        mean.unread.append(
            torch.tensor(torch.nan if step > 2 else 1.0)
        )  # as `add` does, without reading
    with pytest.raises(UserError, match="the loss is nan in epoch 3, step 3:"):
        mean.compute()


def test_weights_that_are_not_finite_are_never_kept(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = optimizer_step, []

    def overflowing(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        step(loss, optimiser)
        steps.append(loss)
        if len(steps) == 3:  # the last of the epoch: no loss shows it
            optimiser.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setitem(globals(), "optimizer_step", overflowing)
    with pytest.raises(
        UserError, match="the weights of the network are not finite at the end of epoch 1: training"
    ):
        small_stage(Settings(tmp_path))
    unlock_folder(tmp_path / "small")
    assert not list((tmp_path / "small").glob("*.pt"))
    monkeypatch.setitem(globals(), "optimizer_step", step)
    small_stage(Settings(tmp_path))  # the picture that it left does no harm


def test_a_failed_gan_is_recognised() -> None:
    won, collapsed, fine = (
        gan_failure(*numbers) for numbers in ((0.33, 0.9, 0.9), (1.0, 0.01, 0.9), (1.0, 0.9, 0.9))
    )
    assert "the discriminator has won: no loss is lower than its 0.3300" in won
    assert "the samples have collapsed: they vary by 1.0%" in collapsed
    assert fine == ""
    assert gan_failure(0.01, 0.9, 1.0)  # the published label, whose least loss is 0
