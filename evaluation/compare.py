"""Several ratings side by side, mean and spread over seeds: what `evaluate.py --compare` says."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import UserError, file_sha256, read_json, write_file
from common.locks import lock_folder, unlock_folder
from common.provenance import code_revision, package_versions
from training.run import NOT_HYPERPARAMETERS, config_to_dict, is_complete, require_same_script

COLUMNS: dict[str, tuple[str, Callable[[dict], float]]] = {
    "classifier": (
        "read right by the classifier that was to be pleased",
        lambda m: m["classifier"]["accuracy"],
    ),
    "residual": ("read right by the residual judge", lambda m: m["judges"]["residual"]["accuracy"]),
    "transformer": (
        "read right by the transformer",
        lambda m: m["judges"]["transformer"]["accuracy"],
    ),
    "kernel": ("read right by the kernel classifier", lambda m: m["judges"]["kernel"]["accuracy"]),
    "judges_mean": ("the same, mean of the three judges", lambda m: m["judges_mean"]["accuracy"]),
    "worst_digit": (
        "the same, the digit that fares worst",
        lambda m: m["judges_mean"]["worst_digit"],
    ),
    "frechet_distance": (
        "Frechet distance to real digits",
        lambda m: m["realism"]["imagined"]["frechet_distance"],
    ),
    "precision": ("precision", lambda m: m["realism"]["imagined"]["precision"]),
    "recall": ("recall", lambda m: m["realism"]["imagined"]["recall"]),
    "ssim": ("SSIM with the heard image", lambda m: m["ssim"]["mean"]),
    "correlation": ("correlation with the heard image", lambda m: m["correlation"]["mean"]),
    "retrieval": ("retrieval", lambda m: m["retrieval"]["overall"]["accuracy"]),
    "retrieval_within_class": (
        "retrieval within the class",
        lambda m: m["retrieval"]["within_class"]["accuracy"],
    ),
    "diversity": ("diversity within a class", lambda m: m["diversity"]["mean"]),
    "sound_classifier": (
        "for comparison: sounds told apart by stage one",
        lambda m: m["sound_classifier"]["accuracy"],
    ),
}


def compare(folders: tuple[Path, ...], output: Path) -> dict[str, Any]:
    """Set ratings side by side: mean and sample standard deviation over the runs that differ in
    seeds only.

    Raises:
        UserError: if a rating is missing, unreadable or foreign, or two have the same settings and
            the same seeds.
    """
    groups: dict[str, list[tuple[Path, dict]]] = {}
    for folder in folders:
        path, metrics = read_rating(folder)
        name = f"{metrics['config']['name']}/checkpoint.pt"
        rated = path.parent.parent / name
        here = metrics["config"].get("output") is None and rated.is_file()
        if here and file_sha256(rated) != metrics["sha256"].get(name):
            raise UserError(
                f"{path} is of another run than {rated.parent} holds now; run evaluate.py on it again."
            )
        groups.setdefault(json.dumps(settings_of(metrics), sort_keys=True), []).append(
            (path, metrics)
        )
    differing = differing_settings([json.loads(key) for key in groups])
    names = [
        " ".join(dict.fromkeys(title_of(metrics) for _, metrics in members))
        for members in groups.values()
    ]
    rows = []
    for column, (members, differs) in enumerate(zip(groups.values(), differing, strict=True)):
        seeds = [seeds_of(metrics) for _, metrics in members]
        for position, one in enumerate(seeds):
            if one in seeds[:position]:
                first, again = members[seeds.index(one)][0], members[position][0]
                raise UserError(
                    f"{first} and {again} rate the same settings and seeds; give each run once."
                )
        rows.append(
            {
                "name": names[column]
                + (f" ({column + 1})" if names.count(names[column]) > 1 else ""),
                "settings": differs,  # those in which the rows are not all alike
                "ratings": [str(path) for path, _ in members],
                "seeds": [metrics["stages"]["train_all"]["seed"] for _, metrics in members],
                "shared": [
                    stage for stage in seeds[0] if len({one[stage] for one in seeds}) < len(seeds)
                ],
                "digits": members[0][1]["classifier"]["images"],
                "searched": members[0][1]["retrieval"]["overall"]["images"],
                "residual_judges": sorted(
                    {str(metrics["residual_judge"]) for _, metrics in members}
                ),
                **{  # of stage three
                    what: sorted(
                        {str(metrics["stages"]["train_all"][what]) for _, metrics in members}
                    )
                    for what in ("machine", "revision")
                },
                "columns": {
                    name: spread([get(metrics) for _, metrics in members])
                    for name, (_, get) in COLUMNS.items()
                },
            }
        )
    record = {
        "stage": "compare",
        "rows": rows,
        "revision": code_revision(),
        "versions": package_versions(),
    }
    table = comparison_table(rows)
    lock_folder(output)
    if is_complete(output):
        require_same_script(output, "compare")
    write_file(output / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    write_file(
        output / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n")
    )
    unlock_folder(output)
    print(f"{table}\n{output}/table.md, {output}/metrics.json")
    return record


def read_rating(
    folder: Path, hint: str = "run evaluate.py on its run again"
) -> tuple[Path, dict[str, Any]]:
    """The metrics.json of a rating, and where it was: in `folder`, or in `evaluation/` of the
    results folder `folder`."""
    path = (
        folder / "metrics.json"
        if (folder / "metrics.json").exists()
        else folder / "evaluation" / "metrics.json"
    )
    if not path.is_file():
        raise UserError(
            f"{folder} holds no rating, neither metrics.json nor evaluation/metrics.json; run evaluate.py on its run first."
        )
    metrics = read_json(path, hint)
    try:
        if metrics["stage"] != "evaluate":
            raise UserError(
                f"{path} was written by {metrics['stage']}.py; give a folder that evaluate.py wrote."
            )
        settings_of(metrics), seeds_of(metrics), metrics["config"]["name"], dict(metrics["sha256"])
        metrics["ssim"]["white"], metrics["residual_judge"]  # which older ones lack
        metrics["stages"]["train_all"]["machine"], metrics["stages"]["train_all"]["revision"]
        [float(get(metrics)) for _, get in COLUMNS.values()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is no rating of this version ({error!r}); {hint}.") from error
    return path, metrics


def title_of(metrics: dict[str, Any]) -> str:
    """The name of the run, and how it was rated where that is not the custom."""
    config = metrics["config"]
    how = {
        "second thoughts": config["refine_steps"],
        "validation part": config["part"] == "validation",
    }
    return ", ".join([config["name"], *(said for said, so in how.items() if so)])


def settings_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Everything that the run and its judges were made with, but for seeds, names and places. A
    setting that an older run did not know yet has its default, by which, as is the custom here,
    nothing changed."""
    scripts = {
        script.__name__: script
        for script in (train_vggish, mnist_classify_train, emnist_dcgan, train_all)
    }
    scripts["judge"] = mnist_classify_train
    configs = {
        stage: {**config_to_dict(scripts[stage].Config()), **entry["config"]}
        for stage, entry in metrics["stages"].items()
    }
    configs["judges"] = metrics["judge_settings"]
    configs["evaluate"] = {key: metrics["config"][key] for key in ("part", "refine_steps")}
    configs["evaluate"] |= {
        "digits": metrics["classifier"]["images"],
        "searched": metrics["retrieval"]["overall"]["images"],
    }
    left_out = {*NOT_HYPERPARAMETERS, "seed", "name"}
    flat = {
        f"{stage}.{key}": value
        for stage, c in configs.items()
        for key, value in c.items()
        if key not in left_out
    }
    encodings = {key: flat.pop(key) for key, value in list(flat.items()) if isinstance(value, dict)}
    return flat | {
        f"{key}.{field}": value
        for key, encoding in encodings.items()
        for field, value in encoding.items()
    }


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
        return f"{column['mean']:.4f}" + (
            "" if column["spread"] is None else f" ± {column['spread']:.4f}"
        )

    lines = [["", *(row["name"] for row in rows)], ["---"] * (len(rows) + 1)]
    lines.append(["seeds", *(", ".join(map(str, row["seeds"])) for row in rows)])
    lines.append(["digits heard", *(str(row["digits"]) for row in rows)])
    for name, (title, _) in COLUMNS.items():
        lines.append([title, *(shown(row["columns"][name]) for row in rows)])
        if name == "retrieval":
            lines[-1] = [
                "retrieval, among",
                *(f"{row['searched']}: {shown(row['columns'][name])}" for row in rows),
            ]
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
        table += (
            f"{row['name']}: {settings or 'the same settings in all'}.\n" if len(rows) > 1 else ""
        )
    return table
