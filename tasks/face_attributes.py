"""Face attributes: sigmoid cross-entropy or a teacher's probabilities, scored by mean average precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.losses.attributes import AttributeLoss, masked_cross_entropy
from mnvision.metrics.attribute_scores import AttributeMetrics
from mnvision.metrics.attributes import AttributeEvaluator
from mnvision.metrics.binary import CRITERIA, Criterion
from mnvision.models import AttributeClassifier
from mnvision.prediction.attributes import stored_thresholds
from mnvision.types import AttributeBatch
from tasks.base import VisionTask
from tasks.distillation import Distillation

log = logging.getLogger("mnvision")


class FaceAttributesTask(VisionTask):
    """Trains and evaluates an :class:`~mnvision.models.AttributeClassifier`.

    After every validation of a training run the thresholds that are best there go into
    ``metadata.calibration["thresholds"]``, and with it into the checkpoint of the same weights. An evaluation uses
    those and never chooses its own.

    Args:
        model: Backbone, attribute head and sigmoid.
        metadata: Stored in every checkpoint; its class names are the attributes.
        loss: Called with logits and labels ``(B, A)``.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        threshold_by: What the thresholds maximise: "balanced_accuracy", "accuracy" or "f1".
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: See :class:`~tasks.base.VisionTask`.
        distillation: See :class:`~tasks.base.VisionTask`.

    Raises:
        UserError: An unknown ``threshold_by``.
    """

    model: AttributeClassifier

    def __init__(
        self,
        model: AttributeClassifier,
        metadata: Metadata,
        loss: AttributeLoss,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        threshold_by: Criterion = "balanced_accuracy",
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile, distillation)
        if threshold_by not in CRITERIA:
            raise UserError(f"task.threshold_by={threshold_by}: choose one of {', '.join(CRITERIA)}")
        self.loss = loss
        self.threshold_by = threshold_by
        self.evaluator: AttributeEvaluator | None = None
        self.scores: AttributeMetrics | None = None
        # Columns of the model and of the data set that are the same attribute.
        self._columns: tuple[list[int], list[int]] | None = None

    def prepare_evaluation(self, data: Any, split: str) -> None:
        """Find the data set's attributes among the model's by name; those that only one of them has are not scored.

        Raises:
            UserError: They share none.
        """
        known, given = self.metadata.class_names, list(data.class_names)
        shared = [name for name in known if name in given]
        if not shared:
            raise UserError(
                f"none of the model's attributes ({_some(known)}) is one of the data set's ({_some(given)}); "
                "name its columns as the model does"
            )
        for names, others, text in (
            (given, known, "the model does not know %d attributes of the data, which are not scored: %s"),
            (known, given, "the data lack %d attributes of the model, which are not scored: %s"),
        ):
            absent = [name for name in names if name not in others]
            if absent:
                log.warning(text, len(absent), _some(absent))
        self._columns = ([known.index(name) for name in shared], [given.index(name) for name in shared])

    def on_fit_start(self) -> None:
        """Count the training labels: for positive weights, and for the guess that accuracies are held against.

        Raises:
            UserError: A split that has to have labels has none.
        """
        super().on_fit_start()
        if not self.labelled:
            return
        data = self.data
        for split in ("train", "val") if self.label_share > 0 else ("val",):
            if not (data.source(split).labels >= 0).any():
                raise UserError(f"{data.source(split).report.source}: not one label is known; check the file")
        labels, names = data.source("train").labels, self.metadata.class_names
        self.loss.prepare(names, labels)
        yes, known = (labels == 1).sum(axis=0), (labels >= 0).sum(axis=0)
        share = np.where(known > 0, yes / np.maximum(known, 1), -1.0)
        self.metadata.calibration["train_positive_share"] = [round(float(value), 6) for value in share]

    def label_losses(self, raw: Tensor, batch: AttributeBatch) -> dict[str, Tensor]:
        """Cross-entropy of logits."""
        return {"loss": self.loss(raw, batch["labels"])}

    def on_validation_epoch_start(self) -> None:
        """Forget the previous epoch's predictions."""
        if not self.labelled:
            return
        if self._columns is None:
            self.prepare_evaluation(self.data, "val")
        assert self._columns is not None
        self.evaluator = AttributeEvaluator([self.metadata.class_names[i] for i in self._columns[0]])

    def validation_step(self, batch: AttributeBatch, batch_idx: int) -> None:
        """Collect probabilities; without labels compare with the teacher."""
        model: Any = self.evaluation_model
        if not self.labelled:
            logits, maps = self.answers(batch, model)
            return self.compare_with_teacher(logits, batch, maps)
        assert self.evaluator is not None
        assert self._columns is not None
        logits = model(self.pixels(batch)).float()[:, self._columns[0]]
        labels = batch["labels"][:, self._columns[1]]
        # Unweighted: the same number whatever the training's weights are.
        loss = masked_cross_entropy(logits, labels)
        self.log("val/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.evaluator.update(model.decoder(logits), labels, batch["indices"])

    def on_validation_epoch_end(self) -> None:
        """Thresholds in a training run, and all scores; the same in every process."""
        if not self.labelled:
            return
        assert self.evaluator is not None
        self.evaluator.gather()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._calibrate(self.evaluator)
        self.scores = self.evaluator.compute(self._stored_thresholds(), self._stored_majority())
        self.log_dict({f"val/{name}": value for name, value in self.scores.scalars().items()})

    def on_fit_end(self) -> None:
        """Name the attributes that were not learned."""
        if self.scores is not None and self.scores.dead and self.trainer.is_global_zero:
            dead = self.scores.dead
            log.warning("%d dead attributes, answered alike for all pictures: %s", len(dead), ", ".join(dead))

    def take_up(self, stored: Metadata) -> None:
        """Refuse to go on with other attributes.

        Raises:
            UserError: They are others, or in another order.
        """
        super().take_up(stored)
        if stored.class_names != self.metadata.class_names:
            raise UserError(
                f"ckpt_path: trained on the attributes {_some(stored.class_names)}, but the data have "
                f"{_some(self.metadata.class_names)}, or the same in another order"
            )

    def write_report(self, folder: Path) -> list[str]:
        """Scores per attribute and figures of the last evaluation.

        Returns:
            Lines for the terminal.
        """
        from tasks.reports import attribute_report

        assert self.scores is not None
        return attribute_report(folder, self.scores)

    def _calibrate(self, evaluator: AttributeEvaluator) -> None:
        assert self._columns is not None
        thresholds = [0.5] * len(self.metadata.class_names)
        for column, value in zip(self._columns[0], evaluator.thresholds(self.threshold_by).tolist()):
            thresholds[column] = value
        self.metadata.calibration |= {"thresholds": thresholds, "by": self.threshold_by}

    def _stored_thresholds(self) -> Sequence[float] | None:
        """Of the scored attributes; None where the checkpoint has none."""
        assert self._columns is not None
        thresholds = stored_thresholds(self.metadata)
        return None if thresholds is None else thresholds[self._columns[0]].tolist()

    def _stored_majority(self) -> list[int] | None:
        """The commoner answer of the scored attributes in the training set, -1 where that had no label."""
        assert self._columns is not None
        share = self.metadata.calibration.get("train_positive_share")
        if share is None or len(share) != len(self.metadata.class_names):
            return None
        return [-1 if share[column] < 0 else int(share[column] >= 0.5) for column in self._columns[0]]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
