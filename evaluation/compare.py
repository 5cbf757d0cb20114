"""The comparison of ratings, with mean and spread over seeds."""

import json
import statistics
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from common.files import (
    UserError,
    explain_malformed,
    file_sha256,
    read_json,
    write_file,
    write_json,
)
from common.locks import unlock_folder
from common.provenance import code_revision, package_versions
from evaluation.rating import move_older_aside, reserve_output
from evaluation.report import template
from training.run import NOT_HYPERPARAMETERS


def at(place: str) -> Callable[[dict], Any]:
    """A function that takes the number at `place` out of a rating, such as `ssim.mean`."""
    return lambda rating: reduce(lambda part, key: part[key], place.split("."), rating)


# Name -> title, and a function that takes the number out of a rating.
COLUMNS: dict[str, tuple[str, Callable[[dict], float]]] = {
    "classifier": ("right by the classifier of the training", at("classifier.accuracy")),
    "cnn": ("right by judge cnn", at("judges.cnn.accuracy")),
    "vit": ("right by judge vit", at("judges.vit.accuracy")),
    "kernel": ("right by judge kernel", at("judges.kernel.accuracy")),
    "judges_mean": ("right, mean of the three judges", at("judges_mean.accuracy")),
    "worst_class": ("right, the worst class by this mean", at("judges_mean.worst_class")),
    "frechet_distance": ("Frechet distance to real ones", at("realism.imagined.frechet_distance")),
    "precision": ("precision", at("realism.imagined.precision")),
    "recall": ("recall", at("realism.imagined.recall")),
    "ssim": ("SSIM with the heard image", at("ssim.mean")),
    "correlation": ("correlation with the heard image", at("correlation.mean")),
    "retrieval": ("retrieval", at("retrieval.overall.accuracy")),
    "retrieval_within_class": ("retrieval within the class", at("retrieval.within_class.accuracy")),
    "diversity": ("diversity within a class", at("diversity.mean")),
    "sound_classifier": ("for comparison: sounds, by stage one", at("sound_classifier.accuracy")),
}  # fmt: skip


