"""Export a trained model to one ONNX file, from image to imagined image.

    python -m tools.export                                  # the newest complete run in results
    python -m tools.export elsewhere/train_all -o late_blind.onnx

The file takes `images`, `(B, rows, columns)` float32 in [0, 1] in the encoding's own size, 28 x 28
by default, and gives `imagined`, `(B, 1, 64, 64)` float32 in [-1, 1], for any B. It computes in
float32, and is compared with PyTorch by ONNX Runtime. It needs onnx, onnxscript and onnxruntime:
`pip install onnx onnxscript onnxruntime`."""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from common.cli import command_line
from common.files import UserError, write_file
from models.late_blind import LateBlind

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of a pixel in [-1, 1]
CHECKED = (1, 3, 64)  # numbers of images


@dataclass(frozen=True)
class Config:
    # A run of stage three, or a results folder: then its newest complete run.
    run: tyro.conf.Positional[Path] = Path("results")
    # The file to write.
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("late_blind.onnx")


class Float32Model(nn.Module):
    """A late-blind model that computes in float32 on every machine."""

    def __init__(self, model: LateBlind) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """`(B, rows, columns)` float32 in [0, 1] -> `(B, 1, 64, 64)` in [-1, 1]."""
        logmels = self.model.front_end(images)
        return self.model.generator(self.model.audio_network.embed(logmels))


@torch.no_grad()
def main(config: Config) -> float:
    """Export, and compare with PyTorch; returns the largest difference of a pixel."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"packages are missing; run `pip install {' '.join(missing)}`.")
    import onnxruntime  # pyright: ignore[reportMissingImports]

    model = Float32Model(LateBlind.load(config.run)).eval()
    size = model.model.front_end.encoding.rows, model.model.front_end.encoding.columns
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model, (torch.rand(2, *size),), dynamo=True, input_names=["images"], verbose=False,
        output_names=["imagined"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert program is not None
    write_file(config.output, lambda path: program.save(path, external_data=False))
    session = onnxruntime.InferenceSession(config.output, providers=["CPUExecutionProvider"])
    difference = 0.0
    for count in CHECKED:
        images = torch.rand(count, *size, generator=torch.Generator().manual_seed(count))
        (imagined,) = session.run(None, {"images": images.numpy()})
        difference = max(difference, float(np.abs(imagined - model(images).numpy()).max()))
    if not difference <= TOLERANCE:
        config.output.unlink()
        raise UserError(
            f"the exported model differs from PyTorch by {difference:.1g}, so {config.output} was "
            "removed; export it with other versions of torch and onnxruntime."
        )
    print(f"{config.output}: {config.output.stat().st_size / 1e6:.1f} MB; largest difference "
          f"from PyTorch {difference:.1g}")  # fmt: skip
    return difference


if __name__ == "__main__":
    command_line(Config, main, __doc__)
