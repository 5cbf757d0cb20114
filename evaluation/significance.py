"""Intervals over seeds, and tests of differences with Holm's correction."""

import math
import statistics
import warnings
from typing import Any, NamedTuple

from evaluation.encodings import BASELINE
from evaluation.metrics import CONFIDENCE

POWER = 0.8  # of the test with `Difference.seeds_needed`
MOST_SEEDS = 1000  # that are worth a number


def groups_of(rows: list[dict[str, Any]], column: str) -> dict[str, list[float]]:
    """Encoding -> its values of a column, one for each seed."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["encoding"], []).append(row[column])
    return groups


def t_interval(values: list[float]) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean over seeds, by Student's t; one seed has none."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = stats.sem(values) * stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    return statistics.fmean(values) - half, statistics.fmean(values) + half


class Difference(NamedTuple):
    """The difference of two means over seeds."""

    mean: float
    interval: tuple[float, float]  # at the level at which Holm's method tests it
    p: float  # adjusted by Holm's method
    significant: bool
    # For each group, for a power of 80 % at that level, if the true difference and spread are those
    # that were observed. None: more than MOST_SEEDS.
    seeds_needed: int | None


def differences(groups: dict[str, list[float]], baseline: str = BASELINE) -> dict[str, Difference]:
    """Test the difference of each group to the baseline by Welch's t-test, with Holm's correction
    over the groups: the probability of any false "significant" is at most 5 %.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6:65-70,
    1979. Left out is what has no spread: a single seed, or two groups of equal values."""
    from scipy import stats

    reference, tests = groups.get(baseline, []), {}
    for name, values in groups.items():
        constant = len(set(values)) == len(set(reference)) == 1
        if name != baseline and len(values) > 1 and len(reference) > 1 and not constant:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # one of the two is constant
                tests[name] = stats.ttest_ind(values, reference, equal_var=False)
    found, p, level, rejecting = {}, 0.0, 0.0, True
    for rank, name in enumerate(sorted(tests, key=lambda name: tests[name].pvalue)):
        left = len(tests) - rank
        p = max(p, min(1.0, left * float(tests[name].pvalue)))
        if rejecting:
            level = (1 - CONFIDENCE) / left
        rejecting = rejecting and bool(tests[name].pvalue < level)
        low, high = tests[name].confidence_interval(1 - level)
        mean = statistics.fmean(groups[name]) - statistics.fmean(reference)
        needed = _seeds_needed(groups[name], reference, level)
        found[name] = Difference(mean, (float(low), float(high)), p, rejecting, needed)
    return found


def _seeds_needed(values: list[float], reference: list[float], level: float) -> int | None:
    """By the noncentral t distribution, from the number for known variances upwards."""
    from scipy import stats

    difference = abs(statistics.fmean(values) - statistics.fmean(reference))
    variance = (statistics.variance(values) + statistics.variance(reference)) / 2
    quantiles = float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(POWER))
    least = 2 * variance * quantiles**2  # divided by the squared difference, the number of seeds
    if least > MOST_SEEDS * difference**2:
        return None
    for count in range(max(2, math.ceil(least / difference**2)), MOST_SEEDS + 1):
        freedom, shift = 2 * count - 2, difference / math.sqrt(2 * variance / count)
        limit = stats.t.ppf(1 - level / 2, freedom)
        if not stats.nct.sf(limit, freedom, shift) < POWER:  # not a number, for a huge shift
            return count
    return None
