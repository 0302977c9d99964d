"""An SSD on MobileNetV1 inside a .tflite file: which layer is which, found by what feeds what.

Names differ from converter to converter, so only the backbone's are looked at. From the end of the graph two
concatenations (box codes, class scores) lead back to one predictor of each kind per feature map, and from the map of
each predictor its maker leads back to the map before it.

Source: the TensorFlow Object Detection API's ``export_tflite_ssd_graph.py`` and TensorFlow Lite's kernel
``detection_postprocess.cc`` (inputs: box codes, scores, anchors as centre y, centre x, height, width).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mnvision.backbones.pretrained.tflite import find_units
from mnvision.backbones.pretrained.tflite_graph import (
    CONCATENATION,
    CONV_2D,
    CUSTOM,
    DEQUANTIZE,
    LOGISTIC,
    QUANTIZE,
    RESHAPE,
    SOFTMAX,
    SQUEEZE,
    Graph,
    Layer,
)
from mnvision.errors import UserError

POST_PROCESS = "TFLite_Detection_PostProcess"
SCORES = {LOGISTIC: "sigmoid", SOFTMAX: "softmax"}
BETWEEN = (RESHAPE, SQUEEZE, DEQUANTIZE, QUANTIZE, *SCORES)
# The units whose maps an SSD on MobileNetV1 looks at, of strides 16 and 32.
MAP_UNITS = ("blocks.10.pointwise", "blocks.12.pointwise")


@dataclass(frozen=True)
class SSDGraph:
    """The parts of an SSD.

    Attributes:
        units: The backbone's layers by our unit name.
        extras: Per extra layer its 1 x 1 and its 3 x 3 convolution.
        box_layers: Per feature map the predictor of box codes, finest map first.
        class_layers: Per feature map the predictor of classes.
        map_sizes: Height and width of each feature map.
        classification: What makes scores of the class outputs: "sigmoid" or "softmax".
        anchors: ``(A, 4)`` float64, centre y, centre x, height, width as fractions of the input; None without
            post-processing in the file.
        anchor_step: Resolution of the stored anchors; 0 if they are float.
        options: Of the post-processing, by name; empty without one.
    """

    units: dict[str, Layer]
    extras: list[tuple[Layer, Layer]]
    box_layers: list[Layer]
    class_layers: list[Layer]
    map_sizes: list[tuple[int, int]]
    classification: str
    anchors: np.ndarray | None
    anchor_step: float
    options: dict[str, Any]


def read_ssd_graph(graph: Graph, layers: list[Layer]) -> SSDGraph:
    """Find the parts of an SSD on MobileNetV1.

    Args:
        graph: The file.
        layers: All of its layers.

    Raises:
        UserError: The file holds something else; the line says what was found.
    """
    post = next((op for op in range(len(graph.ops)) if graph.custom(op)[0] == POST_PROCESS), None)
    ends = _raw_outputs(graph) if post is None else [int(tensor) for tensor in graph.ops[post].inputs]
    units = _backbone(graph, layers)
    by_op = {layer.op: layer for layer in layers}
    box_layers, _ = _predictors(graph, by_op, ends[0], "box")
    class_layers, passed = _predictors(graph, by_op, ends[1], "class")
    if [layer.input for layer in box_layers] != [layer.input for layer in class_layers]:
        raise UserError(f"{graph.path}: its box and class predictors do not look at the same feature maps")
    extras = _extras(graph, by_op, units, [layer.input for layer in box_layers])
    anchors, step = (None, 0.0) if post is None else _anchors(graph, ends[2])
    return SSDGraph(
        units=units,
        extras=extras,
        box_layers=box_layers,
        class_layers=class_layers,
        map_sizes=[_map_size(graph, layer.output) for layer in box_layers],
        classification=next((SCORES[kind] for kind in passed if kind in SCORES), "sigmoid"),
        anchors=anchors,
        anchor_step=step,
        options={} if post is None else _options(graph, post),
    )


def _raw_outputs(graph: Graph) -> list[int]:
    """Box codes and class outputs of a file without post-processing, told apart by their last axis."""
    last_axes = {int(graph.tensors[tensor].shape[-1]): tensor for tensor in graph.outputs if _rank(graph, tensor)}
    others = [tensor for axis, tensor in last_axes.items() if axis != 4]
    if len(graph.outputs) != 2 or 4 not in last_axes or len(others) != 1:
        raise UserError(
            f"{graph.path}: no detector: it has neither a {POST_PROCESS} nor outputs of box codes and class scores; "
            "a classifier goes to backbone.pretrained=FILE"
        )
    return [last_axes[4], others[0]]


def _rank(graph: Graph, tensor: int) -> int:
    shape = graph.tensors[tensor].shape
    return 0 if shape is None else len(shape)


def _backbone(graph: Graph, layers: list[Layer]) -> dict[str, Layer]:
    """All units of a whole MobileNetV1.

    Raises:
        UserError: Another backbone; names its scope where the file has one.
    """
    try:
        units = find_units(graph, layers)
    except UserError:
        units = {}
    if MAP_UNITS[-1] in units:
        return units
    scopes = [re.search(r"(?:^|/)(Mobile[Nn]et\w+|Inception\w+|[Rr]esnet\w+)/", layer.names[0]) for layer in layers]
    named = next((match[1] for match in scopes if match), None)
    what = f"its backbone is {named}" if named and named != "MobilenetV1" else "its backbone is another or a cut one"
    raise UserError(f"{graph.path}: a detector, but not an SSD on a whole MobileNetV1: {what}")


def _predictors(graph: Graph, by_op: dict[int, Layer], end: int, what: str) -> tuple[list[Layer], list[int]]:
    """The predictors that a concatenation gathers, and the kinds of operators behind it."""
    op, passed = _back(graph, end)
    if op is None or graph.kind(op) != CONCATENATION:
        raise UserError(f"{graph.path}: no SSD: its {what} outputs are not gathered from several feature maps")
    found = [by_op.get(maker) for maker in (_back(graph, int(tensor))[0] for tensor in graph.ops[op].inputs) if maker]
    predictors = [layer for layer in found if layer is not None and layer.kind == CONV_2D]
    plain = all(layer.same and layer.stride == 1 and layer.activation == "none" for layer in predictors)
    kernels = {layer.weight.shape[2:] for layer in predictors}
    if len(predictors) != len(graph.ops[op].inputs) or not plain or len(kernels) != 1:
        raise UserError(f"{graph.path}: its {what} predictors are not one plain convolution per feature map")
    return predictors, passed


def _back(graph: Graph, tensor: int) -> tuple[int | None, list[int]]:
    """The operator that made a tensor, looking through changes of shape, number type and scale."""
    passed: list[int] = []
    op = graph.producer(tensor)
    while op is not None and graph.kind(op) in BETWEEN:
        passed.append(graph.kind(op))
        op = graph.producer(int(graph.ops[op].inputs[0]))
    return op, passed


def _extras(
    graph: Graph, by_op: dict[int, Layer], units: dict[str, Layer], maps: list[int]
) -> list[tuple[Layer, Layer]]:
    """The two convolutions that make each map after the backbone's from the map before it."""
    if maps[: len(MAP_UNITS)] != [units[name].output for name in MAP_UNITS]:
        raise UserError(
            f"{graph.path}: its first two feature maps are not those of Conv2d_11_pointwise and Conv2d_13_pointwise, "
            "as an SSD on MobileNetV1 has them (an FPN or PPN perhaps)"
        )
    extras = []
    for before, tensor in pairwise(maps[1:]):
        expand = _layer_before(graph, by_op, tensor)
        reduce = None if expand is None else _layer_before(graph, by_op, expand.input)
        if expand is None or reduce is None or reduce.input != before or not _is_extra(reduce, expand):
            raise UserError(
                f"{graph.path}: its extra layers are not a 1x1 convolution and a 3x3 one of stride 2, padded SAME, "
                "each followed by the same activation"
            )
        extras.append((reduce, expand))
    return extras


