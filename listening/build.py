"""The page of a listening test: one file with all of its sounds, which needs no network.

The template is page.html.j2, its script page.js. The loop over the trials is jsPsych's (J. R. de
Leeuw et al., Journal of Open Source Software 8(85):5351, 2023), which npm installs."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import UserError, write_file
from data import Digits, class_names, load_digits
from evaluation.encodings import ENCODINGS
from listening.answers import COLUMNS
from listening.experiment import Experiment, Stimulus
from voice_translator import Encoding, VoiceTranslator, to_pcm16

HERE = Path(__file__).parent
NODE_MODULES = HERE.parent / "node_modules"
# What of jsPsych goes into the page. Its style sheet is left out: it takes 476 kB, most of it a
# font, and is made for light pages alone.
SCRIPTS = (
    "jspsych/dist/index.browser.min.js",
    "@jspsych/plugin-html-button-response/dist/index.browser.min.js",
)
KEYS = "1234567890abcdefghijklmnopqrstuvwxyz"  # of the choices, in the order of the classes
SECONDS_A_TRIAL = 5  # beside the sound, for the estimate of the duration


def build_page(
    names: Sequence[str],
    dataset: str,
    trials: int,
    practice: int,
    seed: int,
    consent: Path | None,
    data_root: Path,
    output: Path,
) -> Experiment:
    """Write index.html and experiment.json; returns the experiment.

    Args:
        names: of the encodings, keys of `ENCODINGS`.
        dataset: name of the data set; the images are from its test part.
        trials: number of test trials, over all encodings.
        practice: number of practice trials for each encoding.
        seed: of the choice of images, and of the participants' orders.
        consent: file with the text of the consent, one paragraph a line. None: a text of ours.
        data_root: the folder of the data sets.
        output: the folder to write into.

    Raises:
        UserError: if a name is unknown, the trials cannot be balanced, there are too few images, or
            jsPsych is not installed.
    """
    if unknown := [name for name in names if name not in ENCODINGS]:
        known = ", ".join(ENCODINGS)
        raise UserError(f"--encodings: there is no {', '.join(unknown)}; give some of {known}.")
    if not names or len(set(names)) < len(names):
        raise UserError("--encodings: give at least one name, and each once.")
    if trials % len(names):
        raise UserError(
            f"--trials is {trials}, which {len(names)} encodings cannot share equally; give a "
            f"multiple of {len(names)}."
        )
    paragraphs = consent.read_text("utf-8").splitlines() if consent else []
    scripts = [read_script(NODE_MODULES / path) for path in SCRIPTS]
    classes = class_names(dataset, data_root)
    keys = choice_keys(classes)
    images = load_digits(dataset, "test", data_root, "cpu")
    chosen = choose_images(images, practice, trials // len(names), len(classes), seed)

    stimuli, sounds = [], []
    for name in names:
        encoding = ENCODINGS[name].encoding
        translator = VoiceTranslator(encoding)
        for phase, indices in chosen.items():
            for index in indices:
                wav = wav_file(soundscape(translator, images.images[index]), encoding.sample_rate)
                digest, label = hashlib.sha256(wav).hexdigest(), int(images.labels[index])
                stimuli.append(Stimulus(name, index, label, phase, digest))
                sounds.append(f"data:audio/wav;base64,{base64.b64encode(wav).decode()}")
    if len({one.sha256 for one in stimuli}) < len(stimuli):
        raise UserError(
            "two stimuli make the same sound; give other --encodings or another --seed."
        )

    conditions = {name: asdict(ENCODINGS[name]) for name in names}
    experiment = Experiment("", dataset, seed, tuple(classes), conditions, tuple(stimuli))
    longest = max(ENCODINGS[name].encoding.seconds for name in names)
    shown = {
        "scripts": scripts,
        "own_script": (HERE / "page.js").read_text(encoding="utf-8"),
        "consent": [text for text in paragraphs if text.strip()],
        "sounds": len(stimuli),
        "minutes": ceil(len(stimuli) * (longest + SECONDS_A_TRIAL) / 60),
    }
    about = {
        "keys": keys,
        "columns": COLUMNS,
        "descriptions": {name: describe(ENCODINGS[name].encoding) for name in names},
    }
    template = (HERE / "page.html.j2").read_text(encoding="utf-8")
    everything = json.dumps([asdict(experiment), shown, about, template], sort_keys=True)
    experiment = replace(experiment, version=hashlib.sha256(everything.encode()).hexdigest()[:12])
    page = render({**asdict(experiment), **about}, sounds, shown)
    output.mkdir(parents=True, exist_ok=True)
    write_file(output / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    experiment.save(output)
    return experiment


def read_script(path: Path) -> str:
    """A script of jsPsych, without the link to its source map.

    Raises:
        UserError: if npm has not installed it.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing, because jsPsych is not installed; run `npm ci` in {HERE.parent} "
            "(npm comes with Node.js)."
        )
    return re.sub(r"//# sourceMappingURL=.*", "", path.read_text(encoding="utf-8"))


