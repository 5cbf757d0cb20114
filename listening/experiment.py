"""What a listening test consists of: its classes, its encodings, and which sounds it plays."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import explain_malformed, read_json, write_json

REBUILD = "run listening_test.py to build the page first, or name its folder with --output"


@dataclass(frozen=True)
class Stimulus:
    """One soundscape of the test."""

    encoding: str
    index: int  # of the image, in the test part of the data set
    label: int
    phase: str  # practice or test
    sha256: str  # of its WAV file


@dataclass(frozen=True)
class Experiment:
    """A listening test. Two with the same `version` have the same page."""

    version: str
    dataset: str
    seed: int
    classes: tuple[str, ...]
    # Name -> the encoding, and the frames and the hop with which the machine hears it.
    conditions: dict[str, dict[str, Any]]
    stimuli: tuple[Stimulus, ...]

    def select(self, phase: str, encoding: str) -> list[Stimulus]:
        """The stimuli of a phase and an encoding."""
        return [one for one in self.stimuli if (one.phase, one.encoding) == (phase, encoding)]

    def save(self, folder: Path) -> None:
        """Write experiment.json."""
        write_json(folder / "experiment.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Experiment":
        """Read experiment.json.

        Raises:
            UserError: if it is missing or malformed.
        """
        path = folder / "experiment.json"
        record = read_json(path, REBUILD)
        with explain_malformed(path, REBUILD):
            stimuli = tuple(Stimulus(**one) for one in record.pop("stimuli"))
            return cls(classes=tuple(record.pop("classes")), stimuli=stimuli, **record)
