"""Ratings: through the command line, their judges, their page in a real browser, their check, and
the comparison over seeds."""

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import script

import data
import evaluation.rating as rating_module
from common.cli import command_line
from common.files import UserError, read_json
from common.media import pyplot
from data import Digits, load_digits
from data.resize import upsample
from data.synthetic import load_handwritten
from evaluate import Config, main
from evaluation.compare import COLUMNS, compare
from evaluation.judges import load_judges
from evaluation.metrics import predict_labels
from evaluation.rating import choose_examples, find_run, judges_mean, rated_folders, realism_report
from evaluation.report import LOOKS, PANELS, draw_curves, render
from evaluation.verify import require_close, verify_stage
from models.judge_kernel import KernelJudge
from models.judge_vit import ViTJudge
from training.run import read_log, read_metrics

CPU = torch.device("cpu")
LINE = {"epoch": 1, **{key: 0.5 for names in PANELS.values() for key in names}}


@pytest.fixture(scope="session")
def rated(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain's results, with the rating that the command line left in the run. Read it only."""
    results = Path(shutil.copytree(chain, tmp_path_factory.mktemp("rated") / "results"))
    done = script("evaluate.py", "--device", "cpu", "--results", str(results))
    assert done.returncode == 0, done.stderr
    assert f"run: {results}/train_all, the newest complete run of stage three" in done.stdout
    # after so few epochs
    assert re.search(r"warning: the judge vit is right on \d+.\d\d% of real images", done.stdout)
    last = done.stdout.splitlines()[-1]
    assert "(sound-consistent objective)" in last
    assert f"{results}/train_all/evaluation/index.html" in last
    return results


@pytest.fixture(scope="session")
def metrics(rated: Path) -> dict:
    return read_metrics(rated / "train_all" / "evaluation")


@pytest.fixture(scope="session")
def judges(chain: Path) -> dict[str, torch.nn.Module]:
    return load_judges(chain / "judges", "handwritten", CPU)


@pytest.fixture
def copy(rated: Path, tmp_path: Path) -> Path:
    """A writable copy of the rated results."""
    return Path(shutil.copytree(rated, tmp_path / "results"))


def settings(results: Path, **changes: object) -> Config:
    return Config(results=results, device="cpu", data_root=Path(), **changes)


# -- the numbers -----------------------------------------------------------------------------------


def test_every_number_of_a_rating_is_a_fraction(metrics: dict) -> None:
    assert set(metrics["judges"]) == {"cnn", "vit", "kernel"}
    reports = (*metrics["judges"].values(), metrics["classifier"], metrics["sound_classifier"])
    for report in reports:
        low, high = report["interval"]
        assert 0 <= low <= report["accuracy"] <= high <= 1
        assert report["images"] == np.sum(report["confusion"]) == 360
        assert len(report["per_class"]) == 10
        assert report["accuracy"] == np.trace(report["confusion"]) / 360
    assert metrics["judges"]["kernel"]["real"]["accuracy"] > 0.85
    assert metrics["retrieval"]["overall"]["images"] == 360
    assert metrics["realism"]["images"] == 180
    for name in ("imagined", "real", "samples_before", "samples_after"):
        assert metrics["realism"][name]["frechet_distance"] >= 0
        assert 0 <= metrics["realism"][name]["precision"] <= 1
        assert 0 <= metrics["realism"][name]["recall"] <= 1
    assert {"seed", "revision", "versions", "machine", "config", "seconds"} <= metrics.keys()
    assert metrics["classes"] == list("0123456789")


def test_a_rating_agrees_with_stage_three_and_stage_one(rated: Path, metrics: dict) -> None:
    stage = read_metrics(rated / "train_all")
    assert metrics["classifier"]["accuracy"] == pytest.approx(stage["test_accuracy"])
    assert metrics["judges"]["cnn"]["accuracy"] == pytest.approx(stage["judge_accuracy"])
    assert metrics["correlation"]["mean"] == pytest.approx(stage["correlation"], abs=1e-6)
    assert metrics["retrieval"]["overall"]["accuracy"] == pytest.approx(stage["retrieval"])
    assert metrics["audio_loss"] == pytest.approx(stage["audio_loss"])
    by_sound = read_metrics(rated / "train_vggish")["test_accuracy"]
    assert metrics["sound_classifier"]["accuracy"] == pytest.approx(by_sound)
    assert metrics["stages"]["train_all"]["config"] == stage["config"]
    grid = rated / "train_all" / "evaluation" / "imagined.png"
    assert grid.read_bytes() == (rated / "train_all" / "imagined.png").read_bytes()


def test_the_mean_of_the_judges_and_the_worst_class() -> None:
    one = {"accuracy": 0.9, "per_class": [{"accuracy": 1.0}, {"accuracy": 0.8}]}
    other = {"accuracy": 0.5, "per_class": [{"accuracy": 0.2}, {"accuracy": 0.8}]}
    assert judges_mean([one, other]) == pytest.approx({"accuracy": 0.7, "worst_class": 0.6})


def test_realism_at_the_ends_of_its_scale(judges: dict) -> None:
    """Real images are realistic, and flat grey ones are not."""
    heard = upsample(load_digits("handwritten", "test", Path(), "cpu").images)
    generator = torch.nn.Module()
    generator.forward = lambda z: torch.zeros(len(z), 1, 64, 64)
    rating = realism_report(judges["cnn"], heard, heard, generator, generator, seed=0)
    real, flat = rating["real"], rating["samples_before"]
    assert rating["imagined"] == real
    assert real["precision"] > 0.7 and real["recall"] > 0.7
    assert flat["recall"] == rating["samples_after"]["precision"] == 0
    # above 0, as no set shares an image with the reference
    assert 1e-6 < real["frechet_distance"] < 0.1 * flat["frechet_distance"]


def test_best_median_worst_and_misread_examples_are_chosen() -> None:
    correlations = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, -0.2])
    labels = torch.tensor([4, 4, 4, 4, 4, 7])
    four = [(1, "best"), (2, "median"), (0, "worst")]
    seven = [(5, "best"), (5, "median"), (5, "worst")]
    assert choose_examples(correlations, labels, [labels, labels, labels]) == four + seven
    # Image 0 is misread by one judge of three; 2, 3 and 4 by two.
    one, two = torch.tensor([4, 4, 9, 9, 9, 7]), torch.tensor([9, 4, 9, 9, 8, 7])
    misread = choose_examples(correlations, labels, [labels, one, two])
    assert misread == [*four, (2, "misread"), *seven]


