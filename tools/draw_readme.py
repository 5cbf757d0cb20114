"""Draw the pictures of README.md and docs/ from what the runs left in `results/`.

    python -m tools.draw_readme
    python -m tools.draw_readme --results other/results

It writes into `ims/`:
    overview.png      from an image to the imagined image
    imagined.png      one test image of each class, and what both objectives imagine
    refined.png       test images that the judge classifies otherwise after latent refinement
    epochs.png        accuracy and retrieval over the sounds heard
    samples.png       samples of the generator from noise
    photo.png         a photograph and the spectrograms of its soundscape
and copies of what other scripts drew, if they did. All images are chosen by their index."""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.cli import Limit, command_line
from common.files import write_file
from common.media import pyplot, save_figure
from data import Digits, default_root, load_digits
from data.resize import upsample
from evaluation.imagine import imagine
from evaluation.listener import Listener
from evaluation.metrics import predict_labels
from models.late_blind import LateBlind
from tools.translate import draw_spectrogram
from training.figures import first_of_each_class, save_labelled_rows
from training.run import read_log, read_metrics
from vggish import SAMPLE_RATE
from voice_translator import Encoding, VoiceTranslator

LARGEST = 300_000  # bytes of a copied picture


@dataclass(frozen=True)
class Config:
    results: Path = Path("results")  # The folder of all runs.
    published: str = "train_all"  # Name of the run with the published objective.
    # Name of the run with the sound-consistent objective.
    consistent: str = "train_all_sound_consistent"
    refine_steps: Annotated[int, Limit(1)] = 8  # Steps of latent refinement, for refined.png.
    out: Path = Path(__file__).parent.parent / "ims"  # The folder to write into.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)


def main(config: Config) -> None:
    """Draw all pictures."""
    published, consistent = config.results / config.published, config.results / config.consistent
    runs = {"published": published, "sound-consistent": consistent}
    models = {title: LateBlind.load(run) for title, run in runs.items()}
    model = models["sound-consistent"]
    test = load_digits(model.dataset, "test", config.data_root, "cpu")
    shown = first_of_each_class(test.labels, 1)[:, 0]
    images = test.images[shown]
    rows = {"heard": upsample(images)}
    rows |= {title: imagine(each, images)[0] for title, each in models.items()}
    save_labelled_rows(config.out / "imagined.png", list(rows), list(rows.values()))
    draw_overview(config.out / "overview.png", model, images[2:3], rows["sound-consistent"][2])
    draw_refined(config, test)
    train = load_digits(model.dataset, "train", config.data_root, "cpu")
    draw_epochs(config.out / "epochs.png", runs, len(train.labels))
    draw_photo(config.out / "photo.png")
    samples = max((config.results / "emnist_dcgan").glob("samples_*.png"))
    write_file(config.out / "samples.png", lambda path: copy_small(samples, path))
    for source in (
        config.results / "train_vggish" / "soundscapes.png",
        consistent / "controls" / "near_duplicates.png",
        consistent / "controls" / "out_of_distribution.png",
        config.results / "encodings" / "ratings.png",
        config.results / "encodings" / "sheet.png",
    ):
        if source.exists():
            write_file(config.out / source.name, partial(copy_small, source))


def draw_overview(path: Path, model: LateBlind, image: Tensor, imagined: Tensor) -> None:
    """Draw the steps of a model for one image, `(1, 28, 28)` uint8, up to the imagined one,
    `(1, 64, 64)` in [-1, 1]."""
    front_end = model.front_end
    with torch.no_grad():
        sound = front_end.translator(image)
        logmel = front_end.log_mel(sound)
        embedding = model.embed(logmel)
    figure, axes = pyplot().subplots(
        1, 5, figsize=(13, 2.7), width_ratios=(1, 1.5, 1.3, 0.8, 1), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.25)
    axes[0].imshow(image[0], cmap="gray", vmin=0, vmax=255)
    axes[0].set(title="image", xticks=(), yticks=())
    seconds = torch.arange(sound.shape[1]) / front_end.encoding.sample_rate
    axes[1].plot(seconds, sound[0], linewidth=0.2, color="black")
    axes[1].set(title="soundscape", xlabel="s", ylim=(-1, 1), yticks=())
    extent = (0, front_end.frames * front_end.hop / SAMPLE_RATE, 0, 64)
    axes[2].imshow(
        logmel[0, 0].T, origin="lower", aspect="auto", cmap="magma", vmin=-4.6, vmax=3,
        extent=extent,
    )  # fmt: skip
    axes[2].set(title="log-mel", xlabel="s", yticks=())
    axes[3].imshow(embedding.reshape(10, 10), cmap="coolwarm", vmin=-3, vmax=3)
    axes[3].set(title="embedding", xticks=(), yticks=())
    axes[4].imshow(imagined[0], cmap="gray", vmin=-1, vmax=1)
    axes[4].set(title="imagined image", xticks=(), yticks=())
    for axis in axes[1:]:
        axis.annotate("→", (0, 0.5), (-0.02, 0.5), xycoords="axes fraction", fontsize=16,
                      ha="right", va="center", annotation_clip=False)  # fmt: skip
    save_figure(path, figure)


