"""An honest rating of what stage three imagined: by judges that took no part, against real digits, and against its source.

    python evaluate.py                                # rates results/train_all
    python evaluate.py --name train_all_published     # or another run of stage three
    python evaluate.py --second-thoughts 8            # where the model is in doubt, it thinks again before it draws
    python evaluate.py --compare seed0/results seed1/results seed2/results    # several ratings, mean and spread over seeds
    python evaluate.py --verify                       # is results/ what it claims to be?

Reads a complete run of `train_all.py` and what the stages before it left in `results/`. It hears the whole test set and
writes `results/evaluation/` (for another `--name`: `results/evaluation_<name>/`): metrics.json, every number as a fraction;
imagined.png, the grid of what was rated; and index.html, one self-contained page to look at and to listen to. Two of the
judges are trained on first use, and kept in `results/judges/`: on MNIST some minutes on one core. `--second-thoughts`
writes `results/evaluation_second_thoughts/`; `--part validation`, which hears the validation part, writes
`results/evaluation_validation/`.

With `--compare`, each folder holds the metrics.json of a rating, or is a results folder (then its `evaluation/` is taken).
Runs that differ in nothing but seeds and places are one row; it prints the table, and writes `results/comparison/`: table.md
and metrics.json. Nothing is rated anew.

With `--verify`, it prints a line for each stage, and a verdict. It hashes checkpoints, earlier stages' checkpoints and data,
and holds them against the records; compares configuration, numbers and epochs in checkpoint, metrics and log; and measures
the reported numbers again, those of the rating too, if there is one. The first mismatch ends it with exit code 2. It cannot
say that the training was as recorded: only training again can.
"""

import json
import statistics
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import data
import emnist_dcgan
import files
import judges
import page
import ratings
import runs
import train_all
import train_vggish
from comparison import COLUMNS, compare, read_rating
from verification import leaves, refuse_another, refuse_unlike, verify_stages
from vggish import Ear, load_embedder


