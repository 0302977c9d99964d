"""Roundings written into a traced graph as pairs of operations that the converters of ExecuTorch and LiteRT know."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from mnvision.export.int8_traced import (
    HIGHEST,
    LOWEST,
    LayerRounding,
    Range,
    Traced,
    TracedLayer,
    operand,
    scale_and_zero,
)
from mnvision.quantization.grid import WEIGHT_LIMIT


def insert_rounding(traced: Traced, roundings: Mapping[str, LayerRounding], stored: bool) -> fx.GraphModule:
    """The module with pairs of quantise and dequantise around its layers; changed in place.

    The result of every layer is rounded behind its activation; what goes into a layer is rounded where it is not
    the rounded result of another. Every reader of a rounded result has a dequantise of its own: where readers share
    one, litert-torch 0.10 loses its shape at the first of them and ends in an assertion at the second.

    An open layer gives what it computes. With ``stored`` its input is rounded as XNNPACK does where the result is in
    float: every row to 8 bits of its own range, while the file runs. Without, it is a layer in float whose weights are
    at values that int8 holds.

    Args:
        traced: What is changed.
        roundings: By title of the layer; others stay in float.
        stored: Whether the weights are int8 constants; else they are float32 ones that an operation rounds.
    """
    module, graph = traced.module, traced.module.graph
    static = [layer for layer in traced.layers if layer.title in roundings and not roundings[layer.title].open]
    rounded = {layer.end for layer in static}
    inside: dict[fx.Node, fx.Node] = {}
    for layer in static:
        rounding = roundings[layer.title]
        assert rounding.source is not None
        assert rounding.result is not None
        if layer.source not in rounded:
            if layer.source not in inside:
                inside[layer.source] = _insert_quantise(graph, layer.source, rounding.source)
            _read(graph, inside[layer.source], _first_use(layer), layer.source)
        _insert_weight(module, layer, rounding, stored)
        readers = list(layer.end.users)
        result = _insert_quantise(graph, layer.end, rounding.result)
        for reader in readers:
            _read(graph, result, reader, layer.end)
    for layer in traced.layers:
        if layer.title in roundings and roundings[layer.title].open:
            _insert_open(module, layer, roundings[layer.title], stored)
    graph.eliminate_dead_code()
    graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _first_use(layer: TracedLayer) -> fx.Node:
    """The operation on the way from a layer's source that takes it in: the layer itself, or its padding."""
    node = layer.node
    while operand(node, 0) is not layer.source:
        node = operand(node, 0)
    return node


def _grid(bounds: Range) -> tuple[Any, ...]:
    return (*scale_and_zero(bounds), LOWEST, HIGHEST, torch.int8)


def _insert_quantise(graph: fx.Graph, node: fx.Node, bounds: Range) -> fx.Node:
    with graph.inserting_after(node):
        return graph.call_function(torch.ops.quantized_decomposed.quantize_per_tensor.default, (node, *_grid(bounds)))


def _read(graph: fx.Graph, quantised: fx.Node, reader: fx.Node, instead_of: fx.Node) -> None:
    """Have an operation take in the values that a quantised result stands for."""
    with graph.inserting_before(reader):
        values = graph.call_function(
            torch.ops.quantized_decomposed.dequantize_per_tensor.default, (quantised, *quantised.args[1:])
        )
    reader.replace_input_with(instead_of, values)


def _insert_weight(module: Any, layer: TracedLayer, rounding: LayerRounding, stored: bool) -> None:
    graph, ops = module.graph, torch.ops.quantized_decomposed
    entries = {
        "weight": rounding.weight if stored else rounding.values(),
        "scales": rounding.scales,
        "zeros": torch.zeros(len(rounding.scales), dtype=torch.int64),
        "bias": rounding.bias,
    }
    with graph.inserting_before(layer.node):
        weight, scales, offsets, bias = (_constant(module, layer, key, value) for key, value in entries.items())
        grid = (scales, offsets, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT, torch.int8)
        if not stored:
            weight = graph.call_function(ops.quantize_per_channel.default, (weight, *grid))
        weight = graph.call_function(ops.dequantize_per_channel.default, (weight, *grid))
    layer.node.args = (layer.node.args[0], weight, bias, *layer.node.args[3:])


def _insert_open(module: Any, layer: TracedLayer, rounding: LayerRounding, stored: bool) -> None:
    if not stored:
        with module.graph.inserting_before(layer.node):
            entries = {"values": rounding.values(), "bias": rounding.bias}
            weight, bias = (_constant(module, layer, key, value) for key, value in entries.items())
        layer.node.args = (layer.node.args[0], weight, bias, *layer.node.args[3:])
        return
    _insert_weight(module, layer, rounding, stored)
    graph, ops, source = module.graph, torch.ops.quantized_decomposed, operand(layer.node, 0)
    with graph.inserting_before(layer.node):
        chosen = graph.call_function(ops.choose_qparams_per_token_asymmetric.default, (source, torch.int8))
        scale, zero = (graph.call_function(operator.getitem, (chosen, place)) for place in (0, 1))
        grid = (scale, zero, LOWEST, HIGHEST, torch.int8)
        quantised = graph.call_function(ops.quantize_per_token.default, (source, *grid))
        values = graph.call_function(ops.dequantize_per_token.default, (quantised, *grid, torch.float32))
    layer.node.args = (values, *layer.node.args[1:])


def _constant(module: Any, layer: TracedLayer, key: str, value: torch.Tensor) -> fx.Node:
    name = f"int8_{layer.title.replace('.', '_')}_{key}"
    module.register_buffer(name, value)
    node: fx.Node = module.graph.get_attr(name)
    return node
