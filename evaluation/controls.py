"""The controls of a run of stage three: does the model hear, and what are its limits?

`evaluate.py --controls` writes `controls/` into the run: metrics.json, every number as a fraction,
and two pictures.

* Other encodings: the same images, heard by an encoding that was not learned. A model that hears
  must fail.
* Shuffled sounds: the sounds in another order. The model must draw the class of the sound.
* Near-duplicates: EMNIST and MNIST both stem from NIST's Special Database 19, so the GAN may have
  learned from another copy of a test image. Images with and without one are rated apart;
  `near_duplicates.png` shows the most similar pairs.
* Out of distribution: letters and simple shapes, in `out_of_distribution.png`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.device import device_name
from common.files import explain_malformed, write_json
from common.locks import unlock_folder
from common.provenance import code_revision, package_versions
from data import Digits, load_digits, load_gan_images
from data.resize import upsample
from data.synthetic import printed_letters, simple_shapes
from evaluation.imagine import LatentRefiner, imagine
from evaluation.listener import Listener, rated_folders
from evaluation.metrics import correlation, predict_labels, proportion_ci, rate_images, retrieval
from evaluation.rating import move_older_aside, rating_folder, read_stages, reserve_output
from evaluation.report import template
from models.judge_cnn import CNNJudge
from models.late_blind import LateBlind
from training.figures import save_labelled_rows
from vggish import ImageToLogMel
from voice_translator import Encoding

# The share of the test images that count as near-duplicates by chance; see `near_duplicates`.
NULL_SHARE = 0.001


def run_controls(
    run: Path, refine_steps: int, seed: int, data_root: Path, device: torch.device,
    output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the controls of a run, and write them; returns what metrics.json says.

    Args:
        run: the folder of a complete run of stage three.
        refine_steps: number of steps of latent refinement.
        seed: of the order of the shuffled sounds.
        data_root: the folder of the data sets.
        device: where it is computed.
        output: the folder to write into. None: `controls` or `controls_refined` inside the run.

    Raises:
        UserError: if a stage is missing or damaged, or the folder cannot be written.
    """
    folders = rated_folders(run)
    stages = read_stages(folders)
    output = output or rating_folder(run, "test", refine_steps, "controls")
    reserve_output(output, "controls")
    listener = Listener(run, device, data_root)
    model, judge, refiner = listener.model, listener.judges["cnn"], listener.refiner(refine_steps)
    test = load_digits(model.dataset, "test", data_root, device)
    unrelated = load_digits(model.dataset, "train", data_root, device).images
    heard = upsample(test.images)
    gan = stages["emnist_dcgan"]["config"]
    with explain_malformed(folders["emnist_dcgan"] / "metrics.json", "run emnist_dcgan.py"):
        gan_images = load_all_gan_images(gan, data_root, device)
        letters = unheard_images(gan, data_root, device)

    print(f"hearing {len(heard)} test images, by several encodings ...", flush=True)

    def hear_by(encoding: Encoding) -> tuple[Tensor, dict[str, float]]:
        front_end = ImageToLogMel(encoding, model.front_end.frames, model.front_end.hop).to(device)
        # It refines with the front end that it learned, whatever makes the sounds.
        images, distance = imagine(model, test.images, refiner=refiner, front_end=front_end)
        rating = rate_images(judge, images, heard, test.labels)
        return images, {**rating, "audio_loss": distance}

    learned = model.front_end.encoding
    imagined, rating = hear_by(learned)
    others = {name: hear_by(other)[1] for name, other in other_encodings(learned).items()}
    order = torch.randperm(len(heard), generator=torch.Generator().manual_seed(seed)).to(device)
    by_sound, _ = imagine(model, test.images[order], refiner=refiner)
    shuffled = shuffled_sounds(judge, test.labels, order, by_sound, imagined)
    move_older_aside(output)
    near = near_duplicates(
        judge, len(listener.classes), test, imagined, gan_images, unrelated,
        output / "near_duplicates.png",
    )  # fmt: skip
    record = {
        "stage": "controls",
        "dataset": model.dataset,
        "learned_encoding": rating,
        "other_encodings": others,
        "shuffled_sounds": shuffled,
        "near_duplicates": near,
        "out_of_distribution": out_of_distribution(
            model, refiner, letters, output / "out_of_distribution.png"
        ),
        "machine": device_name(device),
        "seed": seed,
        "revision": code_revision(),
        "versions": package_versions(),
        "config": {"name": run.absolute().name, "refine_steps": refine_steps, "seed": seed},
        "stages": stages,
    }
    write_json(output / "metrics.json", record)
    unlock_folder(output)
    print(template("controls.txt.j2").render(record=record))
    print(f"{output}/metrics.json, {output}/near_duplicates.png, {output}/out_of_distribution.png")
    return record


