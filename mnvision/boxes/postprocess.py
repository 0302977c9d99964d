"""From the raw outputs of a detector's head to detections.

Source: the post-processing of the TensorFlow Object Detection API's ``ssd_mobilenet_v1_coco.config`` and
``faster_rcnn_inception_v2_coco.config``: per-class non-maximum suppression at IoU 0.6, at most 100 per class; 100 in
total, as COCO counts (TF's Faster R-CNN keeps 300).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.boxes.coder import decode_boxes
from mnvision.boxes.nms import kept_per_class
from mnvision.errors import UserError
from mnvision.types import Detections, RegionOutputs, SSDOutputs

BoxesOf = Callable[[Tensor, Tensor], Tensor]
"""``(B, M)`` rows and labels of candidates to their ``(B, M, 4)`` boxes."""


class _ScoreDecoder(nn.Module):
    """What the decoders of all detectors share; arguments as those of :class:`SSDDecoder`."""

    def __init__(
        self,
        classification: Literal["softmax", "sigmoid", "focal"] = "softmax",
        score_threshold: float = 0.01,
        nms_iou: float = 0.6,
        pre_nms_top_k: int = 1000,
        max_per_class: int = 100,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if classification not in ("softmax", "sigmoid", "focal"):
            raise UserError(f"classification must be softmax, sigmoid or focal, got {classification!r}")
        if not 0 <= score_threshold < 1:
            raise UserError(f"score_threshold must lie in [0, 1), got {score_threshold}")
        if not 0 < nms_iou <= 1:
            raise UserError(f"nms_iou must lie in (0, 1], got {nms_iou}")
        for name, value in (
            ("pre_nms_top_k", pre_nms_top_k),
            ("max_per_class", max_per_class),
            ("max_detections", max_detections),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        self.classification = classification
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.pre_nms_top_k = pre_nms_top_k
        self.max_per_class = max_per_class
        self.max_detections = max_detections

    def _decode(self, logits: Tensor, boxes_of: BoxesOf, resolution: tuple[int, int]) -> Detections:
        """Detections of ``(B, A, K + 1)`` logits, their boxes clipped to ``resolution``."""
        with torch.autocast(logits.device.type, enabled=False):
            scores, rows, labels = self._candidates(logits)
            boxes = clip_boxes(boxes_of(rows, labels), resolution)
            scores = torch.where(has_area(boxes) & (scores > self.score_threshold), scores, 0.0)
            scores = self._suppress(boxes, scores, labels, logits.shape[2])
            return _best(boxes, scores, labels, self.max_detections)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, M)`` scores, best first, their rows and labels; 0 where not above the threshold."""
        logits = logits.float()
        scores = logits.softmax(dim=-1) if self.classification == "softmax" else logits.sigmoid()
        # A score that is not a number becomes 0: it can neither be kept nor take a candidate's place.
        scores.nan_to_num_(nan=0.0)
        rows = self._promising(scores)
        scores = scores.gather(1, rows[..., None].expand(-1, -1, scores.shape[2]))
        # The background column stays, as zeros: a copy without it would cost more than the top-k.
        scores[..., 0] = 0.0
        columns = scores.shape[2]
        scores = F.threshold(scores, self.score_threshold, 0.0, inplace=True).flatten(1)
        best, index = scores.topk(min(self.pre_nms_top_k, scores.shape[1]), dim=1)
        used = max(int((best > 0).sum(dim=1).max()), 1)
        best, index = best[:, :used], index[:, :used]
        return best, rows.gather(1, index // columns), (index % columns - 1).clamp_(min=0)

    def _promising(self, scores: Tensor) -> Tensor:
        """``(B, R)`` indices of boxes, among them all that have a class score above the threshold.

        Most boxes see background only; leaving them out makes the top-k of all scores cheaper. R is
        the largest count of the batch, so the choice never changes the result.
        """
        if self.classification == "softmax":
            # With a margin for the rounding of the sum of the class scores.
            bound = 1.01 * (1 - scores[..., 0]) + 1e-6
        else:
            bound = scores[..., 1:].amax(dim=-1)
        count = int((bound > self.score_threshold).sum(dim=1).max())
        return bound.topk(max(count, 1), dim=1, sorted=False).indices

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, num_columns: int) -> Tensor:
        """``(B, M)`` scores with those of suppressed candidates set to 0."""
        kept = kept_per_class(boxes, scores, labels, num_columns, self.nms_iou, self.max_per_class)
        return torch.where(kept, scores, 0.0)


