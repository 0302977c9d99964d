"""Default boxes fitted to a data set, and the best recall that any set of default boxes can reach.

k-means with the distance 1 - IoU of widths and heights follows YOLO9000, https://arxiv.org/abs/1612.08242,
section 2 "Dimension Clusters"; which map a cluster goes to, and the scale search, are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.boxes.default_boxes import BoxSizes, make_default_boxes, ssd_box_sizes
from mnvision.errors import UserError

FloatArray = NDArray[np.floating]

COCO_AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""Area ranges in pixels of the original picture, as in pycocotools' ``Params``."""
PAIRS_AT_ONCE = 1 << 22
MIN_SIDE = 0.01
"""Fitted sides are at least a hundredth of the input: a smaller box is less than a few pixels."""


@dataclass(frozen=True)
class ScaleFit:
    """Outcome of :func:`search_scales`: the two arguments for ``SSDHead`` and what they reach (0 to 1)."""

    min_scale: float
    max_scale: float
    recall: float
    mean_iou: float


def best_possible_ious(boxes: FloatArray, default_boxes: FloatArray) -> NDArray[np.float32]:
    """Highest IoU that any default box has with each object, in bounded memory (about 100 MB).

    Args:
        boxes: ``(N, 4)`` xyxy in pixels of the network's input.
        default_boxes: ``(A, 4)`` xyxy in the same pixels.

    Returns:
        ``(N,)`` float32 in [0, 1].
    """
    truth = torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)
    defaults = torch.as_tensor(np.asarray(default_boxes, dtype=np.float32))
    default_area = (defaults[:, 2:] - defaults[:, :2]).prod(dim=1)
    best = torch.zeros(len(truth))
    step = max(PAIRS_AT_ONCE // max(len(defaults), 1), 1)
    for start in range(0, len(truth), step):
        part = truth[start : start + step]
        width = torch.minimum(part[:, 2, None], defaults[:, 2]) - torch.maximum(part[:, 0, None], defaults[:, 0])
        height = torch.minimum(part[:, 3, None], defaults[:, 3]) - torch.maximum(part[:, 1, None], defaults[:, 1])
        intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
        area = (part[:, 2:] - part[:, :2]).prod(dim=1)
        union = (area[:, None] + default_area).sub_(intersection)
        best[start : start + step] = intersection.div_(union).amax(dim=1)
    return best.numpy()


def recall_by_size(ious: FloatArray, areas: FloatArray, iou_threshold: float = 0.5) -> dict[str, float]:
    """Share of objects whose best IoU reaches the threshold, for all and per COCO size.

    Args:
        ious: ``(N,)`` from :func:`best_possible_ious`.
        areas: ``(N,)`` areas in pixels of the original picture.
        iou_threshold: The matcher's threshold.

    Returns:
        "all", "small", "medium", "large", each in [0, 1], or NaN where there is no such object.
    """
    reached = np.asarray(ious) >= iou_threshold
    groups = {"all": np.ones(len(reached), dtype=bool)}
    for name, (low, high) in COCO_AREAS.items():
        groups[name] = (np.asarray(areas) >= low) & (np.asarray(areas) < high)
    return {name: float(reached[g].mean()) if g.any() else float("nan") for name, g in groups.items()}


def cluster_sizes(
    sizes: FloatArray, count: int, seed: int = 0, iterations: int = 50, max_samples: int = 20_000
) -> NDArray[np.float64]:
    """k-means of widths and heights with the distance 1 - IoU of boxes with a common centre.

    Args:
        sizes: ``(N, 2)`` widths and heights, any unit, > 0.
        count: Number of clusters, 1 to the number of different sizes.
        seed: Of the sample and of the starting centres.
        iterations: Most iterations; it stops when no object changes its cluster.
        max_samples: A larger data set is represented by a random sample of this many objects.

    Returns:
        ``(count, 2)`` cluster means, smallest area first.

    Raises:
        UserError: Sizes that are not positive numbers, or too few different ones.
    """
    sizes = _checked_sizes(sizes, count)
    rng = np.random.default_rng(seed)
    if len(sizes) > max_samples:
        sizes = _checked_sizes(sizes[rng.choice(len(sizes), max_samples, replace=False)], count)
    centers = _spread_start(sizes, count, rng)
    assigned = np.full(len(sizes), -1)
    for _ in range(iterations):
        closest = _size_iou(sizes, centers).argmax(axis=1)
        if np.array_equal(closest, assigned):
            break
        assigned = closest
        for index in range(count):
            if (assigned == index).any():
                centers[index] = sizes[assigned == index].mean(axis=0)
    return centers[np.argsort(centers.prod(axis=1))]


def fit_box_sizes(
    boxes: FloatArray,
    map_sizes: Sequence[tuple[int, int]],
    resolution: tuple[int, int],
    count: int = 24,
    seed: int = 0,
    tolerance: float = 0.02,
    max_samples: int = 5_000,
) -> BoxSizes:
    """Default box sizes fitted to the objects of a data set.

    Sizes come from :func:`cluster_sizes`. Each goes to the coarsest map on which it still finds its own
    objects, that is, where its recall at IoU 0.5 is within ``tolerance`` of the best map's: fine maps cost
    more default boxes. A map left without a box takes a copy of the size that is best there.

    Args:
        boxes: ``(N, 4)`` xyxy in pixels of the network's input, of positive area.
        map_sizes: Height and width of each feature map, finest first (``SSDHead.map_sizes``).
        resolution: Height and width of the network's input.
        count: Number of sizes over all maps.
        seed: Of clustering and sampling.
        tolerance: Recall of a cluster's own objects given up for a coarser map.
        max_samples: Most objects that the choice of the maps looks at.

    Returns:
        A value for ``SSDHead``'s ``box_sizes``.

    Raises:
        UserError: As :func:`cluster_sizes`.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    centers = cluster_sizes(sizes, count, seed)
    rng = np.random.default_rng(seed)
    if len(boxes) > max_samples:
        chosen = rng.choice(len(boxes), max_samples, replace=False)
        boxes, sizes = boxes[chosen], sizes[chosen]
    nearest = _size_iou(sizes, centers).argmax(axis=1)
    shorter = min(resolution)
    fractions = [tuple(np.clip(center / shorter, MIN_SIDE, 4.0).tolist()) for center in centers]
    recall = np.zeros((count, len(map_sizes)))
    for index, size in enumerate(fractions):
        own = boxes[nearest == index]
        for level, map_size in enumerate(map_sizes):
            defaults = make_default_boxes([[size]], [map_size], resolution).numpy()
            recall[index, level] = (best_possible_ious(own, defaults) >= 0.5).mean() if len(own) else 0.0
    good = recall >= recall.max(axis=1, keepdims=True) - tolerance
    level_of = len(map_sizes) - 1 - good[:, ::-1].argmax(axis=1)
    result: BoxSizes = []
    for level in range(len(map_sizes)):
        members = [fractions[index] for index in np.flatnonzero(level_of == level)]
        # Among equally useless sizes the largest: a coarse map is where large objects are seen.
        best = count - 1 - int(recall[::-1, level].argmax())
        result.append(members or [fractions[best]])
    return result


def search_scales(
    boxes: FloatArray,
    map_sizes: Sequence[tuple[int, int]],
    resolution: tuple[int, int],
    aspect_ratios: Sequence[float] = (1.0, 2.0, 1 / 2, 3.0, 1 / 3),
    reduce_lowest: bool = True,
    min_scales: Sequence[float] = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3),
    max_scales: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 0.95),
    max_samples: int = 2_000,
    seed: int = 0,
) -> ScaleFit:
    """The ``min_scale`` and ``max_scale`` of the SSD rule under which most objects can be matched.

    The number of default boxes stays what it is. Highest recall at IoU 0.5 wins, then the highest mean IoU.

    Args:
        boxes: ``(N, 4)`` xyxy in pixels of the network's input, at least one.
        map_sizes: Height and width of each feature map, finest first.
        resolution: Height and width of the network's input.
        aspect_ratios: As for ``SSDHead``.
        reduce_lowest: As for ``SSDHead``.
        min_scales: Values tried.
        max_scales: Values tried.
        max_samples: Most objects looked at, drawn with ``seed``.
        seed: Of the sample.

    Raises:
        UserError: No object.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if len(boxes) == 0:
        raise UserError("default boxes cannot be fitted to a data set without objects")
    if len(boxes) > max_samples:
        boxes = boxes[np.random.default_rng(seed).choice(len(boxes), max_samples, replace=False)]
    fits = []
    for low in min_scales:
        for high in max_scales:
            if low > high:
                continue
            sizes = ssd_box_sizes(len(map_sizes), low, high, aspect_ratios, reduce_lowest)
            ious = best_possible_ious(boxes, make_default_boxes(sizes, map_sizes, resolution).numpy())
            fits.append(ScaleFit(low, high, float((ious >= 0.5).mean()), float(ious.mean())))
    return max(fits, key=lambda fit: (fit.recall, fit.mean_iou))


def _checked_sizes(sizes: FloatArray, count: int) -> NDArray[np.float64]:
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise UserError("default boxes can only be fitted to boxes whose width and height are positive numbers")
    different = len(np.unique(sizes, axis=0))
    if not 1 <= count <= different:
        raise UserError(f"cannot fit {count} default box sizes to {different} different object sizes")
    return sizes


def _size_iou(sizes: NDArray[np.float64], centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(N, C)`` IoU of boxes with a common centre."""
    intersection = np.minimum(sizes[:, None], centers[None]).prod(axis=2)
    return intersection / (sizes.prod(axis=1)[:, None] + centers.prod(axis=1)[None] - intersection)


def _spread_start(sizes: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """k-means++ starting centres: each drawn with a chance proportional to its squared distance."""
    centers = [sizes[rng.integers(len(sizes))]]
    distance = np.full(len(sizes), np.inf)
    while len(centers) < count:
        distance = np.minimum(distance, np.clip(1 - _size_iou(sizes, centers[-1][None])[:, 0], 0, None))
        weight = distance**2
        centers.append(sizes[rng.choice(len(sizes), p=weight / weight.sum())])
    return np.array(centers)
