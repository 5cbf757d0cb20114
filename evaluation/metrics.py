"""Metrics of imagined images: accuracy, realism, similarity to the heard image, and diversity.

An image that fools the classifier of stage three may not look like anything. So judges that take no
part in training classify it too (`evaluation/judges.py`). `rate_images` is computed after every
epoch of stage three; `evaluate.py` computes the rest."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.judge_cnn import CNNJudge

RETRIEVED_AMONG = 1000  # images; the first ones of the set
# Of every interval. It covers the choice of test images, not the choice of training seeds.
CONFIDENCE = 0.95
NEIGHBOURS = 3  # of precision and recall
SSIM_BORDER = 5  # pixels at each edge that the 11 x 11 window of SSIM does not fit around


@torch.no_grad()
def judge_features(judge: CNNJudge, images: Tensor) -> Tensor:
    """Compute the features of `(N, 1, 64, 64)` images in [-1, 1], `(N, 64)` float32."""
    return torch.cat([judge.features(part) for part in images.split(512)])


def frechet_distance(imagined: Tensor, real: Tensor) -> float:
    """Compute the Frechet distance between two sets of features, `(N, D)` and `(M, D)`. It is 0 for
    equal Gaussians.

    M. Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium", NeurIPS 2017, by torchmetrics in float64. Compare only distances in the features
    of one judge.

    Raises:
        ValueError: if a feature is not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    if not (imagined.isfinite().all() and real.isfinite().all()):
        raise ValueError("a Frechet distance needs finite features")
    identity = nn.Identity()
    setattr(identity, "num_features", imagined.shape[1])  # noqa: B010
    frechet = FrechetInceptionDistance(identity).set_dtype(torch.float64)
    frechet.update(imagined.double().cpu(), real=False)
    frechet.update(real.double().cpu(), real=True)
    return max(0.0, frechet.compute().item())  # rounding makes it negative for equal sets


def correlation_matrix(imagined: Tensor, heard: Tensor) -> Tensor:
    """Compute the Pearson correlation of each of `(N, 1, H, W)` imagined with each of `(M, 1, H,
    W)` heard images, `(N, M)`."""
    return _standardise(imagined) @ _standardise(heard).T


def correlation(imagined: Tensor, heard: Tensor) -> Tensor:
    """Compute the Pearson correlation of each of `(N, 1, H, W)` imagined images with its own heard
    one, `(N,)`. It is 0 for a flat image."""
    return (_standardise(imagined) * _standardise(heard)).sum(1)


def _standardise(images: Tensor) -> Tensor:
    flat = images.flatten(1).float()
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def rate_images(
    judge: CNNJudge, imagined: Tensor, heard: Tensor, labels: Tensor
) -> dict[str, float]:
    """Rate imagined images.

    Args:
        judge: frozen, and in eval mode.
        imagined: `(N, 1, 64, 64)` in [-1, 1].
        heard: likewise, the true images that were heard, in the same order.
        labels: `(N,)`.

    Returns:
        judge_accuracy: share that the judge classifies as the class that was heard.
        judge_accuracy_worst: the same for the worst class.
        frechet_distance: to the heard images, in the judge's features.
        correlation: mean Pearson correlation of each imagined image with its heard one.
        retrieval: share whose most similar image, among the first 1000 heard ones, is the one that
            was heard.
    """
    features = judge_features(judge, imagined)
    predicted = judge.classifier(features).argmax(1)
    report = accuracy_report(predicted, labels, judge.classifier.out_features)
    return {
        "judge_accuracy": report["accuracy"],
        "judge_accuracy_worst": min(entry["accuracy"] for entry in report["per_class"]),
        "frechet_distance": frechet_distance(features, judge_features(judge, heard)),
        "correlation": correlation(imagined, heard).mean().item(),
        "retrieval": retrieval(imagined, heard, labels)["overall"]["accuracy"],
    }


@torch.no_grad()
def predict_labels(classifier: nn.Module, images: Tensor) -> Tensor:
    """Classify `(N, 1, 64, 64)` images in [-1, 1]; returns `(N,)` classes."""
    return torch.cat([classifier(part).argmax(1) for part in images.split(500)])


