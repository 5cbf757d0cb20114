"""The rating of people in a listening test, beside the machine on the same sounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import write_file
from common.media import pyplot
from evaluation.metrics import accuracy_report, proportion_ci
from evaluation.report import template
from listening.answers import COLUMNS, SOURCES, read_all_answers, write_rows
from listening.experiment import Experiment
from listening.machine import find_runs, hear

PERMUTATIONS = 2000
COLOURS = ("#2f7fc9", "#c8690c")  # of people and machine


def score(
    paths: Sequence[Path], experiment: Experiment, machine: Path | None, data_root: Path,
    device: torch.device, output: Path,
) -> dict[str, Any]:  # fmt: skip
    """Rate the answers, and write table.md, answers.csv and people.png.

    Args:
        paths: the files of answers, one for each participant.
        experiment: the listening test that they took.
        machine: a folder with runs to compare with. None: no comparison.
        data_root: the folder of the data sets.
        device: where the machine's answers are computed.
        output: the folder to write into.

    Returns:
        who, the kind of participants; encodings, for each its numbers; and differences to the first
        encoding.

    Raises:
        UserError: if a file is wrong, or a run or the data are missing.
    """
    from evaluation.significance import differences

    rows = read_all_answers(paths, experiment)
    runs = find_runs(machine, experiment) if machine else {}
    encodings = {}
    for name in experiment.conditions:
        own = [row for row in rows if (row["phase"], row["encoding"]) == ("test", name)]
        stimuli = experiment.select("test", name)
        heard = hear(runs[name], stimuli, experiment, data_root, device) if runs else None
        labels = [one.label for one in stimuli]
        encodings[name] = rate_encoding(own, list(experiment.classes), labels, heard)
    first = next(iter(encodings))
    shares = {
        name: [share["accuracy"] for share in one["participants"].values()]
        for name, one in encodings.items()
    }
    found = differences(shares, first)
    record = {
        "who": SOURCES[rows[0]["source"]],
        "files": len(paths),
        "encodings": encodings,
        "differences": {name: one._asdict() for name, one in found.items()},
    }
    classes = [name.replace("|", "/") for name in experiment.classes]
    table = template("table.md.j2", Path(__file__).parent).render(
        **record, experiment=experiment, classes=classes, first=first, interval=with_interval
    )
    write_rows(output / "answers.csv", [COLUMNS[:-1], *([*row.values()][:-1] for row in rows)])
    write_file(output / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    draw(output / "people.png", record, experiment.classes)
    print(f"{table}\n{output}/table.md, answers.csv, people.png")
    return record


def rate_encoding(
    rows: Sequence[dict[str, Any]], classes: list[str], labels: list[int], heard: Tensor | None
) -> dict[str, Any]:
    """The numbers of one encoding.

    Args:
        rows: the test trials of all participants.
        classes: the names of the classes.
        labels: of the stimuli.
        heard: the machine's probabilities for the stimuli, `(runs, stimuli, classes)`.
    """
    from evaluation.significance import t_interval

    size = len(classes)
    right = [classes.index(row["class"]) for row in rows]
    chosen = [classes.index(row["choice"]) for row in rows]
    numbers = sorted({row["participant"] for row in rows})
    confusions = np.zeros((len(numbers), size, size))  # participant, heard, chosen
    places = [numbers.index(row["participant"]) for row in rows]
    np.add.at(confusions, (places, right, chosen), 1)
    hits, trials = confusions.trace(axis1=1, axis2=2), len(labels)
    shares = (hits / trials).tolist()
    report = {
        "people": accuracy_report(torch.tensor(chosen), torch.tensor(right), size),
        "participants": {
            number: proportion_ci(int(own), trials)
            for number, own in zip(numbers, hits, strict=True)
        },
        "mean": {"accuracy": float(np.mean(shares)), "interval": t_interval(shares)},
        "response_ms": float(np.median([row["response_ms"] for row in rows])),
        "replays": float(np.mean([row["replays"] for row in rows])),
    }
    if heard is None:
        return report | {"machine": None, "runs": 0, "errors": None}
    repeated = torch.tensor(labels).repeat(len(heard))
    probability = np.zeros((size, size))
    np.add.at(probability, labels, heard.mean(0).numpy())
    return report | {
        "machine": accuracy_report(heard.argmax(2).flatten(), repeated, size),
        "runs": len(heard),
        "errors": errors_in_common(confusions, probability),
    }


def errors_in_common(
    people: np.ndarray, machine: np.ndarray, permutations: int = PERMUTATIONS
) -> dict[str, Any] | None:
    """Compute how far two confusion matrices agree beside their diagonals.

    Args:
        people: counts of each participant, `(participants, classes, classes)`.
        machine: counts or probabilities, `(classes, classes)`.
        permutations: their number.

    Returns:
        correlation: Spearman's.
        interval: its 95 % interval over participants; None with one participant.
        p: of the permutation test, one-sided.
        Or None, where one of the two has no spread.
    """
    from scipy.stats import rankdata, t

    generator = np.random.default_rng(0)
    size, count = len(machine), len(people)
    beside = ~np.eye(size, dtype=bool)

    def ranks(matrix: np.ndarray) -> np.ndarray:
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-12)
        return rankdata(shares[beside])

    def correlate(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0

    ours, theirs = ranks(people.sum(0)), ranks(machine)
    if not ours.std() or not theirs.std():
        return None
    found = correlate(ours, theirs)
    interval = None
    if count > 1:  # a bootstrap would leave out too much: its intervals cover 80 %, these 95 %
        without = [correlate(ranks(people.sum(0) - one), theirs) for one in people]
        z = np.arctanh(np.clip([found, *without], -0.999, 0.999))
        error = np.sqrt((count - 1) * z[1:].var())
        interval = np.tanh(z[0] + np.array([-1, 1]) * t.ppf(0.975, count - 1) * error).tolist()
    exchanged = (generator.permutation(size) for _ in range(permutations))
    as_high = sum(
        correlate(ours, ranks(machine[np.ix_(order, order)])) >= found - 1e-12
        for order in exchanged
    )
    return {"correlation": found, "interval": interval, "p": (1 + as_high) / (1 + permutations)}


def with_interval(report: dict[str, Any] | None, form: str = "{:.1%}") -> str:
    """The number in a report, with its interval where it has one; "-" without a report."""
    if not report:
        return "-"
    number = next(report[name] for name in ("accuracy", "correlation", "mean") if name in report)
    ends = " to ".join(form.format(end) for end in report["interval"] or ())
    return form.format(number) + f" ({ends})" * bool(ends)


def draw(path: Path, record: dict[str, Any], classes: Sequence[str]) -> None:
    """Draw people beside the machine: accuracy, and the confusion matrices of each encoding."""
    from sklearn.metrics import ConfusionMatrixDisplay

    plt, encodings = pyplot(), record["encodings"]
    columns = 2 + any(one["machine"] is not None for one in encodings.values())
    figure, axes = plt.subplots(
        len(encodings), columns, figsize=(4.1 * columns, 3.9 * len(encodings)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    rotation = "vertical" if max(map(len, classes)) > 2 else "horizontal"
    for row, (name, one) in zip(axes, encodings.items(), strict=True):
        reports = {record["who"]: one["people"], "machine": one["machine"]}
        reports = {title: report for title, report in reports.items() if report}
        accuracies = np.array([report["accuracy"] for report in reports.values()])
        intervals = np.array([report["interval"] for report in reports.values()]).T
        places, errors = np.arange(len(reports)), abs(intervals - accuracies)
        row[0].bar(places, accuracies, 0.55, yerr=errors, capsize=5, color=COLOURS[: len(reports)])
        shares = [share["accuracy"] for share in one["participants"].values()]
        spread = np.linspace(-0.2, 0.2, len(shares) + 2)[1:-1]
        row[0].plot(spread, shares, "o", color="white", markeredgecolor="black", markersize=5)
        row[0].axhline(1 / len(classes), color="gray", linestyle="--", linewidth=1)
        row[0].text(-0.83, 1 / len(classes), "chance", color="gray", va="bottom")
        row[0].set(title=f"{name}: right", xlim=(-0.85, len(reports) - 0.4), ylim=(0, 1.02))
        row[0].set_xticks(places, [title.replace(" ", "\n") for title in reports])
        row[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        row[0].spines[["top", "right"]].set_visible(False)
        for axis, (title, report) in zip(row[1:], reports.items(), strict=True):
            counts = np.array(report["confusion"], float)
            shown = ConfusionMatrixDisplay(
                counts / np.maximum(counts.sum(1, keepdims=True), 1), display_labels=classes
            ).plot(
                ax=axis, include_values=False, cmap="Blues", im_kw={"vmin": 0, "vmax": 1},
                colorbar=False, xticks_rotation=rotation,
            )  # fmt: skip
            axis.set(title=f"{name}: {title}", xlabel="chosen", ylabel="heard")
        figure.colorbar(shown.im_, ax=row[-1], label="share of the trials of a class", shrink=0.85)
    write_file(path, lambda beside: figure.savefig(beside, dpi=110))
    plt.close(figure)
