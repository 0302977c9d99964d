"""How the outputs of an ONNX detector are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.teachers.base import Outputs
from mnvision.teachers.detections import padded


@dataclass(frozen=True)
class BoxOutputs:
    """How the outputs of a detector are to be read.

    Attributes:
        boxes: Name of the output ``(N, 4)`` or ``(1, N, 4)``.
        scores: Name of the output ``(N,)`` or ``(1, N)``, in 0..1.
        labels: Name of the output ``(N,)`` or ``(1, N)``; None for detectors of one class.
        format: "xyxy" or "yxyx".
        unit: "pixel" of the input, or "fraction" of it.
        first_label: Number of the first class: 1 where 0 is the background. Lower numbers are left out.
    """

    boxes: str = "boxes"
    scores: str = "scores"
    labels: str | None = "labels"
    format: str = "xyxy"
    unit: str = "pixel"
    first_label: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> BoxOutputs:
        """From ``teacher.detections``.

        Raises:
            UserError: An unknown field, or a word that it does not know.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise UserError(f"teacher.detections has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.format, ("xyxy", "yxyx")),
            ("unit", self.unit, ("pixel", "fraction")),
        ):
            if value not in known:
                raise UserError(f"teacher.detections.{name}={value!r}: choose {' or '.join(known)}")

    @property
    def names(self) -> list[str]:
        """Of the outputs that are read."""
        return [name for name in (self.boxes, self.scores, self.labels) if name is not None]

    def read(
        self,
        found: Mapping[str, NDArray[Any]],
        size: tuple[float, float],
        num_classes: int | None,
        count: int,
        called: str,
    ) -> Outputs:
        """The detections of one picture in our form.

        Args:
            found: Outputs of the file by name.
            size: Height and width of its input in pixels.
            num_classes: K; None does not check the labels.
            count: Detections to keep, D.
            called: Named in errors.

        Returns:
            See :func:`~mnvision.teachers.detections.padded`.

        Raises:
            UserError: Shapes that do not go together, or a label without a name.
        """
        boxes, scores = _of_one(found[self.boxes], 2), _of_one(found[self.scores], 1)
        labels = np.full(scores.shape, self.first_label) if self.labels is None else _of_one(found[self.labels], 1)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not scores.shape == labels.shape == boxes.shape[:1]:
            shapes = ", ".join(f"{name} {found[name].shape}" for name in self.names)
            raise UserError(f"{called}: boxes (N, 4), scores (N,) and labels (N,) are needed, it gave {shapes}")
        numbers = torch.from_numpy(labels.astype(np.int64)) - self.first_label
        if num_classes is not None and len(numbers) and int(numbers.max()) >= num_classes:
            raise UserError(
                f"{called}: gave the label {int(labels.max())}, but has {num_classes} class names from "
                f"{self.first_label} on: mend teacher.class_names or teacher.detections.first_label"
            )
        corners = torch.from_numpy(boxes.astype(np.float32))
        if self.format == "yxyx":
            corners = corners[:, [1, 0, 3, 2]]
        unit = (1.0, 1.0) if self.unit == "fraction" else size
        return padded(corners, torch.from_numpy(scores.astype(np.float32)), numbers, unit, count)


def _of_one(values: NDArray[Any], axes: int) -> NDArray[Any]:
    """Without the axis of a batch of one."""
    return values[0] if values.ndim == axes + 1 and len(values) == 1 else values
