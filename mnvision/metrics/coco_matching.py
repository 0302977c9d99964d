"""Greedy matching of detections to annotations, for all area ranges and IoU thresholds at once.

The rules are those of pycocotools' ``COCOeval.evaluateImg``: within one image and category the detections,
best score first, each take the annotation with the highest IoU among those still free (the later one on a
tie); a counted annotation is preferred to an ignored one (a crowd, or outside the area range); crowds stay
free. Here the pairs (image, category) advance side by side, one detection of each pair per step, instead of
one Python loop per pair, range, threshold, detection and annotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mnvision.metrics.coco_ground_truth import CocoGroundTruth
from mnvision.metrics.coco_results import CocoResults

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""``(T,)``, as in pycocotools' ``Params``."""
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
"""``(R,)``, as in pycocotools' ``Params``."""
AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
"""``(4, 2)`` square pixels, both ends inside, as in pycocotools' ``Params``."""
MAX_DETECTIONS = (1, 10, 100)
"""Detections per image and category that count, best score first."""


@dataclass(frozen=True)
class Matches:
    """Detections after matching, sorted by category, then by falling score.

    T stands for IoU thresholds, R for area ranges (4).

    Attributes:
        category: ``(D,)`` int64, position of the detection's category among the ascending category ids.
        rank: ``(D,)`` int64, place of the detection within its image and category, best is 0.
        scores: ``(D,)`` float64.
        matched: ``(D, R, T)`` bool.
        ignored: ``(D, R, T)`` bool: neither a true nor a false positive.
        counted: ``(K, R)`` int64, annotations that can be found.
    """

    category: NDArray[np.int64]
    rank: NDArray[np.int64]
    scores: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    counted: NDArray[np.int64]


def match(truth: CocoGroundTruth, results: CocoResults, image_ids: NDArray[np.int64]) -> Matches:
    """Match detections to annotations.

    Args:
        truth: Annotations.
        results: Detections, in any order; equal scores keep their order within an image, as in pycocotools.
        image_ids: ``(I,)`` ascending, the images to evaluate; everything in other images is left out.

    Returns:
        The matched detections. At most 100 per image and category are kept.
    """
    results = results.select(np.isin(results.image_ids, image_ids))
    inside = np.flatnonzero(np.isin(truth.image_of, image_ids))
    num_categories = len(truth.category_ids)
    truth_category = np.searchsorted(truth.category_ids, truth.category_of[inside])
    truth_key = truth_category * len(image_ids) + np.searchsorted(image_ids, truth.image_of[inside])
    by_key = np.argsort(truth_key, kind="stable")
    inside, truth_key, truth_category = inside[by_key], truth_key[by_key], truth_category[by_key]

    category = np.searchsorted(truth.category_ids, results.category_ids)
    key = category * len(image_ids) + np.searchsorted(image_ids, results.image_ids)
    order = np.lexsort((-results.scores, key))
    key = key[order]
    rank = np.arange(len(key)) - np.searchsorted(key, key)
    kept = rank < MAX_DETECTIONS[-1]
    order, key, rank = order[kept], key[kept], rank[kept]
    results, category = results.select(order), category[order]

    boxes, areas, crowd = truth.boxes[inside], truth.areas[inside], truth.crowd[inside]
    truth_ignored = _outside_ranges(areas) | crowd[:, None]
    outside = _outside_ranges(results.boxes[:, 2] * results.boxes[:, 3])
    ignored = np.repeat(outside[:, :, None], len(IOU_THRESHOLDS), axis=2)
    matched = np.zeros_like(ignored)
    rows, taken = _assign(results.boxes, key, boxes, truth_key, crowd, truth_ignored)
    if len(rows):
        # pycocotools stores the id of the matched annotation and reads 0 as "none", so an annotation with id
        # 0 can be taken but never counts as found. Numbers equal to the official ones need the same.
        matched[rows] = (taken >= 0) & (truth.annotation_ids[inside][taken] != 0)
        of_taken = truth_ignored[taken, np.arange(len(AREA_RANGES))[:, None]]
        ignored[rows] = np.where(taken >= 0, of_taken, False) | (~matched[rows] & ignored[rows])
    counted = np.zeros((num_categories, len(AREA_RANGES)), np.int64)
    np.add.at(counted, truth_category, ~truth_ignored)
    # Stable, so equal scores of one category stay in the order of the image ids, as in pycocotools.
    by_score = np.lexsort((-results.scores, category))
    return Matches(
        category[by_score],
        rank[by_score],
        results.scores[by_score],
        matched[by_score],
        ignored[by_score],
        counted,
    )


