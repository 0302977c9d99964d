"""int8 files of checkpoints that bring their ranges: what they need, and what they do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from mnvision.build import build
from mnvision.errors import UserError
from mnvision.export.base import INT8, Wish
from mnvision.export.calibration import Calibration
from mnvision.export.exporter import export
from mnvision.export.runtime import open_model
from mnvision.quantization.layers import quantize, restore
from tests.builders import make_image_folder
from tests.builders_export import SIDE, pictures, save
from tests.builders_export import build as build_float

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture
def without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed, and an import of it an error."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nncf" else real(name, *rest))
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "data", per_class=4)


def form_of(name: str) -> Any:
    pytest.importorskip(name)
    place = {"onnx": "onnx.Onnx", "openvino": "openvino.OpenVino"}[name]
    return build({"_target_": f"mnvision.export.{place}"})


def int8(checkpoint: Path, form: Any, folder: Path, images: Path, **options: Any) -> Any:
    wish = Wish(precision=INT8, batch=None, nms=False, resize=False)
    return export(checkpoint, form, wish, folder, pictures=images, calibration=Calibration(8, 8, **options))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_fine_tuned_checkpoint_is_written_without_nncf(name: str, tmp_path: Path, images: Path, without_nncf: None):
    form, shown = form_of(name), torch.from_numpy(pictures(8, SIDE))
    model, ranges = quantize(build_float("classification"))
    ranges.measure(model, [{"images": shown}], 1)
    save(tmp_path / "tuned.ckpt", "classification", quantization=ranges.to_plain())
    done = int8(tmp_path / "tuned.ckpt", form, tmp_path, images, report=name == "onnx")
    assert any("training with quantize=qat" in line for line in done.lines)
    file, _ = open_model(done.path)
    plain = build_float("classification")
    with torch.no_grad():
        expected, whole = restore(build_float("classification"), ranges.to_plain()).predict(shown), plain.predict(shown)
    found = file.predict(shown)
    assert float((found - expected).abs().mean()) < 0.75 * float((whole - expected).abs().mean())


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_any_other_checkpoint_needs_it(name: str, tmp_path: Path, images: Path, without_nncf: None):
    form = form_of(name)
    save(tmp_path / "plain.ckpt", "classification")
    with pytest.raises(UserError, match=r"precision=int8 needs nncf: pip install 'mnvision\[quantization\]'"):
        int8(tmp_path / "plain.ckpt", form, tmp_path, images)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.ckpt"]
