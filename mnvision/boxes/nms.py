"""Greedy non-maximum suppression of many independent groups at once.

``torchvision.ops.batched_nms`` separates groups by shifting their boxes, so a batch costs the square of all
its boxes; here only pairs within a group are looked at, and a fixed point replaces the greedy order: a box
is kept if no kept, better box of its group overlaps it too much. Iterating that rule from "all kept"
settles each box after as many rounds as its chain of suppressions is long (a handful), on the greedy
result. The idea is that of Cluster-NMS, https://arxiv.org/abs/2005.03572.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 20


def grouped_nms(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Suppress every box that overlaps a kept box before it in its group by more than the threshold.

    Args:
        boxes: ``(M, 4)`` float32 xyxy; within each group best score first.
        groups: ``(M,)`` int64, ascending, so that groups are contiguous.
        iou_threshold: In [0, 1]; an IoU equal to it does not suppress.

    Returns:
        ``(M,)`` bool, true where kept; per group equal to ``torchvision.ops.nms``.
    """
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    better, worse = _overlapping_pairs(boxes, rank_in_group(groups), iou_threshold)
    while True:
        updated = torch.ones_like(kept)
        updated[worse[kept[better]]] = False
        if torch.equal(updated, kept):
            return kept
        kept = updated


def kept_per_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou_threshold: float, max_per_class: int
) -> Tensor:
    """Which candidates of a batch are left when each class of each image is suppressed for itself.

    Args:
        boxes: ``(B, M, 4)`` float32 xyxy.
        scores: ``(B, M)``, best first; those that are not above 0 are no candidates.
        labels: ``(B, M)`` int64, below ``num_classes``.
        num_classes: Number of labels.
        iou_threshold: See :func:`grouped_nms`.
        max_per_class: Most that are kept of one class of an image.

    Returns:
        ``(B, M)`` bool.
    """
    image, rank = (scores > 0).nonzero(as_tuple=True)
    group = image * num_classes + labels[image, rank]
    # Stable: within a group candidates stay in falling order of score.
    group, order = group.sort(stable=True)
    image, rank = image[order], rank[order]
    kept = grouped_nms(boxes[image, rank], group, iou_threshold)
    image, rank = image[kept], rank[kept]
    allowed = rank_in_group(group[kept]) < max_per_class
    result = torch.zeros_like(scores, dtype=torch.bool)
    result[image[allowed], rank[allowed]] = True
    return result


def rank_in_group(groups: Tensor) -> Tensor:
    """Position of each element within its group: ``(M,)`` int64 for ``(M,)`` ascending group numbers."""
    index = torch.arange(len(groups), device=groups.device)
    starts = torch.ones_like(groups, dtype=torch.bool)
    starts[1:] = groups[1:] != groups[:-1]
    return index - torch.where(starts, index, 0).cummax(dim=0).values


def _overlapping_pairs(boxes: Tensor, ranks: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Indices (better, worse) of all pairs of one group whose IoU is above the threshold.

    Element i has ``ranks[i]`` betters, right before it. Pairs are made in slices, so that memory is bounded
    when all boxes are of one group.
    """
    ends = ranks.cumsum(dim=0)
    total = int(ends[-1]) if len(ends) else 0
    pairs: list[tuple[Tensor, Tensor]] = []
    for start in range(0, total, PAIRS_AT_ONCE):
        pair = torch.arange(start, min(start + PAIRS_AT_ONCE, total), device=boxes.device)
        worse = torch.searchsorted(ends, pair, right=True)
        better = worse - (ends[worse] - pair)
        overlapping = _iou(boxes[better], boxes[worse]) > iou_threshold
        pairs.append((better[overlapping], worse[overlapping]))
    if not pairs:
        return ranks[:0], ranks[:0]
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of ``(P, 4)`` with ``(P, 4)``, row by row; 0 where both have no area."""
    sides = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    intersection = sides.clamp(min=0).prod(dim=1)
    areas = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1)
    return intersection / (areas - intersection).clamp(min=1e-12)