def _outside_ranges(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (areas[:, None] < AREA_RANGES[:, 0]) | (areas[:, None] > AREA_RANGES[:, 1])


@dataclass
class _Pairs:
    """The (image, category) pairs in which some IoU reaches the lowest threshold."""

    starts: list[int]  # first annotation of each pair
    widths: list[int]  # annotations of each pair
    rows: list[NDArray[np.int64]]  # detections of each pair that reach the threshold, best first
    ious: list[NDArray[np.float64]]  # (rows, width)


def _overlapping_pairs(
    boxes: NDArray[np.float64],
    key: NDArray[np.int64],
    truth_boxes: NDArray[np.float64],
    truth_key: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> _Pairs:
    pairs = _Pairs([], [], [], [])
    common = np.intersect1d(key, truth_key)
    edges = [np.searchsorted(keys, common, side).tolist() for keys in (key, truth_key) for side in ("left", "right")]
    crowd_flags = crowd.astype(np.uint8)
    for first, last, truth_first, truth_last in zip(*edges):
        # The C function of pycocotools itself: written again, its last bit could differ on some machine.
        ious = coco_mask.iou(
            boxes[first:last], truth_boxes[truth_first:truth_last], crowd_flags[truth_first:truth_last]
        )
        reaching = np.flatnonzero(ious.max(axis=1) >= IOU_THRESHOLDS[0])
        if len(reaching):
            pairs.starts.append(truth_first)
            pairs.widths.append(truth_last - truth_first)
            pairs.rows.append(first + reaching)
            pairs.ious.append(ious[reaching])
    return pairs


def _assign(
    boxes: NDArray[np.float64],
    key: NDArray[np.int64],
    truth_boxes: NDArray[np.float64],
    truth_key: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    truth_ignored: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Detections ``(C,)`` that overlap something, and what each takes: ``(C, R, T)``, -1 for none."""
    pairs = _overlapping_pairs(boxes, key, truth_boxes, truth_key, crowd)
    rows = np.concatenate([np.empty(0, np.int64), *pairs.rows])
    taken = np.full((len(rows), len(AREA_RANGES), len(IOU_THRESHOLDS)), -1, np.int64)
    offsets = np.cumsum([0, *(len(part) for part in pairs.rows)])
    # Pairs of similar width share a block, so that padding costs at most twice the memory.
    blocks: dict[int, list[int]] = {}
    for index, width in enumerate(pairs.widths):
        blocks.setdefault((width - 1).bit_length(), []).append(index)
    for bits, members in blocks.items():
        members.sort(key=lambda index: -len(pairs.rows[index]))
        _assign_block(pairs, members, 1 << bits, crowd, truth_ignored, taken, offsets[members])
    return rows, taken


def _assign_block(
    pairs: _Pairs,
    members: list[int],
    width: int,
    crowd: NDArray[np.bool_],
    truth_ignored: NDArray[np.bool_],
    taken: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> None:
    """Match the pairs ``members`` (most detections first), each of at most ``width`` annotations.

    The result goes into ``taken``, for each pair from its row in ``offsets`` on.
    """
    starts = np.array([pairs.starts[index] for index in members])
    lengths = np.array([len(pairs.rows[index]) for index in members])
    columns = np.minimum(starts[:, None] + np.arange(width), len(crowd) - 1)
    block_crowd = crowd[columns][:, None, None]  # (P, 1, 1, G)
    block_ignored = truth_ignored[columns].transpose(0, 2, 1)[:, :, None]  # (P, R, 1, G)
    free = np.ones((len(members), len(AREA_RANGES), len(IOU_THRESHOLDS), width), bool)
    for step in range(int(lengths[0])):
        active = int(np.count_nonzero(lengths > step))
        ious = np.zeros((active, 1, 1, width))  # padding stays 0 and reaches no threshold
        for row, index in enumerate(members[:active]):
            ious[row, 0, 0, : pairs.widths[index]] = pairs.ious[index][step]
        reachable = (ious >= IOU_THRESHOLDS[:, None]) & (free[:active] | block_crowd[:active])
        counted = reachable & ~block_ignored[:active]
        choice = np.where(counted.any(axis=-1, keepdims=True), counted, reachable)
        best = width - 1 - np.where(choice, ious, -1.0)[..., ::-1].argmax(axis=-1)
        found = choice.any(axis=-1)
        taken[offsets[:active] + step] = np.where(found, starts[:active, None, None] + best, -1)
        pair, area, threshold = np.nonzero(found)
        free[pair, area, threshold, best[found]] = False
