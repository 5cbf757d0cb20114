"""The page of a rating, `evaluation/index.html`: one file that needs no network, to look at and to
listen to. The template is report.html.j2.

Every picture has an alternative text, and every control a label. Without JavaScript all images are
shown."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from common.media import pyplot
from vggish import BANDS, HIGHEST_HZ, LOWEST_HZ, SAMPLE_RATE, ImageToLogMel

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


def render(record: dict[str, Any], cards: list[dict[str, Any]], log: list[dict[str, float]]) -> str:
    """Make the page, as HTML.

    Args:
        record: what metrics.json says.
        cards: the images to show, sorted by class; see `make_card`.
        log: the lines of the run's log.jsonl.
    """
    settings = {key: record[key] for key in ("seed", "revision", "machine", "seconds")}
    versions = {f"version of {name}": version for name, version in record["versions"].items()}
    return template("report.html.j2").render(
        record=record,
        objective=objective_name(record),
        reports={**record["judges"], "classifier": record["classifier"]},
        cards=cards,
        curves=curves(log),
        log=log,
        rating={**settings, **versions},
    )


def objective_name(record: dict[str, Any]) -> str:
    """The objective that the rated run was trained by: published or sound-consistent."""
    consistent = record["stages"]["train_all"]["config"].get("sound_consistency")
    return "sound-consistent" if consistent else "published"


def make_card(
    image: Tensor, imagined: Tensor, front_end: ImageToLogMel, **labels: Any
) -> dict[str, Any]:
    """Collect what the page shows of one image.

    Args:
        image: `(1, 28, 28)` uint8, as it is heard.
        imagined: `(64, 64)` in [-1, 1].
        front_end: makes its sound.
        labels: `index` in the part that was heard, `label`, `rank`, `correlation`, and `predicted`,
            classifier -> class.
    """
    sound = front_end.translator(image)
    logmel = front_end.log_mel(sound)[0, 0].cpu().numpy()
    grey = np.clip((imagined.cpu().numpy() + 1) * 127.5, 0, 255).round().astype(np.uint8)
    return {
        **labels,
        "heard": png(image[0].cpu().numpy()),
        "sound": wav(sound[0].cpu().numpy(), front_end.encoding.sample_rate),
        "spectrogram": png(spectrogram(logmel)),
        "imagined": png(grey),
        "described": f"{len(logmel) * front_end.hop / SAMPLE_RATE:.2f} s from left to right, "
        f"{LOWEST_HZ:.0f} to {HIGHEST_HZ:,.0f} Hz in {BANDS} mel bands from bottom to top; "
        f"{where_loud(logmel, front_end.hop)}",
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


def template(name: str, folder: Path = Path(__file__).parent) -> Any:
    """A template of a folder; its values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(folder)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "json": json.dumps}
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


def curves(log: list[dict[str, float]]) -> dict[str, Any]:
    """The curves of stage three: a drawing that takes the page's colours, a text, and the label of
    each key that the log has."""
    labels = {
        key: label for names in PANELS.values() for key, label in names.items() if key in log[0]
    }
    text = f"Curves of stage three over {len(log)} epoch{'s' * (len(log) > 1)}. " + " ".join(
        f"{label[0].upper()}{label[1:]}: {log[0][key]:.3f} after the first, {log[-1][key]:.3f} "
        "after the last epoch."
        for key, label in labels.items()
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
        "labels": labels,
    }


def draw_curves(log: list[dict[str, float]]) -> Any:
    """Draw a panel for each unit; the legend stands below it, so it covers no curve."""
    figure, axes = pyplot().subplots(
        1, len(PANELS), figsize=(12, 4.2), squeeze=False, layout="constrained"
    )
    epochs = [line["epoch"] for line in log]
    for axis, (unit, names) in zip(axes[0], PANELS.items(), strict=True):
        for (key, label), (colour, marker) in zip(names.items(), LOOKS, strict=False):
            if key in log[0]:
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