@dataclass(frozen=True)
class Config:
    # what is rated
    name: str = "train_all"  # of the run of stage three, a folder in results/
    part: Literal["test", "validation"] = "test"  # of the data, to be heard; what is to be chosen, choose by validation
    second_thoughts: int = 0  # steps by which the model thinks again of a sound that it is in doubt of, before it draws.
    # See train_all.SecondThoughts. They need no training, so they are no setting of a run. Published: 0. Measured on MNIST,
    # in the README's runs: 0: 98.9 % read right by the judge; 8: 99.4 %
    output: Path | None = None  # None: results/evaluation, followed by which part, name and second thoughts; or comparison
    compare: tuple[Path, ...] = ()  # set these ratings side by side, and rate nothing
    verify: bool = False  # say whether the results are what they claim, and rate nothing

    # the judges that are trained on first use; other values than those they were trained with train them again
    judges: Path | None = None  # the folder that keeps them. None: results/judges; name another run's to spare the training
    judges_epochs: int | None = None  # of the transformer; None: 8 of MNIST, 30 of the small handwritten digits
    judges_batch: int | None = None  # of the transformer; None: 128 of MNIST, 32 of the small handwritten digits
    kernel_centres: int = 2000  # real digits with which the kernel classifier compares; fewer make it quicker and worse

    # the run
    seed: int = 0  # of the two judges, of the samples from noise, and of the halves of what is heard
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    data_root: Path = field(default_factory=data.default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs


def main(config: Config) -> dict[str, Any]:
    """Rate, compare, or verify; returns what metrics.json says, or the numbers that were measured again."""
    if config.compare:
        return compare(config.compare, config.output or config.results / "comparison")
    if config.verify:
        return verify(config)
    started = time.perf_counter()
    device = runs.choose_device(config.device)
    output = output_of(config)
    stages = load_stages(config)
    files.hold(output)
    files.probe(output)
    refuse_other_rating(output, config)
    log = runs.read_log(config.results / config.name / "log.jsonl")
    rated = rate(config, device)
    record = {
        "stage": "evaluate",
        "dataset": rated.dataset,
        "part": config.part,
        **rated.numbers,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{runs.device_name(device)}, {runs.precision(device)}",
        "seed": config.seed,
        "revision": runs.revision(),
        "versions": {**runs.versions(), **{name: version(name) for name in ("torchmetrics", "torch-fidelity")}},
        "config": runs.plain(config),
        "judge_settings": runs.plain(judge_settings(config, rated.dataset)),
        "stages": stages,
        "residual_judge": rated.judge,
        "sha256": rated_sha256(config, rated.digits),
    }
    write_rating(output, record, rated, log)
    files.release(output)
    for name, reading in record["judges"].items():
        if reading["real"]["accuracy"] < 0.9:
            more = "mnist_classify_train.py --judge-epochs" if name == "residual" else "--judges-epochs"
            print(
                f"the {name} judge reads {reading['real']['accuracy']:.2%} of real digits: not to be trusted; raise {more}"
            )
    said = ", ".join(f"{reading['accuracy']:.2%} by the {name} judge" for name, reading in record["judges"].items())
    print(
        f"imagined digits read right: {said}; {record['classifier']['accuracy']:.2%} by the classifier that was to be "
        f"pleased. {output}/metrics.json, {output}/index.html"
    )
    return record


class Rated(NamedTuple):
    """What a run imagined, and what is to be said of it."""

    dataset: str
    ear: Ear
    digits: data.Digits  # that were heard
    imagined: Tensor  # (N, 1, 64, 64) in [-1, 1]
    correlations: Tensor  # (N,), of each with what was heard
    read: dict[str, Tensor]  # (N,), what each judge, and the classifier, takes the digits for
    judge: str  # the SHA-256 of the residual judge's weights
    numbers: dict[str, Any]  # as in metrics.json


def rate(config: Config, device: torch.device) -> Rated:
    """Hear all digits of the part, imagine them, and rate what was imagined."""
    ear, network, generator, dataset = train_all.load_model(config.results / config.name / "checkpoint.pt", device)
    untaught, classifier = train_all.load_memory(config.results, dataset, device)  # the generator before stage three
    thoughts = (config.results, config.second_thoughts)
    think_again = train_all.load_second_thoughts(*thoughts, ear, generator, dataset, device)
    _, stage_one = load_embedder(config.results / "train_vggish" / "checkpoint.pt", device)
    panel = judges.load(config.results, judge_settings(config, dataset), device)
    digits = data.load_heard(dataset, config.part, config.data_root, device)
    heard = data.as_seen(digits.images)

    print(f"hearing {len(heard)} {config.part} digits ...", flush=True)
    imagined, distance = train_all.imagine(ear, network, generator, digits.images, think_again=think_again)
    readers = {"classifier": classifier, **panel}
    read = {name: ratings.predict(reader, imagined) for name, reader in readers.items()}
    readings = {
        name: {
            **ratings.reading(read[name], digits.labels),
            "real": ratings.reading(ratings.predict(reader, heard), digits.labels),  # what it can be trusted with
        }
        for name, reader in readers.items()
    }
    correlations = ratings.correlation(imagined, heard)
    numbers = {
        "judges": {name: readings[name] for name in panel},
        "judges_mean": judges_mean([readings[name] for name in panel]),
        "classifier": readings["classifier"],
        "sound_classifier": ratings.reading(train_vggish.tell_apart(ear, stage_one, digits.images), digits.labels),
        "thought_again": think_again.count / len(heard) if think_again else 0.0,
        "realism": realism(panel["residual"], heard, imagined, untaught, generator, config.seed),
        "correlation": ratings.mean(correlations),
        "ssim": {**ratings.mean(ratings.ssim(imagined, heard)), "white": 1.0},  # older ratings took black for -1
        "retrieval": ratings.retrieval(imagined, heard, digits.labels),
        "diversity": ratings.diversity(imagined, heard, digits.labels),
        "sound_distance": distance,  # absolute, whatever the run's objective, so that runs can be compared
    }
    return Rated(dataset, ear, digits, imagined, correlations, read, runs.weights_sha256(panel["residual"]), numbers)


def write_rating(output: Path, record: dict[str, Any], rated: Rated, log: list[dict[str, float]]) -> None:
    """The grid, the page, and last the numbers, which say that all is there."""
    judged = [rated.read[name] for name in record["judges"]]
    examples = [example(rated, index, rank) for index, rank in choose(rated.correlations, rated.digits.labels, judged)]
    train_all.save_pairs(output / "imagined.png", rated.digits, rated.imagined)
    files.write(output / "index.html", lambda path: path.write_text(page.render(record, examples, log), encoding="utf-8"))
    files.write(output / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))


