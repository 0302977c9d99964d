"""Other people's detections in the one form that students read: fractions of the input, best first, padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnvision.teachers.base import Outputs

NO_CLASS = ("N/A", "__background__")
"""Names that stand for numbers which no object has, as in COCO's 90 ids for 80 classes."""


def label_table(names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """From a detector's labels, 0 being background, to ``0 .. K-1`` without gaps.

    Args:
        names: One per label, background and gaps included.

    Returns:
        ``(len(names),)`` int64, -1 for background and gaps, and the K names of the rest.
    """
    kept = [label for label, name in enumerate(names) if label > 0 and name not in NO_CLASS]
    table = torch.full((len(names),), -1, dtype=torch.int64)
    table[kept] = torch.arange(len(kept))
    return table, tuple(names[label] for label in kept)


def padded(boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[float, float], count: int) -> Outputs:
    """The best detections of one picture.

    Args:
        boxes: ``(N, 4)`` xyxy in units of which the picture has ``size``.
        scores: ``(N,)``.
        labels: ``(N,)``; rows below 0 are left out, as are boxes without area and values that are not numbers.
        size: Height and width of the picture.
        count: D.

    Returns:
        "boxes" ``(D, 4)`` float32 as fractions, clipped to 0..1; "scores" ``(D,)`` float32; "labels" ``(D,)`` int64;
        padding rows are 0, their label -1.
    """
    height, width = size
    boxes = (boxes.float() / boxes.new_tensor([width, height, width, height], dtype=torch.float32)).clamp(0, 1)
    real = (labels >= 0) & scores.isfinite() & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    rows = real.nonzero().flatten()
    rows = rows[scores[rows].sort(descending=True, stable=True).indices[:count]]
    found = len(rows)
    outputs = {
        "boxes": boxes.new_zeros(count, 4),
        "scores": boxes.new_zeros(count),
        "labels": torch.full((count,), -1, dtype=torch.int64, device=boxes.device),
    }
    for name, values in (("boxes", boxes), ("scores", scores.float()), ("labels", labels.long())):
        outputs[name][:found] = values[rows]
    return outputs


def stacked(pictures: Sequence[Outputs]) -> Outputs:
    """The outputs of several pictures as one batch."""
    return {name: torch.stack([outputs[name] for outputs in pictures]) for name in pictures[0]}
