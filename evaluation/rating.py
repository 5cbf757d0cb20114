"""The rating of one run: what its model imagines, by the judges, by realism, and by the source.

It lies inside the run that it rates, in `evaluation/`: metrics.json, every number as a fraction;
imagined.png; and index.html."""

import json
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
)
from common.locks import lock_folder, unlock_folder
from common.provenance import code_revision, package_versions
from data import Digits, Part, class_names, data_hashes, load_digits
from data.resize import upsample
from evaluation.imagine import imagine, load_refiner, save_pairs
from evaluation.judges import JUDGES, load_judges
from evaluation.metrics import (
    NEIGHBOURS,
    accuracy_report,
    correlation,
    diversity,
    judge_features,
    mean_ci,
    predict_labels,
    realism,
    retrieval,
    ssim,
)
from evaluation.report import PANELS, Example, objective_name, render
from models.generator import generate, seeded_noise
from models.judge_cnn import CNNJudge
from models.late_blind import LateBlind, run_folder
from training.classifier import predict_digits
from training.run import is_complete, read_log, read_metrics, require_complete, require_same_script
from training.upstream import load_audio_network, load_classifier, load_generator, stage_folders


class RatingResult(NamedTuple):
    """The imagined images of a run, and their numbers."""

    model: LateBlind
    classes: tuple[str, ...]  # the name of each class
    digits: Digits  # that were heard
    imagined: Tensor  # (N, 1, 64, 64) in [-1, 1]
    correlations: Tensor  # (N,), of each with what was heard
    predicted: dict[str, Tensor]  # (N,), the classes that the classifier and each judge predict
    cnn_judge: str  # SHA-256 of the weights of the judge whose features measure realism
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


def rated_folders(run: Path) -> dict[str, Path]:
    """Stage -> the folder of its run, of everything that a rating of `run` uses."""
    folders = stage_folders(run)
    rated = folders.pop("train_all")
    judges = {f"judge_{name}": folders["judge_cnn"].parent / name for name in JUDGES}
    return {**folders, **judges, "train_all": rated}


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
        metrics = read_metrics(folder, hint)
        with explain_malformed(folder / "metrics.json", hint):
            kept = ("seed", "epoch", "revision", "machine", "config")
            stages[stage] = {key: metrics[key] for key in kept}
            recorded = dict(metrics["sha256"])  # at the end, of stage three
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
        check_writable(output)
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
    folders = rated_folders(run)
    model = LateBlind.load(run, device)
    refiner = load_refiner(folders, refine_steps, model, device)
    generator_before = load_generator(folders["emnist_dcgan"], device)
    classifier = load_classifier(folders["mnist_classify_train"], model.dataset, device)
    _, sound_classifier, _ = load_audio_network(folders["train_vggish"], device)
    judges: dict[str, Any] = load_judges(folders["judge_cnn"].parent, model.dataset, device)
    names = class_names(model.dataset, data_root)
    digits = load_digits(model.dataset, part, data_root, device)
    if len(digits.labels) <= 2 * NEIGHBOURS + 1:
        raise UserError(
            f"the {part} part of {model.dataset} has {len(digits.labels)} images, but a rating "
            f"needs at least {2 * NEIGHBOURS + 2}; add images."
        )
    heard = upsample(digits.images)

    print(f"hearing {len(heard)} {part} images ...", flush=True)
    imagined, distance = imagine(model, digits.images, refiner=refiner)
    classifiers = {"classifier": classifier, **judges}
    predicted = {name: predict_labels(one, imagined) for name, one in classifiers.items()}
    reports = {
        name: {
            **accuracy_report(predicted[name], digits.labels, len(names)),
            "real": accuracy_report(predict_labels(one, heard), digits.labels, len(names)),
        }
        for name, one in classifiers.items()
    }
    by_sound = predict_digits(model.front_end, sound_classifier, digits.images)
    correlations = correlation(imagined, heard)
    numbers = {
        "judges": {name: reports[name] for name in judges},
        "judges_mean": judges_mean([reports[name] for name in judges]),
        "classifier": reports["classifier"],
        "sound_classifier": accuracy_report(by_sound, digits.labels, len(names)),
        "refined_fraction": refiner.count / len(heard) if refiner else 0.0,
        "realism": realism_report(
            judges["cnn"], heard, imagined, generator_before, model.generator, seed
        ),
        "correlation": mean_ci(correlations),
        "ssim": mean_ci(ssim(imagined, heard)),
        "retrieval": retrieval(imagined, heard, digits.labels),
        "diversity": diversity(imagined, heard, digits.labels),
        # l1, whatever the run's objective, so that runs can be compared
        "audio_loss": distance,
    }
    cnn_judge = weights_sha256(judges["cnn"])
    return RatingResult(model, names, digits, imagined, correlations, predicted, cnn_judge, numbers)


