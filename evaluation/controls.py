"""Is it hearing? The controls of a run of stage three: what must fail if it is, what cannot have
leaked, and its limits.

    python controls.py                                # of results/train_all
    python controls.py --name train_all_published     # or another run of stage three

Reads a complete run of `train_all.py` and what the stages before it left in `results/`. It hears
the whole test set once for each control, and writes `results/controls/` (for another `--name`:
`results/controls_<name>/`; with second thoughts: `results/controls_second_thoughts/`):
metrics.json, every number as a fraction, and two pictures.

* Another encoding: the same digits, sounded by a scheme that was not learned. A machine that hears must fail.
* Permuted sounds: the sounds in another order than the images. It must draw the digit of the sound.
* Twins: EMNIST and MNIST both stem from NIST's Special Database 19, so the memory may hold another copy of the very scan
  that is heard. Test digits are compared with everything in the memory, `twins.png` shows the most
  similar pairs, and the digits with a twin are rated apart from those without.
* Never heard: handwritten letters where the memory's file has them, printed letters and simple shapes, in `unheard.png`.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.device import choose_device, device_name
from common.files import check_writable, explain_malformed, write_file
from common.locks import lock_folder, unlock_folder
from common.provenance import code_revision, package_versions
from data import Digits, default_root, load_digits, load_gan_images
from data.resize import upsample
from data.synthetic import printed_letters, simple_shapes
from evaluation.imagine import imagine, load_refiner
from evaluation.metrics import correlation, predict_labels, proportion_ci, rate_images, retrieval
from evaluation.rating import folder_name, load_stages, require_same_rating
from models.judge_cnn import CNNJudge
from training.figures import save_labelled_rows
from training.run import config_to_dict
from training.upstream import load_judge, load_model
from vggish import ImageToLogMel
from voice_translator import Encoding

# of the test digits may be called twins where there is none; see `near_duplicates`
NULL_SHARE = 0.001


@dataclass(frozen=True)
class Config:
    name: str = "train_all"  # of the run of stage three, a folder in results/
    refine_steps: int = 0  # steps of them, as in evaluate.py
    seed: int = 0  # of the permutation
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    data_root: Path = field(default_factory=default_root)  # torchvision's folder; also $LISTEN_DATA
    results: Path = Path("results")  # the folder of all runs


class Model:
    """A run of stage three, as one thing that imagines what it hears."""

    def __init__(self, config: Config, device: torch.device) -> None:
        path = config.results / config.name / "checkpoint.pt"
        self.ear, self.network, self.generator, self.dataset = load_model(path, device)
        # It thinks with the ear that it has, whatever makes the sounds.
        thoughts = (config.results, config.refine_steps)
        self.refiner = load_refiner(*thoughts, self.ear, self.generator, self.dataset, device)

    def imagine(self, images: Tensor, encoding: Encoding | None = None) -> tuple[Tensor, float]:
        """Images as the ear takes them, `(N, H, W)` uint8 -> imagined ones, `(N, 1, 64, 64)` in
        [-1, 1], and their mean sound distance to what was heard; `encoding` makes the sounds
        instead of the learned one."""
        ear = (
            self.ear
            if encoding is None
            else ImageToLogMel(encoding, self.ear.frames, self.ear.hop).to(images.device)
        )
        return imagine(ear, self.network, self.generator, images, refiner=self.refiner)


def main(config: Config) -> dict[str, Any]:
    """Run the controls; returns what metrics.json says."""
    device = choose_device(config.device)
    output = config.results / folder_name("controls", config)
    stages = load_stages(config)
    lock_folder(output)
    check_writable(output)
    require_same_rating(output, config, "controls")
    model = Model(config, device)
    judge = load_judge(config.results, model.dataset, device)
    test = load_digits(model.dataset, "test", config.data_root, device)
    heard = upsample(test.images)

    with explain_malformed(
        config.results / "emnist_dcgan" / "checkpoint.pt", "run emnist_dcgan.py"
    ):
        memory = load_all_gan_images(stages["emnist_dcgan"]["config"], config.data_root, device)

    print(
        f"hearing {len(heard)} test digits, by the encoding that was learned and by others ...",
        flush=True,
    )
    imagined, distance = model.imagine(test.images)
    learned = {**rate_images(judge, imagined, heard, test.labels), "sound_distance": distance}
    others = {}
    for name, encoding in other_encodings(model.ear.encoding).items():
        elsewhere, distance = model.imagine(test.images, encoding)
        others[name] = {
            **rate_images(judge, elsewhere, heard, test.labels),
            "sound_distance": distance,
        }
    permuted = shuffled_sounds(model, judge, test, imagined, config.seed)

    related = near_duplicates(
        model, judge, test, imagined, memory, output / "twins.png", config.data_root
    )
    unheard = out_of_distribution(
        model, stages["emnist_dcgan"]["config"], output / "unheard.png", config.data_root, device
    )

    record = {
        "stage": "controls",
        "dataset": model.dataset,
        "learned_encoding": learned,
        "other_encodings": others,
        "permuted_sounds": permuted,
        "twins": related,
        "never_heard": unheard,
        "machine": device_name(device),
        "seed": config.seed,
        "revision": code_revision(),
        "versions": package_versions(),
        "config": config_to_dict(config),
        "stages": stages,
    }
    write_file(
        output / "metrics.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n")
    )
    unlock_folder(output)
    print(summary(record))
    print(f"{output}/metrics.json, {output}/twins.png, {output}/unheard.png")
    return record


def summary(record: dict[str, Any]) -> str:
    """The record in lines of words."""
    lines = [f"{'heard by':<24}{'judge':>8}{'correlation':>13}{'retrieval':>11}"]
    for name, rating in {
        "the learned encoding": record["learned_encoding"],
        **record["other_encodings"],
    }.items():
        lines.append(
            f"{name:<24}{rating['judge_accuracy']:8.1%}{rating['correlation']:13.3f}{rating['retrieval']:11.1%}"
        )
    permuted, related = record["permuted_sounds"], record["twins"]
    lines.append(
        f"permuted sounds: {permuted['digit_of_the_sound']:.1%} are read as the digit of the sound, "
        f"{permuted['digit_of_the_image']:.1%} as that of the image that stands in its place"
    )
    lines.append(
        f"twins: {related['with']['images']} of {related['images']} test digits are more like an image in the memory "
        f"than {1 - NULL_SHARE:.1%} of digits are like any other writer's; {related['share_nearer_in_memory']:.1%} are more "
        f"like one in the memory than like any other writer's, by chance {related['share_nearer_by_chance']:.1%}"
    )
    groups = {
        "with": "with a twin",
        "without": "without",
        "without_alike": "without, of each digit as many as with",
    }
    for group, called in groups.items():
        if related[group]["judge_accuracy"] is not None:
            lines.append(
                f"{called}: read by the judge {related[group]['judge_accuracy']:.1%}, correlation "
                f"{related[group]['correlation']:.3f}"
            )
    for name, rating in record["never_heard"].items():
        lines.append(
            f"{name}: correlation with what was heard {rating['correlation']:.3f}; {rating['retrieval']:.0%} of "
            f"{rating['images']} find their source"
        )
    return "\n".join(lines)


def other_encodings(learned: Encoding) -> dict[str, Encoding]:
    """Schemes as long as the learned one that differ from it in one thing."""
    schemes = {
        "high pitch on top": {"pitch_position": "top"},
        "high pitch in the middle": {"pitch_position": "middle"},
        "high pitch at the bottom": {"pitch_position": "bottom"},
        "linear curve": {"curve": "linear"},
        "exponential curve": {"curve": "exponential"},
        "the negative": {"negative": not learned.negative},
    }
    others = {name: replace(learned, **change) for name, change in schemes.items()}
    return {name: encoding for name, encoding in others.items() if encoding != learned}


def shuffled_sounds(
    model: Model, judge: CNNJudge, test: Digits, imagined: Tensor, seed: int
) -> dict[str, float]:
    """Every image's sound is exchanged for that of another image of another digit: what does the
    judge read then?

    `largest_change` says by how much the drawing of a sound depends on where in the test set it is
    heard: but for the rounding of batches, not at all."""
    order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(seed)).to(
        test.labels.device
    )
    by_sound, _ = model.imagine(test.images[order])
    read = predict_labels(judge, by_sound)
    foreign = test.labels[order] != test.labels  # where the two say different things
    return {
        "digit_of_the_sound": (read == test.labels[order])[foreign].double().mean().item(),
        "digit_of_the_image": (read == test.labels)[foreign].double().mean().item(),
        "images": int(foreign.sum()),
        "largest_change": (by_sound - imagined[order]).abs().max().item(),
    }


def load_all_gan_images(config: dict[str, Any], root: Path, device: torch.device) -> Tensor:
    """All images that the generator grew up with, `(N, 28, 28)` uint8; the part that validates it
    is among them."""
    which = (root, device, config["split"], config["file"], config["digits_only"])
    return torch.cat(
        [
            load_gan_images(config["dataset"], part, *which).images
            for part in ("train", "validation")
        ]
    )


def near_duplicates(
    model: Model,
    judge: CNNJudge,
    test: Digits,
    imagined: Tensor,
    memory: Tensor,
    picture: Path,
    root: Path,
) -> dict[str, Any]:
    """Test digits of which the memory seems to hold another copy, and how they fare.

    MNIST and EMNIST scaled, centred and smoothed the same scans in different ways. So all digits
    are first brought into one box, and then correlated. How similar two digits of different writers
    can be by chance, MNIST's own training digits tell: their writers are others than those of the
    test digits. What only `NULL_SHARE` of the test digits find there counts as a twin when it is
    found in the memory; a digit apart, because ones are more alike than eights. So few ones can be
    known as twins, and digits without are compared as they are, `without`, and weighed to be as
    many of each digit as those with, `without_alike`."""
    heard = upsample(test.images)
    boxed = one_box(test.images)
    nearest, where = most_similar(boxed, one_box(memory))
    unrelated = load_digits(model.dataset, "train", root, test.images.device).images
    by_chance, _ = most_similar(boxed, one_box(unrelated))
    limits = torch.stack(
        [by_chance[test.labels == digit].quantile(1 - NULL_SHARE) for digit in range(10)]
    )
    twin = nearest > limits[test.labels]
    order = (nearest - limits[test.labels]).argsort(descending=True, stable=True)
    shown = torch.cat([order[test.labels[order] == digit][:1] for digit in range(10)])
    rows = [heard[shown], upsample(memory[where[shown]]), imagined[shown]]
    save_labelled_rows(picture, ["heard", "in the memory", "imagined"], rows)
    right = (predict_labels(judge, imagined) == test.labels).double()
    correlations = correlation(imagined, heard)

    def fare(group: Tensor) -> dict[str, Any]:
        if not group.any():
            return {"images": 0, "judge_accuracy": None, "correlation": None}
        said = proportion_ci(int(right[group].sum()), int(group.sum()))
        return {
            "images": said["images"],
            "judge_accuracy": said["accuracy"],
            "interval": said["interval"],
            "correlation": correlations[group].mean().item(),
        }

    return {
        "images": len(test.labels),
        "memory": len(memory),
        "limits": limits.tolist(),
        "per_digit": torch.bincount(test.labels[twin], minlength=10).tolist(),
        "expected_by_chance": NULL_SHARE
        * len(test.labels)
        * len(memory)
        / len(unrelated),  # the more, the nearer
        "with": fare(twin),
        "without": fare(~twin),
        "without_alike": {
            "judge_accuracy": weighted_by_class(right, twin, test.labels),
            "correlation": weighted_by_class(correlations, twin, test.labels),
        },
        "share_nearer_in_memory": (nearest > by_chance).double().mean().item(),
        "share_nearer_by_chance": len(memory) / (len(memory) + len(unrelated)),
        "nearest_in_memory": nearest.double().mean().item(),
        "nearest_by_chance": by_chance.double().mean().item(),
    }


def weighted_by_class(values: Tensor, group: Tensor, labels: Tensor) -> float | None:
    """The mean of `(N,)` values of those outside of `group`, `(N,)` bool, as if they were as many
    of each digit as those in it. Digits that have none outside are left out; None if that leaves
    none."""
    weighed, count = 0.0, 0
    for digit in labels[group].unique().tolist():
        inside, outside = group & (labels == digit), ~group & (labels == digit)
        if outside.any():
            weighed += int(inside.sum()) * values[outside].double().mean().item()
            count += int(inside.sum())
    return weighed / count if count else None


def one_box(images: Tensor) -> Tensor:
    """`(N, 28, 28)` uint8 -> `(N, 400)`: each digit's own box, stretched to 20 x 20, of mean 0 and
    length 1, so that the inner product of two is their correlation. Ink counts from a quarter of
    white on."""
    parts = []
    for part in images.split(5000):
        ink = part > 63
        first = torch.stack([ink.any(axis).byte().argmax(1) for axis in (2, 1)], 1)  # top, left
        last = 27 - torch.stack([ink.any(axis).flip(1).byte().argmax(1) for axis in (2, 1)], 1)
        # To affine_grid's [-1, 1]: the middle of the box, and half of its edge.
        middle, half = (first + last + 1) / 28 - 1, ((last - first + 1) / 28).clamp(min=2 / 28)
        zero = torch.zeros_like(half[:, 0])
        theta = torch.stack(
            [
                torch.stack([half[:, 1], zero, middle[:, 1]], 1),
                torch.stack([zero, half[:, 0], middle[:, 0]], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta, [len(part), 1, 20, 20], align_corners=False)
        box = F.grid_sample(part[:, None].float(), grid, align_corners=False).flatten(1)
        parts.append(F.normalize(box - box.mean(1, keepdim=True), dim=1))
    return torch.cat(parts)


def most_similar(boxed: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The largest correlation of each of `(N, 400)` with any of `(M, 400)`, `(N,)`, and with which,
    `(N,)`."""
    best = [(part @ among.T).max(1) for part in boxed.split(500)]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])


