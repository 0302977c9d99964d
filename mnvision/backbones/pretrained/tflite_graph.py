"""Reading a .tflite file: its layers with constant weights as float tensors, and what feeds what.

Layouts and quantisation from the TensorFlow Lite schema (``schema.fbs``) and its quantisation specification:
``real = scale * (stored - zero_point)``, per tensor or per channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.errors import UserError

# Numbers of schema.fbs, which never change: TensorType, BuiltinOperator, ActivationFunctionType, Padding.
TYPES: dict[int, type[np.generic]] = {
    0: np.float32,
    1: np.float16,
    2: np.int32,
    3: np.uint8,
    7: np.int16,
    9: np.int8,
}
AVERAGE_POOL_2D, CONCATENATION, CONV_2D, DEPTHWISE_CONV_2D, DEQUANTIZE, FULLY_CONNECTED = 1, 2, 3, 4, 6, 9
LOGISTIC, RELU, RELU6, RESHAPE, SOFTMAX, CUSTOM = 14, 19, 21, 22, 25, 32
PAD, MEAN, SQUEEZE, PADV2, QUANTIZE = 34, 40, 43, 60, 114
ACTIVATIONS = {0: "none", 1: "relu", 3: "relu6"}
SAME = 0


@dataclass(frozen=True)
class Layer:
    """A convolution or fully connected layer with constant weights.

    Attributes:
        op: Position of the operator in the graph.
        kind: ``CONV_2D``, ``DEPTHWISE_CONV_2D`` or ``FULLY_CONNECTED``.
        names: Of the output tensor and of the weights.
        weight: float32, PyTorch's layout: (out, in, H, W), depthwise (C * M, 1, H, W), fully connected (out,
            in).
        bias: float32 ``(out,)``; zeros where the file has none.
        stride: Of both axes.
        same: Padding "SAME", otherwise "VALID".
        activation: ``"none"``, ``"relu"``, ``"relu6"`` or another one's number, as fused into the operator.
        input: Tensor index.
        output: Tensor index.
    """

    op: int
    kind: int
    names: tuple[str, str]
    weight: np.ndarray
    bias: np.ndarray
    stride: int
    same: bool
    activation: str
    input: int
    output: int


class Graph:
    """The first subgraph of a .tflite file.

    Args:
        path: The file.

    Raises:
        UserError: ai-edge-litert is not installed, or the file is damaged or no .tflite file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = _unpacked(path)
        self._graph = self._model.subgraphs[0]
        self.tensors = self._graph.tensors
        self.ops = self._graph.operators
        self.inputs: list[int] = _indices(self._graph.inputs)
        self.outputs: list[int] = _indices(self._graph.outputs)
        self._producer = {out: index for index, op in enumerate(self.ops) for out in _indices(op.outputs)}

    def kind(self, op: int) -> int:
        """Builtin code of an operator; files before schema version 3a have it in the old field."""
        code = self._model.operatorCodes[self.ops[op].opcodeIndex]
        return max(code.builtinCode, code.deprecatedBuiltinCode)

    def custom(self, op: int) -> tuple[str, bytes]:
        """Name and options of a custom operator; the name of a builtin one is empty."""
        name = self._model.operatorCodes[self.ops[op].opcodeIndex].customCode or b""
        options = self.ops[op].customOptions
        return name.decode("utf-8", "replace"), b"" if options is None else bytes(options)

    def name(self, tensor: int) -> str:
        """Name of a tensor."""
        return (self.tensors[tensor].name or b"").decode("utf-8", "replace")

    def producer(self, tensor: int) -> int | None:
        """The operator that computes a tensor; none for inputs and constants."""
        return self._producer.get(tensor)

    def consumers(self, tensor: int) -> list[int]:
        """Operators that read a tensor, in graph order."""
        return [index for index, op in enumerate(self.ops) if tensor in _indices(op.inputs)]

    def reached(self, tensor: int, through: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Operators behind a tensor and the kinds passed on the way, all of which are in ``through``."""
        open_ends: list[tuple[int, list[int]]] = [(tensor, [])]
        while open_ends:
            current, passed = open_ends.pop(0)
            for op in self.consumers(current):
                yield op, passed
                if self.kind(op) in through:
                    open_ends += [(out, [*passed, self.kind(op)]) for out in _indices(self.ops[op].outputs)]

    def constant(self, tensor: int) -> np.ndarray | None:
        """A constant as float32 (int32 without a scale stays whole), dequantised; none if it is computed."""
        info = self.tensors[tensor]
        data = self._model.buffers[info.buffer].data
        if data is None or len(data) == 0:
            made_by = self.producer(tensor)
            widened = made_by is not None and self.kind(made_by) == DEQUANTIZE
            return self.constant(int(self.ops[made_by].inputs[0])) if widened else None
        if info.type not in TYPES:
            raise UserError(f"{self.path}: tensor {self.name(tensor)} has a number type this reader does not know")
        values = np.asarray(data, dtype=np.uint8).view(TYPES[info.type]).reshape(_indices(info.shape))
        scale, zero_point, axis = self.quantization(tensor)
        if scale is None:
            return values.astype(np.int64 if info.type == 2 else np.float32)
        shape = [1] * values.ndim
        if scale.size > 1:
            shape[axis] = -1
        real = (values.astype(np.float64) - zero_point.reshape(shape)) * scale.reshape(shape)
        return real.astype(np.float32)

    def quantization(self, tensor: int) -> tuple[np.ndarray | None, np.ndarray, int]:
        """Scales (none if the tensor is not quantised), zero points as many, and their axis."""
        info = self.tensors[tensor].quantization
        if info is None or info.scale is None or len(info.scale) == 0:
            return None, np.zeros(1), 0
        scale = np.asarray(info.scale, dtype=np.float64)
        zeros = info.zeroPoint
        zero_point = np.zeros_like(scale) if zeros is None else np.asarray(zeros, dtype=np.float64)
        return scale, np.broadcast_to(zero_point, scale.shape), int(info.quantizedDimension)

    def layers(self) -> list[Layer]:
        """All convolutions and fully connected layers with constant weights, in graph order."""
        kinds = (CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED)
        found = [self._layer(op) for op in range(len(self.ops)) if self.kind(op) in kinds]
        return [layer for layer in found if layer is not None]

    def _layer(self, op: int) -> Layer | None:
        kind, options = self.kind(op), self.ops[op].builtinOptions
        inputs, outputs = _indices(self.ops[op].inputs), _indices(self.ops[op].outputs)
        weight = self.constant(inputs[1])
        if weight is None:
            return None
        if kind == CONV_2D:
            weight = weight.transpose(0, 3, 1, 2)
        elif kind == DEPTHWISE_CONV_2D:
            weight = weight.transpose(3, 0, 1, 2)
        fused = int(options.fusedActivationFunction)
        return Layer(
            op=op,
            kind=kind,
            names=(self.name(outputs[0]), self.name(inputs[1])),
            weight=np.ascontiguousarray(weight, dtype=np.float32),
            bias=self._bias(inputs, weight.shape[0]),
            stride=1 if kind == FULLY_CONNECTED else int(options.strideH),
            same=kind != FULLY_CONNECTED and int(options.padding) == SAME,
            activation=ACTIVATIONS.get(fused, str(fused)),
            input=inputs[0],
            output=outputs[0],
        )

    def _bias(self, inputs: Sequence[int], channels: int) -> np.ndarray:
        """The bias; int32 without a scale of its own has that of input times weights."""
        bias = self.constant(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None
        if bias is None:
            return np.zeros(channels, dtype=np.float32)
        if bias.dtype == np.int64:
            scales = [self.quantization(tensor)[0] for tensor in inputs[:2]]
            if scales[0] is None or scales[1] is None:
                raise UserError(f"{self.path}: tensor {self.name(inputs[2])} is int32 without any scale")
            bias = bias * scales[0] * scales[1]
        return bias.astype(np.float32)


def _indices(values: Any) -> list[int]:
    """A vector of the file, absent when it is empty."""
    return [] if values is None else [int(value) for value in values]


def _unpacked(path: Path) -> Any:
    """The file's model tables. LiteRT itself verifies the file first, for the generated reader trusts it."""
    try:
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_litert.schema_py_generated import ModelT
    except ImportError:
        raise UserError(f"{path}: reading .tflite files needs ai-edge-litert: pip install mnvision[tflite]") from None
    content = path.read_bytes()
    try:
        Interpreter(model_content=content)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unknown reason"
        raise UserError(f"{path}: LiteRT refuses it as damaged or as no .tflite file ({reason})") from error
    model = ModelT.InitFromPackedBuf(content, 0)
    if not model.subgraphs or not model.subgraphs[0].operators:
        raise UserError(f"{path}: a .tflite file without any operators")
    return model