def output_of(config: Config) -> Path:
    part = "evaluation" if config.part == "test" else f"evaluation_{config.part}"
    return config.output or config.results / folder_of(part, config)


def refuse_other_rating(output: Path, config: Any, script: str = "evaluate") -> None:
    """Refuse to put what `script` says of a run in the place of a run, or of what it said of another, or with other second
    thoughts.

    Raises:
        runs.UserError: if that is what lies in `output`.
    """
    if not runs.complete(output):
        return
    runs.refuse_other(output, script)
    try:
        before = runs.read_metrics(output)["config"]
        there, here = (
            f"{name} with {steps or 'no'} second thoughts"
            for name, steps in ((before["name"], before["second_thoughts"]), (config.name, config.second_thoughts))
        )
    except (runs.UserError, LookupError):  # a damaged one is nobody's
        return
    if there != here:
        raise runs.UserError(
            f"{output} holds what {script}.py said of {there}, not of {here}; move it away"
            + (", or name another place by --output." if script == "evaluate" else ".")
        )


def folder_of(script: str, config: Any) -> str:
    """`script`, followed by what is rated: `evaluation_<name>_second_thoughts`."""
    name = "" if config.name == "train_all" else f"_{config.name}"
    return f"{script}{name}{'_second_thoughts' if config.second_thoughts else ''}"


def rated_sha256(config: Config, digits: data.Digits) -> dict[str, str]:
    """The SHA-256 of all that the rating is made from: the checkpoints of every stage, the judges, and what is heard."""
    return {
        **runs.checkpoint_sha256(config.results, *train_all.made_of(config.name).values()),
        **runs.checkpoint_sha256(judges_folder(config), *judges.KEPT),
        **data.sha256(**{config.part: digits}),
    }


def judges_folder(config: Config) -> Path:
    return config.judges or config.results / "judges"


def judge_settings(config: Config, dataset: str) -> judges.Settings:
    return judges.Settings(
        dataset=dataset,
        results=judges_folder(config),
        data_root=config.data_root,
        epochs=config.judges_epochs or (30 if dataset == "handwritten" else judges.Settings.epochs),
        batch=config.judges_batch or (32 if dataset == "handwritten" else judges.Settings.batch),
        centres=config.kernel_centres,
        seed=judges.Settings.seed + config.seed,
    )


