"""The files of answers: one row for each trial, from the page, from the machine, or simulated."""

import csv
import io
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.files import UserError, write_file
from listening.experiment import Experiment, Stimulus

COLUMNS = (
    "participant", "source", "trial", "block", "phase", "encoding", "dataset", "index", "sha256",
    "class", "choice", "correct", "response_ms", "replays", "page_version", "check",
)  # fmt: skip
NUMBERS = ("participant", "trial", "block", "index", "correct", "response_ms", "replays")
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


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as a CSV file."""

    def writer(beside: Path) -> None:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_file(path, writer)


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
    rows, check = [], ""
    blocks = list(experiment.conditions)
    for trial, one in enumerate(experiment.stimuli, 1):
        choice = choose(one)
        values = (
            participant, source, trial, blocks.index(one.encoding) + 1, one.phase, one.encoding,
            experiment.dataset, one.index, one.sha256, experiment.classes[one.label],
            experiment.classes[choice], int(choice == one.label), 0, 0, experiment.version,
        )  # fmt: skip
        check = row_check(check, map(str, values))
        rows.append((*values, check))
    write_rows(path, [COLUMNS, *rows])


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
        text = path.read_text(encoding="utf-8-sig")
        heads, *lines = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is missing or unreadable; give a file of answers.") from error
    if tuple(heads) != COLUMNS or not lines:
        raise UserError(f"{path} holds no answers of a listening test; {AS_SAVED}.")
    expected = {(one.encoding, str(one.index), one.phase, one.sha256) for one in experiment.stimuli}
    rows, check = [], ""
    for number, line in enumerate(lines, 2):
        row: dict[str, Any] = dict(zip(COLUMNS, line, strict=False))
        where = f"line {number} of {path}"
        if row.get("page_version", experiment.version) != experiment.version:
            raise UserError(
                f"{path} is of another experiment (page {row['page_version']}, not "
                f"{experiment.version}); name the folder of its page with --output."
            )
        if len(line) != len(COLUMNS) or line[-1] != row_check(check, line[:-1]):
            raise UserError(f"{where} was changed, or a line before it is missing; {AS_SAVED}.")
        check = line[-1]
        stimulus = (row["encoding"], row["index"], row["phase"], row["sha256"])
        is_number = all(row[name].isdecimal() for name in NUMBERS)
        is_known = row["choice"] in experiment.classes and row["source"] in SOURCES
        if stimulus not in expected or not (is_known and is_number):
            raise UserError(
                f"{where} names a sound or a class that the page does not have, or a sound for the "
                f"second time, or is damaged; {AS_SAVED}."
            )
        expected.remove(stimulus)
        rows.append(row | {name: int(row[name]) for name in NUMBERS})
    if expected:
        raise UserError(
            f"{path} holds {len(rows)} of {len(experiment.stimuli)} trials; let the participant "
            "finish, or leave the file out and say so."
        )
    return rows
