"""The rating of people in a listening test, beside the machine on the same sounds."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import write_file
from common.media import pyplot
from evaluation.metrics import accuracy_report, proportion_ci
from listening.answers import COLUMNS, SOURCES, csv_text, read_all_answers
from listening.experiment import Experiment
from listening.machine import find_runs, hear

PERMUTATIONS = 2000
COLOURS = {"people": "#2f7fc9", "machine": "#c8690c"}
NOTES = """
- Right: the share of the test trials, with Wilson's 95 % interval over trials. Practice does not count.
- Mean of participants: with the 95 % interval of Student's t. It also covers the choice of participants.
- Machine: stage one's audio network on the same sounds. It learned from thousands of sounds, people from few.
- Difference: Welch's t-test over participants, with Holm's correction over the encodings, as in compare_encodings.py.
  It takes the groups as independent. Each participant hears all encodings, so it finds less than a paired test would.
- Errors in common: Spearman's correlation of the two confusion matrices without their diagonals. The machine's matrix holds
  mean probabilities. The 95 % interval is from a jackknife over participants, on Fisher's scale. p is one-sided, from a
  permutation test that exchanges the classes of one matrix.
"""  # noqa: E501


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
    classes = list(experiment.classes)
    tested = [row for row in rows if row["phase"] == "test"]
    encodings = {}
    for name in experiment.conditions:
        own = [row for row in tested if row["encoding"] == name]
        stimuli = experiment.select("test", name)
        heard = hear(runs[name], stimuli, experiment, data_root, device) if runs else None
        encodings[name] = rate_encoding(own, classes, [one.label for one in stimuli], heard)
    shares = {name: list(one["participants"].values()) for name, one in encodings.items()}
    record = {
        "who": SOURCES[rows[0]["source"]],
        "files": len(paths),
        "encodings": encodings,
        "differences": {
            name: one._asdict() for name, one in differences(shares, next(iter(shares))).items()
        },
    }
    kept = COLUMNS[:-1]
    answers = csv_text([kept, *([row[column] for column in kept] for row in rows)])
    output.mkdir(parents=True, exist_ok=True)
    table = make_table(record, experiment)
    write_file(output / "answers.csv", lambda path: path.write_text(answers, encoding="utf-8"))
    write_file(output / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    draw(output / "people.png", record, classes)
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
    for row, heard_class, choice in zip(rows, right, chosen, strict=True):
        confusions[numbers.index(row["participant"]), heard_class, choice] += 1
    shares = confusions.trace(axis1=1, axis2=2) / confusions.sum((1, 2))
    report = {
        "people": accuracy_report(torch.tensor(chosen), torch.tensor(right), size),
        "participants": dict(zip(numbers, shares.tolist(), strict=True)),
        "mean": float(shares.mean()),
        "mean_interval": t_interval(shares.tolist()),
        "response_ms": float(np.median([row["response_ms"] for row in rows])),
        "replays": float(np.mean([row["replays"] for row in rows])),
    }
    if heard is not None:
        repeated = torch.tensor(labels).repeat(len(heard))
        report["runs"] = len(heard)
        report["machine"] = accuracy_report(heard.argmax(2).flatten(), repeated, size)
        probability = np.zeros((size, size))
        np.add.at(probability, labels, heard.mean(0).numpy())
        report["errors"] = errors_in_common(confusions, probability)
    return report


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


def make_table(record: dict[str, Any], experiment: Experiment) -> str:
    """The text of table.md."""
    who, encodings = record["who"], record["encodings"]
    first, count = next(iter(encodings)), record["files"]
    summary, compared, people, details = [], [], [], []
    for name, one in encodings.items():
        own, machine, errors = one["people"], one.get("machine"), one.get("errors")
        summary.append(
            (
                name,
                own["images"],
                with_interval(own["accuracy"], own["interval"]),
                with_interval(one["mean"], one["mean_interval"]),
                with_interval(machine["accuracy"], machine["interval"]) if machine else "-",
                one.get("runs", "-"),
                with_interval(errors["correlation"], errors["interval"], "{:.2f}")
                if errors
                else "-",
                f"{errors['p']:.4f}" if errors else "-",
            )
        )
        if name != first:
            found, base = record["differences"].get(name), encodings[first].get("machine")
            compared.append(
                (
                    name,
                    with_interval(found["mean"], found["interval"], "{:+.1%}") if found else "-",
                    f"{found['p']:.4f}" if found else "-",
                    ("yes" if found["significant"] else "no") if found else "not defined",
                    f"{machine['accuracy'] - base['accuracy']:+.1%}" if machine and base else "-",
                )
            )
        if who == SOURCES["person"]:
            details.append(
                f"{name}: median response time {one['response_ms'] / 1000:.1f} s from the start of "
                f"the sound, {one['replays']:.1f} replays a trial."
            )
        for title, report in ((who, own), ("the machine", machine)):
            if report:
                rows = zip(experiment.classes, report["confusion"], strict=True)
                details += [f"\nConfusion under {name}, {title}: rows heard, columns chosen.\n"]
                details += table(
                    ("", *experiment.classes), ((label, *line) for label, line in rows)
                )
    for number in encodings[first]["participants"]:
        shares = []
        for one in encodings.values():
            share, trials = one["participants"][number], one["people"]["images"] // count
            shares.append(
                with_interval(share, proportion_ci(round(share * trials), trials)["interval"])
            )
        people.append((number, *shares))
    heads = f"encoding, test trials, right: {who}, mean of participants, right: machine, runs"
    lines = [
        f"# Listening test: {count} {who}\n",
        f"Data: {experiment.dataset}. Page {experiment.version}. "
        f"Chance: {1 / len(experiment.classes):.1%}.\n",
        *table((*heads.split(", "), "errors in common", "p"), summary),
        "",
        *table((f"difference to {first}", who, "adjusted p", "significant", "machine"), compared),
        "",
        *table(("participant", *encodings), people),
        "",
        *details,
    ]
    return "\n".join(lines) + "\n" + NOTES


def table(heads: Iterable[Any], rows: Iterable[Iterable[Any]]) -> list[str]:
    """The lines of a table in Markdown; none where it has no rows."""
    heads, rows = list(heads), list(rows)
    lines = [heads, ["---"] * len(heads), *rows]
    text = [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]
    return text if rows else []


def with_interval(value: float, interval: Sequence[float] | None, form: str = "{:.1%}") -> str:
    """A number and its interval."""
    text = form.format(value)
    return f"{text} ({' to '.join(map(form.format, interval))})" if interval else text


def draw(path: Path, record: dict[str, Any], classes: Sequence[str]) -> None:
    """Draw people beside the machine: accuracy, and the confusion matrices of each encoding."""
    plt, encodings = pyplot(), record["encodings"]
    has_machine = all("machine" in one for one in encodings.values())
    columns = 2 + has_machine
    figure, axes = plt.subplots(
        len(encodings), columns, figsize=(4.1 * columns, 3.9 * len(encodings)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, (name, one) in zip(axes, encodings.items(), strict=True):
        bars = {record["who"]: (one["people"], COLOURS["people"])}
        if has_machine:
            bars["machine"] = (one["machine"], COLOURS["machine"])
        for place, (report, colour) in enumerate(bars.values()):
            accuracy, (low, high) = report["accuracy"], report["interval"]
            row[0].bar(place, accuracy, 0.55, color=colour)
            row[0].errorbar(
                place, accuracy, [[accuracy - low], [high - accuracy]], color="black", capsize=5
            )
        shares = list(one["participants"].values())
        spread = np.linspace(-0.2, 0.2, len(shares)) if len(shares) > 1 else [0]
        row[0].plot(spread, shares, "o", color="white", markeredgecolor="black", markersize=5)
        row[0].axhline(1 / len(classes), color="gray", linestyle="--", linewidth=1)
        row[0].text(-0.83, 1 / len(classes), "chance", color="gray", va="bottom")
        row[0].set(xticks=range(len(bars)), xlim=(-0.85, len(bars) - 0.4), ylim=(0, 1.02))
        row[0].set(title=f"{name}: right", yticks=np.arange(0, 1.1, 0.2))
        row[0].set_xticklabels([text.replace(" ", "\n") for text in bars])
        row[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        row[0].spines[["top", "right"]].set_visible(False)
        for axis, (title, (report, _)) in zip(row[1:], bars.items(), strict=True):
            counts = np.array(report["confusion"], float)
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            axis.set(title=f"{name}: {title}", xlabel="chosen", ylabel="heard")
            axis.set_xticks(
                range(len(classes)), classes, rotation=90 * (max(map(len, classes)) > 2)
            )
            axis.set_yticks(range(len(classes)), classes)
        figure.colorbar(shown, ax=row[-1], label="share of the trials of a class", shrink=0.85)
    write_file(path, lambda beside: figure.savefig(beside, dpi=110))
    plt.close(figure)