def load_stages(config: Config) -> dict[str, dict[str, Any]]:
    """Seed, epoch, revision, machine and configuration of every stage that the rated run is made of.

    Raises:
        runs.UserError: if a checkpoint is missing, foreign or damaged, a stage is not complete, or stage three was not
            made from the networks of stages one and two that are there.
    """
    stages = {}
    for stage, name in train_all.made_of(config.name).items():
        folder = config.results / name
        mend = f"run {runs.command_of(stage, name)}"
        checkpoint = runs.load_checkpoint(folder / "checkpoint.pt", stage, mend)
        stages[stage] = {key: checkpoint.get(key) for key in ("seed", "epoch", "revision", "config")}
        runs.require_complete(folder, mend)
        metrics = runs.read_metrics(folder, mend)
        stages[stage]["machine"] = metrics.get("machine")
    with files.whole(folder / "metrics.json", mend):  # the last of them is stage three
        made_from = dict(metrics.get("sha256") or {})
    here = runs.checkpoint_sha256(config.results, "train_vggish", "mnist_classify_train", "emnist_dcgan")
    for name, hashed in here.items():  # the judge took no part, and may be another
        if made_from.get(name) != hashed:
            raise runs.UserError(
                f"{config.results / config.name} was not made from the {name} that is in {config.results} now, or does not "
                f"say so; {mend} again, or put back what it was made from."
            )
    return stages


def judges_mean(readings: list[dict[str, Any]]) -> dict[str, float]:
    """The mean accuracy of the judges, and that of the digit which fares worst by this mean."""
    per_digit = zip(*([entry["accuracy"] for entry in reading["per_digit"]] for reading in readings), strict=True)
    return {
        "accuracy": statistics.fmean(reading["accuracy"] for reading in readings),
        "worst_digit": min(statistics.fmean(accuracies) for accuracies in per_digit),
    }


def realism(
    judge: nn.Module, heard: Tensor, imagined: Tensor, untaught: nn.Module, taught: nn.Module, seed: int
) -> dict[str, Any]:
    """`ratings.realism` of what was imagined, and of the two ends of its scale.

    One random half of the real images is the reference. Against it: what was imagined of the other half; the other half
    itself, as good as it gets; and as many samples of the generator from noise, before stage three and after it. So every
    set has the same size, none shares an image with the reference, and no judge learned from any of them. (By the validation
    part, where that is heard, the best epoch of two judges was chosen.)
    """
    half = len(heard) // 2
    order = torch.randperm(len(heard), generator=torch.Generator().manual_seed(seed)).to(heard.device)
    first, second = order[:half], order[half : 2 * half]
    z = emnist_dcgan.noise(half, seed, heard.device)
    sets = {
        "imagined": imagined[first],
        "real": heard[first],
        "samples_before": emnist_dcgan.draw(untaught, z),
        "samples_after": emnist_dcgan.draw(taught, z),
    }
    reference = ratings.judge_features(judge, heard[second])
    rated = {name: ratings.realism(ratings.judge_features(judge, images), reference) for name, images in sets.items()}
    return {"features": "residual", "images": half, **rated}


