"""The page of a rating, `results/evaluation/index.html`: one file that needs no network, to look at
and to listen to.

Every picture has a text that says what is known of it, every control a label; without JavaScript
all digits are shown."""

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

import matplotlib
import numpy as np
import soundfile
from matplotlib import pyplot as plt
from PIL import Image

from vggish import BANDS, HIGHEST_HZ, LOWEST_HZ, SAMPLE_RATE

CLASSIFIER_NAMES = {
    "classifier": "the classifier that was to be pleased",
    "residual": "judge: residual CNN",
    "transformer": "judge: vision transformer",
    "kernel": "judge: kernels on pixels",
}


SETS = {
    "imagined": "imagined from the sounds",
    "real": "real images: as good as it gets",
    "samples_before": "the generator from noise, before stage three",
    "samples_after": "the generator from noise, after stage three",
}


@dataclass(frozen=True)
class Example:
    """One of the heard digits on the page."""

    index: int  # in the part that was heard
    digit: int  # its label
    rank: str  # best, median or worst of its class, or the first of it that most judges misread
    heard: np.ndarray  # (28, 28) uint8
    sound: np.ndarray  # (samples,) in [-1, 1], or (2, samples) in stereo
    sample_rate: int  # Hz
    logmel: np.ndarray  # (frames, 64), natural log
    hop: int  # samples at 16 kHz from frame to frame
    imagined: np.ndarray  # (64, 64) in [-1, 1]
    correlation: float  # of the imagined with the heard image
    read: dict[str, int]  # reader -> the digit that it reads in the imagined image


def render(record: dict[str, Any], examples: list[Example], log: list[dict[str, float]]) -> str:
    """The page, as HTML.

    Args:
        record: what metrics.json says.
        examples: the digits to show, sorted by digit.
        log: the lines of the run's log.jsonl.
    """
    thoughts = ", after second thoughts" if record["config"]["refine_steps"] else ""
    title = f"What was imagined: {record['config']['name']}{thoughts}"
    digits = sorted({example.digit for example in examples})
    mean = record["judges_mean"]
    summary = (
        f"On average, the judges read {_percent(mean['accuracy'])} of {record['classifier']['images']:,} "
        f"imagined digits as the digit that was heard; the classifier that was to be pleased reads "
        f"{_percent(record['classifier']['accuracy'])}. {_percent(record['retrieval']['overall']['accuracy'])} of the "
        f"imagined digits find their own source among {record['retrieval']['overall']['images']:,} images. "
        f"Heard was the {record['part']} part of {record['dataset']}."
    )
    return Template(TEMPLATE).substitute(
        style=STYLE,
        script=SCRIPT,
        title=escape(title),
        summary=escape(summary),
        digit_options="".join(f'<option value="{digit}">{digit}</option>' for digit in digits),
        count=len(examples),
        cards="".join(map(_card, examples)),
        numbers=_numbers(record),
        realism=_realism(record["realism"]),
        confusions="".join(
            _confusion(CLASSIFIER_NAMES.get(reader, reader), reading, opened=reader == "residual")
            for reader, reading in {**record["judges"], "classifier": record["classifier"]}.items()
        ),
        curves=_curves(log),
        configuration=_configuration(record),
    )


