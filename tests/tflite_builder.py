"""Writes small MobileNetV1 .tflite files with the schema's own classes, as TF-slim's released ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
BASE_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
AVERAGE_POOL_2D, CONV_2D, DEPTHWISE_CONV_2D, DEQUANTIZE, FULLY_CONNECTED, PAD, MEAN = 1, 3, 4, 6, 9, 34, 40
CUSTOM = 32
FIRST_VERSION = (2, 14, 22, CUSTOM)  # concatenation, logistic and reshape have no second one
FLOAT32, FLOAT16, INT32, UINT8, INT8 = 0, 1, 2, 3, 9
SAME, VALID = 0, 1
NO_ACTIVATION, FUSED_RELU6 = 0, 3


@dataclass
class Unit:
    """One convolution in TFLite's layouts: conv (O, H, W, I), depthwise (1, H, W, C)."""

    name: str
    depthwise: bool
    stride: int
    weight: np.ndarray
    bias: np.ndarray


def random_units(alpha: float, num_classes: int, seed: int = 0) -> list[Unit]:
    """Stem, thirteen blocks and a classifier, scaled so that signals neither die nor saturate."""
    rng = np.random.default_rng(seed)

    def unit(name: str, shape: tuple[int, ...], fan_in: int, stride: int = 1) -> Unit:
        weight = rng.normal(0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)
        depthwise = name.endswith("depthwise")
        bias = rng.uniform(0, 0.3, shape[-1 if depthwise else 0]).astype(np.float32)
        return Unit(name, depthwise, stride, weight, bias)

    channels = max(int(32 * alpha), 8)
    units = [unit("Conv2d_0", (channels, 3, 3, 3), 27, 2)]
    for index, (base, stride) in enumerate(zip(BASE_CHANNELS, STRIDES), start=1):
        out = max(int(base * alpha), 8)
        units.append(unit(f"Conv2d_{index}_depthwise", (1, 3, 3, channels), 9, stride))
        units.append(unit(f"Conv2d_{index}_pointwise", (out, 1, 1, channels), channels))
        channels = out
    units.append(unit("Logits/Conv2d_1c_1x1", (num_classes, 1, 1, channels), channels))
    return units


@dataclass
class Quantised:
    """Stored integers and how they stand for real numbers."""

    stored: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 0

    def real(self) -> np.ndarray:
        shape = [1] * self.stored.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        offset = self.stored.astype(np.float64) - self.zero_point.reshape(shape)
        return offset * self.scale.reshape(shape)


def quantise_uint8(weight: np.ndarray) -> Quantised:
    """Per tensor and asymmetric, as TF-slim's quantised models are."""
    low, high = float(min(weight.min(), 0)), float(max(weight.max(), 0))
    scale = (high - low) / 254
    zero = round(1 - low / scale)
    stored = np.clip(np.round(weight / scale) + zero, 1, 255).astype(np.uint8)
    return Quantised(stored, np.array([scale], np.float32), np.array([zero]))


