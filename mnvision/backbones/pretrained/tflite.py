"""MobileNetV1 weights from .tflite files, float or quantised.

In a .tflite file batch normalisation is folded into convolution and bias. Our backbone has its own, so it is
set to the identity plus that bias: mean 0, variance 1, scale ``sqrt(1 + eps)``, shift = bias, which is exact
but for float rounding.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mnvision.backbones.mobilenet_v1 import BLOCKS
from mnvision.backbones.pretrained.classes import BACKGROUND, imagenet_names, labels_beside, parse_labels
from mnvision.backbones.pretrained.tflite_graph import (
    AVERAGE_POOL_2D,
    CONV_2D,
    DEPTHWISE_CONV_2D,
    DEQUANTIZE,
    FULLY_CONNECTED,
    MEAN,
    PAD,
    PADV2,
    QUANTIZE,
    RELU,
    RELU6,
    RESHAPE,
    SQUEEZE,
    Graph,
    Layer,
)
from mnvision.backbones.pretrained.weights import PretrainedWeights, make_weights
from mnvision.errors import UserError

MAX_LABELS_BYTES = 2**20
IMAGENET_WITH_BACKGROUND = 1001
BN_EPS = 1e-3
POOLING = (AVERAGE_POOL_2D, MEAN)
PADDING_OPS = (PAD, PADV2)
BETWEEN_LAYERS = (*PADDING_OPS, RELU, RELU6, QUANTIZE, DEQUANTIZE)
BEFORE_CLASSIFIER = (*POOLING, RESHAPE, SQUEEZE, QUANTIZE, DEQUANTIZE, RELU, RELU6)


def read_tflite(path: Path, source: str) -> PretrainedWeights:
    """Backbone and classifier of a .tflite file; of a detector the backbone.

    Layers are found by their TF-slim names (``MobilenetV1/.../Conv2d_3_depthwise``, also below
    ``FeatureExtractor/``), else by following the graph from its first convolution. Class names come from the
    label file inside, else from one beside, else ImageNet's if the file is called ``mobilenet...`` and has
    1001 classes.

    Args:
        path: The file.
        source: As the user named it.

    Raises:
        UserError: ai-edge-litert is not installed, or the file is damaged or holds another architecture.
    """
    graph = Graph(path)
    layers = graph.layers()
    return weights_from_graph(graph, layers, find_units(graph, layers), source)


def find_units(graph: Graph, layers: list[Layer]) -> dict[str, Layer]:
    """The backbone's layers by our unit name (``stem``, ``blocks.0.depthwise``, ...), from the stem on.

    Raises:
        UserError: There is no stem followed by a separable block.
    """
    units = _by_name(layers) or _by_graph(graph, layers)
    if len(units) < 3:
        raise UserError(f"{graph.path}: no MobileNetV1 in it: no 3x3 convolution followed by separable blocks")
    return units


def weights_from_graph(graph: Graph, layers: list[Layer], units: dict[str, Layer], source: str) -> PretrainedWeights:
    """As :func:`read_tflite`, of a graph that has been read already.

    Args:
        graph: The file.
        layers: All of its layers.
        units: From :func:`find_units`.
        source: As the user named the file.
    """
    path = graph.path
    state: dict[str, Tensor] = {}
    for unit, layer in units.items():
        state |= unit_state(unit, layer)
    last = _classifier_layer(graph, layers, units)
    classifier = _classifier(last)
    names = None if classifier is None else _class_names(path, classifier[1].shape[0])
    used = {layer.op for layer in (*units.values(), last) if layer is not None}
    mean, std = _normalisation(graph, units["stem"])
    shape = graph.tensors[graph.inputs[0]].shape
    return make_weights(
        source,
        state,
        padding=_padding(graph, units),
        bn_eps=BN_EPS,
        activation=_activation(graph, units),
        classifier=classifier,
        class_names=names,
        background_first=_has_background(classifier, names),
        mean=mean,
        std=std,
        resolution=int(shape[1]) if shape is not None and len(shape) == 4 and shape[1] == shape[2] else None,
        left_out=tuple(_scope(layer.names[1]) for layer in layers if layer.op not in used),
    )


def _scope(name: str) -> str:
    """``BoxPredictor_0/ClassPredictor`` of ``BoxPredictor_0/ClassPredictor/weights_quant/...``."""
    return re.split(r"/(?:depthwise_)?weights", name)[0]


def _by_name(layers: list[Layer]) -> dict[str, Layer]:
    """Layers by our unit name, if the TF-slim names give the stem and whole blocks, each once."""
    found: dict[str, Layer] = {}
    for layer in layers:
        for name in layer.names:
            match = re.search(r"/Conv2d_(?:0|(\d+)_(depthwise|pointwise))(?=/|$|;)", name)
            if match:
                unit = "stem" if match[1] is None else f"blocks.{int(match[1]) - 1}.{match[2]}"
                if unit in found:
                    return {}
                found[unit] = layer
                break
    blocks = (len(found) - 1) // 2
    wanted = ["stem", *(f"blocks.{i}.{part}" for i in range(blocks) for part in ("depthwise", "pointwise"))]
    return {unit: found[unit] for unit in wanted} if blocks and set(wanted) == set(found) else {}


def _by_graph(graph: Graph, layers: list[Layer]) -> dict[str, Layer]:
    """Layers by our unit name, following the graph; ends where no single separable block follows."""
    by_op = {layer.op: layer for layer in layers}
    stems = [layer for layer in layers if layer.kind == CONV_2D and layer.weight.shape[2:] == (3, 3)]
    if not stems:
        return {}
    units = {"stem": stems[0]}
    last = stems[0]
    for index in range(len(BLOCKS)):
        depthwise = _next(graph, by_op, last, DEPTHWISE_CONV_2D, (3, 3))
        pointwise = depthwise and _next(graph, by_op, depthwise, CONV_2D, (1, 1))
        if depthwise is None or pointwise is None:
            break
        units |= {f"blocks.{index}.depthwise": depthwise, f"blocks.{index}.pointwise": pointwise}
        last = pointwise
    return units


def _next(graph: Graph, by_op: dict[int, Layer], layer: Layer, kind: int, kernel: tuple[int, int]) -> Layer | None:
    found = [by_op[op] for op, _ in graph.reached(layer.output, BETWEEN_LAYERS) if op in by_op]
    found = [other for other in found if other.kind == kind and other.weight.shape[2:] == kernel]
    return found[0] if len(found) == 1 else None


def unit_state(unit: str, layer: Layer) -> dict[str, Tensor]:
    """Convolution and batch normalisation of one of our units; the latter is the identity plus the bias."""
    channels = layer.weight.shape[0]
    return {
        f"{unit}.conv.weight": torch.from_numpy(layer.weight),
        f"{unit}.bn.weight": torch.full((channels,), math.sqrt(1 + BN_EPS)),
        f"{unit}.bn.bias": torch.from_numpy(layer.bias),
        f"{unit}.bn.running_mean": torch.zeros(channels),
        f"{unit}.bn.running_var": torch.ones(channels),
    }


def _classifier_layer(graph: Graph, layers: list[Layer], units: dict[str, Layer]) -> Layer | None:
    """The 1x1 convolution or fully connected layer behind the pooled last map."""
    by_op = {layer.op: layer for layer in layers}
    last = units[list(units)[-1]]
    for op, passed in graph.reached(last.output, BEFORE_CLASSIFIER):
        layer = by_op.get(op)
        if layer is None or not set(passed) & set(POOLING) or layer.kind not in (CONV_2D, FULLY_CONNECTED):
            continue
        if layer.kind == FULLY_CONNECTED or layer.weight.shape[2:] == (1, 1):
            return layer
    return None


def _classifier(layer: Layer | None) -> tuple[Tensor, Tensor] | None:
    if layer is None:
        return None
    return torch.from_numpy(layer.weight.reshape(layer.weight.shape[:2])), torch.from_numpy(layer.bias)


def _has_background(classifier: tuple[Tensor, Tensor] | None, names: tuple[str, ...] | None) -> bool:
    if classifier is None:
        return False
    if names is not None:
        return names[0].strip().casefold() == BACKGROUND
    return classifier[1].shape[0] == IMAGENET_WITH_BACKGROUND


def _class_names(path: Path, count: int) -> tuple[str, ...] | None:
    inside = labels_inside(path)
    names = parse_labels(inside, f"{path}: its label file") if inside is not None else labels_beside(path)
    if names is None and path.name.startswith("mobilenet") and count == IMAGENET_WITH_BACKGROUND:
        return imagenet_names(with_background=True)
    return names


def labels_inside(path: Path) -> str | None:
    """The text of the label file that TFLite Metadata appends to a model as a zip archive.

    Raises:
        UserError: There is one, and it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [entry for entry in archive.infolist() if entry.filename.endswith(".txt")]
            if len(texts) != 1 or texts[0].file_size > MAX_LABELS_BYTES:
                return None
            return archive.read(texts[0]).decode("utf-8")
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: its appended label file cannot be read ({error})") from error