def _card(example: Example) -> str:
    name = f"digit {example.index}, a {example.digit}"
    seconds = len(example.logmel) * example.hop / SAMPLE_RATE
    read = ", ".join(str(digit) for digit in example.read.values())
    pictures = [
        ("Heard", _png(example.heard), f"Heard: {name}, white on black", ""),
        (
            "Its sound as the network hears it",
            _png(_spectrogram(example.logmel)),
            f"Spectrogram of {name}: {seconds:.2f} s from left to right, {LOWEST_HZ:.0f} to {HIGHEST_HZ:,.0f} Hz in {BANDS} "
            f"mel bands from bottom to top; {_where_loud(example.logmel, example.hop)}",
            ' class="wide"',
        ),
        (
            "Imagined",
            _png(np.clip((example.imagined + 1) * 127.5, 0, 255).round().astype(np.uint8)),
            f"Imagined from the sound of {name}; it is read as {read}; correlation {example.correlation:.2f}",
            "",
        ),
    ]
    shown = "".join(
        f'<figure{kind}><img src="{source}" alt="{escape(text)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, source, text, kind in pictures
    )
    verdicts = "".join(
        f'<div class="{"right" if said == example.digit else "wrong"}"><dt>{escape(CLASSIFIER_NAMES.get(reader, reader))}</dt>'
        f"<dd>{said}, {'right' if said == example.digit else 'wrong'}</dd></div>"
        for reader, said in example.read.items()
    )
    return (
        f'<li class="card" data-digit="{example.digit}" data-rank="{example.rank}">'
        f"<h3>{example.digit}, {example.rank} <small>digit {example.index}, correlation "
        f"{example.correlation:.2f}</small></h3>"
        f'<div class="pictures">{shown}</div>'
        f'<audio controls preload="metadata" aria-label="Soundscape of {escape(name)}" '
        f'src="{_wav(example.sound, example.sample_rate)}"></audio>'
        f"<dl>{verdicts}</dl></li>\n"
    )


def _where_loud(logmel: np.ndarray, hop: int) -> str:
    """What can be said of a spectrogram in a sentence: when it sounds, and where it is loudest."""
    power = np.exp(logmel)
    loudest = int(power.sum(0).argmax())
    per_frame = power.sum(1) - power.sum(1).min()
    sounding = np.nonzero(per_frame > 0.1 * max(per_frame.max(), 1e-9))[0]
    if not len(sounding):
        return "silent."
    start, end = sounding[0] * hop / SAMPLE_RATE, (sounding[-1] + 1) * hop / SAMPLE_RATE
    return f"sounding from {start:.2f} to {end:.2f} s, loudest in band {loudest + 1}."


