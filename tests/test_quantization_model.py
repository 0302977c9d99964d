"""Rounded models beside their float models, and beside the int8 graphs that are written of them."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mnvision.callbacks.ema import EMA
from mnvision.errors import UserError
from mnvision.export.base import INT8, Wish
from mnvision.export.folding import folded, normalised_layers
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.int8 import layers_of
from mnvision.export.int8_form import settled
from mnvision.quantization.grid import rounded_weight
from mnvision.quantization.layers import quantize, restore
from mnvision.quantization.ranges import Ranges
from tests.builders_export import SIDE, build, pictures

KINDS = ("classification", "face_attributes", "face_embeddings", "detection")


def images(count: int = 8) -> torch.Tensor:
    return torch.from_numpy(pictures(count, SIDE))


def measured(kind: str, **options: Any) -> tuple[Any, Ranges]:
    model, ranges = quantize(build(kind), **options)
    ranges.measure(model, [{"images": images()}], 4)
    return model, ranges


def rows(raw: Any) -> torch.Tensor:
    return raw if isinstance(raw, torch.Tensor) else torch.cat([raw["cls_logits"], raw["box_offsets"]], dim=2)


@pytest.mark.parametrize("kind", KINDS)
def test_state_and_names_are_those_of_the_float_model(kind: str):
    plain, (model, _) = build(kind), measured(kind)
    own, other = model.state_dict(), plain.state_dict()
    assert list(own) == list(other)
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(own)


@pytest.mark.parametrize("kind", KINDS)
def test_while_ranges_are_measured_it_computes_as_the_float_model(kind: str):
    (model, ranges), plain = measured(kind), build(kind)
    with ranges._looking():
        found = rows(model(images()))
    expected = rows(plain(images()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rows(model(images())), expected, rtol=1e-4, atol=1e-4)


def test_ranges_are_the_averages_of_batches_and_follow_them_in_training_only():
    model, ranges = quantize(build("classification"), momentum=0.25)
    row, seen = ranges.row("backbone.blocks.3.depthwise.conv"), []
    hook = model.backbone.blocks[2].register_forward_hook(lambda *parts: seen.append(parts[-1].detach()))
    ranges.measure(model, [{"images": images()[:2]}, {"images": images()[2:6]}, {"images": images()[6:]}], 2)
    assert len(seen) == 2
    expected = torch.tensor([[float(part.min()), float(part.max())] for part in seen]).mean(0)
    torch.testing.assert_close(ranges.bounds[row], expected)
    model.eval()(images())
    torch.testing.assert_close(ranges.bounds[row], expected)
    model.train()(images())
    newest = torch.tensor([float(seen[-1].min()), float(seen[-1].max())])
    torch.testing.assert_close(ranges.bounds[row], 0.75 * expected + 0.25 * newest)
    hook.remove()


def test_statistics_stay_and_dropout_is_off_in_training():
    model, _ = measured("classification")
    model.head.dropout.p = 0.0
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    model(images())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))


def test_a_copy_shares_the_ranges_but_not_the_weights():
    model, ranges = measured("detection")
    copied = deepcopy(model)
    ranges.bounds.mul_(0.5)
    assert torch.equal(rows(copied(images())), rows(model(images())))
    with torch.no_grad():
        model.backbone.stem.bn.bias.add_(1.0)
    assert not torch.equal(rows(copied(images())), rows(model(images())))


def test_averaged_weights_are_averaged_as_ever():
    model, _ = measured("classification")
    task = type("Task", (), {"model": model})()
    ema = EMA(0.5)
    ema.setup(None, task, "fit")  # type: ignore[arg-type]
    trainer = type("Trainer", (), {"global_step": 100})()
    with torch.no_grad():
        model.backbone.stem.conv.weight.mul_(3)
    ema.on_train_batch_end(trainer, task, None, None, 0)  # type: ignore[arg-type]
    assert ema.averaged is not None
    own = build("classification").backbone.stem.conv.weight
    torch.testing.assert_close(ema.averaged.backbone.stem.conv.weight, 2 * own)
    assert torch.isfinite(rows(ema.averaged(images()))).all()


@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_stored_ranges_make_the_same_model(weights: str):
    model, ranges = measured("face_embeddings", weights=weights)
    again = restore(build("face_embeddings"), ranges.to_plain())
    assert torch.equal(again(images()), model(images()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda stored: {}, "another version"),
        (lambda stored: {**stored, "weights": "row"}, "another version"),
        (lambda stored: {**stored, "ranges": {"stem": [0, 1]}}, "other layers"),
        (lambda stored: {**stored, "ranges": {key: [0.0] for key in stored["ranges"]}}, "not two numbers"),
        (lambda stored: {**stored, "ranges": {key: ["a", "b"] for key in stored["ranges"]}}, "not two numbers"),
        (lambda stored: {**stored, "ranges": {key: [0.0, float("nan")] for key in stored["ranges"]}}, "not finite"),
    ],
)
def test_ranges_that_fit_no_model_are_refused(change: Any, text: str):
    _, ranges = measured("classification")
    with pytest.raises(UserError, match=text):
        restore(build("classification"), change(ranges.to_plain()))


@pytest.mark.parametrize(
    ("options", "text"), [({"momentum": 2}, "quantize.momentum=2"), ({"weights": "row"}, "quantize.weights='row'")]
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        quantize(build("classification"), **options)


def test_nothing_to_measure_on_is_an_error():
    model, ranges = quantize(build("classification"))
    with pytest.raises(UserError, match="no pictures"):
        ranges.measure(model, [], 4)


# --- the exported graph


def written(kind: str, ranges: Ranges) -> tuple[Any, Any]:
    """The float graph and the int8 graph."""
    pytest.importorskip("onnxscript")
    from mnvision.export.onnx import Onnx
    from mnvision.export.rounded_graph import with_ranges

    wish = Wish(precision=INT8, batch=None, nms=False, resize=False)
    proto = Onnx().proto(build_graph(build(kind), GraphOptions()), wish)
    return proto, with_ranges(proto, ranges.to_plain())


def constants(proto: Any) -> dict[str, NDArray[Any]]:
    import onnx

    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.graph.initializer}


@pytest.mark.parametrize("weights", ["channel", "tensor"])
@pytest.mark.parametrize("kind", ["classification", "face_embeddings"])
def test_weights_in_the_file_are_those_of_training_bit_for_bit(kind: str, weights: str):
    model, ranges = measured(kind, weights=weights)
    proto, int8 = written(kind, ranges)
    stored, made = constants(int8), {node.output[0]: node for node in int8.graph.node}
    plain = dict(folded(build(kind)).named_modules())
    layers = {node.name: node for node in int8.graph.node}
    found = layers_of(proto)
    assert len(found) == len(normalised_layers(model))
    for layer in found:
        node = layers[layer.node]
        reader = made[node.input[1]]
        assert reader.op_type == "DequantizeLinear"
        numbers, scales, zeros = (stored[name] for name in reader.input)
        assert numbers.dtype == np.int8
        assert not zeros.any()
        assert scales.ndim == (1 if weights == "channel" else 0)
        back = numbers.astype(np.float32) * scales.reshape(-1, *[1] * (numbers.ndim - 1))
        expected = rounded_weight(plain[layer.title].weight, weights == "channel").numpy()
        np.testing.assert_array_equal(back, expected)
        assert made[node.input[0]].op_type == "DequantizeLinear"


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_answers_as_the_rounded_model(kind: str):
    """Without onnxruntime's fusions, which add in integers, only float rounding between two numbers is left."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, ranges = measured(kind)
    _, int8 = written(kind, ranges)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    shown = images(16)
    session = onnxruntime.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": shown.numpy()})
    expected = build_answers(kind, model, shown)
    plain = build_answers(kind, build(kind), shown)
    for one, two, whole in zip(found, expected, plain, strict=True):
        away, rounding = np.abs(one - two).mean(), np.abs(two - whole).mean()
        assert away < 0.25 * rounding


