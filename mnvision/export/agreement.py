"""Whether an int8 file decides as its checkpoint does: the share of decisions that are the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from mnvision.errors import UserError
from mnvision.export.base import Pixels
from mnvision.types import Detections

LOWEST = {
    "classification": 0.80,
    "geolocation": 0.80,
    "face_attributes": 0.90,
    "face_embeddings": 0.90,
    "detection": 0.70,
}
"""Kind of model -> agreement below which a file is refused. Files that kept their accuracy agreed on 0.89 of ImageNet's
1000 classes and more; those that lost 5 points on 0.71."""
SCORE = 0.3
"""Lowest score of a detection that counts as a decision, as where predictions are shown."""
OVERLAP = 0.5
_STEP = 32


@dataclass(frozen=True)
class Agreement:
    """What was measured.

    Attributes:
        share: 0 to 1.
        what: Whose share it is, in words.
    """

    share: float
    what: str

    def words(self) -> str:
        """In one line."""
        return f"{100 * self.share:.1f} % {self.what}"


def answers(model: Any, images: Pixels) -> Any:
    """What a model or a file gives for uint8 pictures ``(N, 3, H, W)``: rows ``(N, K)``, or ``Detections``."""
    with torch.inference_mode():
        parts = [
            model.predict(torch.from_numpy(images[start : start + _STEP])) for start in range(0, len(images), _STEP)
        ]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    boxes, scores, labels = (torch.cat([part[name] for part in parts]) for name in ("boxes", "scores", "labels"))
    return Detections(boxes=boxes, scores=scores, labels=labels)


def agreement(kind: str, expected: Any, found: Any, calibration: Mapping[str, Any]) -> Agreement:
    """The share of decisions that two answers for the same pictures have in common.

    Args:
        kind: Of the model.
        expected: The checkpoint's answers.
        found: The file's.
        calibration: The checkpoint's thresholds.

    Raises:
        UserError: A detector found nothing on all the pictures, so that there is nothing to compare.
    """
    if kind == "detection":
        return _detections(expected, found)
    count = f"of {len(expected)} held-out pictures"
    if kind == "face_attributes":
        limits = torch.as_tensor(calibration.get("thresholds", 0.5))
        same = (expected >= limits) == (found >= limits)
        return Agreement(_mean(same), f"of the yes and no of {expected.shape[1]} attributes {count} are the same")
    if kind == "face_embeddings":
        cosine = (expected * found).sum(dim=1)
        return Agreement(_mean(cosine), f"is the mean cosine of old and new embeddings {count}")
    return Agreement(_mean(expected.argmax(dim=1) == found.argmax(dim=1)), f"{count} keep their best class")


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _detections(expected: Detections, found: Detections) -> Agreement:
    """Twice the pairs, by the number of detections on both sides (their F1 score)."""
    pairs = total = 0
    for row in range(len(expected["scores"])):
        one, two = _kept(expected, row), _kept(found, row)
        total += len(one[0]) + len(two[0])
        pairs += _pairs(one, two)
    if not total:
        raise UserError(f"pictures=: nothing scores {SCORE} or more on them, so nothing can be compared: give others")
    count = f"of {total} detections on {len(expected['scores'])} held-out pictures"
    return Agreement(2 * pairs / total, f"{count} have a partner of their class with an IoU of {OVERLAP} or more")


def _kept(found: Detections, row: int) -> tuple[Tensor, Tensor]:
    real = (found["labels"][row] >= 0) & (found["scores"][row] >= SCORE)
    return found["boxes"][row][real], found["labels"][row][real]


def _pairs(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> int:
    """Detections of both sides, each used once, the most overlapping first."""
    if not len(one[0]) or not len(two[0]):
        return 0
    overlap = box_iou(one[0], two[0]) * (one[1][:, None] == two[1][None])
    table, count = overlap.numpy().copy(), 0
    while table.max() >= OVERLAP:
        row, column = np.unravel_index(table.argmax(), table.shape)
        table[row], table[:, column] = 0, 0
        count += 1
    return count