def rate(
    run: Path, part: Part, refine_steps: int, seed: int, data_root: Path, device: torch.device,
    output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rate a run and write the rating; returns what its metrics.json says.

    Args: as in `rate_run`, and
        output: the folder to write into. None: inside the run; see `rating_folder`.

    Raises:
        UserError: as `rate_run`, and if the folder cannot be written.
    """
    started = time.perf_counter()
    folders = rated_folders(run)
    stages = read_stages(folders)
    curves = tuple(key for names in PANELS.values() for key in names if key != "replay")
    log = read_log(run / "log.jsonl", f"run {training_command('train_all', run.name)}", curves)
    output = output or rating_folder(run, part, refine_steps)
    reserve_output(output, "evaluate")
    result = rate_run(run, part, refine_steps, seed, data_root, device)
    config = {"name": run.absolute().name, "part": part, "refine_steps": refine_steps, "seed": seed}
    record = {
        "stage": "evaluate",
        "dataset": result.model.dataset,
        "classes": list(result.classes),
        "part": part,
        **result.numbers,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{device_name(device)}, {precision_name(device)}",
        "seed": seed,
        "revision": code_revision(),
        "versions": package_versions("torchmetrics", "torch-fidelity"),
        "config": config,
        "stages": stages,
        "cnn_judge": result.cnn_judge,
        "sha256": input_hashes(folders, part, result.digits),
    }
    move_older_aside(output)
    write_rating(output, record, result, log)
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


def write_rating(
    output: Path, record: dict[str, Any], result: RatingResult, log: list[dict[str, float]]
) -> None:
    """Write the grid, the page, and last metrics.json, which says that the rating is complete."""
    judged = [result.predicted[name] for name in record["judges"]]
    examples = [
        make_example(result, index, rank)
        for index, rank in choose_examples(result.correlations, result.digits.labels, judged)
    ]
    page = render(record, examples, log)
    save_pairs(output / "imagined.png", result.digits, result.imagined, result.classes)
    write_file(output / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    text = json.dumps(record, indent=1) + "\n"
    write_file(output / "metrics.json", lambda path: path.write_text(text))


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
    reference = judge_features(judge, heard[second])
    rated = {name: realism(judge_features(judge, each), reference) for name, each in sets.items()}
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
def make_example(result: RatingResult, index: int, rank: str) -> Example:
    """Collect what the page shows of one image."""
    image, front_end = result.digits.images[index : index + 1], result.model.front_end
    sound = front_end.translator(image)
    return Example(
        index=index,
        label=int(result.digits.labels[index]),
        rank=rank,
        heard=image[0].cpu().numpy(),
        sound=sound[0].cpu().numpy(),
        sample_rate=front_end.encoding.sample_rate,
        logmel=front_end.log_mel(sound)[0, 0].cpu().numpy(),
        hop=front_end.hop,
        imagined=result.imagined[index, 0].cpu().numpy(),
        correlation=result.correlations[index].item(),
        predicted={name: int(labels[index]) for name, labels in result.predicted.items()},
    )