def choice_keys(classes: Sequence[str]) -> list[str]:
    """The key of each class: its own name where all names are single letters or digits, else 1 to
    9, 0, a to z.

    Raises:
        UserError: if there are more classes than keys.
    """
    own = [name.lower() for name in classes]
    if len(set(own)) == len(own) and all(name in KEYS and len(name) == 1 for name in own):
        return own
    if len(classes) > len(KEYS):
        raise UserError(
            f"--dataset has {len(classes)} classes, but a choice among more than {len(KEYS)} has "
            "no keys; give another data set."
        )
    return list(KEYS[: len(classes)])


def choose_images(
    images: Digits, practice: int, test: int, classes: int, seed: int
) -> dict[str, list[int]]:
    """Choose different images for practice and test, each class equally often, or once more where
    the number is not a multiple of the classes.

    Returns:
        phase -> the indices of its images.

    Raises:
        UserError: if there are too few different images.
    """
    generator = torch.Generator().manual_seed(seed)
    by_class: list[list[int]] = [[] for _ in range(classes)]
    seen = set()
    for index in torch.randperm(len(images.labels), generator=generator).tolist():
        pixels = images.images[index].numpy().tobytes()
        if pixels not in seen:  # a copy of an image must not be in both phases
            seen.add(pixels)
            by_class[images.labels[index]].append(index)
    chosen: dict[str, list[int]] = {}
    for phase, count in (("practice", practice), ("test", test)):
        order = torch.randperm(classes, generator=generator).tolist()
        wanted = [order[position % classes] for position in range(count)]
        if any(wanted.count(label) > len(by_class[label]) for label in range(classes)):
            raise UserError(
                f"the data set has too few test images for {practice} practice and {test} test "
                "trials; lower --trials or --practice."
            )
        chosen[phase] = [by_class[label].pop() for label in wanted]
    return chosen


def soundscape(translator: VoiceTranslator, image: Tensor) -> Tensor:
    """The soundscape of one image, `(H, W)` uint8 -> `(samples,)` or `(2, samples)` int16."""
    return to_pcm16(translator(image[None]))[0]


def wav_file(pcm: Tensor, sample_rate: int) -> bytes:
    """`(samples,)` or `(2, samples)` int16 as the bytes of a WAV file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, pcm.numpy().T, sample_rate, "PCM_16", format="WAV")
    return file.getvalue()


def describe(encoding: Encoding) -> str:
    """The encoding for a participant, in plain words."""
    scan = getattr(encoding, "scan", "left_to_right").replace("_", " ")
    start, end = scan.split(" to ")
    high = {
        "top": f"the {'right' if start in ('top', 'bottom') else 'top'}",
        "middle": "the middle",
        "bottom": f"the {'left' if start in ('top', 'bottom') else 'bottom'}",
    }[encoding.pitch_position]
    return (
        f"Each sound scans a picture from {start} to {end}, in {encoding.seconds:g} seconds. "
        f"High tones stand for {high} of the picture. "
        f"Loud tones stand for {'dark' if encoding.negative else 'bright'} parts."
    )


def render(about: dict[str, Any], sounds: list[str], shown: dict[str, Any]) -> str:
    """Make the page, as HTML.

    Args:
        about: what the script of the page must know.
        sounds: of the stimuli, as data URIs.
        shown: the other values of the template.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    played = [{**one, "sound": sound} for one, sound in zip(about["stimuli"], sounds, strict=True)]
    text = json.dumps({**about, "stimuli": played}).replace("<", "\\u003c")
    return environment.get_template("page.html.j2").render(experiment=text, **shown)
