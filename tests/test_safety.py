"""Nothing is lost, and nothing is believed unchecked: two runs in one folder, kills, full disks,
damaged records.

`LISTEN_THOROUGH=20` does everything random twenty times as often.
"""

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

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CHAIN, ROOT, script
from PIL import Image
from torch import Tensor, nn

import data
import emnist_dcgan
import mnist_classify_train
import train_all
import train_vggish
import voice_translator
from common.checkpoint import all_finite, load_checkpoint
from common.cli import command_line
from common.files import UNFINISHED, UserError, file_sha256, write_file
from common.locks import FolderLocked, lock_folder, unlock_folder
from common.media import write_sound
from data.synthetic import load_printed
from emnist_dcgan import gan_failure
from evaluate import Config, main
from training.loop import RunningMean, optimizer_step, seed_epoch
from training.run import NOT_HYPERPARAMETERS, Run, read_metrics

THOROUGH = int(os.environ.get("LISTEN_THOROUGH", 1))
SAVERS = {name: getattr(figures, name) for name in ("save_grid", "save_curves", "save_soundscapes")}
STAGES = (train_vggish, mnist_classify_train, emnist_dcgan, train_all)


# -- two runs in one folder --------------------------------------------------------------------------------------------


def test_hold_by_itself(tmp_path: Path) -> None:
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


def test_the_second_process_is_told_who_holds_a_folder_until_the_first_is_killed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    code = f"folder = Path({str(folder)!r}); lock_folder(folder); print('ready', flush=True); time.sleep(60)"
    before = "import time; from pathlib import Path; import files\n"
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


def test_a_command_is_told_who_holds_its_folder(tmp_path: Path) -> None:
    lock_folder(tmp_path / "train_vggish")
    done = script("train_vggish.py", *CHAIN["train_vggish.py"], "--results", str(tmp_path))
    unlock_folder(tmp_path / "train_vggish")
    assert (done.returncode, list((tmp_path / "train_vggish").glob("*"))) == (2, [])
    assert f"is in use by process {os.getpid()} on " in done.stderr
    assert "Traceback" not in done.stderr


# -- kills -------------------------------------------------------------------------------------------------------------
# A child is forked, so that PyTorch need not be imported again, and killed. The parent looks at
# what is left.


def in_a_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """The exit code of `work` in a forked process: 0, 2 for a UserError, 1 for what no one should
    see; or -9, if killed."""
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
    """`work`, ended by SIGKILL just before it changes the file system for the `number`-th time."""

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
    """Every file that is not plainly unfinished is whole."""
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