def _padding(graph: Graph, units: dict[str, Layer]) -> str:
    """Which of our paddings the layers of stride 2 have."""
    strided = {unit: layer for unit, layer in units.items() if layer.stride == 2}
    if "stem" not in strided or any(layer.stride not in (1, 2) for layer in units.values()):
        strides = ", ".join(str(layer.stride) for layer in units.values())
        raise UserError(f"{graph.path}: strides {strides} are not those of a MobileNetV1")
    found = {"tf_same" if layer.same else _explicit_padding(graph, layer) for layer in strided.values()}
    if len(found) != 1 or None in found:
        raise UserError(f"{graph.path}: its padding is neither TensorFlow's SAME nor one pixel on every side")
    return str(found.pop())


def _explicit_padding(graph: Graph, layer: Layer) -> str | None:
    """Padding by an operator of its own; its numbers are those before and after N, H, W and C."""
    maker = graph.producer(layer.input)
    if maker is None or graph.kind(maker) not in PADDING_OPS:
        return None
    amounts = graph.constant(int(graph.ops[maker].inputs[1]))
    known = {(0, 0, 1, 1, 1, 1, 0, 0): "symmetric", (0, 0, 0, 1, 0, 1, 0, 0): "tf_same"}
    return None if amounts is None else known.get(tuple(amounts.ravel().astype(int).tolist()))


