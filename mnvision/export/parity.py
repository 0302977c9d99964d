"""Whether an exported file answers as the model that it was made of: measured through the file's own runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.export.base import Pixels
from mnvision.types import Detections

PICTURES = 5
BATCHES = (1, 2, 5)
"""Sizes of batches that are tried where the file takes any."""


@dataclass(frozen=True)
class Limits:
    """The largest differences that pass.

    Attributes:
        values: Of probabilities, scores and embeddings.
        boxes: Of the edges of boxes, as a share of the input's longer side.
        matched: Share of detections that must be found again, within the limits above and with the same class.
    """

    values: float
    boxes: float
    matched: float


LIMITS = {"fp32": Limits(1e-4, 1e-4, 1.0), "fp16": Limits(2e-2, 1e-2, 0.95)}
"""By precision. float32 leaves 1e-6 to 1e-5 between runtimes; float16 has 11 bits, and some boxes that overlap by just
about the limit are decided the other way."""


@dataclass
class Difference:
    """What was measured.

    Attributes:
        values: Largest difference of probabilities, scores or embeddings.
        boxes: Largest difference of an edge in pixels; None for models without boxes.
        detections: Detections of the model, None likewise.
        matched: Those of them that the file gives, too.
    """

    values: float = 0.0
    boxes: float | None = None
    detections: int | None = None
    matched: int = 0

    def add(self, other: Difference) -> None:
        """Take the worse of both."""
        self.values = max(self.values, other.values)
        if other.boxes is not None:
            self.boxes = max(self.boxes or 0.0, other.boxes)
            self.detections = (self.detections or 0) + (other.detections or 0)
            self.matched += other.matched

    def fits(self, limits: Limits, side: int) -> bool:
        """Whether it passes; ``side`` is the input's longer side in pixels."""
        close = self.values <= limits.values and (self.boxes or 0.0) <= limits.boxes * side
        return close and self.matched >= limits.matched * (self.detections or 0)

    def words(self, limits: Limits, side: int) -> str:
        """The numbers and their limits in one line."""
        text = f"largest difference {self.values:.1e} (limit {limits.values:g})"
        if self.boxes is None:
            return text
        if not self.detections:
            return "nothing was detected on them, so nothing is known: give pictures=FOLDER of your own"
        found = f"{self.matched} of {self.detections} detections found again"
        return f"scores: {text}; boxes: {self.boxes:.1e} px (limit {limits.boxes * side:g}); {found}"


def compare(expected: Any, found: Any, limits: Limits, side: int, threshold: float = 0.0) -> Difference:
    """The difference of two answers for the same pictures.

    Args:
        expected: The model's: rows ``(B, K)``, or ``Detections``.
        found: The file's.
        limits: Within which detections count as the same.
        side: The input's longer side in pixels.
        threshold: Lowest score of a detection: those near it may be missing.
    """
    if isinstance(expected, Tensor):
        difference = (expected - found).abs().max()
        return Difference(float(difference) if bool(torch.isfinite(difference)) else float("inf"))
    total = Difference(boxes=0.0, detections=0)
    for row in range(len(expected["scores"])):
        total.add(_compare_image(_one(expected, row), _one(found, row), limits, side, threshold))
    return total


_Image = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], bool]


def _one(found: Detections, row: int) -> _Image:
    """Boxes, scores and labels of one image without padding, and whether there was none."""
    labels = found["labels"][row].cpu().numpy()
    real = labels >= 0
    boxes, scores = found["boxes"][row].cpu().numpy()[real], found["scores"][row].cpu().numpy()[real]
    return boxes.astype(np.float64), scores.astype(np.float64), labels[real], bool(real.all())


def _compare_image(expected: _Image, found: _Image, limits: Limits, side: int, threshold: float) -> Difference:
    """Each detection of the model with the nearest one of the file that has its class and nearly its score."""
    boxes, scores, labels, full = expected
    lowest = max(threshold, float(scores.min()) if full and len(scores) else 0.0) + limits.values
    if not len(scores) or not len(found[1]):
        return Difference(0.0, 0.0, int((scores > lowest).sum()) + int((found[1] > lowest).sum()))
    edges = np.abs(boxes[:, None] - found[0][None]).max(axis=2)
    values = np.abs(scores[:, None] - found[1][None])
    alike = (labels[:, None] == found[2][None]) & (values <= limits.values) & (edges <= limits.boxes * side)
    distance = np.where(alike, edges, np.inf)
    nearest = distance.argmin(axis=1)
    hit = np.isfinite(distance[np.arange(len(scores)), nearest])
    # What the file has beyond the model counts as well, but not around the lowest score that is still answered.
    surplus = ~alike.any(axis=0) & (found[1] > lowest)
    counted = hit | (scores > lowest)
    rows = np.flatnonzero(hit)
    worst_value = float(values[rows, nearest[rows]].max(initial=0.0))
    worst_edge = float(edges[rows, nearest[rows]].max(initial=0.0))
    return Difference(worst_value, worst_edge, int(counted.sum()) + int(surplus.sum()), len(rows))


def drawn_pictures(resolution: tuple[int, int], count: int = PICTURES) -> Pixels:
    """``(N, H, W, 3)`` uint8: scenes with objects, textures and light, the same ones every time."""
    from mnvision.data.shapes_draw import detection_scene
    from mnvision.data.shapes_render import render_scene
    from mnvision.data.shapes_scene import SceneOptions
    from mnvision.transforms.resize import resize_image

    scenes = (detection_scene(0, "val", index, SceneOptions()) for index in range(count))
    return np.stack([resize_image(render_scene(scene).image, resolution) for scene in scenes])


def pictures_of(source: str | Path, prepare: Any, count: int = PICTURES) -> Pixels:
    """``(N, H, W, 3)`` uint8: the first pictures of a folder, prepared as for prediction.

    Raises:
        UserError: There is none, or one cannot be read.
    """
    from mnvision.prediction.inputs import find_pictures

    pictures = find_pictures(source, True, [])
    return np.stack([prepare(pictures.root / name).pixels for name in pictures.names[:count]])


def other_size(pictures: Pixels) -> Pixels:
    """One picture ``(1, h, w, 3)`` at a size that no network has."""
    height, width = pictures.shape[1:3]
    return np.asarray(cv2.resize(pictures[0], (width + 37, 2 * height + 1)), np.uint8)[None]


def batches(total: int, fixed: int | None) -> Sequence[int]:
    """How many of the pictures go in at once, one trial after the other."""
    return (total,) if fixed else tuple(sorted({min(size, total) for size in BATCHES}))


def require(difference: Difference, limits: Limits, side: int, what: str) -> None:
    """Refuse a difference.

    Raises:
        UserError: It is beyond the limits.
    """
    if not difference.fits(limits, side):
        raise UserError(
            f"{what} does not answer as the model does, so it was not kept: {difference.words(limits, side)}"
        )
