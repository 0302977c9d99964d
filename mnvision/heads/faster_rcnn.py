"""Faster R-CNN head: a region proposal network, and the classifier of the proposals.

Source: Faster R-CNN, https://arxiv.org/abs/1506.01497, as the TensorFlow Object Detection API builds it for MobileNetV1
(``faster_rcnn_mobilenet_v1_feature_extractor.py``, ``faster_rcnn_inception_v2_coco.config``) and as MobileNets,
https://arxiv.org/abs/1704.04861, table 13, counts it: 300 proposals, each cropped to 14 x 14 cells of the map of stride
16 and run through the backbone's last two blocks. Pooling the crops to 7 x 7 before those blocks, as TF's config of
another backbone does, would cost 9.5 billion multiply-adds at 300 px where the table says 25.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from mnvision.backbones.mobilenet_v1 import scaled_channels
from mnvision.boxes.coder import decode_boxes
from mnvision.boxes.crops import crop_map
from mnvision.boxes.default_boxes import feature_map_sizes, make_default_boxes
from mnvision.boxes.nms import rank_in_group
from mnvision.boxes.postprocess import clip_boxes, has_area
from mnvision.errors import UserError
from mnvision.types import Proposals

RPN_CHANNELS = 512
RPN_INIT_STD = 0.01
ANCHOR_SCALES = (64 / 600, 128 / 600, 256 / 600, 512 / 600)


class FasterRCNNHead(nn.Module):
    """Proposals from one feature map, and class logits and box offsets of each.

    Objectness is one logit per anchor (TF has a softmax over two, which is the same thing). Anchors that reach over the
    edge of the picture take part, as in torchvision.

    Args:
        in_channels: Channels of the backbone's maps: one number, since one map is used.
        in_strides: Its stride in pixels.
        region_channels: Channels of a crop behind the backbone's tail.
        num_classes: Classes without background, K.
        resolution: Side of the network's input in pixels.
        alpha: Width multiplier of the proposal network's hidden layer, 512 channels at 1.
        anchor_scales: Square roots of the anchors' areas as fractions of the input's side; TF's 64 to 512 pixels of
            a picture of 600.
        aspect_ratios: Width / height of the anchors.
        num_proposals: Proposals of an image, P; also the most that are passed on in training.
        pre_nms_top_k: Best anchors that go into the suppression (TF: all; torchvision: 2000 in training).
        nms_iou: Proposals that overlap a better one by more than this are dropped.
        crop_size: Cells of a crop's side.

    Attributes:
        anchors: ``(A, 4)`` float32 buffer, xyxy in pixels of the network's input; not in the state dict.
        num_classes: K.
        resolution: Height and width.
        map_size: Height and width of the feature map.

    Raises:
        UserError: An argument outside its range.
    """

    anchors: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        region_channels: int,
        num_classes: int,
        resolution: int,
        alpha: float = 1.0,
        anchor_scales: Sequence[float] = ANCHOR_SCALES,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        num_proposals: int = 300,
        pre_nms_top_k: int = 2000,
        nms_iou: float = 0.7,
        crop_size: int = 14,
    ) -> None:
        super().__init__()
        counts = {"num_proposals": num_proposals, "pre_nms_top_k": pre_nms_top_k, "crop_size": crop_size}
        _check_arguments(in_channels, {"num_classes": num_classes, "resolution": resolution, **counts}, nms_iou)
        self.num_classes, self.resolution = num_classes, (resolution, resolution)
        self.pre_nms_top_k, self.nms_iou, self.crop_size = pre_nms_top_k, nms_iou, crop_size
        sizes = anchor_sizes(anchor_scales, aspect_ratios)
        (self.map_size,) = feature_map_sizes(self.resolution, in_strides, 0)
        anchors = make_default_boxes([sizes], [self.map_size], self.resolution)
        self.register_buffer("anchors", anchors, persistent=False)
        self.num_proposals = min(num_proposals, len(anchors))
        self.rpn = _ProposalNetwork(in_channels[0], scaled_channels(RPN_CHANNELS, alpha), len(sizes))
        self.cls = nn.Linear(region_channels, num_classes + 1)
        self.box = nn.Linear(region_channels, num_classes * 4)
        for layer in (self.cls, self.box):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))

    def propose(self, feature_map: Tensor) -> Proposals:
        """Proposals of each image, P of them, padded where suppression leaves fewer.

        Args:
            feature_map: ``(B, C, H, W)``.

        Raises:
            UserError: The map is not that of an input of ``resolution``.
        """
        found = (feature_map.shape[2], feature_map.shape[3])
        if found != self.map_size:
            height, width = self.resolution
            raise UserError(
                f"the Faster R-CNN head for {height} x {width} px needs a feature map of {self.map_size}, got {found}: "
                "resize the images or build the model for their size"
            )
        objectness, offsets = self.rpn(feature_map)
        proposals, scores = self._best_boxes(objectness.detach(), offsets.detach())
        return {
            "objectness": objectness,
            "anchor_offsets": offsets,
            "proposals": proposals,
            "proposal_scores": scores,
        }

    def candidates(self, scores: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What goes into the suppression.

        Args:
            scores: ``(B, A)`` of the anchors, 0 to 1.
            offsets: ``(B, A, 4)``.

        Returns:
            Boxes ``(B, M, 4)``, best first, their scores ``(B, M)``, and which of them could be proposals.
        """
        scores, index = scores.topk(min(self.pre_nms_top_k, scores.shape[1]), dim=1)
        offsets = offsets.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(decode_boxes(offsets, self.anchors[index]), self.resolution)
        return boxes, scores, has_area(boxes) & (scores > 0)

    @torch.no_grad()
    def _best_boxes(self, objectness: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, P, 4)`` boxes and ``(B, P)`` scores, best first, of ``(B, A)`` logits and ``(B, A, 4)`` offsets."""
        with torch.autocast(objectness.device.type, enabled=False):
            boxes, scores, possible = self.candidates(objectness.float().sigmoid().nan_to_num(nan=0.0), offsets)
            image, rank = possible.nonzero(as_tuple=True)
            boxes, scores = boxes[image, rank], scores[image, rank]
            kept = batched_nms(boxes, scores, image, self.nms_iou).sort().values
            image, boxes, scores = image[kept], boxes[kept], scores[kept]
            place = rank_in_group(image)
            first = place < self.num_proposals
            image, place = image[first], place[first]
            best_boxes = boxes.new_zeros(len(objectness), self.num_proposals, 4)
            best_scores = boxes.new_zeros(len(objectness), self.num_proposals)
            best_boxes[image, place], best_scores[image, place] = boxes[first], scores[first]
            return best_boxes, best_scores

    def crops(self, feature_map: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """``(R, C, crop_size, crop_size)`` parts of the map; arguments as in :func:`~mnvision.boxes.crops.crop_map`."""
        return crop_map(feature_map, image, boxes, self.resolution, self.crop_size)

    def classify(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits ``(R, K + 1)`` and box offsets ``(R, K, 4)`` of crops behind the tail ``(R, C', h, w)``."""
        pooled = regions.mean(dim=(2, 3))
        return self.cls(pooled), self.box(pooled).view(-1, self.num_classes, 4)


