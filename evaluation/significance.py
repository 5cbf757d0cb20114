"""A machine rates image-to-sound encodings: each is learned, imagined with and rated over several
seeds, beside the primary.

    python compare_encodings.py                    # the full schedule; for a GPU
    # narrower and shorter, for two cores; its minutes are in the README
    python compare_encodings.py --quick
    python compare_encodings.py --quick --only primary tanh linear mel --seeds 0 1 2 3 4
    # a second process, on another GPU, shares the work through the folder
    python compare_encodings.py --device cuda:1

An encoding and a seed are a cell: stage one learns to hear it, stage three to imagine, and
`evaluate.py` rates the result. Stage two is trained once and shared by all, as are the judges.
Beside the learned listener stands a linear inverse from the log-mel to the image, so that a
weakness of the listener is not taken for one of the sound.

Writes `results/encodings/`:
    comparison.csv           a row for each encoding and seed
    conclusions.md           what can be concluded from it, and what cannot
    ratings.png, sheet.png   the ratings with their intervals; the same ten test digits under every encoding
    memory-<key>/            a results folder with stage two and the judges
    <name>-<key>/<seed>/     a results folder with stages one and three, and their rating in evaluation/
    <name>-<key>/linear/     the linear inverse
A key stands for the settings. It can be stopped at any time, and the same command goes on; a
finished cell is never run again. An encoding that is new in the header runs alone; another
schedule, objective or rating runs all cells anew. Tables and pictures show what the last command
named: to see all, name all at the end, which takes seconds."""

import statistics
import warnings
from typing import Any, NamedTuple

from scipy import stats

from evaluation.metrics import CONFIDENCE
from evaluation.sweep import BASELINE


def groups_of(rows: list[dict[str, Any]], column: str) -> dict[str, list[float]]:
    """Encoding -> its values of a column, a value for each seed."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["encoding"], []).append(row[column])
    return groups


def t_interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over seeds, by Student's t; one seed has none."""
    if len(values) < 2:
        return None
    half = stats.sem(values) * stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    return statistics.fmean(values) - half, statistics.fmean(values) + half


class Difference(NamedTuple):
    """To the primary encoding, of the means over seeds."""

    mean: float
    interval: tuple[float, float]  # at the level at which Holm's procedure tests it
    outside: bool  # of the spread over seeds: the interval leaves out 0


def differences(groups: dict[str, list[float]], primary: str = BASELINE) -> dict[str, Difference]:
    """The difference of each group to the primary one: Welch's t-test, with Holm's correction over
    the groups, so that with 5 % at most any of those said to be outside the spread is not.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6:65-70,
    1979. What has no spread, one seed or values that are all alike in both groups, is left out."""
    reference, tests = groups.get(primary, []), {}
    for name, values in groups.items():
        alike = len(set(values)) == len(set(reference)) == 1
        if name != primary and len(values) > 1 and len(reference) > 1 and not alike:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that one of the two is all alike
                tests[name] = stats.ttest_ind(values, reference, equal_var=False)
    found, level, rejecting = {}, 0.0, True
    for rank, name in enumerate(sorted(tests, key=lambda name: tests[name].pvalue)):
        if rejecting:
            level = (1 - CONFIDENCE) / (len(tests) - rank)
        rejecting = rejecting and bool(tests[name].pvalue < level)
        low, high = tests[name].confidence_interval(1 - level)
        mean = statistics.fmean(groups[name]) - statistics.fmean(reference)
        found[name] = Difference(mean, (float(low), float(high)), rejecting)
    return found
