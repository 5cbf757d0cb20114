"""Simulated people: their answers, and how many people and trials a difference needs."""

import random
from bisect import bisect_left
from pathlib import Path

import numpy as np

from common.files import UserError
from evaluation.metrics import CONFIDENCE
from listening.answers import write_answers
from listening.experiment import Experiment, Stimulus

SIMULATIONS = 1000
WANTED = 0.8  # the usual power
TRIALS = (10, 20, 30, 60, 120)  # of each encoding
MOST_PEOPLE = 300


def simulate_accuracies(
    mean: float, spread: float, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """The true accuracies of participants: beta-distributed, with this mean and standard deviation.

    Raises:
        UserError: if no distribution in [0, 1] has them.
    """
    if not 0 < mean < 1 or spread**2 >= mean * (1 - mean):
        raise UserError(
            f"no accuracies have the mean {mean:g} and the spread {spread:g}; give another "
            "--accuracy, --difference or --spread."
        )
    if not spread:
        return np.full(shape, mean)
    strength = mean * (1 - mean) / spread**2 - 1
    return generator.beta(mean * strength, (1 - mean) * strength, shape)


def power_of(
    people: int, trials: int, accuracy: float, difference: float, spread: float, encodings: int = 2
) -> float:
    """The share of simulated studies in which Welch's t-test finds the difference of two encodings.

    Args:
        people: number of participants.
        trials: test trials of each participant with each encoding.
        accuracy: true mean accuracy with the first encoding.
        difference: true difference of the other one to it.
        spread: standard deviation of the participants' true accuracies with one encoding.
        encodings: number of encodings; Holm's correction tests the first of them at this level.
    """
    from scipy.stats import ttest_ind

    generator, groups = np.random.default_rng(0), []
    for mean in (accuracy, accuracy + difference):
        true = simulate_accuracies(mean, spread, (SIMULATIONS, people), generator)
        groups.append(generator.binomial(trials, true) / trials)
    with np.errstate(all="ignore"):
        p = np.asarray(ttest_ind(*groups, axis=1, equal_var=False)[1])
    return float((p < (1 - CONFIDENCE) / (encodings - 1)).mean())


def power_table(accuracy: float, difference: float, spread: float, encodings: int = 2) -> str:
    """The fewest people for each number of trials, as a table in Markdown."""
    table = (
        f"Accuracy {accuracy:.0%}, difference {difference:+.0%}, spread between people "
        f"{spread:.0%}, {encodings} encodings. {SIMULATIONS:,} simulated studies each.\n\n"
        f"| test trials of each encoding | people for a power of {WANTED:.0%} |\n|---|---|\n"
    )
    sizes = range(2, MOST_PEOPLE + 1)
    for trials in TRIALS:

        def power(people: int, trials: int = trials) -> float:
            return power_of(people, trials, accuracy, difference, spread, encodings)

        place = bisect_left(sizes, WANTED, key=power)
        people = sizes[place] if place < len(sizes) else f"more than {MOST_PEOPLE}"
        table += f"| {trials} | {people} |\n"
    return table


def simulate_people(
    experiment: Experiment, count: int, accuracy: float, difference: float, spread: float,
    seed: int, output: Path,
) -> list[Path]:  # fmt: skip
    """Write the answers of simulated people into the folder `output`; returns the files.

    Each answer is right with the person's accuracy under the encoding, else any other class. The
    arguments are those of `power_of`."""
    generator, answer = np.random.default_rng(seed), random.Random(seed)
    true = {
        name: simulate_accuracies(accuracy + difference * (place > 0), spread, (count,), generator)
        for place, name in enumerate(experiment.conditions)
    }
    paths = [output / f"simulated_{person + 1:03d}.csv" for person in range(count)]
    for person, path in enumerate(paths):

        def choose(one: Stimulus, person: int = person) -> int:
            others = [label for label in range(len(experiment.classes)) if label != one.label]
            right = answer.random() < true[one.encoding][person]
            return one.label if right else answer.choice(others)

        write_answers(path, experiment, "simulated", person + 1, choose)
    return paths
