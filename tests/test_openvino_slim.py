"""OpenVINO files say less and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnvision.export.openvino_slim import slim, without_indentation

ov = pytest.importorskip("openvino")


def rounded_layers():
    """Two rounded convolutions whose ranges, given four times over, are the same numbers; its input and its result."""
    ops = pytest.importorskip("openvino.opset13")
    rng = np.random.default_rng(0)
    images = ops.parameter([-1, 3, 8, 8], np.float32, name="images")
    images.output(0).get_tensor().set_names({"images"})
    found = images
    for _ in range(2):
        edges = [np.full((1, 1, 1, 1), value, np.float32) for value in (-1.0, 2.0, -1.0, 2.0)]
        found = ops.fake_quantize(found, *edges, 256)
        weights = rng.normal(size=(3, 3, 3, 3)).astype(np.float32)
        found = ops.convolution(found, weights, [1, 1], [1, 1], [1, 1], [1, 1])
        found = ops.add(found, np.array([0.5, 0.25, 0.125], np.float32).reshape(1, 3, 1, 1))
    found.output(0).get_tensor().set_names({"sums"})
    return ov.Model([ops.result(found)], [images], "layers")


def answers(model: object) -> np.ndarray:
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    return np.array(ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"images": images})[0])


def test_equal_constants_become_one_and_nothing_computed_changes(tmp_path: Path):
    model = rounded_layers()
    expected = answers(model)
    before = sum(node.get_type_name() == "Constant" for node in model.get_ops())
    slim(model, ov)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert (before, kinds.count("Constant")) == (12, 5)  # two ranges, one bias, and weights of two layers
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            assert [tuple(node.input(i).get_shape()) for i in range(1, 5)] == [()] * 4
        if node.get_type_name() == "Convolution":
            assert "Convolution" in node.get_friendly_name()
    assert model.output("sums").get_names() == {"sums"}
    assert np.array_equal(answers(model), expected)
    ov.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    indented = (tmp_path / "m.xml").stat().st_size
    without_indentation(tmp_path / "m.xml")
    assert (tmp_path / "m.xml").stat().st_size < 0.9 * indented
    assert np.array_equal(answers(str(tmp_path / "m.xml")), expected)


def test_text_inside_elements_stays(tmp_path: Path):
    model = rounded_layers()
    text = '{"names": ["a> <b", "c>\\n  <d", "e  f"]}'
    model.set_rt_info(text, ["mnvision", "metadata"])
    ov.save_model(model, tmp_path / "m.xml")
    without_indentation(tmp_path / "m.xml")
    read = ov.Core().read_model(tmp_path / "m.xml")
    assert read.get_rt_info(["mnvision", "metadata"]).astype(str) == text
