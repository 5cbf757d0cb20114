"""Files that are never half-written, folders that one process holds, and nothing believed unchecked.

Every file is written beside its place and then moved there. What a killed process left of one, `.unfinished-*`, is removed
when the folder is next held. What is read is not trusted: a file is refused in words, or is what it should be. Reading a
checkpoint takes no more memory than twice its size, which is at most MAX_FILE.
"""

import atexit
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import processes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAX_FILE = 4 * 1024**3  # bytes of a checkpoint; the largest of our own, of stage three at the published widths, takes 1.2 GB
MAX_RECORD = 16 * 1024**2  # bytes of metrics.json or log.jsonl
MAX_VALUES = 100_000  # in a checkpoint, beside the numbers in its tensors
MAX_DEPTH = 12  # of lists and dicts in one another
UNFINISHED = ".unfinished-"  # how the name of a file begins until it is whole


class UserError(Exception):
    """A user's mistake. Its message is one sentence that says what is wrong, where, and what mends it."""


class Held(UserError):  # noqa: N818
    """Another process writes into the folder."""


# -- writing -----------------------------------------------------------------------------------------------------------


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, as `write` does."""

    def writer(beside: Path) -> None:
        try:
            torch.save(checkpoint, beside)
        except RuntimeError as error:  # as which a full disk arrives, in several wordings
            raise OSError(f"{error}".splitlines()[0]) from error

    write(path, writer)


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Have `writer` write a file beside `path`, with the same suffix, then move it there; it is on the disk before it takes
    the place of another, should the power fail. Of several processes, process 0 does."""
    if processes.rank():
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stem = path.stem if path.stem.isascii() else ""  # libraries stumble over names that are no UTF-8
        beside = path.with_name(f"{UNFINISHED}{stem[:100]}-{secrets.token_hex(4)}{path.suffix}")
        try:
            beside.touch(exist_ok=False)  # by Python, which says why it cannot
            writer(beside)
            _sync(beside)
            os.replace(beside, path)
            _sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def _sync(path: Path | str) -> None:
    if os.name == "nt":  # where neither a folder nor a file opened for reading can be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in words that `path` cannot be written.

    Raises:
        UserError: where the operating system refuses something inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); free or unlock the folder, or name another place.") from error


def probe(folder: Path) -> None:
    """Refuse a folder that cannot be written before hours of work, not after."""
    if processes.rank():
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=UNFINISHED):
            pass


def keep_aside(folder: Path, aside: Path) -> None:
    """Move `folder` to `aside`; what was there is gone only when the move was made. `_sweep` mends what a kill left."""
    doomed = aside.with_name(f".{aside.name}.doomed")
    if aside.exists():
        os.replace(aside, doomed)
    os.replace(folder, aside)
    shutil.rmtree(doomed, ignore_errors=True)


# -- holding a folder --------------------------------------------------------------------------------------------------

_held: dict[tuple[int, Path], int] = {}  # process and lock file -> its descriptor; a forked child holds nothing


def hold(folder: Path) -> None:
    """Keep other processes out of `folder` until `release`, or until this process ends, however it ends: the lock is the
    operating system's, on a file beside the folder, so none is left over. Twice in one process is as good as once. What a
    killed process left unfinished there is removed.

    Raises:
        Held: if another process holds it; the sentence says who, and since when.
    """
    if processes.rank():  # process 0 holds it for all
        return
    lock = _lock_of(folder)
    while (os.getpid(), lock) not in _held:
        with writing(Path(folder)):
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.read(descriptor, 1000).decode(errors="replace") or "another process"  # which has not written yet
            os.close(descriptor)
            raise Held(f"{folder} is in use by {who}; wait until it ends, or give another --results or --name.") from error
        except OSError as error:  # some network file systems
            os.close(descriptor)
            lock.unlink(missing_ok=True)
            print(f"{folder} cannot be held ({error}); let no other run write into it.", file=sys.stderr)
            return
        if not _is_same_file(descriptor, lock):  # its holder removed it after we opened it
            os.close(descriptor)
            continue
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        _held[os.getpid(), lock] = descriptor
        with writing(Path(folder)):
            _sweep(Path(folder))


