"""Object detection: an SSD trained on boxes and scored by the twelve COCO numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import Metadata
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.models import Detector
from mnvision.types import DetectionBatch, SSDOutputs
from tasks.box_scoring import BoxScoringTask
from tasks.distillation import Distillation


class DetectionTask(BoxScoringTask):
    """Trains and evaluates a :class:`~mnvision.models.Detector`.

    Args:
        model: Backbone, SSD head and decoder.
        metadata: Stored in every checkpoint.
        loss: Gives ``loss``, ``loss_cls`` and ``loss_box`` from raw outputs and targets.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        evaluator: ``"vectorized"`` (ours) or ``"pycocotools"``; the numbers are the same.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: See :class:`~tasks.base.VisionTask`.
        distillation: See :class:`~tasks.base.VisionTask`.
    """

    model: Detector

    def __init__(
        self,
        model: Detector,
        metadata: Metadata,
        loss: MultiBoxLoss,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        evaluator: Literal["vectorized", "pycocotools"] = "vectorized",
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, evaluator, channels_last, compile, distillation)
        self.loss = loss

    def label_losses(self, raw: SSDOutputs, batch: DetectionBatch) -> dict[str, Tensor]:
        """The joint loss of classes and boxes, and its parts."""
        return self.loss(raw, batch["targets"], self.model.head.default_boxes)

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        """Collect detections in original pixels; without labels compare with the teacher."""
        model: Any = self.evaluation_model
        if not self.labelled:
            outputs, maps = self.answers(batch, model)
            return self.compare_with_teacher(outputs, batch, maps)
        images = self.pixels(batch)
        outputs = model(images)
        boxes = model.head.default_boxes
        self.log_losses("val", self.loss(outputs, batch["targets"], boxes), len(images))
        resolution = (images.shape[2], images.shape[3])
        self.collect(model.decoder(outputs, boxes, resolution), batch)
