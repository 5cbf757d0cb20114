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
the reported numbers again, those of the rating too, if there is one. The first mismatch ends it with exit code 2; so does a
folder without hashes, of before they were kept. That the training was as recorded it cannot say: only training again can.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import data
import emnist_dcgan
import judges
import mnist_classify_train
import page
import ratings
import runs
import train_all
import train_vggish
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
    runs.hold(output)
    runs.probe(output)
    refuse_other_rating(output, config)
    log = read_log(config.results / config.name / "log.jsonl")
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
        "sha256": {
            **runs.checkpoint_sha256(config.results, *rated_folders(config).values()),
            **runs.checkpoint_sha256(judges_folder(config), *judges.KEPT),
            **data.sha256(**{config.part: rated.digits}),
        },
    }
    write_rating(output, record, rated, log)
    runs.release(output)
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
    runs.write(output / "index.html", lambda path: path.write_text(page.render(record, examples, log), encoding="utf-8"))
    runs.write(output / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))


def output_of(config: Config) -> Path:
    part = "evaluation" if config.part == "test" else f"evaluation_{config.part}"
    return config.output or config.results / folder_of(part, config)


def refuse_other_rating(output: Path, config: Any, script: str = "evaluate") -> None:
    """Refuse to put what `script` says of a run in the place of a run, or of what it said of another.

    Raises:
        runs.UserError: if that is what lies in `output`.
    """
    if not runs.complete(output):
        return
    runs.refuse_other(output, script)
    try:
        name = runs.read_metrics(output)["config"]["name"]
    except (runs.UserError, LookupError):
        return
    if name != config.name:
        raise runs.UserError(
            f"{output} holds what {script}.py said of {name}, not of {config.name}; move it away, or name another place."
        )


def folder_of(script: str, config: Any) -> str:
    """`script`, followed by what is rated: `evaluation_<name>_second_thoughts`."""
    name = "" if config.name == "train_all" else f"_{config.name}"
    return f"{script}{name}{'_second_thoughts' if config.second_thoughts else ''}"


