"""ONNX files of every kind of model: the same answers, the same predictors, and clear refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.export.base import Wish
from mnvision.export.exporter import export
from mnvision.export.onnx import Onnx
from mnvision.export.runtime import FileModel, open_file
from tests.builders_export import CONFIGS, SIDE, build, pictures, save
from tests.builders_models import files_below, picture

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[1]
KINDS = list(CONFIGS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``KIND.ckpt`` and ``KIND.onnx`` of every kind."""
    folder = tmp_path_factory.mktemp("onnx")
    for kind in KINDS:
        save(folder / f"{kind}.ckpt", kind)
        export(folder / f"{kind}.ckpt", Onnx(), Wish())
    assert files_below(folder) == {f"{kind}{suffix}" for kind in KINDS for suffix in (".ckpt", ".onnx")}
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_answers_are_those_of_torch_at_any_batch(kind: str, batch: int, files: Path):
    model, images = build(kind), torch.from_numpy(pictures(batch, SIDE))
    found, expected = open_file(files / f"{kind}.onnx").predict(images), model.predict(images)
    if kind != "detection":
        np.testing.assert_allclose(found, expected, atol=2e-6)
        return
    assert torch.equal(found["labels"], expected["labels"])
    assert (found["labels"] >= 0).sum() > 5 * batch
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=2e-6)


