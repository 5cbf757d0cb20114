"""What can be said of imagined digits by those who took no part in making them.

The classifier through which stage three is trained cannot tell a digit from noise that fools it. So an independent judge
(`models/judge.py`, trained by `mnist_classify_train.py` on real digits alone) reads the imagined ones, and is never
back-propagated through.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

import runs
from models.judge import Judge

RETRIEVED_AMONG = 1000  # images; the first ones of the set


def load_judge(results: Path, dataset: str | None, device: torch.device) -> Judge:
    """The judge that `mnist_classify_train.py` left in `results/judge/`, frozen.

    Raises:
        runs.UserError: if it is missing, damaged, or learned to read another data set than `dataset`.
    """
    path = Path(results) / "judge" / "checkpoint.pt"
    checkpoint = runs.load_checkpoint(path, "judge", "run mnist_classify_train.py")
    if dataset and checkpoint["config"]["dataset"] != dataset:
        raise runs.UserError(
            f"{path} reads {checkpoint['config']['dataset']}, but {dataset} is heard; "
            f"run mnist_classify_train.py --dataset {dataset}."
        )
    judge = Judge()
    runs.load_weights(judge, checkpoint["networks"]["judge"], path)
    return judge.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()


@torch.no_grad()
def judge_features(judge: Judge, images: Tensor) -> Tensor:
    """`(N, 1, 64, 64)` images in [-1, 1] -> `(N, 64)`; in batches, float32."""
    return torch.cat([judge.features(part) for part in images.split(512)])


def frechet_distance(imagined: Tensor, real: Tensor) -> float:
    """Frechet distance between two sets of features, `(N, D)` and `(M, D)`: 0 for equal Gaussians, large for foreign ones.

    M. Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017,
    as torchmetrics computes it, in float64. Only distances within one feature space, so of one judge, can be compared.
    """
    identity = nn.Identity()
    identity.num_features = imagined.shape[1]
    frechet = FrechetInceptionDistance(identity).set_dtype(torch.float64)
    frechet.update(imagined.double().cpu(), real=False)
    frechet.update(real.double().cpu(), real=True)
    return frechet.compute().item()


def similarity(imagined: Tensor, heard: Tensor) -> Tensor:
    """Pearson correlation of each of `(N, 1, H, W)` imagined with each of `(M, 1, H, W)` heard images, `(N, M)`."""

    def normal(images: Tensor) -> Tensor:
        flat = images.flatten(1).float()
        return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)

    return normal(imagined) @ normal(heard).T


def rate(judge: Judge, imagined: Tensor, heard: Tensor, labels: Tensor) -> dict[str, float]:
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
        retrieval: share whose most similar image, among the first 1000 heard ones, is the one that was heard.
    """
    features = judge_features(judge, imagined)
    right = (judge.classifier(features).argmax(1) == labels).double()
    per_digit = [right[labels == digit].mean().item() for digit in labels.unique().tolist()]
    same = similarity(imagined[:RETRIEVED_AMONG], heard[:RETRIEVED_AMONG])
    pairs = [similarity(one, other).diagonal() for one, other in zip(imagined.split(500), heard.split(500), strict=True)]
    return {
        "judge_accuracy": right.mean().item(),
        "judge_accuracy_worst": min(per_digit),
        "frechet_distance": frechet_distance(features, judge_features(judge, heard)),
        "correlation": torch.cat(pairs).mean().item(),
        "retrieval": (same.argmax(1) == torch.arange(len(same), device=same.device)).double().mean().item(),
    }
