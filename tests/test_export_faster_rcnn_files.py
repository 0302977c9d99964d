"""Files of Faster R-CNN in every format beside their checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.export.base import Format, Wish
from mnvision.export.executorch import ExecuTorch
from mnvision.export.exporter import export
from mnvision.export.litert import LiteRT
from mnvision.export.onnx import Onnx
from mnvision.export.pt2 import Pt2
from mnvision.export.runtime import FileModel, open_file
from tests.builders import make_tiny_coco
from tests.builders_export import pictures
from tests.builders_faster_rcnn import grey_last, same_detections, save_spread, spread_faster_rcnn
from tests.builders_harm import compose
from tests.builders_models import picture
from tools.run import evaluate

SIDE = 96


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faster") / "f.ckpt"
    save_spread(path, ["person", "car", "kite"])
    return path


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path) -> FileModel:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    done = export(checkpoint, Onnx(), Wish())
    assert "faster_rcnn as onnx fp32: uint8 RGB 96 x 96 NCHW, batch any" in done.lines[0]
    assert "NMS inside" in done.lines[0]
    assert "batch 1, 2, 5" in done.lines[1]
    return open_file(done.path)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_answers_as_torch_does(onnx_file: FileModel, batch: int):
    expected = spread_faster_rcnn().predict(grey_last(batch))
    same_detections(onnx_file.predict(grey_last(batch)), expected)
    assert (expected["labels"] >= 0).any()


def test_onnx_holds_two_suppressions_and_says_what_it_is(onnx_file: FileModel, checkpoint: Path):
    import onnx

    proto = onnx.load(onnx_file.session.path)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("NonMaxSuppression") == 2
    assert not {"RoiAlign", "GridSample", "BatchNormalization"} & set(kinds)
    assert [entry.name for entry in proto.graph.output] == ["boxes", "scores", "classes", "count"]
    assert (onnx_file.kind, onnx_file.metadata.nms) == ("faster_rcnn", True)
    one, two = mnvision.load(onnx_file.session.path), mnvision.load(checkpoint)
    assert type(one) is type(two)
    assert one.check_threshold(0.05) == 0.05
    for mine, other in zip(
        one.predict([picture(3), picture(4, 300, 90)]), two.predict([picture(3), picture(4, 300, 90)])
    ):
        assert [found.name for found in mine] == [found.name for found in other]
        np.testing.assert_allclose([d.box for d in mine], [d.box for d in other], atol=0.01)


def test_a_file_is_evaluated_as_its_checkpoint(onnx_file: FileModel, checkpoint: Path, tmp_path: Path):
    data = make_tiny_coco(tmp_path / "data")
    scores, found = {}, {}
    for path in (checkpoint, onnx_file.session.path):
        folder = tmp_path / path.suffix
        cfg = compose(folder, "faster_rcnn_coco", f"data.root={data}", f"checkpoint={path}", name="evaluate")
        scores[path.suffix] = evaluate(cfg)
        found[path.suffix] = json.loads((folder / "detections.json").read_text())
    assert scores[".ckpt"]["val/loss"] > 0
    numbers = {name: value for name, value in scores[".ckpt"].items() if "loss" not in name}
    assert scores[".onnx"] == pytest.approx(numbers, abs=1e-6)
    assert len(found[".onnx"]) > 20
    for mine, other in zip(found[".onnx"], found[".ckpt"], strict=True):
        assert (mine["image_id"], mine["category_id"]) == (other["image_id"], other["category_id"])
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=0.02)


def test_int8_layers_are_the_models_own_and_noise_is_measured_on_equal_crops(onnx_file: FileModel):
    import onnx

    from mnvision.export.given import crop_shares, crops
    from mnvision.export.int8 import layers_of, quantized
    from mnvision.export.layer_noise import measure_layers

    pytest.importorskip("nncf")
    proto = onnx.load(onnx_file.session.path)
    layers = layers_of(proto)
    named = {name for name, value in spread_faster_rcnn().named_parameters() if value.ndim > 1}
    assert {f"{layer.title}.weight" for layer in layers} == named
    assert (len(crop_shares(proto)), len(crops(proto))) == (2, 1)
    int8 = quantized(proto, pictures(8, SIDE), None)
    assert sum(node.op_type == "QuantizeLinear" for node in int8.graph.node) >= len(layers) - 3
    noise = {row.layer: row.sqnr_db for row in measure_layers(proto, int8, layers, pictures(2, SIDE), None)}
    # Noise adds up along the network, so what is behind the crops is not far from what is before them.
    assert noise["head.cls"] > noise["head.rpn.conv"] - 10
    assert min(noise.values()) > 10


def test_onnx_in_half_precision_without_the_last_suppression(checkpoint: Path):
    pytest.importorskip("onnxscript")
    import onnx

    done = export(checkpoint, Onnx(), Wish("fp16", batch=1, nms=False))
    assert "without NMS" in done.lines[0]
    file = open_file(done.path)
    assert file.metadata.outputs["boxes"].startswith("(B, P, K, 4)")
    model, images = spread_faster_rcnn(), grey_last(2)
    found, expected = file.predict(images), model.predict(images)
    assert file.outputs(images)["boxes"].shape == (2, 12, 3, 4)
    # Half a pixel of rounding may swap neighbours among the detections, but not the best one.
    torch.testing.assert_close(found["scores"][:, 0], expected["scores"][:, 0], atol=5e-3, rtol=0)
    shapes = {
        tuple(entry.dims): entry.data_type for entry in onnx.load(done.path).graph.initializer if entry.dims[-1:] == [4]
    }
    assert shapes[tuple(model.head.anchors.shape)] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("name", ["openvino", "pt2"])
def test_other_formats_answer_as_torch_does(name: str, checkpoint: Path, tmp_path: Path):
    form: Format = Pt2()
    if name == "openvino":
        pytest.importorskip("openvino")
        from mnvision.export.openvino import OpenVino

        form = OpenVino()
    done = export(checkpoint, form, Wish(), tmp_path / f"f{form.suffix}")
    for batch in (1, 5):
        same_detections(open_file(done.path).predict(grey_last(batch)), spread_faster_rcnn().predict(grey_last(batch)))


@pytest.mark.parametrize("form", [LiteRT, ExecuTorch])
@pytest.mark.parametrize("nms", [True, False])
def test_formats_without_suppression_are_refused_in_one_line(form, nms: bool, checkpoint: Path, monkeypatch):
    made = form(shutil.which("true")) if form is LiteRT else form()
    monkeypatch.setattr(form, "require", lambda self: None)
    with pytest.raises(UserError, match=r"cannot hold a Faster R-CNN.*give format=onnx, openvino or pt2") as caught:
        export(checkpoint, made, Wish(batch=1, nms=nms))
    assert "\n" not in str(caught.value)
