"""The command line of every script: presets, settings as flags, and errors in one sentence."""

import dataclasses
import inspect
import io
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from tqdm import tqdm
from tyro._docstrings import get_field_docstring

from common.files import UserError

HEADING = "-- "  # how a comment begins that is the title of a group of settings
LARGEST_SEED = 10**12  # `seed_epoch` multiplies it by 1,000,003; the result must fit into 64 bits


@dataclasses.dataclass(frozen=True)
class Limit:
    """The range of a setting, in the type of its field: `epochs: Annotated[int, Limit(1)]`."""

    least: float = -math.inf
    most: float = math.inf
    exclusive: bool = False  # whether `least` itself is refused too

    def error(self, value: float) -> str:
        """What to give instead of `value`, the end of a sentence; empty if it is in the range."""
        if value < self.least or (self.exclusive and value == self.least):
            return f"{'a number above' if self.exclusive else 'at least'} {self.least}"
        return f"at most {self.most:,}" if value > self.most else ""


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
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal lacks must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    presets = presets or {"": config_type()}
    arguments, preset = sys.argv[1:], next(iter(presets))
    try:
        if preset:
            description = f"{description}\nPresets: {', '.join(presets)}. The first is the default."
            if arguments and not arguments[0].startswith("-"):
                preset = arguments.pop(0)
        if preset not in presets:
            raise UserError(f"there is no preset {preset!r}; give one of {', '.join(presets)}.")
        suggest_by_initials(config_type, arguments)
        try:
            config = parse(config_type, presets[preset], arguments, description)
        except ValueError as error:  # an impossible encoding
            raise UserError(str(error)) from error
        validate_settings(config)
        with as_user_errors():
            main(config)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {escape_controls(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        advice = "Start the command again."
        if hasattr(config_type, "resume"):
            advice = "Add --resume to continue after the last finished epoch."
        print(f"\nStopped. {advice}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe is gone, as in `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def suggest_by_initials(config_type: type, arguments: Iterable[str]) -> None:
    """Refuse a flag of initials with the setting that it means, such as `--learning-rate` for
    `--lr`. For misspelt flags tyro does so."""
    names = [field.name for field in dataclasses.fields(config_type) if "_" in field.name]
    meant = {"--" + "".join(word[0] for word in name.split("_")): name for name in names}
    for argument in arguments:
        if name := meant.get(argument.partition("=")[0]):
            raise UserError(
                f"there is no setting {argument}; perhaps you meant --{name.replace('_', '-')}."
            )


def escape_controls(text: str) -> str:
    """`text` with an escape for each control character, so that no name steers the terminal."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter)[0] == "C" else letter for letter in text
    )


def parse(config_type: type, default: Any, arguments: list[str], description: str | None) -> Any:
    """The settings of a command line, an instance of `config_type`. `--help` shows them in the
    header's own groups. A `~` at the start of a value is the home folder, also in `--flag=~/x`."""
    home = str(Path.home())
    tilde = re.compile(r"^(--?[\w.-]+=)?~(?=/|$)")
    arguments = [tilde.sub(lambda match: (match[1] or "") + home, each) for each in arguments]
    groups = setting_groups(config_type)
    if not groups:
        return tyro.cli(config_type, default=default, args=arguments, description=description)
    hints = get_type_hints(config_type, include_extras=True)
    sections = []
    for title, names in groups.items():
        fields = []
        for name in names:
            comment = (get_field_docstring(config_type, name, ()) or "").split(HEADING + title)[-1]
            text = None if dataclasses.is_dataclass(hints[name]) else comment.strip()
            # No flag begins with its section's name.
            hint = Annotated[hints[name], tyro.conf.arg(help=text, prefix_name=False)]
            fields.append((name, hint, dataclasses.field(default=getattr(default, name))))
        section = dataclasses.make_dataclass("Section", fields, frozen=True)
        name = re.sub(r"\W+", "_", title)
        sections.append((name, section, dataclasses.field(default=section())))
    outer = dataclasses.make_dataclass(config_type.__name__, sections)
    read = vars(tyro.cli(outer, args=arguments, description=description))
    return config_type(
        **{name: value for part in read.values() for name, value in vars(part).items()}
    )


def setting_groups(config_type: type) -> dict[str, list[str]]:
    """Title -> the fields below it, from lines of the header such as `# -- the schedule`; empty
    unless every field stands below a title."""
    groups: dict[str, list[str]] = {}
    names = [field.name for field in dataclasses.fields(config_type)]
    title = ""
    try:
        lines = inspect.getsource(config_type).splitlines()
    except OSError:  # a header that runpy has executed
        return {}
    for line in lines:
        if heading := re.fullmatch(rf"\s*# {HEADING}(.+)", line):
            title = heading[1]
        elif (field := re.match(r"    (\w+):", line)) and field[1] in names and title:
            groups.setdefault(title, []).append(field[1])
    return groups if [name for group in groups.values() for name in group] == names else {}


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

        # How the CPU, CUDA, and its libraries say it.
        said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
        reason = (str(error) or "none is left").splitlines()[0][:200]
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out_of_memory and not any(words in reason for words in said):
            raise
        raise UserError(
            f"the memory does not suffice ({reason}); lower --batch, end other programs, or give "
            "another --device."
        ) from error


def validate_settings(config: Any) -> None:
    """Refuse settings out of their range, and names that no folder can have or that libraries in C
    cannot open, by a UserError that names the first as a flag.

    A header whose `any_file_name` is true opens its files by Python alone: then names that are no
    UTF-8 are allowed."""
    refused = ("Cc",) if getattr(config, "any_file_name", False) else ("Cc", "Cs")
    hints = get_type_hints(type(config), include_extras=True)
    for name, value in vars(config).items():
        flag = f"--{name.replace('_', '-')} is {value}"
        words = name == "name" and isinstance(value, str)
        if words and (value in ("", ".", "..") or set(value) & {"/", "\\"}):
            raise UserError(
                f"--name is {value!r}, but it must name a folder in results; give a word."
            )
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and any(
                unicodedata.category(letter) in refused for letter in str(text)
            ):
                raise UserError(
                    f"{flag}, which holds a control character or is no UTF-8; give another name."
                )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag}; give a finite number.")
        if isinstance(value, int | float):
            for limit in limits(hints[name]):
                if wrong := limit.error(value):
                    raise UserError(f"{flag}; give {wrong}.")


def limits(hint: Any) -> list[Limit]:
    """The limits in a type, also in a union such as `Count | None`."""
    found = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Limit)]
    return found + [limit for part in getattr(hint, "__args__", ()) for limit in limits(part)]


_bars: list[tqdm] = []  # the newest progress bar


def progress_bar(items: Iterable, title: str) -> Iterable:
    """`items` with a progress bar on a terminal, and without one elsewhere."""
    bar = tqdm(items, desc=title, leave=False, disable=not sys.stderr.isatty())
    _bars[:] = [bar]
    return bar


def show_progress(text: str) -> None:
    """Show `text` behind the newest progress bar."""
    for bar in _bars:
        bar.set_postfix_str(text, refresh=False)