def _layer_before(graph: Graph, by_op: dict[int, Layer], tensor: int) -> Layer | None:
    op = graph.producer(tensor)
    return None if op is None else by_op.get(op)


def _is_extra(reduce: Layer, expand: Layer) -> bool:
    shapes = (reduce.weight.shape[2:], expand.weight.shape[2:]) == ((1, 1), (3, 3))
    halves = reduce.weight.shape[0] == expand.weight.shape[0] // 2
    steps = (reduce.stride, expand.stride) == (1, 2) and reduce.same and expand.same
    return {reduce.kind, expand.kind} == {CONV_2D} and shapes and halves and steps


def _map_size(graph: Graph, tensor: int) -> tuple[int, int]:
    shape = graph.tensors[tensor].shape
    return int(shape[1]), int(shape[2])


def _anchors(graph: Graph, tensor: int) -> tuple[np.ndarray, float]:
    anchors = graph.constant(tensor)
    if anchors is None or anchors.ndim != 2 or anchors.shape[1] != 4:
        raise UserError(f"{graph.path}: the anchors of its post-processing are no constant table of four columns")
    scale = graph.quantization(tensor)[0]
    return anchors.astype(np.float64), 0.0 if scale is None else float(scale[0])


def _options(graph: Graph, op: int) -> dict[str, Any]:
    from flatbuffers import flexbuffers  # comes with ai-edge-litert

    try:
        options = flexbuffers.Loads(graph.custom(op)[1])
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{graph.path}: the options of its post-processing cannot be read ({error})") from error
    if graph.kind(op) != CUSTOM or not isinstance(options, dict):
        raise UserError(f"{graph.path}: the options of its post-processing are no table")
    return options