def out_of_distribution(
    model: Model, memory: dict[str, Any], picture: Path, root: Path, device: torch.device
) -> dict[str, dict[str, float]]:
    """What is imagined for sounds of letters and shapes; the first ten of each kind are drawn,
    chosen by nothing else."""
    kinds = {"printed letters": printed_letters(), "simple shapes": simple_shapes()}
    if memory["dataset"] == "emnist" and memory["split"] == "byclass":
        which = (root, device, "byclass", memory["file"], False)
        written = load_gan_images("emnist", "validation", *which)
        firsts = [torch.nonzero(written.labels == label)[0, 0] for label in range(10, 36)]  # A to Z
        kinds = {"handwritten letters": written.images[torch.stack(firsts)], **kinds}
    rows, titles, rated = [], [], {}
    for kind, images in kinds.items():
        images = images.to(device)
        imagined, distance = model.imagine(images)
        heard = upsample(images)
        rated[kind] = {
            "images": len(images),
            "correlation": correlation(imagined, heard).mean().item(),
            "retrieval": retrieval(imagined, heard, torch.arange(len(images), device=device))[
                "overall"
            ]["accuracy"],
            "sound_distance": distance,
        }
        rows += [heard[:10], imagined[:10]]
        titles += [f"{kind}, heard", "imagined"]
    save_labelled_rows(picture, titles, rows)
    return rated
