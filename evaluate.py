"""Rate what a run of stage three imagines: by judges that took no part in training, against real
images, and against what was heard.

    python evaluate.py                             # the newest complete run in results
    python evaluate.py --name train_all            # the run results/train_all
    python evaluate.py --name elsewhere/train_all  # a run at another place
    python evaluate.py --refine-steps 8            # with latent refinement of uncertain sounds
    python evaluate.py --compare seed0/results/train_all seed1/results/train_all
    python evaluate.py --verify                    # check a run and its ratings
    python evaluate.py --controls                  # controls: does the model really hear?

It reads a complete run of train_all.py and the runs that it was made from. It writes into the run
`evaluation/`: metrics.json, every number as a fraction; imagined.png, a grid of heard and imagined
images; and index.html, a page to look at and to listen to. An older rating there is moved aside.

`--compare` writes `results/comparison/`, table.md and metrics.json. Each folder is a run with a
rating, or a rating; runs that differ in seeds alone are one row. `--verify` compares the hashes of
checkpoints and data with the records, and computes the ratings again. It ends with exit code 2 at
the first mismatch. `--controls` writes `controls/` into the run; see evaluation/controls.py."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.cli import Limit, Seed, command_line
from common.device import choose_device
from common.files import UserError
from data import default_root
from evaluation.compare import compare
from evaluation.controls import run_controls
from evaluation.rating import find_run, rate
from evaluation.verify import verify


@dataclass(frozen=True)
class Config:
    # -- rating
    # Run of stage three: the name of a folder in results, or a path. None: the newest complete run.
    name: Path | None = None
    # Part of the data that is heard. Whatever you choose, choose it by the validation part.
    part: Literal["test", "validation"] = "test"
    # Steps of latent refinement for sounds of which the model is not certain. Published: 0. It
    # needs no training. With 8, MNIST's judge cnn is right on 99.4 %, with 0 on 98.9 %.
    refine_steps: Annotated[int, Limit(0)] = 0

    # -- instead of a rating
    compare: tuple[Path, ...] = ()  # Compare the ratings in these folders.
    verify: bool = False  # Check the run and its ratings against their records.
    controls: bool = False  # Run the controls of the run.

    # -- run
    # Folder to write into. None: evaluation or controls in the run, or comparison in results.
    output: Path | None = None
    # Seed of the samples from noise, of the halves of the real images, and of the controls.
    seed: Seed = 0
    device: str = "auto"  # auto, cpu, cuda or cuda:1.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.


def main(config: Config) -> dict[str, Any]:
    """Rate, compare, verify, or run the controls; returns what metrics.json says."""
    chosen = [f"--{mode}" for mode in ("compare", "verify", "controls") if getattr(config, mode)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other; give one of them.")
    if config.compare:
        return compare(config.compare, config.output or config.results / "comparison")
    if config.controls and config.part != "test":
        raise UserError("--controls hears the test part; leave out --part.")
    device = choose_device(config.device)
    run = find_run(config.name, config.results)
    if config.verify:
        return verify(run, config.data_root, device, config.output)
    rest = config.refine_steps, config.seed, config.data_root, device, config.output
    return run_controls(run, *rest) if config.controls else rate(run, config.part, *rest)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
