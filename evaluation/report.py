"""The page of a rating, `evaluation/index.html`: one file that needs no network, to look at and to
listen to. The template is report.html.j2.

Every picture has an alternative text, and every control a label. Without JavaScript all images are
shown."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.media import pyplot
from vggish import BANDS, HIGHEST_HZ, LOWEST_HZ, SAMPLE_RATE

CLASSIFIER_NAMES = {
    "cnn": "judge cnn: residual network",
    "vit": "judge vit: vision transformer",
    "kernel": "judge kernel: kernels on pixels",
    "classifier": "classifier of the training",
}
SETS = {
    "imagined": "imagined from the sounds",
    "real": "real images: the best possible",
    "samples_before": "the generator from noise, before stage three",
    "samples_after": "the generator from noise, after stage three",
}
# Unit of a panel -> key in the log -> label. A key that the log lacks is left out.
PANELS = {
    "share of the validation part": {
        "validation_accuracy": "right by the classifier",
        "validation_judge_accuracy": "right by judge cnn",
        "validation_retrieval": "retrieval",
    },
    "Frechet distance": {"validation_frechet_distance": "to the heard images"},
    "loss": {
        "cross_entropy": "cross-entropy",
        "validation_audio_loss": "audio loss, validation part",
        "replay": "replay",
    },
}
# Colours with a contrast of 3 to 1 on white and on near-black; the markers differ too.
LOOKS = (("#2f7fc9", "o"), ("#c8690c", "s"), ("#26935f", "^"))


@dataclass(frozen=True)
class Example:
    """One of the heard images on the page."""

    index: int  # in the part that was heard
    label: int
    rank: str  # best, median or worst of its class, or the first of it that most judges misread
    heard: np.ndarray  # (28, 28) uint8
    sound: np.ndarray  # (samples,) in [-1, 1], or (2, samples) in stereo
    sample_rate: int  # Hz
    logmel: np.ndarray  # (frames, 64), natural log
    hop: int  # samples at 16 kHz from frame to frame
    imagined: np.ndarray  # (64, 64) in [-1, 1]
    correlation: float  # of the imagined with the heard image
    predicted: dict[str, int]  # classifier -> the class that it predicts for the imagined image


def render(record: dict[str, Any], examples: list[Example], log: list[dict[str, float]]) -> str:
    """Make the page, as HTML.

    Args:
        record: what metrics.json says.
        examples: the images to show, sorted by class.
        log: the lines of the run's log.jsonl.
    """
    classes, joint = record["classes"], record["stages"]["train_all"]["config"]
    refined = ", with latent refinement" if record["config"]["refine_steps"] else ""
    reports = {**record["judges"], "classifier": record["classifier"]}
    mean, overall = record["judges_mean"], record["retrieval"]["overall"]
    encoding = joint.get("encoding", {})
    return template("report.html.j2").render(
        title=f"What was imagined: {record['config']['name']}{refined}",
        about=(
            f"Objective: {objective_name(record)}. "
            f"Encoding: {encoding.get('rows')} x {encoding.get('columns')} pixels in "
            f"{encoding.get('seconds')} s, {encoding.get('curve')} frequency curve, high pitch at "
            f"the {encoding.get('pitch_position')}"
            f"{', the negative' if encoding.get('negative') else ''}. "
            f"Data: the {record['part']} part of {record['dataset']}."
        ),
        summary=(
            f"On average, the judges classify {percent(mean['accuracy'])} of "
            f"{record['classifier']['images']:,} imagined images as the class that was heard. The "
            f"classifier of the training is right on {percent(record['classifier']['accuracy'])}. "
            f"Of the imagined images, {percent(overall['accuracy'])} find their own source among "
            f"{overall['images']:,} images."
        ),
        classes=classes,
        shown_classes=[classes[label] for label in sorted({one.label for one in examples})],
        cards=[card(example, classes) for example in examples],
        numbers=number_rows(record, reports),
        realism=realism_rows(record["realism"]),
        realism_count=f"{record['realism']['images']:,}",
        confusions=[
            confusion(CLASSIFIER_NAMES[name], report, classes) for name, report in reports.items()
        ],
        curves=curves(log),
        rating_settings=[
            ("seed of the rating", record["seed"]),
            ("revision", record["revision"] or "unknown"),
            ("machine", record["machine"]),
            ("seconds", record["seconds"]),
            *((f"version of {name}", version) for name, version in record["versions"].items()),
        ],
        stage_settings=[
            (stage, setting_rows({**entry, **entry["config"]}))
            for stage, entry in record["stages"].items()
        ],
    )


def objective_name(record: dict[str, Any]) -> str:
    """The objective that the rated run was trained by: published or sound-consistent."""
    consistent = record["stages"]["train_all"]["config"].get("sound_consistency")
    return "sound-consistent" if consistent else "published"


def card(example: Example, classes: list[str]) -> dict[str, Any]:
    """The values of one image's card."""
    label = classes[example.label]
    name = f"image {example.index}, class {label}"
    seconds = len(example.logmel) * example.hop / SAMPLE_RATE
    said = ", ".join(classes[index] for index in example.predicted.values())
    grey = np.clip((example.imagined + 1) * 127.5, 0, 255).round().astype(np.uint8)
    sounding = (
        f"Spectrogram of {name}: {seconds:.2f} s from left to right, {LOWEST_HZ:.0f} to "
        f"{HIGHEST_HZ:,.0f} Hz in {BANDS} mel bands from bottom to top; "
        f"{where_loud(example.logmel, example.hop)}"
    )
    correlation = f"{example.correlation:.2f}"
    drawn = f"Imagined from the sound of {name}; classified as {said}; correlation {correlation}"
    return {
        "label": label,
        "rank": example.rank,
        "index": example.index,
        "correlation": correlation,
        "name": name,
        "sound": wav(example.sound, example.sample_rate),
        "pictures": [  # title, kind, source, alternative text
            ("Heard", "", png(example.heard), f"Heard: {name}, white on black"),
            (
                "Its sound as the network hears it",
                "wide",
                png(spectrogram(example.logmel)),
                sounding,
            ),
            ("Imagined", "", png(grey), drawn),
        ],
        "verdicts": [
            (CLASSIFIER_NAMES[one], classes[index], "right" if index == example.label else "wrong")
            for one, index in example.predicted.items()
        ],
    }