def rated_folders(config: Config) -> dict[str, str]:
    """Stage -> its folder in results, of all that the rated run is made of."""
    stages = ("train_vggish", "mnist_classify_train", "judge", "emnist_dcgan")
    return {**{stage: stage for stage in stages}, "train_all": config.name}


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
    mend = "run train_all.py" if config.name == "train_all" else f"run train_all.py --name {config.name}"
    stages = {}
    for stage, name in rated_folders(config).items():
        folder = config.results / name
        said = mend if stage == "train_all" else f"run {runs.script_of(stage)}"
        checkpoint = runs.load_checkpoint(folder / "checkpoint.pt", stage, said)
        stages[stage] = {key: checkpoint.get(key) for key in ("seed", "epoch", "revision", "config")}
        runs.require_complete(folder, said)
        stages[stage]["machine"] = runs.read_metrics(folder).get("machine")
    with runs.whole(config.results / config.name / "metrics.json", mend):
        made_from = dict(runs.read_metrics(config.results / config.name).get("sha256") or {})
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
    shown, misread = [], torch.stack(read).ne(labels).double().mean(0) > 0.5
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


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl."""
    mend = "run the script that writes it again"
    lines = runs.read_json(path, mend, lines=True)
    with runs.whole(path, mend):
        if not lines or [line["epoch"] for line in lines] != list(range(1, len(lines) + 1)):
            raise ValueError("its epochs do not follow one another")
        if not all(isinstance(value, int | float | str) for line in lines for value in line.values()):
            raise ValueError("a line holds more than numbers")
    return lines


# -- several ratings, side by side -------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, Callable[[dict], float]]] = {
    "classifier": ("read right by the classifier that was to be pleased", lambda m: m["classifier"]["accuracy"]),
    "residual": ("read right by the residual judge", lambda m: m["judges"]["residual"]["accuracy"]),
    "transformer": ("read right by the transformer", lambda m: m["judges"]["transformer"]["accuracy"]),
    "kernel": ("read right by the kernel classifier", lambda m: m["judges"]["kernel"]["accuracy"]),
    "judges_mean": ("the same, mean of the three judges", lambda m: m["judges_mean"]["accuracy"]),
    "worst_digit": ("the same, the digit that fares worst", lambda m: m["judges_mean"]["worst_digit"]),
    "frechet_distance": ("Frechet distance to real digits", lambda m: m["realism"]["imagined"]["frechet_distance"]),
    "precision": ("precision", lambda m: m["realism"]["imagined"]["precision"]),
    "recall": ("recall", lambda m: m["realism"]["imagined"]["recall"]),
    "ssim": ("SSIM with the heard image", lambda m: m["ssim"]["mean"]),
    "correlation": ("correlation with the heard image", lambda m: m["correlation"]["mean"]),
    "retrieval": ("retrieval", lambda m: m["retrieval"]["overall"]["accuracy"]),
    "retrieval_within_class": ("retrieval within the class", lambda m: m["retrieval"]["within_class"]["accuracy"]),
    "diversity": ("diversity within a class", lambda m: m["diversity"]["mean"]),
    "sound_classifier": ("for comparison: sounds told apart by stage one", lambda m: m["sound_classifier"]["accuracy"]),
}


def compare(folders: tuple[Path, ...], output: Path) -> dict[str, Any]:
    """Set ratings side by side: mean and sample standard deviation over the runs that differ in seeds only.

    Raises:
        runs.UserError: if a rating is missing, unreadable or foreign, or two have the same settings and the same seeds.
    """
    groups: dict[str, list[tuple[Path, dict]]] = {}
    for folder in folders:
        path, metrics = read_rating(folder)
        name = f"{metrics['config']['name']}/checkpoint.pt"
        rated = path.parent.parent / name
        here = metrics["config"].get("output") is None and rated.is_file()
        if here and runs.file_sha256(rated) != metrics["sha256"].get(name):
            raise runs.UserError(f"{path} is of another run than {rated.parent} holds now; run evaluate.py on it again.")
        groups.setdefault(json.dumps(settings_of(metrics), sort_keys=True), []).append((path, metrics))
    differing = differing_settings([json.loads(key) for key in groups])
    names = [" ".join(dict.fromkeys(title_of(metrics) for _, metrics in members)) for members in groups.values()]
    rows = []
    for column, (members, differs) in enumerate(zip(groups.values(), differing, strict=True)):
        seeds = [seeds_of(metrics) for _, metrics in members]
        for position, one in enumerate(seeds):
            if one in seeds[:position]:
                first, again = members[seeds.index(one)][0], members[position][0]
                raise runs.UserError(f"{first} and {again} rate the same settings and seeds; give each run once.")
        rows.append(
            {
                "name": names[column] + (f" ({column + 1})" if names.count(names[column]) > 1 else ""),
                "settings": differs,  # those in which the rows are not all alike
                "ratings": [str(path) for path, _ in members],
                "seeds": [metrics["stages"]["train_all"]["seed"] for _, metrics in members],
                "shared": [stage for stage in seeds[0] if len({one[stage] for one in seeds}) < len(seeds)],
                "digits": members[0][1]["classifier"]["images"],
                "searched": members[0][1]["retrieval"]["overall"]["images"],
                "residual_judges": sorted({str(metrics["residual_judge"]) for _, metrics in members}),
                **{  # of stage three
                    what: sorted({str(metrics["stages"]["train_all"][what]) for _, metrics in members})
                    for what in ("machine", "revision")
                },
                "columns": {name: spread([get(metrics) for _, metrics in members]) for name, (_, get) in COLUMNS.items()},
            }
        )
    record = {"stage": "compare", "rows": rows, "revision": runs.revision(), "versions": runs.versions()}
    table = comparison_table(rows)
    runs.hold(output)
    if runs.complete(output):
        runs.refuse_other(output, "compare")
    runs.write(output / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    runs.write(output / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    runs.release(output)
    print(f"{table}\n{output}/table.md, {output}/metrics.json")
    return record


def read_rating(folder: Path, mend: str = "run evaluate.py on its run again") -> tuple[Path, dict[str, Any]]:
    """The metrics.json of a rating, and where it was: in `folder`, or in `evaluation/` of the results folder `folder`."""
    path = folder / "metrics.json" if (folder / "metrics.json").exists() else folder / "evaluation" / "metrics.json"
    if not path.is_file():
        raise runs.UserError(
            f"{folder} holds no rating, neither metrics.json nor evaluation/metrics.json; run evaluate.py on its run first."
        )
    metrics = runs.read_json(path, mend)
    try:
        if metrics["stage"] != "evaluate":
            raise runs.UserError(f"{path} was written by {metrics['stage']}.py; give a folder that evaluate.py wrote.")
        settings_of(metrics), seeds_of(metrics), metrics["config"]["name"], dict(metrics["sha256"])
        metrics["ssim"]["white"], metrics["residual_judge"]  # which older ones lack
        metrics["stages"]["train_all"]["machine"], metrics["stages"]["train_all"]["revision"]
        [float(get(metrics)) for _, get in COLUMNS.values()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise runs.UserError(f"{path} is no rating of this version ({error!r}); {mend}.") from error
    return path, metrics


def title_of(metrics: dict[str, Any]) -> str:
    """The name of the run, and how it was rated where that is not the custom."""
    config = metrics["config"]
    how = {"second thoughts": config.get("second_thoughts"), "validation part": config.get("part") == "validation"}
    return ", ".join([config["name"], *(said for said, so in how.items() if so)])


def settings_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Everything that the run and its judges were made with, but for seeds, names and places. A setting that an older run
    did not know yet has its default, by which, as is the custom here, nothing changed."""
    scripts = {script.__name__: script for script in (train_vggish, mnist_classify_train, emnist_dcgan, train_all)}
    scripts["judge"] = mnist_classify_train
    configs = {
        stage: {**runs.plain(scripts[stage].Config()), **entry["config"]} for stage, entry in metrics["stages"].items()
    }
    configs["judges"] = metrics["judge_settings"]
    configs["evaluate"] = {key: metrics["config"].get(key, getattr(Config, key)) for key in ("part", "second_thoughts")}
    configs["evaluate"] |= {"digits": metrics["classifier"]["images"], "searched": metrics["retrieval"]["overall"]["images"]}
    left_out = {*runs.PLACES, "seed", "name"}
    flat = {f"{stage}.{key}": value for stage, c in configs.items() for key, value in c.items() if key not in left_out}
    encodings = {key: flat.pop(key) for key, value in list(flat.items()) if isinstance(value, dict)}
    return flat | {f"{key}.{field}": value for key, encoding in encodings.items() for field, value in encoding.items()}


