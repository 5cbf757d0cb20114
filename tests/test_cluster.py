"""The engine for many machines: Ray, on two nodes of one machine, and under SLURM."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_compare_encodings as tiny
from conftest import ROOT, assert_equal_weights

import compare_encodings
import evaluate
import train_vggish
from common.locks import lock_folder, unlock_folder
from evaluation import encoding_report, ray_engine, sweep
from evaluation.ray_engine import ray_cluster, run_ray, run_task
from evaluation.sweep import Result, Sweep, Trial, run_sweep
from training.run import Run, read_log

# With Ray, stage one has epochs of a second, so that a node can be removed between two of them.
LONGER = {"epochs": 4, "images_per_epoch": 480} if find_spec("ray") else {}
SCHEDULE = dataclasses.replace(
    tiny.SCHEDULE, vggish=dataclasses.replace(tiny.SCHEDULE.vggish, **LONGER)
)
MAINS = {
    "vggish": train_vggish.main,
    "classifier": compare_encodings.mnist_classify_train.main,
    "gan": compare_encodings.emnist_dcgan.main,
    "joint": compare_encodings.train_all.main,
    "evaluation": evaluate.main,
}


@pytest.fixture(scope="module", autouse=True)
def no_curves_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_draw", lambda run: None)
        yield


def sweep_in(results: Path, keep_models: bool = True) -> Sweep:
    return Sweep(tiny.TWO, (), (0,), SCHEDULE, MAINS, Path("data"), results, keep_models)


def read_numbers(results: Path) -> list[dict[str, str]]:
    """The rows of comparison.csv, without how long a trial took and where it lies."""
    with (results / "encodings" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: row[key] for key in row if key not in ("seconds", "folder", "revision")}
        for row in rows
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The results of one process, and how often it wrote the report."""
    results, written, write = tmp_path_factory.mktemp("alone"), [], sweep.write_report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "REPORT_EVERY", 1e9)  # however slow the machine is
        patch.setattr(sweep, "write_report", lambda *args: written.append(1) or write(*args))
        run_sweep(sweep_in(results), ["cpu"], "Tiny.")
    return results, len(written)


# -- without Ray


def test_the_report_is_not_written_after_each_trial(alone: tuple[Path, int]) -> None:
    results, written = alone
    assert len(read_numbers(results)) == 2
    assert written == 2  # after the first of four trials, and at the end


