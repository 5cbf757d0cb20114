"""An honest rating of what stage three imagined: by judges that took no part, against real digits,
and against its source.

    python evaluate.py                                # rates results/train_all
    python evaluate.py --name train_all_published     # or another run of stage three
    # where the model is in doubt, it thinks again before it draws
    python evaluate.py --second-thoughts 8
    # several ratings, mean and spread over seeds
    python evaluate.py --compare seed0/results seed1/results seed2/results
    python evaluate.py --verify                       # is results/ what it claims to be?

Reads a complete run of `train_all.py` and what the stages before it left in `results/`. It hears
the whole test set and writes `results/evaluation/` (for another `--name`:
`results/evaluation_<name>/`): metrics.json, every number as a fraction; imagined.png, the grid of
what was rated; and index.html, one self-contained page to look at and to listen to. Two of the
judges are trained on first use, and kept in `results/judges/`: on MNIST some minutes on one core.
`--second-thoughts` writes `results/evaluation_second_thoughts/`; `--part validation`, which hears
the validation part, writes `results/evaluation_validation/`.

With `--compare`, each folder holds the metrics.json of a rating, or is a results folder (then its
`evaluation/` is taken). Runs that differ in nothing but seeds and places are one row; it prints the
table, and writes `results/comparison/`: table.md and metrics.json. Nothing is rated anew.

With `--verify`, it prints a line for each stage, and a verdict. It hashes checkpoints, earlier
stages' checkpoints and data, and holds them against the records; compares configuration, numbers
and epochs in checkpoint, metrics and log; and measures the reported numbers again, those of the
rating too, if there is one. The first mismatch ends it with exit code 2. It cannot say that the
training was as recorded: only training again can."""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from models.generator_extra import generate, seeded_noise
from torch import Tensor, nn

from common.checkpoint import checkpoint_hashes, load_checkpoint, training_command, weights_sha256
from common.files import UserError, explain_malformed, write_file
from data import Digits, data_hashes, load_digits
from data.resize import upsample
from evaluate import Config
from evaluation.imagine import imagine, load_refiner, save_pairs
from evaluation.judges import KEPT, JudgeSettings, load_judges
from evaluation.metrics import (
    accuracy_report,
    correlation,
    diversity,
    judge_features,
    mean_ci,
    predict_labels,
    retrieval,
    ssim,
)
from evaluation.report import Example, render
from training.classifier import predict_digits
from training.run import is_complete, read_metrics, require_complete, require_same_script
from training.upstream import load_audio_network, load_memory, load_model, stage_folders
from vggish import ImageToLogMel


class RatingResult(NamedTuple):
    """What a run imagined, and what is to be said of it."""

    dataset: str
    ear: ImageToLogMel
    digits: Digits  # that were heard
    imagined: Tensor  # (N, 1, 64, 64) in [-1, 1]
    correlations: Tensor  # (N,), of each with what was heard
    read: dict[str, Tensor]  # (N,), what each judge, and the classifier, takes the digits for
    judge: str  # the SHA-256 of the residual judge's weights
    numbers: dict[str, Any]  # as in metrics.json


def rate_run(config: Config, device: torch.device) -> RatingResult:
    """Hear all digits of the part, imagine them, and rate what was imagined."""
    ear, network, generator, dataset = load_model(
        config.results / config.name / "checkpoint.pt", device
    )
    generator_before, classifier = load_memory(
        config.results, dataset, device
    )  # the generator before stage three
    thoughts = (config.results, config.refine_steps)
    refiner = load_refiner(*thoughts, ear, generator, dataset, device)
    _, stage_one = load_audio_network(config.results / "train_vggish" / "checkpoint.pt", device)
    panel = load_judges(config.results, judge_settings(config, dataset), device)
    digits = load_digits(dataset, config.part, config.data_root, device)
    heard = upsample(digits.images)

    print(f"hearing {len(heard)} {config.part} digits ...", flush=True)
    imagined, distance = imagine(ear, network, generator, digits.images, refiner=refiner)
    readers = {"classifier": classifier, **panel}
    read = {name: predict_labels(reader, imagined) for name, reader in readers.items()}
    readings = {
        name: {
            **accuracy_report(read[name], digits.labels),
            "real": accuracy_report(
                predict_labels(reader, heard), digits.labels
            ),  # what it can be trusted with
        }
        for name, reader in readers.items()
    }
    correlations = correlation(imagined, heard)
    numbers = {
        "judges": {name: readings[name] for name in panel},
        "judges_mean": judges_mean([readings[name] for name in panel]),
        "classifier": readings["classifier"],
        "sound_classifier": accuracy_report(
            predict_digits(ear, stage_one, digits.images), digits.labels
        ),
        "refined_fraction": refiner.count / len(heard) if refiner else 0.0,
        "realism": realism_report(
            panel["residual"], heard, imagined, generator_before, generator, config.seed
        ),
        "correlation": mean_ci(correlations),
        "ssim": {**mean_ci(ssim(imagined, heard)), "white": 1.0},  # older ratings took black for -1
        "retrieval": retrieval(imagined, heard, digits.labels),
        "diversity": diversity(imagined, heard, digits.labels),
        # absolute, whatever the run's objective, so that runs can be compared
        "sound_distance": distance,
    }
    return RatingResult(
        dataset,
        ear,
        digits,
        imagined,
        correlations,
        read,
        weights_sha256(panel["residual"]),
        numbers,
    )


