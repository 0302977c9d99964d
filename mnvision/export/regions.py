"""Faster R-CNN with static shapes and without branches on the data, for formats that hold a suppression.

The same result as :meth:`mnvision.models.FasterRCNN.answer`: the best anchors, the first P of them that survive, a crop
of each, and what the classifier says of it. Where fewer survive, rows of zeros fill up.

Memory grows with the pictures that go in at once: there is no loop over them, and a crop of 14 x 14 cells of 512
channels takes 0.4 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnvision.boxes.coder import decode_boxes
from mnvision.boxes.crops import SAMPLES, sample_positions
from mnvision.boxes.postprocess import clip_boxes
from mnvision.export.suppression import KeepRule, NmsSettings, first_kept
from mnvision.types import RegionOutputs

KIND = "faster_rcnn"
"""``kind`` of the models that this is for."""
AT_ONCE = 1500
"""Regions that go through a file at once where any number of pictures can: five pictures of 300, whose crops take
0.6 GB in a network of width 1. Of fewer regions it is no more pictures, for all anchors of each are compared, too."""
PICTURES = 5
CALIBRATED = 2e9
"""Bytes that crops may take while int8 is calibrated."""
KEPT = 5
"""Of so many pictures the quantiser keeps one's crops in memory."""


@dataclass(frozen=True)
class StaticRegions:
    """Raw outputs of a Faster R-CNN for the backbone's one map.

    Attributes:
        model: A :class:`~mnvision.models.FasterRCNN`.
        keep: How proposals are chosen.
    """

    model: Any
    keep: KeepRule

    def __call__(self, maps: Sequence[Tensor]) -> RegionOutputs:
        """For a map ``(B, C, H, W)``."""
        (feature_map,) = maps
        head = self.model.head
        objectness, anchor_offsets = head.rpn(feature_map)
        boxes, scores = self._proposals(objectness, anchor_offsets)
        crops = crop_statically(feature_map, boxes, head.resolution, head.crop_size)
        logits, offsets = head.classify(self.model.backbone.forward_tail(crops))
        return {
            "objectness": objectness,
            "anchor_offsets": anchor_offsets,
            "proposals": boxes,
            "proposal_scores": scores,
            "cls_logits": logits.unflatten(0, boxes.shape[:2]),
            "box_offsets": offsets.unflatten(0, boxes.shape[:2]),
        }

    def _proposals(self, objectness: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, P, 4)`` and scores ``(B, P)``, best first, of ``(B, A)`` logits and ``(B, A, 4)`` offsets."""
        head = self.model.head
        boxes, scores, possible = head.candidates(objectness.float().sigmoid(), offsets)
        total = scores.shape[1]
        labels = torch.zeros_like(scores, dtype=torch.int64)  # one class: all suppress each other
        # Ranks in the place of scores: anchors that are all but certain have the same one, which runtimes would
        # order each in its own way.
        ranks = torch.arange(total, 0, -1, device=scores.device, dtype=torch.float32)
        ranks = torch.where(possible, ranks, 0.0)
        settings = NmsSettings(0.0, head.nms_iou, total, head.num_proposals, head.num_proposals)
        kept = self.keep(boxes, ranks, labels, 1, settings) & possible
        boxes, scores, _, _ = first_kept(boxes, scores, labels, kept, head.num_proposals)
        return boxes, scores


def make_static(model: Any, keep: KeepRule) -> None:
    """Have a Faster R-CNN answer by :class:`StaticRegions` from now on; other models stay as they are.

    Args:
        model: A single-task model, in eval mode; changed in place.
        keep: How proposals are chosen.
    """
    if model.kind == KIND:
        model.answer = StaticRegions(model, keep)


def pictures_at_once(config: Mapping[str, Any]) -> int:
    """How many pictures go into a file at once where it takes any number.

    Args:
        config: Of the model.
    """
    models = config.get("heads", {"": config}).values()
    heads = [model["head"] for model in models if model["_target_"].endswith(".FasterRCNN")]
    most = max((head.get("num_proposals", 300) for head in heads), default=0)
    return min(max(AT_ONCE // most, 1), PICTURES) if most else sys.maxsize


def calibrated_pictures(model: Any) -> int:
    """The most pictures that int8 can be calibrated on: of some, what goes into a layer is kept, for all crops.

    Args:
        model: A single-task model.
    """
    if model.kind != KIND:
        return sys.maxsize
    head = model.head
    crops = head.num_proposals * head.rpn.conv.in_channels * head.crop_size**2 * 4
    return int(KEPT * CALIBRATED / crops)


def crop_statically(feature_map: Tensor, boxes: Tensor, resolution: tuple[int, int], size: int) -> Tensor:
    """The numbers of :func:`~mnvision.boxes.crops.crop_map` by two matrix products, one along each axis.

    Its weights are products of one along x and one along y, so no operator of a runtime's own has to sample alike.

    Args:
        feature_map: ``(B, C, H, W)``.
        boxes: ``(B, P, 4)`` xyxy in pixels of the network's input, inside it.
        resolution: Height and width of the network's input.
        size: Cells of a crop's side.

    Returns:
        ``(B * P, C, size, size)`` in the dtype of the map.
    """
    channels, rows, columns = feature_map.shape[1:]
    height, width = resolution
    y = _shares(boxes[..., 1] * (rows / height), boxes[..., 3] * (rows / height), rows, size).to(feature_map.dtype)
    x = _shares(boxes[..., 0] * (columns / width), boxes[..., 2] * (columns / width), columns, size)
    x = x.to(feature_map.dtype)
    cells = feature_map.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * C)
    lines = (y.flatten(1, 2) @ cells).reshape(-1, size, columns, channels)  # (B * P, size, W, C)
    crops = x.flatten(0, 1)[:, None] @ lines  # (B * P, size, size, C)
    return crops.permute(0, 3, 1, 2)


def _shares(low: Tensor, high: Tensor, cells: int, size: int, samples: int = SAMPLES) -> Tensor:
    """How much of each cell of one axis goes into each cell of the crops: ``(B, P, size, cells)``.

    Linear interpolation gives a cell 1 less its distance from the sample, where that is positive.
    """
    position = sample_positions(low, high, cells, size, samples)
    distance = (position[..., None] - torch.arange(cells, device=low.device)).abs()
    return (1 - distance).clamp(min=0).unflatten(2, (size, samples)).mean(dim=3)


class DecodeRegions(nn.Module):
    """Raw outputs of a Faster R-CNN to boxes and scores of every class of every proposal.

    Args:
        resolution: Height and width of the network's input, to which boxes are clipped.
    """

    def __init__(self, resolution: tuple[int, int]) -> None:
        super().__init__()
        self.resolution = resolution

    def forward(self, outputs: RegionOutputs) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, P, K, 4)`` float32, xyxy in pixels, and scores ``(B, P, K)`` float32; 0 in padding rows."""
        real = outputs["proposal_scores"] > 0
        scores = outputs["cls_logits"].float().softmax(dim=-1)[..., 1:]
        boxes = decode_boxes(outputs["box_offsets"], outputs["proposals"][:, :, None])
        return clip_boxes(boxes, self.resolution), torch.where(real[..., None], scores, 0.0)
