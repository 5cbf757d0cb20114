"""The linear decoder: how well ridge regression recovers the image from the log-mel.

It shows how much of an image a sound holds, apart from the model and its schedule. It is no upper
bound: a network may also use what is not linear in the log-mel."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import save_tensors, write_json
from common.provenance import code_revision, package_versions
from data import load_digits
from data.resize import upsample
from evaluation.encodings import Condition
from evaluation.metrics import correlation, mean_ci, retrieval
from training.figures import first_of_each_class
from vggish import ImageToLogMel

# Of the ridge, in units of the mean squared length of a centred log-mel.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@torch.no_grad()
def decode_linearly(
    condition: Condition, dataset: str, count: int, data_root: Path, device: torch.device,
    output: Path,
) -> None:  # fmt: skip
    """Fit the decoder, rate it on the test images, enlarged as the imagined ones are, and write
    metrics.json, and shown.pt with the images that the sheet shows. The penalty is chosen by the
    correlation on the validation part.

    Args:
        condition: the encoding, and how it is heard.
        dataset: the name of the data set.
        count: how many training images the decoder is fitted to.
        data_root: the folder of the data sets.
        device: where the log-mels are computed. scikit-learn fits on the CPU, in float64.
        output: the folder to write into.
    """
    from sklearn.linear_model import Ridge  # slow to import

    train, validation, test = (
        load_digits(dataset, part, data_root, device) for part in ("train", "validation", "test")
    )
    front_end = ImageToLogMel(condition.encoding, condition.frames, condition.hop).to(device)

    def hear(images: Tensor) -> np.ndarray:
        parts = [front_end(part).flatten(1).double().cpu() for part in images.split(1000)]
        return torch.cat(parts).numpy()

    def decode(model: Ridge, logmels: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(model.predict(logmels)).float().to(device)
        return upsample(255 * pixels.clamp(0, 1).unflatten(1, (28, 28)))

    learned = train.images[:count]
    logmels, pixels = hear(learned), learned.flatten(1).double().cpu().numpy() / 255
    unit = logmels.var(0).sum()
    models = [Ridge(alpha=penalty * unit).fit(logmels, pixels) for penalty in PENALTIES]
    logmels, heard = hear(validation.images), upsample(validation.images)
    scores = [correlation(decode(model, logmels), heard).mean().item() for model in models]
    best = int(np.argmax(scores))
    decoded, heard = decode(models[best], hear(test.images)), upsample(test.images)
    record = {
        "stage": "linear_decoder",
        "correlation": mean_ci(correlation(decoded, heard)),
        "retrieval": retrieval(decoded, heard, test.labels),
        "validation_correlation": dict(zip(map(str, PENALTIES), scores, strict=True)),
        "penalty": PENALTIES[best],
        "images": len(learned),
        "revision": code_revision(),
        "versions": package_versions("scikit-learn"),
        "config": asdict(condition),
    }
    shown = first_of_each_class(test.labels, 1)[:, 0]
    save_tensors(output / "shown.pt", {"decoded": decoded[shown].cpu()})
    write_json(output / "metrics.json", record)
    print(f"decoded by a linear map: correlation {record['correlation']['mean']:.3f}. {output}")