def test_the_graph_has_named_ends_uint8_pixels_and_no_batch_norm(files: Path):
    proto = onnx.load(files / "detection.onnx")
    assert [entry.name for entry in proto.graph.input] == ["images"]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [entry.name for entry in proto.graph.output] == ["boxes", "scores", "classes", "count"]
    kinds = [node.op_type for node in proto.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("NonMaxSuppression") == 1
    text = (files / "detection.onnx").read_bytes()
    assert str(ROOT).encode() not in text  # nodes are not labelled with whose source they were traced in
    assert proto.opset_import[0].version == 20


@pytest.mark.parametrize("kind", KINDS)
def test_load_gives_the_predictor_of_the_checkpoint(kind: str, files: Path):
    one, two = (mnvision.load(files / f"{kind}{suffix}") for suffix in (".ckpt", ".onnx"))
    assert type(one) is type(two)
    assert one.class_names == two.class_names
    assert one.metadata.calibration == two.metadata.calibration
    assert one.preprocess.framing.to_dict() == two.preprocess.framing.to_dict()
    sources = [picture(3), picture(4, 300, 90)]
    for mine, other in zip(two.predict(sources), one.predict(sources)):
        left, right = mine.to_dict(), other.to_dict()
        assert left.keys() == right.keys()
        assert _numbers(left) == pytest.approx(_numbers(right), abs=2e-2 if kind == "detection" else 2e-5)
    if kind == "detection":
        assert one.category_ids == two.category_ids
        assert two.check_threshold(0.05) == 0.05
        with pytest.raises(UserError, match=r"keeps no score below 0\.05"):
            two.check_threshold(0.01)
    if kind == "face_embeddings":
        assert two.threshold == 0.31
        assert two.dim == 16
        assert two.identity != one.identity


def _numbers(value) -> list[float]:
    if isinstance(value, dict):
        return [n for key in sorted(value) for n in _numbers(value[key])]
    if isinstance(value, list | tuple):
        return [n for part in value for n in _numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.fixture(scope="module")
def raw_boxes(tmp_path_factory: pytest.TempPathFactory) -> FileModel:
    """A detector without suppression, two images at a time, no score below 0.3."""
    folder = tmp_path_factory.mktemp("raw")
    save(folder / "d.ckpt", "detection")
    done = export(folder / "d.ckpt", Onnx(), Wish(batch=2, nms=False), folder / "out" / "d.onnx", score_threshold=0.3)
    assert "without NMS" in done.lines[0]
    return open_file(done.path)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_suppression_outside_the_file_and_a_fixed_batch_change_nothing(raw_boxes: FileModel, batch: int):
    images = torch.from_numpy(pictures(batch, SIDE))
    expected = build("detection", score_threshold=0.3).predict(images)
    found = raw_boxes.predict(images)
    assert torch.equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
    outputs = raw_boxes.outputs(images)
    assert outputs["scores"].shape == (batch, raw_boxes.outputs(images)["boxes"].shape[1], 3)
    assert raw_boxes.decoder.score_threshold == 0.3


def test_pictures_of_any_size_and_half_precision(tmp_path: Path):
    save(tmp_path / "d.ckpt", "detection")
    done = export(tmp_path / "d.ckpt", Onnx(opset=18), Wish("fp16", resize=True))
    assert done.path.name == "d_fp16.onnx"
    whole = sum(value.numel() * 4 for value in build("detection").parameters())
    assert done.size < 0.75 * whole + 150_000  # half of the weights, and the graph
    file = open_file(done.path)
    big = picture(1, 150, 333).transpose(2, 0, 1)[None].copy()
    found = file.session.run(big)
    assert found["boxes"][..., 2].max() > 250
    assert found["boxes"][..., 3].max() <= 150.5
    assert file.session.metadata.input["any_size"] is True


def test_nothing_found_is_an_empty_answer_of_the_same_shape(files: Path, tmp_path: Path):
    """The predictors see nothing, so that every class is improbable everywhere."""
    model = save(tmp_path / "d.ckpt", "detection")
    content = torch.load(tmp_path / "d.ckpt", weights_only=True)
    for name in content["state_dict"]:
        if "predictors" in name and "cls" in name:
            content["state_dict"][name] *= 0 if name.endswith("weight") else 8
    torch.save(content, tmp_path / "d.ckpt")
    done = export(tmp_path / "d.ckpt", Onnx(), Wish())
    found = open_file(done.path).outputs(torch.from_numpy(pictures(3, SIDE)))
    assert found["count"].tolist() == [0, 0, 0]
    assert found["boxes"].shape == (3, model.decoder.max_detections, 4)
    assert (found["classes"] == -1).all()
    assert not found["scores"].any()


def test_the_snippet_of_the_docs_runs_without_mnvision(files: Path, tmp_path: Path, monkeypatch, capsys):
    import cv2

    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    snippet = next(block for block in blocks if "onnxruntime" in block)
    assert "import mnvision" not in snippet
    assert len(snippet.strip().splitlines()) <= 15
    cv2.imwrite(str(tmp_path / "photo.jpg"), picture(3))
    shutil.copy(files / "detection.onnx", tmp_path / "best.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/export.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    result = mnvision.load(files / "detection.ckpt").predict("photo.jpg", score_threshold=0.3)
    assert len(printed) == len(result)
    assert printed[0].startswith(result[0].name)


def test_bad_files_end_in_one_line(files: Path, tmp_path: Path):
    proto = onnx.load(files / "classification.onnx")
    text = {entry.key: entry for entry in proto.metadata_props}["mnvision"].value
    assert json.loads(text)["class_names"] == ["cat", "dog", "a/b"]
    stripped, altered, cut = (tmp_path / f"{name}.onnx" for name in ("stripped", "altered", "cut"))
    onnx.helper.set_model_props(proto, {"mnvision": text.replace('"cat"', '"cow"')})
    onnx.save(proto, altered)
    del proto.metadata_props[:]
    onnx.save(proto, stripped)
    cut.write_bytes((files / "classification.onnx").read_bytes()[:5000])
    for path, words in ((stripped, "holds no"), (altered, "changed after"), (cut, "not a usable"), (tmp_path, "exist")):
        with pytest.raises(UserError, match=words) as caught:
            mnvision.load(path if path.suffix else path / "no.onnx")
        assert "\n" not in str(caught.value)
    file = open_file(files / "classification.onnx")
    for wrong in (torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 3, SIDE, 7, dtype=torch.uint8)):
        with pytest.raises(UserError, match=f"takes uint8 images \\(B, 3, {SIDE}, {SIDE}\\)"):
            file.predict(wrong)
