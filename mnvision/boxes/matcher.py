"""Which default box answers for which ground-truth object.

Source: SSD, https://arxiv.org/abs/1512.02325, section 2.2 "Matching strategy", and the TensorFlow Object
Detection API's ``argmax_matcher`` (matched and unmatched threshold 0.5, ``force_match_for_each_row``). The
forced matches follow the authors' Caffe release: pairs are taken in order of falling IoU, so two objects
never share one forced default box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mnvision.types import DetectionTargets

BACKGROUND = -1
IGNORED = -2


def match_default_boxes(
    targets: DetectionTargets,
    default_boxes: Tensor,
    iou_threshold: float = 0.5,
    crowd_threshold: float = 0.5,
    background_threshold: float | None = None,
    force: bool = True,
) -> Tensor:
    """Match every default box of a batch with an object, with the background, or with neither.

    1. Each object is forced onto one default box of its own. All pairs of one image compete by IoU: the best
       pair wins, both leave, and so on (an equal IoU goes to the lower object, then the lower default box).
       An object that loses its first choice takes its best free default box, so it goes unmatched only if no
       free default box overlaps it.
    2. Every other default box goes to the object it overlaps most if their IoU reaches ``iou_threshold``.
    3. What is left is background, except what is ignored: default boxes with more than ``crowd_threshold`` of
       their own area inside one crowd region, and those whose best IoU reaches ``background_threshold``.

    Padding and crowd regions are never matched, nor are objects of no area.

    Args:
        targets: Padded ground truth, N objects per image; N may be 0.
        default_boxes: ``(A, 4)`` xyxy in pixels of the network's input, or ``(B, A, 4)``: each image its own.
        iou_threshold: Least IoU of an unforced match, in (0, 1].
        crowd_threshold: Share of a default box inside a crowd region above which it is ignored.
        background_threshold: Least IoU of the default boxes that are neither object nor background; None leaves
            no gap below ``iou_threshold``.
        force: Whether step 1 is taken.

    Returns:
        ``(B, A)`` int64: index into the N objects, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
    """
    boxes, crowd = targets["boxes"].float(), targets["crowd"]
    shape = (boxes.shape[0], default_boxes.shape[-2])
    if boxes.shape[1] == 0:
        return torch.full(shape, BACKGROUND, dtype=torch.int64, device=boxes.device)
    default_boxes = default_boxes.float()
    default_area = _area(default_boxes)
    real = (targets["labels"] >= 0) & ~crowd
    # A box of no size overlaps nothing: padding and crowd regions drop out without a mask over (B, N, A).
    boxes = boxes.masked_fill(~real[..., None], 0.0)
    intersection = _intersection(boxes, default_boxes)
    union = (_area(boxes)[..., None] + default_area.unsqueeze(-2)).sub_(intersection)
    iou = intersection.div_(union)
    best_iou, matched = iou.max(dim=1)
    if background_threshold is not None:
        matched.masked_fill_(best_iou < iou_threshold, IGNORED)
    floor = iou_threshold if background_threshold is None else background_threshold
    matched.masked_fill_(best_iou < floor, BACKGROUND)
    if bool(crowd.any()):
        covered = _intersection(targets["boxes"].float(), default_boxes).masked_fill_(~crowd[..., None], 0.0)
        ignored = covered.amax(dim=1) > crowd_threshold * default_area
        matched.masked_fill_((matched == BACKGROUND) & ignored, IGNORED)
    if force:
        image, object_index, default_index = _forced_pairs(iou)
        matched[image, default_index] = object_index
    return matched


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(boxes: Tensor, default_boxes: Tensor) -> Tensor:
    """``(B, N, A)`` intersections of ``(B, N, 4)`` with ``(A, 4)`` or ``(B, A, 4)``, in two buffers of that size."""
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = torch.minimum(boxes[..., high, None], default_boxes[..., high].unsqueeze(-2))
        side -= torch.maximum(boxes[..., low, None], default_boxes[..., low].unsqueeze(-2))
        sides.append(side.clamp_(min=0))
    return sides[0].mul_(sides[1])


def _forced_pairs(iou: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy one-to-one pairs of ``(B, N, A)`` IoUs as (image, object, default box) indices.

    Every round settles the pairs that are each other's best choice; the rounds together give what sorting all
    pairs would. The loop runs over rounds (one, plus the depth of the conflicts), for all images at once.
    """
    num_images, num_objects, num_defaults = iou.shape
    rows = iou.view(-1, num_defaults)
    pending = torch.arange(len(rows), device=iou.device)
    score, choice = rows.max(dim=1)
    taken = torch.zeros(num_images * num_defaults, dtype=torch.bool, device=iou.device)
    settled_rows, settled_choices = [], []
    while True:
        alive = score > 0
        pending, score, choice = pending[alive], score[alive], choice[alive]
        if len(pending) == 0:
            break
        key = pending // num_objects * num_defaults + choice
        wins = _first_best(key, score, num_images * num_defaults)
        settled_rows.append(pending[wins])
        settled_choices.append(choice[wins])
        taken[key[wins]] = True
        pending = pending[~wins]
        free = ~taken.view(num_images, num_defaults)[pending // num_objects]
        score, choice = torch.where(free, rows[pending], -1.0).max(dim=1)
    if not settled_rows:
        return pending, pending, pending
    row, default_index = torch.cat(settled_rows), torch.cat(settled_choices)
    return row // num_objects, row % num_objects, default_index


def _first_best(key: Tensor, score: Tensor, num_keys: int) -> Tensor:
    """Mask of the highest score of each key; among equal scores the first."""
    best = score.new_zeros(num_keys).scatter_reduce_(0, key, score, "amax", include_self=False)
    candidates = (score == best[key]).nonzero().squeeze(1)
    # Ascending order and "amin" keep the lowest index among equal scores, on any device.
    first = key.new_full((num_keys,), len(key)).scatter_reduce_(0, key[candidates], candidates, "amin")
    wins = torch.zeros_like(key, dtype=torch.bool)
    wins[first[key[candidates]]] = True
    return wins
