"""Pictures of one fixed size stretched to a network's input, inside a file: two products with constant matrices.

The numbers are those of ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``, for which few formats
have an operator: a triangle as wide as what a pixel of the result covers, so that a large photo loses no pixels
between two samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRETCH = "stretch"
"""What :class:`Stretch` is called in a graph: its matrices are no layers."""
_BLOCK = 16
"""Rows of a matrix that are multiplied at once. Nearly all of a matrix is zeros: 16 rows of one from 640 to 224 reach
over 52 columns. Measured: 480 x 640 to 224 x 224 takes 1.5 ms in LiteRT, and 14 ms with whole matrices."""


class Stretch(nn.Module):
    """Pictures of one size stretched to another, antialiased.

    Args:
        size: Height and width that go in.
        resolution: Height and width to reach.
    """

    def __init__(self, size: tuple[int, int], resolution: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.resolution = size, resolution
        self.spans: dict[int, list[tuple[int, int]]] = {}
        for axis in (0, 1):
            self.spans[axis] = []
            if size[axis] != resolution[axis]:
                self._add(axis, triangle_weights(size[axis], resolution[axis]))
        self.order = sorted((axis for axis in (0, 1) if self.spans[axis]), key=self._first, reverse=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, h, w)`` float32 0..255 of ``(B, 3, H, W)`` uint8."""
        images = pixels.float()
        for axis in self.order:
            # Along rows, which lie together in memory.
            turned = images.transpose(2, 3) if axis == 0 else images
            images = self._along_rows(turned, axis)
            images = images.transpose(2, 3) if axis == 0 else images
        return images

    def _along_rows(self, images: Tensor, axis: int) -> Tensor:
        """``(B, 3, N, m)`` of ``(B, 3, N, n)``."""
        lines = images.reshape(-1, self.size[axis])
        parts = [
            torch.mm(lines[:, start:end], getattr(self, f"axis{axis}_{number}"))
            for number, (start, end) in enumerate(self.spans[axis])
        ]
        return torch.cat(parts, dim=1).reshape(-1, 3, images.shape[2], self.resolution[axis])

    def _add(self, axis: int, weights: Tensor) -> None:
        for number, rows in enumerate(weights.split(_BLOCK)):
            used = rows.ne(0).any(dim=0).nonzero().flatten()
            start, end = int(used[0]), int(used[-1]) + 1
            self.register_buffer(f"axis{axis}_{number}", rows[:, start:end].T.contiguous())
            self.spans[axis].append((start, end))

    def _first(self, axis: int) -> tuple[float, int]:
        """The axis that shrinks more goes first, for then less is left for the other; else rows, as they lie."""
        return self.size[axis] / self.resolution[axis], axis


class AtSize(nn.Module):
    """A model as its file with a stretch inside is used: it takes pictures of another size than its network.

    Args:
        model: One of ``mnvision.models``, or a multi-task model, whose other attributes are this one's, too.
        size: Height and width of the pictures.

    Attributes:
        resolution: ``size``.
        network: The model's own height and width.
    """

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.inner = model
        self.resolution, self.network = size, tuple(model.resolution)

    def __getattr__(self, name: str) -> Any:
        """Of the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def state_dict(self, *given: Any, **options: Any) -> Any:
        """The model's own, by which a proof knows whose files it looks at."""
        return self.inner.state_dict(*given, **options)

    def part(self, name: str) -> AtSize:
        """One head of a multi-task model."""
        return AtSize(self.inner.part(name), self.resolution)

    def predict(self, images: Tensor, *names: Any) -> Any:
        """The model's answers for uint8 images ``(B, 3, H, W)``, boxes in pixels of those."""
        # In float64: torch's own weights in float32 are off by 0.005 of a pixel's 255, which some networks blow up.
        pixels = F.interpolate(images.double(), self.network, mode="bilinear", antialias=True).float()
        found = self.inner.predict(pixels, *names)
        if self.inner.kind != "multitask":
            return self._scaled(found)
        return {name: self._scaled(answer) for name, answer in found.items()}

    def _scaled(self, found: Any) -> Any:
        if not (isinstance(found, dict) and "boxes" in found):
            return found
        (height, width), (rows, columns) = self.resolution, self.network
        scale = found["boxes"].new_tensor([width / columns, height / rows] * 2)
        return {**found, "boxes": found["boxes"] * scale}


def at_size(model: Any, size: tuple[int, int] | None) -> Any:
    """The model itself, or as it answers for pictures of one other size."""
    return model if size is None else AtSize(model, size)


def stretched(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Images ``(B, 3, H, W)`` of any size as ``(B, 3, h, w)`` float32.

    Antialiased: a large photo shrunk by plain interpolation would skip most of its pixels.
    """
    return F.interpolate(images.float(), resolution, mode="bilinear", antialias=True)


def triangle_weights(length: int, result: int) -> Tensor:
    """``(result, length)`` float32: what each pixel of a line of ``length`` gives to each pixel of the result.

    Source: Pillow's ``ImagingResample`` with its triangle filter, which torch's antialiased resize follows.
    """
    scale = length / result
    reach = max(scale, 1.0)
    centres = (torch.arange(result, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(length, dtype=torch.float64) + 0.5
    weights = (1 - (pixels - centres[:, None]).abs() / reach).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
