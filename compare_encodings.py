"""Rate image-to-sound encodings: train the model with each of them, and compare the ratings.

    python compare_encodings.py             # all encodings, three seeds; for a GPU
    python compare_encodings.py small       # a preset: narrower and shorter, for two cores
    python compare_encodings.py demo        # two encodings, two seeds, and no download
    python compare_encodings.py small --only primary tanh mel --seeds 0 1 2 3 4

The encodings stand in evaluation/encodings.py. An encoding with a seed is a trial: stage one learns
to hear it, stage three to imagine, and the result is rated. Stage two and the judges are trained
once for all. A linear decoder shows how much of the image each sound holds.

It writes `results/encodings/`:
    conclusions.md           a table for each rating: means, differences to the primary encoding, p
    comparison.csv           a row for each encoding and seed
    ratings.png, sheet.png   the ratings; the same test digits under every encoding
    sounds.html              a page to hear the same test digits under every encoding
    memory-<key>/            a results folder with stage two and the judges
    <name>-<key>/<seed>/     a results folder with stages one and three, and output.txt
    <name>-<key>/linear/     the linear decoder

With `--engine ray` the trials run on many machines: docs/cluster.md.

Time of each preset:
    published   not measured
    small       two cores: 12 of the encodings took 1 h 51 min with two workers; GPU: not measured
    demo        two cores: 4 minutes, or 3 with two workers; GPU: not measured

A key stands for the settings; settings.json holds them. After Ctrl-C the same command continues,
and a finished trial never runs again. The tables show all encodings in the folder that are finished
with these settings and seeds, and the correction counts them."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

import emnist_dcgan
import evaluate
import mnist_classify_train
import train_all
import train_vggish
from common.cli import Count, command_line
from common.device import choose_device
from common.files import UserError
from data import default_root
from evaluation.encodings import BASELINE, ENCODINGS
from evaluation.ray_engine import ray_cluster, run_ray
from evaluation.sweep import Schedule, Sweep, run_sweep, worker_devices


@dataclass(frozen=True)
class Config:
    # -- comparison
    only: tuple[str, ...] = ()  # Names in evaluation/encodings.py. Empty: all.
    # Seeds of stages one and three. With one seed no difference can be tested.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Objective of stage three: its preset of this name.
    objective: Literal["sound-consistent", "published"] = "sound-consistent"

    # -- stages
    # Presets of the stages. The one named `small` is made shorter here; see SHORTER.
    stages: Literal["published", "small", "demo"] = "published"
    # Of EMNIST. Published: mnist.
    split: Literal["mnist", "digits", "byclass", "bymerge", "balanced", "letters"] = "mnist"
    # Which of EMNIST's two official files to learn from.
    emnist_part: Literal["train", "test"] = "train"

    # -- run
    # Trials that run at a time. None: one for each GPU, or one. Without a GPU the workers share the
    # cores. Training on fewer cores rounds otherwise, so each number differs as by another seed.
    workers: Count | None = None
    # What runs the trials: the workers of this machine, or a Ray cluster (docs/cluster.md).
    engine: Literal["local", "ray"] = "local"
    # Address of the Ray cluster, `host:port` or `auto`. None: $RAY_ADDRESS, or the cluster that
    # runs on this machine, or a new one.
    address: str | None = None
    # Keep the networks of a rated trial. They take most of the disk. Its numbers and pictures stay
    # anyway, but without its networks it cannot be rated again.
    keep_models: bool = True
    device: str = "auto"  # auto (each worker has its own GPU), cpu, cuda or cuda:1.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.


PRESETS = {
    "published": Config(),
    "small": Config(stages="small"),
    "demo": Config(stages="demo", only=(BASELINE, "tanh"), seeds=(0, 1)),
}

# Preset of the stages -> objective -> preset of train_all.py.
JOINT = {
    "published": {"sound-consistent": "sound-consistent", "published": "published"},
    "small": {"sound-consistent": "small-sound-consistent", "published": "small"},
    "demo": {"sound-consistent": "sound-consistent", "published": "demo"},
}
# What `small` has shorter than the stages' own presets, because stages one and three are trained
# again for each encoding and seed.
SHORTER: dict[str, dict[str, Any]] = {
    "vggish": {"epochs": 2, "images_per_epoch": 10_000, "batch": 32, "late_epoch": 2},
    "classifier": {"epochs": 4, "late_epoch": 4, "cnn_epochs": 3, "vit_epochs": 2},
    "joint": {"epochs": 3, "joint_epochs": 2, "images_per_epoch": 6000, "batch": 32},
}


def schedule_of(config: Config) -> Schedule:
    """The settings of the stages, from their presets."""
    gan = emnist_dcgan.PRESETS[config.stages]
    schedule = Schedule(
        vggish=train_vggish.PRESETS[config.stages],
        classifier=mnist_classify_train.PRESETS[config.stages],
        gan=replace(gan, split=config.split, emnist_part=config.emnist_part),
        joint=train_all.PRESETS[JOINT[config.stages][config.objective]],
        evaluation=evaluate.Config(),
    )
    if config.stages == "small":
        shorter = {name: replace(getattr(schedule, name), **one) for name, one in SHORTER.items()}
        schedule = replace(schedule, **shorter, linear_images=5000)
    return schedule


def main(config: Config) -> list[dict[str, Any]]:
    """Run the trials that are not finished, and compare; returns the rows of comparison.csv."""
    schedule = schedule_of(config)
    mains = {
        "vggish": train_vggish.main,
        "classifier": mnist_classify_train.main,
        "gan": emnist_dcgan.main,
        "joint": train_all.main,
        "evaluation": evaluate.main,
    }
    misplaced = {"local": "address", "ray": "workers"}[config.engine]
    if getattr(config, misplaced) is not None:
        raise UserError(f"--{misplaced} is not for --engine {config.engine}; leave it out.")
    data_root, results = config.data_root, config.results
    if config.engine == "ray":  # whose tasks have another working directory
        data_root, results = data_root.absolute(), results.absolute()
    chosen = ENCODINGS, config.only, config.seeds
    sweep = Sweep(*chosen, schedule, mains, data_root, results, config.keep_models)
    gan = schedule.gan.dataset
    gan += f" ({config.split}, {config.emnist_part})" if gan == "emnist" else ""
    title = f"Presets: {config.stages}. Objective: {config.objective}. "
    title += f"Heard: {schedule.vggish.dataset}. GAN: {gan}."
    if config.engine == "ray":
        with ray_cluster(config.address, config.device) as devices:
            return run_sweep(sweep, devices, title, run_ray)
    choose_device(config.device)
    return run_sweep(sweep, worker_devices(config.workers, config.device), title)


if __name__ == "__main__":
    command_line(Config, main, __doc__, PRESETS)