def choose(correlations: Tensor, labels: Tensor, read: list[Tensor]) -> list[tuple[int, str]]:
    """Index and rank of the best, the median and the worst of each class, by correlation with the heard image; and of the
    first one, if any, that most judges misread. `read`: for each judge the digits that it reads."""
    shown, misread = [], (torch.stack(read).ne(labels).double().mean(0) > 0.5).tolist()
    for digit in labels.unique().tolist():
        index = torch.nonzero(labels == digit)[:, 0]
        index = index[correlations[index].argsort(descending=True, stable=True)].tolist()
        shown += [(index[0], "best"), (index[(len(index) - 1) // 2], "median"), (index[-1], "worst")]
        shown += [(one, "misread") for one in sorted(index) if misread[one]][:1]
    return shown


@torch.no_grad()
def example(rated: Rated, index: int, rank: str) -> page.Example:
    image, ear = rated.digits.images[index : index + 1], rated.ear
    sound = ear.translator(image)
    return page.Example(
        index=index,
        digit=int(rated.digits.labels[index]),
        rank=rank,
        heard=image[0].cpu().numpy(),
        sound=sound[0].cpu().numpy(),
        sample_rate=ear.encoding.sample_rate,
        logmel=ear.hear(sound)[0, 0].cpu().numpy(),
        hop=ear.hop,
        imagined=rated.imagined[index, 0].cpu().numpy(),
        correlation=rated.correlations[index].item(),
        read={name: digits[index].item() for name, digits in rated.read.items()},
    )


# -- is a results folder what it claims to be? -------------------------------------------------------------------------

RATED_WITH = ("name", "part", "second_thoughts", "judges_epochs", "judges_batch", "kernel_centres", "seed")


def verify(config: Config) -> dict[str, Any]:
    """Whether the run `config.name`, the stages before it, and its rating, if there is one, are what their records say.

    Raises:
        runs.UserError: with the first mismatch.
    """
    device = runs.choose_device(config.device)
    measured = verify_stages(config.results, config.name, config.data_root, device)
    rating = output_of(config)
    if (rating / "metrics.json").exists():
        measured["evaluate"] = verify_rating(config, rating, device)
    else:
        print(f"{rating}: no rating is there")
    print(f"verified: {config.results} is what it claims to be.")
    return measured


def verify_rating(config: Config, folder: Path, device: torch.device) -> dict[str, float]:
    """The numbers of a rating, measured again by the judges and on the digits that it names. Of these COLUMNS are returned;
    all are compared."""
    path, metrics = read_rating(folder)
    with files.whole(path, "run evaluate.py"):
        said = {name: metrics["config"][name] for name in RATED_WITH}
        refuse_unlike(path, "what is rated", [said.pop(n) for n in ("name", "part")], [config.name, config.part])
        steps = said["second_thoughts"]
        if config.second_thoughts not in (0, steps):
            raise runs.UserError(
                f"{path} was rated with --second-thoughts {steps}, not {config.second_thoughts}; give as many."
            )
        for stage, entry in load_stages(config).items():
            for name, value in entry.items():
                refuse_unlike(path, f"{name} of {stage}", metrics["stages"][stage][name], value)
        config = replace(config, **said)
        runs.refuse_impossible(config)
        verify_judges(path, metrics, judge_settings(config, metrics["dataset"]))
        digits = data.load_heard(metrics["dataset"], config.part, config.data_root, "cpu")
        for name, digest in rated_sha256(config, digits).items():
            refuse_unlike(path, f"SHA-256 of {name}", metrics["sha256"].get(name), digest)
    rated = rate(config, device)
    refuse_unlike(path, "the residual judge", metrics["residual_judge"], rated.judge)
    again = dict(leaves(rated.numbers))
    reported = dict(leaves({name: metrics.get(name) for name in rated.numbers}))
    refuse_unlike(path, "what is told", sorted(reported.keys() - again.keys()), sorted(again.keys() - reported.keys()))
    with files.whole(path, "run evaluate.py"):
        for name, value in again.items():
            if isinstance(value, str):
                refuse_unlike(path, name, reported[name], value)
            else:
                refuse_another(folder, name, reported[name], value, len(rated.digits.labels))
    print(
        f"{folder}: hashes agree; judges_mean {rated.numbers['judges_mean']['accuracy']:.4f} and {len(again) - 1} more "
        f"numbers: measured again, {'the same' if again == reported else 'the same but for rounding'}"
    )
    return {name: get(rated.numbers) for name, (_, get) in COLUMNS.items()}


def verify_judges(path: Path, metrics: dict[str, Any], settings: judges.Settings) -> None:
    """The judges that are kept are as the rating in `path` says, so that none would be trained again."""
    now = runs.plain(settings)
    for key in runs.changed_settings(metrics["judge_settings"], now):
        refuse_unlike(path, f"{key} of the judges", metrics["judge_settings"].get(key), now.get(key))
    for name in judges.KEPT:
        kept_at = settings.results / name
        if not runs.complete(kept_at):
            raise runs.UserError(f"{kept_at} is not there, by which {path} rates; name the folder that has it by --judges.")
        made_with = runs.load_checkpoint(kept_at / "checkpoint.pt", name)["config"]
        for key in judges.changed_settings(name, made_with, settings):
            refuse_unlike(kept_at / "checkpoint.pt", key, made_with.get(key), now.get(key))


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
