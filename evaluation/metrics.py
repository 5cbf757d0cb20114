"""What can be said of imagined digits by those who took no part in making them.

The classifier through which stage three is trained cannot tell a digit from noise that fools it. So
an independent judge (`models/judge.py`, trained by `mnist_classify_train.py` on real digits alone)
reads the imagined ones, and is never back-propagated through. `rate` is what stage three says after
every epoch; the rest is what `evaluate.py` adds to it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.judge_cnn import CNNJudge

RETRIEVED_AMONG = 1000  # images; the first ones of the set
# of every interval. It is about the choice of test images; the spread over seeds is another matter
CONFIDENCE = 0.95


@torch.no_grad()
def judge_features(judge: CNNJudge, images: Tensor) -> Tensor:
    """`(N, 1, 64, 64)` images in [-1, 1] -> `(N, 64)`; in batches, float32."""
    return torch.cat([judge.features(part) for part in images.split(512)])


def frechet_distance(imagined: Tensor, real: Tensor) -> float:
    """Frechet distance between two sets of features, `(N, D)` and `(M, D)`: 0 for equal Gaussians,
    large for foreign ones.

    M. Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium", NeurIPS 2017, as torchmetrics computes it, in float64. Only distances within one
    feature space, so of one judge, can be compared."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    identity = nn.Identity()
    identity.num_features = imagined.shape[1]
    frechet = FrechetInceptionDistance(identity).set_dtype(torch.float64)
    frechet.update(imagined.double().cpu(), real=False)
    frechet.update(real.double().cpu(), real=True)
    return frechet.compute().item()


def correlation_matrix(imagined: Tensor, heard: Tensor) -> Tensor:
    """Pearson correlation of each of `(N, 1, H, W)` imagined with each of `(M, 1, H, W)` heard
    images, `(N, M)`."""

    return _standardise(imagined) @ _standardise(heard).T


def correlation(imagined: Tensor, heard: Tensor) -> Tensor:
    """Pearson correlation of each of `(N, 1, H, W)` imagined images with its own heard one, `(N,)`;
    0 for a flat image."""
    return (_standardise(imagined) * _standardise(heard)).sum(1)


def _standardise(images: Tensor) -> Tensor:
    flat = images.flatten(1).float()
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def rate_images(
    judge: CNNJudge, imagined: Tensor, heard: Tensor, labels: Tensor
) -> dict[str, float]:
    """Rate imagined digits.

    Args:
        judge: frozen, and in eval mode.
        imagined: `(N, 1, 64, 64)` in [-1, 1].
        heard: likewise, the true images that were heard, in the same order.
        labels: `(N,)`.

    Returns:
        judge_accuracy: share that the judge reads as the digit that was heard.
        judge_accuracy_worst: the same for the digit that fares worst.
        frechet_distance: to the heard images, in the judge's features.
        correlation: mean Pearson correlation of each imagined image with its heard one.
        retrieval: share whose most similar image, among the first 1000 heard ones, is the one that
            was heard.
    """
    features = judge_features(judge, imagined)
    read = accuracy_report(
        judge.classifier(features).argmax(1), labels, judge.classifier.out_features
    )
    return {
        "judge_accuracy": read["accuracy"],
        "judge_accuracy_worst": min(entry["accuracy"] for entry in read["per_digit"]),
        "frechet_distance": frechet_distance(features, judge_features(judge, heard)),
        "correlation": correlation(imagined, heard).mean().item(),
        "retrieval": retrieval(imagined, heard, labels)["overall"]["accuracy"],
    }


@torch.no_grad()
def predict_labels(reader: nn.Module, images: Tensor) -> Tensor:
    """The digits, `(N,)`, that `reader` reads in `(N, 1, 64, 64)` images in [-1, 1]."""
    return torch.cat([reader(part).argmax(1) for part in images.split(500)])


