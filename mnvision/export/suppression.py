"""The last steps of a detector in a form that every export format can hold.

The same result as :class:`~mnvision.boxes.postprocess.SSDDecoder`, written with static shapes and without branches
on the data. What differs between formats is only which candidates are kept: a :data:`KeepRule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnvision.boxes.coder import decode_boxes
from mnvision.boxes.nms import kept_per_class
from mnvision.boxes.postprocess import has_area
from mnvision.types import SSDOutputs


@dataclass(frozen=True)
class NmsSettings:
    """Settings of non-maximum suppression, named and meant as those of :class:`SSDDecoder`.

    Attributes:
        score_threshold: Scores must be above it.
        nms_iou: Boxes of one class that overlap a better one by more than this are dropped.
        pre_nms_top_k: Candidates per image.
        max_per_class: Detections per class of an image.
        max_detections: Detections per image, D.
    """

    score_threshold: float
    nms_iou: float
    pre_nms_top_k: int
    max_per_class: int
    max_detections: int

    @classmethod
    def of(cls, decoder: Any) -> NmsSettings:
        """Those of a decoder that has attributes of these names."""
        return cls(**{name: getattr(decoder, name) for name in cls.__dataclass_fields__})


KeepRule = Callable[[Tensor, Tensor, Tensor, int, NmsSettings], Tensor]
"""Boxes ``(B, M, 4)``, scores ``(B, M)`` (best first; 0 is no candidate), labels ``(B, M)``, the number of classes
and the settings -> ``(B, M)`` bool, true where a candidate survives."""


class Decode(nn.Module):
    """Raw outputs of an SSD head to boxes and scores of every default box.

    Args:
        default_boxes: ``(A, 4)`` float32 xyxy in pixels of the network's input.
        classification: As in :class:`SSDDecoder`.
        resolution: Height and width of the network's input, to which boxes are clipped.
    """

    default_boxes: Tensor
    limits: Tensor

    def __init__(self, default_boxes: Tensor, classification: str, resolution: tuple[int, int]) -> None:
        super().__init__()
        height, width = resolution
        self.softmax = classification == "softmax"
        self.register_buffer("default_boxes", default_boxes.detach().clone(), persistent=False)
        self.register_buffer("limits", torch.tensor([width, height, width, height]).float(), persistent=False)

    def forward(self, outputs: SSDOutputs) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, A, 4)`` float32, xyxy in pixels, and scores ``(B, A, K)`` float32 without background."""
        logits = outputs["cls_logits"].float()
        scores = logits.softmax(dim=-1) if self.softmax else logits.sigmoid()
        boxes = decode_boxes(outputs["box_offsets"], self.default_boxes)
        return torch.minimum(boxes.clamp(min=0), self.limits), scores[..., 1:]


class Suppress(nn.Module):
    """Boxes and scores of every default box to the best detections of each image.

    Args:
        settings: What is kept.
        keep: How candidates are chosen.
    """

    def __init__(self, settings: NmsSettings, keep: KeepRule) -> None:
        super().__init__()
        self.settings = settings
        self.keep = keep

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :class:`Decode` for what goes in; boxes may also be ``(B, A, K, 4)``, one for each class.

        Returns:
            Boxes ``(B, D, 4)`` float32, scores ``(B, D)`` float32, classes ``(B, D)`` int64 and count ``(B,)`` int64,
            best first; rows from ``count`` on are padding: zeros, class -1.
        """
        num_classes, settings = scores.shape[2], self.settings
        flat = torch.where(scores > settings.score_threshold, scores, 0.0).flatten(1)
        best, index = flat.topk(min(settings.pre_nms_top_k, flat.shape[1]), dim=1)
        labels = index % num_classes
        boxes, rows = (boxes, index // num_classes) if boxes.ndim == 3 else (boxes.flatten(1, 2), index)
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        best = torch.where(has_area(boxes), best, 0.0)
        kept = self.keep(boxes, best, labels, num_classes, settings) & (best > 0)
        return first_kept(boxes, best, labels, kept, settings.max_detections)


def first_kept(
    boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first ``count`` kept candidates of each image, in their order, and how many there are.

    Args:
        boxes: ``(B, M, 4)``.
        scores: ``(B, M)``.
        labels: ``(B, M)`` int64.
        kept: ``(B, M)`` bool.
        count: Rows of an image in what is returned.

    Returns:
        As :meth:`Suppress.forward`.
    """
    total = scores.shape[1]
    # Different numbers, the kept ones lowest: no ties, which runtimes would break each in its own way.
    place = torch.arange(total, device=scores.device, dtype=torch.float32) + torch.where(kept, 0.0, float(total))
    place, index = place.topk(min(count, total), dim=1, largest=False)
    real = place < total
    boxes = torch.where(real[..., None], boxes.gather(1, index[..., None].expand(-1, -1, 4)), 0.0)
    scores = torch.where(real, scores.gather(1, index), 0.0)
    labels = torch.where(real, labels.gather(1, index), -1)
    missing = max(count - total, 0)
    if missing:
        boxes = nn.functional.pad(boxes, (0, 0, 0, missing))
        scores = nn.functional.pad(scores, (0, missing))
        labels = nn.functional.pad(labels, (0, missing), value=-1)
    return boxes, scores, labels, real.sum(dim=1)


def keep_greedily(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, settings: NmsSettings) -> Tensor:
    """The :data:`KeepRule` of this library, for eager torch."""
    return kept_per_class(boxes, scores, labels, num_classes, settings.nms_iou, settings.max_per_class)