def seeds_of(metrics: dict[str, Any]) -> dict[str, int]:
    return {stage: entry["seed"] for stage, entry in metrics["stages"].items()}


def differing_settings(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each, what is not alike in all of them."""
    keys = sorted({key for one in settings for key in one})
    unlike = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    return [{key: one.get(key) for key in unlike} for one in settings]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, and sample standard deviation over the seeds, which one seed does not tell."""
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def comparison_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a column for each row of settings, a line for each number."""

    def shown(column: dict[str, Any]) -> str:
        return f"{column['mean']:.4f}" + ("" if column["spread"] is None else f" ± {column['spread']:.4f}")

    lines = [["", *(row["name"] for row in rows)], ["---"] * (len(rows) + 1)]
    lines.append(["seeds", *(", ".join(map(str, row["seeds"])) for row in rows)])
    lines.append(["digits heard", *(str(row["digits"]) for row in rows)])
    for name, (title, _) in COLUMNS.items():
        lines.append([title, *(shown(row["columns"][name]) for row in rows)])
        if name == "retrieval":
            lines[-1] = ["retrieval, among", *(f"{row['searched']}: {shown(row['columns'][name])}" for row in rows)]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    table += "\nMean ± sample standard deviation over the seeds; accuracies, precision and recall are fractions.\n"
    single = [row["name"] for row in rows if len(row["seeds"]) == 1]
    if single:
        table += f"One seed only, so the spread is unknown: {', '.join(single)}.\n"
    in_features = "Frechet distance, precision and recall are in the features of the residual judge"
    if len({tuple(row["residual_judges"]) for row in rows}) > 1:
        table += f"{in_features}, and not all rows have the same: in these three they cannot be compared.\n"
    if any(len(row["residual_judges"]) > 1 for row in rows):
        table += f"{in_features}, of which a row has several: their spread is of judges and runs together.\n"
    for row in rows:
        for what in ("machine", "revision"):
            if len(row[what]) > 1:
                table += f"{row['name']}: not all of one {what}: {'; '.join(row[what])}.\n"
        if len(row["seeds"]) > 1 and row["shared"]:
            table += f"{row['name']}: these stages have a seed in common, so that the spread leaves theirs out: "
            table += f"{', '.join(row['shared'])}.\n"
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        table += f"{row['name']}: {settings or 'the same settings in all'}.\n" if len(rows) > 1 else ""
    return table


# -- is a results folder what it claims to be? -------------------------------------------------------------------------

# How far a number may be off when it is measured again: TOLERANCE, absolute up to 1 and relative above; or as much as DIGITS
# of the digits make, if that is more. The same machine gives the same number; another rounds otherwise, and may take
# bfloat16 for float32.
TOLERANCE, DIGITS = 0.005, 10
RATED_WITH = ("name", "part", "second_thoughts", "judges_epochs", "judges_batch", "kernel_centres", "seed")


def verify(config: Config) -> dict[str, Any]:
    """Whether the run `config.name` and the stages before it are what their records say, a printed line for each.

    Raises:
        runs.UserError: with the first mismatch; or, where there is none, if there are folders without hashes.
    """
    device = runs.choose_device(config.device)
    measured, unhashed = {}, []
    for stage, name in rated_folders(config).items():
        folder = config.results / name
        metrics, checkpoint = verify_record(folder, stage)
        if not metrics.get("sha256"):
            unhashed.append(name)
        with runs.whole(folder / "metrics.json", f"run {runs.script_of(stage)}"):
            verify_files(config, folder, stage, metrics)
            numbers, count = measure(config, stage, checkpoint, device)
            for number, again in numbers.items():
                verify_number(folder, number, metrics[number], again, count)
            measured[stage] = numbers
        same = all(metrics[number] == again for number, again in numbers.items())
        shown = ", ".join(f"{number} {metrics[number]:.4f}" for number in numbers)
        hashed = "made before hashes were kept" if name in unhashed else "hashes agree"
        print(
            f"{folder}: seed {metrics['seed']}, epoch {metrics['epoch']}, revision {metrics['revision']}; {hashed}; "
            f"{shown}: measured again, {'the same' if same else 'the same but for rounding'}",
            flush=True,
        )
    rating = output_of(config)
    if (rating / "metrics.json").exists():
        again = verify_rating(config, rating, device)
        if again is None:
            unhashed.append(rating.name)
        else:
            measured["evaluate"] = again
    else:
        print(f"{rating}: no rating is there")
    if unhashed:
        raise runs.UserError(
            f"{config.results} cannot be verified, for want of hashes, which were not always kept: {', '.join(unhashed)}; "
            "nothing else contradicts the records; run these again to have them."
        )
    print(f"verified: {config.results} is what it claims to be.")
    return measured


def verify_rating(config: Config, folder: Path, device: torch.device) -> dict[str, float] | None:
    """The numbers of a rating, measured again by the judges and on the digits that it names; None if it names none. Of
    these COLUMNS are returned; all are compared."""
    path, metrics = read_rating(folder)
    kept = [f"{name}/checkpoint.pt" for name in judges.KEPT]
    if not {*kept, f"data/{config.part}"} <= metrics["sha256"].keys():
        return None
    with runs.whole(path, "run evaluate.py"):
        said = {name: metrics["config"][name] for name in RATED_WITH}
        refuse_unlike(path, "what is rated", [said.pop(n) for n in ("name", "part")], [config.name, config.part])
        if config.second_thoughts:
            refuse_unlike(path, "--second-thoughts", said["second_thoughts"], config.second_thoughts)
        for stage, entry in load_stages(config).items():
            for name, value in entry.items():
                refuse_unlike(path, f"{name} of {stage}", metrics["stages"][stage][name], value)
        config = replace(config, **said)
        runs.refuse_impossible(config)
        settings = judge_settings(config, metrics["dataset"])
        now = runs.plain(settings)
        for key in runs.changed_settings(metrics["judge_settings"], now):
            refuse_unlike(path, f"{key} of the judges", metrics["judge_settings"].get(key), now.get(key))
    for name in judges.KEPT:
        kept_at = judges_folder(config) / name
        if not runs.complete(kept_at):
            raise runs.UserError(f"{kept_at} is not there, by which {path} rates; name the folder that has it by --judges.")
        made_with = runs.load_checkpoint(kept_at / "checkpoint.pt", name)["config"]
        for key in judges.changed_settings(name, made_with, settings):  # by which it would be trained again
            refuse_unlike(kept_at / "checkpoint.pt", key, made_with.get(key), now.get(key))
    here = {
        **runs.checkpoint_sha256(config.results, *rated_folders(config).values()),
        **runs.checkpoint_sha256(judges_folder(config), *judges.KEPT),
        **data.sha256(**{config.part: data.load_heard(metrics["dataset"], config.part, config.data_root, "cpu")}),
    }
    for name, digest in here.items():
        refuse_unlike(path, f"SHA-256 of {name}", metrics["sha256"].get(name), digest)
    rated = rate(config, device)
    refuse_unlike(path, "the residual judge", metrics["residual_judge"], rated.judge)
    again = dict(leaves(rated.numbers))
    reported = dict(leaves({name: metrics.get(name) for name in rated.numbers}))
    refuse_unlike(path, "what is told", sorted(reported.keys() - again.keys()), sorted(again.keys() - reported.keys()))
    with runs.whole(path, "run evaluate.py"):
        for name, value in again.items():
            if isinstance(value, str):
                refuse_unlike(path, name, reported[name], value)
            else:
                verify_number(folder, name, reported[name], value, len(rated.digits.labels))
    print(
        f"{folder}: hashes agree; judges_mean {rated.numbers['judges_mean']['accuracy']:.4f} and {len(again) - 1} more "
        f"numbers: measured again, {'the same' if again == reported else 'the same but for rounding'}"
    )
    return {name: get(rated.numbers) for name, (_, get) in COLUMNS.items()}


def leaves(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in dicts and lists, by their places: `judges.kernel.accuracy`."""
    if not isinstance(record, dict | list):
        yield name, record
        return
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        yield from leaves(value, f"{name}.{key}" if name else f"{key}")


def verify_record(folder: Path, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and checkpoint.pt of a complete run, which say the same as each other and as the log."""
    if not runs.complete(folder):
        raise runs.UserError(f"{folder} holds no complete run, so there is nothing to verify; run {runs.script_of(stage)}.")
    path = folder / "checkpoint.pt"
    metrics, checkpoint = runs.read_metrics(folder), runs.load_checkpoint(path, stage)
    log = read_log(folder / "log.jsonl")
    with runs.whole(folder / "metrics.json", f"run {runs.script_of(stage)}"):
        for name in ("stage", "seed", "epoch", "revision", "versions", "config"):
            refuse_unlike(path, name, checkpoint[name], metrics[name])
        for name, value in checkpoint["metrics"].items():
            refuse_unlike(path, name, value, metrics[name])
        refuse_unlike(path, "seed", metrics["config"]["seed"], metrics["seed"])
        for state in checkpoint["networks"].values():
            if not runs.finite(state):
                raise runs.UserError(f"{path} holds weights that are not finite; run {runs.script_of(stage)}.")
        epochs = metrics["config"].get("judge_epochs" if stage == "judge" else "epochs", len(log))
        refuse_unlike(folder / "log.jsonl", "number of epochs", len(log), epochs)
        refuse_unlike(folder / "log.jsonl", "seconds", round(sum(line["seconds"] for line in log), 3), metrics["seconds"])
        if "validation_loss" in log[0]:
            lowest = min(log, key=lambda line: line["validation_loss"])["epoch"]
            refuse_unlike(folder / "log.jsonl", "epoch of the lowest validation_loss", lowest, metrics["epoch"])
        if "validation_accuracy" in metrics:
            best = max(line["validation_accuracy"] for line in log)
            refuse_unlike(folder / "log.jsonl", "validation_accuracy", best, metrics["validation_accuracy"])
            there = log[metrics["epoch"] - 1]["validation_accuracy"]
            refuse_unlike(folder / "log.jsonl", f"accuracy of epoch {metrics['epoch']}", there, best)
    return metrics, checkpoint


def verify_files(config: Config, folder: Path, stage: str, metrics: dict[str, Any]) -> None:
    """The files that the run names by their hashes are those that are here."""
    files = {f"{name}/checkpoint.pt": config.results / name / "checkpoint.pt" for name in rated_folders(config).values()}
    files["checkpoint.pt"] = folder / "checkpoint.pt"
    for name, digest in (metrics.get("sha256") or {}).items():
        kind, _, part = name.partition("/")
        if kind == "data" and part in ("train", "validation", "test"):
            here = data.sha256(**{part: digits_of(config, stage, metrics["config"], part)})[name]
        elif files.get(name, folder).is_file():
            here = runs.file_sha256(files[name])
        else:
            raise runs.UserError(f"{folder}/metrics.json names {name[:200]!r}, which is not here; put it back.")
        refuse_unlike(folder / "metrics.json", f"SHA-256 of {name}", digest, here)


def digits_of(config: Config, stage: str, settings: dict[str, Any], part: str) -> data.Digits:
    if stage != "emnist_dcgan":
        return data.load_heard(settings["dataset"], part, config.data_root, "cpu")
    which = [settings[name] for name in ("split", "file", "digits_only")]
    return data.load_remembered(settings["dataset"], part, config.data_root, "cpu", *which)


def measure(config: Config, stage: str, checkpoint: dict[str, Any], device: torch.device) -> tuple[dict[str, float], int]:
    """The numbers that the stage reports, measured again by its own means, and of how many digits they are."""
    results, settings = config.results, checkpoint["config"]
    part = "validation" if stage == "emnist_dcgan" else "test"
    digits = data.Digits(*(tensor.to(device) for tensor in digits_of(config, stage, settings, part)))
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
    ear, network, generator, _ = train_all.load_model(results / config.name / "checkpoint.pt", device)
    kind = settings.get("distance", "absolute")  # older checkpoints have none
    imagined, distance = train_all.imagine(ear, network, generator, digits.images, kind)
    rating = train_all.rate(classifier, judge, digits, imagined)
    return {"test_accuracy": rating.pop("accuracy"), **rating, "sound_distance": distance}, count


def verify_number(folder: Path, name: str, reported: float, again: float, digits: int) -> None:
    """Refuse a number that is another now, measured on as many digits."""
    allowed = max(TOLERANCE, DIGITS / digits) * max(1.0, abs(again))
    if "per_digit" in name or "worst" in name:  # of a tenth of the digits
        allowed = 10 * allowed
    if isinstance(again, int):
        allowed = DIGITS
    if not abs(again - reported) <= allowed:
        raise runs.UserError(f"{folder}/metrics.json says {name} {reported:.4f}, but measured again it is {again:.4f}.")


def refuse_unlike(path: Path, what: str, one: Any, other: Any) -> None:
    if one != other:
        raise runs.UserError(
            f"{path} does not agree with what else is here: {what} is {str(one)[:200]}, elsewhere {str(other)[:200]}."
        )


if __name__ == "__main__":
    runs.command_line(Config, main, __doc__)