def write_rating(
    output: Path, record: dict[str, Any], rated: RatingResult, log: list[dict[str, float]]
) -> None:
    """The grid, the page, and last the numbers, which say that all is there."""
    judged = [rated.read[name] for name in record["judges"]]
    examples = [
        make_example(rated, index, rank)
        for index, rank in choose_examples(rated.correlations, rated.digits.labels, judged)
    ]
    save_pairs(output / "imagined.png", rated.digits, rated.imagined)
    write_file(
        output / "index.html",
        lambda path: path.write_text(render(record, examples, log), encoding="utf-8"),
    )
    write_file(
        output / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n")
    )


def rating_folder(config: Config) -> Path:
    part = "evaluation" if config.part == "test" else f"evaluation_{config.part}"
    return config.output or config.results / folder_name(part, config)


def require_same_rating(output: Path, config: Any, script: str = "evaluate") -> None:
    """Refuse to put what `script` says of a run in the place of a run, or of what it said of
    another, or with other second thoughts.

    Raises:
        UserError: if that is what lies in `output`.
    """
    if not is_complete(output):
        return
    require_same_script(output, script)
    try:
        before = read_metrics(output)["config"]
        there, here = (
            f"{name} with {steps or 'no'} second thoughts"
            for name, steps in (
                (before["name"], before["refine_steps"]),
                (config.name, config.refine_steps),
            )
        )
    except (UserError, LookupError):  # a damaged one is nobody's
        return
    if there != here:
        raise UserError(
            f"{output} holds what {script}.py said of {there}, not of {here}; move it away"
            + (", or name another place by --output." if script == "evaluate" else ".")
        )


def folder_name(script: str, config: Any) -> str:
    """`script`, followed by what is rated: `evaluation_<name>_second_thoughts`."""
    name = "" if config.name == "train_all" else f"_{config.name}"
    return f"{script}{name}{'_second_thoughts' if config.refine_steps else ''}"


def input_hashes(config: Config, digits: Digits) -> dict[str, str]:
    """The SHA-256 of all that the rating is made from: the checkpoints of every stage, the judges,
    and what is heard."""
    return {
        **checkpoint_hashes(config.results, *stage_folders(config.name).values()),
        **checkpoint_hashes(judges_folder(config), *KEPT),
        **data_hashes(**{config.part: digits}),
    }


def judges_folder(config: Config) -> Path:
    return config.judges or config.results / "judges"


def judge_settings(config: Config, dataset: str) -> JudgeSettings:
    return JudgeSettings(
        dataset=dataset,
        results=judges_folder(config),
        data_root=config.data_root,
        epochs=config.judges_epochs or (30 if dataset == "handwritten" else JudgeSettings.epochs),
        batch=config.judges_batch or (32 if dataset == "handwritten" else JudgeSettings.batch),
        centres=config.kernel_centres,
        seed=JudgeSettings.seed + config.seed,
    )


