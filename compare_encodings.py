"""A machine rates image-to-sound encodings: each is learned, imagined with and rated over several
seeds, beside the primary.

    python compare_encodings.py                    # the full schedule; for a GPU
    # narrower and shorter, for two cores; its minutes are in the README
    python compare_encodings.py --quick
    python compare_encodings.py --quick --only primary tanh linear mel --seeds 0 1 2 3 4
    # a second process, on another GPU, shares the work through the folder
    python compare_encodings.py --device cuda:1

An encoding and a seed are a cell: stage one learns to hear it, stage three to imagine, and
`evaluate.py` rates the result. Stage two is trained once and shared by all, as are the judges.
Beside the learned listener stands a linear inverse from the log-mel to the image, so that a
weakness of the listener is not taken for one of the sound.

Writes `results/encodings/`:
    comparison.csv           a row for each encoding and seed
    conclusions.md           what can be concluded from it, and what cannot
    ratings.png, sheet.png   the ratings with their intervals; the same ten test digits under every encoding
    memory-<key>/            a results folder with stage two and the judges
    <name>-<key>/<seed>/     a results folder with stages one and three, and their rating in evaluation/
    <name>-<key>/linear/     the linear inverse
A key stands for the settings. It can be stopped at any time, and the same command goes on; a
finished cell is never run again. An encoding that is new in the header runs alone; another
schedule, objective or rating runs all cells anew. Tables and pictures show what the last command
named: to see all, name all at the end, which takes seconds."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.cli import command_line, validate_settings
from common.files import UserError
from data import default_root
from emnist_dcgan import Config
from evaluate import Config
from evaluation.sweep import BASELINE, Condition, run_missing
from mnist_classify_train import Config
from train_all import Config
from train_vggish import Config
from voice_translator import Encoding

ENCODINGS: dict[str, Condition] = {
    BASELINE: Condition(),
    "longer": Condition(
        Encoding(seconds=2.0)
    ),  # as it is heard: 208 frames, so the network is larger too
    "longer_in_112_frames": Condition(
        Encoding(seconds=2.0), hop=305
    ),  # as many frames a column, and the primary's network
    "primary_in_208_frames": Condition(
        frames=208
    ),  # the larger network, and silence: what the network alone brings
    "tanh": Condition(Encoding(curve="tanh")),
    "middle": Condition(
        Encoding(pitch_position="middle")
    ),  # where the high pitch sits; the primary's is on top
    "bottom": Condition(Encoding(pitch_position="bottom")),
    "linear": Condition(Encoding(curve="linear")),
    "mel": Condition(Encoding(curve="mel")),
    "500_to_5000_hz": Condition(Encoding(lowest_hz=500.0, highest_hz=5000.0)),
    "contrast_0": Condition(Encoding(contrast=0.0)),
    "64_by_64": Condition(Encoding(rows=64, columns=64)),
}


@dataclass(frozen=True)
class Schedule:
    """The headers of the stages, as each script has them; the seed, the places and the encoding are
    filled in."""

    hear: Config = Config()
    read: Config = Config()
    remember: Config = Config()
    imagine: Config = Config(batch=32, epochs=7, joint_epochs=6, joint_learning_rate=1e-3)
    rate: Config = Config(judges_epochs=8, judges_batch=128)
    # from which the linear inverse is made; its memory grows with their square, here 2 GB
    linear_images: int = 10_000


FULL = Schedule()  # the published schedule, and that of the sound-consistent objective beside it


QUICK = Schedule(
    hear=Config(width=16, epochs=2, images_per_epoch=10_000, batch=32, learning_rate=1e-3, late_epoch=2),
    read=Config(rotation=10, learning_rate=0.02, epochs=4, late_epoch=4, judge_epochs=3),
    remember=Config(
        width=32, epochs=5, images_per_epoch=6400, batch=32, learning_rate=1e-3, discriminator_learning_rate=2e-4,
        instance_noise=0.5,
    ),
    imagine=Config(batch=32, epochs=3, joint_epochs=2, images_per_epoch=6_000, joint_learning_rate=1e-3),
    rate=Config(judges_epochs=2, judges_batch=128),
    linear_images=5_000,
)  # fmt: skip


OBJECTIVES = {
    "sound-consistent": {
        "sound_consistency": 1.0, "distance": "multiscale", "loudness_fraction": 0.8, "rehearsal": 5.0, "detail": 10.0,
        "grey": 1.0, "generator_lr_scale": 0.2, "dropout": False, "augmentation": 0.5, "classifier_augmentation": 1.0,
    },
    "published": {},  # train_all.py's default
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    # what is compared
    only: tuple[str, ...] = ()  # names in ENCODINGS, this script's header; empty: all
    seeds: tuple[int, ...] = (
        0,
        1,
        2,
    )  # of stages one and three; with one, nothing can be concluded
    # of stage three, on one schedule
    objective: Literal["sound-consistent", "published"] = "sound-consistent"

    # what it costs, and the memory that all share
    quick: bool = False  # QUICK, above, not FULL
    # of EMNIST. Published: mnist
    split: Literal["mnist", "digits", "byclass", "bymerge", "balanced", "letters"] = "mnist"
    file: Literal["train", "test"] = "train"  # of EMNIST: which of its two official files

    # the run
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    data_root: Path = field(default_factory=default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs


def main(config: Config) -> list[dict[str, Any]]:
    """Run what is not there yet, and compare; returns the rows of comparison.csv."""
    if processes.launched() > 1:
        raise UserError(
            "torchrun would have all processes run the same cell; start this script once for each GPU."
        )
    try:
        return run_missing(config)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on.", file=sys.stderr)
        sys.exit(130)


def scheduled(config: Config) -> Schedule:
    schedule = QUICK if config.quick else FULL
    schedule = replace(
        schedule,
        imagine=replace(schedule.imagine, **OBJECTIVES[config.objective]),
        remember=replace(schedule.remember, split=config.split, file=config.file),
    )
    for header in (
        schedule.hear,
        schedule.read,
        schedule.remember,
        schedule.imagine,
        schedule.rate,
    ):
        validate_settings(header)
    return schedule


if __name__ == "__main__":
    command_line(Config, main, __doc__)
