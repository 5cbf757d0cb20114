"""Are a run, and the stages before it, what their records say? What `evaluate.py --verify` asks of
the stages.

It hashes checkpoints and data, compares checkpoint, metrics.json and log.jsonl, and measures the
reported numbers again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from models.generator_extra import generate, seeded_noise

from common.checkpoint import all_finite, load_checkpoint, training_command
from common.cli import validate_settings
from common.device import choose_device
from common.files import UserError, explain_malformed, file_sha256
from data import Digits, Part, data_hashes, load_digits, load_gan_images
from data.resize import upsample
from evaluate import Config
from evaluation.compare import COLUMNS, read_rating
from evaluation.imagine import imagine, rate_epoch
from evaluation.judges import KEPT, JudgeSettings, changed_judge_settings
from evaluation.metrics import frechet_distance, judge_features
from evaluation.rating import input_hashes, judge_settings, load_stages, rate_run, rating_folder
from training.classifier import classification_accuracy, sound_accuracy
from training.run import (
    changed_hyperparameters,
    config_to_dict,
    is_complete,
    read_log,
    read_metrics,
)
from training.upstream import (
    load_audio_network,
    load_classifier,
    load_judge,
    load_memory,
    load_model,
    stage_folders,
)

# How far a number may be off when it is measured again: TOLERANCE, absolute up to 1 and relative
# above; or as much as DIGITS of the digits make, if that is more. The same machine gives the same
# number; another rounds otherwise, and may take bfloat16 for float32.
TOLERANCE, DIGITS = 0.005, 10


def verify_stages(
    results: Path, name: str, data_root: Path, device: torch.device
) -> dict[str, Any]:
    """Whether the run `name` and the stages before it are what their records say, a printed line
    for each.

    Returns:
        The numbers that were measured again, stage by stage.

    Raises:
        UserError: with the first mismatch.
    """
    measured = {}
    for stage, called in stage_folders(name).items():
        folder = results / called
        hint = f"run {training_command(stage, called)}"
        metrics, checkpoint = verify_record(folder, stage, hint)
        with explain_malformed(folder / "metrics.json", hint):
            verify_files(results, name, data_root, stage, metrics)
            numbers, count = measure(results, name, data_root, stage, checkpoint, device)
            for number, again in numbers.items():
                require_close(folder, number, metrics[number], again, count)
            measured[stage] = numbers
        same = all(metrics[number] == again for number, again in numbers.items())
        shown = ", ".join(f"{number} {metrics[number]:.4f}" for number in numbers)
        print(
            f"{folder}: seed {metrics['seed']}, epoch {metrics['epoch']}, revision {metrics['revision']}; hashes agree; "
            f"{shown}: measured again, {'the same' if same else 'the same but for rounding'}",
            flush=True,
        )
    return measured


def verify_record(folder: Path, stage: str, hint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and checkpoint.pt of a complete run, which say the same as each other and as the
    log."""
    if not is_complete(folder):
        raise UserError(f"{folder} holds no complete run, so there is nothing to verify; {hint}.")
    path, log_path = folder / "checkpoint.pt", folder / "log.jsonl"
    metrics, log = read_metrics(folder, hint), read_log(log_path, hint)
    checkpoint = load_checkpoint(path, stage, hint)
    with explain_malformed(folder / "metrics.json", hint):
        for name in ("stage", "seed", "epoch", "revision", "versions", "config"):
            require_equal(path, name, checkpoint[name], metrics[name])
        for name, value in checkpoint["metrics"].items():
            require_equal(path, name, value, metrics[name])
        require_equal(path, "seed", metrics["config"]["seed"], metrics["seed"])
        lacking = {*checkpoint["sha256"], "checkpoint.pt"} - metrics["sha256"].keys()
        if lacking:
            raise UserError(
                f"{folder}/metrics.json lacks the SHA-256 of {', '.join(sorted(lacking))}; {hint} again."
            )
        for name, digest in checkpoint["sha256"].items():
            require_equal(
                folder / "metrics.json", f"SHA-256 of {name}", metrics["sha256"][name], digest
            )
        for state in checkpoint["networks"].values():
            if not all_finite(state):
                raise UserError(f"{path} holds weights that are not finite; {hint}.")
        epochs = metrics["config"].get("judge_epochs" if stage == "judge" else "epochs", len(log))
        require_equal(log_path, "number of epochs", len(log), epochs)
        require_equal(
            log_path, "seconds", round(sum(line["seconds"] for line in log), 3), metrics["seconds"]
        )
        if "validation_loss" in log[0]:
            lowest = min(log, key=lambda line: line["validation_loss"])["epoch"]
            require_equal(log_path, "epoch of the lowest validation_loss", lowest, metrics["epoch"])
        if "validation_accuracy" in metrics:
            best = max(line["validation_accuracy"] for line in log)
            require_equal(log_path, "validation_accuracy", best, metrics["validation_accuracy"])
            there = log[metrics["epoch"] - 1]["validation_accuracy"]
            require_equal(log_path, f"accuracy of epoch {metrics['epoch']}", there, best)
    return metrics, checkpoint


