"""The command line of every script: presets, settings as flags, and errors in one sentence."""

import dataclasses
import inspect
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from tqdm import tqdm
from tyro._docstrings import get_field_docstring

from common.files import UserError

HEADING = "-- "  # how a comment begins that is the title of a group of settings
LARGEST_SEED = (
    10**12
)  # `seed_epoch` multiplies it by 1,000,003, and the result must fit into 64 bits


@dataclasses.dataclass(frozen=True)
class Limit:
    """The range of a setting. It stands in the type of the field: `epochs: Annotated[int,
    Limit(1)]`."""

    least: float = -math.inf
    most: float = math.inf
    exclusive: bool = False  # whether both ends are refused too

    def error(self, value: float) -> str:
        """What is wrong with `value`, as the end of a sentence; empty if it is within the range."""
        low = value > self.least if self.exclusive else value >= self.least
        high = value < self.most if self.exclusive else value <= self.most
        ends = []
        if not low:
            ends.append(
                f"a number above {self.least}" if self.exclusive else f"at least {self.least}"
            )
        if not high:
            ends.append(
                f"a number below {self.most}" if self.exclusive else f"at most {self.most:,}"
            )
        return " and ".join(ends)


Count = Annotated[int, Limit(1)]
BatchSize = Annotated[int, Limit(2)]  # BatchNorm learns nothing from a batch of one
LearningRate = Annotated[float, Limit(0, exclusive=True)]
Weight = Annotated[float, Limit(0)]
Fraction = Annotated[float, Limit(0, 1)]
Seed = Annotated[int, Limit(-LARGEST_SEED, LARGEST_SEED)]


def command_line(
    config_type: type,
    main: Callable[[Any], Any],
    description: str | None,
    presets: Mapping[str, Any] | None = None,
) -> None:
    """Read the settings and run `main` with them.

    The first word of the command line may name a preset; flags behind it change single settings.
    A user's mistake ends with one sentence and exit code 2. Ctrl-C ends with exit code 130.

    Args:
        config_type: the header of the script, a frozen dataclass.
        main: takes an instance of it.
        description: the script's docstring, for `--help`.
        presets: name -> settings; the first one is the default. None: the defaults of `config_type`
            alone.
    """
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a name that the terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    presets = presets or {"": config_type()}
    arguments = sys.argv[1:]
    try:
        preset = next(iter(presets))
        if arguments and not arguments[0].startswith("-") and "" not in presets:
            preset = arguments.pop(0)
            if preset not in presets:
                raise UserError(f"there is no preset {preset!r}; give one of {', '.join(presets)}.")
        if "" not in presets:
            description = f"{description}\nPresets: {', '.join(presets)}. The default is {next(iter(presets))}."
        try:
            config = parse(config_type, presets[preset], arguments, description)
        except ValueError as error:  # an impossible encoding
            raise UserError(str(error)) from error
        validate_settings(config)
        with as_user_errors():
            main(config)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        resumes = "resume" in {field.name for field in dataclasses.fields(config_type)}
        advice = (
            "Add --resume to continue after the last finished epoch."
            if resumes
            else "Start the command again."
        )
        print(f"\nStopped. {advice}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe is gone, as in `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def parse(config_type: type, default: Any, arguments: list[str], description: str | None) -> Any:
    """The settings of a command line, an instance of `config_type`. `--help` shows them in the
    header's own groups."""
    groups = setting_groups(config_type)
    if not groups:
        return tyro.cli(config_type, default=default, args=arguments, description=description)
    hints = get_type_hints(config_type, include_extras=True)
    sections = {}
    for title, names in groups.items():
        fields = []
        for name in names:  # without the section's name before each flag
            nested = dataclasses.is_dataclass(hints[name])
            text = (
                None
                if nested
                else get_field_docstring(config_type, name, ()).split(HEADING + title)[-1].strip()
            )
            hint = Annotated[hints[name], tyro.conf.arg(help=text, prefix_name=False)]
            fields.append((name, hint, dataclasses.field(default=getattr(default, name))))
        section = dataclasses.make_dataclass("Section", fields, frozen=True)
        sections[re.sub(r"\W+", "_", title)] = section
    outer = dataclasses.make_dataclass(
        config_type.__name__,
        [
            (name, section, dataclasses.field(default=section()))
            for name, section in sections.items()
        ],
    )
    read = tyro.cli(outer, args=arguments, description=description)
    return config_type(
        **{
            name: value
            for section in sections
            for name, value in vars(getattr(read, section)).items()
        }
    )


def setting_groups(config_type: type) -> dict[str, list[str]]:
    """Title -> the fields below it, from lines of the header such as `# -- the schedule`; empty if
    there are none."""
    groups: dict[str, list[str]] = {}
    names = {field.name for field in dataclasses.fields(config_type)}
    try:
        source = inspect.getsource(config_type)
    except OSError:
        return {}
    title = ""
    for line in source.splitlines():
        if heading := re.fullmatch(rf"\s*# {HEADING}(.+)", line):
            title = heading[1]
        elif (field := re.match(r"    (\w+):", line)) and field[1] in names and title:
            groups.setdefault(title, []).append(field[1])
    return groups if {name for group in groups.values() for name in group} == names else {}


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Raise what the machine refuses, a file or its memory, as a `UserError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what, why = error.filename or "a file", error.strerror or error
        raise UserError(
            f"{what} cannot be used ({why}); unlock it, make room, or name another."
        ) from error
    except (MemoryError, RuntimeError) as error:
        import torch

        reason = str(error).splitlines()[0][:200] if str(error) else "none is left"
        said = (
            "can't allocate memory",
            "out of memory",
            "ALLOC_FAILED",
        )  # by the CPU, CUDA, and its libraries
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in reason for words in said
        ):
            raise
        raise UserError(
            f"the memory does not suffice ({reason}); lower --batch, end other programs, or give another --device."
        ) from error


def validate_settings(config: Any) -> None:
    """Refuse settings out of their range, and a name that no folder can have.

    Raises:
        UserError: with the first of these, as a flag.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for name, value in vars(config).items():
        flag = f"--{name.replace('_', '-')} is {value}"
        if name == "name" and (value in ("", ".", "..") or set(value) & {"/", "\\"}):
            raise UserError(
                f"--name is {value!r}, but it must name a folder in results; give a word."
            )
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag}; give a finite number.")
        for limit in limits(hints[name]):
            if wrong := limit.error(value):
                raise UserError(f"{flag}; give {wrong}.")


def limits(hint: Any) -> list[Limit]:
    """The limits in a type, also in a union such as `Count | None`."""
    found = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Limit)]
    return found + [limit for part in getattr(hint, "__args__", ()) for limit in limits(part)]


def progress_bar(items: Iterable, title: str) -> Iterable:
    """`items` with a progress bar on a terminal, and without one elsewhere."""
    return tqdm(items, desc=title, leave=False, disable=not sys.stderr.isatty())
