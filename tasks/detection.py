"""Object detection: an SSD trained on boxes and scored by the twelve COCO numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.boxes.rescale import to_original_pixels
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.coco_scores import CocoScores
from mnvision.models import Detector
from mnvision.types import DetectionBatch
from tasks.base import VisionTask
from tasks.distillation import Distillation

log = logging.getLogger("mnvision")

# Category id of classes that the evaluated data set does not have; the evaluator counts and leaves them out.
UNSCORED = -1


class DetectionTask(VisionTask):
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
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile, distillation)
        self.loss = loss
        self.backend = evaluator
        self.ground_truth: dict[str, Any] = {}
        self.category_ids: list[int] = []
        self.evaluator: CocoEvaluator | None = None
        self.scores: CocoScores | None = None

    def prepare_evaluation(self, data: Any, split: str) -> None:
        """Score against ``split`` of a data module, its categories found by name.

        Raises:
            UserError: Not one of the model's classes occurs in the data.
        """
        ids = dict(zip(data.class_names, data.category_ids, strict=True))
        shared = [name for name in self.metadata.class_names if name in ids]
        if not shared:
            raise UserError(
                f"none of the model's classes ({', '.join(self.metadata.class_names[:5])}, ...) is a category of the "
                f"data set ({', '.join(data.class_names[:5])}, ...)"
            )
        absent = [name for name in data.class_names if name not in self.metadata.class_names]
        if absent:
            log.warning("the model does not know %d classes of the data: %s", len(absent), ", ".join(absent[:5]))
        self.category_ids = [ids.get(name, UNSCORED) for name in self.metadata.class_names]
        self.ground_truth = data.ground_truth(split)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        """The joint loss of one batch, and what a teacher adds."""
        outputs, maps = self.answers(batch)
        losses = None
        if self.label_share > 0:
            losses = self.loss(outputs, batch["targets"], self.model.head.default_boxes)
        return self.learned(losses, outputs, batch, maps)

    def on_validation_epoch_start(self) -> None:
        """Forget the previous epoch's detections."""
        if not self.labelled:
            return
        if not self.ground_truth:
            self.prepare_evaluation(self.trainer.datamodule, "val")  # type: ignore[attr-defined]
        self.evaluator = CocoEvaluator(self.ground_truth, backend=self.backend)

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        """Collect detections in original pixels; without labels compare with the teacher."""
        model: Any = self.evaluation_model
        if not self.labelled:
            outputs, maps = self.answers(batch, model)
            return self.compare_with_teacher(outputs, batch, maps)
        assert self.evaluator is not None
        images = self.pixels(batch)
        outputs = model(images)
        boxes = model.head.default_boxes
        self.log_losses("val", self.loss(outputs, batch["targets"], boxes), len(images))
        resolution = (images.shape[2], images.shape[3])
        detections = model.decoder(outputs, boxes, resolution)
        original = to_original_pixels(detections, batch["sizes"], resolution)
        self.evaluator.update(batch["image_ids"], original, self.category_ids)

    def on_validation_epoch_end(self) -> None:
        """The twelve numbers, the same in every process."""
        if not self.labelled:
            return
        assert self.evaluator is not None
        self.evaluator.gather()
        self.scores = self.evaluator.compute()
        self.log_dict({f"val/{name}": value for name, value in self.scores.twelve().items()})

    def write_report(self, folder: Path) -> list[str]:
        """Detections, scores and figures of the last evaluation.

        Returns:
            Lines for the terminal: the twelve numbers and AP per class.
        """
        from tasks.reports import detection_report

        assert self.evaluator is not None
        assert self.scores is not None
        return detection_report(folder, self.evaluator, self.scores)
