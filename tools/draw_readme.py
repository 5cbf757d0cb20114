"""The README's pictures, from what the stages left in `results/`.

    # the folders train_all_published and train_all in results/
    python -m ims.draw
    python -m ims.draw --results other/results

Writes into `ims/`: overview.png (from image to imagined image), imagined.png (heard / published
objective / sound-consistent, the first test digit of each class), refine_steps.png (heard / drawn
at first / after thinking again, the first test digit of each class that the judge then reads as
another), epochs.png (what the judge says, the more was heard) and samples.png; copies of what other
scripts drew, where they did: soundscapes.png, twins.png, unheard.png, ratings.png, sheet.png; and
photo.png, a photograph beside the spectrograms of its soundscape in both ears. Every digit is
chosen by its index, none by its beauty."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

from common.cli import command_line
from common.files import write_file
from common.media import draw_spectrogram
from data import Digits, default_root, load_digits
from data.resize import upsample
from evaluation.imagine import imagine, load_refiner
from evaluation.metrics import predict_labels
from training.figures import first_of_each_class, save_labelled_rows
from training.run import read_log, read_metrics
from training.upstream import load_judge, load_model
from vggish import SAMPLE_RATE
from voice_translator import Encoding, VoiceTranslator

IMS = Path(__file__).parent
COPIED = (
    "train_vggish/soundscapes.png",
    "controls/twins.png",
    "controls/unheard.png",
    "encodings/ratings.png",
    "encodings/sheet.png",
)


@dataclass(frozen=True)
class Config:
    results: Path = Path("results")
    published: str = "train_all_published"  # the run with the published objective
    consistent: str = "train_all"  # the run with the sound-consistent one
    refine_steps: int = 8  # steps of them, for their picture
    out: Path = IMS
    data_root: Path = field(default_factory=default_root)


def main(config: Config) -> None:
    names = {"published objective": config.published, "sound-consistent": config.consistent}
    models = {
        title: load_model(config.results / name / "checkpoint.pt") for title, name in names.items()
    }
    dataset = models["sound-consistent"][3]
    test = load_digits(dataset, "test", config.data_root, "cpu")
    shown = first_of_each_class(test.labels, 1)[:, 0]
    digits = Digits(test.images[shown], test.labels[shown])
    rows = {"heard": upsample(digits.images)}
    for title, (ear, network, generator, _) in models.items():
        rows[title] = imagine(ear, network, generator, digits.images)[0]
    save_labelled_rows(config.out / "imagined.png", list(rows), list(rows.values()))
    draw_overview(
        config.out / "overview.png",
        models["sound-consistent"],
        digits.images[2:3],
        rows["sound-consistent"][2],
    )
    draw_second_thoughts(config, config.out / "refine_steps.png", models["sound-consistent"], test)
    train = load_digits(dataset, "train", config.data_root, "cpu")
    folders = {title: config.results / name for title, name in names.items()}
    draw_epochs(config.out / "epochs.png", folders, len(train.labels))
    for picture in COPIED:
        source = config.results / picture
        if source.exists():
            write_file(
                config.out / source.name, lambda path, source=source: copy_small(source, path)
            )
    samples = sorted((config.results / "emnist_dcgan").glob("samples_*.png"))[-1]
    write_file(config.out / "samples.png", lambda path: save_small(samples, path))
    draw_photo(config.out / "photo.png")


def draw_overview(path: Path, model: tuple, image: torch.Tensor, imagined: torch.Tensor) -> None:
    """The whole model on one test digit: `(1, 28, 28)` uint8, and `(1, 64, 64)` in [-1, 1] imagined
    from its sound."""
    ear, network, _, _ = model
    with torch.no_grad():
        sound = ear.translator(image)
        logmel = ear.log_mel(sound)
        embedding = network.embed(logmel)
    figure, axes = plt.subplots(
        1, 5, figsize=(13, 2.7), width_ratios=(1, 1.5, 1.3, 0.8, 1), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.25)
    axes[0].imshow(image[0], cmap="gray", vmin=0, vmax=255)
    axes[0].set_title("an image")
    seconds = torch.arange(sound.shape[1]) / ear.encoding.sample_rate
    axes[1].plot(seconds, sound[0], linewidth=0.2, color="black")
    axes[1].set(title="its soundscape: the vOICe", xlabel="s", ylim=(-1, 1), yticks=())
    extent = (0, ear.frames * ear.hop / SAMPLE_RATE, 0, 64)
    axes[2].imshow(
        logmel[0, 0].T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-4.6,
        vmax=3,
        extent=extent,
    )
    axes[2].set(title="what VGGish hears: a log-mel", xlabel="s", yticks=())
    axes[3].imshow(embedding.reshape(10, 10), cmap="coolwarm", vmin=-3, vmax=3)
    axes[3].set_title("100 numbers")
    axes[4].imshow(imagined[0], cmap="gray", vmin=-1, vmax=1)
    axes[4].set_title("what the DCGAN imagines")
    for axis in (axes[0], axes[3], axes[4]):
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[1:]:
        axis.annotate("→", (0, 0.5), (-0.02, 0.5), xycoords="axes fraction", fontsize=16, ha="right", va="center",
                      annotation_clip=False)  # fmt: skip
    save(path, figure)


def draw_second_thoughts(config: Config, path: Path, model: tuple, digits: Digits) -> None:
    """Of each class, the first digit of which the judge then reads another digit, for better or
    worse; prints how many."""
    ear, network, generator, dataset = model
    judge = load_judge(config.results, dataset, torch.device("cpu"))
    thoughts = (config.results, config.refine_steps)
    refiner = load_refiner(*thoughts, ear, generator, dataset, torch.device("cpu"))
    drawn = [
        imagine(ear, network, generator, digits.images, refiner=again)[0]
        for again in (None, refiner)
    ]
    before, after = (predict_labels(judge, images) for images in drawn)
    changed, better, worse = before != after, after == digits.labels, before == digits.labels
    print(
        f"after thinking again the judge reads {changed.sum()} of {len(changed)} as another digit: "
        f"{(changed & better).sum()} for better, {(changed & worse).sum()} for worse, "
        f"{(changed & ~better & ~worse).sum()} still wrong"
    )
    shown = torch.cat(
        [torch.nonzero(changed & (digits.labels == digit))[:1, 0] for digit in range(10)]
    )
    if len(shown):
        rows = (upsample(digits.images[shown]), *(images[shown] for images in drawn))
        save_labelled_rows(path, ["heard", "drawn at first", "after thinking again"], list(rows))


def draw_epochs(path: Path, folders: dict[str, Path], images: int) -> None:
    """What the training classifier and the judge read right, and what finds its source, after every
    epoch: over the sounds heard until then, as epochs are of any length; `images` where none was
    given."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3), layout="constrained")
    panels = {
        "accuracy": "read right by the classifier\nthat is to be pleased",
        "judge_accuracy": "read right by the judge",
        "retrieval": "finds its source among 1,000",
    }
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for label, folder in folders.items():
            heard = (read_metrics(folder)["config"]["images_per_epoch"] or images) / 1000
            lines = read_log(folder / "log.jsonl")
            x, y = (
                [heard * line["epoch"] for line in lines],
                [line[f"validation_{name}"] for line in lines],
            )
            axis.plot(x, y, ".-", label=label)
        axis.set(title=title, xlabel="thousands of sounds heard", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of the validation part")
    axes[2].legend(loc="center right")
    save(path, figure)


def draw_photo(path: Path) -> None:
    """scikit-learn's photograph of a temple (danielbuechele, flickr, CC BY 2.0) as the vOICe sounds
    it, in stereo."""
    encoding = Encoding.hificode(stereo=True)
    translator = VoiceTranslator(encoding)
    photo = torch.from_numpy(
        np.array(Image.fromarray(load_sample_image("china.jpg")).convert("L"))
    )[None]
    image = translator.resized(photo) / 255
    hz = (encoding.lowest_hz, encoding.highest_hz)
    draw_spectrogram(path, image[0], translator(image)[0], encoding.sample_rate, hz, log=True)
    with Image.open(path) as drawn:
        smaller = drawn.convert("RGB").resize(
            (drawn.width * 7 // 10, drawn.height * 7 // 10), Image.Resampling.LANCZOS
        )
    write_file(path, lambda beside: smaller.save(beside, optimize=True))


def save(path: Path, figure: plt.Figure) -> None:
    write_file(path, lambda beside: figure.savefig(beside, dpi=110))
    plt.close(figure)


def copy_small(source: Path, path: Path, most: int = 300_000) -> None:
    """A copy; of a picture that has more than `most` bytes, in as many colours as fit."""
    shutil.copyfile(source, path)
    for colours in (256, 128, 64, 32):
        if path.stat().st_size <= most:
            return
        Image.open(source).convert("RGB").quantize(colours).save(path, optimize=True)


def save_small(grid: Path, path: Path) -> None:
    """Ten by ten samples, in 256 grey levels."""
    Image.open(grid).convert("L").save(path, optimize=True)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