def verify_files(
    results: Path, name: str, data_root: Path, stage: str, metrics: dict[str, Any]
) -> None:
    """The files that the stage's record names by their hashes are those that are here."""
    folders = stage_folders(name)
    record = results / folders[stage] / "metrics.json"
    places = {
        f"{folder}/checkpoint.pt": results / folder / "checkpoint.pt" for folder in folders.values()
    }
    places["checkpoint.pt"] = results / folders[stage] / "checkpoint.pt"
    for named, digest in metrics["sha256"].items():
        kind, _, part = named.partition("/")
        if kind == "data" and part in ("train", "validation", "test"):
            here = data_hashes(**{part: digits_of(data_root, stage, metrics["config"], part)})[
                named
            ]
        elif named in places and places[named].is_file():
            here = file_sha256(places[named])
        else:
            raise UserError(f"{record} names {named[:200]!r}, which is not here; put it back.")
        require_equal(record, f"SHA-256 of {named}", digest, here)


def digits_of(data_root: Path, stage: str, settings: dict[str, Any], part: Part) -> Digits:
    if stage != "emnist_dcgan":
        return load_digits(settings["dataset"], part, data_root, "cpu")
    which = [settings[name] for name in ("split", "file", "digits_only")]
    return load_gan_images(settings["dataset"], part, data_root, "cpu", *which)


def measure(
    results: Path,
    name: str,
    data_root: Path,
    stage: str,
    checkpoint: dict[str, Any],
    device: torch.device,
) -> tuple[dict[str, float], int]:
    """The numbers that the stage reports, measured again by its own means, and of how many digits
    they are."""
    settings = checkpoint["config"]
    part = "validation" if stage == "emnist_dcgan" else "test"
    digits = Digits(*(tensor.to(device) for tensor in digits_of(data_root, stage, settings, part)))
    count = len(digits.labels)
    if stage == "train_vggish":
        ear, network = load_audio_network(results / stage / "checkpoint.pt", device)
        return {"test_accuracy": sound_accuracy(ear, network, digits)}, count
    judge = load_judge(results, None, device)
    if stage == "judge":
        return {"test_accuracy": classification_accuracy(judge, digits)}, count
    if stage == "mnist_classify_train":
        classifier = load_classifier(results, None, device)
        return {"test_accuracy": classification_accuracy(classifier, digits)}, count
    generator, classifier = load_memory(results, None, device)
    if stage == "emnist_dcgan":
        samples = generate(generator, seeded_noise(count, checkpoint["seed"], device))
        features = (judge_features(judge, images) for images in (samples, upsample(digits.images)))
        return {"frechet_distance": frechet_distance(*features)}, count
    ear, network, generator, _ = load_model(results / name / "checkpoint.pt", device)
    imagined, distance = imagine(ear, network, generator, digits.images, settings["distance"])
    rating = rate_epoch(classifier, judge, digits, imagined)
    return {"test_accuracy": rating.pop("accuracy"), **rating, "sound_distance": distance}, count


