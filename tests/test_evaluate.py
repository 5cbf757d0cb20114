"""The rating: through its command line, its judges, its page in a real browser, and the comparison
over seeds."""

import dataclasses
import json
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
from common.cli import command_line
from common.files import UserError
from data import load_digits
from data.resize import upsample
from evaluate import Config, main
from evaluation.compare import COLUMNS, compare
from evaluation.judges import JudgeSettings, load_judges, train_kernel, train_vit
from evaluation.metrics import predict_labels
from evaluation.rating import choose_examples, judge_settings, judges_mean, realism_report
from evaluation.report import render
from models.judge_kernel import KernelJudge
from models.judge_vit import ViTJudge
from train_all import Config
from training.run import Run, read_metrics

FLAGS = (
    "--device",
    "cpu",
    "--judges-epochs",
    "1",
    "--judges-batch",
    "64",
    "--kernel-centres",
    "200",
)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def rated(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain's results, with the rating that the command line left in it. Read it only."""
    results = Path(shutil.copytree(chain, tmp_path_factory.mktemp("rated") / "results"))
    done = script("evaluate.py", *FLAGS, "--results", str(results))
    assert done.returncode == 0, done.stderr
    assert "judge transformer: not in" in done.stdout
    assert re.search(
        r"the transformer judge reads \d+.\d\d% of real digits: .*--judges-epochs", done.stdout
    )  # so few epochs
    assert "the kernel judge reads" not in done.stdout
    assert f"{results}/evaluation/index.html" in done.stdout.splitlines()[-1]
    return results


@pytest.fixture(scope="session")
def metrics(rated: Path) -> dict:
    return json.loads((rated / "evaluation" / "metrics.json").read_text())


def settings(results: Path, **more: object) -> JudgeSettings:
    """As the flags above say it."""
    config = {"epochs": 1, "batch": 64, "centres": 200, **more}
    return JudgeSettings("handwritten", results / "judges", data_root=Path(), **config)


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_the_rating_says_everything_as_fractions(metrics: dict) -> None:
    assert set(metrics["judges"]) == {"residual", "transformer", "kernel"}
    for reading in (
        *metrics["judges"].values(),
        metrics["classifier"],
        metrics["sound_classifier"],
    ):
        low, high = reading["interval"]
        assert 0 <= low <= reading["accuracy"] <= high <= 1
        assert reading["images"] == np.sum(reading["confusion"]) == 360
        assert len(reading["per_digit"]) == 10
        assert reading["accuracy"] == np.trace(reading["confusion"]) / 360
    assert (
        metrics["judges"]["kernel"]["real"]["accuracy"] > 0.95
    )  # a limit that does not come from the imagined ones
    assert metrics["retrieval"]["overall"]["images"] == 360  # all that there are
    assert metrics["realism"]["images"] == 180
    for name in ("imagined", "real", "samples_before", "samples_after"):
        assert metrics["realism"][name]["frechet_distance"] > -1e-6
        assert 0 <= metrics["realism"][name]["precision"] <= 1
        assert 0 <= metrics["realism"][name]["recall"] <= 1
    assert {"seed", "revision", "versions", "machine", "config", "seconds"} <= metrics.keys()


def test_the_rating_agrees_with_stage_three_and_stage_one(rated: Path, metrics: dict) -> None:
    stage = read_metrics(rated / "train_all")
    assert metrics["classifier"]["accuracy"] == pytest.approx(stage["test_accuracy"])
    assert metrics["judges"]["residual"]["accuracy"] == pytest.approx(stage["judge_accuracy"])
    assert metrics["correlation"]["mean"] == pytest.approx(stage["correlation"], abs=1e-6)
    assert metrics["retrieval"]["overall"]["accuracy"] == pytest.approx(stage["retrieval"])
    assert metrics["sound_distance"] == pytest.approx(stage["sound_distance"])
    assert metrics["sound_classifier"]["accuracy"] == pytest.approx(
        read_metrics(rated / "train_vggish")["test_accuracy"]
    )
    assert metrics["stages"]["train_all"]["config"] == stage["config"]


def test_the_mean_of_the_judges_and_the_digit_that_fares_worst() -> None:
    one = {"accuracy": 0.9, "per_digit": [{"accuracy": 1.0}, {"accuracy": 0.8}]}
    other = {"accuracy": 0.5, "per_digit": [{"accuracy": 0.2}, {"accuracy": 0.8}]}
    assert judges_mean([one, other]) == pytest.approx({"accuracy": 0.7, "worst_digit": 0.6})


def test_the_two_ends_of_the_scale(rated: Path) -> None:
    """Real digits look real; flat grey ones do not. No set shares an image with the reference."""
    judge = load_judges(rated, settings(rated), CPU)["residual"]
    heard = upsample(load_digits("handwritten", "test", Path(), "cpu").images)
    generator = torch.nn.Module()
    generator.forward = lambda z: torch.zeros(len(z), 1, 64, 64)
    rating = realism_report(judge, heard, heard, generator, generator, seed=0)
    assert rating["imagined"] == rating["real"]
    assert rating["real"]["precision"] > 0.7 and rating["real"]["recall"] > 0.7
    assert rating["samples_before"]["recall"] == rating["samples_after"]["precision"] == 0
    assert (
        1e-6
        < rating["real"]["frechet_distance"]
        < 0.1 * rating["samples_before"]["frechet_distance"]
    )


def test_best_median_and_worst_are_chosen_by_correlation_and_the_first_that_is_misread() -> None:
    correlations = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, -0.2])
    labels = torch.tensor([4, 4, 4, 4, 4, 7])
    four, seven = (
        [(1, "best"), (2, "median"), (0, "worst")],
        [(5, "best"), (5, "median"), (5, "worst")],
    )
    assert choose_examples(correlations, labels, [labels, labels, labels]) == four + seven
    # Digit 0 is misread by one judge of three; 2, 3 and 4 by two, of which 3 keeps most of its
    # source.
    one, two = torch.tensor([4, 4, 9, 9, 9, 7]), torch.tensor([9, 4, 9, 9, 8, 7])
    assert choose_examples(correlations, labels, [labels, one, two]) == [
        *four,
        (2, "misread"),
        *seven,
    ]


