"""The rating of one run: what its model imagines, by the judges, by realism, and by the source.

It lies inside the run that it rates, in `evaluation/`: metrics.json, every number as a fraction;
imagined.png; and index.html."""

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.checkpoint import checkpoint_hashes, training_command, weights_sha256
from common.device import device_name, precision_name
from common.files import (
    UserError,
    check_writable,
    explain_malformed,
    folder_megabytes,
    move_aside,
    write_file,
    write_json,
)
from common.locks import lock_folder, unlock_folder
from common.provenance import code_revision, package_versions
from data import Digits, Part, data_hashes, load_digits
from data.resize import upsample
from evaluation import metrics
from evaluation.imagine import imagine, save_pairs
from evaluation.listener import Listener, rated_folders
from evaluation.report import PANELS, make_card, objective_name, render
from models.generator import generate, seeded_noise
from models.judge_cnn import CNNJudge
from models.late_blind import run_folder
from training.classifier import predict_digits
from training.run import is_complete, read_log, read_metrics, require_complete, require_same_script
from training.upstream import load_generator


class RatingResult(NamedTuple):
    """The imagined images of a run, and their numbers."""

    listener: Listener  # the model, and the classifiers
    digits: Digits  # that were heard
    imagined: Tensor  # (N, 1, 64, 64) in [-1, 1]
    correlations: Tensor  # (N,), of each with what was heard
    predicted: dict[str, Tensor]  # (N,), the classes that the classifier and each judge predict
    numbers: dict[str, Any]  # as in metrics.json


def find_run(name: Path | None, results: Path) -> Path:
    """The folder of a run of stage three: the run `name` in `results`, or the folder at the path
    `name`; if that is a results folder, or None, the newest complete run in it, which is printed.

    Raises:
        UserError: if a results folder holds no complete run.
    """
    folder = name or results
    if name and len(name.parts) == 1 and ((results / name).exists() or not name.exists()):
        folder = results / name
    run = run_folder(folder)
    if name is None and run == folder:
        raise UserError(
            f"{results.resolve()} holds no complete run of stage three; run train_all.py."
        )
    if run != folder:
        print(f"run: {run}, the newest complete run of stage three in {folder}")
    return run


