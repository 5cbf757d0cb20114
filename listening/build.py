"""The page of a listening test: one file with all of its sounds, which needs no network.

The template is page.html.j2, its script page.js. The loop over the trials is jsPsych's (J. R. de
Leeuw et al., Journal of Open Source Software 8(85):5351, 2023), which npm installs."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from common.files import UserError, write_file
from data import Digits, class_names, load_digits
from evaluation.encodings import ENCODINGS
from evaluation.report import template, wav
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
        UserError: if a name is unknown, the trials cannot be balanced, there are too few images,
            two stimuli sound the same, or jsPsych is not installed.
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
    scripts = [read_script(NODE_MODULES / path) for path in SCRIPTS]
    classes = class_names(dataset, data_root)
    images = load_digits(dataset, "test", data_root, "cpu")
    chosen = choose_images(images, practice, trials // len(names), len(classes), seed)

    sounds: dict[Stimulus, str] = {}
    for name in names:
        translator = VoiceTranslator(ENCODINGS[name].encoding)
        for phase, indices in chosen.items():
            for index in indices:
                sound, digest = sound_file(translator, images.images[index])
                if any(digest == one.sha256 for one in sounds):
                    raise UserError(
                        "two stimuli make the same sound; give other --encodings or another --seed."
                    )
                sounds[Stimulus(name, index, int(images.labels[index]), phase, digest)] = sound

    conditions = {name: asdict(ENCODINGS[name]) for name in names}
    longest = max(ENCODINGS[name].encoding.seconds for name in names)
    keys = choice_keys(classes)

    def render(experiment: Experiment) -> str:
        stimuli = [{**asdict(one), "sound": sound} for one, sound in sounds.items()]
        about = {
            **asdict(experiment),
            "stimuli": stimuli,
            "keys": keys,
            "columns": COLUMNS,
            "descriptions": {name: describe(ENCODINGS[name].encoding) for name in names},
        }
        return template("page.html.j2", HERE).render(
            experiment=json.dumps(about).replace("<", "\\u003c"),
            scripts=[*scripts, (HERE / "page.js").read_text(encoding="utf-8")],
            consent=consent.read_text("utf-8").splitlines() if consent else [],
            sounds=len(sounds),
            minutes=ceil(len(sounds) * (longest + SECONDS_A_TRIAL) / 60),
        )

    experiment = Experiment("", dataset, seed, tuple(classes), conditions, tuple(sounds))
    version = hashlib.sha256(render(experiment).encode()).hexdigest()[:12]
    experiment = replace(experiment, version=version)
    page = render(experiment)
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
    if len(set(own)) == len(own) and set(own) <= set(KEYS):
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
        if any(wanted.count(label) > len(by_class[label]) for label in order):
            raise UserError(
                f"the data set has too few test images for {practice} practice and {test} test "
                "trials; lower --trials or --practice."
            )
        chosen[phase] = [by_class[label].pop() for label in wanted]
    return chosen


def sound_file(translator: VoiceTranslator, image: Tensor) -> tuple[str, str]:
    """The soundscape of one image, `(H, W)` uint8: its WAV file as a data URI, and the SHA-256 of
    this file."""
    pcm = to_pcm16(translator(image[None]))[0]
    uri = wav(pcm.numpy(), translator.encoding.sample_rate)
    return uri, hashlib.sha256(base64.b64decode(uri.partition(",")[2])).hexdigest()


def describe(encoding: Encoding) -> str:
    """The encoding for a participant, in plain words."""
    start, end = encoding.scan.split("_to_")
    low, top = ("left", "right") if start in ("top", "bottom") else ("bottom", "top")
    high = {"top": f"the {top}", "middle": "the middle", "bottom": f"the {low}"}
    return (
        f"Each sound scans a picture from {start} to {end}, in {encoding.seconds:g} seconds. "
        f"High tones stand for {high[encoding.pitch_position]} of the picture. "
        f"Loud tones stand for {'dark' if encoding.negative else 'bright'} parts."
    )
