"""The files of answers: one row for each trial, from the page, from the machine, or simulated."""

import csv
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.files import MAX_RECORD, UserError, write_file
from listening.experiment import Experiment, Stimulus

COLUMNS = (
    "participant", "source", "trial", "block", "phase", "encoding", "dataset", "index", "sha256",
    "class", "choice", "correct", "response_ms", "replays", "page_version", "check",
)  # fmt: skip
SOURCES = {
    "person": "people",
    "machine": "machine participants",
    "simulated": "simulated participants",
}
AS_SAVED = "give the file as it was saved"


def row_check(before: str, fields: Iterable[str]) -> str:
    """The check of a row: CRC-32 of the check of the row before, and of its fields. It finds what
    was changed, removed or moved by mistake, not on purpose."""
    return f"{zlib.crc32(chr(9).join((before, *fields)).encode()):08x}"


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_answers(
    path: Path,
    experiment: Experiment,
    source: str,
    participant: int,
    choose: Callable[[Stimulus], int],
) -> None:
    """Write a file of answers, as the page does.

    Args:
        path: of the file.
        experiment: the listening test.
        source: who answers, a key of `SOURCES`.
        participant: number of the participant.
        choose: stimulus -> the label that the participant chooses.
    """
    order = [
        (block, one)
        for block, name in enumerate(experiment.conditions, 1)
        for phase in ("practice", "test")
        for one in experiment.select(phase, name)
    ]
    rows: list[list[str]] = []
    for trial, (block, one) in enumerate(order, 1):
        choice = choose(one)
        values = (
            participant, source, trial, block, one.phase, one.encoding, experiment.dataset,
            one.index, one.sha256, experiment.classes[one.label], experiment.classes[choice],
            int(choice == one.label), 0, 0, experiment.version,
        )  # fmt: skip
        fields = [str(value) for value in values]
        rows.append([*fields, row_check(rows[-1][-1] if rows else "", fields)])
    text = csv_text([COLUMNS, *rows])
    write_file(path, lambda beside: beside.write_text(text, encoding="utf-8", newline=""))


def read_all_answers(paths: Iterable[Path], experiment: Experiment) -> list[dict[str, Any]]:
    """Read and check the files of all participants; returns their rows.

    Raises:
        UserError: with the first thing that is wrong. Nothing is left out.
    """
    rows: list[dict[str, Any]] = []
    files: dict[int, Path] = {}
    for path in paths:
        own = read_answers(path, experiment)
        participant, source = own[0]["participant"], own[0]["source"]
        if participant in files:
            raise UserError(
                f"{files[participant]} and {path} are both of participant {participant}; give one "
                "of them."
            )
        if rows and source != rows[0]["source"]:
            raise UserError(
                f"{path} is of {SOURCES[source]}, but {next(iter(files.values()))} is of "
                f"{SOURCES[rows[0]['source']]}; score them one after the other."
            )
        files[participant] = path
        rows += own
    return rows


def read_answers(path: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """Read and check the answers of one participant.

    Raises:
        UserError: if the file is unreadable, of another experiment, changed, or not complete.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_RECORD)
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is missing or unreadable; give a file of answers.") from error
    if len(lines) < 2 or tuple(lines[0]) != COLUMNS:
        raise UserError(f"{path} holds no answers of a listening test; {AS_SAVED}.")
    wanted = {
        (one.encoding, str(one.index), one.phase, one.sha256): one for one in experiment.stimuli
    }
    counts: Counter = Counter()
    rows, before = [], ""
    for number, line in enumerate(lines[1:], 2):
        row: dict[str, Any] = dict(zip(COLUMNS, line, strict=False))
        where = f"line {number} of {path}"
        if row.get("page_version", experiment.version) != experiment.version:
            raise UserError(
                f"{path} is of another experiment (page {row['page_version']}, not "
                f"{experiment.version}); name the folder of its page with --output."
            )
        if len(line) != len(COLUMNS) or line[-1] != row_check(before, line[:-1]):
            raise UserError(f"{where} was changed, or a line before it is missing; {AS_SAVED}.")
        stimulus = wanted.get((row["encoding"], row["index"], row["phase"], row["sha256"]))
        if stimulus is None:
            raise UserError(f"{where} names a sound that the page does not have; {AS_SAVED}.")
        counts[stimulus] += 1
        right = experiment.classes[stimulus.label]
        numbers = ("participant", "trial", "block", "correct", "response_ms", "replays")
        is_consistent = (
            all(row[name].isascii() and row[name].isdigit() for name in numbers)
            and row["participant"] == lines[1][0]
            and row["source"] == lines[1][1]
            and row["source"] in SOURCES
            and row["dataset"] == experiment.dataset
            and row["class"] == right
            and row["choice"] in experiment.classes
            and row["correct"] == str(int(row["choice"] == right))
            and int(row["trial"]) == number - 1
        )
        if counts[stimulus] > 1 or not is_consistent:
            raise UserError(f"{where} contradicts the experiment or another line; {AS_SAVED}.")
        before = line[-1]
        rows.append(row | {name: int(row[name]) for name in (*numbers, "index")})
    if len(rows) < len(experiment.stimuli):
        raise UserError(
            f"{path} holds {len(rows)} of {len(experiment.stimuli)} trials; let the participant "
            "finish, or leave the file out and say so."
        )
    return rows
