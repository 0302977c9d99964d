"""Our side of the training duels: models composed as ``conf/`` composes them, data, and one training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.boxes.postprocess import SSDDecoder
from mnvision.heads.classifier import ClassifierHead, ClassScores
from mnvision.heads.ssd import SSDHead
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.models import Classifier, Detector
from mnvision.optim import parameter_groups
from mnvision.types import DetectionTargets

SSD_SIDE, SSD_CLASSES, MEAN_OBJECTS = 300, 80, 7
CLASSIFIER_SIDE, CLASSIFIER_CLASSES = 224, 1000


def make_detector(side: int = SSD_SIDE) -> Detector:
    """``task=ssd_coco`` with 80 classes; the same weights in every process."""
    torch.manual_seed(0)
    backbone = MobileNetV1(resolution=side, out_strides=(16, 32))
    head = SSDHead(backbone.feature_channels, backbone.feature_strides, SSD_CLASSES, side)
    return Detector(backbone, head, SSDDecoder())


def make_classifier(side: int = CLASSIFIER_SIDE) -> Classifier:
    """``task=imagenet`` with 1000 classes; the same weights in every process."""
    torch.manual_seed(0)
    backbone = MobileNetV1(resolution=side)
    head = ClassifierHead(backbone.feature_channels, CLASSIFIER_CLASSES)
    return Classifier(backbone, head, ClassScores())


def make_images(batch: int, side: int) -> Tensor:
    """``(batch, 3, side, side)`` uint8."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)


def make_targets(batch: int, side: int) -> DetectionTargets:
    """1 to 13 boxes per picture, 7 on average, with sides from 4 % to 60 % of the picture's."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.arange(batch) * 5 % (2 * MEAN_OBJECTS - 1) + 1
    largest = int(counts.max())
    centres = torch.rand(batch, largest, 2, generator=generator)
    sides = 0.04 + 0.56 * torch.rand(batch, largest, 2, generator=generator) ** 2
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1).clamp(0, 1) * side
    labels = torch.randint(0, SSD_CLASSES, (batch, largest), generator=generator)
    padding = torch.arange(largest) >= counts[:, None]
    return {
        "boxes": boxes.masked_fill(padding[..., None], 0.0),
        "labels": labels.masked_fill(padding, -1),
        "crowd": torch.zeros(batch, largest, dtype=torch.bool),
    }


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """``conf/optimizer/sgd.yaml``; at a tiny rate, so that random pixels cannot make weights diverge."""
    return torch.optim.SGD(parameter_groups(model), lr=1e-6, momentum=0.9, nesterov=True, weight_decay=4e-5)


def repeated(step: Callable[[], None], steps: int, units: int) -> Callable[[], int]:
    """A round of ``steps`` steps of ``units`` units each."""

    def run() -> int:
        for _ in range(steps):
            step()
        return steps * units

    return run


def detection_step(
    batch: int, side: int, channels_last: bool = True, bf16: bool = False, device: str = "cpu"
) -> Callable[[], None]:
    """One training step of our detector: forward, loss, backward, optimizer."""
    model = make_detector(side).to(device).train()
    images, targets = make_images(batch, side).to(device), make_targets(batch, side)
    targets = {
        "boxes": targets["boxes"].to(device),
        "labels": targets["labels"].to(device),
        "crowd": targets["crowd"].to(device),
    }
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    loss, optimizer = MultiBoxLoss(), optimizer_for(model)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            total = loss(model(images), targets, model.head.default_boxes)["loss"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def classification_step(
    batch: int, side: int, channels_last: bool = True, bf16: bool = False, device: str = "cpu"
) -> Callable[[], None]:
    """One training step of our classifier."""
    model = make_classifier(side).to(device).train()
    images = make_images(batch, side).to(device)
    labels = (torch.arange(batch) % CLASSIFIER_CLASSES).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    loss, optimizer = nn.CrossEntropyLoss(), optimizer_for(model)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            total = loss(model(images).float(), labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step
