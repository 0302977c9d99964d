"""What the tasks of all detectors share: they are scored by the twelve COCO numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.boxes.rescale import to_original_pixels
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.coco_scores import CocoScores
from mnvision.types import DetectionBatch, Detections
from tasks.base import VisionTask
from tasks.distillation import Distillation

log = logging.getLogger("mnvision")

# Category id of classes that the evaluated data set does not have; the evaluator counts and leaves them out.
UNSCORED = -1


class BoxScoringTask(VisionTask):
    """Evaluates a detector; a subclass trains it and hands every validation batch's detections to :meth:`collect`.

    Args:
        model: Gives detections.
        metadata: Stored in every checkpoint.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        evaluator: ``"vectorized"`` (ours) or ``"pycocotools"``; the numbers are the same.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: See :class:`~tasks.base.VisionTask`.
        distillation: See :class:`~tasks.base.VisionTask`.
    """

    def __init__(
        self,
        model: nn.Module,
        metadata: Metadata,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        evaluator: Literal["vectorized", "pycocotools"] = "vectorized",
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile, distillation)
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

    def on_validation_epoch_start(self) -> None:
        """Forget the previous epoch's detections."""
        if not self.labelled:
            return
        if not self.ground_truth:
            self.prepare_evaluation(self.data, "val")
        self.evaluator = CocoEvaluator(self.ground_truth, backend=self.backend)

    def collect(self, detections: Detections, batch: DetectionBatch) -> None:
        """Keep a batch's detections for the scores.

        Args:
            detections: In pixels of the batch's images.
            batch: As the loader gives it.
        """
        assert self.evaluator is not None
        height, width = batch["images"].shape[2:]
        original = to_original_pixels(detections, batch["sizes"], (height, width))
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