def compare(folders: tuple[Path, ...], output: Path) -> dict[str, Any]:
    """Compare ratings: mean and sample standard deviation over the runs that differ in seeds only.

    Args:
        folders: each a run with a rating in it, or the folder of a rating.
        output: the folder to write into.

    Raises:
        UserError: if a rating is missing, malformed or of an older run, or two have the same
            settings and the same seeds.
    """
    groups: dict[str, dict[str, tuple[Path, dict]]] = {}  # settings -> seeds -> a rating
    for folder in folders:
        path, rating = read_rating(folder)
        require_fresh(path, rating)
        settings, seeds = (
            json.dumps(part(rating), sort_keys=True) for part in (settings_of, seeds_of)
        )
        group = groups.setdefault(settings, {})
        if seeds in group:
            raise UserError(
                f"{group[seeds][0]} and {path} rate the same settings and seeds; give each run "
                "once."
            )
        group[seeds] = path, rating
    differing = differing_settings([json.loads(settings) for settings in groups])
    rows = [
        make_row(list(group.values()), settings)
        for group, settings in zip(groups.values(), differing, strict=True)
    ]
    names = [row["name"] for row in rows]
    for row in rows:
        if names.count(row["name"]) > 1:
            folder = Path(row["ratings"][0]).parent
            row["name"] = f"{folder.parent if is_inside(folder) else folder}"
    made = {"revision": code_revision(), "versions": package_versions()}
    record = {"stage": "compare", "config": {}, "rows": rows, **made}
    titles = {name: title for name, (title, _) in COLUMNS.items()}
    table = template("comparison.md.j2").render(rows=rows, titles=titles)
    reserve_output(output, "compare")
    move_older_aside(output)
    write_file(output / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    write_json(output / "metrics.json", record)
    unlock_folder(output)
    print(f"{table}\n{output}/table.md, {output}/metrics.json")
    return record


def make_row(members: list[tuple[Path, dict]], settings: dict[str, Any]) -> dict[str, Any]:
    """The row of ratings that differ in seeds alone, each with its path; `settings` are those in
    which the rows differ."""
    ratings = [rating for _, rating in members]
    joint = [rating["stages"]["train_all"] for rating in ratings]
    seeds = [seeds_of(rating) for rating in ratings]
    return {
        "name": title_of(ratings),
        "settings": settings,
        "ratings": [str(path) for path, _ in members],
        "seeds": [stage["seed"] for stage in joint],
        "shared": [stage for stage in seeds[0] if len({one[stage] for one in seeds}) < len(seeds)],
        "images": ratings[0]["classifier"]["images"],
        "searched": ratings[0]["retrieval"]["overall"]["images"],
        "cnn_judges": sorted({str(rating["cnn_judge"]) for rating in ratings}),
        "machine": sorted({str(stage["machine"]) for stage in joint}),
        "revision": sorted({str(stage["revision"]) for stage in joint}),
        "columns": {
            name: spread([get(rating) for rating in ratings]) for name, (_, get) in COLUMNS.items()
        },
    }


def read_rating(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the rating in `folder`, or in `evaluation/` of the run `folder`; returns the path of its
    metrics.json, and what that says.

    Raises:
        UserError: if there is none, or it is malformed.
    """
    inside = folder / "evaluation" / "metrics.json"
    path = inside if inside.is_file() else folder / "metrics.json"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no rating, neither metrics.json nor evaluation/metrics.json; "
            "run evaluate.py on its run first."
        )
    hint = "run evaluate.py on its run again"
    rating = read_json(path, hint)
    with explain_malformed(path, hint):
        if rating["stage"] != "evaluate":
            raise UserError(
                f"{path} was written by {rating['stage']}.py; give a run that evaluate.py rated, "
                "or a rating."
            )
        numbers = [get(rating) for _, get in COLUMNS.values()]
        numbers += [*seeds_of(rating).values(), rating["config"]["refine_steps"]]
        if not all(isinstance(value, int | float) for value in numbers):
            raise ValueError("text stands where a number belongs")
        make_row([(path, rating)], settings_of(rating))
        dict(rating["sha256"])
    return path, rating


def is_inside(folder: Path) -> bool:
    """Whether the rating in `folder` lies inside a run of stage three."""
    return (folder.parent / "checkpoint.pt").is_file()


def require_fresh(path: Path, rating: dict[str, Any]) -> None:
    """Refuse a rating inside a run that is not the run which it rates.

    Raises:
        UserError: if the run was replaced.
    """
    checkpoint = path.parent.parent / "checkpoint.pt"
    hashed = rating["sha256"].get("train_all/checkpoint.pt")
    if is_inside(path.parent) and hashed != file_sha256(checkpoint):
        raise UserError(f"the rating in {path.parent} is of an older run; run evaluate.py again.")


def title_of(ratings: list[dict[str, Any]]) -> str:
    """The names of the runs, and how they were rated where that is not the default."""
    names = " ".join(dict.fromkeys(str(rating["config"]["name"]) for rating in ratings))
    refined = ", refined" if ratings[0]["config"]["refine_steps"] else ""
    part = ", validation part" if ratings[0]["config"]["part"] == "validation" else ""
    return f"{names}{refined}{part}"


def settings_of(rating: dict[str, Any]) -> dict[str, Any]:
    """Every setting of the run, its judges and its rating, without seeds, names and places."""
    configs = {stage: entry["config"] for stage, entry in rating["stages"].items()}
    configs["evaluate"] = {
        "part": rating["config"]["part"],
        "refine_steps": rating["config"]["refine_steps"],
        "images": rating["classifier"]["images"],
        "searched": rating["retrieval"]["overall"]["images"],
    }
    flat: dict[str, Any] = {}
    for stage, config in configs.items():
        for key, value in config.items():
            if key in (*NOT_HYPERPARAMETERS, "seed", "name"):
                continue
            if isinstance(value, dict):  # an encoding
                flat |= {f"{stage}.{key}.{field}": one for field, one in value.items()}
            else:
                flat[f"{stage}.{key}"] = value
    return flat


def seeds_of(rating: dict[str, Any]) -> dict[str, int]:
    """Stage -> its seed."""
    return {stage: entry["seed"] for stage, entry in rating["stages"].items()}


def differing_settings(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each, the settings in which not all of them agree."""
    keys = sorted({key for one in settings for key in one})
    unlike = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    return [{key: one.get(key) for key in unlike} for one in settings]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, and sample standard deviation; None for one value."""
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }
