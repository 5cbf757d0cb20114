"""The documentation: every command parses, every link and anchor resolves, and the README is short.
The commands of the Makefile name presets and no settings."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from common.cli import parse, validate_settings

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {"voice_translator": "tools.translate"}  # script -> where its settings are
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The commands that start Python, from the code of a page or the output of `make -n`."""
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    found = [re.search(r"(?:^|\s)python (.+)", line) for line in [*inline, *lines]]
    return [match[1] for match in found if match]


def settings(command: str) -> Any:
    """The settings of a command such as `train_all.py demo --seed 1`; SystemExit if they are
    wrong."""
    arguments = shlex.split(command.replace("$seed", "0"), comments=True)
    script = arguments.pop(0)
    script = arguments.pop(0) if script == "-m" else script.removesuffix(".py")
    module = importlib.import_module(MODULES.get(script, script))
    presets = getattr(module, "PRESETS", {"": module.Config()})
    preset = next(iter(presets))
    if arguments and arguments[0] in presets:
        preset = arguments.pop(0)
    if "--preset" in arguments:  # of the translator, whose first words are pictures
        index = arguments.index("--preset")
        _, preset = arguments.pop(index), arguments.pop(index)
    default = presets[preset]
    config = parse(module.Config, default, arguments, "")
    validate_settings(config)
    return config


DOCUMENTED = [(page.name, command) for page in PAGES for command in commands(page.read_text())]
# Of extending.md some commands need the edit that it describes; test_extending.py runs those.
PARSED = [
    (page, command)
    for page, command in DOCUMENTED
    if page != "extending.md" and not command.startswith(("-m pytest", "-m venv"))
]


@pytest.mark.parametrize(("page", "command"), PARSED, ids=[command for _, command in PARSED])
def test_a_documented_command_parses(page: str, command: str) -> None:
    settings(command)


def slug(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_and_anchors_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, titles), f"{page.name} links to {target}"


def test_every_picture_is_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in (ROOT / "ims").glob("*.png") if path.name not in text] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@needs_make
def test_the_makefile_names_presets_and_no_settings() -> None:
    targets = ("demo", "evaluate-demo", "reproduce", "reproduce-small", "compare")
    shown = subprocess.run(
        ["make", "-n", *targets], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    found = commands(f"```\n{shown.replace('.venv/bin/', '')}```")
    run = [command for command in found if not command.startswith("-m")]
    assert len(run) > 15
    for command in run:
        settings(command)
        flags = set(re.findall(r"--[a-z-]+", command))
        # of evaluate.py: which run, and what is done with it
        allowed = {"--name", "--refine-steps", "--compare", "--controls"}
        assert flags <= (allowed if command.startswith("evaluate.py") else set()), command


@needs_make
def test_make_lists_its_targets_and_installs_nothing() -> None:
    command = ["make", "--no-print-directory"]  # `make test` is a make itself
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in shown.splitlines()] == phony[1].split()


def test_the_readme_links_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in text] == []


def test_the_documented_commands_run_as_they_are_written(tmp_path: Path) -> None:
    runner = str(ROOT / "tests" / "run_documented.py")
    # Those of ablations.md are stage three again, with other weights.
    pages = [str(page) for page in PAGES if page.name != "ablations.md"]
    command = [sys.executable, runner, str(tmp_path), *pages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in ("train_all", "train_all_sound_consistent"):
        assert (tmp_path / "results" / name / "imagined.png").exists()
    for name in ("photo.wav", "decoded.png", "imagined.png"):
        assert (tmp_path / name).exists()
