"""OpenVINO, torch.export and LiteRT files, and what an export refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.export.appended import append_text, appended_text, write_with_metadata
from mnvision.export.base import Format, Wish
from mnvision.export.exporter import export
from mnvision.export.litert import VARIABLE, LiteRT
from mnvision.export.metadata import FileMetadata
from mnvision.export.onnx import Onnx
from mnvision.export.pt2 import Pt2
from mnvision.export.runtime import is_exported, open_file
from tests.builders_export import SIDE, build, litert_form, pictures, save
from tests.builders_models import files_below, picture


def same_as_torch(path: Path, kind: str, batch: int, atol: float = 2e-6) -> None:
    model, images = build(kind), torch.from_numpy(pictures(batch, SIDE))
    found, expected = open_file(path).predict(images), model.predict(images)
    if kind != "detection":
        np.testing.assert_allclose(found, expected, atol=atol)
        return
    assert torch.equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=atol)


def test_openvino_detections_are_those_of_torch(tmp_path: Path):
    pytest.importorskip("openvino")
    from mnvision.export.openvino import OpenVino

    save(tmp_path / "d.ckpt", "detection")
    done = export(tmp_path / "d.ckpt", OpenVino(), Wish())
    assert files_below(tmp_path) == {"d.ckpt", "d.xml", "d.bin"}
    for batch in (1, 3):
        same_as_torch(done.path, "detection", batch)
    predictor = mnvision.load(done.path)
    assert len(predictor.predict(picture(1), score_threshold=0.05)) > 3
    (tmp_path / "d.bin").write_bytes((tmp_path / "d.bin").read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"d\.bin: not the weights that d\.xml was written with"):
        mnvision.load(done.path)
    (tmp_path / "d.bin").unlink()
    with pytest.raises(UserError, match=r"its weights d\.bin do not lie beside it"):
        mnvision.load(done.path)


def test_openvino_half_precision_stores_half(tmp_path: Path):
    pytest.importorskip("openvino")
    from mnvision.export.openvino import OpenVino

    save(tmp_path / "e.ckpt", "face_embeddings")
    done = export(tmp_path / "e.ckpt", OpenVino(), Wish("fp16"))
    same_as_torch(done.path, "face_embeddings", 3, atol=5e-3)
    weights = sum(value.numel() for value in build("face_embeddings").parameters())
    assert 1.9 * weights < (tmp_path / "e_fp16.bin").stat().st_size < 2.4 * weights


@pytest.mark.parametrize(("kind", "resize"), [("detection", True), ("face_attributes", False)])
def test_programs_of_torch_export(kind: str, resize: bool, tmp_path: Path):
    save(tmp_path / "a.ckpt", kind)
    done = export(tmp_path / "a.ckpt", Pt2(), Wish(resize=resize))
    for batch in (1, 3):
        same_as_torch(done.path, kind, batch)
    assert ("and at another size" in done.lines[1]) is resize
    damaged = tmp_path / "damaged.pt2"
    content = bytearray(done.path.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(bytes(content))
    with pytest.raises(UserError, match="not a usable program"):
        mnvision.load(damaged)


def test_litert_needs_an_environment_of_its_own_and_says_which(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ai_edge_litert")
    if _has("litert_torch"):
        pytest.skip("litert-torch is installed here")
    monkeypatch.setenv(VARIABLE, "/elsewhere/python")
    with pytest.raises(
        UserError, match=r"no converter /elsewhere/python; .* make env-litert makes .*litert/bin/python"
    ):
        LiteRT().require()
    with pytest.raises(UserError, match="no converter /nowhere/python"):
        LiteRT("/nowhere/python").require()
    LiteRT(shutil.which("true")).require()


def test_a_converter_that_fails_leaves_nothing_and_says_why(tmp_path: Path):
    pytest.importorskip("ai_edge_litert")
    save(tmp_path / "c.ckpt", "classification")
    with pytest.raises(UserError, match=r"converter=.*false failed: no message"):
        export(tmp_path / "c.ckpt", LiteRT(shutil.which("false")), Wish(batch=1))
    assert files_below(tmp_path) == {"c.ckpt"}


def test_litert_files_answer_as_torch_does(tmp_path: Path):
    """Where ``make env-litert`` was run, or MNVISION_LITERT_PYTHON names an environment with litert-torch."""
    form = litert_form()
    save(tmp_path / "d.ckpt", "detection")
    done = export(tmp_path / "d.ckpt", form, Wish(batch=1, nms=False))
    same_as_torch(done.path, "detection", 2)


def test_executorch_files_answer_as_torch_does(tmp_path: Path):
    pytest.importorskip("executorch", reason="mnvision[executorch] is not installed")
    from mnvision.export.executorch import ExecuTorch

    save(tmp_path / "d.ckpt", "detection")
    done = export(tmp_path / "d.ckpt", ExecuTorch(), Wish(batch=1, nms=False))
    for batch in (1, 3):
        same_as_torch(done.path, "detection", batch)


def test_metadata_behind_a_flatbuffer(tmp_path: Path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"TFL3" * 100)
    assert appended_text(path) is None
    assert not is_exported(path)
    append_text(path, '{"a": "ä"}')
    assert path.read_bytes()[:400] == b"TFL3" * 100
    assert appended_text(path) == '{"a": "ä"}'
    assert is_exported(path)


def test_a_program_damaged_at_its_beginning_is_refused(tmp_path: Path):
    pytest.importorskip("executorch", reason="mnvision[executorch] is not installed")
    path = tmp_path / "m.pte"
    # Opened by ExecuTorch, this identifier ends the whole process.
    metadata = FileMetadata("classification", ["a"], {}, {"probabilities": ""}, {})
    write_with_metadata(b"\x40\0\0\0\xbaT12" + bytes(1000), metadata, path)
    with pytest.raises(UserError, match="not a usable ExecuTorch file"):
        open_file(path)


class Broken(Onnx):
    """Writes a file that answers another picture's answer."""

    def write(self, graph, wish, metadata, target):
        parameter = next(iter(graph.model.head.parameters()))
        parameter.data = parameter.data * 1.05
        return super().write(graph, wish, metadata, target)


