"""The twelve COCO numbers and the average precision of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.metrics.coco_accumulate import CocoTables
from mnvision.metrics.coco_matching import AREA_NAMES, MAX_DETECTIONS

_LINES = (
    ("AP", "Average precision", "0.50:0.95", "all", 100),
    ("AP50", "Average precision", "0.50", "all", 100),
    ("AP75", "Average precision", "0.75", "all", 100),
    ("AP_small", "Average precision", "0.50:0.95", "small", 100),
    ("AP_medium", "Average precision", "0.50:0.95", "medium", 100),
    ("AP_large", "Average precision", "0.50:0.95", "large", 100),
    ("AR_1", "Average recall", "0.50:0.95", "all", 1),
    ("AR_10", "Average recall", "0.50:0.95", "all", 10),
    ("AR_100", "Average recall", "0.50:0.95", "all", 100),
    ("AR_small", "Average recall", "0.50:0.95", "small", 100),
    ("AR_medium", "Average recall", "0.50:0.95", "medium", 100),
    ("AR_large", "Average recall", "0.50:0.95", "large", 100),
)
"""Name, kind, IoU, area, detections per image and class: https://cocodataset.org/#detection-eval, 2."""

SCORE_NAMES = tuple(line[0] for line in _LINES)
"""The twelve names in the official order."""


@dataclass(frozen=True)
class CocoScores:
    """Result of an evaluation. All averages lie in [0, 1]; -1 means there was nothing to find.

    The first twelve fields are the official numbers in the official order.

    Attributes:
        per_class: Class name -> AP (IoU 0.50:0.95, all areas), -1 for classes without annotations.
        num_images: Images evaluated.
        num_detections: Detections in these images.
        num_repeated: Results thrown away because their image had been given before (a distributed sampler
            repeats samples to fill its last batch).
        num_foreign_detections: Detections left out because the ground truth lacks their category.
        num_ignored_annotations: Annotations that name an image or category which the ground truth lacks.
        precision_curves: ``(101, K)`` float64, precision at IoU 0.5 and recall 0, 0.01 .. 1, in the order of
            ``per_class``; -1 for classes without annotations.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR_1: float
    AR_10: float
    AR_100: float
    AR_small: float
    AR_medium: float
    AR_large: float
    per_class: dict[str, float]
    num_images: int
    num_detections: int
    num_repeated: int
    num_foreign_detections: int
    num_ignored_annotations: int
    precision_curves: NDArray[np.float64] = field(repr=False, compare=False)

    def twelve(self) -> dict[str, float]:
        """The official numbers by name, in the official order."""
        return {name: getattr(self, name) for name in SCORE_NAMES}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, ready for JSON."""
        values = asdict(self)
        del values["precision_curves"]
        return values

    def table(self) -> str:
        """Twelve lines of text in the official order, and a line of counts."""
        rows = [
            f"{kind:<17}  {name:<9}  IoU {iou:<9}  area {area:<6}  max {limit:>3}  {value:>6.3f}"
            for (name, kind, iou, area, limit), value in zip(_LINES, self.twelve().values())
        ]
        counts = f"{self.num_images} images, {self.num_detections} detections"
        if self.num_repeated:
            counts += f", {self.num_repeated} repeated images left out"
        if self.num_foreign_detections:
            counts += f", {self.num_foreign_detections} detections of other categories left out"
        if self.num_ignored_annotations:
            counts += f", {self.num_ignored_annotations} annotations of unknown images or categories left out"
        return "\n".join([*rows, counts])


def summarise(tables: CocoTables, class_names: tuple[str, ...], counts: Mapping[str, int]) -> CocoScores:
    """Average the tables over classes, as pycocotools' ``COCOeval.summarize``.

    Args:
        tables: Precision and recall of each class.
        class_names: In the order of the tables.
        counts: The ``num_`` fields of :class:`CocoScores`.

    Returns:
        The scores.
    """
    at_threshold = {"0.50:0.95": slice(None), "0.50": slice(0, 1), "0.75": slice(5, 6)}
    numbers: dict[str, Any] = {}
    for name, kind, iou, area_name, limit in _LINES:
        area = AREA_NAMES.index(area_name)
        if kind == "Average precision":
            numbers[name] = _mean(tables.precision[at_threshold[iou], :, :, area])
        else:
            numbers[name] = _mean(tables.recall[:, :, area, MAX_DETECTIONS.index(limit)])
    return CocoScores(
        **numbers,
        per_class={name: _mean(tables.precision[:, :, label, 0]) for label, name in enumerate(class_names)},
        **counts,
        precision_curves=tables.precision[0, :, :, 0].copy(),
    )


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is defined, summed in the order of pycocotools: the last digit depends on it."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0
