"""From matched detections to precision and recall tables, as pycocotools' ``COCOeval.accumulate``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mnvision.metrics.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    RECALL_THRESHOLDS,
    Matches,
)


@dataclass(frozen=True)
class CocoTables:
    """What the twelve numbers are averages of; -1 where a class has nothing to find.

    Attributes:
        precision: ``(T, 101, K, 4)`` float64, interpolated precision at IoU threshold, recall, class and area
            range (all, small, medium, large), at most 100 detections per image and class.
        recall: ``(T, K, 4, 3)`` float64, at IoU threshold, class, area range and 1, 10, 100 detections.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def accumulate(matches: Matches) -> CocoTables:
    """Count true and false positives down the ranking of each class.

    Args:
        matches: Detections sorted by class and falling score.

    Returns:
        The tables.
    """
    num_classes = len(matches.counted)
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), num_classes, len(AREA_RANGES)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), num_classes, len(AREA_RANGES), len(MAX_DETECTIONS)), -1.0)
    edges = np.searchsorted(matches.category, np.arange(num_classes + 1))
    for label in range(num_classes):
        part = slice(edges[label], edges[label + 1])
        # (4, T, detections), so that the sums run along memory.
        hits = np.ascontiguousarray((matches.matched[part] & ~matches.ignored[part]).transpose(1, 2, 0))
        misses = np.ascontiguousarray((~matches.matched[part] & ~matches.ignored[part]).transpose(1, 2, 0))
        for area in np.flatnonzero(matches.counted[label]):
            total = matches.counted[label, area]
            for index, limit in enumerate(MAX_DETECTIONS):
                recall[:, label, area, index] = hits[area][:, matches.rank[part] < limit].sum(axis=1) / total
            precision[:, :, label, area] = _interpolated(hits[area], misses[area], int(total))
    return CocoTables(precision, recall)


def _interpolated(hits: NDArray[np.bool_], misses: NDArray[np.bool_], total: int) -> NDArray[np.float64]:
    """``(T, 101)`` precision: the best at each recall or beyond it; 0 where that recall is not reached."""
    table = np.zeros((len(hits), len(RECALL_THRESHOLDS)))
    wrong = np.cumsum(misses, axis=1, dtype=np.int32)
    for row, hit, wrong_so_far in zip(table, hits, wrong):
        # Between two hits precision only falls and recall stands still, so the hits alone decide.
        places = np.flatnonzero(hit)
        found = np.arange(1.0, len(places) + 1)
        # np.spacing(1) is in pycocotools' formula; without it a first detection that is right has precision
        # 1 instead of 1 - 2e-16, and the average differs in its last digit.
        precision = found / (wrong_so_far[places] + found + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        needed = np.searchsorted(found / total, RECALL_THRESHOLDS, side="left")
        reached = int(np.searchsorted(needed, len(places)))
        row[:reached] = best_from_here[needed[:reached]]
    return table