def test_a_refined_rating_of_the_validation_part_has_its_own_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--device", "cpu", "--results", str(copy), "--refine-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, "--part", "validation"])
    command_line(Config, main, "")
    run = copy / "train_all"
    folder = run / "evaluation_validation_refined"
    record = read_metrics(folder)
    assert (record["part"], record["config"]["refine_steps"]) == ("validation", 2)
    count = len(load_digits("handwritten", "validation", Path(), CPU).labels)
    assert record["classifier"]["images"] == count != 360
    assert 0 < record["refined_fraction"] <= 1
    line = read_log(run / "log.jsonl")[read_metrics(run)["epoch"] - 1]
    assert record["correlation"]["mean"] != pytest.approx(line["validation_correlation"], abs=1e-4)
    html = (folder / "index.html").read_text()
    assert "Sounds that were uncertain and refined" in html
    assert "<h1>What was imagined: train_all, with latent refinement</h1>" in html
    assert "the validation part of handwritten" in html
    page_without = (run / "evaluation" / "index.html").read_text()
    assert "and refined" not in page_without
    assert "<h1>What was imagined: train_all</h1>" in page_without
    assert "Objective: sound-consistent. Encoding: 28 x 28 pixels in 1.05 s" in page_without
    assert "the test part of handwritten" in page_without
    with pytest.raises(SystemExit, match="2"):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags[:4], "--refine-steps", "-1"])
        command_line(Config, main, "")


def test_an_older_rating_is_moved_aside_and_another_record_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy / "train_all"
    before = (run / "evaluation" / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="train_vggish holds what train_vggish left"):
        main(settings(copy, output=copy / "train_vggish"))
    main(settings(copy, seed=1))
    assert (run / "evaluation.1" / "metrics.json").read_bytes() == before
    assert f"is now in {run}/evaluation.1" in capsys.readouterr().out
    assert read_metrics(run / "evaluation")["seed"] == 1
    monkeypatch.setattr(rating_module, "rate_run", lambda *_: pytest.fail("it was rated"))
    (run / "log.jsonl").write_text('{"epoch": 1}\n')  # refused before the work
    with pytest.raises(UserError, match="log.jsonl is no whole .* 'validation_accuracy'"):
        main(settings(copy))
    assert read_metrics(run / "evaluation")["seed"] == 1