def accuracy_report(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """What share is read right, overall and digit by digit.

    Args:
        predicted: `(N,)` int64, the digits that were read.
        labels: `(N,)` int64, the digits that were heard.

    Returns:
        accuracy, a fraction; interval, Wilson's 95 % interval of it; images, the number of them;
        per_digit, the same three
        for each digit that is there; confusion, 10 x 10 counts, a row for each digit heard, a
        column for each digit read.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    confusion = multiclass_confusion_matrix(predicted, labels, num_classes=classes).tolist()
    right, totals = (
        [row[digit] for digit, row in enumerate(confusion)],
        [sum(row) for row in confusion],
    )
    per_digit = [
        {"digit": digit, **proportion_ci(right[digit], totals[digit])}
        for digit in range(classes)
        if totals[digit]
    ]
    return {
        **proportion_ci(sum(right), sum(totals)),
        "per_digit": per_digit,
        "confusion": confusion,
    }


def proportion_ci(right: int, total: int) -> dict[str, Any]:
    """`right` of `total` as a fraction, with Wilson's 95 % interval, which stays in [0, 1] also at
    its ends."""
    from scipy.stats import binomtest

    interval = binomtest(right, total).proportion_ci(CONFIDENCE, "wilson")
    return {
        "accuracy": right / total,
        "interval": [float(interval.low), float(interval.high)],
        "images": total,
    }


def mean_ci(values: Tensor) -> dict[str, Any]:
    """The mean of `(N,)` values, with the 95 % interval of the normal approximation."""
    from scipy.stats import norm

    values = values.double()
    half = norm.ppf(0.5 + CONFIDENCE / 2) * values.std().item() / len(values) ** 0.5
    return {
        "mean": values.mean().item(),
        "interval": [values.mean().item() - half, values.mean().item() + half],
    }


def realism(features: Tensor, real: Tensor) -> dict[str, float]:
    """How much one set of images looks like another, in a judge's features, `(N, D)` and `(N, D)`.

    Sets of the same size, because the Frechet distance shrinks with the size. Precision is the
    share of the images that lie among real ones, recall the share of real ones that lie among the
    images; to lie among is to be nearer to one of them than its third neighbour is. T. Kynkaanniemi
    et al., "Improved precision and recall metric for assessing generative models", NeurIPS 2019, as
    torch-fidelity computes it."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    features, real = features.cpu(), real.cpu()
    shares = prc_features_to_metric(
        features, real, prc_neighborhood=3, prc_batch_size=5000, verbose=False
    )
    return {
        "frechet_distance": frechet_distance(features, real),
        "precision": shares["precision"],
        "recall": shares["recall"],
    }


def ssim(imagined: Tensor, heard: Tensor) -> Tensor:
    """Structural similarity of each of `(N, 1, H, W)` imagined images in [-1, 1] with its own heard
    one, `(N,)`: Z. Wang et al., IEEE Trans. Image Process. 13(4), 2004, as torchmetrics computes
    it. Of pixels from 0, which is black, to 1: a difference in luminance is weighed by the
    luminance, so that on black, taken as -1, a haze would be overlooked."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = zip(
        *(((images + 1) / 2).split(20) for images in (imagined, heard)), strict=True
    )  # more leave the CPU's cache
    return torch.cat(
        [
            structural_similarity_index_measure(
                *part, reduction="none", data_range=(0.0, 1.0)
            ).reshape(-1)
            for part in parts
        ]
    )


def retrieval(imagined: Tensor, heard: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:
    """Does the imagined image find its own source, by correlation, among the first 1,000 heard ones
    (or all, if fewer)?

    Args: as in `rate_images`.

    Returns:
        overall and within_class, where only images of the same digit are searched: each with
        `proportion_ci`'s accuracy, interval
        and images, and chance, what guessing finds. One prototype per class finds no more within
        its class than chance.
    """
    imagined, heard, labels = (tensor[:RETRIEVED_AMONG] for tensor in (imagined, heard, labels))
    same = correlation_matrix(imagined, heard)
    own = torch.arange(len(same), device=same.device)
    other_class = labels[:, None] != labels
    found = {
        "overall": same.argmax(1) == own,
        "within_class": same.masked_fill(other_class, -torch.inf).argmax(1) == own,
    }
    chance = {"overall": 1 / len(same), "within_class": len(labels.unique()) / len(same)}
    return {
        name: {**proportion_ci(int(hit.sum()), len(hit)), "chance": chance[name]}
        for name, hit in found.items()
    }


def diversity(imagined: Tensor, heard: Tensor, labels: Tensor) -> dict[str, Any]:
    """How much the imagined images of a class differ from one another, as a share of how much the
    heard ones do.

    The mean distance (Euclidean, of pixels) between two images of a class, over all pairs among the
    first 1,000 images. 0: one prototype per class; 1: as diverse as what was heard. Grey drawings
    count as less diverse, and noise as more.

    Args: as in `rate_images`.

    Returns:
        mean, over the digits; per_digit, for each that is there at least twice.
    """
    imagined, heard, labels = (tensor[:RETRIEVED_AMONG] for tensor in (imagined, heard, labels))
    per_digit = []
    for digit in labels.unique().tolist():
        one, other = (images[labels == digit].flatten(1).float() for images in (imagined, heard))
        if len(one) > 1:
            ratio = F.pdist(one).mean() / F.pdist(other).mean().clamp(min=1e-12)
            per_digit.append({"digit": digit, "diversity": ratio.item()})
    return {
        "mean": sum(entry["diversity"] for entry in per_digit) / max(len(per_digit), 1),
        "per_digit": per_digit,
    }
