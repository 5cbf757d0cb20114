"""A machine rates image-to-sound encodings: each is learned, imagined with and rated over several
seeds, beside the primary.

    python compare_encodings.py                    # the full schedule; for a GPU
    # narrower and shorter, for two cores; its minutes are in the README
    python compare_encodings.py --quick
    python compare_encodings.py --quick --only primary tanh linear mel --seeds 0 1 2 3 4
    # a second process, on another GPU, shares the work through the folder
    python compare_encodings.py --device cuda:1

An encoding and a seed are a cell: stage one learns to hear it, stage three to imagine, and
`evaluate.py` rates the result. Stage two is trained once and shared by all, as are the judges.
Beside the learned listener stands a linear inverse from the log-mel to the image, so that a
weakness of the listener is not taken for one of the sound.

Writes `results/encodings/`:
    comparison.csv           a row for each encoding and seed
    conclusions.md           what can be concluded from it, and what cannot
    ratings.png, sheet.png   the ratings with their intervals; the same ten test digits under every encoding
    memory-<key>/            a results folder with stage two and the judges
    <name>-<key>/<seed>/     a results folder with stages one and three, and their rating in evaluation/
    <name>-<key>/linear/     the linear inverse
A key stands for the settings. It can be stopped at any time, and the same command goes on; a
finished cell is never run again. An encoding that is new in the header runs alone; another
schedule, objective or rating runs all cells anew. Tables and pictures show what the last command
named: to see all, name all at the end, which takes seconds."""

import json
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from common.files import save_tensors, write_file
from common.provenance import code_revision, package_versions
from compare_encodings import Config, Schedule
from data import load_digits
from data.resize import upsample
from evaluation.metrics import correlation, mean_ci, retrieval
from evaluation.sweep import Trial
from training.figures import first_of_each_class
from vggish import ImageToLogMel

PENALTIES = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
)  # of the ridge, in units of the mean squared length of a log-mel, centred


class Ridge(NamedTuple):
    """Ridge regression in its dual form, for which the sounds may have more numbers than there are
    sounds: the prediction for x is offset + (x - centre) log_mels' weights."""

    logmels: Tensor  # (N, frames * 64), centred
    centre: Tensor  # (frames * 64,)
    weights: Tensor  # (N, 784)
    offset: Tensor  # (784,)

    def __call__(self, kernels: Tensor) -> Tensor:
        """`(M, N)` products of centred log-mels with those learned from -> `(M, 784)`."""
        return kernels @ self.weights + self.offset

    def kernels(self, logmels: Tensor) -> Tensor:
        return (logmels - self.centre) @ self.logmels.T


def fit_ridges(
    logmels: Tensor, pixels: Tensor, penalties: tuple[float, ...] = PENALTIES
) -> list[Ridge]:
    """Linear maps from `(N, D)` log-mels to `(N, P)` pixels, one for each of `penalties`: it
    minimises the summed squared error plus the squared weights times `penalty` times the mean
    squared length of a centred log-mel. The offset is not penalised. Solved in float64."""
    centre, offset = logmels.mean(0), pixels.mean(0)
    logmels = logmels - centre
    gram = (
        logmels.double() @ logmels.double().T
    )  # of more sounds than numbers it is singular, but for the penalty
    unit, residual = gram.diagonal().mean().item(), (pixels - offset).double()
    ridges, added = [], 0.0
    for penalty in penalties:
        gram.diagonal().add_((penalty - added) * unit)
        added = penalty
        weights = torch.cholesky_solve(residual, torch.linalg.cholesky(gram))
        ridges.append(Ridge(logmels, centre, weights.to(logmels.dtype), offset))
    return ridges


@torch.no_grad()
def invert_linearly(config: Config, schedule: Schedule, cell: Trial, device: torch.device) -> None:
    """How well a linear map recovers unseen 28 x 28 images from log-mels: `metrics.json`, and
    `shown.pt` for the sheet.

    The ridge is chosen by the correlation on the validation part. Correlation and retrieval are
    taken of the test images, once, enlarged as the imagined ones are, so that both listeners'
    numbers can be set side by side. It is no ceiling: what is not linear in the log-mel, the
    learned listener may hear all the same."""
    dataset = schedule.hear.dataset
    train, validation, test = (
        load_digits(dataset, part, config.data_root, device)
        for part in ("train", "validation", "test")
    )
    ear = ImageToLogMel(cell.listening.encoding, cell.listening.frames, cell.listening.hop).to(
        device
    )

    def hear(images: Tensor) -> Tensor:
        return torch.cat([ear(part).flatten(1) for part in images.split(1000)])

    def kernels(images: Tensor) -> Tensor:
        return torch.cat([ridges[0].kernels(hear(part)) for part in images.split(1000)])

    def seen(pixels: Tensor) -> Tensor:
        return upsample(255 * pixels.clamp(0, 1).unflatten(1, (28, 28)))

    learned = train.images[: schedule.linear_images]
    ridges = fit_ridges(hear(learned), learned.flatten(1) / 255)
    heard, products = upsample(validation.images), kernels(validation.images)
    scores = [correlation(seen(ridge(products)), heard).mean().item() for ridge in ridges]
    best = max(range(len(scores)), key=scores.__getitem__)
    recovered, heard = seen(ridges[best](kernels(test.images))), upsample(test.images)
    shown = first_of_each_class(test.labels, 1)[:, 0]
    save_tensors(cell.folder / "shown.pt", {"recovered": recovered[shown].cpu()})
    record = {
        "stage": "linear",
        "correlation": mean_ci(correlation(recovered, heard)),
        "retrieval": retrieval(recovered, heard, test.labels),
        "validation_correlation": dict(zip(map(str, PENALTIES), scores, strict=True)),
        "penalty": PENALTIES[best],
        "images": len(learned),
        "revision": code_revision(),
        "versions": package_versions(),
        "config": asdict(cell.listening),
    }
    write_file(
        cell.folder / "metrics.json",
        lambda path: path.write_text(json.dumps(record, indent=1) + "\n"),
    )
    print(
        f"recovered by a linear map: correlation {record['correlation']['mean']:.3f}. {cell.folder}",
        flush=True,
    )
