"""Writes SSD MobileNetV1 .tflite files as TensorFlow's Object Detection API exports them, and float copies of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from tests.tflite_builder import (
    CONV_2D,
    CUSTOM,
    DEPTHWISE_CONV_2D,
    FLOAT32,
    FUSED_RELU6,
    INT32,
    NO_ACTIVATION,
    SAME,
    TFLiteWriter,
    Unit,
    random_units,
)

CONCATENATION, LOGISTIC, RESHAPE = 2, 14, 22
RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
OPTIONS = {
    "max_detections": 10,
    "max_classes_per_detection": 1,
    "nms_score_threshold": 1e-8,
    "nms_iou_threshold": 0.6,
    "y_scale": 10.0,
    "x_scale": 10.0,
    "h_scale": 5.0,
    "w_scale": 5.0,
}


def tf_anchors(
    sizes: list[tuple[int, int]], min_scale: float = 0.2, max_scale: float = 0.95, reduced: bool = True
) -> np.ndarray:
    """``(A, 4)`` centre y, centre x, height, width, written after TF's ``multiple_grid_anchor_generator.py``."""
    steps = [*np.linspace(min_scale, max_scale, len(sizes)).tolist(), 1.0]
    rows = []
    for layer, (height, width) in enumerate(sizes):
        scale = steps[layer]
        pairs = [(scale, ratio) for ratio in RATIOS] + [(sqrt(scale * steps[layer + 1]), 1.0)]
        if layer == 0 and reduced:
            pairs = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        for y in range(height):
            for x in range(width):
                for s, ratio in pairs:
                    rows.append(((y + 0.5) / height, (x + 0.5) / width, s / sqrt(ratio), s * sqrt(ratio)))
    return np.array(rows)