def other_encodings(learned: Encoding) -> dict[str, Encoding]:
    """Encodings as long as the learned one that differ from it in one setting."""
    changes = {
        "high pitch on top": {"pitch_position": "top"},
        "high pitch in the middle": {"pitch_position": "middle"},
        "high pitch at the bottom": {"pitch_position": "bottom"},
        "linear curve": {"curve": "linear"},
        "exponential curve": {"curve": "exponential"},
        "the negative": {"negative": not learned.negative},
    }
    others = {name: replace(learned, **change) for name, change in changes.items()}
    return {name: encoding for name, encoding in others.items() if encoding != learned}


def shuffled_sounds(
    judge: nn.Module, labels: Tensor, order: Tensor, by_sound: Tensor, imagined: Tensor
) -> dict[str, float]:
    """Rate images that were imagined from the sounds of other images.

    Args:
        judge: `(B, 1, 64, 64)` images -> logits.
        labels: `(N,)`, of the images in their own order.
        order: `(N,)`, which image made the sound at each place.
        by_sound: `(N, 1, 64, 64)`, imagined from the sounds in this order.
        imagined: likewise, from the sounds in their own order.

    Returns:
        class_of_the_sound, class_of_the_image: what share the judge classifies as each, where the
            two differ.
        images: their number.
        largest_change: the largest difference that the place in the set makes to a pixel. It is 0,
            except for the rounding of batches.
    """
    predicted, heard = predict_labels(judge, by_sound), labels[order]
    differ = heard != labels
    return {
        "class_of_the_sound": (predicted == heard)[differ].double().mean().item(),
        "class_of_the_image": (predicted == labels)[differ].double().mean().item(),
        "images": int(differ.sum()),
        "largest_change": (by_sound - imagined[order]).abs().max().item(),
    }


def load_all_gan_images(config: dict[str, Any], root: Path, device: torch.device) -> Tensor:
    """All images of the GAN's run, `(N, 28, 28)` uint8, its validation part included."""
    which = (root, device, config["split"], config["emnist_part"], config["digits_only"])
    parts = [load_gan_images(config["dataset"], part, *which) for part in ("train", "validation")]
    return torch.cat([part.images for part in parts])


def near_duplicates(
    judge: CNNJudge, classes: int, test: Digits, imagined: Tensor, gan_images: Tensor,
    unrelated: Tensor, picture: Path,
) -> dict[str, Any]:  # fmt: skip
    """Find test images of which the GAN seems to have learned from another copy, and rate them
    apart.

    MNIST and EMNIST scaled, centred and smoothed the same scans in different ways. So all images
    are stretched to one box, and then correlated. The training images say how similar images are by
    chance; in MNIST other people wrote them. An image of the GAN counts as a near-duplicate if it
    is above the limit of its class, which `NULL_SHARE` of the test images exceed by chance. Few
    ones can be recognised, because all ones are similar. Hence the rest is rated as it is,
    `without`, and weighted to the same classes, `without_weighted`.

    Args:
        judge: frozen, and in eval mode.
        classes: number of classes.
        test: the images that were heard.
        imagined: `(N, 1, 64, 64)`, from their sounds.
        gan_images: `(M, 28, 28)` uint8, see `load_all_gan_images`.
        unrelated: `(L, 28, 28)` uint8, the training images of the data set.
        picture: where the most similar pair of each class is drawn.
    """
    labels, heard = test.labels, upsample(test.images)
    boxed = stretch_to_box(test.images)
    nearest, where = most_similar(boxed, stretch_to_box(gan_images))
    by_chance, _ = most_similar(boxed, stretch_to_box(unrelated))
    present = labels.unique().tolist()
    limits = torch.full((classes,), torch.inf, device=labels.device)
    for label in present:
        limits[label] = by_chance[labels == label].quantile(1 - NULL_SHARE)
    near = nearest > limits[labels]
    order = (nearest - limits[labels]).argsort(descending=True, stable=True)
    shown = torch.cat([order[labels[order] == label][:1] for label in present])
    rows = [heard[shown], upsample(gan_images[where[shown]]), imagined[shown]]
    save_labelled_rows(picture, ["heard", "of the GAN", "imagined"], rows)
    right = (predict_labels(judge, imagined) == labels).double()
    correlations = correlation(imagined, heard)

    def rate_group(group: Tensor) -> dict[str, Any]:
        if not group.any():
            return {"images": 0, "judge_accuracy": None, "correlation": None}
        share = proportion_ci(int(right[group].sum()), int(group.sum()))
        share["judge_accuracy"] = share.pop("accuracy")
        return {**share, "correlation": correlations[group].mean().item()}

    count = len(gan_images)
    return {
        "images": len(labels),
        "gan_images": count,
        "limits": [limits[label].item() if label in present else None for label in range(classes)],
        "per_class": torch.bincount(labels[near], minlength=classes).tolist(),
        # the more images, the more similar the nearest one
        "expected_by_chance": NULL_SHARE * len(labels) * count / len(unrelated),
        "with": rate_group(near),
        "without": rate_group(~near),
        "without_weighted": {
            "judge_accuracy": weighted_by_class(right, near, labels),
            "correlation": weighted_by_class(correlations, near, labels),
        },
        "share_nearer_in_gan_images": (nearest > by_chance).double().mean().item(),
        "share_nearer_by_chance": count / (count + len(unrelated)),
        "nearest_in_gan_images": nearest.double().mean().item(),
        "nearest_by_chance": by_chance.double().mean().item(),
    }


