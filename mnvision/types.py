"""The shapes of what travels between data, models, losses and metrics.

Letters used in all docstrings: B images of a batch, A default boxes, N objects of one image (padded to the
largest count of the batch), K classes without background, D kept detections per image, H and W pixels.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from torch import Tensor


class DetectionTargets(TypedDict):
    """Ground truth of one batch, padded.

    Attributes:
        boxes: ``(B, N, 4)`` float32, xyxy in pixels of the network's input. Padding rows are zero.
        labels: ``(B, N)`` int64, ``0 .. K-1``; ``-1`` marks padding.
        crowd: ``(B, N)`` bool, true for regions that hold many objects (COCO ``iscrowd``): never matched, and
            default boxes inside them are not negatives either.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class TeacherFields(TypedDict):
    """What a batch has besides where a teacher takes part: one of the two.

    Attributes:
        teacher_images: ``(B, 3, h, w)`` uint8 RGB, the same part of the same pictures at the teacher's resolution.
        teacher_outputs: The teacher's stored answers by name, ``(B, ...)`` float16.
    """

    teacher_images: NotRequired[Tensor]
    teacher_outputs: NotRequired[dict[str, Tensor]]


class DetectionBatch(TeacherFields):
    """What a detection loader gives.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB.
        targets: See :class:`DetectionTargets`.
        image_ids: ``(B,)`` int64, the data set's own ids.
        sizes: ``(B, 2)`` int64, height and width of the original pictures (after EXIF orientation).
    """

    images: Tensor
    targets: DetectionTargets
    image_ids: Tensor
    sizes: Tensor


class ClassificationBatch(TeacherFields):
    """What a classification loader gives.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB.
        labels: ``(B,)`` int64, ``0 .. K-1``; ``-1`` where there is none.
        indices: ``(B,)`` int64, position of the sample in its data set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class GeolocationBatch(ClassificationBatch):
    """What a loader of pictures with places gives: cells as labels, ``-1`` outside every cell, and the places.

    Attributes:
        coordinates: ``(B, 2)`` float64, latitude and longitude in degrees.
    """

    coordinates: Tensor


class AttributeBatch(TeacherFields):
    """What a loader of labelled attributes gives.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB.
        labels: ``(B, A)`` int8: 1 yes, 0 no, ``-1`` not known.
        indices: ``(B,)`` int64, position of the sample in its data set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class IdentityBatch(TeacherFields):
    """What a loader of pictures of people gives.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB.
        labels: ``(B,)`` int64, number of the identity; ``-1`` not known.
        indices: ``(B,)`` int64, position of the sample in its data set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class JointPart(TypedDict):
    """What one head learns from a group of pictures.

    Attributes:
        head: Its name.
        rows: ``(b,)`` int64, b >= 1: the pictures of the group that it has labels for, in the order of ``batch``.
        batch: A batch of the head's own kind (:class:`DetectionBatch` and so on) without ``images``.
    """

    head: str
    rows: Tensor
    batch: dict[str, Any]


class JointGroup(TypedDict):
    """Pictures of one size that pass through the trunk together.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB.
        parts: What the heads learn from them. Every picture is a row of at least one part; where pictures carry labels
            of several heads, rows of several.
    """

    images: Tensor
    parts: list[JointPart]


class JointBatch(TypedDict):
    """What a step of several heads takes.

    Attributes:
        groups: At least one. A head may have no part in a step, or several: one for each of its batches that the step
            takes.
    """

    groups: list[JointGroup]


class SSDOutputs(TypedDict):
    """Raw outputs of an SSD head; column 0 of the logits is background.

    Attributes:
        cls_logits: ``(B, A, K + 1)``.
        box_offsets: ``(B, A, 4)``: dx, dy, dw, dh relative to the default boxes, see ``boxes/coder.py``.
    """

    cls_logits: Tensor
    box_offsets: Tensor


class Proposals(TypedDict):
    """What the region proposal network of a Faster R-CNN gives; P proposals of each image.

    Attributes:
        objectness: ``(B, A)`` logits of the anchors.
        anchor_offsets: ``(B, A, 4)``: dx, dy, dw, dh relative to the anchors, see ``boxes/coder.py``.
        proposals: ``(B, P, 4)`` float32, xyxy in pixels of the network's input, best first, without gradient.
            Padding rows are zero.
        proposal_scores: ``(B, P)`` float32 in (0, 1]; 0 in padding rows.
    """

    objectness: Tensor
    anchor_offsets: Tensor
    proposals: Tensor
    proposal_scores: Tensor


class RegionOutputs(Proposals):
    """Raw outputs of a Faster R-CNN; column 0 of the logits is background.

    Attributes:
        cls_logits: ``(B, P, K + 1)``.
        box_offsets: ``(B, P, K, 4)``: one set of offsets per class, relative to the proposals.
    """

    cls_logits: Tensor
    box_offsets: Tensor


class Detections(TypedDict):
    """Decoded detections, padded, best score first.

    Attributes:
        boxes: ``(B, D, 4)`` float32, xyxy in pixels of the network's input (or of the original picture once
            rescaled, which the producing function states).
        scores: ``(B, D)`` float32 in [0, 1]; 0 in padding rows.
        labels: ``(B, D)`` int64, ``0 .. K-1``; ``-1`` marks padding.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