def test_second_thoughts_and_the_validation_part_are_rated_beside(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Path(shutil.copytree(rated, tmp_path / "results"))
    flags = [*FLAGS, "--results", str(results), "--refine-steps", "2", "--part", "validation"]
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", *flags]
    )  # in this process, which spares another's start
    command_line(Config, main, "")
    folder = results / "evaluation_validation_second_thoughts"
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["part"], record["config"]["refine_steps"]) == ("validation", 2)
    count = len(load_digits("handwritten", "validation", Path(), CPU).labels)
    assert record["classifier"]["images"] == count != 360
    assert 0 < record["refined_fraction"] <= 1
    stage = [
        json.loads(line) for line in (results / "train_all" / "log.jsonl").read_text().splitlines()
    ]
    first = stage[read_metrics(results / "train_all")["epoch"] - 1]["validation_correlation"]
    assert record["correlation"]["mean"] != pytest.approx(first, abs=1e-4)
    html = (folder / "index.html").read_text()
    assert "Thought of again, for a doubt" in html
    assert "<h1>What was imagined: train_all, after second thoughts</h1>" in html
    assert "the validation part of handwritten" in html
    page_without = (results / "evaluation" / "index.html").read_text()
    assert "Thought of again" not in page_without
    assert "<h1>What was imagined: train_all</h1>" in page_without
    first, again = (results / name / "imagined.png" for name in ("evaluation", folder.name))
    assert first.read_bytes() == (results / "train_all.png").read_bytes() != again.read_bytes()
    assert "the test part of handwritten" in page_without
    with pytest.raises(UserError, match="--refine-steps is -1; give a number of steps, or 0"):
        main(Config(results=results, refine_steps=-1, device="cpu", data_root=Path()))