def read_stages(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Read the seed, epoch, revision, machine and settings of every stage.

    Raises:
        UserError: if a run is missing or not complete, or stage three was not made from the
            networks of stages one and two that are in `folders`.
    """
    stages, recorded = {}, {}
    for stage, folder in folders.items():
        hint = f"run {training_command(stage, folder.name)}"
        if not (folder / "checkpoint.pt").is_file():
            raise UserError(f"{folder.resolve() / 'checkpoint.pt'} is missing; {hint}.")
        require_complete(folder, hint)
        record = read_metrics(folder, hint)
        with explain_malformed(folder / "metrics.json", hint):
            kept = ("seed", "epoch", "revision", "machine", "config")
            stages[stage] = {key: record[key] for key in kept}
            recorded = dict(record["sha256"])  # at the end, of stage three
    for name, digest in checkpoint_hashes(folders).items():
        stage = name.partition("/")[0]  # the judges take no part in the training
        if not stage.startswith(("judge_", "train_all")) and recorded.get(name) != digest:
            raise UserError(
                f"{folders['train_all']} was not made from the {name} that is in {folders[stage]} "
                f"now; {hint} again, or put back the run that it was made from."
            )
    return stages


def input_hashes(folders: dict[str, Path], part: Part, digits: Digits) -> dict[str, str]:
    """The SHA-256 of everything that a rating is made from: checkpoints and data."""
    return {**checkpoint_hashes(folders), **data_hashes(**{part: digits})}


def rating_folder(run: Path, part: Part, refine_steps: int, kind: str = "evaluation") -> Path:
    """Where the rating of a run lies, such as `<run>/evaluation_validation_refined`."""
    return run / (
        f"{kind}{'' if part == 'test' else f'_{part}'}{'_refined' if refine_steps else ''}"
    )


def reserve_output(output: Path, stage: str) -> None:
    """Lock the folder that `stage` will write into, before its work.

    Raises:
        UserError: if it is in use, cannot be written, or holds the record of another script.
    """
    lock_folder(output)
    check_writable(output)
    if is_complete(output):
        require_same_script(output, stage)


def move_older_aside(output: Path) -> None:
    """Move the older record in `output`, if there is one, to a numbered folder, and say so."""
    if is_complete(output):
        aside = move_aside(output)
        size = folder_megabytes(aside)
        print(f"The older record of {output} is now in {aside} ({size:.1f} MB).")


def rate_run(
    run: Path, part: Part, refine_steps: int, seed: int, data_root: Path, device: torch.device
) -> RatingResult:
    """Turn all images of a part into sound, imagine them, and rate the imagined images.

    Args:
        run: the folder of a complete run of stage three.
        part: test or validation.
        refine_steps: number of steps of latent refinement.
        seed: of the samples from noise, and of the halves that realism compares.
        data_root: the folder of the data sets.
        device: where it is computed.

    Raises:
        UserError: if a stage is missing or damaged, or the part has too few images.
    """
    listener = Listener(run, device, data_root)
    model, judges, refiner = listener.model, listener.judges, listener.refiner(refine_steps)
    generator_before = load_generator(rated_folders(run)["emnist_dcgan"], device)
    digits = load_digits(model.dataset, part, data_root, device)
    if len(digits.labels) <= 2 * metrics.NEIGHBOURS + 1:
        raise UserError(
            f"the {part} part of {model.dataset} has {len(digits.labels)} images, but a rating "
            f"needs at least {2 * metrics.NEIGHBOURS + 2}; add images."
        )
    heard = upsample(digits.images)

    print(f"hearing {len(heard)} {part} images ...", flush=True)
    imagined, distance = imagine(model, digits.images, refiner=refiner)
    classifiers = {"classifier": listener.classifier, **judges}
    predicted = {name: metrics.predict_labels(one, imagined) for name, one in classifiers.items()}

    def report(labels: Tensor) -> dict[str, Any]:
        return metrics.accuracy_report(labels, digits.labels, len(listener.classes))

    reports = {
        name: {**report(predicted[name]), "real": report(metrics.predict_labels(one, heard))}
        for name, one in classifiers.items()
    }
    by_sound = predict_digits(model.front_end, listener.sound_classifier, digits.images)
    correlations = metrics.correlation(imagined, heard)
    numbers = {
        "judges": {name: reports[name] for name in judges},
        "judges_mean": judges_mean([reports[name] for name in judges]),
        "classifier": reports["classifier"],
        "sound_classifier": report(by_sound),
        "refined_fraction": refiner.count / len(heard) if refiner else 0.0,
        "realism": realism_report(
            judges["cnn"], heard, imagined, generator_before, model.generator, seed
        ),
        "correlation": metrics.mean_ci(correlations),
        "ssim": metrics.mean_ci(metrics.ssim(imagined, heard)),
        "retrieval": metrics.retrieval(imagined, heard, digits.labels),
        "diversity": metrics.diversity(imagined, heard, digits.labels),
        # l1, whatever the run's objective, so that runs can be compared
        "audio_loss": distance,
    }
    return RatingResult(listener, digits, imagined, correlations, predicted, numbers)


def rate(
    run: Path, part: Part, refine_steps: int, seed: int, data_root: Path, device: torch.device,
    output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rate a run and write the rating; returns what its metrics.json says.

    Arguments and errors are those of `rate_run`. `output` is the folder to write into; None: inside
    the run, see `rating_folder`.
    """
    started = time.perf_counter()
    folders = rated_folders(run)
    stages = read_stages(folders)
    curves = tuple(key for names in PANELS.values() for key in names if key != "replay")
    log = read_log(run / "log.jsonl", f"run {training_command('train_all', run.name)}", curves)
    output = output or rating_folder(run, part, refine_steps)
    reserve_output(output, "evaluate")
    result = rate_run(run, part, refine_steps, seed, data_root, device)
    listener = result.listener
    config = {"name": run.absolute().name, "part": part, "refine_steps": refine_steps, "seed": seed}
    record = {
        "stage": "evaluate",
        "dataset": listener.model.dataset,
        "classes": list(listener.classes),
        "part": part,
        **result.numbers,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{device_name(device)}, {precision_name(device)}",
        "seed": seed,
        "revision": code_revision(),
        "versions": package_versions("torchmetrics", "torch-fidelity"),
        "config": config,
        "stages": stages,
        # The features of this judge measure the realism.
        "cnn_judge": weights_sha256(listener.judges["cnn"]),
        "sha256": input_hashes(folders, part, result.digits),
    }
    move_older_aside(output)
    save_pairs(output / "imagined.png", result.digits, result.imagined, listener.classes)
    page = render(record, example_cards(result), log)
    write_file(output / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    write_json(output / "metrics.json", record)  # last; it says that the rating is complete
    unlock_folder(output)
    for name, report in record["judges"].items():
        if report["real"]["accuracy"] < 0.9:
            print(
                f"warning: the judge {name} is right on {report['real']['accuracy']:.2%} of real "
                "images only, so do not trust it; train it longer with mnist_classify_train.py."
            )
    judged = ", ".join(
        f"{report['accuracy']:.2%} by judge {name}" for name, report in record["judges"].items()
    )
    print(
        f"imagined images classified right ({objective_name(record)} objective): {judged}; "
        f"{record['classifier']['accuracy']:.2%} by the classifier of the training. "
        f"{output}/metrics.json, {output}/index.html"
    )
    return record


def judges_mean(reports: list[dict[str, Any]]) -> dict[str, float]:
    """The mean accuracy of the judges, and that of the class that is worst by this mean."""
    per_class = zip(
        *([entry["accuracy"] for entry in report["per_class"]] for report in reports), strict=True
    )
    return {
        "accuracy": statistics.fmean(report["accuracy"] for report in reports),
        "worst_class": min(statistics.fmean(accuracies) for accuracies in per_class),
    }


def realism_report(
    judge: CNNJudge, heard: Tensor, imagined: Tensor,
    generator_before: nn.Module, generator_after: nn.Module, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Compute `realism` of the imagined images, and of the two ends of its scale.

    The reference is a random half of the real images. Four sets are compared with it: the imagined
    images of the other half; the other half itself, the best possible; and as many samples of the
    generator from noise, before and after stage three. All sets have one size, and none shares an
    image with the reference. No judge is trained on any of them. (On the validation part, the best
    epoch of two judges was chosen.)"""
    half = len(heard) // 2
    order = torch.randperm(len(heard), generator=torch.Generator().manual_seed(seed))
    order = order.to(heard.device)
    first, second = order[:half], order[half : 2 * half]
    noise = seeded_noise(half, seed, heard.device)
    sets = {
        "imagined": imagined[first],
        "real": heard[first],
        "samples_before": generate(generator_before, noise),
        "samples_after": generate(generator_after, noise),
    }
    reference = metrics.judge_features(judge, heard[second])
    rated = {
        name: metrics.realism(metrics.judge_features(judge, each), reference)
        for name, each in sets.items()
    }
    return {"features": "cnn", "images": half, **rated}


def choose_examples(
    correlations: Tensor, labels: Tensor, predicted: list[Tensor]
) -> list[tuple[int, str]]:
    """Choose images for the page: index and rank of the best, the median and the worst of each
    class, by correlation with the heard image; and of the first one, if any, that most judges
    misclassify.

    Args:
        correlations: `(N,)`.
        labels: `(N,)`.
        predicted: `(N,)` for each judge.
    """
    wrong = torch.stack(predicted).ne(labels).double().mean(0) > 0.5
    misread, shown = wrong.tolist(), []
    for label in labels.unique().tolist():
        index = torch.nonzero(labels == label)[:, 0]
        index = index[correlations[index].argsort(descending=True, stable=True)].tolist()
        median = index[(len(index) - 1) // 2]
        shown += [(index[0], "best"), (median, "median"), (index[-1], "worst")]
        shown += [(one, "misread") for one in sorted(index) if misread[one]][:1]
    return shown


@torch.no_grad()
def example_cards(result: RatingResult) -> list[dict[str, Any]]:
    """The cards of the page, for the images of `choose_examples`."""
    labels, front_end = result.digits.labels, result.listener.model.front_end
    judged = [result.predicted[name] for name in result.numbers["judges"]]
    return [
        make_card(
            result.digits.images[index : index + 1],
            result.imagined[index, 0],
            front_end,
            index=index,
            rank=rank,
            label=int(labels[index]),
            correlation=result.correlations[index].item(),
            predicted={name: int(one[index]) for name, one in result.predicted.items()},
        )
        for index, rank in choose_examples(result.correlations, labels, judged)
    ]
