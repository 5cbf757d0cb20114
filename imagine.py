"""Your own pictures through a trained model: each is heard, imagined, and classified.

    python imagine.py my.png                           # the newest complete run in results
    python imagine.py my.png more.png photos/ --negative --centre
    python imagine.py my.png --run elsewhere/train_all # a run at another place

It prints a line for each picture. It writes one picture of all, imagined.png, and the same numbers
beside it, imagined.json. MNIST's digits are white on black, in the middle; --negative and --centre
bring a scan into this form. The model knows only what its data set held; another picture becomes
what is nearest to it."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.cli import Limit, command_line
from common.device import choose_device
from common.files import UserError, write_json
from common.media import DRAWINGS, find_pictures, pyplot, read_picture, require_suffix, save_figure
from data import default_root
from evaluation.listener import READERS, Explanation, Listener, as_digit, is_bright
from evaluation.rating import find_run
from vggish import BANDS, SAMPLE_RATE


@dataclass(frozen=True)
class Config:
    # Pictures, folders of pictures, or globs in quotes.
    pictures: tyro.conf.Positional[tuple[Path, ...]] = ()
    # The picture to write; the numbers are written beside it, with the ending .json.
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("imagined.png")
    negative: bool = False  # The pictures are dark on bright.
    # Cut out what is bright, and set it in the middle, as large as in MNIST.
    centre: bool = False
    refine_steps: Annotated[int, Limit(0)] = 0  # Steps of latent refinement.
    # Run of stage three: the name of a folder in results, or a path. None: the newest complete run.
    run: Path | None = None
    device: str = "cpu"  # auto, cpu, cuda or cuda:1.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.


def main(config: Config) -> list[dict[str, Any]]:
    """Imagine all pictures; returns the numbers of each."""
    if not config.pictures:
        raise UserError("no picture is given; name one, a folder of them, or a glob in quotes.")
    require_suffix(config.output, DRAWINGS, "a drawing")
    paths = find_pictures(config.pictures)
    if config.output.resolve() in [path.resolve() for path in paths]:
        raise UserError(f"--output {config.output} is one of the pictures; give another name.")
    pictures = [read_picture(path) for path in paths]
    run = find_run(config.run, config.results)
    listener = Listener(run, choose_device(config.device), config.data_root)
    if listener.missing:
        print(f"{run} was copied without {', '.join(listener.missing)}; fewer classifiers read.")
    for path, picture in zip(paths, pictures, strict=True):
        if is_bright(picture) and not config.negative:
            print(f"{path} is mostly bright, and MNIST is white on black; perhaps add --negative.")
    digits = [as_digit(picture, config.negative, config.centre) for picture in pictures]
    made = [listener.explain(digit[None], config.refine_steps) for digit in digits]
    numbers = []
    for path, one in zip(paths, made, strict=True):
        readings, correlation = one.readings(listener.classes), one.correlations.item()
        numbers.append(
            {
                "picture": str(path),
                "correlation": correlation,
                "refined": one.refined.item(),
                "readings": {
                    name: {"class": best, "probability": probability}
                    for name, (best, probability) in readings.items()
                },
                "probabilities": {
                    name: dict(zip(listener.classes, shares[0].tolist(), strict=True))
                    for name, shares in one.probabilities.items()
                },
            }
        )
        print(f"{path}: {'; '.join([*sentences(readings), f'correlation {correlation:.3f}'])}")
    beside = config.output.with_suffix(".json")
    for path in (config.output, beside):
        if path.exists():
            print(f"{path} is replaced.")
    draw(config.output, paths, made, listener)
    write_json(beside, {"run": str(run), "pictures": numbers})
    print(f"{config.output}, {beside}")
    return numbers


def sentences(readings: dict[str, tuple[str, float]]) -> list[str]:
    return [f"{READERS[name]}: {best} ({p:.0%})" for name, (best, p) in readings.items()]


def draw(path: Path, names: list[Path], made: list[Explanation], listener: Listener) -> None:
    """Draw a row for each picture: heard, its log-mel, imagined, and how it was classified.

    Args:
        path: of the drawing.
        names: of the pictures.
        made: the explanation of each, of one image.
        listener: that explained them.
    """
    figure, axes = pyplot().subplots(
        len(made), 4, figsize=(11, 2.3 * len(made) + 0.3), width_ratios=(1, 1.6, 1, 2),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    look: dict[str, Any] = {"origin": "lower", "cmap": "magma", "vmin": -4.6, "vmax": 3}
    for row, name, one in zip(axes, names, made, strict=True):
        logmel = one.logmels[0, 0].cpu()
        extent = (0, len(logmel) * listener.model.front_end.hop / SAMPLE_RATE, 0, BANDS)
        show_grey(row[0], one.heard[0], 0, name.name)
        row[1].imshow(logmel.T.numpy(), aspect="auto", extent=extent, **look)
        row[1].set(yticks=(), xlabel="s")
        show_grey(row[2], one.imagined[0, 0], -1, f"correlation {one.correlations.item():.2f}")
        row[3].axis("off")
        for index, text in enumerate(sentences(one.readings(listener.classes))):
            row[3].text(0, 0.85 - 0.18 * index, text, transform=row[3].transAxes)
    for axis, title in zip(axes[0], ("heard", "log-mel", "imagined", "classified"), strict=True):
        axis.set_title(title)
    save_figure(path, figure)


def show_grey(axis: Any, image: Tensor, black: float, label: str) -> None:
    """Show `(H, W)` grey levels from `black` to 1, with a label below."""
    axis.imshow(image.cpu().numpy(), cmap="gray", vmin=black, vmax=1)
    axis.set(xticks=(), yticks=(), xlabel=label)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
