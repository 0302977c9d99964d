"""int8 of a checkpoint that was fine-tuned for it: the ranges and the weights that its training rounded, no others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mnvision.export.base import Pixels, Wish
from mnvision.export.graph import ExportGraph
from mnvision.export.int8 import Layer
from mnvision.export.int8_onnx import OnnxBased, OnnxQuantizer
from mnvision.export.layer_noise import LayerNoise, measure_layers
from mnvision.export.rounded_graph import with_ranges


class TrainedQuantizer(OnnxQuantizer):
    """See :class:`~mnvision.export.int8_onnx.OnnxQuantizer`; nothing is calibrated.

    Args:
        form: The format.
        graph: What is exported.
        wish: What the user asks for.
        stored: ``quantization`` of the checkpoint's metadata.

    Raises:
        UserError: The exporter fails.
    """

    def __init__(self, form: OnnxBased, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> None:
        super().__init__(form, graph, wish)
        self._stored = stored
        self._kept: Collection[Layer] = ()

    def quantize(self, images: Pixels, kept: Collection[Layer]) -> Any:
        """The int8 graph; the pictures are not looked at."""
        self._kept = kept
        return with_ranges(self._proto, self._stored, kept)

    def noise(self, images: Pixels) -> list[LayerNoise]:
        """See :meth:`Quantizer.noise`; of the graph with all activations, which are looked at one by one."""
        whole = with_ranges(self._proto, self._stored, self._kept, limits=True)
        return measure_layers(self._proto, whole, self._layers, images, self._wish.batch)
