"""Atomic writes, and safe reading of untrusted files.

A killed process may leave files named `.unfinished-*`; they are removed when the folder is locked
again. To read a checkpoint takes at most twice its size in memory, and its size is at most
MAX_FILE."""

import hashlib
import itertools
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_FILE = 4 * 1024**3  # bytes of a checkpoint; the largest, of stage three, takes 1.2 GB
MAX_RECORD = 16 * 1024**2  # bytes of metrics.json or log.jsonl
MAX_VALUES = 100_000  # in a checkpoint, beside the numbers in its tensors
MAX_DEPTH = 12  # of lists and dicts in one another
UNFINISHED = ".unfinished-"  # how the name of a file begins until it is whole


class UserError(Exception):
    """A user's mistake, in one sentence that says what is wrong, where, and what to do."""


def save_tensors(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, as `write_file` does."""

    def writer(beside: Path) -> None:
        try:
            torch.save(checkpoint, beside)
        except RuntimeError as error:  # as which a full disk arrives, in several wordings
            raise OSError(f"{error}".splitlines()[0]) from error

    write_file(path, writer)


def write_file(path: Path, writer: Callable[[Path], Any]) -> None:
    """Have `writer` write a file beside `path`, with the same suffix, then move it there; it is on
    the disk before it takes the place of another, so it also survives a power failure."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Libraries stumble over names that are no UTF-8.
        stem = path.stem if path.stem.isascii() else ""
        beside = path.with_name(f"{UNFINISHED}{stem[:100]}-{secrets.token_hex(4)}{path.suffix}")
        try:
            beside.touch(exist_ok=False)  # by Python, which says why it cannot
            writer(beside)
            _sync(beside)
            os.replace(beside, path)
            _sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as `write_file` does."""
    text = json.dumps(value, indent=1) + "\n"
    write_file(path, lambda beside: beside.write_text(text))


def _sync(path: Path | str) -> None:
    if os.name == "nt":  # where neither a folder nor a file opened for reading can be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise what the operating system refuses inside as a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}); free or unlock the folder, or name another place."
        ) from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written before hours of work, not after."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=UNFINISHED):
            pass


def move_aside(folder: Path) -> Path:
    """Move `folder` to the first free name of `<folder>.1`, `<folder>.2`, ... and return it. Where
    `folder` is a link, its target is moved, and the link goes on to name the target's old place."""
    folder = folder.resolve()
    names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    os.replace(folder, aside)
    return aside


def remove_unfinished(folder: Path) -> None:
    """Remove the half-written files that a killed process left in `folder`."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        leftover.unlink(missing_ok=True)


def folder_megabytes(folder: Path) -> float:
    """How much disk the files in `folder` take, in megabytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def read_json(path: Path, hint: str, lines: bool = False) -> Any:
    """A JSON file of at most MAX_RECORD bytes, or, of one value a line, the list of them.

    Raises:
        UserError: if it is missing, no regular file, damaged or larger, or holds an integer of more
            than 18 digits.
    """
    try:
        # To open a FIFO would wait for ever.
        if not path.is_file() or path.stat().st_size > MAX_RECORD:
            raise ValueError("it is missing or too large")
        text = path.read_text(encoding="utf-8")
        parts = text.splitlines() if lines else [text]
        values = [json.loads(part, parse_int=_short_int) for part in parts]
        return values if lines else values[0]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged; {hint}.") from error


def _short_int(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError("an integer has too many digits")
    return int(digits)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(path: Path, hint: str) -> dict[str, Any]:
    """Load a dict of tensors and plain values from `path`; nothing in it is ever executed.

    Raises:
        UserError: if it is missing, damaged, larger than MAX_FILE, or holds more than it has bytes
            for, with `hint` as the way out.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {hint}.")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise UserError(f"{path} has {size / 1e9:.1f} GB, more than any checkpoint; {hint}.")
    try:
        with open(path, "rb") as file:
            mapped = file.read(4) == b"PK\3\4"  # not before torch 1.6, as AudioSet's weights are
        # Mapped, so that nothing is unpacked, and no tensor grows beyond what the file holds.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises any of a dozen types
        raise UserError(f"{path} is damaged or no checkpoint; {hint}.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is no checkpoint; {hint}.")
    with explain_malformed(path, hint):
        return _plain_values(loaded, {"values": MAX_VALUES, "bytes": size})


def _plain_values(value: Any, left: dict[str, int], depth: int = 0) -> Any:
    """`value`, if it is made of plain values and dense tensors of no more bytes than are `left`;
    the tensors are copied out of the file."""
    left["values"] -= 1
    if left["values"] < 0 or depth > MAX_DEPTH:
        raise ValueError("it holds too many values")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError("it holds a tensor that is not dense")
        left["bytes"] -= value.nbytes
        if left["bytes"] < 0:
            raise ValueError("its tensors are larger than the file")
        return value.detach().clone(memory_format=torch.preserve_format)
    if isinstance(value, dict):
        for key in value:
            _plain_values(key, left, MAX_DEPTH)
            value[key] = _plain_values(value[key], left, depth + 1)
        return value
    if isinstance(value, list | tuple):
        return type(value)(_plain_values(item, left, depth + 1) for item in value)
    short = isinstance(value, int) and value.bit_length() < 64
    if not short and not isinstance(value, str | float | None):
        raise ValueError(f"it holds what no checkpoint does ({type(value).__name__})")
    return value


@contextmanager
def explain_malformed(path: Path, hint: str) -> Iterator[None]:
    """Raise a UserError if something inside fails because `path` lacks what it should hold, or
    holds another thing."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{error}".split())[:200].rstrip(".")
        reason = f"no {reason}" if isinstance(error, LookupError) else reason
        raise UserError(f"{path} is no whole checkpoint ({reason}); {hint}.") from error