def quantise_int8(weight: np.ndarray, axis: int) -> Quantised:
    """Per channel and symmetric, as today's converters do."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scale = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    stored = np.clip(np.round(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    return Quantised(stored, scale, np.zeros(scale.size, int), axis)


@dataclass
class TFLiteWriter:
    """Collects tensors and operators of one graph; ``names=False`` hides TF-slim's names."""

    names: bool = True
    tensors: list[Any] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=lambda: [b""])
    ops: list[tuple[int, list[int], list[int], Any]] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int = FLOAT32,
        data: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        zero_point: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        from ai_edge_litert import schema_py_generated as schema

        made = schema.TensorT()
        made.name = name if self.names else f"t{len(self.tensors)}"
        made.shape, made.type, made.buffer = list(shape), kind, 0
        if data is not None:
            made.buffer = len(self.buffers)
            self.buffers.append(np.ascontiguousarray(data).tobytes())
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = [float(value) for value in scale]
            made.quantization.zeroPoint = [int(value) for value in zero_point]
            made.quantization.quantizedDimension = axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def op(self, code: int, inputs: list[int], outputs: list[int], options: tuple[str, dict] | bytes | None = None):
        self.ops.append((code, inputs, outputs, options))

    def write(self, path: Path, inputs: list[int], outputs: list[int]) -> None:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        model, graph = schema.ModelT(), schema.SubGraphT()
        codes = sorted({code for code, *_ in self.ops})
        model.version, model.subgraphs, model.operatorCodes = 3, [graph], []
        for code in codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode = entry.deprecatedBuiltinCode = code
            entry.customCode = b"TFLite_Detection_PostProcess" if code == CUSTOM else None
            entry.version = 3 if code in (CONV_2D, DEPTHWISE_CONV_2D) else 1 if code in FIRST_VERSION else 2
            model.operatorCodes.append(entry)
        model.buffers = []
        for content in self.buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content, np.uint8) if content else None
            model.buffers.append(buffer)
        graph.tensors, graph.inputs, graph.outputs, graph.operators = self.tensors, inputs, outputs, []
        for code, op_inputs, op_outputs, options in self.ops:
            made = schema.OperatorT()
            made.opcodeIndex, made.inputs, made.outputs = codes.index(code), op_inputs, op_outputs
            if code == CUSTOM:
                made.customOptions = np.frombuffer(options, np.uint8)
            elif options is not None:
                made.builtinOptionsType = getattr(schema.BuiltinOptions, options[0])
                made.builtinOptions = getattr(schema, f"{options[0]}T")()
                for name, value in options[1].items():
                    setattr(made.builtinOptions, name, value)
            graph.operators.append(made)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))


