"""int8 files of formats that are converted from torch without ONNX in between: ExecuTorch and LiteRT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from mnvision.export.appended import write_with_metadata
from mnvision.export.base import Pixels, Quantizer, Wish
from mnvision.export.graph import ExportGraph
from mnvision.export.int8_rounding import pixels_for, settle
from mnvision.export.int8_traced import (
    HIGHEST,
    LOWEST,
    LayerRounding,
    Traced,
    Watched,
    last_layers,
    scale_and_zero,
    set_tensor,
    tensor_of,
    trace,
)
from mnvision.export.layer_noise import LayerNoise, sqnr_db
from mnvision.export.metadata import FileMetadata

Roundings = Mapping[str, LayerRounding]


class Direct(Protocol):
    """A format whose metadata stand behind the file."""

    def content(self, graph: ExportGraph, wish: Wish, config: dict[str, Any], roundings: Roundings | None) -> bytes:
        """The file without metadata.

        Args:
            graph: What is exported.
            wish: What the user asks for.
            config: The model's.
            roundings: How layers are rounded, by their titles; None is a float32 file.
        """


class DirectQuantizer(Quantizer):
    """See :class:`~mnvision.export.base.Quantizer`; rounding is settled in torch, and converted as it stands.

    Args:
        form: The format.
        graph: What is exported.
        wish: What the user asks for.

    Raises:
        UserError: The graph cannot be traced.
    """

    def __init__(self, form: Direct, graph: ExportGraph, wish: Wish) -> None:
        self._form, self._graph, self._wish = form, graph, wish
        self.layers = [layer.title for layer in trace(graph, 1).layers]
        self._roundings: dict[str, LayerRounding] = {}
        self._content = b""

    def write(self, images: Pixels, kept: Collection[str], metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.write`."""
        return self.write_rounded(settle(self._graph, images, kept), metadata, target)

    def write_rounded(self, roundings: Roundings, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write the graph with its layers rounded so."""
        self._roundings = dict(roundings)
        self._content = self._form.content(self._graph, self._wish, metadata.model, self._roundings)
        return self.rewrite(metadata, target)

    def rewrite(self, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.rewrite`."""
        return write_with_metadata(self._content, metadata, target)

    def write_float(self, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.write_float`."""
        return write_with_metadata(self._form.content(self._graph, self._wish, metadata.model, None), metadata, target)

    def noise(self, images: Pixels) -> list[LayerNoise]:
        """See :meth:`Quantizer.noise`; computed in torch, which rounds as the file does."""
        return measure_noise(self._graph, self._roundings, images)


def measure_noise(graph: ExportGraph, roundings: Roundings, images: Pixels) -> list[LayerNoise]:
    """The noise of all layers of a graph in the network's order.

    Args:
        graph: What is exported.
        roundings: How layers are rounded; others are in float.
        images: Pictures ``(N, 3, H, W)`` uint8, few: every layer is a run of the network of its own.
    """
    traced, pixels = trace(graph, len(images)), pixels_for(graph, images)
    ends = [layer.title for layer in last_layers(traced)]
    with torch.no_grad():
        exact = run_rounded(traced, {}, pixels)
        noise = _ratios(exact, run_rounded(traced, roundings, pixels))
        rows = []
        for layer in traced.layers:
            gain = 0.0
            if layer.title in roundings:
                without = {title: rounding for title, rounding in roundings.items() if title != layer.title}
                cleaner = _ratios({title: exact[title] for title in ends}, run_rounded(traced, without, pixels))
                gain = sum(cleaner[title] - noise[title] for title in ends) / len(ends)
            rows.append(LayerNoise(layer.title, layer.kind, noise[layer.title], gain))
    return rows


def run_rounded(traced: Traced, roundings: Roundings, pixels: Tensor) -> dict[str, Tensor]:
    """What every layer gives, by its title, when those of ``roundings`` are computed in int8.

    Args:
        traced: The graph in float; its weights are its own again afterwards.
        roundings: How layers are rounded; others are in float.
        pixels: In the graph's layout, as many as it was traced for.
    """
    rounded = [layer for layer in traced.layers if layer.title in roundings]
    ends = {layer.end.name: layer.title for layer in traced.layers}
    known = [(layer, roundings[layer.title]) for layer in rounded]
    bounds = {layer.source.name: rounding.source for layer, rounding in known if rounding.source is not None}
    bounds |= {layer.end.name: rounding.result for layer, rounding in known if rounding.result is not None}
    found: dict[str, Tensor] = {}

    def watch(node: fx.Node, result: Tensor) -> Tensor:
        title = ends.get(node.name)
        if node.name in bounds:
            scale, zero = scale_and_zero(bounds[node.name])
            changed = torch.fake_quantize_per_tensor_affine(result, scale, zero, LOWEST, HIGHEST)
        else:
            changed = result
        if title is not None:
            found[title] = changed if title in roundings else result
        return changed

    names = [name for layer in rounded for name in (layer.weight, layer.bias)]
    own = {name: tensor_of(traced.module, name) for name in names}
    for layer in rounded:
        set_tensor(traced.module, layer.weight, roundings[layer.title].values())
        set_tensor(traced.module, layer.bias, roundings[layer.title].bias)
    Watched(traced.module, watch).run(pixels)
    for name, value in own.items():
        set_tensor(traced.module, name, value)
    return found


def _ratios(exact: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        title: sqnr_db(float(value.double().square().sum()), float((value.double() - found[title]).square().sum()))
        for title, value in exact.items()
    }