def where_loud(logmel: np.ndarray, hop: int) -> str:
    """Describe a spectrogram in a sentence: when it sounds, and where it is loudest."""
    power = np.exp(logmel)
    loudest = int(power.sum(0).argmax())
    per_frame = power.sum(1) - power.sum(1).min()
    sounding = np.nonzero(per_frame > 0.1 * max(per_frame.max(), 1e-9))[0]
    if not len(sounding):
        return "silent."
    start, end = sounding[0] * hop / SAMPLE_RATE, (sounding[-1] + 1) * hop / SAMPLE_RATE
    return f"sounding from {start:.2f} to {end:.2f} s, loudest in band {loudest + 1}."


def spectrogram(logmel: np.ndarray) -> np.ndarray:
    """`(frames, 64)` -> `(64, frames, 3)` uint8, low pitches at the bottom, in the colours of
    soundscapes.png."""
    share = np.clip((logmel.T[::-1] + 4.6) / 7.6, 0, 1)
    return (pyplot().get_cmap("magma")(share)[..., :3] * 255).astype(np.uint8)


def template(name: str) -> Any:
    """A template of this folder; its values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name)


def png(pixels: np.ndarray) -> str:
    """`(H, W)` or `(H, W, 3)` uint8 as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def wav(sound: np.ndarray, sample_rate: int) -> str:
    """`(samples,)` or `(2, samples)` as a data URI."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound.T, sample_rate, "PCM_16", format="WAV")
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"  # no line break before the sign


def number_rows(record: dict[str, Any], reports: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The table of numbers: name, value, interval, and how to read it."""
    overall, within = (record["retrieval"][name] for name in ("overall", "within_class"))

    def share(name: str, report: dict[str, Any], how: str) -> tuple[str, str, str, str]:
        return name, percent(report["accuracy"]), " to ".join(map(percent, report["interval"])), how

    def mean(name: str, report: dict[str, Any], how: str) -> tuple[str, str, str, str]:
        ends = " to ".join(f"{end:.3f}" for end in report["interval"])
        return name, f"{report['mean']:.3f}", ends, how

    rows = []
    for name, report in reports.items():
        title = f"Imagined images classified right, {CLASSIFIER_NAMES[name]}"
        rows.append(share(title, report, "higher is better"))
        real = "… real images, by the same classifier"
        rows.append(share(real, report["real"], "how far this classifier can be trusted"))
    accuracy, worst = (percent(record["judges_mean"][key]) for key in ("accuracy", "worst_class"))
    sounds = record["sound_classifier"]
    rows += [
        ("Mean of the judges", accuracy, "", "compare runs by this number"),
        ("… the worst class", worst, "", "0: no image of a class is right"),
        share("Sounds classified right by stage one", sounds, "what stage three starts from"),
    ]
    if steps := record["config"]["refine_steps"]:
        refined = percent(record["refined_fraction"])
        rows.append(("Sounds that were uncertain and refined", refined, "", f"{steps} steps each"))
    among = f"Finds its source among {overall['images']:,} images"
    prototypes = f"chance, and one prototype per class: {percent(within['chance'])}"
    diverse = "0: one prototype per class; 1: as diverse as the heard images"
    return [
        *rows,
        mean("Correlation with the heard image", record["correlation"], "1: equal up to contrast"),
        mean("SSIM with the heard image", record["ssim"], "1: the same image"),
        share(among, overall, f"chance: {percent(overall['chance'])}"),
        share("… among those of the same class", within, prototypes),
        ("Diversity within a class", f"{record['diversity']['mean']:.2f}", "", diverse),
    ]


