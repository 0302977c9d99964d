"""How a traced graph is rounded to 8 bits: weights, corrected biases, and ranges seen on real pictures.

Rounding the weights of a layer shifts the mean of what it gives. The shift is measured on pictures and taken out of the
bias, layer after layer, each seeing the corrected ones before it ("empirical bias correction", Nagel et al. 2019,
arXiv:1906.04721, section 4.2 and appendix D).

Linear layers that nothing with weights comes behind are open: int8 weights, but nothing rounds what they give. One step
for all classes or attributes is coarse for those whose logits hardly move, and ties cost ranks; finer steps per channel
would cut off what the few pictures to calibrate on do not show.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mnvision.errors import UserError
from mnvision.export.base import Pixels
from mnvision.export.graph import ExportGraph
from mnvision.export.int8_traced import (
    LayerRounding,
    Range,
    Traced,
    TracedLayer,
    Watched,
    joined_layers,
    open_layers,
    per_channel,
    scale_and_zero,
    set_tensor,
    tensor_of,
    trace,
)
from mnvision.quantization.grid import WEIGHT_LIMIT, weight_scales

PICTURES = 64
"""Pictures that biases are corrected on, at most, and that go through the network at once."""
_ROOM = 2.0**28
"""Largest bias in steps of its own scale: biases are int32 in the file, and sums have to fit beside them."""


def settle(graph: ExportGraph, images: Pixels, kept: Collection[str] = (), correct: bool = True) -> dict[str, Any]:
    """How every layer is rounded.

    Args:
        graph: What is exported.
        images: Pictures to calibrate on, ``(N, 3, H, W)`` uint8.
        kept: Titles of layers that stay in float.
        correct: Whether biases are corrected.

    Returns:
        Title of the layer -> its :class:`~mnvision.export.int8_traced.LayerRounding`.

    Raises:
        UserError: There are no pictures, or the graph cannot be traced.
    """
    if not len(images):
        raise UserError("no pictures to calibrate on: give pictures=FOLDER")
    count = min(PICTURES, len(images))
    traced, pixels = trace(graph, count), pixels_for(graph, images)
    layers = [layer for layer in traced.layers if layer.title not in kept]
    with torch.no_grad():
        means = _means(traced, layers, pixels[:count])
        for layer in layers:
            weight = tensor_of(traced.module, layer.weight)
            set_tensor(traced.module, layer.weight, _rounded(weight, weight_scales(weight)))
        if correct:
            _correct(traced, layers, means, pixels[:count])
        ranges = _shared(traced, _ranges(traced, pixels, count))
        opened = {layer.title for layer in open_layers(traced)}
        return {layer.title: _rounding(traced, layer, ranges, layer.title in opened) for layer in layers}


def pixels_for(graph: ExportGraph, images: Pixels) -> Tensor:
    """Pictures ``(N, 3, H, W)`` in the layout that a graph takes."""
    pixels = torch.from_numpy(images)
    return pixels.permute(0, 2, 3, 1).contiguous() if graph.options.layout == "nhwc" else pixels


def _means(traced: Traced, layers: list[TracedLayer], pixels: Tensor) -> dict[str, Tensor]:
    """The mean of every channel that a layer gives, before its activation."""
    wanted, found = {layer.node.name: layer.title for layer in layers}, {}

    def watch(node: fx.Node, result: Tensor) -> Tensor:
        if node.name in wanted:
            found[wanted[node.name]] = _channel_means(result)
        return result

    Watched(traced.module, watch).run(pixels)
    return found


def _correct(traced: Traced, layers: list[TracedLayer], means: Mapping[str, Tensor], pixels: Tensor) -> None:
    """Give every layer the mean that it had, in one run: each is corrected before the next one is computed."""
    wanted = {layer.node.name: layer for layer in layers}

    def watch(node: fx.Node, result: Tensor) -> Tensor:
        if node.name not in wanted:
            return result
        layer = wanted[node.name]
        missing = (means[layer.title] - _channel_means(result)).float()
        set_tensor(traced.module, layer.bias, tensor_of(traced.module, layer.bias) + missing)
        return result + per_channel(missing, result.ndim - 1)

    Watched(traced.module, watch).run(pixels)


def _ranges(traced: Traced, pixels: Tensor, step: int) -> dict[str, Range]:
    """Lowest and highest value behind and before all layers, by the operation's name; an end part is filled up."""
    wanted = {node.name for layer in traced.layers for node in (layer.source, layer.end)}
    found: dict[str, Range] = {}

    def watch(node: fx.Node, result: Tensor) -> Tensor:
        if node.name in wanted:
            low, high = found.get(node.name, (0.0, 0.0))
            found[node.name] = min(low, float(result.min())), max(high, float(result.max()))
        return result

    runner = Watched(traced.module, watch)
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step]
        runner.run(torch.cat([part, part[-1:].expand(step - len(part), -1, -1, -1)]))
    return found


def _shared(traced: Traced, ranges: dict[str, Range]) -> dict[str, Range]:
    """One range for results that are put side by side: LiteRT's concatenation has one scale for all it takes in."""
    for group in joined_layers(traced):
        found = [ranges[layer.end.name] for layer in group]
        widest = min(low for low, _ in found), max(high for _, high in found)
        ranges |= {layer.end.name: widest for layer in group}
    return ranges


def _rounding(traced: Traced, layer: TracedLayer, ranges: Mapping[str, Range], opened: bool) -> LayerRounding:
    """Scales are raised where a bias would not fit into int32.

    It is so in channels that give a constant, whose weights are next to nothing: they then become zero.
    """
    weight, bias, source = (
        tensor_of(traced.module, layer.weight),
        tensor_of(traced.module, layer.bias),
        ranges[layer.source.name],
    )
    scales = weight_scales(weight)
    if not opened:  # else the bias is a float
        scales = torch.maximum(scales, bias.abs() / (scale_and_zero(source)[0] * _ROOM))
    numbers = (weight / per_channel(scales, weight.ndim)).round().to(torch.int8)
    if opened:
        return LayerRounding(numbers, scales, bias, None, None)
    return LayerRounding(numbers, scales, bias, source, ranges[layer.end.name])


def _rounded(weight: Tensor, scales: Tensor) -> Tensor:
    steps = per_channel(scales, weight.ndim)
    return (weight / steps).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT) * steps


def _channel_means(result: Tensor) -> Tensor:
    """``(C,)`` float64 of ``(N, C, ...)``."""
    return result.mean(dim=[dim for dim in range(result.ndim) if dim != 1], dtype=torch.float64)
