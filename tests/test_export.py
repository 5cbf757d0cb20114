"""The exported model."""

import sys
from pathlib import Path

import pytest
import torch

from common.files import UserError
from models.late_blind import LateBlind
from tools import export


def test_the_onnx_file_imagines_what_pytorch_imagines(chain: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    output = tmp_path / "late_blind.onnx"
    assert export.main(export.Config(chain, output)) < export.TOLERANCE
    assert list(tmp_path.iterdir()) == [output]  # one file
    session = runtime.InferenceSession(output, providers=["CPUExecutionProvider"])
    images = torch.rand(7, 28, 28)
    (imagined,) = session.run(None, {"images": images.numpy()})
    assert imagined.shape == (7, 1, 64, 64)
    with torch.no_grad():
        expected = export.Float32Model(LateBlind.load(chain)).eval()(images)
    torch.testing.assert_close(torch.from_numpy(imagined), expected, atol=1e-3, rtol=0)


def test_a_missing_package_is_named(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install onnx"):
        export.main(export.Config(chain, tmp_path / "x.onnx"))
