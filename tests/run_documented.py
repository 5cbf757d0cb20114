"""Run the Python commands of the pages, as they are written there, with tiny settings.

    python tests/run_documented.py FOLDER README.md docs/*.md

FOLDER becomes the working directory. The command line is parsed as a user's; then data sets that
need no download take the place of MNIST and EMNIST, and large numbers become small ones.
"""

import dataclasses
import glob
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
TINY = {
    "epochs": 1, "joint_epochs": 1, "images_per_epoch": 96, "batch": 32, "width": 4,
    "cnn_epochs": 1, "vit_epochs": 1, "kernel_centres": 50, "device": "cpu",
}  # fmt: skip
NO_DOWNLOAD = {"mnist": "handwritten", "emnist": "printed"}
# Commands that are not run here, and where they are tested.
ELSEWHERE = {
    "compare_encodings.py": "tests/test_compare_encodings.py",
    "--controls": "tests/test_controls.py",
    "listening_test.py": "tests/test_listening_test.py",
    "app.py": "tests/test_app.py",
    "tools.export": "tests/test_export.py",
    "tools.draw_readme": "tests/test_draw.py",
    "benchmarks": "tests/test_benchmarks.py",
    "pytest": "the tests themselves",
    "venv": "the Makefile",
    "quadratic": "tests/test_extending.py",
    "shapes": "tests/test_extending.py",
}


def shrink(config: Any) -> Any:
    """The settings of a command, made tiny."""
    fields = {field.name for field in dataclasses.fields(config)}
    changes = {name: value for name, value in TINY.items() if name in fields}
    if getattr(config, "dataset", None) in NO_DOWNLOAD:
        changes["dataset"] = NO_DOWNLOAD[config.dataset]
    if getattr(config, "refine_steps", 0):
        changes["refine_steps"] = 1
    return dataclasses.replace(config, **changes)


def turn(command: str) -> int:
    """When a command runs: the plain stages, what uses them, other training, other results."""
    stage = command.startswith(("train_", "mnist_", "emnist_"))
    if "results-" in command:
        return 3
    if "--resume" in command:
        return 1
    return (2 if "--" in command else 0) if stage else 1


def run_command(command: str) -> None:
    """Run a command such as `train_all.py demo --seed 1` in this process.

    Raises:
        SystemExit: if it fails.
    """
    words = shlex.split(command)
    words = [name for word in words for name in (sorted(glob.glob(word)) or [word])]
    module = words[0] == "-m"
    target = words[1] if module else str(ROOT / words[0])
    sys.argv = [target, *words[2 if module else 1 :]]
    try:
        run = runpy.run_module if module else runpy.run_path
        run(target, run_name="__main__")
    except SystemExit as stopped:
        if stopped.code:
            raise


def main(folder: Path, pages: list[Path]) -> None:
    """Run each command of `pages` once in `folder`."""
    from test_docs import commands

    os.chdir(folder)
    picture = np.zeros((40, 60), np.uint8)
    picture[10:30, 20:40] = 255
    for name in ("photo.jpg", "photo.png", "my.png"):
        Image.fromarray(picture).save(name)
    torch.set_num_threads(1)

    import common.cli

    parse = common.cli.parse
    common.cli.parse = lambda *arguments: shrink(parse(*arguments))
    found = [command for page in pages for command in commands(page.read_text())]
    plain = [re.sub(r"\s+#.*", "", command).replace("$seed", "0") for command in found]
    for command in sorted(dict.fromkeys(plain), key=turn):
        if any(word in command for word in ELSEWHERE):
            continue
        if "elsewhere/" in command and not Path("elsewhere").exists():
            shutil.copytree("results", "elsewhere/results")
        print(f"== {command}", flush=True)
        run_command(command)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main(Path(sys.argv[1]), [Path(page).resolve() for page in sys.argv[2:]])
