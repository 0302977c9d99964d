"""What is exported: pixels in, finished answers out, with nothing that a runtime would have to know beside.

Needs torch only, so that a converter in an environment of its own can build it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.export import regions
from mnvision.export.folding import folded
from mnvision.export.stretch import Stretch, stretched
from mnvision.export.suppression import Decode, KeepRule, NmsSettings, Suppress, keep_greedily

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
        proposals: How those of a Faster R-CNN are chosen, which nothing leaves out; None is as ``keep``, or as in eager
            torch where that is None, too.
        resize: Stretch pictures to the model's resolution: True takes those of any size, (height, width) of that one.
        half: Weights, and what is computed up to the raw outputs, in float16.
    """

    layout: Layout = "nchw"
    keep: KeepRule | None = None
    proposals: KeepRule | None = None
    resize: bool | tuple[int, int] = False
    half: bool = False


class Answers(nn.Module, ABC):
    """From a model's raw outputs to finished answers.

    Attributes:
        names: Of the answers, in their order.
    """

    names: tuple[str, ...]

    @abstractmethod
    def forward(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The answers for raw outputs of pictures of (height, width) ``size``."""


class VectorAnswers(Answers):
    """One row of numbers per image, as the model's own decoder gives it.

    Args:
        model: One of ``mnvision.models``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.names = (VECTORS[model.kind],)

    def forward(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """See :meth:`Answers.forward`."""
        return (self.decoder(raw),)


class BoxAnswers(Answers):
    """Boxes in pixels of the picture that goes in.

    With non-maximum suppression boxes, scores, classes and count as :class:`Suppress` gives them, else boxes and
    scores of every default box as :class:`Decode` does, or of every proposal as
    :class:`~mnvision.export.regions.DecodeRegions` does.

    Args:
        model: An SSD detector, or a Faster R-CNN.
        options: See :class:`GraphOptions`.
    """

    def __init__(self, model: Any, options: GraphOptions) -> None:
        super().__init__()
        decoder = model.decoder
        self.resolution: tuple[int, int] = model.resolution
        self.scaled = bool(options.resize)
        self.decode: nn.Module = (
            regions.DecodeRegions(self.resolution)
            if model.kind == regions.KIND
            else Decode(model.head.default_boxes, decoder.classification, self.resolution)
        )
        self.suppress = None if options.keep is None else Suppress(NmsSettings.of(decoder), options.keep)
        self.names = ("boxes", "scores") if self.suppress is None else ("boxes", "scores", "classes", "count")

    def forward(self, raw: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """See :meth:`Answers.forward`."""
        found: tuple[Tensor, ...] = self.decode(raw)
        if self.suppress is not None:
            found = self.suppress(*found)
        if not self.scaled:
            return found
        height, width = self.resolution
        x, y = size[1] / width, size[0] / height
        left, top, right, bottom = found[0].unbind(-1)
        return (torch.stack([left * x, top * y, right * x, bottom * y], dim=-1), *found[1:])


class ExportGraph(nn.Module):
    """A model as a function of pixels that gives a tuple of tensors.

    Args:
        model: One of ``mnvision.models``, or a multi-task model; a folded copy of it is held.
        options: See :class:`GraphOptions`.

    Attributes:
        names: Of the outputs, in their order; those of a multi-task model begin with their head's, ``ssd_boxes``.
        resolution: Height and width of the network's input.
        size: Height and width of the pictures that go in; of a graph that takes any, the network's.

    Raises:
        UserError: A batch normalisation cannot be folded, a kind of model cannot be exported, or the heads of a
            multi-task model need more than one pass of the trunk.
    """

    def __init__(self, model: Any, options: GraphOptions) -> None:
        super().__init__()
        heads = heads_of(model)
        self.resolution: tuple[int, int] = model.resolution
        self.options = options
        fixed = options.resize if isinstance(options.resize, tuple) else None
        self.size = fixed or self.resolution
        self.stretch = Stretch(fixed, self.resolution) if fixed else None
        # Contiguous, whatever the training had: converters take other memory orders for other shapes.
        self.model = folded(model).to("cpu", memory_format=torch.contiguous_format).requires_grad_(False)
        if options.half:
            _halve(self.model)
        models = {name: self.model.part(name) if name else self.model for name in heads}
        for part in models.values():
            regions.make_static(part, options.proposals or options.keep or keep_greedily)
        parts = {name: _answers(part, options) for name, part in models.items()}
        self.finishes = nn.ModuleList(parts.values())
        self.heads = tuple(heads)
        self.names = tuple(output_name(head, name) for head, part in parts.items() for name in part.names)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answers for uint8 RGB images ``(B, 3, H, W)``, or ``(B, H, W, 3)`` for the layout "nhwc".

        H and W are :attr:`size`, or any where the graph resizes.
        """
        pixels = images.permute(0, 3, 1, 2) if self.options.layout == "nhwc" else images
        size = (pixels.shape[2], pixels.shape[3])
        if self.stretch is not None:
            pixels = self.stretch(pixels)
        elif self.options.resize:
            pixels = stretched(pixels, self.resolution)
        raw = self.model(pixels)
        answers: tuple[Tensor, ...] = ()
        for head, finish in zip(self.heads, self.finishes, strict=True):
            answers += finish(raw[head] if head else raw, size)
        return answers

    def example(self, batch: int) -> Tensor:
        """Pixels of the right shape to trace the graph with."""
        height, width = self.size
        if self.options.resize is True:
            height, width = height + 17, width + 31
        shape = (batch, 3, height, width) if self.options.layout == "nchw" else (batch, height, width, 3)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def build_graph(model: Any, options: GraphOptions) -> ExportGraph:
    """The graph of a model.

    Raises:
        UserError: As :class:`ExportGraph`.
    """
    return ExportGraph(model, options)


def heads_of(model: Any) -> tuple[str, ...]:
    """Names of the heads; one empty name for a single-task model.

    Raises:
        UserError: The heads of a multi-task model need more than one pass of the trunk.
    """
    if model.kind != "multitask":
        return ("",)
    passes = model.passes()
    if len(passes) > 1:
        groups = " and ".join(f"[{','.join(names)}]" for _, names in passes)
        raise UserError(
            f"one file runs the trunk once, but these heads need {len(passes)} runs of it (other resolutions, or norms "
            f"of their own): export heads={groups} one after the other"
        )
    return tuple(model.names)


def output_name(head: str, name: str) -> str:
    """What an output of a head is called in a file: ``boxes``, or ``ssd_boxes`` where there are several heads."""
    return f"{head}_{name}" if head else name


def _answers(model: Any, options: GraphOptions) -> Answers:
    if model.kind in VECTORS:
        return VectorAnswers(model)
    if model.kind == regions.KIND or hasattr(getattr(model, "head", None), "default_boxes"):
        return BoxAnswers(model, options)
    raise UserError(
        f"a {model.kind} model with {type(getattr(model, 'head', None)).__name__} cannot be exported; what can: SSD "
        f"detectors, Faster R-CNN, {', '.join(VECTORS)}"
    )


def _halve(model: Any) -> None:
    """Float16 weights; default boxes and anchors stay float32, where half a pixel would be lost otherwise."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    model.mean, model.std = model.mean.half(), model.std.half()