def weights(folder: Path) -> dict[str, Tensor]:
    networks = torch.load(folder / "checkpoint.pt", weights_only=True)["networks"]
    return {
        f"{name}.{key}": value for name, state in networks.items() for key, value in state.items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    """The same files, and in them the same weights, numbers and pictures, but for seconds, places
    and moments."""

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

    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert numbers(one) == numbers(other)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
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


def small_stage(config: Settings, draw: Callable[[Path], object] = draw_losses) -> dict:
    """All that a stage does with its folder, around a network of eight weights."""
    torch.manual_seed(config.seed)
    network = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters(), 0.1)
    run = Run("small", config, torch.device("cpu"), sha256={"data/train": "0"}, draw=draw)
    if run.done:
        return run.done
    first = run.restore(network=network, optimiser=optimiser)
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
        run.end_epoch({"epoch": epoch, "loss": mean.read()}, best=epoch == 1)
    run.load_best()
    metrics = {"loss": run.history[-1]["loss"]}
    run.finish(metrics)
    return metrics


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stage asks no git, which takes longer than all the rest, and draws in every epoch."""
    monkeypatch.setattr(runs, "revision", lambda: None)
    monkeypatch.setattr(runs, "DRAWN_EVERY", 0)


def test_a_kill_before_any_write_loses_nothing(tmp_path: Path, small: None) -> None:
    undisturbed = Settings(tmp_path / "undisturbed")
    small_stage(undisturbed)
    start = tmp_path / "start"
    for seed in (7, 8):  # what the new run finds: a complete run, and an older one that was kept
        small_stage(Settings(start, seed))
    kept = {seed: weights(start / name) for seed, name in ((7, "small.before"), (8, "small"))}

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
        assert any(all(torch.equal(one[key], kept[8][key]) for key in one) for one in there), (
            number
        )  # the run before
        if not (results / "small.before").exists():
            assert (results / ".small.before.doomed").exists(), number
        if code == -9:
            try:
                small_stage(replace(config, resume=True))
            except UserError as error:  # the run before is still there, and is complete
                assert "small/metrics.json was made with another seed" in str(error)
                small_stage(config)
        assert_same_run(results / "small", tmp_path / "undisturbed" / "small")
        assert sorted(path.name for path in results.iterdir()) == ["small", "small.before"], number
        assert torch.equal(
            weights(results / "small.before")["network.weight"], kept[8]["network.weight"]
        )
    assert code == 0
    assert number > 30


@pytest.mark.parametrize(("every", "seen"), [(0, [1, 2, 3, 3]), (1e9, [3])])
def test_curves_are_drawn_now_and_then_and_at_the_end(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, every: float, seen: list[int]
) -> None:
    monkeypatch.setattr(runs, "DRAWN_EVERY", every)
    drawn: list[int] = []
    small_stage(
        Settings(tmp_path, epochs=3),
        lambda folder: drawn.append((folder / "log.jsonl").read_text().count("\n")),
    )
    assert drawn == seen


def test_a_run_names_the_code_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "revision", lambda: "old")
    committed = lambda folder: monkeypatch.setattr(runs, "revision", lambda: "new")  # noqa: E731
    monkeypatch.setattr(runs, "DRAWN_EVERY", 0)
    small_stage(Settings(tmp_path), committed)
    assert read_metrics(tmp_path / "small")["revision"] == "old"


def test_a_run_that_is_killed_and_resumed_again_and_again_ends_as_an_undisturbed_one(
    tmp_path: Path, small: None
) -> None:
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


def test_a_run_that_goes_on_in_another_way_says_so(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Settings(tmp_path)
    monkeypatch.setenv("LISTEN_PRECISION", "float32")
    begun = "it was begun in float32 on the CPU by 1 process, and goes on in"
    for precision, count, deterministic, said in (
        ("float32", 1, False, None),
        ("bfloat16", 1, False, f"{begun} bfloat16 on the CPU by 1 process: the result is another"),
        ("float32", 2, False, f"{begun} float32 on the CPU by 2 processes: the result is another"),
        (
            "float32",
            1,
            True,
            f"{begun} float32 on a GPU with --deterministic by 1 process: the result is another",
        ),
    ):
        assert in_a_child(lambda: small_stage(config, killed_in_epoch_2)) == -9
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(runs, "precision", lambda device, precision=precision: precision)
            elsewhere.setattr(processes, "count", lambda count=count: count)
            elsewhere.setattr(
                torch, "are_deterministic_algorithms_enabled", lambda so=deterministic: so
            )
            run = Run(
                "small",
                replace(config, resume=True),
                torch.device("cuda" if deterministic else "cpu"),
            )
            network = nn.Linear(3, 2)
            run.restore(network=network, optimiser=torch.optim.Adam(network.parameters()))
            unlock_folder(run.folder)
        line = capsys.readouterr().out.strip().splitlines()[-1]
        assert line.startswith(said or f"resumed: {tmp_path}/small after epoch 1")


def stage_config(stage: object, results: Path, **more: object) -> object:
    """The header of the chain's command line."""
    import tyro

    return replace(
        tyro.cli(stage.Config, args=CHAIN[f"{stage.__name__}.py"]), results=results, **more
    )


@pytest.fixture
def printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_printed()
    monkeypatch.setattr(data, "_printed", lambda: digits)


def clear(results: Path, stage: object) -> None:
    for name in (stage.__name__, *(("judge",) if stage is mnist_classify_train else ())):
        shutil.rmtree(results / name)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_killed_at_random_moments_ends_as_an_undisturbed_one(
    stage: object, chain: Path, results: Path, printed_once: None
) -> None:
    clear(results, stage)
    draw, config = random.Random(stage.__name__), stage_config(stage, results, resume=True)
    seconds = sum(
        read_metrics(chain / name)["seconds"]
        for name in {stage.__name__, "judge"} & {*os.listdir(chain)}
    )
    for _ in range(3 * THOROUGH):
        assert in_a_child(lambda: stage.main(config), kill_after=draw.uniform(0, seconds)) in (
            -9,
            0,
        )
        check_whole(results)
    assert in_a_child(lambda: stage.main(config)) == 0
    assert_same_run(results / stage.__name__, chain / stage.__name__)
    assert not list(results.rglob(f"{UNFINISHED}*"))
    if stage is mnist_classify_train:
        assert_same_run(results / "judge", chain / "judge")