def test_a_rating_takes_no_runs_place_nor_that_of_another_rating(
    rated: Path, tmp_path: Path
) -> None:
    results = Path(shutil.copytree(rated, tmp_path / "results"))
    settings = {"results": results, "device": "cpu", "data_root": Path()}
    with pytest.raises(
        UserError,
        match="train_all holds what train_all left, which this would replace; give another",
    ):
        main(Config(**settings, output=results / "train_all"))
    shutil.copytree(results / "train_all", results / "refine_steps")
    shutil.copytree(results / "evaluation", results / "evaluation_second_thoughts")  # of train_all
    said = "holds what evaluate.py said of train_all with no second thoughts, not of"
    with pytest.raises(UserError, match=f"{said} refine_steps with no second thoughts; move"):
        main(Config(**settings, name="refine_steps"))
    with pytest.raises(UserError, match=f"{said} train_all with 2 second thoughts; move"):
        main(Config(**settings, refine_steps=2))
    for folder in ("train_all", "evaluation"):
        for path in (rated / folder).iterdir():
            assert (results / folder / path.name).read_bytes() == path.read_bytes()


# -- the judges --------------------------------------------------------------------------------------------------------


def test_the_judges_are_kept_frozen_and_never_chosen_by_the_test_set(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = load_judges(rated, settings(rated), CPU)
    for judge in panel.values():
        assert not judge.training
        assert not any(parameter.requires_grad for parameter in judge.parameters())
    calls: list[str] = []
    load, end_epoch = load_digits, Run.end_epoch
    monkeypatch.setattr(
        data,
        "load_heard",
        lambda name, part, *rest: (calls.append(part), load(name, part, *rest))[1],
    )
    monkeypatch.setattr(
        Run, "end_epoch", lambda run, *a, **k: (calls.append("epoch"), end_epoch(run, *a, **k))[1]
    )
    again = settings(tmp_path)
    train_vit(again, CPU)
    assert calls.index("test") > calls.index("epoch")
    train_kernel(again, CPU)
    assert calls.count("test") == 2
    # Deterministic: what the command line trained is what the function trains.
    for name in ("transformer", "kernel"):
        one, other = (
            torch.load(root / "judges" / name / "checkpoint.pt", weights_only=True)
            for root in (rated, tmp_path)
        )
        assert all(
            torch.equal(value, other["networks"]["judge"][key])
            for key, value in one["networks"]["judge"].items()
        )
        assert one["metrics"]["test_accuracy"] == other["metrics"]["test_accuracy"]
        metrics = json.loads((tmp_path / "judges" / name / "metrics.json").read_text())
        assert 0 <= metrics["test_accuracy"] <= 1


def test_the_kernel_classifier_is_exact_on_its_own_centres_and_blind_to_contrast(
    rated: Path,
) -> None:
    judge = load_judges(rated, settings(rated), CPU)["kernel"]
    test = load_digits("handwritten", "test", Path(), "cpu")
    images = upsample(test.images)
    right = predict_labels(judge, images) == test.labels
    assert right.double().mean() > 0.95
    grey = 0.2 * images - 0.7
    assert torch.equal(predict_labels(judge, grey), predict_labels(judge, images))
    kernels = KernelJudge.kernels(judge, judge.centres)
    torch.testing.assert_close(kernels.diagonal(), torch.ones(len(kernels)))
    squared = torch.cdist(judge.centres.double(), judge.centres.double()) ** 2
    torch.testing.assert_close(kernels.double(), (-judge.gamma * squared).exp(), atol=1e-5, rtol=0)


def test_the_transformer_learns() -> None:
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
    # Two dots, each in one patch only and at the same place in it: but for the positions, the same
    # tokens.
    dots = -torch.ones(2, 1, 28, 28)
    dots[0, 0, 11, 11] = dots[1, 0, 17, 17] = 1
    one, other = judge(dots)
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_transformer_judges_by_the_layers_that_it_learned_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch's fast path for layers that do not learn has another gelu on a GPU than on the
    CPU."""
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


def test_judges_of_other_settings_are_trained_again_and_kept_ones_are_not(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results = Path(shutil.copytree(rated, tmp_path / "results"))
    trained: list[str] = []
    monkeypatch.setattr(judges, "train_transformer", lambda *_: trained.append("transformer"))
    train_kernel = train_kernel
    monkeypatch.setattr(
        judges, "train_kernel", lambda *args: (trained.append("kernel"), train_kernel(*args))
    )
    load_judges(results, settings(results), CPU)
    assert trained == []
    load_judges(results, settings(results, centres=50), CPU)
    assert trained == ["kernel"]  # the transformer does not learn by them
    assert "kernel was trained with another centres; it is trained again" in capsys.readouterr().out
    assert (results / "judges" / "kernel.before").exists()
    load_judges(results, settings(results, centres=50, epochs=2), CPU)
    assert trained == ["kernel", "transformer"]


def test_the_judges_learn_long_enough_from_the_small_digits_too() -> None:
    config = Config()
    by_default = {name: judge_settings(config, name) for name in ("mnist", "handwritten")}
    assert {name: (one.epochs, one.batch) for name, one in by_default.items()} == {
        "mnist": (8, 128),
        "handwritten": (30, 32),
    }
    told = judge_settings(
        dataclasses.replace(config, judges_epochs=3, judges_batch=7), "handwritten"
    )
    assert (told.epochs, told.batch) == (3, 7)


@pytest.mark.parametrize("damage", ["garbage", "foreign", "weights"])
def test_a_damaged_judge_is_refused_in_words(damage: str, rated: Path, tmp_path: Path) -> None:
    results = Path(shutil.copytree(rated, tmp_path / "results"))
    path = results / "judges" / "kernel" / "checkpoint.pt"
    said = "delete .*kernel, and evaluate.py trains this judge again"
    if damage == "garbage":
        path.write_bytes(b"no checkpoint")
    elif damage == "foreign":
        shutil.copy(results / "judges" / "transformer" / "checkpoint.pt", path)
    else:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["networks"]["judge"]["weights"][0] = torch.nan
        torch.save(checkpoint, path)
        said = "are not finite; train it again"
    with pytest.raises(UserError, match=said):
        load_judges(results, settings(results), CPU)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_missing_or_wrong_run_is_refused_in_words(results: Path) -> None:
    config = Config(results=results, device="cpu")
    with pytest.raises(
        UserError, match="other/checkpoint.pt is missing; run train_all.py --name other"
    ):
        main(dataclasses.replace(config, name="other"))
    with pytest.raises(
        UserError, match="is a checkpoint of 'judge', not of 'train_all'; run train_all.py"
    ):
        main(dataclasses.replace(config, name="judge"))
    stage_one = results / "train_vggish" / "checkpoint.pt"
    before, learned = stage_one.read_bytes(), torch.load(stage_one, weights_only=True)
    for changed in (
        {"hop": 150},
        {"encoding": {**learned["config"]["encoding"], "curve": "linear"}},
    ):
        torch.save(
            {**learned, "config": {**learned["config"], **changed, "frames": 112}}, stage_one
        )
        with pytest.raises(
            UserError,
            match="was not made from the train_vggish/checkpoint.pt that is in .* now, or .*; run",
        ):
            main(config)
    stage_one.write_bytes(before)
    for stage in ("emnist_dcgan", "mnist_classify_train"):
        before = (results / stage / "checkpoint.pt").read_bytes()
        torch.save(
            {**torch.load(results / stage / "checkpoint.pt", weights_only=True), "seed": 7},
            results / stage / "checkpoint.pt",
        )
        with pytest.raises(
            UserError,
            match=f"was not made from the {stage}/checkpoint.pt that is in .* now, or .*; run train_all",
        ):
            main(config)
        (results / stage / "checkpoint.pt").write_bytes(before)
    shutil.move(results / "judge" / "metrics.json", results / "elsewhere.json")
    with pytest.raises(
        UserError,
        match="judge holds a run that is not complete; run mnist_classify_train.py --resume",
    ):
        main(config)
    shutil.move(results / "elsewhere.json", results / "judge" / "metrics.json")
    said = json.loads((results / "train_all" / "metrics.json").read_text())
    (results / "train_all" / "metrics.json").write_text(
        json.dumps({**said, "sha256": None})
    )  # of before they were kept
    with pytest.raises(UserError, match="or does not say so"):
        main(config)
    (results / "train_all" / "metrics.json").write_text(json.dumps({**said, "sha256": 7}))
    with pytest.raises(
        UserError, match="train_all/metrics.json is no whole checkpoint .*; run train_all.py"
    ):
        main(config)
    (results / "train_all" / "metrics.json").unlink()
    with pytest.raises(UserError, match="a run that is not complete; run train_all.py --resume"):
        main(config)
    (results / "emnist_dcgan" / "checkpoint.pt").unlink()
    with pytest.raises(
        UserError, match="emnist_dcgan/checkpoint.pt is missing; run emnist_dcgan.py"
    ):
        main(config)
    assert not (results / "evaluation").exists()


def test_ctrl_c_names_no_flag_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    for config, said in (
        (Config, "command starts again"),
        (Config, "command with --resume goes on"),
    ):
        with pytest.raises(SystemExit, match="130"):
            command_line(config, stopped, "")
        assert said in capsys.readouterr().err


# -- is a rating what it claims to be? ---------------------------------------------------------------------------------


def test_a_rating_is_verified_by_rating_again(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        verification, "measure", lambda *_: ({}, 1)
    )  # of the stages; test_safety.py has them

    def verified(results: Path, **settings: object) -> dict:
        return main(
            Config(results=results, device="cpu", data_root=Path(), verify=True, **settings)
        )

    numbers = verified(rated)["evaluate"]
    said = capsys.readouterr().out
    assert (
        f"{rated}/evaluation: hashes agree; judges_mean {numbers['judges_mean']:.4f} and " in said
    )
    assert re.search(r"and \d{3,} more numbers: measured again, the same\n", said)
    assert said.endswith("is what it claims to be.\n")
    assert numbers == {
        name: get(json.loads((rated / "evaluation" / "metrics.json").read_text()))
        for name, (_, get) in COLUMNS.items()
    }
    results = Path(shutil.copytree(rated, tmp_path / "results"))
    shutil.move(results / "judges", tmp_path / "judges")
    with pytest.raises(
        UserError, match=r"judges/transformer is not there, by which .*; name .* by --judges"
    ):
        verified(results)
    assert verified(results, judges=tmp_path / "judges")["evaluate"] == numbers
    assert not (results / "judges").exists()  # nothing is trained

    def swindles(record: dict) -> dict[str, tuple[dict, object]]:
        hashed, realism = record["sha256"], record["realism"]["imagined"]
        return {
            "says realism.imagined.frechet_distance -5.0000, but measured": (
                realism,
                {"frechet_distance": -5.0},
            ),
            "says judges.kernel.accuracy 0.9900, but": (
                record["judges"]["kernel"],
                {"accuracy": 0.99},
            ),
            "says judges.kernel.real.accuracy 0.1000, but": (
                record["judges"]["kernel"]["real"],
                {"accuracy": 0.1},
            ),
            "says refined_fraction 0.5000, but": (record, {"refined_fraction": 0.5}),
            "no whole checkpoint": (record, {"refined_fraction": "no number"}),
            r"what is told is \['diversity.more'\], not \[\]": (record["diversity"], {"more": 1}),
            "seed of train_all is 5, not 0": (record["stages"]["train_all"], {"seed": 5}),
            "config of train_all is": (record["stages"]["train_all"], {"config": {}}),
            "the residual judge is x, not": (record, {"residual_judge": "x"}),
            "SHA-256 of kernel/checkpoint.pt is x": (hashed, {"kernel/checkpoint.pt": "x"}),
            "SHA-256 of judge/checkpoint.pt is x": (hashed, {"judge/checkpoint.pt": "x"}),
            "SHA-256 of data/test is x, not": (hashed, {"data/test": "x"}),
            "SHA-256 of data/test is None, not": (
                record,
                {"sha256": {**hashed, "data/test": None}},
            ),
            r"what is rated is \['other', 'test'\], not": (record["config"], {"name": "other"}),
            "epochs of the judges is 1, not 2": (record["config"], {"judges_epochs": 2}),
            "--judges-epochs": (record["config"], {"judges_epochs": 0}),
        }

    path = results / "evaluation" / "metrics.json"
    honest = path.read_text()
    for said in swindles(json.loads(honest)):
        record = json.loads(honest)
        part, change = swindles(record)[said]
        part.update(change)
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match=said):
            verified(results, judges=tmp_path / "judges")
    forged = json.loads(honest)  # of other judges than those that are kept
    forged["config"]["judges_epochs"] = forged["judge_settings"]["epochs"] = 2
    path.write_text(json.dumps(forged))
    with pytest.raises(
        UserError, match="transformer/checkpoint.pt does not agree .*: epochs is 1, not 2"
    ):
        verified(results, judges=tmp_path / "judges")
    path.write_text(honest)
    with pytest.raises(UserError, match="was rated with --refine-steps 0, not 9; give as many"):
        shutil.copytree(results / "evaluation", results / "evaluation_second_thoughts")
        verified(results, judges=tmp_path / "judges", refine_steps=9)
    verified(results, part="validation")
    assert f"{results}/evaluation_validation: no rating is there" in capsys.readouterr().out


# -- several ratings ---------------------------------------------------------------------------------------------------


def rating(metrics: dict, folder: Path, seed: int, accuracy: float, **settings: object) -> Path:
    """A rating of another run: its seed, what its classifier reads right, and settings of its stage
    three."""
    other = json.loads(json.dumps(metrics))
    for entry in other["stages"].values():
        entry["seed"] = seed
        entry["config"] = {**entry["config"], "seed": seed, "results": f"place{seed}"}
    other["stages"]["train_all"]["config"].update(settings)
    other["classifier"]["accuracy"] = accuracy
    other["residual_judge"] = f"of seed {seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(other))
    return folder


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
    other = rating(metrics, tmp_path / "results" / "evaluation", 0, 0.25, sound_consistency=0.0)
    flags = ["--compare", *map(str, [*folders, other.parent]), "--results", str(tmp_path / "out")]
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", *flags]
    )  # in this process, which spares another's start
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
    assert (ours["settings"], theirs["settings"]) == (
        {"train_all.sound_consistency": 1.0},
        {"train_all.sound_consistency": 0.0},
    )
    assert "0.7000 ± 0.2000 | 0.2500 |" in table
    assert "not all of one" not in table
    assert "|  | train_all (1) | train_all (2) |" in table  # told apart
    assert "One seed only, so the spread is unknown: train_all (2)." in table
    assert "train_all (1): train_all.sound_consistency 1.0." in table
    assert set(ours["columns"]) == set(COLUMNS)


def test_a_comparison_says_where_the_residual_judges_are_not_the_same(
    metrics: dict, tmp_path: Path
) -> None:
    one, other, third = (rating(metrics, tmp_path / f"{seed}", seed, 0.5) for seed in (0, 1, 2))
    unlike = rating(metrics, tmp_path / "unlike", 0, 0.5, grey=0.25)
    several, apart = (
        "of which a row has several: their spread is of judges and runs",
        "in these three they cannot be",
    )

    def said(*folders: Path) -> tuple[bool, bool]:
        compare(folders, tmp_path / "out")
        table = (tmp_path / "out" / "table.md").read_text()
        return several in table, apart in table

    assert said(one, unlike) == (False, False)
    assert said(one, other) == (True, False)
    assert said(one, other, unlike) == (True, True)
    changed = json.loads((third / "metrics.json").read_text())
    changed["stages"]["train_all"]["config"]["grey"] = 0.25
    (third / "metrics.json").write_text(json.dumps(changed))
    assert said(one, third) == (False, True)


def test_a_comparison_says_where_a_row_is_of_several_machines_or_revisions(
    metrics: dict, tmp_path: Path
) -> None:
    one, other = (rating(metrics, tmp_path / f"{seed}", seed, 0.5) for seed in (0, 1))
    assert metrics["stages"]["train_all"]["machine"] == metrics["machine"]
    assert metrics["machine"].endswith(("float32", "bfloat16 where it pays"))
    changed = json.loads((other / "metrics.json").read_text())
    changed["stages"]["train_all"].update(machine="another, float32", revision="0123456789ab")
    (other / "metrics.json").write_text(json.dumps(changed))
    compare((one, other), tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    for what in ("machine", "revision"):
        both = sorted(
            [str(metrics["stages"]["train_all"][what]), changed["stages"]["train_all"][what]]
        )
        assert f"train_all: not all of one {what}: {'; '.join(both)}." in table


def test_of_an_encoding_only_what_differs_is_said(metrics: dict, tmp_path: Path) -> None:
    mel = {**metrics["stages"]["train_all"]["config"]["encoding"], "curve": "mel"}
    folders = (
        rating(metrics, tmp_path / "0", 0, 0.5),
        rating(metrics, tmp_path / "1", 1, 0.5, encoding=mel),
    )
    rows = compare(folders, tmp_path / "out")["rows"]
    assert [row["settings"] for row in rows] == [
        {"train_all.encoding.curve": curve} for curve in ("exponential", "mel")
    ]


def test_the_rating_of_a_run_that_is_there_no_more_is_refused(rated: Path, tmp_path: Path) -> None:
    results = Path(shutil.copytree(rated, tmp_path / "results"))
    compare((results,), tmp_path / "out")
    path = results / "train_all" / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "epoch": 7}, path)
    with pytest.raises(
        UserError, match="is of another run than .*train_all holds now; run evaluate.py on it again"
    ):
        compare((results,), tmp_path / "out")
    record = json.loads((results / "evaluation" / "metrics.json").read_text())
    record["config"]["output"] = str(results / "evaluation")  # of a run elsewhere, put here
    (results / "evaluation" / "metrics.json").write_text(json.dumps(record))
    compare((results,), tmp_path / "out")


def test_ratings_of_as_many_digits_only_are_one_row(metrics: dict, tmp_path: Path) -> None:
    folders = [rating(metrics, tmp_path / f"{seed}", seed, 0.5) for seed in (0, 1)]
    fewer = json.loads((folders[1] / "metrics.json").read_text())
    fewer["classifier"]["images"] = fewer["retrieval"]["overall"]["images"] = 50
    (folders[1] / "metrics.json").write_text(json.dumps(fewer))
    rows = compare(tuple(folders), tmp_path / "out")["rows"]
    assert [row["settings"] for row in rows] == [
        {f"evaluate.{k}": n for k in ("digits", "searched")} for n in (360, 50)
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| digits heard | 360 | 50 |" in table
    assert "| retrieval, among | 360: " in table and "| 50: " in table


def test_a_setting_that_an_older_run_did_not_know_is_no_difference(
    metrics: dict, tmp_path: Path
) -> None:
    folders = [
        rating(metrics, tmp_path / f"{seed}", seed, 0.5, augmentation=0.0) for seed in range(2)
    ]
    older = json.loads((folders[1] / "metrics.json").read_text())
    del older["stages"]["train_all"]["config"]["augmentation"]
    (folders[1] / "metrics.json").write_text(json.dumps(older))
    folders.append(rating(metrics, tmp_path / "2", 2, 0.5, augmentation=0.5))
    rows = compare(tuple(folders), tmp_path / "out")["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1], [2]]
    assert [row["settings"] for row in rows] == [
        {"train_all.augmentation": 0.0},
        {"train_all.augmentation": 0.5},
    ]
    again = json.loads((folders[0] / "metrics.json").read_text())
    again["config"]["refine_steps"] = 8
    (folders[2] / "metrics.json").write_text(json.dumps(again))
    rows = compare(tuple(folders), tmp_path / "out")["rows"]
    assert [row["settings"] for row in rows] == [
        {"evaluate.refine_steps": 0},
        {"evaluate.refine_steps": 8},
    ]
    assert [row["name"] for row in rows] == ["train_all", "train_all, second thoughts"]


def test_a_comparison_says_which_stages_the_spread_leaves_out_and_goes_where_it_is_told(
    metrics: dict, tmp_path: Path
) -> None:
    alone = [rating(metrics, tmp_path / f"{seed}", seed, 0.5) for seed in (0, 1)]
    for seed, folder in enumerate(alone):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["stages"]["train_vggish"]["seed"] = 0
        metrics["stages"]["emnist_dcgan"]["seed"] = seed
        (folder / "metrics.json").write_text(json.dumps(metrics))
    config = Config(compare=tuple(alone), results=tmp_path, output=tmp_path / "there")
    assert "train_vggish" in main(config)["rows"][0]["shared"]
    said = (
        (tmp_path / "there" / "table.md")
        .read_text()
        .split("leaves theirs out: ")[1]
        .splitlines()[0]
    )
    assert "train_vggish" in said
    assert "emnist_dcgan" not in said
    assert "train_all" not in said
    with pytest.raises(UserError, match="0 holds what evaluate left, which this would replace"):
        main(dataclasses.replace(config, output=alone[0]))


def test_ratings_that_cannot_be_compared_are_refused_in_words(
    metrics: dict, chain: Path, tmp_path: Path
) -> None:
    one, same = (rating(metrics, tmp_path / name, 0, 0.5) for name in ("one", "same"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.json").write_text("{")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "metrics.json").write_text('{"stage": "evaluate", "judges": {}}')
    (tmp_path / "other_ssim").mkdir()
    del metrics["ssim"]["white"]
    (tmp_path / "other_ssim" / "metrics.json").write_text(json.dumps(metrics))
    for folders, said in (
        (
            (tmp_path / "other_ssim",),
            r"other_ssim/metrics.json is no rating of this version \(KeyError\('white'\)\)",
        ),
        (
            (one, same),
            "one/metrics.json and .*same/metrics.json rate the same settings and seeds; give each run once",
        ),
        (
            (one, tmp_path),
            "holds no rating, neither metrics.json nor evaluation/metrics.json; run evaluate.py",
        ),
        ((tmp_path / "damaged",), "damaged/metrics.json is missing or damaged; run evaluate.py"),
        ((tmp_path / "older",), "older/metrics.json is no rating of this version"),
        (
            (chain / "train_all",),
            "was written by train_all.py; give a folder that evaluate.py wrote",
        ),
    ):
        with pytest.raises(UserError, match=said):
            main(Config(compare=folders, results=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_what_is_text_on_the_page_is_escaped(metrics: dict) -> None:
    evil = json.loads(json.dumps(metrics))
    evil["config"]["name"] = evil["machine"] = "<script>alert('&')</script>"
    evil["stages"]["train_all"]["config"]["data_root"] = '"><img src=x>'
    log = [{"epoch": 1, "cross_entropy": 1.0, "sound_distance": 0.5}]
    html = render(evil, [], log)
    assert "<script>alert" not in html and "<img" not in html
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in html


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

    file = rated / "evaluation" / "index.html"
    assert file.stat().st_size < 3_000_000
    requests, errors = [], []
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(file.as_uri())

    # Looks right to a screen reader, in the dark, and in a narrow window; axe-core finds nothing.
    for width, scheme in ((1280, "light"), (400, "dark")):
        opened.set_viewport_size({"width": width, "height": 900})
        opened.emulate_media(color_scheme=scheme)
        opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        report = Axe().run(opened)
        assert report.violations_count == 0, report.generate_report()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator("h1").count() == 1
    alternatives = opened.eval_on_selector_all("img", "all => all.map(one => one.alt)")
    misread = opened.locator(".card[data-rank=misread]")
    cards = 30 + misread.count()
    assert 1 <= misread.count() <= 10
    for card in misread.all():  # two or three of the judges, whatever the classifier says
        assert card.locator("dl .wrong", has_text="judge").count() >= 2
    assert len(alternatives) == 3 * cards and all(alternatives)
    assert opened.evaluate(
        "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
    )
    assert all(opened.eval_on_selector_all("audio", "all => all.map(one => one.ariaLabel)"))

    # Every soundscape can be decoded, and lasts as long as the encoding says.
    loaded = "() => [...document.querySelectorAll('audio')].every(one => one.readyState >= 1 || one.error)"
    opened.wait_for_function(loaded)
    durations = opened.eval_on_selector_all("audio", "all => all.map(one => one.duration)")
    assert durations == pytest.approx([1.05] * cards, abs=0.01)

    # By keyboard alone: skip link, navigation, then the two choices, which hide what was not
    # chosen.
    opened.reload()
    order = []
    for _ in range(8):
        opened.keyboard.press("Tab")
        order.append(
            opened.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    expected = [
        "Skip to the digits",
        "Digits",
        "Numbers",
        "Confusion",
        "Curves",
        "Configuration",
        "digit",
        "rank",
    ]
    assert order == expected
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
    opened.goto((rated / "evaluation" / "index.html").as_uri())
    assert opened.locator(".card:visible").count() == opened.locator(".card").count() > 30
    assert opened.locator("#choice:visible").count() == 0
    context.close()