def test_the_newest_complete_run_is_the_default(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer, stopped = (shutil.copytree(copy / "train_all", copy / name) for name in ("new", "half"))
    shutil.copytree(newer, copy / "new.1")  # it was moved aside
    (stopped / "metrics.json").unlink()
    for name, seconds in (("train_all", 1000), ("new", 2000), ("new.1", 3000), ("emnist_dcgan", 4)):
        os.utime(copy / name / "metrics.json", (seconds, seconds))
    assert find_run(None, copy) == newer
    assert f"run: {newer}, the newest complete run" in capsys.readouterr().out
    assert find_run(Path("train_all"), copy) == copy / "train_all"
    with pytest.raises(UserError, match=f"{tmp_path}/results/judges holds no complete run"):
        find_run(None, copy / "judges")


def test_a_run_from_elsewhere_is_rated(copy: Path, tmp_path: Path, metrics: dict) -> None:
    config = settings(tmp_path / "empty", name=copy / "train_all", output=tmp_path / "rating")
    assert main(config)["judges"] == metrics["judges"]
    assert (tmp_path / "rating" / "index.html").is_file()
    assert not (copy / "train_all" / "evaluation.1").exists()


def test_modes_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--verify and --controls exclude each other"):
        main(settings(tmp_path, verify=True, controls=True))


def test_a_rating_works_with_three_named_classes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks know ten classes here; the data set has images of three of them."""

    def load(part: data.Part, root: Path) -> Digits:
        digits = load_handwritten(part)
        return Digits(*(tensor[digits.labels < 3] for tensor in digits))

    names = ("T-shirt", "<trouser>", "ankle boot", *"3456789")
    entry = data.DATASETS["handwritten"]._replace(load=load, class_names=names)
    monkeypatch.setitem(data.DATASETS, "handwritten", entry)
    record = main(settings(copy))
    assert [entry["class"] for entry in record["classifier"]["per_class"]] == [0, 1, 2]
    assert len(record["classifier"]["confusion"]) == 10
    html = (copy / "train_all" / "evaluation" / "index.html").read_text()
    assert "<option>&lt;trouser&gt;</option>" in html
    assert "class ankle boot" in html


def test_too_few_images_are_refused(rated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = lambda part, _: Digits(*(tensor[:7] for tensor in load_handwritten(part)))  # noqa: E731
    entry = data.DATASETS["handwritten"]._replace(load=few)
    monkeypatch.setitem(data.DATASETS, "handwritten", entry)
    with pytest.raises(UserError, match="test part of handwritten has 7 images, but .* at least 8"):
        rating_module.rate_run(rated / "train_all", "test", 0, 0, Path(), CPU)


# -- the judges ------------------------------------------------------------------------------------


def test_the_judges_are_frozen(judges: dict) -> None:
    for judge in judges.values():
        assert not judge.training
        assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_the_kernel_judge_agrees_with_its_formula_and_ignores_contrast(judges: dict) -> None:
    judge = judges["kernel"]
    test = load_digits("handwritten", "test", Path(), "cpu")
    images = upsample(test.images)
    assert (predict_labels(judge, images) == test.labels).double().mean() > 0.85
    grey = 0.2 * images - 0.7
    assert torch.equal(predict_labels(judge, grey), predict_labels(judge, images))
    kernels = KernelJudge.kernels(judge, judge.centres)
    torch.testing.assert_close(kernels.diagonal(), torch.ones(len(kernels)))
    squared = torch.cdist(judge.centres.double(), judge.centres.double()) ** 2
    torch.testing.assert_close(kernels.double(), (-judge.gamma * squared).exp(), atol=1e-5, rtol=0)


def test_the_vit_judge_learns() -> None:
    torch.manual_seed(0)
    judge = ViTJudge()
    digits = load_digits("handwritten", "train", Path(), "cpu")
    images, labels = upsample(digits.images[:128]), digits.labels[:128]
    optimiser = torch.optim.AdamW(judge.parameters(), 2e-3)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(judge(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (judge(images).argmax(1) == labels).double().mean() > 0.6  # chance is 0.1
    # Two dots at the same place of different patches. Only the positions distinguish them.
    dots = -torch.ones(2, 1, 28, 28)
    dots[0, 0, 11, 11] = dots[1, 0, 17, 17] = 1
    one, other = judge(dots)
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_vit_judge_uses_the_layers_that_it_learned_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch's fast path for frozen layers has another gelu on a GPU than on the CPU."""
    judge = ViTJudge().requires_grad_(False).eval()
    images = 2 * torch.rand(3, 1, 64, 64) - 1
    fast = torch._transformer_encoder_layer_fwd
    taken: list[int] = []
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *args: (taken.append(1), fast(*args))[1]
    )
    logits = judge(images)
    assert not taken
    torch.testing.assert_close(judge.train()(images), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("damage", ["garbage", "another stage", "weights"])
def test_a_damaged_judge_is_refused(damage: str, results: Path) -> None:
    path = results / "judges" / "kernel" / "checkpoint.pt"
    message = "checkpoint.*; run mnist_classify_train.py"
    if damage == "garbage":
        path.write_bytes(b"no checkpoint")
    elif damage == "another stage":
        shutil.copy(results / "judges" / "vit" / "checkpoint.pt", path)
    else:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["networks"]["classifier"]["weights"][0] = torch.nan
        torch.save(checkpoint, path)
        message = "are not finite; train it again"
    with pytest.raises(UserError, match=message):
        load_judges(results / "judges", "handwritten", CPU)


# -- what is refused -------------------------------------------------------------------------------


def test_a_missing_or_wrong_run_is_refused(results: Path) -> None:
    config = settings(results, name=Path("train_all"))
    message = "other/checkpoint.pt is missing; run train_all.py --name other"
    with pytest.raises(UserError, match=message):
        main(dataclasses.replace(config, name=Path("other")))
    message = "is a checkpoint of 'emnist_dcgan', not of 'train_all'; run train_all.py"
    with pytest.raises(UserError, match=message):
        main(dataclasses.replace(config, name=Path("emnist_dcgan")))
    for stage in ("train_vggish", "emnist_dcgan", "mnist_classify_train"):
        path = results / stage / "checkpoint.pt"
        before = path.read_bytes()
        torch.save({**torch.load(path, weights_only=True), "seed": 7}, path)
        message = f"was not made from the {stage}/checkpoint.pt that is in .* now; run train_all"
        with pytest.raises(UserError, match=message):
            main(config)
        path.write_bytes(before)
    judge = results / "judges" / "cnn" / "metrics.json"
    shutil.move(judge, results / "elsewhere.json")
    message = "cnn holds a run that is not complete; run mnist_classify_train.py --resume"
    with pytest.raises(UserError, match=message):
        main(config)
    shutil.move(results / "elsewhere.json", judge)
    path = results / "train_all" / "metrics.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "sha256": 7}))
    with pytest.raises(UserError, match="train_all/metrics.json is no whole .*; run train_all.py"):
        main(config)
    path.unlink()
    with pytest.raises(UserError, match="a run that is not complete; run train_all.py --resume"):
        main(config)
    (results / "emnist_dcgan" / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="emnist_dcgan/checkpoint.pt is missing; run emnist_dcgan"):
        main(config)
    assert not (results / "train_all" / "evaluation").exists()


def test_malformed_logs_and_records_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    os.mkfifo(path)  # to open it would wait for ever
    with pytest.raises(UserError, match="log.jsonl is missing or damaged; write it"):
        read_log(path, "write it")
    with pytest.raises(UserError, match="log.jsonl is missing or damaged; write it"):
        read_json(path, "write it")
    path.unlink()
    numbers = ("cross_entropy",)
    path.write_text('{"epoch": 1, "cross_entropy": 0.5, "failure": ""}\n')
    assert read_log(path, "write it", numbers)[0]["cross_entropy"] == 0.5
    for text in ('{"epoch": 1}', '{"epoch": 1, "cross_entropy": "0.5"}', '{"cross_entropy": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match="log.jsonl is no whole"):
            read_log(path, "write it", numbers)
    path.write_text(f'{{"epoch": 1, "cross_entropy": {"9" * 4000}}}')
    with pytest.raises(UserError, match="log.jsonl is missing or damaged"):
        read_log(path, "write it", numbers)


def test_ctrl_c_names_no_flag_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    with pytest.raises(SystemExit, match="130"):
        command_line(Config, stopped, "")
    assert "Start the command again" in capsys.readouterr().err


# -- the check of a run and its ratings ------------------------------------------------------------


def verified(results: Path, **changes: object) -> dict:
    return main(settings(results, name=Path("train_all"), verify=True, **changes))


def test_a_run_and_its_rating_are_verified(
    rated: Path, metrics: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = verified(rated)["evaluation"]
    said = capsys.readouterr().out
    for folder in rated_folders(rated / "train_all").values():
        assert re.search(f"{folder}: seed \\d+, epoch \\d+, .*; hashes agree\n", said)
    mean = numbers["judges_mean"]["accuracy"]
    assert f"train_all/evaluation: hashes agree; judges_mean {mean:.4f} and " in said
    assert re.search(r"and \d{3,} more numbers: measured again, the same\n", said)
    assert said.endswith(f"verified: {rated}/train_all is what it claims to be.\n")
    assert numbers == {name: metrics[name] for name in numbers}


def test_a_run_without_a_rating_is_verified_by_its_hashes(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(results) == {}
    assert "no rating is there, so only hashes were compared" in capsys.readouterr().out
    folders = rated_folders(results / "train_all")
    for stage in ("train_vggish", "judge_vit", "train_all"):
        with open(folders[stage] / "checkpoint.pt", "ab") as file:
            file.write(b"x")
        with pytest.raises(
            UserError, match="does not agree .*: SHA-256 of [a-z_/]*checkpoint.pt is"
        ):
            verify_stage(stage, folders, Path())
    path = results / "mnist_classify_train" / "metrics.json"
    honest = json.loads(path.read_text())
    hashes = honest["sha256"]
    for changes, message in (
        ({**hashes, "data/train": "x"}, "SHA-256 of data/train is x, not"),
        ({**hashes, "judge_cnn/checkpoint.pt": "x"}, "SHA-256 of judge_cnn/checkpoint.pt is x"),
        ({**hashes, "other/checkpoint.pt": "x"}, "names 'other/checkpoint.pt', which is not here"),
        ({**hashes, "../checkpoint.pt": "x"}, "names '../checkpoint.pt', which is not here"),
        (
            {"data/train": hashes["data/train"]},
            "lacks SHA-256 hashes; run mnist_classify_train.py again",
        ),
        (7, "metrics.json is no whole"),
    ):
        path.write_text(json.dumps({**honest, "sha256": changes}))
        with pytest.raises(UserError, match=message):
            verify_stage("mnist_classify_train", folders, Path())


def test_a_forged_rating_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "train_all" / "evaluation" / "metrics.json"
    honest = path.read_text()
    result = rating_module.rate_run(copy / "train_all", "test", 0, 0, Path(), CPU)
    monkeypatch.setattr("evaluation.verify.rate_run", lambda *_: result)
    monkeypatch.setattr("evaluation.verify.verify_stage", lambda *_: None)

    def forgeries(record: dict) -> dict[str, tuple[dict, object]]:
        hashed, realism = record["sha256"], record["realism"]["imagined"]
        kernel = record["judges"]["kernel"]
        return {
            "says realism.imagined.frechet_distance -5.0000, but measured": (
                realism,
                {"frechet_distance": -5.0},
            ),
            "says judges.kernel.accuracy 0.0100, but": (kernel, {"accuracy": 0.01}),
            "says judges.kernel.real.accuracy 0.1000, but": (kernel["real"], {"accuracy": 0.1}),
            "says refined_fraction 0.5000, but": (record, {"refined_fraction": 0.5}),
            "no whole": (record, {"refined_fraction": "no number"}),
            "list of numbers is .'diversity.more'.": (record["diversity"], {"more": 1}),
            "of an older run or other data, because judge_vit/": (
                hashed,
                {"judge_vit/checkpoint.pt": "x"},
            ),
            "because train_all/checkpoint.pt is another now; run": (
                hashed,
                {"train_all/checkpoint.pt": "x"},
            ),
            "other data, because data/test is another now": (hashed, {"data/test": "x"}),
            "because data/train is another now": (record["config"], {"part": "train"}),
            "no whole checkpoint": (record["config"], {"part": 3}),
        }

    for message in forgeries(json.loads(honest)):
        record = json.loads(honest)
        part, change = forgeries(record)[message]
        part.update(change)
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match=message):
            verified(copy)
    path.write_text(honest)
    verified(copy)


def test_a_number_may_differ_by_rounding_only() -> None:
    require_close(Path("m"), "accuracy", 0.5, 0.504, 10_000)
    with pytest.raises(UserError, match=r"says accuracy 0.5000, but measured again it is 0.5060"):
        require_close(Path("m"), "accuracy", 0.5, 0.506, 10_000)
    require_close(Path("m"), "judges.cnn.per_class.3.accuracy", 0.5, 0.54, 10_000)
    require_close(Path("m"), "confusion.1.2", 5, 15, 10_000)
    with pytest.raises(UserError):
        require_close(Path("m"), "confusion.1.2", 5, 16, 10_000)


# -- the comparison --------------------------------------------------------------------------------


def rating(metrics: dict, folder: Path, seed: int, accuracy: float, **settings: object) -> Path:
    """A rating of another run: its seed, the accuracy of its classifier, and settings of its stage
    three."""
    other = json.loads(json.dumps(metrics))
    for entry in other["stages"].values():
        entry["seed"] = seed
        entry["config"] = {**entry["config"], "seed": seed, "results": f"place{seed}"}
    other["stages"]["train_all"]["config"].update(settings)
    other["classifier"]["accuracy"] = accuracy
    other["cnn_judge"] = f"of seed {seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(other))
    return folder


def changed(folder: Path, *keys: str, **changes: object) -> None:
    """Change a part of the rating in `folder`."""
    record = json.loads((folder / "metrics.json").read_text())
    part = record
    for key in keys:
        part = part[key]
    part.update(changes)
    (folder / "metrics.json").write_text(json.dumps(record))


def test_runs_that_differ_in_seeds_are_one_row_with_a_spread(
    metrics: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [
        rating(metrics, tmp_path / f"{seed}", seed, accuracy)
        for seed, accuracy in enumerate((0.5, 0.7, 0.9))
    ]
    other = rating(metrics, tmp_path / "run" / "evaluation", 0, 0.25, sound_consistency=0.0)
    flags = ["--compare", *map(str, [*folders, other.parent]), "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    command_line(Config, main, "")
    record = json.loads((tmp_path / "out" / "comparison" / "metrics.json").read_text())
    table = (tmp_path / "out" / "comparison" / "table.md").read_text()
    assert table in capsys.readouterr().out
    ours, theirs = record["rows"]
    assert ours["seeds"] == [0, 1, 2]
    assert ours["columns"]["classifier"] == {
        "mean": pytest.approx(0.7),
        "spread": pytest.approx(0.2),
        "values": [0.5, 0.7, 0.9],
    }
    assert ours["columns"]["kernel"]["spread"] == 0
    assert theirs["columns"]["classifier"] == {"mean": 0.25, "spread": None, "values": [0.25]}
    assert ours["settings"] == {"train_all.sound_consistency": 1.0}
    assert theirs["settings"] == {"train_all.sound_consistency": 0.0}
    assert "0.7000 ± 0.2000 | 0.2500 |" in table
    assert "more than one" not in table
    # of one name, so the rows are named by their folders
    assert f"|  | {tmp_path}/0 | {tmp_path}/run/evaluation |" in table
    assert f"so the spread is unknown: {tmp_path}/run/evaluation." in table
    assert f"{tmp_path}/0: train_all.sound_consistency 1.0." in table
    assert set(ours["columns"]) == set(COLUMNS)


def test_a_comparison_names_different_judges_machines_and_revisions(
    metrics: dict, tmp_path: Path
) -> None:
    one, other = (rating(metrics, tmp_path / f"{seed}", seed, 0.5) for seed in (0, 1))
    third = rating(metrics, tmp_path / "third", 1, 0.5, binarization_weight=0.25)
    unlike = rating(metrics, tmp_path / "unlike", 0, 0.5, binarization_weight=0.25)
    several, apart = "A row has several, so its spread is of", "so do not compare these three"

    def said(*folders: Path) -> tuple[bool, bool]:
        compare(folders, tmp_path / "out")
        table = (tmp_path / "out" / "table.md").read_text()
        return several in table, apart in table

    assert said(one, unlike) == (False, False)
    assert said(one, third) == (False, True)
    assert said(one, other) == (True, False)
    assert said(one, other, unlike) == (True, True)
    stage = metrics["stages"]["train_all"]
    assert stage["machine"] == metrics["machine"]
    assert metrics["machine"].endswith(("float32", "bfloat16 where it pays"))
    changes = {"machine": "another, float32", "revision": "0123456789ab"}
    changed(other, "stages", "train_all", **changes)
    compare((one, other), tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    for what, value in changes.items():
        both = "; ".join(sorted([str(stage[what]), value]))
        assert f"train_all: more than one {what}: {both}." in table


def test_only_the_settings_that_differ_are_named(metrics: dict, tmp_path: Path) -> None:
    mel = {**metrics["stages"]["train_all"]["config"]["encoding"], "curve": "mel"}
    folders = [
        rating(metrics, tmp_path / "0", 0, 0.5),
        rating(metrics, tmp_path / "1", 1, 0.5, encoding=mel),
        rating(metrics, tmp_path / "2", 2, 0.5),
        rating(metrics, tmp_path / "3", 3, 0.5),
    ]
    rows = compare(tuple(folders[:2]), tmp_path / "out")["rows"]
    curves = [{"train_all.encoding.curve": curve} for curve in ("exponential", "mel")]
    assert [row["settings"] for row in rows] == curves
    changed(folders[2], "config", refine_steps=8)
    rows = compare((folders[0], folders[2]), tmp_path / "out")["rows"]
    assert [row["settings"] for row in rows] == [{"evaluate.refine_steps": n} for n in (0, 8)]
    assert [row["name"] for row in rows] == ["train_all", "train_all, refined"]
    changed(folders[3], "classifier", images=50)
    changed(folders[3], "retrieval", "overall", images=50)
    rows = compare((folders[0], folders[3]), tmp_path / "out")["rows"]
    counts = [{"evaluate.images": n, "evaluate.searched": n} for n in (360, 50)]
    assert [row["settings"] for row in rows] == counts
    assert "| images heard | 360 | 50 |" in (tmp_path / "out" / "table.md").read_text()


def test_the_rating_of_an_older_run_is_refused(copy: Path, tmp_path: Path) -> None:
    run = copy / "train_all"
    compare((run,), tmp_path / "out")
    path = run / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "epoch": 7}, path)
    message = f"the rating in {run}/evaluation is of an older run; run evaluate.py again"
    for folder in (run, run / "evaluation"):
        with pytest.raises(UserError, match=message):
            compare((folder,), tmp_path / "out")


def test_a_comparison_names_the_stages_that_share_a_seed(metrics: dict, tmp_path: Path) -> None:
    folders = [rating(metrics, tmp_path / f"{seed}", seed, 0.5) for seed in (0, 1)]
    changed(folders[1], "stages", "train_vggish", seed=0)
    config = Config(compare=tuple(folders), results=tmp_path, output=tmp_path / "there")
    assert main(config)["rows"][0]["shared"] == ["train_vggish"]
    table = (tmp_path / "there" / "table.md").read_text()
    assert "so the spread leaves them out: train_vggish.\n" in table
    main(config)
    assert (tmp_path / "there.1" / "table.md").read_text() == table
    with pytest.raises(UserError, match="0 holds what evaluate left, which this would replace"):
        main(dataclasses.replace(config, output=folders[0]))


def test_ratings_that_cannot_be_compared_are_refused(
    metrics: dict, chain: Path, tmp_path: Path
) -> None:
    one, same, text, huge = (
        rating(metrics, tmp_path / name, 0, 0.5) for name in ("one", "same", "text", "huge")
    )
    changed(text, "ssim", mean="0.5")
    content = (huge / "metrics.json").read_text()
    (huge / "metrics.json").write_text(content.replace('"seed": 0', f'"seed": {"9" * 4000}'))
    for name, content in (("damaged", "{"), ("older", '{"stage": "evaluate", "judges": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(content)
    for folders, message in (
        ((one, same), "one/metrics.json and .*same/metrics.json rate the same settings and seeds"),
        ((one, tmp_path), "holds no rating, neither metrics.json nor evaluation/metrics.json"),
        ((tmp_path / "damaged",), "damaged/metrics.json is missing or damaged; run evaluate.py"),
        ((tmp_path / "older",), "older/metrics.json is no whole"),
        ((text,), "text/metrics.json is no whole .*text stands where a number"),
        ((huge,), "huge/metrics.json is missing or damaged"),
        ((chain / "train_all",), "was written by train_all.py; give a run that evaluate.py rated"),
    ):
        with pytest.raises(UserError, match=message):
            main(Config(compare=folders, results=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# -- the page --------------------------------------------------------------------------------------


def test_text_on_the_page_is_escaped(metrics: dict) -> None:
    evil = json.loads(json.dumps(metrics))
    evil["config"]["name"] = evil["machine"] = "<script>alert('&')</script>"
    evil["stages"]["train_all"]["config"]["data_root"] = '"><img src=x>'
    html = render(evil, [], [LINE])
    assert "<script>alert" not in html and "<img" not in html
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in html


def test_the_legends_cover_no_curve() -> None:
    assert all(len(names) <= len(LOOKS) for names in PANELS.values())
    log = [
        {key: value / epoch for key, value in LINE.items()} | {"epoch": epoch} for epoch in (1, 2)
    ]
    figure = draw_curves(log)
    figure.canvas.draw()
    for axis in figure.axes:
        legend, panel = axis.get_legend().get_window_extent(), axis.get_window_extent()
        assert not legend.overlaps(panel)
        assert figure.bbox.y0 <= legend.y0  # nor is it cut off
    pyplot().close(figure)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    path = shutil.which("chromium")
    if not path:
        pytest.skip("no chromium is here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    ]
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


def test_the_page_in_a_real_browser(rated: Path, browser: object) -> None:
    from axe_playwright_python.sync_playwright import Axe

    file = rated / "train_all" / "evaluation" / "index.html"
    assert file.stat().st_size < 3_000_000
    requests, errors = [], []
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(file.as_uri())

    # axe-core finds nothing: on light, on dark, and in a narrow window.
    for width, scheme in ((1280, "light"), (400, "dark")):
        opened.set_viewport_size({"width": width, "height": 900})
        opened.emulate_media(color_scheme=scheme)
        opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        report = Axe().run(opened)
        assert report.violations_count == 0, report.generate_report()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        # No value breaks into two lines, as "97.2 %" did before its sign.
        lines = opened.evaluate(
            "[...document.querySelectorAll('.numbers td:not(:last-child)')].map(one => {"
            "const range = document.createRange(); range.selectNodeContents(one);"
            "return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size})"
        )
        assert len(lines) > 20 and max(lines) == 1
    assert opened.locator("h1").count() == 1
    alternatives = opened.eval_on_selector_all("img", "all => all.map(one => one.alt)")
    misread = opened.locator(".card[data-rank=misread]")
    cards = 30 + misread.count()
    assert 1 <= misread.count() <= 10
    for card in misread.all():  # by two or three of the judges, whatever the classifier predicts
        assert card.locator("dl .wrong", has_text="judge").count() >= 2
    assert len(alternatives) == 3 * cards and all(alternatives)
    assert opened.evaluate(
        "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
    )
    assert all(opened.eval_on_selector_all("audio", "all => all.map(one => one.ariaLabel)"))

    # Every soundscape can be decoded, and lasts as long as the encoding says.
    loaded = (
        "() => [...document.querySelectorAll('audio')].every(one => one.readyState >= 1 ||"
        " one.error)"
    )
    opened.wait_for_function(loaded)
    durations = opened.eval_on_selector_all("audio", "all => all.map(one => one.duration)")
    assert durations == pytest.approx([1.05] * cards, abs=0.01)

    # By keyboard alone: skip link, navigation, then the two choices, which hide the other cards.
    opened.reload()
    order = []
    for _ in range(8):
        opened.keyboard.press("Tab")
        order.append(
            opened.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    links = ["Images", "Numbers", "Confusion", "Curves", "Configuration"]
    assert order == ["Skip to the images", *links, "class", "rank"]
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.keyboard.press("w")  # worst
    assert opened.locator(".card:visible").count() == 10
    assert opened.locator("#count").inner_text() == f"10 of {cards} shown"
    opened.keyboard.press("Shift+Tab")
    opened.keyboard.press("3")
    assert opened.locator(".card:visible h3").all_inner_texts()[0].startswith("3, worst")
    assert opened.locator("#count").inner_text() == f"1 of {cards} shown"
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()] * 2
    opened.close()


def test_the_page_without_javascript_shows_all(rated: Path, browser: object) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto((rated / "train_all" / "evaluation" / "index.html").as_uri())
    assert opened.locator(".card:visible").count() == opened.locator(".card").count() > 30
    assert opened.locator("#choice:visible").count() == 0
    context.close()
