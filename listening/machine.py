"""The machine in the listening test: which class does the audio network hear?"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from common.files import UserError, explain_malformed
from data import load_digits
from listening.answers import write_answers
from listening.build import soundscape, wav_file
from listening.experiment import Experiment, Stimulus
from training.run import read_metrics
from training.upstream import load_audio_network, stage_folders
from voice_translator import Encoding, VoiceTranslator


def find_runs(folder: Path, experiment: Experiment) -> dict[str, list[Path]]:
    """Encoding -> the complete runs of stage one that learned it on the data set of the experiment.

    Args:
        folder: a run of stage one or three, or a folder with runs of stage one anywhere below it,
            such as `results` or `results/encodings`.
        experiment: the listening test.

    Raises:
        UserError: if there is none for some encoding.
    """
    if not folder.is_dir():
        raise UserError(f"--machine {folder} is missing; give a folder with runs.")
    if (folder / "metrics.json").is_file() and read_metrics(folder).get("stage") == "train_all":
        folder = stage_folders(folder)["train_vggish"]
    defaults = asdict(Encoding())
    runs: dict[str, list[Path]] = {name: [] for name in experiment.conditions}
    # Not in train_vggish.1 and the like: those are older runs that were moved aside.
    for path in [*folder.glob("metrics.json"), *sorted(folder.rglob("train_vggish/metrics.json"))]:
        record = read_metrics(path.parent)
        config = record["config"]
        if record.get("stage") != "train_vggish" or config.get("dataset") != experiment.dataset:
            continue
        for name, condition in experiment.conditions.items():
            # Defaults, because a run or a page may be older than a field of Encoding.
            with explain_malformed(path, "run train_vggish.py"):
                heard, asked = ({**defaults, **one["encoding"]} for one in (config, condition))
                same = all(config[key] == condition[key] for key in ("frames", "hop"))
            if same and heard == asked:
                runs[name].append(path.parent)
    if missing := [name for name, found in runs.items() if not found]:
        raise UserError(
            f"{folder} holds no complete run of train_vggish.py on {experiment.dataset} with the "
            f"encoding {', '.join(missing)}; train one, or name another folder with --machine."
        )
    return runs


@torch.no_grad()
def hear(
    runs: Sequence[Path], stimuli: Sequence[Stimulus], experiment: Experiment, data_root: Path,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """The probability that each run gives each class, `(runs, stimuli, classes)`.

    Args:
        runs: of stage one.
        stimuli: of one encoding.
        experiment: the listening test.
        data_root: the folder of the data sets.
        device: where it is computed.

    Raises:
        UserError: if the code now makes other sounds than those on the page.
    """
    name = stimuli[0].encoding
    encoding = Encoding(**experiment.conditions[name]["encoding"])
    translator = VoiceTranslator(encoding)
    images = load_digits(experiment.dataset, "test", data_root, "cpu").images
    for one in stimuli:
        is_there = one.index < len(images)
        if is_there:
            wav = wav_file(soundscape(translator, images[one.index]), encoding.sample_rate)
        if not is_there or hashlib.sha256(wav).hexdigest() != one.sha256:
            raise UserError(
                f"image {one.index} of {experiment.dataset} sounds otherwise than on the page "
                f"under the encoding {name}; use the code and the data that the page was made with."
            )
    heard = images[[one.index for one in stimuli]].to(device)
    answers = []
    for run in runs:
        front_end, network, _ = load_audio_network(run, device)
        answers.append(network(front_end(heard)).float().softmax(1).cpu())
    return torch.stack(answers)


def answer_by_machine(
    folder: Path, experiment: Experiment, data_root: Path, device: torch.device, output: Path
) -> list[Path]:
    """Write the machine's answers, a file for each run that all encodings have; returns the
    files."""
    labels: list[dict[Stimulus, int]] = []
    for name, runs in find_runs(folder, experiment).items():
        stimuli = [*experiment.select("practice", name), *experiment.select("test", name)]
        for number, heard in enumerate(hear(runs, stimuli, experiment, data_root, device)):
            if number == len(labels):
                labels.append({})
            labels[number] |= zip(stimuli, heard.argmax(1).tolist(), strict=True)
    paths = []
    for number, chosen in enumerate(labels, 1):
        if len(chosen) == len(experiment.stimuli):
            paths.append(output / f"machine_{number:03d}.csv")
            write_answers(paths[-1], experiment, "machine", number, chosen.__getitem__)
    return paths