def _spectrogram(logmel: np.ndarray) -> np.ndarray:
    """`(frames, 64)` -> `(64, frames, 3)` uint8, low pitches at the bottom, in the colours of
    soundscapes.png."""
    share = np.clip((logmel.T[::-1] + 4.6) / 7.6, 0, 1)
    return (matplotlib.colormaps["magma"](share)[..., :3] * 255).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """`(H, W)` or `(H, W, 3)` uint8 as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return _uri("image/png", file.getvalue())


def _wav(sound: np.ndarray, sample_rate: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, sound.T, sample_rate, "PCM_16", format="WAV")
    return _uri("audio/wav", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"  # no line break before the sign


def _numbers(record: dict[str, Any]) -> str:
    """The table of numbers: value, interval, and what it says."""
    within = record["retrieval"]["within_class"]
    steps = record["config"]["refine_steps"]
    share = _percent(record["refined_fraction"])
    refined_fraction = (
        [("Thought of again, for a doubt", share, "", f"{steps} steps each")] if steps else []
    )
    rows = []
    for reader, reading in {**record["judges"], "classifier": record["classifier"]}.items():
        rows.append(
            (
                f"Imagined digits read right, {CLASSIFIER_NAMES[reader]}",
                *_accuracy(reading),
                "the higher, the better",
            )
        )
        rows.append(
            (
                "… real images, by the same reader",
                *_accuracy(reading["real"]),
                "what this reader can be trusted with",
            )
        )
    rows += [
        (
            "Mean of the judges",
            _percent(record["judges_mean"]["accuracy"]),
            "",
            "the number to compare runs by",
        ),
        (
            "… the digit that fares worst",
            _percent(record["judges_mean"]["worst_digit"]),
            "",
            "0: a digit is never drawn",
        ),
        (
            "Sounds told apart by stage one",
            *_accuracy(record["sound_classifier"]),
            "what stage three starts from",
        ),
        *refined_fraction,
        (
            "Correlation with the heard image",
            *_mean(record["correlation"]),
            "1: the same image up to contrast",
        ),
        ("SSIM with the heard image", *_mean(record["ssim"]), "1: the same image"),
        (
            f"Finds its source among {record['retrieval']['overall']['images']:,} images",
            *_accuracy(record["retrieval"]["overall"]),
            f"chance: {_percent(record['retrieval']['overall']['chance'])}",
        ),
        (
            "… among those of the same digit",
            *_accuracy(within),
            f"chance, or one prototype per digit: {_percent(within['chance'])}",
        ),
        (
            "Diversity within a digit",
            f"{record['diversity']['mean']:.2f}",
            "",
            "0: one prototype per digit; 1: as diverse as heard",
        ),
    ]
    return _table("What was measured", ("number", "value", "95 % interval", "how to read it"), rows)


def _accuracy(reading: dict[str, Any]) -> tuple[str, str]:
    return _percent(reading["accuracy"]), " to ".join(map(_percent, reading["interval"]))


def _mean(entry: dict[str, Any]) -> tuple[str, str]:
    return f"{entry['mean']:.3f}", " to ".join(f"{end:.3f}" for end in entry["interval"])


def _realism(realism: dict[str, Any]) -> str:
    rows = [
        (
            title,
            f"{realism[name]['frechet_distance']:.2f}",
            _percent(realism[name]["precision"]),
            _percent(realism[name]["recall"]),
        )
        for name, title in SETS.items()
    ]
    caption = f"How real the digits look to the residual judge, against one half of the real ones ({realism['images']:,} images)"
    return _table(caption, ("images", "Frechet distance", "precision", "recall"), rows)


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table with headers and a caption, which scrolls, also by keyboard, where the window is
    narrow."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>\n'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _confusion(title: str, reading: dict[str, Any], opened: bool) -> str:
    caption = (
        f"Rows: heard. Columns: read. Counts of {reading['images']:,} imagined digits, {title}"
    )
    heads = "".join(f'<th scope="col">{digit}</th>' for digit in range(10))
    body = ""
    for digit, row in enumerate(reading["confusion"]):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td class="{"right" if said == digit else "wrong"}" style="--share:{count / total:.2f}">{count}</td>'
            for said, count in enumerate(row)
        )
        body += f'<tr><th scope="row">{digit}</th>{cells}</tr>\n'
    return (
        f"<details{' open' if opened else ''}><summary>{escape(title)}, {_percent(reading['accuracy'])}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix, {escape(title)}">'
        f'<table class="confusion"><caption>{escape(caption)}</caption>'
        f'<thead><tr><th scope="col">heard</th>{heads}</tr></thead><tbody>{body}</tbody></table></div></details>\n'
    )


def _curves(log: list[dict[str, float]]) -> str:
    """The curves of stage three as an inline drawing, which takes the page's colours, and the same
    as a table."""
    panels = {
        "share of the validation part": {
            "validation_accuracy": "read by the classifier",
            "validation_judge_accuracy": "read by the residual judge",
            "validation_retrieval": "finds its source",
        },
        "Frechet distance": {"validation_frechet_distance": "to the heard digits"},
        "loss": {
            "cross_entropy": "cross-entropy",
            # the same measure for every epoch
            "validation_sound_distance": "sound distance, of the validation part",
            "rehearsal": "rehearsal",
        },
    }
    panels = {
        unit: kept
        for unit, names in panels.items()
        if (
            kept := {key: label for key, label in names.items() if all(key in line for line in log)}
        )
    }
    epochs = [line["epoch"] for line in log]
    # Colours with a contrast of 3 to 1 on white and on near-black; the markers differ too.
    looks = (("#2f7fc9", "o"), ("#c8690c", "s"), ("#26935f", "^"))
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11, "svg.hashsalt": "0"}
    ):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(12, 3.6), squeeze=False, layout="constrained"
        )
        for axis, (unit, names) in zip(axes[0], panels.items(), strict=True):
            for (key, label), (colour, marker) in zip(names.items(), looks, strict=False):
                axis.plot(
                    epochs, [line[key] for line in log], marker=marker, color=colour, label=label
                )
            axis.set(xlabel="epoch", title=unit)
            axis.ticklabel_format(axis="y", useOffset=False)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.patch.set_visible(False)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False)
        figure.patch.set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    drawing = file.getvalue()
    drawing = (
        drawing[drawing.index("<svg") :]
        .replace("#000000", "currentColor")
        .replace("<svg", "<svg SLOT", 1)
    )
    first, last = log[0], log[-1]
    text = f"Curves of stage three over {len(log)} epoch{'s' * (len(log) > 1)}. " + " ".join(
        f"{label[0].upper()}{label[1:]}: {first[key]:.3f} after the first, {last[key]:.3f} after the last epoch."
        for names in panels.values()
        for key, label in names.items()
    )
    drawing = drawing.replace(
        "SLOT", f'role="img" aria-label="{escape(text)}" style="color:inherit"'
    )
    keys = {key: label for names in panels.values() for key, label in names.items()}
    rows = [(line["epoch"], *(f"{line[key]:.4f}" for key in keys)) for line in log]
    table = _table("The same, epoch by epoch", ("epoch", *keys.values()), rows)
    return (
        f'<figure class="curves">{drawing}<figcaption>{escape(text)}</figcaption></figure>'
        f"<details><summary>The curves as a table</summary>{table}</details>"
    )


def _configuration(record: dict[str, Any]) -> str:
    rows = [
        ("seed of the rating", record["seed"]),
        ("revision", record["revision"] or "unknown"),
        ("machine", record["machine"]),
        ("seconds", record["seconds"]),
        *((f"version of {name}", version) for name, version in record["versions"].items()),
    ]
    about = _table("The rating", ("what", "value"), rows)
    for stage, entry in {
        **record["stages"],
        "judges": {"config": record["judge_settings"]},
    }.items():
        settings = {key: value for key, value in entry.items() if key != "config"} | entry["config"]
        rows = [
            (key, value if isinstance(value, str) else json.dumps(value))
            for key, value in settings.items()
        ]
        about += f"<details><summary>{escape(stage)}</summary>{_table(stage, ('setting', 'value'), rows)}</details>\n"
    return about


TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the digits</a>
<header>
<h1>$title</h1>
<p>$summary</p>
<nav aria-label="On this page"><ul>
<li><a href="#digits">Digits</a></li><li><a href="#numbers">Numbers</a></li><li><a href="#confusion">Confusion</a></li>
<li><a href="#curves">Curves</a></li><li><a href="#configuration">Configuration</a></li>
</ul></nav>
</header>
<main id="main" tabindex="-1">
<section id="digits" aria-labelledby="digits-title">
<h2 id="digits-title">Digits: the best, the median, the worst, and the first misread of each</h2>
<p>Ranked by the correlation of the imagined with the heard image; misread by most of the judges, if any is. Nothing but the
sound was given to the model.</p>
<form id="choice" hidden>
<label>Digit <select id="digit"><option value="">all</option>$digit_options</select></label>
<label>Rank <select id="rank"><option value="">all</option><option>best</option><option>median</option>
<option>worst</option><option>misread</option></select></label>
<output id="count" for="digit rank" role="status">$count of $count shown</output>
</form>
<ul class="cards">
$cards</ul>
</section>
<section id="numbers" aria-labelledby="numbers-title">
<h2 id="numbers-title">Numbers</h2>
<p>The classifier is the one that the model was trained to please; the judges took no part. The intervals say how much
another choice of images would change a number. They say nothing about another training seed.</p>
$numbers
$realism
<p>Frechet distance: 0 for the same distribution; real images show how near a sample of this size can come.
Precision: the share of the images that lie among real ones. Recall: the share of real ones that lie among the images.</p>
</section>
<section id="confusion" aria-labelledby="confusion-title">
<h2 id="confusion-title">What is mistaken for what</h2>
$confusions
</section>
<section id="curves" aria-labelledby="curves-title">
<h2 id="curves-title">Curves of stage three</h2>
$curves
</section>
<section id="configuration" aria-labelledby="configuration-title">
<h2 id="configuration-title">Configuration</h2>
$configuration
</section>
</main>
<script>$script</script>
</body>
</html>
"""