def build_answers(kind: str, model: Any, shown: torch.Tensor) -> list[NDArray[np.float32]]:
    if kind != "detection":
        return [model.predict(shown).numpy()]
    from mnvision.export.suppression import Decode

    decode = Decode(model.head.default_boxes, model.decoder.classification, model.resolution)
    return [part.numpy() for part in decode(model(shown))]


def test_onnxruntime_computes_every_layer_in_integers(tmp_path: Path):
    """What it makes of the graph: a layer that it computes in float stays a Conv or a Gemm."""
    onnxruntime = pytest.importorskip("onnxruntime")
    import onnx

    _, ranges = measured("classification")
    _, int8 = written("classification", ranges)
    onnx.checker.check_model(int8, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(settled(int8).SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert operators["QLinearConv"] == 27
    assert operators["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Clip"} & operators.keys()


def test_a_layer_may_stay_in_float():
    from mnvision.export.rounded_graph import with_ranges

    _, ranges = measured("classification")
    proto, _ = written("classification", ranges)
    kept = [layer for layer in layers_of(proto) if layer.title == "backbone.blocks.0.depthwise.conv"]
    int8 = with_ranges(proto, ranges.to_plain(), kept)
    node = next(node for node in int8.graph.node if node.name == kept[0].node)
    assert node.input[1] in constants(int8)
    assert constants(int8)[node.input[1]].dtype == np.float32


def test_a_layer_without_a_range_is_an_error():
    from mnvision.export.rounded_graph import with_ranges

    _, ranges = measured("classification")
    proto, _ = written("classification", ranges)
    stored = ranges.to_plain()
    del stored["ranges"]["head.fc"]
    with pytest.raises(UserError, match=r"lack head\.fc"):
        with_ranges(proto, stored)