def weighted_by_class(values: Tensor, group: Tensor, labels: Tensor) -> float | None:
    """Compute the mean of `(N,)` values outside of `group`, `(N,)` bool, weighted to the classes in
    it.

    Classes without an image outside are left out; None if that leaves none."""
    weighted, count = 0.0, 0
    for label in labels[group].unique().tolist():
        inside, outside = group & (labels == label), ~group & (labels == label)
        if outside.any():
            weighted += int(inside.sum()) * values[outside].double().mean().item()
            count += int(inside.sum())
    return weighted / count if count else None


def stretch_to_box(images: Tensor) -> Tensor:
    """Stretch the bounding box of each image to 20 x 20: `(N, 28, 28)` uint8 -> `(N, 400)` of mean
    0 and length 1. The inner product of two is their correlation.

    Pixels above a quarter of white count as ink."""
    parts = []
    for part in images.split(5000):
        ink = part > 63
        first = torch.stack([ink.any(axis).byte().argmax(1) for axis in (2, 1)], 1)  # top, left
        last = 27 - torch.stack([ink.any(axis).flip(1).byte().argmax(1) for axis in (2, 1)], 1)
        # To affine_grid's [-1, 1]: the middle of the box, and half of its edge.
        middle, half = (first + last + 1) / 28 - 1, ((last - first + 1) / 28).clamp(min=2 / 28)
        zero = torch.zeros_like(half[:, 0])
        across = torch.stack([half[:, 1], zero, middle[:, 1]], 1)
        down = torch.stack([zero, half[:, 0], middle[:, 0]], 1)
        theta = torch.stack([across, down], 1)
        grid = F.affine_grid(theta, [len(part), 1, 20, 20], align_corners=False)
        box = F.grid_sample(part[:, None].float(), grid, align_corners=False).flatten(1)
        parts.append(F.normalize(box - box.mean(1, keepdim=True), dim=1))
    return torch.cat(parts)


def most_similar(boxed: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each of `(N, 400)` the largest correlation with any of `(M, 400)`, `(N,)`, and its
    index, `(N,)`."""
    best = [(part @ among.T).max(1) for part in boxed.split(500)]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])


def unheard_images(gan: dict[str, Any], root: Path, device: torch.device) -> dict[str, Tensor]:
    """Images that stage one never heard, `(N, 28, 28)` uint8 by kind; handwritten letters only
    where the GAN's file has them."""
    kinds = {"printed letters": printed_letters(), "simple shapes": simple_shapes()}
    if gan["dataset"] == "emnist" and gan["split"] == "byclass":
        which = (root, device, "byclass", gan["emnist_part"], False)
        written = load_gan_images("emnist", "validation", *which)
        firsts = [torch.nonzero(written.labels == label)[0, 0] for label in range(10, 36)]  # A to Z
        kinds = {"handwritten letters": written.images[torch.stack(firsts)], **kinds}
    return {kind: images.to(device) for kind, images in kinds.items()}


def out_of_distribution(
    model: LateBlind, refiner: LatentRefiner | None, kinds: dict[str, Tensor], picture: Path
) -> dict[str, dict[str, float]]:
    """Rate what is imagined of other images than those that were learned; the first ten of each
    kind are drawn."""
    rows, titles, rated = [], [], {}
    for kind, images in kinds.items():
        imagined, distance = imagine(model, images, refiner=refiner)
        heard, own_class = upsample(images), torch.arange(len(images), device=images.device)
        rated[kind] = {
            "images": len(images),
            "correlation": correlation(imagined, heard).mean().item(),
            "retrieval": retrieval(imagined, heard, own_class)["overall"]["accuracy"],
            "audio_loss": distance,
        }
        rows += [heard[:10], imagined[:10]]
        titles += [f"{kind}, heard", "imagined"]
    save_labelled_rows(picture, titles, rows)
    return rated
