"""An honest rating of what stage three imagined: by judges that took no part, against real digits,
and against its source.

    python evaluate.py                                # rates results/train_all
    python evaluate.py --name train_all_published     # or another run of stage three
    # where the model is in doubt, it thinks again before it draws
    python evaluate.py --second-thoughts 8
    # several ratings, mean and spread over seeds
    python evaluate.py --compare seed0/results seed1/results seed2/results
    python evaluate.py --verify                       # is results/ what it claims to be?

Reads a complete run of `train_all.py` and what the stages before it left in `results/`. It hears
the whole test set and writes `results/evaluation/` (for another `--name`:
`results/evaluation_<name>/`): metrics.json, every number as a fraction; imagined.png, the grid of
what was rated; and index.html, one self-contained page to look at and to listen to. Two of the
judges are trained on first use, and kept in `results/judges/`: on MNIST some minutes on one core.
`--second-thoughts` writes `results/evaluation_second_thoughts/`; `--part validation`, which hears
the validation part, writes `results/evaluation_validation/`.

With `--compare`, each folder holds the metrics.json of a rating, or is a results folder (then its
`evaluation/` is taken). Runs that differ in nothing but seeds and places are one row; it prints the
table, and writes `results/comparison/`: table.md and metrics.json. Nothing is rated anew.

With `--verify`, it prints a line for each stage, and a verdict. It hashes checkpoints, earlier
stages' checkpoints and data, and holds them against the records; compares configuration, numbers
and epochs in checkpoint, metrics and log; and measures the reported numbers again, those of the
rating too, if there is one. The first mismatch ends it with exit code 2. It cannot say that the
training was as recorded: only training again can."""

import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from common.cli import command_line
from common.device import choose_device, device_name, precision_name
from common.files import check_writable
from common.locks import lock_folder, unlock_folder
from common.provenance import code_revision, package_versions
from data import default_root
from evaluation.compare import compare
from evaluation.rating import (
    input_hashes,
    judge_settings,
    load_stages,
    rate_run,
    rating_folder,
    require_same_rating,
    write_rating,
)
from evaluation.verify import verify
from training.run import config_to_dict, read_log


@dataclass(frozen=True)
class Config:
    # what is rated
    name: str = "train_all"  # of the run of stage three, a folder in results/
    # of the data, to be heard; what is to be chosen, choose by validation
    part: Literal["test", "validation"] = "test"
    # steps by which the model thinks again of a sound that it is in doubt of, before it draws.
    refine_steps: int = 0
    # See LatentRefiner. They need no training, so they are no setting of a run. Published: 0.
    # Measured on MNIST, in the README's runs: 0: 98.9 % read right by the judge; 8: 99.4 %
    output: Path | None = (
        # None: results/evaluation, followed by which part, name and second thoughts; or comparison
        None
    )
    compare: tuple[Path, ...] = ()  # set these ratings side by side, and rate nothing
    verify: bool = False  # say whether the results are what they claim, and rate nothing

    # the judges that are trained on first use; other values than those they were trained with train
    # them again
    judges: Path | None = (
        # the folder that keeps them. None: results/judges; name another run's to spare the training
        None
    )
    # of the transformer; None: 8 of MNIST, 30 of the small handwritten digits
    judges_epochs: int | None = None
    # of the transformer; None: 128 of MNIST, 32 of the small handwritten digits
    judges_batch: int | None = None
    # real digits with which the kernel classifier compares; fewer make it quicker and worse
    kernel_centres: int = 2000

    # the run
    # of the two judges, of the samples from noise, and of the halves of what is heard
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    data_root: Path = field(default_factory=default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs


def main(config: Config) -> dict[str, Any]:
    """Rate, compare, or verify; returns what metrics.json says, or the numbers that were measured
    again."""
    if config.compare:
        return compare(config.compare, config.output or config.results / "comparison")
    if config.verify:
        return verify(config)
    started = time.perf_counter()
    device = choose_device(config.device)
    output = rating_folder(config)
    stages = load_stages(config)
    lock_folder(output)
    check_writable(output)
    require_same_rating(output, config)
    log = read_log(config.results / config.name / "log.jsonl")
    rated = rate_run(config, device)
    record = {
        "stage": "evaluate",
        "dataset": rated.dataset,
        "part": config.part,
        **rated.numbers,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{device_name(device)}, {precision_name(device)}",
        "seed": config.seed,
        "revision": code_revision(),
        "versions": {
            **package_versions(),
            **{name: version(name) for name in ("torchmetrics", "torch-fidelity")},
        },
        "config": config_to_dict(config),
        "judge_settings": config_to_dict(judge_settings(config, rated.dataset)),
        "stages": stages,
        "residual_judge": rated.judge,
        "sha256": input_hashes(config, rated.digits),
    }
    write_rating(output, record, rated, log)
    unlock_folder(output)
    for name, reading in record["judges"].items():
        if reading["real"]["accuracy"] < 0.9:
            more = (
                "mnist_classify_train.py --judge-epochs"
                if name == "residual"
                else "--judges-epochs"
            )
            print(
                f"the {name} judge reads {reading['real']['accuracy']:.2%} of real digits: not to be trusted; raise {more}"
            )
    said = ", ".join(
        f"{reading['accuracy']:.2%} by the {name} judge"
        for name, reading in record["judges"].items()
    )
    print(
        f"imagined digits read right: {said}; {record['classifier']['accuracy']:.2%} by the classifier that was to be "
        f"pleased. {output}/metrics.json, {output}/index.html"
    )
    return record


if __name__ == "__main__":
    command_line(Config, main, __doc__)