def test_a_report_has_the_numbers_of_a_decoder_that_finished_after_another_report(
    alone: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shutil.copytree(alone[0], tmp_path / "results")
    for folder in results.glob("encodings/*/linear"):
        shutil.rmtree(folder)
    monkeypatch.setattr(sweep, "REPORT_EVERY", 0)
    run_sweep(sweep_in(results), ["cpu"], "Tiny.")
    assert read_numbers(results) == read_numbers(alone[0])


def test_the_pictures_show_the_best_encodings_and_the_primary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(encoding_report, "MOST_SHOWN", 2)
    for name in ("draw_ratings", "draw_sheet", "write_sounds"):
        monkeypatch.setattr(encoding_report, name, lambda _, rows: drawn.append(rows))
    rows = tiny.make_rows(tiny.VALUES)
    encoding_report.write_pictures(tmp_path, rows)
    assert len(drawn) == 3
    assert {row["encoding"] for row in drawn[0]} == {"primary", "above", "near"}
    assert drawn[0] == [row for row in rows if row["encoding"] in ("primary", "near", "above")]


def test_the_networks_of_a_rated_trial_are_removed_if_so_demanded(
    alone: tuple[Path, int], tmp_path: Path
) -> None:
    results = shutil.copytree(alone[0], tmp_path / "results")
    trial = tiny.folders(results)["line"] / "0"
    shutil.rmtree(trial / "train_all" / "evaluation")
    run_sweep(sweep_in(results, keep_models=False), ["cpu"], "Tiny.")
    assert [path.name for path in trial.rglob("*.pt")] == ["shown.pt"]
    assert len(list(results.glob("encodings/primary-*/0/*/checkpoint.pt"))) == 2
    assert read_numbers(results) == read_numbers(alone[0])
    # A finished trial stays finished.
    run_sweep(sweep_in(results), ["cpu"], "Tiny.")
    assert read_numbers(results) == read_numbers(alone[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine", "ray", "--workers", "2"), "--workers is not for --engine ray; leave it out."),
        (("--address", "auto"), "--address is not for --engine local; leave it out."),
        (("--engine", "ray", "--device", "cuda:1"), "--device cuda:1 is not for --engine ray"),
        (("--engine", "ray", "--address", "127.0.0.1:1"),
         "nothing answers at --address 127.0.0.1:1 ([Errno 111] Connection refused); give host:"),
        (("--engine", "ray", "--address", "head"), "nothing answers at --address head"),
    ],
)  # fmt: skip
def test_what_the_engine_cannot_do_is_said_in_one_sentence(
    flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    assert tiny.compare(monkeypatch, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"compare_encodings.py: {message}")
    assert error.count("\n") == 1


def test_ray_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert tiny.compare(monkeypatch, tmp_path, "--engine", "ray") == 2
    error = capsys.readouterr().err
    assert "pip install -r requirements-cluster.txt" in error
    assert error.count("\n") == 1


def succeed(trial: Trial, device: str) -> Result:
    (trial.folder / "ran").touch()
    return trial, ""


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    (tmp_path / "settings.json").touch()
    (tmp_path / "0").mkdir()
    return tiny.trials_in(tmp_path / "0", "one")[0]


def test_a_task_that_does_not_see_the_results_says_so(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "PATIENCE", 0)
    witness = trial.folder.parent / "elsewhere" / "settings.json"
    _, error = run_task(succeed, trial, "cpu", witness)
    assert f"does not see {witness}; share the results folder with every machine" in error
    assert not (trial.folder / "ran").exists()


def test_a_task_waits_for_the_lock_of_a_dead_worker(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, time; from pathlib import Path; from common.locks import lock_folder\n"
    code += "lock_folder(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(trial.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        monkeypatch.setattr(ray_engine, "PATIENCE", 1)
        witness = trial.folder.parent / "settings.json"
        _, error = run_task(succeed, trial, "cpu", witness)
        assert f"{trial.folder} is in use by process {other.pid}" in error
        monkeypatch.setattr(ray_engine, "PATIENCE", 60)
        threading.Timer(1.5, other.kill).start()
        assert run_task(succeed, trial, "cpu", witness) == (trial, "")
    lock_folder(trial.folder)  # it is free again
    unlock_folder(trial.folder)


def test_a_trial_that_was_finished_before_its_worker_died_is_not_run_again(trial: Trial) -> None:
    (trial.record / "metrics.json").touch()
    assert run_task(succeed, trial, "cpu", trial.folder) == (trial, "")
    assert not (trial.folder / "ran").exists()


# -- with Ray


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and two nodes with a CPU each, and with GPUs by name alone."""
    pytest.importorskip("ray", reason="Ray is not installed: requirements-cluster.txt")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves the tasks
    gpus = getattr(request, "param", 0)
    if gpus:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, num_gpus=gpus)
        yield made
    finally:
        made.shutdown()


def wait_until(condition: Callable[[], Any], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def node_of(cluster: Any, process: int) -> Any:
    """The node whose raylet started a process."""
    parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    return raylets[parent]


def test_a_trial_whose_node_is_removed_goes_on_elsewhere_with_the_same_numbers(
    alone: tuple[Path, int], cluster: Any, tmp_path: Path
) -> None:
    made = sweep_in(tmp_path)
    folder = made.folder("line") / "0"
    removed: list[int] = []

    def remove() -> None:
        wait_until((folder / "train_vggish" / "last.pt").exists)
        lock = folder.with_name(f".{folder.name}.lock").read_text()
        cluster.remove_node(node_of(cluster, int(lock.split()[1])), allow_graceful=False)
        removed.append(len(read_log(folder / "train_vggish" / "log.jsonl")))

    thread = threading.Thread(target=remove, daemon=True)
    with ray_cluster(cluster.address, "cpu") as devices:
        assert devices == ["cpu"]
        thread.start()
        run_sweep(made, devices, "Tiny.", run_ray)
    thread.join()
    assert removed[0] < SCHEDULE.vggish.epochs
    said = (folder / "output.txt").read_text()
    assert f"resumed: {folder / 'train_vggish'} after epoch {removed[0]}" in said
    assert read_numbers(tmp_path) == read_numbers(alone[0])
    for run in ("train_vggish", "train_all"):
        assert_equal_weights(folder / run, tiny.folders(alone[0])["line"] / "0" / run)
    assert not list(tmp_path.rglob(".*.lock"))


@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_a_task_gets_a_gpu_or_as_many_cpus_as_it_has_threads(
    cluster: Any, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(trial: Trial, device: str) -> Result:
        import ray  # pyright: ignore[reportMissingImports]

        needs = ray.get_runtime_context().get_assigned_resources()
        seen = os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]
        (trial.record / "metrics.json").write_text(f"{device} {seen} {needs.get('GPU', 0)}")
        return trial, ""

    def end(trial: Trial, device: str) -> Result:
        os._exit(1)

    with ray_cluster(cluster.address, "auto") as devices:
        assert devices == ["cuda"]
        results = list(run_ray(note, [trial], devices, trial.folder.parent))
        assert results == [(trial, "")]
        assert (trial.record / "metrics.json").read_text() == "cuda ('0', '1') 1.0"
        (trial.record / "metrics.json").unlink()
        monkeypatch.setattr(ray_engine, "RETRIES", 1)
        ((_, error),) = run_ray(end, [trial], ["cpu"], trial.folder.parent)
        assert error.startswith("its task ended 2 times (")


# -- under SLURM

TINY_COMPARISON = """\
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import compare_encodings, test_cluster, test_compare_encodings
compare_encodings.ENCODINGS = test_compare_encodings.TWO
compare_encodings.schedule_of = lambda config: test_cluster.SCHEDULE
compare_encodings.command_line(compare_encodings.Config, compare_encodings.main, None)
"""


def test_the_documented_slurm_script_runs_on_one_node(
    alone: tuple[Path, int], tmp_path: Path
) -> None:
    if not os.environ.get("LISTEN_SLURM"):
        pytest.skip("LISTEN_SLURM=1 runs it, on a machine with a SLURM cluster")
    page = (ROOT / "docs" / "cluster.md").read_text()
    script = page[page.index("#!/bin/bash") :].partition("```")[0]
    tests = str(ROOT / "tests")
    (tmp_path / "tiny.py").write_text(TINY_COMPARISON.format(root=str(ROOT), tests=tests))
    command = f"{tmp_path}/tiny.py --seeds 0 --device cpu --results {tmp_path}"
    for written, here in {
        "--nodes=2": "--nodes=1",
        "--cpus-per-task=16": "--cpus-per-task=1",
        "#SBATCH --gpus-per-node=8\n": "",
        ".venv/bin/activate": str(Path(sys.executable).with_name("activate")),
        "compare_encodings.py": command,
    }.items():
        assert written in script
        script = script.replace(written, here)
    (tmp_path / "encodings.sh").write_text(script)
    (tmp_path / "token").write_text("0123456789abcdef")  # else Ray writes one into the home folder
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    environment["RAY_worker_niceness"] = "0"
    submit = ["sbatch", "--wait", "encodings.sh"]
    done = subprocess.run(submit, cwd=tmp_path, env=environment, check=False, timeout=600)
    log = (tmp_path / "encodings.log").read_text()
    assert done.returncode == 0, log[-4000:]
    assert "4 of 4 trials are finished." in log
    assert read_numbers(tmp_path) == read_numbers(alone[0])