def still_held(folder: Path) -> bool:
    """Whether the lock that `hold` took is where it was; also where there are no locks."""
    lock = _lock_of(folder)
    descriptor = _held.get((os.getpid(), lock))
    return descriptor is None or _is_same_file(descriptor, lock)


def release(folder: Path) -> None:
    """Let other processes into `folder` again."""
    _release(os.getpid(), _lock_of(folder))


def _release(process: int, lock: Path) -> None:
    descriptor = _held.pop((process, lock), None)
    if descriptor is not None:
        if process == os.getpid() and _is_same_file(descriptor, lock):
            lock.unlink()  # still locked, so that nobody else's is meant
        os.close(descriptor)


@atexit.register
def _release_all() -> None:
    for process, lock in list(_held):
        _release(process, lock)


def _lock_of(folder: Path) -> Path:
    folder = Path(folder).resolve()
    return folder.with_name(f".{folder.name}.lock")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what a killed process left unfinished of `folder`."""
    for suffix in (".before", ".stopped"):
        aside = folder.with_name(folder.name + suffix)
        doomed = aside.with_name(f".{aside.name}.doomed")
        if doomed.exists() and not aside.exists():
            os.replace(doomed, aside)
        shutil.rmtree(doomed, ignore_errors=True)
    beside = folder.parent.glob(f"{UNFINISHED}{glob.escape(folder.name)}-????????.*")  # such as the picture of stage three
    for leftover in (*folder.glob(f"{UNFINISHED}*"), *beside):
        leftover.unlink(missing_ok=True)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_json(path: Path, mend: str, lines: bool = False) -> Any:
    """A JSON file of at most MAX_RECORD bytes, or, of one value a line, the list of them.

    Raises:
        UserError: if it is missing, damaged or larger.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_RECORD + 1)
        if len(content) > MAX_RECORD:
            raise ValueError("it is too large")
        text = content.decode("utf-8")
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged; {mend}.") from error


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_file(path: Path, mend: str) -> dict[str, Any]:
    """Load a dict of tensors and plain values from `path`; nothing in it is ever executed.

    Raises:
        UserError: if it is missing, damaged, larger than MAX_FILE, or holds more than it has bytes for, with `mend` as the
            way out.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing; {mend}.")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise UserError(f"{path} has {size / 1e9:.1f} GB, more than any checkpoint; {mend}.")
    try:
        with open(path, "rb") as file:
            mapped = file.read(4) == b"PK\3\4"  # else torch's format of before 1.6, as of the released AudioSet weights
        # Mapped, so that nothing is unpacked, and no tensor grows beyond what the file holds.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises any of a dozen types
        raise UserError(f"{path} is damaged or no checkpoint; {mend}.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is no checkpoint; {mend}.")
    with whole(path, mend):
        return _plain_only(loaded, {"values": MAX_VALUES, "bytes": size})


def _plain_only(value: Any, left: dict[str, int], depth: int = 0) -> Any:
    """`value`, if it is made of plain values and dense tensors of no more bytes than are `left`; the tensors are copied
    out of the file."""
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
            _plain_only(key, left, MAX_DEPTH)
            value[key] = _plain_only(value[key], left, depth + 1)
        return value
    if isinstance(value, list | tuple):
        return type(value)(_plain_only(item, left, depth + 1) for item in value)
    if not (value is None or isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() < 64)):
        raise ValueError(f"it holds what no checkpoint does ({type(value).__name__})")
    return value


@contextmanager
def whole(path: Path, mend: str) -> Iterator[None]:
    """Say in words that `path` lacks something, or holds another thing than it should.

    Raises:
        UserError: where an error of the kinds that this leads to is raised inside.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{error}".split())[:200].rstrip(".")
        reason = f"no {reason}" if isinstance(error, LookupError) else reason
        raise UserError(f"{path} is no whole checkpoint ({reason}); {mend}.") from error
