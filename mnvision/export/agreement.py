"""Whether an int8 file decides as its checkpoint does: the share of decisions that are the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnvision.proof.answers import Answers, Boxes
from mnvision.proof.differences import ious, shown

LOWEST = {
    "classification": 0.80,
    "geolocation": 0.80,
    "face_attributes": 0.90,
    "face_embeddings": 0.90,
    "detection": 0.70,
    "multitask": 0.70,
}
"""Kind of model -> agreement below which a file is refused. Files that kept their accuracy agreed on 0.89 of ImageNet's
1000 classes and more; those that lost 5 points on 0.71."""
SCORE = 0.3
"""Lowest score of a detection that counts as a decision, as where predictions are shown."""
OVERLAP = 0.5


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


def agreement(kind: str, expected: Answers, found: Answers, calibration: Mapping[str, Any]) -> Agreement | None:
    """The share of decisions that two answers for the same pictures have in common.

    Args:
        kind: Of the model.
        expected: The checkpoint's answers.
        found: The file's.
        calibration: The checkpoint's thresholds.

    Returns:
        None where a detector found nothing on all the pictures, so that there is nothing to compare.
    """
    if kind == "detection":
        return _detections(expected, found)
    assert expected.rows is not None
    assert found.rows is not None
    one, two = expected.rows, found.rows
    count = f"of {len(one)} held-out pictures"
    if kind == "face_attributes":
        limits = np.asarray(calibration.get("thresholds", 0.5))
        same = (one >= limits) == (two >= limits)
        return Agreement(_mean(same), f"of the yes and no of {one.shape[1]} attributes {count} are the same")
    if kind == "face_embeddings":
        return Agreement(_mean((one * two).sum(axis=1)), f"is the mean cosine of old and new embeddings {count}")
    if expected.choices is not None and found.choices is not None:
        return Agreement(_mean(expected.choices == found.choices), f"{count} keep their cell")
    return Agreement(_mean(one.argmax(axis=1) == two.argmax(axis=1)), f"{count} keep their best class")


def _mean(values: Any) -> float:
    return float(np.mean(values, dtype=np.float64))


def _detections(expected: Answers, found: Answers) -> Agreement | None:
    """Twice the pairs, by the number of detections on both sides (their F1 score)."""
    pairs = total = 0
    for one, two in zip(expected.boxes, found.boxes, strict=True):
        one, two = shown(one, SCORE), shown(two, SCORE)
        total += len(one[1]) + len(two[1])
        pairs += _pairs(one, two)
    if not total:
        return None
    count = f"of {total} detections on {len(expected.boxes)} held-out pictures"
    return Agreement(2 * pairs / total, f"{count} have a partner of their class with an IoU of {OVERLAP} or more")


def _pairs(one: Boxes, two: Boxes) -> int:
    """Detections of both sides, each used once, the most overlapping first."""
    if not len(one[0]) or not len(two[0]):
        return 0
    table, count = ious(one[0], two[0]) * (one[2][:, None] == two[2][None]), 0
    while table.max() >= OVERLAP:
        row, column = np.unravel_index(table.argmax(), table.shape)
        table[row], table[:, column] = 0, 0
        count += 1
    return count