def leaves(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in dicts and lists, by their places: `judges.kernel.accuracy`."""
    if not isinstance(record, dict | list):
        yield name, record
        return
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        yield from leaves(value, f"{name}.{key}" if name else f"{key}")


def require_close(folder: Path, name: str, reported: float, again: float, count: int) -> None:
    """Refuse a number that is another now, measured on `count` digits.

    Raises:
        UserError: if it is off by more than rounding makes.
    """
    allowed = max(TOLERANCE, DIGITS / count) * max(1.0, abs(again))
    if "per_digit" in name or "worst" in name:  # of a tenth of the digits
        allowed = 10 * allowed
    if isinstance(again, int):
        allowed = DIGITS
    if not abs(again - reported) <= allowed:
        raise UserError(
            f"{folder}/metrics.json says {name} {reported:.4f}, but measured again it is {again:.4f}."
        )


def require_equal(path: Path, what: str, one: Any, other: Any) -> None:
    """Refuse what `path` says, `one`, where it should say `other`.

    Raises:
        UserError: if it does not.
    """
    if one != other:
        raise UserError(
            f"{path} does not agree with what else is here: {what} is {str(one)[:200]}, not {str(other)[:200]}."
        )


RATED_WITH = (
    "name",
    "part",
    "refine_steps",
    "judges_epochs",
    "judges_batch",
    "kernel_centres",
    "seed",
)


def verify(config: Config) -> dict[str, Any]:
    """Whether the run `config.name`, the stages before it, and its rating, if there is one, are
    what their records say.

    Raises:
        UserError: with the first mismatch.
    """
    device = choose_device(config.device)
    measured = verify_stages(config.results, config.name, config.data_root, device)
    rating = rating_folder(config)
    if (rating / "metrics.json").exists():
        measured["evaluate"] = verify_rating(config, rating, device)
    else:
        print(f"{rating}: no rating is there")
    print(f"verified: {config.results} is what it claims to be.")
    return measured


def verify_rating(config: Config, folder: Path, device: torch.device) -> dict[str, float]:
    """The numbers of a rating, measured again by the judges and on the digits that it names. Of
    these COLUMNS are returned; all are compared."""
    path, metrics = read_rating(folder)
    with explain_malformed(path, "run evaluate.py"):
        said = {name: metrics["config"][name] for name in RATED_WITH}
        require_equal(
            path,
            "what is rated",
            [said.pop(n) for n in ("name", "part")],
            [config.name, config.part],
        )
        steps = said["refine_steps"]
        if config.refine_steps not in (0, steps):
            raise UserError(
                f"{path} was rated with --refine-steps {steps}, not {config.refine_steps}; give as many."
            )
        for stage, entry in load_stages(config).items():
            for name, value in entry.items():
                require_equal(path, f"{name} of {stage}", metrics["stages"][stage][name], value)
        config = replace(config, **said)
        validate_settings(config)
        verify_judges(path, metrics, judge_settings(config, metrics["dataset"]))
        digits = load_digits(metrics["dataset"], config.part, config.data_root, "cpu")
        for name, digest in input_hashes(config, digits).items():
            require_equal(path, f"SHA-256 of {name}", metrics["sha256"].get(name), digest)
    rated = rate_run(config, device)
    require_equal(path, "the residual judge", metrics["residual_judge"], rated.judge)
    again = dict(leaves(rated.numbers))
    reported = dict(leaves({name: metrics.get(name) for name in rated.numbers}))
    require_equal(
        path,
        "what is told",
        sorted(reported.keys() - again.keys()),
        sorted(again.keys() - reported.keys()),
    )
    with explain_malformed(path, "run evaluate.py"):
        for name, value in again.items():
            if isinstance(value, str):
                require_equal(path, name, reported[name], value)
            else:
                require_close(folder, name, reported[name], value, len(rated.digits.labels))
    print(
        f"{folder}: hashes agree; judges_mean {rated.numbers['judges_mean']['accuracy']:.4f} and {len(again) - 1} more "
        f"numbers: measured again, {'the same' if again == reported else 'the same but for rounding'}"
    )
    return {name: get(rated.numbers) for name, (_, get) in COLUMNS.items()}


def verify_judges(path: Path, metrics: dict[str, Any], settings: JudgeSettings) -> None:
    """The judges that are kept are as the rating in `path` says, so that none would be trained
    again."""
    now = config_to_dict(settings)
    for key in changed_hyperparameters(metrics["judge_settings"], now):
        require_equal(
            path, f"{key} of the judges", metrics["judge_settings"].get(key), now.get(key)
        )
    for name in KEPT:
        kept_at = settings.results / name
        if not is_complete(kept_at):
            raise UserError(
                f"{kept_at} is not there, by which {path} rates; name the folder that has it by --judges."
            )
        made_with = load_checkpoint(kept_at / "checkpoint.pt", name)["config"]
        for key in changed_judge_settings(name, made_with, settings):
            require_equal(kept_at / "checkpoint.pt", key, made_with.get(key), now.get(key))
