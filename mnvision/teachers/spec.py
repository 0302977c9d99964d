"""What is known of a teacher before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

KINDS = ("classification", "face_attributes", "face_embeddings", "geolocation", "detection", "ssd")


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's input, outputs and cost.

    Attributes:
        name: For messages, e.g. "teacher timm/resnet50.a1_in1k".
        kind: One of :data:`KINDS`; "detection" gives boxes, scores and labels, "ssd" the raw outputs of an SSD of
            ours.
        resolution: Height and width of its input in pixels; (0, 0) for outputs computed earlier, which are looked up
            and not run.
        outputs: Name -> shape for one picture:
            "logits" ``(K,)`` before softmax; "attribute_logits" ``(A,)`` before the sigmoid; "embedding" ``(D,)`` of
            length 1; "cls_logits" ``(A, K + 1)`` and "box_offsets" ``(A, 4)`` as in
            :class:`~mnvision.types.SSDOutputs`; "boxes" ``(D, 4)`` xyxy as fractions 0..1 of the input, "scores"
            ``(D,)`` in 0..1 and "labels" ``(D,)``, -1 in padding rows; "features_<stride>" ``(C, h, w)``.
        class_names: Of the classes or attributes, background not among them; None if they are not known.
        parameters: Number of values in its weights; 0 where nothing is run.
        multiply_adds: For one picture, convolutions and matrix products; of a black one for
            detectors whose cost depends on it. None where they cannot be counted.
        default_boxes: ``(A, 4)`` float32 xyxy as fractions of the input, of an SSD of ours.
        preprocess: How the pictures that it was trained on were laid out, where a checkpoint says so. What it is
            shown is the student's crop.
        calibration: What a checkpoint holds beside weights and names, such as where its cells lie.
    """

    name: str
    kind: str
    resolution: tuple[int, int]
    outputs: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...] | None
    parameters: int
    multiply_adds: int | None = None
    default_boxes: Tensor | None = field(default=None, compare=False, repr=False)
    preprocess: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def describe_outputs(self) -> str:
        """Names and shapes in words: ``logits (1000)``."""
        return ", ".join(f"{name} ({' x '.join(map(str, shape))})" for name, shape in self.outputs.items())