def realism_rows(realism: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The table of realism: set, Frechet distance, precision, recall."""
    rows = []
    for name, title in SETS.items():
        shares = [percent(realism[name][key]) for key in ("precision", "recall")]
        rows.append((title, f"{realism[name]['frechet_distance']:.2f}", *shares))
    return rows


def confusion(title: str, report: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """The values of a confusion matrix."""
    rows = []
    for heard, counts in enumerate(report["confusion"]):
        total = max(sum(counts), 1)
        cells = [
            ("right" if predicted == heard else "wrong", f"{count / total:.2f}", count)
            for predicted, count in enumerate(counts)
        ]
        rows.append((classes[heard], cells))
    return {
        "title": title,
        "accuracy": percent(report["accuracy"]),
        "images": f"{report['images']:,}",
        "rows": rows,
    }


def curves(log: list[dict[str, float]]) -> dict[str, Any]:
    """The curves of stage three: a drawing that takes the page's colours, a text, and a table."""
    keys = {key: label for names in PANELS.values() for key, label in names.items()}
    keys = {key: label for key, label in keys.items() if all(key in line for line in log)}
    first, last = log[0], log[-1]
    text = f"Curves of stage three over {len(log)} epoch{'s' * (len(log) > 1)}. " + " ".join(
        f"{label[0].upper()}{label[1:]}: {first[key]:.3f} after the first, {last[key]:.3f} after "
        "the last epoch."
        for key, label in keys.items()
    )
    file = io.StringIO()
    plt = pyplot()
    fonts = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}
    with plt.rc_context({**fonts, "svg.hashsalt": "0"}):
        figure = draw_curves(log)
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace("#000000", "currentColor")
    return {
        "drawing": drawing.replace("<svg", '<svg aria-hidden="true" style="color:inherit"', 1),
        "text": text,
        "heads": ("epoch", *keys.values()),
        "rows": [(line["epoch"], *(f"{line[key]:.4f}" for key in keys)) for line in log],
    }


def draw_curves(log: list[dict[str, float]]) -> Any:
    """Draw a panel for each unit; the legend stands below it, so it covers no curve."""
    figure, axes = pyplot().subplots(
        1, len(PANELS), figsize=(12, 4.2), squeeze=False, layout="constrained"
    )
    epochs = [line["epoch"] for line in log]
    for axis, (unit, names) in zip(axes[0], PANELS.items(), strict=True):
        for (key, label), (colour, marker) in zip(names.items(), LOOKS, strict=False):
            if all(key in line for line in log):
                values = [line[key] for line in log]
                axis.plot(epochs, values, marker=marker, color=colour, label=label)
        axis.set(xlabel="epoch", title=unit)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.patch.set_visible(False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2))
    figure.patch.set_visible(False)
    return figure


def setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of a stage's settings."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in settings.items()
        if key != "config"
    ]
