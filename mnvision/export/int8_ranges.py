"""int8 for LiteRT and ExecuTorch of a checkpoint that was fine-tuned for it, with the ranges of its training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mnvision.export.base import Pixels, Wish
from mnvision.export.graph import ExportGraph
from mnvision.export.int8_direct import Direct, DirectQuantizer
from mnvision.export.int8_traced import (
    LayerRounding,
    Range,
    Traced,
    computed_by,
    open_layers,
    tensor_of,
    trace,
)
from mnvision.export.metadata import FileMetadata
from mnvision.quantization.grid import weight_numbers
from mnvision.quantization.ranges import OUTPUT, WEIGHTS


class TrainedDirect(DirectQuantizer):
    """See :class:`~mnvision.export.int8_direct.DirectQuantizer`; nothing is calibrated, and no bias corrected.

    Args:
        form: The format.
        graph: What is exported.
        wish: What the user asks for.
        stored: ``quantization`` of the checkpoint's metadata.

    Raises:
        UserError: The graph cannot be traced.
    """

    def __init__(self, form: Direct, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> None:
        super().__init__(form, graph, wish)
        self._stored = stored

    def write(self, images: Pixels, kept: Collection[str], metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.write`; the pictures are not looked at."""
        return self.write_rounded(stored_roundings(trace(self._graph, 1), self._stored, kept), metadata, target)


def trained_direct(form: Direct, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> TrainedDirect | None:
    """The quantizer; None where training did not round all that these formats do, and pictures have to be shown.

    It is so with detectors: what leaves their predictors is in float in training.

    Args:
        form: The format.
        graph: What is exported.
        wish: What the user asks for.
        stored: ``quantization`` of the checkpoint's metadata.
    """
    traced = trace(graph, 1)
    bounds = _bounds(traced, stored)
    opened = open_layers(traced)
    known = all(None not in bounds[layer.title] for layer in traced.layers if layer not in opened)
    return TrainedDirect(form, graph, wish, stored) if known else None


def stored_roundings(traced: Traced, stored: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, LayerRounding]:
    """How every layer is rounded, by title.

    Args:
        traced: The graph in float.
        stored: As :meth:`~mnvision.quantization.ranges.Ranges.to_plain` gives it, with all ranges.
        kept: Titles of layers that stay in float.
    """
    bounds, opened = _bounds(traced, stored), [layer.title for layer in open_layers(traced)]
    found = {}
    for layer in traced.layers:
        weight, bias = (tensor_of(traced.module, name) for name in (layer.weight, layer.bias))
        numbers, scales = weight_numbers(weight, stored["weights"] == WEIGHTS[0])
        source, result = (None, None) if layer.title in opened else bounds[layer.title]
        found[layer.title] = LayerRounding(numbers, scales, bias, source, result)
    return {title: rounding for title, rounding in found.items() if title not in kept}


def _bounds(traced: Traced, stored: Mapping[str, Any]) -> dict[str, tuple[Range | None, Range | None]]:
    """Ranges of what goes into and out of each layer: the latter is its own before a pool, else that of a reader."""
    ranges = {title: (low, high) for title, (low, high) in stored["ranges"].items()}
    entering = {computed_by(layer.source): ranges.get(layer.title) for layer in traced.layers}
    return {
        layer.title: (ranges.get(layer.title), ranges.get(f"{layer.title}{OUTPUT}", entering.get(layer.end)))
        for layer in traced.layers
    }
