"""An ONNX graph in int8, written from known ranges: nothing is calibrated, nothing corrected."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.export.given import LAYERS
from mnvision.export.int8 import Layer, layers_of
from mnvision.quantization.grid import ACTIVATION_LIMIT, activation_grid, weight_numbers
from mnvision.quantization.ranges import OUTPUT, WEIGHTS

Range = tuple[float, float]
_ROUNDING = 1e-6
"""Relative: the ends of a range as 255 steps of float32."""


def with_ranges(proto: Any, stored: Mapping[str, Any], kept: Collection[Layer] = (), limits: bool = False) -> Any:
    """An ONNX graph in int8, by known ranges.

    Before each layer come QuantizeLinear (uint8) and DequantizeLinear, which runtimes take together with the layer. An
    activation that only cuts off what the rounding behind it cuts off anyway is left out, since onnxruntime would
    compute the layer in float otherwise. Biases stay in float, which runtimes round to 32 bits.

    Args:
        proto: An ``onnx.ModelProto`` in float32; it is not changed.
        stored: As :meth:`~mnvision.quantization.ranges.Ranges.to_plain` gives it: ``ranges``, by title of the layer
            the lowest and highest value of what goes in, with ``OUTPUT`` behind the title of what leaves it, for all
            that read it; and ``weights``, what has a scale of its own.
        kept: Layers that stay in float.
        limits: Leave in what would be left out, so that every tensor of ``proto`` is there; answers are the same.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        UserError: A layer has no range.
    """
    ranges: Mapping[str, Sequence[float]] = stored["ranges"]
    layers = {layer.node: layer for layer in layers_of(proto) if layer not in kept}
    unknown = [layer.title for layer in layers.values() if layer.title not in ranges]
    if unknown:
        raise UserError(f"the checkpoint's ranges lack {unknown[0]}: train it with quantize=qat again")
    outputs = {
        layer.output: ranges[f"{layer.title}{OUTPUT}"] for layer in layers.values() if _has_output(layer, ranges)
    }
    changed = copy.deepcopy(proto)
    writer = _Writer(changed, stored["weights"] == WEIGHTS[0])
    nodes: list[Any] = []
    for node in proto.graph.node:
        node = copy.deepcopy(node)
        if node.name in layers:
            bounds = outputs.get(node.input[0], ranges[layers[node.name].title])
            nodes += writer.activation(node, 0, _pair(bounds))
            nodes += writer.weight(node)
        else:
            for place, name in enumerate(node.input):
                if name in outputs and node.op_type not in LAYERS:
                    nodes += writer.activation(node, place, _pair(outputs[name]))
        nodes.append(node)
    nodes = nodes if limits else writer.without_needless_limits(nodes)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    writer.drop_unread()
    return changed


def _has_output(layer: Layer, ranges: Mapping[str, Any]) -> bool:
    return f"{layer.title}{OUTPUT}" in ranges


def _pair(bounds: Sequence[float]) -> Range:
    low, high = bounds
    return float(low), float(high)


class _Writer:
    """Adds what is stored to a graph, and gives the nodes that read it."""

    def __init__(self, proto: Any, per_channel: bool) -> None:
        self.graph, self.per_channel = proto.graph, per_channel
        self.stored = {entry.name: entry for entry in proto.graph.initializer}
        self.known: dict[tuple[str, Range], str] = {}
        self.spans: dict[str, Range] = {}
        self.weights: set[str] = set()

    def activation(self, node: Any, place: int, bounds: Range) -> list[Any]:
        """Nodes that round one input of a node, unless the same was rounded before."""
        import onnx

        source = node.input[place]
        if name := self.known.get((source, bounds)):
            node.input[place] = name
            return []
        scale, zero = activation_grid(torch.tensor(bounds, dtype=torch.float32))
        label = f"{source}/{len(self.known)}"
        stored = [("scale", scale.numpy()), ("zero", zero.numpy().astype(np.uint8))]
        rest = [self._store(f"{label}/{name}", value) for name, value in stored]
        quantize, inside, outside = f"{label}/quantize", f"{label}/uint8", f"{label}/rounded"
        step, offset = float(scale), int(zero)
        self.spans[quantize] = (-offset * step, (ACTIVATION_LIMIT - offset) * step)
        self.known[(source, bounds)] = node.input[place] = outside
        return [
            onnx.helper.make_node("QuantizeLinear", [source, *rest], [inside], quantize),
            onnx.helper.make_node("DequantizeLinear", [inside, *rest], [outside], f"{label}/dequantize"),
        ]

    def weight(self, node: Any) -> list[Any]:
        """The node that reads a layer's stored weights, unless another one has read the same."""
        import onnx

        source, transposed = node.input[1], {entry.name: entry.i for entry in node.attribute}.get("transB", 0)
        if source in self.weights:
            node.input[1] = f"{source}/rounded"
            return []
        self.weights.add(source)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        numbers, scales = weight_numbers(torch.from_numpy(self._value(source)).movedim(axis, 0), self.per_channel)
        steps = scales.numpy() if self.per_channel else scales[0].numpy()
        values = {"int8": numbers.movedim(0, axis).numpy(), "scale": steps, "zero": np.zeros(steps.shape, np.int8)}
        names = [self._store(f"{source}/{name}", value) for name, value in values.items()]
        node.input[1] = f"{source}/rounded"
        options: dict[str, Any] = {"axis": axis} if self.per_channel else {}
        return [onnx.helper.make_node("DequantizeLinear", names, [node.input[1]], f"{source}/dequantize", **options)]

    def without_needless_limits(self, nodes: list[Any]) -> list[Any]:
        """The nodes without activations that all QuantizeLinear behind them make needless."""
        readers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        ends = {output.name for output in self.graph.output}
        left = []
        for node in nodes:
            behind = readers.get(node.output[0], [])
            if node.output[0] in ends or not self._is_needless(node, behind):
                left.append(node)
                continue
            for reader in behind:
                reader.input[0] = node.input[0]
        return left

    def _is_needless(self, node: Any, behind: list[Any]) -> bool:
        if node.op_type not in ("Clip", "Relu") or not behind:
            return False
        if not all(name in self.stored for name in node.input[1:]):
            return False
        limits = [float(self._value(name)) for name in node.input[1:]] if node.op_type == "Clip" else [0.0, np.inf]
        slack = _ROUNDING * max(abs(limit) for limit in limits if np.isfinite(limit))
        spans = [self.spans.get(reader.name, (-np.inf, np.inf)) for reader in behind]
        return all(low >= limits[0] - slack and high <= limits[1] + slack for low, high in spans)

    def drop_unread(self) -> None:
        """Take out stored values that no node reads any longer."""
        read = {name for node in self.graph.node for name in node.input}
        for name, entry in self.stored.items():
            if name not in read:
                self.graph.initializer.remove(entry)

    def _value(self, name: str) -> NDArray[Any]:
        import onnx

        return np.array(onnx.numpy_helper.to_array(self.stored[name]))

    def _store(self, name: str, values: Any) -> str:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name