def test_a_file_that_answers_differently_is_not_kept(tmp_path: Path):
    pytest.importorskip("onnxscript")
    save(tmp_path / "c.ckpt", "classification")
    earlier = tmp_path / "c.onnx"
    earlier.write_text("an earlier file")
    with pytest.raises(UserError, match=r"does not answer as the model does.*limit 0\.0001"):
        export(tmp_path / "c.ckpt", Broken(), Wish())
    assert earlier.read_text() == "an earlier file"
    assert files_below(tmp_path) == {"c.ckpt", "c.onnx"}


@pytest.mark.parametrize(
    ("form", "wish", "output", "text"),
    [
        (Onnx, Wish("fp8"), None, "precision=fp8: choose fp32 or fp16"),
        (Pt2, Wish("fp16"), None, "format=pt2 holds fp32, not precision=fp16"),
        (Onnx, Wish(), "best.tflite", "a file of format=onnx ends in .onnx"),
        (LiteRT, Wish(nms=False), None, "format=litert has a fixed batch: give batch=1"),
        (LiteRT, Wish(batch=1, resize=True), None, "format=litert takes pictures of one size only"),
    ],
)
def test_what_does_not_go_together_is_refused(form: type[Format], wish: Wish, output: str | None, text: str):
    with pytest.raises(UserError, match=text):
        export("no.ckpt", form(), wish, output)


def test_suppression_in_a_format_that_cannot_hold_it(tmp_path: Path):
    pytest.importorskip("ai_edge_litert")
    save(tmp_path / "d.ckpt", "detection")
    with pytest.raises(UserError, match="cannot hold non-maximum suppression: give nms=false"):
        export(tmp_path / "d.ckpt", LiteRT(shutil.which("true")), Wish(batch=1, nms=True))


def test_a_threshold_is_for_detectors(tmp_path: Path):
    save(tmp_path / "c.ckpt", "classification")
    with pytest.raises(UserError, match="score_threshold is for detectors"):
        export(tmp_path / "c.ckpt", Pt2(), Wish(), score_threshold=0.5)


@pytest.mark.parametrize("opset", [17, 24, True, 20.5, "x"])
def test_unsupported_opsets_are_refused(opset):
    with pytest.raises(UserError, match="choose 18 to 23"):
        Onnx(opset)


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "file").touch()
    save(tmp_path / "c.ckpt", "classification")

    class Untouched(Pt2):
        def write(self, *_):
            raise AssertionError("work began")

    with pytest.raises(UserError, match=r"cannot write .*choose another output=FILE"):
        export(tmp_path / "c.ckpt", Untouched(), Wish(), tmp_path / "file" / "a.pt2")


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
