"""Are a run, and the stages before it, what their records say? What `evaluate.py --verify` asks of the stages.

It hashes checkpoints and data, compares checkpoint, metrics.json and log.jsonl, and measures the reported numbers again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import data
import emnist_dcgan
import files
import mnist_classify_train
import ratings
import runs
import train_all
import train_vggish
from vggish import load_embedder

# How far a number may be off when it is measured again: TOLERANCE, absolute up to 1 and relative above; or as much as DIGITS
# of the digits make, if that is more. The same machine gives the same number; another rounds otherwise, and may take
# bfloat16 for float32.
TOLERANCE, DIGITS = 0.005, 10


def verify_stages(results: Path, name: str, data_root: Path, device: torch.device) -> dict[str, Any]:
    """Whether the run `name` and the stages before it are what their records say, a printed line for each.

    Returns:
        The numbers that were measured again, stage by stage.

    Raises:
        runs.UserError: with the first mismatch.
    """
    measured = {}
    for stage, called in train_all.made_of(name).items():
        folder = results / called
        mend = f"run {runs.command_of(stage, called)}"
        metrics, checkpoint = verify_record(folder, stage, mend)
        with files.whole(folder / "metrics.json", mend):
            verify_files(results, name, data_root, stage, metrics)
            numbers, count = measure(results, name, data_root, stage, checkpoint, device)
            for number, again in numbers.items():
                refuse_another(folder, number, metrics[number], again, count)
            measured[stage] = numbers
        same = all(metrics[number] == again for number, again in numbers.items())
        shown = ", ".join(f"{number} {metrics[number]:.4f}" for number in numbers)
        print(
            f"{folder}: seed {metrics['seed']}, epoch {metrics['epoch']}, revision {metrics['revision']}; hashes agree; "
            f"{shown}: measured again, {'the same' if same else 'the same but for rounding'}",
            flush=True,
        )
    return measured


def verify_record(folder: Path, stage: str, mend: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and checkpoint.pt of a complete run, which say the same as each other and as the log."""
    if not runs.complete(folder):
        raise runs.UserError(f"{folder} holds no complete run, so there is nothing to verify; {mend}.")
    path, log_path = folder / "checkpoint.pt", folder / "log.jsonl"
    metrics, log = runs.read_metrics(folder, mend), runs.read_log(log_path, mend)
    checkpoint = runs.load_checkpoint(path, stage, mend)
    with files.whole(folder / "metrics.json", mend):
        for name in ("stage", "seed", "epoch", "revision", "versions", "config"):
            refuse_unlike(path, name, checkpoint[name], metrics[name])
        for name, value in checkpoint["metrics"].items():
            refuse_unlike(path, name, value, metrics[name])
        refuse_unlike(path, "seed", metrics["config"]["seed"], metrics["seed"])
        lacking = {*checkpoint["sha256"], "checkpoint.pt"} - metrics["sha256"].keys()
        if lacking:
            raise runs.UserError(f"{folder}/metrics.json lacks the SHA-256 of {', '.join(sorted(lacking))}; {mend} again.")
        for name, digest in checkpoint["sha256"].items():
            refuse_unlike(folder / "metrics.json", f"SHA-256 of {name}", metrics["sha256"][name], digest)
        for state in checkpoint["networks"].values():
            if not runs.finite(state):
                raise runs.UserError(f"{path} holds weights that are not finite; {mend}.")
        epochs = metrics["config"].get("judge_epochs" if stage == "judge" else "epochs", len(log))
        refuse_unlike(log_path, "number of epochs", len(log), epochs)
        refuse_unlike(log_path, "seconds", round(sum(line["seconds"] for line in log), 3), metrics["seconds"])
        if "validation_loss" in log[0]:
            lowest = min(log, key=lambda line: line["validation_loss"])["epoch"]
            refuse_unlike(log_path, "epoch of the lowest validation_loss", lowest, metrics["epoch"])
        if "validation_accuracy" in metrics:
            best = max(line["validation_accuracy"] for line in log)
            refuse_unlike(log_path, "validation_accuracy", best, metrics["validation_accuracy"])
            there = log[metrics["epoch"] - 1]["validation_accuracy"]
            refuse_unlike(log_path, f"accuracy of epoch {metrics['epoch']}", there, best)
    return metrics, checkpoint