def draw_refined(config: Config, digits: Digits) -> None:
    """Draw the first image of each class that the judge cnn classifies otherwise after latent
    refinement; print how many there are."""
    listener = Listener(config.results / config.consistent, data_root=config.data_root)
    refiner = listener.refiner(config.refine_steps)
    drawn = [imagine(listener.model, digits.images, refiner=each)[0] for each in (None, refiner)]
    before, after = (predict_labels(listener.judges["cnn"], images) for images in drawn)
    changed = before != after
    right_before, right_now = before == digits.labels, after == digits.labels
    print(
        f"latent refinement changes the judge's class of {changed.sum()} of {len(changed)} images: "
        f"{(changed & right_now).sum()} for better, {(changed & right_before).sum()} for worse, "
        f"{(changed & ~right_now & ~right_before).sum()} from wrong to wrong"
    )
    if changed.any():
        firsts = first_of_each_class(digits.labels[changed], 1)[:, 0]
        shown = changed.nonzero()[firsts, 0]
        rows = [upsample(digits.images[shown]), *(images[shown] for images in drawn)]
        save_labelled_rows(config.out / "refined.png", ["heard", "imagined", "refined"], rows)


def draw_epochs(path: Path, runs: dict[str, Path], images: int) -> None:
    """Draw accuracy and retrieval on the validation part over the sounds heard until then.

    Args:
        path: of the picture.
        runs: label -> the folder of a run.
        images: an epoch, where the run's settings name no number.
    """
    figure, axes = pyplot().subplots(1, 3, figsize=(10.5, 3), layout="constrained")
    panels = {
        "accuracy": "right by the classifier\nof the training",
        "judge_accuracy": "right by the judge cnn",
        "retrieval": "retrieval among 1,000",
    }
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for label, run in runs.items():
            heard = (read_metrics(run)["config"]["images_per_epoch"] or images) / 1000
            lines = read_log(run / "log.jsonl")
            x = [heard * line["epoch"] for line in lines]
            axis.plot(x, [line[f"validation_{name}"] for line in lines], ".-", label=label)
        axis.set(title=title, xlabel="thousands of sounds heard", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of the validation part")
    axes[2].legend(loc="center right")
    save_figure(path, figure)


def draw_photo(path: Path) -> None:
    """Draw scikit-learn's photograph of a temple (danielbuechele, flickr, CC BY 2.0) beside the
    spectrograms of its stereo soundscape."""
    from sklearn.datasets import load_sample_image

    encoding = Encoding.hificode(stereo=True)
    translator = VoiceTranslator(encoding)
    grey = Image.fromarray(load_sample_image("china.jpg")).convert("L")
    image = translator.resized(torch.from_numpy(np.array(grey))[None]) / 255
    draw_spectrogram(path, image[0], translator(image)[0], encoding)
    with Image.open(path) as drawn:
        size = (drawn.width * 7 // 10, drawn.height * 7 // 10)
        smaller = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    write_file(path, lambda beside: smaller.save(beside, optimize=True))


def copy_small(source: Path, path: Path, most: int = LARGEST) -> None:
    """Copy a picture. If it has more than `most` bytes, use as many colours as fit."""
    shutil.copyfile(source, path)
    for colours in (256, 128, 64, 32):
        if path.stat().st_size <= most:
            return
        Image.open(source).convert("RGB").quantize(colours).save(path, optimize=True)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
