"""int8 for the formats that are written from an ONNX graph: ONNX itself, and OpenVINO."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from mnvision.export.base import Pixels, Quantizer, Wish
from mnvision.export.graph import ExportGraph
from mnvision.export.int8 import Layer, layers_of, quantized
from mnvision.export.layer_noise import LayerNoise, measure_layers
from mnvision.export.metadata import FileMetadata


class OnnxBased(Protocol):
    """A format that is written from an ONNX graph."""

    def proto(self, graph: ExportGraph, wish: Wish) -> Any:
        """The ``onnx.ModelProto`` of a graph."""

    def save(self, proto: Any, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write it; the files, ``target`` last."""


class OnnxQuantizer(Quantizer):
    """See :class:`~mnvision.export.base.Quantizer`; the graph is converted once.

    Args:
        form: The format.
        graph: What is exported.
        wish: What the user asks for.
        by_map: See :func:`~mnvision.export.int8.quantized`.

    Raises:
        UserError: The exporter fails.
    """

    def __init__(self, form: OnnxBased, graph: ExportGraph, wish: Wish, by_map: bool = True) -> None:
        self._form, self._wish, self._by_map = form, wish, by_map
        self._proto = form.proto(graph, wish)
        self._int8: Any = None
        self._layers = layers_of(self._proto)
        self.layers = [layer.title for layer in self._layers]

    def write(self, images: Pixels, kept: Collection[str], metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.write`."""
        whole = [layer for layer in self._layers if layer.title in kept]
        self._int8 = self.quantize(images, whole)
        return self.rewrite(metadata, target)

    def quantize(self, images: Pixels, kept: Collection[Layer]) -> Any:
        """The graph in int8 as an ``onnx.ModelProto``, but for the layers ``kept`` in float."""
        return quantized(self._proto, images, self._wish.batch, kept, by_map=self._by_map)

    def rewrite(self, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.rewrite`."""
        return self._form.save(self._int8, self._wish, metadata, target)

    def write_float(self, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Quantizer.write_float`."""
        return self._form.save(self._proto, replace(self._wish, precision="fp32"), metadata, target)

    def noise(self, images: Pixels) -> list[LayerNoise]:
        """See :meth:`Quantizer.noise`."""
        return measure_layers(self._proto, self._int8, self._layers, images, self._wish.batch)