def _activation(graph: Graph, units: dict[str, Layer]) -> str:
    """The activation of all units: fused, a following operator, or the range of a quantised output."""
    found = {_activation_of(graph, layer) for layer in units.values()} - {"unclamped"} or {"relu6"}
    activation = found.pop() if len(found) == 1 else ""
    if activation not in ("relu", "relu6"):
        raise UserError(f"{graph.path}: its layers are not all followed by ReLU6, nor all by ReLU")
    return activation


def _activation_of(graph: Graph, layer: Layer) -> str:
    if layer.activation != "none":
        return layer.activation
    kinds = {graph.kind(op) for op in graph.consumers(layer.output)}
    for kind, name in ((RELU6, "relu6"), (RELU, "relu")):
        if kinds == {kind}:
            return name
    scale, zero_point, _ = graph.quantization(layer.output)
    bits = {3: (0, 255), 9: (-128, 127)}.get(graph.tensors[layer.output].type)
    if scale is None or bits is None or zero_point[0] != bits[0]:
        return "none"
    # Old converters drop a clamp that the output's range already does; ReLU6 then shows as 0 to 6, and a
    # layer that never came near 6 could have had either.
    highest = scale[0] * (bits[1] - zero_point[0])
    return "unclamped" if highest < 5.95 else "relu6" if highest < 6.05 else "relu"


def _normalisation(
    graph: Graph, stem: Layer
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """Mean and standard deviation in pixel units: from the input's quantisation, else TF-slim's [-1, 1]."""
    tensor = stem.input
    while (maker := graph.producer(tensor)) is not None and graph.kind(maker) in (
        *PADDING_OPS,
        QUANTIZE,
        DEQUANTIZE,
    ):
        tensor = int(graph.ops[maker].inputs[0])
    if maker is not None:
        return None, None
    scale, zero_point, _ = graph.quantization(tensor)
    offset = {3: 0, 9: 128}.get(graph.tensors[tensor].type)
    if scale is None or offset is None:
        return (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
    mean, std = float(zero_point[0] + offset), float(1 / scale[0])
    return (mean, mean, mean), (std, std, std)