STYLE = """
:root { --ink: #1b1d21; --soft: #4d525b; --paper: #fbfaf8; --card: #ffffff; --line: #d4d2cc; --mark: 47 127 201;
  --good: #19683f; --bad: #a3241b; --link: #1a5a99; }
@media (prefers-color-scheme: dark) { :root { --ink: #ecebe8; --soft: #b4b6bb; --paper: #15171a; --card: #1e2125;
  --line: #3b3f46; --mark: 47 127 201; --good: #7fd3a5; --bad: #ff9d92; --link: #8fc1f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 82rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; } h1 { font-size: 2rem; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .5rem; } h3 { font-size: 1.1rem; margin: 0 0 .6rem; }
h3 small { font-weight: 400; color: var(--soft); font-size: .85rem; display: block; margin-top: .15rem; }
p { max-width: 46rem; margin: .4rem 0 1rem; } a { color: var(--link); }
:focus-visible { outline: 3px solid rgb(var(--mark)); outline-offset: 2px; border-radius: 3px; }
main:focus { outline: none; }
.skip { position: absolute; left: -999rem; } .skip:focus { position: static; display: inline-block; padding: .4rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: 0; }
form { display: flex; flex-wrap: wrap; gap: .6rem 1.5rem; align-items: center; margin: 1rem 0; }
form[hidden], .card[hidden] { display: none; }
select { font: inherit; padding: .3rem .5rem; margin-left: .3rem; color: inherit; background: var(--card);
  border: 1px solid var(--soft); border-radius: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; list-style: none;
  padding: 0; margin: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; }
.pictures { display: grid; grid-template-columns: 1fr 1.75fr 1fr; gap: .6rem; align-items: start; } figure { margin: 0; }
.pictures img { width: 100%; aspect-ratio: 1; display: block; image-rendering: pixelated; border: 1px solid var(--line);
  border-radius: 3px; } .pictures .wide img { aspect-ratio: 1.75; }
figcaption { font-size: .8rem; color: var(--soft); line-height: 1.3; margin-top: .25rem; }
audio { width: 100%; height: 2.5rem; margin: .8rem 0 .4rem; }
dl { margin: 0; font-size: .9rem; } dl div { display: flex; justify-content: space-between; gap: 1rem; }
dt { color: var(--soft); } dd { margin: 0; white-space: nowrap; font-variant-numeric: tabular-nums; }
.right dd { color: var(--good); } .wrong dd { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 500; } thead th { font-weight: 600; } td { overflow-wrap: anywhere; }
.confusion th, .confusion td { text-align: right; padding: .3rem .55rem; min-width: 2.9rem; }
.confusion td { background: rgb(var(--mark) / calc(var(--share) * .35)); } .confusion td.right { font-weight: 600; }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .2rem 0; }
.curves svg { width: 100%; height: auto; max-width: 72rem; } .curves text { fill: currentColor; }
"""


# A few lines: show the form, which does nothing without them, and hide the cards that were not
# chosen.
SCRIPT = """
const form = document.getElementById("choice"), cards = [...document.querySelectorAll(".card")];
function show() {
  const digit = form.elements.digit.value, rank = form.elements.rank.value;
  for (const card of cards)
    card.hidden = (digit && card.dataset.digit !== digit) || (rank && card.dataset.rank !== rank);
  const shown = cards.filter(card => !card.hidden).length;
  document.getElementById("count").textContent = shown + " of " + cards.length + " shown";
}
form.hidden = false;
form.addEventListener("change", show);
form.addEventListener("submit", event => event.preventDefault());
show(); // a browser may restore the choice when the page is loaded again
"""
