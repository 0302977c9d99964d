"""The peer of the SSD duel: torchvision's SSD, with our MobileNetV1 and extra layers as its backbone.

torchvision has no SSD on MobileNetV1; its class takes any backbone. Two forms are measured. ``own head``:
default boxes and 3x3 predictors as torchvision makes them for six maps (2278 boxes). ``same network``: our
predictors and our 1917 boxes put in, so that both sides compute the same network and differ only in how they
are trained.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from benchmarks.steps import SSD_CLASSES, make_detector
from mnvision.heads.ssd import SSDHead
from mnvision.types import DetectionTargets

Target = dict[str, Tensor]


class SixMaps(nn.Module):
    """Backbone and extra layers of our detector as torchvision wants a backbone: maps by name."""

    def __init__(self, backbone: nn.Module, head: SSDHead) -> None:
        super().__init__()
        self.backbone, self.extras = backbone, head.extras
        self.out_channels = [1024 // 2, 1024, 512, 256, 256, 128]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Six maps of normalised images, finest first."""
        maps = list(self.backbone(images))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return OrderedDict((str(i), feature_map) for i, feature_map in enumerate(maps))


class OurPredictors(nn.Module):
    """Our predictors behind the interface of torchvision's head."""

    def __init__(self, head: SSDHead) -> None:
        super().__init__()
        self.predictors = head.predictors

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Logits ``(B, A, K + 1)`` and offsets ``(B, A, 4)`` under torchvision's names."""
        found = [predictor(feature_map) for predictor, feature_map in zip(self.predictors, maps)]
        logits, offsets = zip(*found)
        return {"cls_logits": torch.cat(logits, dim=1), "bbox_regression": torch.cat(offsets, dim=1)}


class OurBoxes(nn.Module):
    """Our default boxes behind the interface of torchvision's generator."""

    def __init__(self, boxes: Tensor) -> None:
        super().__init__()
        self.register_buffer("boxes", boxes)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """The same ``(A, 4)`` xyxy boxes for every image."""
        return [self.boxes for _ in images.image_sizes]


def make_peer(side: int, same_network: bool) -> SSD:
    """The peer on our weights; thresholds as ours, everything else as it comes."""
    ours = make_detector(side)
    backbone = SixMaps(ours.backbone, ours.head)
    head: nn.Module | None = None
    boxes: nn.Module = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2, 3], [2, 3]])
    if same_network:
        head, boxes = OurPredictors(ours.head), OurBoxes(ours.head.default_boxes)
    return SSD(
        backbone,
        boxes,
        (side, side),
        SSD_CLASSES + 1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        head=head,
        nms_thresh=0.6,
        detections_per_img=100,
    )


def as_list(targets: DetectionTargets) -> list[Target]:
    """Padded targets as torchvision takes them: one dict per image, background is label 0."""
    listed = []
    for boxes, labels in zip(targets["boxes"], targets["labels"]):
        real = labels >= 0
        listed.append({"boxes": boxes[real], "labels": labels[real] + 1})
    return listed