def verify_files(results: Path, name: str, data_root: Path, stage: str, metrics: dict[str, Any]) -> None:
    """The files that the stage's record names by their hashes are those that are here."""
    folders = train_all.made_of(name)
    record = results / folders[stage] / "metrics.json"
    places = {f"{folder}/checkpoint.pt": results / folder / "checkpoint.pt" for folder in folders.values()}
    places["checkpoint.pt"] = results / folders[stage] / "checkpoint.pt"
    for named, digest in metrics["sha256"].items():
        kind, _, part = named.partition("/")
        if kind == "data" and part in ("train", "validation", "test"):
            here = data.sha256(**{part: digits_of(data_root, stage, metrics["config"], part)})[named]
        elif named in places and places[named].is_file():
            here = files.sha256(places[named])
        else:
            raise runs.UserError(f"{record} names {named[:200]!r}, which is not here; put it back.")
        refuse_unlike(record, f"SHA-256 of {named}", digest, here)


def digits_of(data_root: Path, stage: str, settings: dict[str, Any], part: data.Part) -> data.Digits:
    if stage != "emnist_dcgan":
        return data.load_heard(settings["dataset"], part, data_root, "cpu")
    which = [settings[name] for name in ("split", "file", "digits_only")]
    return data.load_remembered(settings["dataset"], part, data_root, "cpu", *which)


def measure(
    results: Path, name: str, data_root: Path, stage: str, checkpoint: dict[str, Any], device: torch.device
) -> tuple[dict[str, float], int]:
    """The numbers that the stage reports, measured again by its own means, and of how many digits they are."""
    settings = checkpoint["config"]
    part = "validation" if stage == "emnist_dcgan" else "test"
    digits = data.Digits(*(tensor.to(device) for tensor in digits_of(data_root, stage, settings, part)))
    count = len(digits.labels)
    if stage == "train_vggish":
        ear, network = load_embedder(results / stage / "checkpoint.pt", device)
        return {"test_accuracy": train_vggish.accuracy(ear, network, digits)}, count
    judge = mnist_classify_train.load_judge(results, None, device)
    if stage == "judge":
        return {"test_accuracy": mnist_classify_train.accuracy(judge, digits)}, count
    if stage == "mnist_classify_train":
        classifier = mnist_classify_train.load_classifier(results, None, device)
        return {"test_accuracy": mnist_classify_train.accuracy(classifier, digits)}, count
    generator, classifier = train_all.load_memory(results, None, device)
    if stage == "emnist_dcgan":
        samples = emnist_dcgan.draw(generator, emnist_dcgan.noise(count, checkpoint["seed"], device))
        features = (ratings.judge_features(judge, images) for images in (samples, data.as_seen(digits.images)))
        return {"frechet_distance": ratings.frechet_distance(*features)}, count
    ear, network, generator, _ = train_all.load_model(results / name / "checkpoint.pt", device)
    imagined, distance = train_all.imagine(ear, network, generator, digits.images, settings["distance"])
    rating = train_all.rate(classifier, judge, digits, imagined)
    return {"test_accuracy": rating.pop("accuracy"), **rating, "sound_distance": distance}, count


def leaves(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in dicts and lists, by their places: `judges.kernel.accuracy`."""
    if not isinstance(record, dict | list):
        yield name, record
        return
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        yield from leaves(value, f"{name}.{key}" if name else f"{key}")


def refuse_another(folder: Path, name: str, reported: float, again: float, count: int) -> None:
    """Refuse a number that is another now, measured on `count` digits.

    Raises:
        runs.UserError: if it is off by more than rounding makes.
    """
    allowed = max(TOLERANCE, DIGITS / count) * max(1.0, abs(again))
    if "per_digit" in name or "worst" in name:  # of a tenth of the digits
        allowed = 10 * allowed
    if isinstance(again, int):
        allowed = DIGITS
    if not abs(again - reported) <= allowed:
        raise runs.UserError(f"{folder}/metrics.json says {name} {reported:.4f}, but measured again it is {again:.4f}.")


def refuse_unlike(path: Path, what: str, one: Any, other: Any) -> None:
    """Refuse what `path` says, `one`, where it should say `other`.

    Raises:
        runs.UserError: if it does not.
    """
    if one != other:
        raise runs.UserError(
            f"{path} does not agree with what else is here: {what} is {str(one)[:200]}, not {str(other)[:200]}."
        )
