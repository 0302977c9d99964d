"""ONNX files as teachers; the files are small graphs made here, their truth is numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.teachers.onnx import OnnxTeacher
from tests.test_teachers import pictures

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper = onnx.helper

SIDE = 4
FLOAT, UINT8, HALF, INT64 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "UINT8", "FLOAT16", "INT64"))
KERNEL = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, 5)).astype(np.float32)


def save(
    path: Path,
    nodes: list[Any],
    outputs: list[Any],
    inputs: list[Any] | None = None,
    constants: dict[str, NDArray[Any]] | None = None,
    external: str | None = None,
) -> Path:
    inputs = inputs or [helper.make_tensor_value_info("pixels", FLOAT, ["n", 3, SIDE, SIDE])]
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save_model(model, path, save_as_external_data=external is not None, location=external, size_threshold=0)
    return path


def linear(
    path: Path,
    shape: tuple[Any, ...] = ("n", 3, SIDE, SIDE),
    kind: int = FLOAT,
    last: str | None = None,
    kernel: NDArray[np.float32] = KERNEL,
    external: str | None = None,
) -> Path:
    """``flatten(pixels) @ kernel``, then perhaps one more operation."""
    cast = helper.make_node("Cast", ["pixels"], ["numbers"], to=FLOAT)
    flat = helper.make_node("Flatten", ["numbers"], ["flat"])
    product = helper.make_node("MatMul", ["flat", "kernel"], ["product"])
    end = helper.make_node(last or "Identity", ["product"], ["answer"])
    return save(
        path,
        [cast, flat, product, end],
        [helper.make_tensor_value_info("answer", FLOAT, [shape[0], kernel.shape[1]])],
        [helper.make_tensor_value_info("pixels", kind, shape)],
        {"kernel": kernel},
        external,
    )


def detector(
    path: Path,
    boxes: Any,
    scores: Any,
    labels: Any,
    names: tuple[str, ...] = ("boxes", "scores", "labels"),
    batch: Any = 1,
) -> Path:
    """The same detections for every picture."""
    arrays = {"b": np.array(boxes, np.float32), "s": np.array(scores, np.float32), "l": np.array(labels, np.int64)}
    nodes = [helper.make_node("Identity", [key], [name]) for key, name in zip(arrays, names)]
    types = zip(names, (FLOAT, FLOAT, INT64), arrays.values())
    outputs = [helper.make_tensor_value_info(name, kind, array.shape) for name, kind, array in types]
    inputs = [helper.make_tensor_value_info("pixels", FLOAT, [batch, 3, 10, 20])]
    return save(path, nodes, outputs, inputs, arrays)


def truth(images: torch.Tensor, mean: Any = 0.0, std: Any = 255.0) -> NDArray[np.float32]:
    """What :func:`linear` gives for normalised pixels."""
    column = [np.broadcast_to(np.array(value, np.float32), 3).reshape(1, 3, 1, 1) for value in (mean, std)]
    pixels = (images.numpy().astype(np.float32) - column[0]) / column[1]
    return pixels.reshape(len(images), -1) @ KERNEL


def test_logits_of_normalised_pixels(tmp_path: Path):
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx"), mean=[1, 2, 3], std=[4, 5, 6])
    images = pictures(3, SIDE)
    assert np.allclose(teacher(images)["logits"], truth(images, [1, 2, 3], [4, 5, 6]), atol=1e-3)
    spec = teacher.spec
    assert (spec.kind, spec.resolution, spec.outputs) == ("classification", (SIDE, SIDE), {"logits": (5,)})
    assert spec.parameters == KERNEL.size
    assert spec.class_names is None
    assert spec.multiply_adds is None


def test_blue_comes_first_where_asked(tmp_path: Path):
    path, images = linear(tmp_path / "m.onnx"), pictures(2, SIDE)
    teacher = OnnxTeacher(path, channel_order="bgr", mean=[1, 2, 3], std=[4, 5, 6])
    assert np.allclose(teacher(images)["logits"], truth(images.flip(1), [1, 2, 3], [4, 5, 6]), atol=1e-3)


def test_channels_last_is_seen_from_the_shape(tmp_path: Path):
    kernel = KERNEL.reshape(3, SIDE, SIDE, 5).transpose(1, 2, 0, 3).reshape(-1, 5)
    path = linear(tmp_path / "m.onnx", ("n", SIDE, SIDE, 3), kernel=np.ascontiguousarray(kernel))
    images = pictures(2, SIDE)
    assert np.allclose(OnnxTeacher(path, mean=0, std=255)(images)["logits"], truth(images), atol=1e-4)
    with pytest.raises(UserError, match=r"its input pixels \(\?, 4, 4, 3\) has no axis of 3 channels for nchw"):
        OnnxTeacher(path, mean=0, std=255, layout="nchw")


@pytest.mark.parametrize(("kind", "arguments"), [(UINT8, {}), (HALF, {"mean": 0, "std": 1})])
def test_inputs_of_other_types(kind: int, arguments: dict[str, Any], tmp_path: Path):
    images = pictures(2, SIDE)
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx", kind=kind), **arguments)
    assert np.allclose(teacher(images)["logits"], truth(images, 0, 1), atol=1e-2)
    bgr = OnnxTeacher(linear(tmp_path / "m.onnx", kind=kind), channel_order="bgr", **arguments)
    assert np.allclose(bgr(images)["logits"], truth(images.flip(1), 0, 1), atol=1e-2)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_size_is_kept_to(batch: int, tmp_path: Path):
    images = pictures(5, SIDE)
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx", (batch, 3, SIDE, SIDE)), mean=0, std=255)
    assert np.allclose(teacher(images)["logits"], truth(images), atol=1e-4)


def test_free_sizes_need_a_resolution(tmp_path: Path):
    path = linear(tmp_path / "m.onnx", ("n", 3, "h", "w"))
    assert OnnxTeacher(path, mean=0, std=255, resolution=SIDE).spec.resolution == (SIDE, SIDE)
    with pytest.raises(UserError, match=r"takes any size: give teacher\.resolution"):
        OnnxTeacher(path, mean=0, std=255)
    with pytest.raises(UserError, match=r"onnxruntime failed on \(2, 3, 5, 5\)") as caught:
        OnnxTeacher(path, mean=0, std=255, resolution=5)
    assert "\n" not in str(caught.value)


def test_probabilities_become_logits(tmp_path: Path):
    images = pictures(2, SIDE)
    kernel = KERNEL / 100
    arguments: dict[str, Any] = {"mean": 127.5, "std": 127.5, "probabilities": True}
    plain = OnnxTeacher(linear(tmp_path / "plain.onnx", kernel=kernel), mean=127.5, std=127.5)(images)["logits"]
    softmax = OnnxTeacher(linear(tmp_path / "softmax.onnx", last="Softmax", kernel=kernel), **arguments)
    assert torch.allclose(softmax(images)["logits"].softmax(1), plain.softmax(1), atol=1e-6)
    sigmoid = OnnxTeacher(linear(tmp_path / "s.onnx", last="Sigmoid", kernel=kernel), "face_attributes", **arguments)
    assert torch.allclose(sigmoid(images)["attribute_logits"], plain, atol=1e-5)


def test_certain_probabilities_stay_finite(tmp_path: Path):
    path = linear(tmp_path / "m.onnx", last="Sigmoid", kernel=KERNEL * 1e6)
    outputs = OnnxTeacher(path, "face_attributes", mean=127.5, std=1, probabilities=True)(pictures(2, SIDE))
    assert outputs["attribute_logits"].abs().max() == pytest.approx(16.1, abs=0.1)


def test_numbers_that_are_no_probabilities_are_refused(tmp_path: Path):
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx"), mean=0, std=255, probabilities=True)
    with pytest.raises(UserError, match=r"output answer goes from -.*set teacher.probabilities=false"):
        teacher(pictures(2, SIDE))


def test_embeddings_have_length_one(tmp_path: Path):
    images = pictures(2, SIDE)
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx"), "face_embeddings", mean=0, std=255)
    expected = truth(images)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(teacher(images)["embedding"], expected, atol=1e-5)
    assert teacher.spec.outputs == {"embedding": (5,)}


def test_detections_of_every_form(tmp_path: Path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    names = str(tmp_path / "names.txt")
    boxes, scores, labels = [[2, 1, 10, 5], [0, 0, 20, 10]], [0.3, 0.8], [1, 2]
    expected = [[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.5, 0.5]]
    common: dict[str, Any] = {"kind": "detection", "mean": 0, "std": 255, "class_names": names, "max_detections": 2}
    path = detector(tmp_path / "pixel.onnx", boxes, scores, labels)
    outputs = OnnxTeacher(path, detections={"first_label": 1}, **common)(pictures(2, 10, 20))
    assert np.allclose(outputs["boxes"], [expected] * 2)
    assert outputs["labels"].tolist() == [[1, 0]] * 2
    assert np.allclose(outputs["scores"], [[0.8, 0.3]] * 2)
    swapped = (np.array([boxes])[..., [1, 0, 3, 2]] / [10, 20, 10, 20]).tolist()
    path = detector(tmp_path / "fraction.onnx", swapped, [scores], [[0, 1]], ("b1", "s1", "l1"), batch="n")
    fields = {"boxes": "b1", "scores": "s1", "labels": "l1", "format": "yxyx", "unit": "fraction"}
    outputs = OnnxTeacher(path, detections=fields, **common)(pictures(2, 10, 20))
    assert np.allclose(outputs["boxes"], [expected] * 2)
    assert outputs["labels"].tolist() == [[1, 0]] * 2


def test_a_detector_of_one_class_needs_no_labels(tmp_path: Path):
    (tmp_path / "face.txt").write_text("face\n")
    path = detector(tmp_path / "m.onnx", [[0, 0, 20, 10]], [0.5], [7])
    arguments: dict[str, Any] = {"kind": "detection", "mean": 0, "std": 255, "class_names": str(tmp_path / "face.txt")}
    teacher = OnnxTeacher(path, detections={"labels": None}, max_detections=1, **arguments)
    assert teacher(pictures(1, 10, 20))["labels"].tolist() == [[0]]
    with pytest.raises(UserError, match="gave the label 7, but has 1 class names from 0 on"):
        OnnxTeacher(path, **arguments)(pictures(1, 10, 20))


def test_external_data_count_in_the_fingerprint(tmp_path: Path):
    arguments: dict[str, Any] = {"mean": 0, "std": 255}
    path = linear(tmp_path / "m.onnx", external="m.data")
    first = OnnxTeacher(path, **arguments)
    assert np.allclose(first(pictures(2, SIDE))["logits"], truth(pictures(2, SIDE)), atol=1e-4)
    before = first.fingerprint()
    assert OnnxTeacher(path, **arguments).fingerprint() == before
    assert OnnxTeacher(path, mean=1, std=255).fingerprint() != before
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "m.data").write_bytes(bytes(data))
    assert OnnxTeacher(path, **arguments).fingerprint() != before
    (tmp_path / "m.data").unlink()
    with pytest.raises(UserError, match=r"m\.onnx keeps weights in .*m\.data, which does not exist"):
        OnnxTeacher(path, **arguments)


def test_class_names_lie_beside_the_file(tmp_path: Path):
    path = linear(tmp_path / "m.onnx")
    (tmp_path / "labels.txt").write_text("\n".join("abcde"))
    assert OnnxTeacher(path, mean=0, std=255).spec.class_names == tuple("abcde")


def two_outputs(path: Path) -> Path:
    nodes = [helper.make_node("Flatten", ["pixels"], [name]) for name in ("first", "second")]
    return save(path, nodes, [helper.make_tensor_value_info(n, FLOAT, ["n", 48]) for n in ("first", "second")])


def a_map(path: Path) -> Path:
    value = helper.make_tensor_value_info("map", FLOAT, ["n", 3, SIDE, SIDE])
    return save(path, [helper.make_node("Identity", ["pixels"], ["map"])], [value])


def two_inputs(path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, FLOAT, [1, 3, 4, 4]) for name in ("left", "right", "sum")]
    return save(path, [helper.make_node("Add", ["left", "right"], ["sum"])], values[2:], values[:2])


def no_picture(path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, INT64, [1, 7]) for name in ("ids", "answer")]
    return save(path, [helper.make_node("Identity", ["ids"], ["answer"])], values[1:], values[:1])


def free_channels(path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, FLOAT, ["n", "a", "b", "c"]) for name in ("x", "y")]
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], values[1:], values[:1])


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (linear, {}, "its input pixels is float32: give teacher.mean and teacher.std"),
        (linear, {"mean": 0, "std": 255, "output": "logits"}, r"no output 'logits'; it has answer \(\?, 5\)"),
        (linear, {"mean": 0, "std": 255, "resolution": 8}, "is 4 x 4 px, teacher.resolution=8: leave it out"),
        (linear, {"kind": "ssd"}, "teacher.kind='ssd': choose one of classification"),
        (linear, {"channel_order": "gbr"}, "teacher.channel_order='gbr'"),
        (linear, {"layout": "hwc"}, "teacher.layout='hwc': choose nchw"),
        (linear, {"threads": 0}, "teacher.threads=0"),
        (linear, {"kind": "face_embeddings", "probabilities": True}, "not for kind=face_embeddings"),
        (
            linear,
            {"kind": "detection", "mean": 0, "std": 1},
            "no output 'boxes' or 'scores' or 'labels'; it has answer",
        ),
        (linear, {"kind": "detection", "detections": {"box": "b"}}, "teacher.detections has no box; it has boxes,"),
        (linear, {"kind": "detection", "detections": {"unit": "mm"}}, "unit='mm': choose pixel or fraction"),
        (two_outputs, {"mean": 0, "std": 1}, r"give teacher.output, one of first \(\?, 48\), second"),
        (a_map, {"mean": 0, "std": 1}, r"output map is \(2, 3, 4, 4\) for 2 pictures; one vector"),
        (two_inputs, {}, r"one input for pictures is needed, it has left \(1, 3, 4, 4\), right"),
        (no_picture, {}, r"its input ids is tensor\(int64\) \(1, 7\)"),
        (free_channels, {}, r"its input x \(\?, \?, \?, \?\) does not say: give teacher.layout"),
        (Path.touch, {}, "not a readable ONNX file|onnxruntime cannot load it"),
        (lambda path: path.write_text("<html>"), {}, "not a readable ONNX file"),
        (lambda path: None, {}, r"m\.onnx does not exist"),
    ],
)
def test_what_does_not_fit_is_named_at_once(make: Any, arguments: dict[str, Any], words: str, tmp_path: Path):
    make(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=words) as caught:
        OnnxTeacher(tmp_path / "m.onnx", **arguments)
    assert "\n" not in str(caught.value)


def test_uint8_inputs_are_not_normalised(tmp_path: Path):
    with pytest.raises(UserError, match=r"is uint8: leave teacher\.mean and teacher\.std out"):
        OnnxTeacher(linear(tmp_path / "m.onnx", kind=UINT8), mean=0, std=255)


def test_outputs_that_do_not_go_together_are_named(tmp_path: Path):
    (tmp_path / "names.txt").write_text("cat\n")
    path = detector(tmp_path / "m.onnx", [[0, 0, 20, 10]], [0.5, 0.4], [0])
    with pytest.raises(UserError, match=r"it gave boxes \(1, 4\), scores \(2,\), labels \(1,\)"):
        OnnxTeacher(path, "detection", mean=0, std=255, class_names=str(tmp_path / "names.txt"))


def test_a_detector_needs_names_for_its_labels(tmp_path: Path):
    path = detector(tmp_path / "m.onnx", [[0, 0, 20, 10]], [0.5], [0])
    with pytest.raises(UserError, match=r"give teacher\.class_names, a file"):
        OnnxTeacher(path, "detection", mean=0, std=255)