@dataclass
class SSDFile:
    """A random detector in float32; :meth:`write` makes the file, and ``raw`` then says where box codes and logits are.

    Attributes:
        alpha: Of the backbone; extra layers have ``depths``.
        classes: Without background.
        size: Side of the input.
        depths: Of the extra layers.
        boxes: Default boxes a cell, per map.
        post_process: Whether the file ends in TFLite_Detection_PostProcess, or in raw outputs.
        scores: Whether class outputs go through a sigmoid.
        anchors: Replaces TF's.
        options: Added to the post-processing's.
        names: Whether tensors bear TF's names.
        first_map: Unit whose output is the finest map.
        backbone: Its scope; "MobilenetV2" also leaves out a block, so that it cannot pass for another.
    """

    alpha: float = 0.25
    classes: int = 5
    size: int = 64
    depths: tuple[int, ...] = (128, 64, 64, 32)
    boxes: tuple[int, ...] = (3, 6, 6, 6, 6, 6)
    post_process: bool = True
    scores: bool = True
    anchors: np.ndarray | None = None
    options: dict[str, Any] = field(default_factory=dict)
    names: bool = True
    first_map: str = "Conv2d_11_pointwise"
    backbone: str = "MobilenetV1"
    seed: int = 0

    def write(self, path: Path) -> Path:
        self.writer, self.rng = TFLiteWriter(self.names), np.random.default_rng(self.seed)
        current = source = self.writer.tensor("normalized_input_image_tensor", (1, self.size, self.size, 3))
        maps = []
        scope = f"FeatureExtractor/{self.backbone}/{self.backbone}"
        for unit in random_units(self.alpha, 1, self.seed)[:-1]:
            if self.backbone == "MobilenetV2" and unit.name == "Conv2d_3_depthwise":
                continue
            named = replace(unit, name=f"{scope}/{unit.name}")
            current = self._conv(current, named, FUSED_RELU6, "Relu6")
            if unit.name in (self.first_map, "Conv2d_13_pointwise"):
                maps.append(current)
        for index, depth in enumerate(self.depths, start=2):
            scope = "FeatureExtractor/MobilenetV1/Conv2d_13_pointwise"
            for name, out, kernel, stride in (
                (f"1_Conv2d_{index}_1x1_{depth // 2}", depth // 2, 1, 1),
                (f"2_Conv2d_{index}_3x3_s2_{depth}", depth, 3, 2),
            ):
                unit = self._unit(f"{scope}_{name}", current, out, kernel, stride)
                current = self._conv(current, unit, FUSED_RELU6, "Relu6")
            maps.append(current)
        box = self._gathered(maps, "BoxEncodingPredictor", 4)
        cls = self._gathered(maps, "ClassPredictor", self.classes + 1)
        self.raw = (box, cls)
        if self.scores:
            logits, cls = cls, self.writer.tensor("convert_scores", self.writer.tensors[cls].shape)
            self.writer.op(LOGISTIC, [logits], [cls])
        ends = self._post_process(box, cls, maps) if self.post_process else [box, cls]
        self.writer.write(path, [source], ends)
        return path

    def _unit(self, name: str, source: int, out: int, kernel: int = 1, stride: int = 1) -> Unit:
        channels = self.writer.tensors[source].shape[-1]
        weight = self.rng.normal(0, sqrt(2 / (kernel * kernel * channels)), (out, kernel, kernel, channels))
        return Unit(name, False, stride, weight.astype(np.float32), self.rng.normal(0, 0.3, out).astype(np.float32))

    def _conv(self, source: int, unit: Unit, activation: int, end: str) -> int:
        side = -(-self.writer.tensors[source].shape[1] // unit.stride)
        weight = self.writer.tensor(f"{unit.name}/weights", unit.weight.shape, FLOAT32, unit.weight)
        bias = self.writer.tensor(f"{unit.name}/Conv2D_bias", unit.bias.shape, FLOAT32, unit.bias)
        out = self.writer.tensor(f"{unit.name}/{end}", (1, side, side, len(unit.bias)))
        options = {"padding": SAME, "strideW": unit.stride, "strideH": unit.stride, "dilationWFactor": 1}
        options |= {"dilationHFactor": 1, "fusedActivationFunction": activation}
        if unit.depthwise:
            depthwise = ("DepthwiseConv2DOptions", options | {"depthMultiplier": 1})
            self.writer.op(DEPTHWISE_CONV_2D, [source, weight, bias], [out], depthwise)
        else:
            self.writer.op(CONV_2D, [source, weight, bias], [out], ("Conv2DOptions", options))
        return out

    def _gathered(self, maps: list[int], name: str, columns: int) -> int:
        parts = []
        for index, (source, boxes) in enumerate(zip(maps, self.boxes)):
            unit = self._unit(f"BoxPredictor_{index}/{name}", source, boxes * columns)
            out = self._conv(source, unit, NO_ACTIVATION, "BiasAdd")
            side = self.writer.tensors[out].shape[1]
            shape = (1, side * side * boxes, columns)
            table = self.writer.tensor(f"{unit.name}/stack", (3,), INT32, np.array(shape, np.int32))
            parts.append(self.writer.tensor(f"{unit.name}/Reshape", shape))
            self.writer.op(RESHAPE, [out, table], [parts[-1]], ("ReshapeOptions", {"newShape": list(shape)}))
        total = sum(self.writer.tensors[part].shape[1] for part in parts)
        gathered = self.writer.tensor(f"concat_{name}", (1, total, columns))
        self.writer.op(CONCATENATION, parts, [gathered], ("ConcatenationOptions", {"axis": 1}))
        return gathered

    def _post_process(self, box: int, cls: int, maps: list[int]) -> list[int]:
        from flatbuffers import flexbuffers

        sides = [self.writer.tensors[source].shape[1] for source in maps]
        table = tf_anchors([(side, side) for side in sides]) if self.anchors is None else self.anchors
        anchors = self.writer.tensor("anchors", table.shape, FLOAT32, table.astype(np.float32))
        suffixes = ("", ":1", ":2", ":3")
        ends = [self.writer.tensor(f"TFLite_Detection_PostProcess{suffix}", ()) for suffix in suffixes]
        options = flexbuffers.Dumps({"num_classes": self.classes, **OPTIONS, **self.options})
        self.writer.op(CUSTOM, [box, cls, anchors], ends, bytes(options))
        return ends


def as_float(path: Path, target: Path) -> Path:
    """A quantised .tflite file with the same weights in float32, to be computed in float by LiteRT itself."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        info, buffer = tensor.quantization, model.buffers[tensor.buffer]
        if info is None or info.scale is None or tensor.type == FLOAT32:
            continue
        if buffer.data is not None and len(buffer.data):
            stored = np.asarray(buffer.data, np.uint8).view({2: np.int32, 3: np.uint8}[tensor.type])
            real = (stored.astype(np.float64) - info.zeroPoint[0]) * np.float64(info.scale[0])
            buffer.data = np.frombuffer(real.astype(np.float32).tobytes(), np.uint8)
        tensor.type, tensor.quantization = FLOAT32, None
    for op in graph.operators:
        # The old converter leaves the clamp of a quantised layer to the range of its output.
        if (graph.tensors[op.outputs[0]].name or b"").endswith(b"/Relu6"):
            op.builtinOptions.fusedActivationFunction = FUSED_RELU6
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target
