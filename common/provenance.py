"""Where a result comes from: package versions and the commit of the code."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def package_versions(*more: str) -> dict[str, str]:
    """Package -> its version, of Python, torch and torchvision, and of `more`."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", *more)},
    }


def code_revision() -> str | None:
    """The commit of this code, with `+` behind it if the code was changed since; None where
    the code has no git repository of its own."""
    root = Path(__file__).parent.parent
    # A variable such as GIT_DIR would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None  # the code lies inside another repository
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
