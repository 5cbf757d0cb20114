"""Folder locks: only one process may write into a folder."""

import atexit
import errno
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from common.files import UserError, explain_write_errors, remove_unfinished


class FolderLocked(UserError):  # noqa: N818
    """Another process writes into the folder."""


# what a file system without locks answers
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
# process and lock file -> its lock; a forked child holds none
_locks: dict[tuple[int, Path], FileLock] = {}


def lock_folder(folder: Path) -> None:
    """Keep other processes out of `folder` until `unlock_folder` is called, or until this process
    ends.

    The lock is the operating system's, on a file beside the folder, so a killed process leaves no
    lock. To lock a folder twice in one process is the same as to lock it once. Half-written files
    of a killed process are removed.

    Raises:
        FolderLocked: if another process has locked it; the sentence says who, and since when.
        UserError: if the file system has no locks, or the lock file is a link or no regular file.
    """
    for path in _lock_paths(folder):
        if (os.getpid(), path) in _locks:
            continue
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        with explain_write_errors(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise UserError(
                    f"{path} is no regular file, so {folder} cannot be locked; remove it."
                )
            try:
                lock.acquire()
            except Timeout as error:
                who = path.read_text(errors="replace")[:200] or "another process"
                raise FolderLocked(
                    f"{folder} is in use by {who}; wait until it ends, or give another --results "
                    "or --name."
                ) from error
            except (OSError, NotImplementedError) as error:
                if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                    raise
                raise UserError(
                    f"{folder} cannot be locked ({error}), so two runs could overwrite each other; "
                    "give a --results folder on another file system."
                ) from error
            _write_owner(path)
        _locks[os.getpid(), path] = lock
    with explain_write_errors(folder):
        remove_unfinished(folder)


def _write_owner(path: Path) -> None:
    """Write who holds the lock into the lock file. A file that has a second name is another's."""
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "w") as file:
        if os.fstat(descriptor).st_nlink > 1:
            raise UserError(f"{path} is also another file, by a hard link; remove it.")
        file.truncate()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")


def still_locked(folder: Path) -> bool:
    """Whether this process still holds the locks of `folder`, also if it is a link that was changed
    since."""
    paths = _lock_paths(folder)
    return all((os.getpid(), path) in _locks and path.is_file() for path in paths)


def unlock_folder(folder: Path) -> None:
    """Let other processes into `folder` again."""
    _unlock(_lock_paths(folder))


def _lock_paths(folder: Path) -> list[Path]:
    """The lock file beside the folder and, where the folder is a link, also the one beside its
    target."""
    beside = Path(folder).parent.resolve() / Path(folder).name
    places = dict.fromkeys((beside, beside.resolve()))
    return [place.with_name(f".{place.name}.lock") for place in places]


@atexit.register
def _unlock(paths: Iterable[Path] | None = None) -> None:
    """Unlock these lock files; if None, all that this process holds."""
    held = [path for process, path in _locks if process == os.getpid()]
    for path in held if paths is None else paths:
        if lock := _locks.pop((os.getpid(), path), None):
            path.unlink(missing_ok=True)  # while it is still locked
            lock.release()
