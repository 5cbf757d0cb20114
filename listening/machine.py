"""The machine in the listening test: which class does the audio network hear?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import UserError, explain_malformed
from data import load_digits
from listening.answers import write_answers
from listening.build import sound_file
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
    runs: dict[str, list[Path]] = {name: [] for name in experiment.conditions}
    # Not in train_vggish.1 and the like: those are older runs that were moved aside.
    for path in [*folder.glob("metrics.json"), *sorted(folder.rglob("train_vggish/metrics.json"))]:
        record = read_metrics(path.parent)
        config = record["config"]
        if record.get("stage") != "train_vggish" or config.get("dataset") != experiment.dataset:
            continue
        with explain_malformed(path, "run train_vggish.py"):
            heard = hearing(config)
        for name, condition in experiment.conditions.items():
            if heard == hearing(condition):
                runs[name].append(path.parent)
    if missing := [name for name, found in runs.items() if not found]:
        raise UserError(
            f"{folder} holds no complete run of train_vggish.py on {experiment.dataset} with the "
            f"encoding {', '.join(missing)}; train one, or name another folder with --machine."
        )
    return runs


def hearing(settings: dict[str, Any]) -> tuple[Encoding, int | None, int]:
    """The encoding, the frames and the hop in the settings of a run or in a condition. A field of
    the encoding that is younger than them has its default."""
    return Encoding(**settings["encoding"]), settings["frames"], settings["hop"]


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
    translator = VoiceTranslator(Encoding(**experiment.conditions[name]["encoding"]))
    images = load_digits(experiment.dataset, "test", data_root, "cpu").images
    for one in stimuli:
        image = images[one.index : one.index + 1]
        if not len(image) or sound_file(translator, image[0])[1] != one.sha256:
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
    runs = find_runs(folder, experiment)
    chosen: dict[Stimulus, list[int]] = {}  # by each run
    for name, own in runs.items():
        stimuli = [one for one in experiment.stimuli if one.encoding == name]
        heard = hear(own, stimuli, experiment, data_root, device)
        chosen |= zip(stimuli, heard.argmax(2).T.tolist(), strict=True)
    paths = []
    for run in range(min(map(len, runs.values()))):
        paths.append(output / f"machine_{run + 1:03d}.csv")
        choose = {one: labels[run] for one, labels in chosen.items()}.__getitem__
        write_answers(paths[-1], experiment, "machine", run + 1, choose)
    return paths