def write_mobilenet(
    path: Path,
    units: list[Unit],
    resolution: int,
    number: str = "float32",
    names: bool = True,
    explicit_padding: bool = False,
    dense: bool = False,
    scope: str = "MobilenetV1/",
) -> dict[str, Quantised]:
    """A classifier of ``units`` for (1, resolution, resolution, 3) inputs; the last output are the logits.

    Args:
        path: Where to write.
        units: From :func:`random_units`.
        resolution: Must be a multiple of 32.
        number: "float32", "float16" (weights only), or "uint8" / "int8" with the quantised weights returned
            by unit name.
        names: Whether tensors bear TF-slim's names.
        explicit_padding: One pixel on all sides by PAD operators instead of "SAME" (float32 only).
        dense: Classify by MEAN and FULLY_CONNECTED instead of a pooling and a 1x1 convolution (float32 only).
        scope: Before the names.
    """
    writer, quantised = TFLiteWriter(names), {}
    kind = {"float32": FLOAT32, "float16": FLOAT32, "uint8": UINT8, "int8": INT8}[number]
    zero = {FLOAT32: 0, UINT8: 0, INT8: -128}[kind]

    def activation(name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> int:
        if kind == FLOAT32:
            return writer.tensor(name, shape)
        return writer.tensor(name, shape, kind, None, np.array([scale]), np.array([zero_point]))

    size, in_scale = resolution, 1 / 128
    current = source = activation("input", (1, size, size, 3), in_scale, zero + 128)
    for unit in units:
        logits = unit.name.startswith("Logits")
        channels = unit.weight.shape[-1 if unit.depthwise else 0]
        if logits and dense:
            current = _dense(writer, unit, current, scope)
            break
        if logits:
            pooled = activation(f"{scope}Logits/AvgPool", (1, 1, 1, units[-1].weight.shape[-1]), 6 / 255, zero)
            pool = {
                "padding": VALID,
                "strideW": size,
                "strideH": size,
                "filterWidth": size,
                "filterHeight": size,
            }
            writer.op(AVERAGE_POOL_2D, [current], [pooled], ("Pool2DOptions", pool))
            current, size = pooled, 1
        kernel = unit.weight.shape[1]
        padded = explicit_padding and kernel > 1
        if padded:
            amounts = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
            table = writer.tensor(f"paddings{len(writer.ops)}", (4, 2), INT32, amounts)
            in_channels = writer.tensors[current].shape[-1]
            bigger = writer.tensor(f"padded{len(writer.ops)}", (1, size + 2, size + 2, in_channels))
            writer.op(PAD, [current, table], [bigger], ("PadOptions", {}))
            current = bigger
        if number == "float16":
            unit = replace(unit, weight=unit.weight.astype(np.float16))
        inputs = [current, *_constants(writer, quantised, unit, kind, in_scale, scope)]
        size = -(-size // unit.stride)
        out_scale = 0.1 if logits else 6 / 255
        out_name = f"{scope}{unit.name}/{'BiasAdd' if logits else 'Relu6'}"
        out = activation(out_name, (1, size, size, channels), out_scale, zero + 128 if logits else zero)
        options = {"padding": VALID if padded else SAME, "strideW": unit.stride, "strideH": unit.stride}
        options |= {"dilationWFactor": 1, "dilationHFactor": 1}
        # The old converter leaves the clamp of a quantised layer to the range of its output.
        clamp = FUSED_RELU6 if kind == FLOAT32 and not logits else NO_ACTIVATION
        options["fusedActivationFunction"] = clamp
        if unit.depthwise:
            writer.op(
                DEPTHWISE_CONV_2D,
                inputs,
                [out],
                ("DepthwiseConv2DOptions", {**options, "depthMultiplier": 1}),
            )
        else:
            writer.op(CONV_2D, inputs, [out], ("Conv2DOptions", options))
        current, in_scale = out, out_scale
    writer.write(path, [source], [current])
    return quantised


def _dense(writer: TFLiteWriter, unit: Unit, current: int, scope: str) -> int:
    classes, _, _, channels = unit.weight.shape
    axes = writer.tensor("axes", (2,), INT32, np.array([1, 2], np.int32))
    pooled = writer.tensor(f"{scope}pooled", (1, channels))
    writer.op(MEAN, [current, axes], [pooled], ("ReducerOptions", {"keepDims": False}))
    weight = writer.tensor(f"{scope}Dense/weights", (classes, channels), FLOAT32, unit.weight[:, 0, 0])
    bias = writer.tensor(f"{scope}Dense/bias", (classes,), FLOAT32, unit.bias)
    out = writer.tensor(f"{scope}Dense/MatMul", (1, classes))
    writer.op(FULLY_CONNECTED, [pooled, weight, bias], [out], ("FullyConnectedOptions", {}))
    return out


def _constants(
    writer: TFLiteWriter, quantised: dict[str, Quantised], unit: Unit, kind: int, in_scale: float, scope: str
) -> list[int]:
    names = (f"{scope}{unit.name}/weights", f"{scope}{unit.name}/Conv2D_bias")
    if unit.weight.dtype == np.float16:
        half = writer.tensor(f"{names[0]}_half", unit.weight.shape, FLOAT16, unit.weight)
        weight = writer.tensor(names[0], unit.weight.shape)
        writer.op(DEQUANTIZE, [half], [weight], ("DequantizeOptions", {}))
        return [weight, writer.tensor(names[1], unit.bias.shape, FLOAT32, unit.bias)]
    if kind == FLOAT32:
        weight = writer.tensor(names[0], unit.weight.shape, FLOAT32, unit.weight)
        return [weight, writer.tensor(names[1], unit.bias.shape, FLOAT32, unit.bias)]
    axis = 3 if unit.depthwise else 0
    made = quantise_uint8(unit.weight) if kind == UINT8 else quantise_int8(unit.weight, axis)
    quantised[unit.name] = made
    weight = writer.tensor(names[0], unit.weight.shape, kind, made.stored, made.scale, made.zero_point, made.axis)
    bias_scale = (made.scale.astype(np.float64) * in_scale).astype(np.float32)
    stored = np.round(unit.bias / bias_scale).astype(np.int32)
    quantised[f"{unit.name}/bias"] = Quantised(stored, bias_scale, np.zeros(bias_scale.size, int))
    zeros = np.zeros(bias_scale.size, int)
    bias = writer.tensor(names[1], unit.bias.shape, INT32, stored, bias_scale, zeros, 0)
    return [weight, bias]