def load_stages(config: Config) -> dict[str, dict[str, Any]]:
    """Seed, epoch, revision, machine and configuration of every stage that the rated run is made
    of.

    Raises:
        UserError: if a checkpoint is missing, foreign or damaged, a stage is not complete, or stage
            three was not made from the networks of stages one and two that are there.
    """
    stages = {}
    for stage, name in stage_folders(config.name).items():
        folder = config.results / name
        hint = f"run {training_command(stage, name)}"
        checkpoint = load_checkpoint(folder / "checkpoint.pt", stage, hint)
        stages[stage] = {
            key: checkpoint.get(key) for key in ("seed", "epoch", "revision", "config")
        }
        require_complete(folder, hint)
        metrics = read_metrics(folder, hint)
        stages[stage]["machine"] = metrics.get("machine")
    with explain_malformed(folder / "metrics.json", hint):  # the last of them is stage three
        input_hashes = dict(metrics.get("sha256") or {})
    here = checkpoint_hashes(config.results, "train_vggish", "mnist_classify_train", "emnist_dcgan")
    for name, hashed in here.items():  # the judge took no part, and may be another
        if input_hashes.get(name) != hashed:
            raise UserError(
                f"{config.results / config.name} was not made from the {name} that is in {config.results} now, or does not "
                f"say so; {hint} again, or put back what it was made from."
            )
    return stages


def judges_mean(readings: list[dict[str, Any]]) -> dict[str, float]:
    """The mean accuracy of the judges, and that of the digit which fares worst by this mean."""
    per_digit = zip(
        *([entry["accuracy"] for entry in reading["per_digit"]] for reading in readings),
        strict=True,
    )
    return {
        "accuracy": statistics.fmean(reading["accuracy"] for reading in readings),
        "worst_digit": min(statistics.fmean(accuracies) for accuracies in per_digit),
    }


def realism_report(
    judge: nn.Module,
    heard: Tensor,
    imagined: Tensor,
    generator_before: nn.Module,
    taught: nn.Module,
    seed: int,
) -> dict[str, Any]:
    """`realism_report` of what was imagined, and of the two ends of its scale.

    One random half of the real images is the reference. Against it: what was imagined of the other
    half; the other half itself, as good as it gets; and as many samples of the generator from
    noise, before stage three and after it. So every set has the same size, none shares an image
    with the reference, and no judge learned from any of them. (By the validation part, where that
    is heard, the best epoch of two judges was chosen.)"""
    half = len(heard) // 2
    order = torch.randperm(len(heard), generator=torch.Generator().manual_seed(seed)).to(
        heard.device
    )
    first, second = order[:half], order[half : 2 * half]
    z = seeded_noise(half, seed, heard.device)
    sets = {
        "imagined": imagined[first],
        "real": heard[first],
        "samples_before": generate(generator_before, z),
        "samples_after": generate(taught, z),
    }
    reference = judge_features(judge, heard[second])
    rated = {
        name: realism_report(judge_features(judge, images), reference)
        for name, images in sets.items()
    }
    return {"features": "residual", "images": half, **rated}


def choose_examples(
    correlations: Tensor, labels: Tensor, read: list[Tensor]
) -> list[tuple[int, str]]:
    """Index and rank of the best, the median and the worst of each class, by correlation with the
    heard image; and of the first one, if any, that most judges misread. `read`: for each judge the
    digits that it reads."""
    shown, misread = [], (torch.stack(read).ne(labels).double().mean(0) > 0.5).tolist()
    for digit in labels.unique().tolist():
        index = torch.nonzero(labels == digit)[:, 0]
        index = index[correlations[index].argsort(descending=True, stable=True)].tolist()
        shown += [
            (index[0], "best"),
            (index[(len(index) - 1) // 2], "median"),
            (index[-1], "worst"),
        ]
        shown += [(one, "misread") for one in sorted(index) if misread[one]][:1]
    return shown


@torch.no_grad()
def make_example(rated: RatingResult, index: int, rank: str) -> Example:
    image, ear = rated.digits.images[index : index + 1], rated.ear
    sound = ear.translator(image)
    return Example(
        index=index,
        digit=int(rated.digits.labels[index]),
        rank=rank,
        heard=image[0].cpu().numpy(),
        sound=sound[0].cpu().numpy(),
        sample_rate=ear.encoding.sample_rate,
        logmel=ear.log_mel(sound)[0, 0].cpu().numpy(),
        hop=ear.hop,
        imagined=rated.imagined[index, 0].cpu().numpy(),
        correlation=rated.correlations[index].item(),
        read={name: digits[index].item() for name, digits in rated.read.items()},
    )