class _ProposalNetwork(nn.Module):
    """Objectness and box offsets of every anchor: a 3 x 3 convolution, then two 1 x 1."""

    def __init__(self, in_channels: int, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.box = nn.Conv2d(channels, num_anchors * 4, 1)
        for layer in (self.conv, self.objectness, self.box):
            nn.init.trunc_normal_(layer.weight, std=RPN_INIT_STD, a=-2 * RPN_INIT_STD, b=2 * RPN_INIT_STD)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(B, C, H, W)`` to ``(B, A)`` and ``(B, A, 4)``, in the order of the anchors."""
        hidden = F.relu(self.conv(feature_map))
        objectness = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1)
        offsets = self.box(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return objectness, offsets


def anchor_sizes(scales: Sequence[float], aspect_ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Width and height of the anchors of one cell, fractions of the input's side: each ratio at each scale.

    Args:
        scales: Square roots of the areas, in (0, 4].
        aspect_ratios: Width / height, above 0.

    Raises:
        UserError: A value outside its range, or none.
    """
    for name, values, most in (("anchor_scales", scales, 4.0), ("aspect_ratios", aspect_ratios, 100.0)):
        if not values or not all(0 < value <= most for value in values):
            raise UserError(f"{name} of the head must be numbers above 0 and at most {most:g}, got {list(values)}")
    return [(scale * ratio**0.5, scale / ratio**0.5) for scale in scales for ratio in aspect_ratios]


def _check_arguments(in_channels: Sequence[int], counts: dict[str, int], nms_iou: float) -> None:
    if len(in_channels) != 1:
        raise UserError(
            f"the Faster R-CNN head takes one feature map, the backbone gives {len(in_channels)}: set "
            "backbone.out_strides to one stride, such as [16]"
        )
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} of the Faster R-CNN head must be a whole number >= 1, got {value!r}")
    if not 0 < nms_iou <= 1:
        raise UserError(f"nms_iou of the Faster R-CNN head must lie in (0, 1], got {nms_iou}")