# -- the same again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_the_same_header_gives_the_same_and_pictures_change_nothing(
    stage: object, chain: Path, results: Path, printed_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line left in another process, and here with pictures that draw random
    numbers."""
    clear(results, stage)
    for name in SAVERS:

        def drawing(*arguments: object, save: Callable = SAVERS[name], **named: object) -> None:
            torch.rand(3), np.random.rand(3), random.random()
            save(*arguments, **named)

        monkeypatch.setattr(figures, name, drawing)
    torch.rand(7)
    flags = (f"{stage.__name__}.py", *CHAIN[f"{stage.__name__}.py"], "--results", str(results))
    monkeypatch.setattr(sys, "argv", list(flags))
    command_line(stage.Config, stage.main, "")
    assert_same_run(results / stage.__name__, chain / stage.__name__)
    if stage is mnist_classify_train:
        assert_same_run(results / "judge", chain / "judge")


@pytest.mark.parametrize("size", [(64, 48), (3000, 40), (28, 4000)])
def test_what_stands_in_for_a_gradient_that_no_gpu_repeats_is_the_same(
    size: tuple[int, int],
) -> None:
    images = torch.rand(2, 1, *size, dtype=torch.float64, requires_grad=True)
    one = F.interpolate(images, (28, 31), mode="bilinear", antialias=True)
    other = voice_translator._shrunk_by_products(images, (28, 31))
    torch.testing.assert_close(other, one)
    gradients = [torch.autograd.grad(shrunk.square().sum(), images)[0] for shrunk in (one, other)]
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_gpu_gives_the_same_bits_again(stage: object, chain: Path, tmp_path: Path) -> None:
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


# -- what a results folder claims --------------------------------------------------------------------------------------


def verified(results: Path) -> dict:
    return main(Config(results=results, device="cpu", verify=True))


def test_the_results_of_the_commands_are_verified_to_the_last_digit(
    results: Path, printed_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = verified(results)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"verified: {results} is what it claims to be."
    assert (
        sum("hashes agree; " in line and line.endswith("measured again, the same") for line in said)
        == 5
    )
    for stage, numbers in measured.items():
        assert numbers.items() <= read_metrics(results / stage).items()


def changed_json(path: Path, change: Callable[[dict], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def changed_checkpoint(path: Path, change: Callable[[dict], object]) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def rehash(folder: Path) -> None:
    digest = file_sha256(folder / "checkpoint.pt")
    changed_json(folder / "metrics.json", lambda m: m["sha256"].update({"checkpoint.pt": digest}))


def test_a_results_folder_that_is_not_what_it_claims_is_refused(
    chain: Path, tmp_path: Path, printed_once: None
) -> None:
    stage = "train_vggish"

    def better(record: dict) -> None:
        record["test_accuracy"] = 0.99

    def other_weights(checkpoint: dict) -> None:
        checkpoint["networks"]["vggish"]["features.0.weight"] += 1e-3

    def forged(results: Path) -> None:  # weights that no record fits, with their hash and all
        changed_checkpoint(results / stage / "checkpoint.pt", lambda c: better(c["metrics"]))
        changed_json(results / stage / "metrics.json", better)
        rehash(results / stage)

    in_metrics = lambda change: (
        lambda results: changed_json(results / stage / "metrics.json", change)
    )  # noqa: E731
    swindles: list[tuple[Callable[[Path], object], str]] = [
        (
            in_metrics(better),
            "checkpoint.pt does not agree with what else is here: test_accuracy is",
        ),
        (forged, "metrics.json says test_accuracy 0.9900, but measured again it is"),
        (
            lambda r: changed_checkpoint(r / stage / "checkpoint.pt", other_weights),
            "SHA-256 of checkpoint.pt is",
        ),
        (
            in_metrics(lambda m: m["sha256"].update({"data/train": "0"})),
            "SHA-256 of data/train is 0, not",
        ),
        (
            in_metrics(lambda m: m["config"].update(learning_rate=1.0)),
            "checkpoint.pt does not agree .*: config is",
        ),
        (in_metrics(lambda m: m.update(seed=5)), "seed is 0, not 5"),
        (
            in_metrics(lambda m: m["sha256"].update({"/etc/passwd": "0"})),
            "names '/etc/passwd', which is not here",
        ),
        (
            lambda r: (r / stage / "log.jsonl").write_text('{"epoch": 2}\n'),
            "its epochs do not follow one another",
        ),
        (
            lambda r: (r / stage / "metrics.json").unlink(),
            "train_vggish holds no complete run, so there is nothing",
        ),
    ]
    for number, (swindle, said) in enumerate(swindles):
        results = Path(shutil.copytree(chain, tmp_path / f"{number}"))
        swindle(results)
        with pytest.raises(UserError, match=said):
            verified(results)


def test_an_epoch_that_was_not_the_best_is_refused(
    results: Path, printed_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "measure", lambda *_: ({}, 1))
    path = results / "train_all" / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    epoch = read_metrics(results / "train_all")["epoch"]
    lines[epoch - 1]["validation_loss"] = 9e9
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        UserError, match=f"epoch of the lowest validation_loss is {3 - epoch}, not {epoch}"
    ):
        verified(results)


def test_upstream_that_changed_and_a_record_without_its_hashes_are_told(
    chain: Path, tmp_path: Path, printed_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "measure", lambda *_: ({}, 1))  # which the test above does
    changed = Path(shutil.copytree(chain, tmp_path / "changed"))
    changed_checkpoint(
        changed / "judge" / "checkpoint.pt", lambda checkpoint: None
    )  # the same, in other bytes
    rehash(changed / "judge")
    with pytest.raises(
        UserError,
        match="emnist_dcgan/metrics.json does not agree .*: SHA-256 of judge/checkpoint.pt is",
    ):
        verified(changed)
    record = Path(shutil.copytree(chain, tmp_path / "fewer")) / "emnist_dcgan" / "metrics.json"
    changed_json(record, lambda metrics: metrics["sha256"].pop("data/train"))
    with pytest.raises(
        UserError, match="emnist_dcgan/metrics.json lacks the SHA-256 of data/train; run"
    ):
        verified(tmp_path / "fewer")
    changed_json(record, lambda metrics: metrics.pop("sha256"))
    with pytest.raises(
        UserError, match=r"emnist_dcgan/metrics.json is no whole checkpoint \(no 'sha256'\)"
    ):
        verified(tmp_path / "fewer")


# -- full disks, folders that cannot be written, or are not there any more ---------------------------------------------


def killed_in_epoch_2(folder: Path) -> None:
    if len((folder / "log.jsonl").read_text().splitlines()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def said_in_a_child(work: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert in_a_child(work) == 2
    return capfd.readouterr().err


def test_a_full_disk_is_told_and_the_last_epoch_stays(
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


def test_a_folder_that_may_not_be_written_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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


def test_a_folder_that_vanished_is_told(
    tmp_path: Path, small: None, capfd: pytest.CaptureFixture[str]
) -> None:
    def vanishing(folder: Path) -> None:
        if len((folder / "log.jsonl").read_text().splitlines()) == 2:
            shutil.rmtree(folder.parent)

    said = said_in_a_child(lambda: small_stage(Settings(tmp_path / "results"), vanishing), capfd)
    assert "small was removed while the run went on" in said


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "diary.txt").write_text("mine")
    with pytest.raises(
        UserError, match="small holds diary.txt, but no run; give another --results or --name"
    ):
        small_stage(Settings(tmp_path))
    unlock_folder(tmp_path / "small")
    assert (tmp_path / "small" / "diary.txt").read_text() == "mine"


def test_a_stopped_run_is_kept_and_a_finished_one_is_not_run_again(
    tmp_path: Path, small: None
) -> None:
    config = Settings(tmp_path)
    assert in_a_child(lambda: small_stage(config, killed_in_epoch_2)) == -9
    stopped = load_checkpoint(tmp_path / "small" / "last.pt", "small")
    metrics = small_stage(replace(config, seed=1))
    kept = load_checkpoint(tmp_path / "small.stopped" / "last.pt", "small")
    assert torch.equal(
        kept["networks"]["network"]["weight"], stopped["networks"]["network"]["weight"]
    )
    before = (tmp_path / "small" / "metrics.json").read_bytes()
    assert small_stage(replace(config, seed=1, resume=True))["loss"] == metrics["loss"]
    assert (tmp_path / "small" / "metrics.json").read_bytes() == before


# -- divergence --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_at_its_step_and_the_last_epoch_stays(
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


def test_losses_are_read_rarely_on_a_gpu_and_the_step_is_still_named() -> None:
    mean = RunningMean("the loss", 3)
    for step in range(1, 5):
        mean.unread.append(
            torch.tensor(torch.nan if step > 2 else 1.0)
        )  # as `add` does, without reading
    with pytest.raises(UserError, match="the loss is nan in epoch 3, step 3:"):
        mean.read()


def test_weights_that_are_not_finite_are_never_kept(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = optimizer_step, []

    def overflowing(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        step(loss, optimiser)
        steps.append(loss)
        if len(steps) == 3:  # the last of the epoch: no loss shows it
            optimiser.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(runs, "step", overflowing)
    with pytest.raises(
        UserError, match="the weights of the network are not finite at the end of epoch 1: training"
    ):
        small_stage(Settings(tmp_path))
    unlock_folder(tmp_path / "small")
    assert not list((tmp_path / "small").glob("*.pt"))
    monkeypatch.setattr(runs, "step", step)
    small_stage(Settings(tmp_path))  # what it left, a picture, stands in no one's way


def test_a_collapse_of_the_gan_is_warned_of() -> None:
    won, alike, fine = (
        gan_failure(*numbers) for numbers in ((0.33, 0.9, 0.9), (1.0, 0.01, 0.9), (1.0, 0.9, 0.9))
    )
    assert "the discriminator has won: its loss of 0.3300" in won
    assert "the samples are alike: they differ by 1.0%" in alike
    assert fine == ""
    assert gan_failure(0.01, 0.9, 1.0)  # the published label, whose least loss is 0
