"""What is exported: pixels in, finished answers out, with nothing that a runtime would have to know beside.

Needs torch only, so that a converter in an environment of its own can build it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.export.folding import folded
from mnvision.export.suppression import Decode, KeepRule, NmsSettings, Suppress

INPUT = "images"
Layout = Literal["nchw", "nhwc"]
Precision = Literal["fp32", "fp16"]

VECTORS = {
    "classification": "probabilities",
    "face_attributes": "probabilities",
    "face_embeddings": "embeddings",
    "geolocation": "probabilities",
}
"""Kinds of model that give one row per image -> what the output is called."""


@dataclass(frozen=True)
class GraphOptions:
    """How a model becomes a graph.

    Attributes:
        layout: Of the pixels: "nchw" ``(B, 3, H, W)`` or "nhwc" ``(B, H, W, 3)``.
        keep: How a detector's candidates are chosen; None leaves non-maximum suppression out.
        resize: Take pictures of any size and stretch them to the model's resolution.
        half: Weights, and what is computed up to the raw outputs, in float16.
    """

    layout: Layout = "nchw"
    keep: KeepRule | None = None
    resize: bool = False
    half: bool = False


class ExportGraph(nn.Module, ABC):
    """A model as a function of pixels that gives a tuple of tensors.

    Args:
        model: One of ``mnvision.models``; a folded copy of it is held.
        options: See :class:`GraphOptions`.

    Attributes:
        names: Of the outputs, in their order.
        resolution: Height and width of the network's input.

    Raises:
        UserError: A batch normalisation cannot be folded.
    """

    names: tuple[str, ...]

    def __init__(self, model: Any, options: GraphOptions) -> None:
        super().__init__()
        self.resolution: tuple[int, int] = model.resolution
        self.options = options
        # Contiguous, whatever the training had: converters take other memory orders for other shapes.
        self.model = folded(model).to("cpu", memory_format=torch.contiguous_format).requires_grad_(False)
        if options.half:
            _halve(self.model)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answers for uint8 RGB images ``(B, 3, H, W)``, or ``(B, H, W, 3)`` for the layout "nhwc".

        H and W are the model's resolution, or any where the graph resizes.
        """
        pixels = images.permute(0, 3, 1, 2) if self.options.layout == "nhwc" else images
        size = (pixels.shape[2], pixels.shape[3])
        if self.options.resize:
            # Antialiased: a large photo shrunk by plain interpolation would skip most of its pixels.
            pixels = F.interpolate(pixels.float(), self.resolution, mode="bilinear", antialias=True)
        return self.answers(pixels, size)

    @abstractmethod
    def answers(self, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The outputs for pixels ``(B, 3, H, W)`` at the model's resolution of pictures of (height, width) ``size``."""

    def example(self, batch: int) -> Tensor:
        """Pixels of the right shape to trace the graph with."""
        height, width = self.resolution
        if self.options.resize:
            height, width = height + 17, width + 31
        shape = (batch, 3, height, width) if self.options.layout == "nchw" else (batch, height, width, 3)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


class VectorGraph(ExportGraph):
    """One row of numbers per image, as the model's own decoder gives it. Arguments as :class:`ExportGraph`."""

    def __init__(self, model: Any, options: GraphOptions) -> None:
        super().__init__(model, options)
        self.names = (VECTORS[model.kind],)

    def answers(self, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """See :meth:`ExportGraph.answers`."""
        return (self.model.predict(pixels),)


class DetectionGraph(ExportGraph):
    """Boxes in pixels of the picture that goes in. Arguments as :class:`ExportGraph`.

    With non-maximum suppression boxes, scores, classes and count as :class:`Suppress` gives them, else boxes and
    scores of every default box as :class:`Decode` does.
    """

    def __init__(self, model: Any, options: GraphOptions) -> None:
        super().__init__(model, options)
        decoder = model.decoder
        self.decode = Decode(model.head.default_boxes, decoder.classification, self.resolution)
        self.suppress = None if options.keep is None else Suppress(NmsSettings.of(decoder), options.keep)
        self.names = ("boxes", "scores") if self.suppress is None else ("boxes", "scores", "classes", "count")

    def answers(self, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """See :meth:`ExportGraph.answers`."""
        found: tuple[Tensor, ...] = self.decode(self.model(pixels))
        if self.suppress is not None:
            found = self.suppress(*found)
        if not self.options.resize:
            return found
        height, width = self.resolution
        x, y = size[1] / width, size[0] / height
        left, top, right, bottom = found[0].unbind(-1)
        return (torch.stack([left * x, top * y, right * x, bottom * y], dim=-1), *found[1:])


def build_graph(model: Any, options: GraphOptions) -> ExportGraph:
    """The graph of a model.

    Raises:
        UserError: A kind of model that cannot be exported.
    """
    if model.kind in VECTORS:
        return VectorGraph(model, options)
    if hasattr(getattr(model, "head", None), "default_boxes"):
        return DetectionGraph(model, options)
    raise UserError(
        f"a {model.kind} model with {type(getattr(model, 'head', None)).__name__} cannot be exported; what can: SSD "
        f"detectors, {', '.join(VECTORS)}"
    )


def _halve(model: Any) -> None:
    """Float16 weights; default boxes stay float32, where half a pixel would be lost otherwise."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    model.mean, model.std = model.mean.half(), model.std.half()
