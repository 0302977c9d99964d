"""The form in which an int8 ONNX file is written: the same values, and all layers in integers in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mnvision.export.base import Wish
from tests.builders_export import SIDE, build
from tests.builders_tinted import onnx_form, planes, tinted

onnx = pytest.importorskip("onnx")
SIZE = 8
SCALE = 0.004


def entry_graph(mean: list[float], std: list[float], bias: bool = True) -> Any:
    """``images`` normalised, rounded to 8 bits and convolved with int8 weights, as NNCF writes it."""
    make = onnx.helper.make_node
    generator = np.random.default_rng(0)
    constants = {
        "mean": np.asarray(mean, np.float32).reshape(1, -1, 1, 1),
        "std": np.asarray(std, np.float32).reshape(1, -1, 1, 1),
        "step": np.asarray(1 / 127, np.float32),
        "zero": np.asarray(0, np.int8),
        "values": generator.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8),
        "scales": (SCALE * generator.uniform(0.5, 2, 4)).astype(np.float32),
    }
    if bias:
        constants["bias"] = generator.normal(size=4).astype(np.float32)
    nodes = [
        make("Cast", ["images"], ["float"], to=onnx.TensorProto.FLOAT),
        make("Sub", ["float", "mean"], ["centred"]),
        make("Div", ["centred", "std"], ["normal"]),
        make("QuantizeLinear", ["normal", "step", "zero"], ["rounded"]),
        make("DequantizeLinear", ["rounded", "step", "zero"], ["pixels"]),
        make("DequantizeLinear", ["values", "scales"], ["weights"], axis=0),
        make("Conv", ["pixels", "weights", *(["bias"] if bias else [])], ["maps"], name="stem", pads=[1, 1, 1, 1]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "entry",
        [info("images", onnx.TensorProto.UINT8, [1, 3, SIZE, SIZE])],
        [info("maps", onnx.TensorProto.FLOAT, [1, 4, SIZE, SIZE])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def constants_of(proto: Any) -> dict[str, NDArray[Any]]:
    return {entry.name: onnx.numpy_helper.to_array(entry).copy() for entry in proto.graph.initializer}


def run(proto: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    runtime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(proto, full_check=True)
    found: NDArray[np.float32] = runtime.InferenceSession(proto.SerializeToString()).run(None, {"images": images})[0]
    return found


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("mean", "std"), [(127.5, 127.5), (128.0, 128.0), (0.0, 255.0), (119.7, 60.0)])
def test_pixels_enter_the_first_layer_without_being_rounded(mean: float, std: float, bias: bool):
    """The truth is torch's convolution of the exactly normalised pixels with the same weights."""
    from mnvision.export.int8_form import settled

    proto = entry_graph([mean], [std], bias)
    before = proto.SerializeToString()
    changed, known, images = settled(proto), constants_of(proto), pixels(1)
    assert proto.SerializeToString() == before
    assert [node.op_type for node in changed.graph.node] == ["DequantizeLinear", "DequantizeLinear", "Conv"]
    weights = torch.from_numpy(known["values"] * known["scales"][:, None, None, None]).double()
    offset = torch.from_numpy(known["bias"]).double() if bias else None
    expected = F.conv2d((torch.from_numpy(images).double() - mean) / std, weights, offset, padding=1).numpy()
    found = run(changed, images)
    inside = np.s_[:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    # Zeros around the picture are the nearest whole pixel value instead: at most half a value in five of nine taps.
    largest = 0.5 / std * np.abs(weights.numpy()).sum(axis=(1, 2, 3)).max()
    assert np.abs(found - expected).max() <= largest + 1e-4


def test_three_means_stay_as_they_are():
    from mnvision.export.int8_form import settled

    proto = entry_graph([123.7, 116.3, 103.5], [58.4, 57.1, 57.4])
    changed, images = settled(proto), pixels(2)
    assert [node.op_type for node in changed.graph.node] == [node.op_type for node in proto.graph.node]
    np.testing.assert_array_equal(run(changed, images), run(proto, images))


def test_a_first_layer_whose_bias_is_computed_stays_as_it_is():
    from mnvision.export.int8_form import settled

    proto = entry_graph([127.5], [127.5])
    proto.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["whole", "step32"], ["bias32"]))
    for name, value in (("whole", np.arange(4, dtype=np.int32)), ("step32", np.asarray(0.1, np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    proto.graph.node[-1].input[2] = "bias32"
    changed, images = settled(proto), pixels(3)
    assert "Div" in {node.op_type for node in changed.graph.node}
    np.testing.assert_array_equal(run(changed, images), run(proto, images))


def quantised_network() -> tuple[Any, Any]:
    """A classifier's graph with a bias in its last layer, and the int8 graph of it."""
    form = onnx_form()
    from mnvision.export.graph import GraphOptions, build_graph
    from mnvision.export.int8 import quantized

    model = build("classification")
    torch.nn.init.normal_(model.head.fc.bias)
    proto = form.proto(build_graph(model, GraphOptions()), Wish(batch=1))
    return proto, quantized(proto, planes(tinted(12, SIDE)).numpy(), 1)


def test_onnxruntime_computes_every_layer_in_integers(tmp_path: Path):
    """What it makes of the file is read back: no convolution and no product is left in float."""
    from mnvision.export.int8_form import settled

    runtime = pytest.importorskip("onnxruntime")
    _, int8 = quantised_network()
    (tmp_path / "c.onnx").write_bytes(settled(int8).SerializeToString())
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    runtime.InferenceSession(str(tmp_path / "c.onnx"), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 27
    assert kinds.count("QGemm") == 1
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Clip"} & set(kinds)


def test_a_linear_layers_bias_is_rounded_to_its_own_step():
    from mnvision.export.int8_form import settled

    proto, int8 = quantised_network()
    known, made = constants_of(settled(int8)), {node.output[0]: node for node in settled(int8).graph.node}
    gemm = next(node for node in made.values() if node.op_type == "Gemm")
    bias = made[gemm.input[2]]
    values, steps = known[bias.input[0]], known[bias.input[1]]
    assert values.dtype == np.int32
    scale = known[made[gemm.input[0]].input[1]] * known[made[gemm.input[1]].input[1]]
    np.testing.assert_allclose(steps, np.broadcast_to(scale, steps.shape), rtol=1e-6)
    source = next(node for node in int8.graph.node if node.op_type == "Gemm")
    exact = constants_of(int8)[source.input[2]]
    assert np.abs(values * steps - exact).max() <= steps.max() / 2 + 1e-7
    assert constants_of(proto)  # the float graph is left alone
    images = planes(tinted(4, SIDE)).numpy()
    for image in images:
        np.testing.assert_allclose(run(settled(int8), image[None]), run(int8, image[None]), atol=0.01)
