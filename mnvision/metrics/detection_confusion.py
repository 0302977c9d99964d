"""Which classes a detector takes for which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mnvision.errors import UserError
from mnvision.metrics.coco_ground_truth import CocoGroundTruth
from mnvision.metrics.coco_results import CocoResults

_MIN_IOU = 0.5


def confusion_matrix(
    truth: CocoGroundTruth, results: CocoResults, image_ids: NDArray[np.int64], score_threshold: float
) -> NDArray[np.int64]:
    """Count pairs of true and predicted class at IoU 0.5.

    In each image the detections, best score first, take the free annotation of their own class with the
    highest IoU of at least 0.5; what is left over is paired the same way whatever the class. Detections left
    after that are false alarms (row background) unless they lie in a crowd of their class; annotations left
    are misses (column background). Crowds are not annotations to be found.

    Args:
        truth: Annotations.
        results: Detections.
        image_ids: ``(I,)`` int64, the images to look at.
        score_threshold: Detections below it are left out, in [0, 1].

    Returns:
        ``(K + 1, K + 1)`` int64, row true class, column predicted class, in the order of
        ``truth.class_names``; the last row and column are background.

    Raises:
        UserError: ``score_threshold`` is out of range.
    """
    if not 0 <= score_threshold <= 1:
        raise UserError(f"score_threshold is {score_threshold}; it must lie in 0 .. 1")
    background = len(truth.category_ids)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    results = results.select(results.scores >= score_threshold)
    results = results.select(np.argsort(-results.scores, kind="stable"))
    predicted_labels = np.searchsorted(truth.category_ids, results.category_ids)
    truth_labels = np.searchsorted(truth.category_ids, truth.category_of)
    detections_of = _rows_by_image(results.image_ids, image_ids)
    objects_of = _rows_by_image(truth.image_of, image_ids)
    for detections, objects in zip(detections_of, objects_of):
        crowd = truth.crowd[objects]
        ious = np.zeros((len(detections), len(objects)))
        if ious.size:
            ious = coco_mask.iou(results.boxes[detections], truth.boxes[objects], crowd.astype(np.uint8))
        true, predicted = _pair_classes(ious, predicted_labels[detections], truth_labels[objects], crowd, background)
        np.add.at(matrix, (true, predicted), 1)
    return matrix


def _rows_by_image(owners: NDArray[np.int64], image_ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """For each image its rows, in the order of the rows."""
    order = np.argsort(owners, kind="stable")
    first, last = (np.searchsorted(owners[order], image_ids, side) for side in ("left", "right"))
    return [order[start:stop] for start, stop in zip(first.tolist(), last.tolist())]


def _pair_classes(
    ious: NDArray[np.float64],
    predicted: NDArray[np.int64],
    true: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    background: int,
) -> tuple[list[int], list[int]]:
    """True and predicted class of every pair, false alarm and miss of one image."""
    same = predicted[:, None] == true[None, :]
    reaching = (ious >= _MIN_IOU) & ~crowd
    pairs = _greedy(np.where(reaching & same, ious, 0.0))
    open_rows = np.setdiff1d(np.arange(len(predicted)), [row for row, _ in pairs])
    open_columns = np.setdiff1d(np.flatnonzero(~crowd), [column for _, column in pairs])
    rest = np.where(reaching, ious, 0.0)[np.ix_(open_rows, open_columns)]
    pairs += [(int(open_rows[row]), int(open_columns[column])) for row, column in _greedy(rest)]
    in_crowd = (same & crowd & (ious >= _MIN_IOU)).any(axis=1)
    alarms = [row for row in set(range(len(predicted))).difference(row for row, _ in pairs) if not in_crowd[row]]
    misses = set(np.flatnonzero(~crowd).tolist()).difference(column for _, column in pairs)
    rows = [(int(true[column]), int(predicted[row])) for row, column in pairs]
    rows += [(background, int(predicted[row])) for row in alarms]
    rows += [(int(true[column]), background) for column in misses]
    return [row for row, _ in rows], [column for _, column in rows]


def _greedy(ious: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Each row in turn takes its free column of highest value above 0."""
    pairs: list[tuple[int, int]] = []
    if ious.size == 0:
        return pairs
    free = ious.copy()
    for row in range(len(free)):
        column = int(free[row].argmax())
        if free[row, column] > 0:
            pairs.append((row, column))
            free[:, column] = 0.0
    return pairs
