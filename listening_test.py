"""People take the test that the machine took: they hear a soundscape and say which class it is.

    python listening_test.py --encodings primary mel --trials 60    # build the page
    python listening_test.py demo                  # a page from data that need no download
    python listening_test.py --score answers/*.csv --machine results
    python listening_test.py --machine results     # the machine takes the test
    python listening_test.py --simulate 10         # simulated participants take it
    python listening_test.py --power --difference 0.1

It writes `results/listening_test/`: index.html, the whole test in one file that needs no network,
and experiment.json, which `--score` reads. Each participant saves one CSV file at the end of the
page. The page needs jsPsych: run `npm ci` once.

`--score` writes `score/`: table.md, answers.csv with all trials, and people.png. `--machine` and
`--simulate` write `answers/`, in the format of the page. See docs/listening_test.md."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.cli import Count, Fraction, Limit, Seed, command_line
from common.device import choose_device
from common.files import UserError
from data import default_root


@dataclass(frozen=True)
class Config:
    # -- page
    encodings: tuple[str, ...] = ("primary",)  # Names in ENCODINGS; the first is the baseline.
    # The data set, a key of DATASETS in data/. The sounds are from its test part.
    dataset: str = "mnist"
    # Test trials of a participant, over all encodings. Give a multiple of the classes for each.
    trials: Count = 60
    # Practice trials with feedback, for each encoding. Beginners need many.
    practice: Count = 20
    seed: Seed = 0  # Seed of the choice of images, of the orders, and of simulated answers.
    # Text file with your own consent text, one paragraph a line. None: a general text.
    consent: Path | None = None

    # -- instead of a new page
    score: tuple[Path, ...] = ()  # Rate the answers in these files.
    # Folder with runs, such as results or results/encodings. With --score, their answers stand
    # beside the people's. Without it, they take the test themselves.
    machine: Path | None = None
    simulate: Annotated[int, Limit(0, 999)] = 0  # Write the answers of so many simulated people.
    power: bool = False  # Say how many people and trials a difference needs.

    # -- power and simulation
    accuracy: Fraction = 0.5  # Mean accuracy of people with the first encoding.
    # Difference of the other encodings to it.
    difference: Annotated[float, Limit(-1, 1)] = 0.1
    # Standard deviation of the accuracy between people, with one encoding.
    spread: Fraction = 0.15

    # -- run
    output: Path = Path("results/listening_test")  # The folder of the page.
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)


PRESETS = {"mnist": Config(), "demo": Config(dataset="handwritten", trials=30, practice=10)}


def main(config: Config) -> Any:
    """Build the page, or do what the mode says; returns what it made."""
    from listening.build import build_page
    from listening.experiment import Experiment
    from listening.machine import answer_by_machine
    from listening.power import power_table, simulate_people
    from listening.score import score

    modes = [name for name in ("score", "simulate", "power") if getattr(config, name)]
    if config.machine and modes != ["score"]:
        modes.append("machine")
    if len(modes) > 1:
        names = " and ".join(f"--{name}" for name in modes)
        raise UserError(f"{names} exclude each other; give one of them.")
    effect = (config.accuracy, config.difference, config.spread)
    if config.power:
        table = power_table(*effect, max(2, len(config.encodings)))
        print(table)
        return table
    if not modes:
        experiment = build_page(
            config.encodings, config.dataset, config.trials, config.practice, config.seed,
            config.consent, config.data_root, config.output,
        )  # fmt: skip
        page = config.output / "index.html"
        print(
            f"{page}: {len(experiment.stimuli)} sounds, {page.stat().st_size / 1e6:.1f} MB. Open "
            "it in a browser. Next: listening_test.py --score FILES"
        )
        return experiment
    experiment, answers = Experiment.load(config.output), config.output / "answers"
    place = (config.data_root, choose_device(config.device))
    if config.score:
        return score(config.score, experiment, config.machine, *place, config.output / "score")
    if config.simulate:
        paths = simulate_people(experiment, config.simulate, *effect, config.seed, answers)
    else:
        assert config.machine
        paths = answer_by_machine(config.machine, experiment, *place, answers)
    print(f"{', '.join(map(str, paths))}\nNext: listening_test.py --score FILES")
    return paths


if __name__ == "__main__":
    command_line(Config, main, __doc__, PRESETS)
