"""The terms of stage three's objective that are ours. None of them uses the true image."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from data.resize import downsample_lstsq, project_to_28x28
from vggish import ImageToLogMel

AudioLoss = Literal["l1", "mse", "multires_l1", "loudness"]
# loudness grows with this power of the magnitude: S. S. Stevens, J. Acoust. Soc. Am. 27, 1955
LOUDNESS_POWER = 0.6


def audio_loss(
    front_end: ImageToLogMel,
    imagined: Tensor,
    logmels: Tensor,
    straight_through: float = 0.0,
    kind: AudioLoss = "l1",
) -> Tensor:
    """The distance between the sound of the imagined images and the sound that was heard.

    Args:
        front_end: images -> log-mels.
        imagined: `(B, 1, 64, 64)` in [-1, 1]; resized to 28 x 28 by least squares, and turned into
            sound.
        logmels: `(B, 1, frames, 64)`, of the sound that was heard.
        straight_through: the share of the gradient that passes a saturated pixel; see
            `VoiceTranslator.forward`.
        kind: `l1` and `mse`, the mean absolute or squared difference of the log-mels.
            `multires_l1`, the mean of l1 at full, half and quarter resolution in time and pitch.
            `loudness`, the mean squared difference of the loudness at the same resolutions;
            loudness is the mel magnitude to the power of 0.6.

    Returns:
        A scalar, 0 for the true image as the networks see it.
    """
    # Least squares may give values a little beyond [0, 1].
    sounded = front_end(downsample_lstsq(imagined), straight_through, validate=False)
    if kind == "loudness":
        sounded, logmels = torch.exp(LOUDNESS_POWER * sounded), torch.exp(LOUDNESS_POWER * logmels)
    difference = sounded - logmels
    resolutions = (1, 2, 4) if kind in ("multires_l1", "loudness") else (1,)
    levels = [F.avg_pool2d(difference, k) for k in resolutions]
    squared = kind in ("mse", "loudness")
    return torch.stack([(x.square() if squared else x.abs()).mean() for x in levels]).mean()


def null_space_penalty(imagined: Tensor) -> Tensor:
    """Mean squared difference of `(B, 1, 64, 64)` images in [-1, 1] to the nearest enlargements of
    28 x 28 pixels.

    The translator hears 28 x 28 pixels, so no sound can tell this difference. It is 0 for real
    digits."""
    return F.mse_loss(project_to_28x28(imagined), imagined.float())


def binarization_penalty(imagined: Tensor) -> Tensor:
    """How far images in [-1, 1] are from black and white: the mean of 1 - x^2. It is 0.12 in
    MNIST."""
    return (1 - imagined.square()).mean()