def accuracy_report(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Compute the share that is classified right, overall and by class.

    Args:
        predicted: `(N,)` int64, the classes that a classifier predicts.
        labels: `(N,)` int64, the classes that were heard.
        classes: number of classes.

    Returns:
        accuracy: a fraction.
        interval: Wilson's 95 % interval of it.
        images: the number of images.
        per_class: the same three for each class that is present.
        confusion: classes x classes counts, a row for each heard class, a column for each
            prediction.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    confusion = multiclass_confusion_matrix(predicted, labels, num_classes=classes).tolist()
    per_class = [
        {"class": index, **proportion_ci(row[index], sum(row))}
        for index, row in enumerate(confusion)
        if sum(row)
    ]
    overall = proportion_ci(int((predicted == labels).sum()), len(labels))
    return {**overall, "per_class": per_class, "confusion": confusion}


def proportion_ci(right: int, total: int) -> dict[str, Any]:
    """Compute `right` of `total` as a fraction, with Wilson's 95 % interval, which stays in [0,
    1]."""
    from scipy.stats import binomtest

    low, high = binomtest(right, total).proportion_ci(CONFIDENCE, "wilson")
    return {"accuracy": right / total, "interval": [float(low), float(high)], "images": total}


def mean_ci(values: Tensor) -> dict[str, Any]:
    """Compute the mean of `(N,)` values, with the 95 % interval of the normal approximation."""
    from scipy.stats import norm

    values = values.double()
    half = norm.ppf(0.5 + CONFIDENCE / 2) * values.std().item() / len(values) ** 0.5
    mean = values.mean().item()
    return {"mean": mean, "interval": [mean - half, mean + half]}


def realism(features: Tensor, real: Tensor) -> dict[str, float]:
    """Compute how much one set of images looks like another, in a judge's features, `(N, D)` and
    `(N, D)`.

    Both sets have the same size, because the Frechet distance shrinks with the size. Precision is
    the share of the images that lie among real ones. Recall is the share of real ones that lie
    among the images. To lie among images is to be nearer to one of them than its third neighbour
    is. T. Kynkaanniemi et al., "Improved precision and recall metric for assessing generative
    models", NeurIPS 2019, by torch-fidelity."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    features, real = features.cpu(), real.cpu()
    distance = frechet_distance(features, real)
    shares = prc_features_to_metric(
        features, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=5000, verbose=False
    )
    return {"frechet_distance": distance, **{key: shares[key] for key in ("precision", "recall")}}


def ssim(imagined: Tensor, heard: Tensor) -> Tensor:
    """Compute the structural similarity of each of `(N, 1, H, W)` imagined images in [-1, 1] with
    its own heard one, `(N,)`.

    Z. Wang et al., IEEE Trans. Image Process. 13(4), 2004. As there, the map is averaged only where
    the whole window lies in the image; torchmetrics averages the padded border too. Pixels are
    taken from 0, which is black, to 1. With black as -1, SSIM would overlook a haze on black."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    values = []
    for start in range(0, len(imagined), 20):  # more leave the CPU's cache
        one, other = ((images[start : start + 20] + 1) / 2 for images in (imagined, heard))
        _, full = structural_similarity_index_measure(
            one, other, reduction="none", data_range=(0.0, 1.0), return_full_image=True
        )
        values.append(full[..., inside, inside].mean((1, 2, 3)))
    return torch.cat(values)


def retrieval(imagined: Tensor, heard: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:
    """Compute how often the heard image is the most correlated one to the imagined image, among the
    first 1,000 heard ones.

    Args: as in `rate_images`.

    Returns:
        overall, and within_class, where only images of the same class are searched. Each has
        `proportion_ci`'s accuracy, interval and images, and chance, the accuracy of guessing. One
        prototype per class is at chance within its class.
    """
    imagined, heard, labels = (tensor[:RETRIEVED_AMONG] for tensor in (imagined, heard, labels))
    similarity = correlation_matrix(imagined, heard)
    own = torch.arange(len(similarity), device=similarity.device)
    other_class = labels[:, None] != labels
    found = {
        "overall": similarity.argmax(1) == own,
        "within_class": similarity.masked_fill(other_class, -torch.inf).argmax(1) == own,
    }
    chance = {"overall": 1 / len(own), "within_class": len(labels.unique()) / len(own)}
    return {
        name: {**proportion_ci(int(hit.sum()), len(hit)), "chance": chance[name]}
        for name, hit in found.items()
    }


def diversity(imagined: Tensor, heard: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compute how much the imagined images of a class differ from one another, as a share of how
    much the heard ones do.

    It is the mean Euclidean distance of pixels between two images of a class, over all pairs among
    the first 1,000 images. 0: one prototype per class. 1: as diverse as the heard images. Grey
    images count as less diverse, and noise as more.

    Args: as in `rate_images`.

    Returns:
        mean, over the classes; per_class, for each class with at least two images.
    """
    imagined, heard, labels = (tensor[:RETRIEVED_AMONG] for tensor in (imagined, heard, labels))
    per_class = []
    for index in labels.unique().tolist():
        one, other = (images[labels == index].flatten(1).float() for images in (imagined, heard))
        if len(one) > 1:
            ratio = F.pdist(one).mean() / F.pdist(other).mean().clamp(min=1e-12)
            per_class.append({"class": index, "diversity": ratio.item()})
    mean = sum(entry["diversity"] for entry in per_class) / max(len(per_class), 1)
    return {"mean": mean, "per_class": per_class}