class SSDDecoder(_ScoreDecoder):
    """Scores, decoding, per-class non-maximum suppression of a whole batch, without a loop over images.

    Per image the ``pre_nms_top_k`` highest scores over all boxes and classes go into the suppression (one box may be
    there under several classes).

    Args:
        classification: As in the loss: "softmax", or "sigmoid" / "focal" for sigmoid scores.
        score_threshold: Scores must be above it; in [0, 1).
        nms_iou: Boxes of one class that overlap a better one by more than this are dropped; in (0, 1].
        pre_nms_top_k: Candidates per image, at least 1.
        max_per_class: Detections per class of an image, at least 1.
        max_detections: Detections per image, D, at least 1.

    Raises:
        UserError: An argument outside its range.
    """

    @torch.no_grad()
    def forward(self, outputs: SSDOutputs, default_boxes: Tensor, resolution: tuple[int, int]) -> Detections:
        """Decode one batch.

        Args:
            outputs: Raw outputs of the head, any float type; computed with in float32.
            default_boxes: ``(A, 4)`` float32 xyxy in pixels of the network's input.
            resolution: Height and width of the network's input; boxes are clipped to it.

        Returns:
            Detections in pixels of the network's input, D = ``max_detections`` rows per image. Candidates
            with a score or box that is not a number, or with no area left after clipping, are dropped.
        """
        offsets = outputs["box_offsets"]

        def boxes_of(rows: Tensor, labels: Tensor) -> Tensor:
            return decode_boxes(_rows(offsets, rows), default_boxes[rows])

        return self._decode(outputs["cls_logits"], boxes_of, resolution)


class RegionDecoder(_ScoreDecoder):
    """The same for a Faster R-CNN, whose proposals take the place of default boxes and whose offsets go by class.

    Args:
        score_threshold: Scores must be above it; in [0, 1).
        nms_iou: Boxes of one class that overlap a better one by more than this are dropped; in (0, 1].
        pre_nms_top_k: Candidates per image, at least 1.
        max_per_class: Detections per class of an image, at least 1.
        max_detections: Detections per image, D, at least 1.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(
        self,
        score_threshold: float = 0.01,
        nms_iou: float = 0.6,
        pre_nms_top_k: int = 1000,
        max_per_class: int = 100,
        max_detections: int = 100,
    ) -> None:
        super().__init__("softmax", score_threshold, nms_iou, pre_nms_top_k, max_per_class, max_detections)

    @torch.no_grad()
    def forward(self, outputs: RegionOutputs, resolution: tuple[int, int]) -> Detections:
        """Decode one batch.

        Args:
            outputs: Of the whole network, any float type; computed with in float32.
            resolution: Height and width of the network's input; boxes are clipped to it.

        Returns:
            As :meth:`SSDDecoder.forward`. Rows that pad the proposals give nothing.
        """
        proposals, offsets = outputs["proposals"], outputs["box_offsets"]
        num_classes = offsets.shape[2]

        def boxes_of(rows: Tensor, labels: Tensor) -> Tensor:
            chosen = _rows(offsets.flatten(1, 2), rows * num_classes + labels)
            return decode_boxes(chosen, _rows(proposals, rows))

        padding = outputs["proposal_scores"] == 0
        logits = outputs["cls_logits"].clone()
        logits[..., 1:].masked_fill_(padding[..., None], -torch.inf)
        return self._decode(logits, boxes_of, resolution)


def clip_boxes(boxes: Tensor, resolution: tuple[int, int]) -> Tensor:
    """``(..., 4)`` xyxy boxes cut at the edges of an input of this height and width."""
    height, width = resolution
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def has_area(boxes: Tensor) -> Tensor:
    """``(...)`` bool: whether boxes ``(..., 4)`` xyxy are more than a line."""
    return ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """``(B, M, 4)`` rows of ``(B, A, 4)`` by ``(B, M)`` indices."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, count: int) -> Detections:
    """The ``count`` best candidates of each image; rows of score 0 become padding."""
    scores, index = scores.sort(dim=1, descending=True, stable=True)
    index, scores = index[:, :count], scores[:, :count]
    real = scores > 0
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4)).masked_fill(~real[..., None], 0.0)
    labels = labels.gather(1, index).masked_fill(~real, -1)
    missing = count - scores.shape[1]
    return {
        "boxes": F.pad(boxes, (0, 0, 0, missing)),
        "scores": F.pad(scores, (0, missing)),
        "labels": F.pad(labels, (0, missing), value=-1),
    }
