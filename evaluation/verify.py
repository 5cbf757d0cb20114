"""The check of a run: are its files and its ratings those of its records?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import training_command
from common.files import UserError, explain_malformed, file_sha256
from data import Digits, Part, data_hashes, load_digits, load_gan_images
from evaluation.compare import read_rating
from evaluation.rating import input_hashes, rate_run, rated_folders
from training.run import read_metrics, require_complete

# How far a number may be off when it is computed again: TOLERANCE, absolute up to 1 and relative
# above; or as much as IMAGES of the images make, if that is more. The same machine gives the same
# number. Another machine rounds differently, and may take bfloat16 for float32.
TOLERANCE, IMAGES = 0.005, 10


def verify(
    run: Path, data_root: Path, device: torch.device, output: Path | None = None
) -> dict[str, Any]:
    """Check a run, the stages that it was made from, and its ratings; prints a line for each.

    Args:
        run: the folder of a complete run of stage three.
        data_root: the folder of the data sets.
        device: where the ratings are computed again.
        output: the folder of one rating. None: all ratings inside the run.

    Returns:
        The folder's name of each rating -> the numbers that were computed again.

    Raises:
        UserError: with the first mismatch.
    """
    folders = rated_folders(run)
    for stage in folders:
        verify_stage(stage, folders, data_root)
    found = sorted(path.parent for path in run.glob("evaluation*/metrics.json"))
    ratings = [output] if output else [f for f in found if not f.suffix[1:].isdigit()]
    measured = {folder.name: verify_rating(folder, run, data_root, device) for folder in ratings}
    if not ratings:
        print(f"{run}: no rating is there, so only hashes were compared")
    print(f"verified: {run} is what it claims to be.")
    return measured


def verify_stage(stage: str, folders: dict[str, Path], data_root: Path) -> None:
    """Compare the hashes in the record of a stage with the checkpoints and the data."""
    folder, record = folders[stage], folders[stage] / "metrics.json"
    hint = f"run {training_command(stage, folder.name)}"
    require_complete(folder, hint)
    metrics = read_metrics(folder, hint)
    with explain_malformed(record, hint):
        require_equal(record, "stage", metrics["stage"], stage)
        hashes, config = dict(metrics["sha256"]), metrics["config"]
        if not {"checkpoint.pt", "data/train"} <= hashes.keys():
            raise UserError(f"{record} lacks SHA-256 hashes; {hint} again.")
        for name, digest in hashes.items():
            kind, _, rest = name.partition("/")
            if kind == "data" and rest in ("train", "validation", "test"):
                here = data_hashes(**{rest: load_part(stage, config, rest, data_root)})[name]
            else:
                path = folders.get(kind, folder) / "checkpoint.pt"
                known = name == "checkpoint.pt" or (kind in folders and rest == "checkpoint.pt")
                if not known or not path.is_file():
                    raise UserError(
                        f"{record} names {name[:200]!r}, which is not here; {hint} again."
                    )
                here = file_sha256(path)
            require_equal(record, f"SHA-256 of {name}", digest, here)
        seed, epoch, revision = (metrics[key] for key in ("seed", "epoch", "revision"))
    print(f"{folder}: seed {seed}, epoch {epoch}, revision {revision}; hashes agree", flush=True)


def load_part(stage: str, config: dict[str, Any], part: Part, data_root: Path) -> Digits:
    """The images that a stage used."""
    if stage != "emnist_dcgan":
        return load_digits(config["dataset"], part, data_root, "cpu")
    which = [config[name] for name in ("split", "emnist_part", "digits_only")]
    return load_gan_images(config["dataset"], part, data_root, "cpu", *which)


def verify_rating(folder: Path, run: Path, data_root: Path, device: torch.device) -> dict[str, Any]:
    """Compute a rating again, and compare all of its numbers."""
    path, record = read_rating(folder)
    folders, hint = rated_folders(run), "run evaluate.py again"
    with explain_malformed(path, hint):
        part, steps, seed = (record["config"][key] for key in ("part", "refine_steps", "seed"))
        steps, seed = int(steps), int(seed)
        if not 0 <= steps < 10**6:
            raise ValueError("its refine_steps are impossible")
        digits = load_digits(record["dataset"], part, data_root, "cpu")
    for name, digest in input_hashes(folders, part, digits).items():
        if record["sha256"].get(name) != digest:
            raise UserError(
                f"the rating in {folder} is of an older run or other data, because {name} is "
                f"another now; {hint}."
            )
    numbers = rate_run(run, part, steps, seed, data_root, device).numbers
    again = dict(leaves(numbers))
    reported = dict(leaves({name: record.get(name) for name in numbers}))
    require_equal(path, "the list of numbers", sorted(reported.keys() ^ again.keys()), [])
    with explain_malformed(path, hint):
        for name, value in again.items():
            if not isinstance(value, str):  # the name of the judge for realism
                require_close(path, name, reported[name], value, len(digits.labels))
    same = "the same" if again == reported else "the same but for rounding"
    print(
        f"{folder}: hashes agree; judges_mean {numbers['judges_mean']['accuracy']:.4f} and "
        f"{len(again) - 1} more numbers: measured again, {same}"
    )
    return numbers


def leaves(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in dicts and lists, by their places: `judges.kernel.accuracy`."""
    if not isinstance(record, dict | list):
        yield name, record
        return
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        yield from leaves(value, f"{name}.{key}" if name else f"{key}")


def require_close(path: Path, name: str, reported: float, again: float, count: int) -> None:
    """Refuse a number that differs by more than rounding makes, measured on `count` images."""
    few = "per_class" in name or "worst" in name  # measured on about a tenth of the images
    allowed = (10 if few else 1) * max(TOLERANCE, IMAGES / count) * max(1.0, abs(again))
    if isinstance(again, int):
        allowed = IMAGES
    if not abs(again - reported) <= allowed:
        raise UserError(
            f"{path} says {name} {reported:.4f}, but measured again it is {again:.4f}; "
            "run evaluate.py again."
        )


def require_equal(path: Path, what: str, one: Any, other: Any) -> None:
    """Refuse `path` where it says `one` instead of `other`."""
    if one != other:
        raise UserError(
            f"{path} does not agree with what else is here: {what} is {str(one)[:200]}, not "
            f"{str(other)[:200]}; put back the other file, or run the stage again."
        )
