"""Image classification: softmax cross-entropy, scored by top-1, top-5 and mean per-class accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.metrics.classification import ClassificationEvaluator, ClassificationScores
from mnvision.models import Classifier
from mnvision.types import ClassificationBatch
from tasks.base import VisionTask
from tasks.distillation import Distillation


class ClassificationTask(VisionTask):
    """Trains and evaluates a :class:`~mnvision.models.Classifier`.

    Args:
        model: Backbone, classifier and softmax.
        metadata: Stored in every checkpoint.
        loss: Called with logits ``(B, K)`` and labels ``(B,)``.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: See :class:`~tasks.base.VisionTask`.
        distillation: See :class:`~tasks.base.VisionTask`.
    """

    model: Classifier
    label_map: Tensor

    def __init__(
        self,
        model: Classifier,
        metadata: Metadata,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile, distillation)
        self.loss = loss
        self.evaluator: ClassificationEvaluator | None = None
        self.scores: ClassificationScores | None = None
        self._notes: list[str] = []
        self._dataset: Any = None
        self.register_buffer("label_map", torch.arange(len(metadata.class_names)), persistent=False)

    def prepare_evaluation(self, data: Any, split: str) -> None:
        """Find the data set's classes among the model's by name; a subset of them is fine.

        Raises:
            UserError: A class of the data set is unknown to the model.
        """
        position = {name: i for i, name in enumerate(self.metadata.class_names)}
        unknown = [name for name in data.class_names if name not in position]
        if unknown:
            raise UserError(
                f"{len(unknown)} of the data set's {len(data.class_names)} classes are unknown to the model, first "
                f"{unknown[0]!r}; the model's are {', '.join(self.metadata.class_names[:5])}, ...; name the folders "
                "so, or map them with data.class_names_file"
            )
        self.label_map = torch.tensor([position[name] for name in data.class_names], device=self.device)
        self._notes, self._dataset = data.notes(split), data.eval_dataset(split, None)

    def label_losses(self, raw: Tensor, batch: ClassificationBatch) -> dict[str, Tensor]:
        """Cross-entropy of logits."""
        return {"loss": self.loss(raw.float(), batch["labels"])}

    def on_validation_epoch_start(self) -> None:
        """Forget the previous epoch's predictions."""
        self.evaluator = ClassificationEvaluator(self.metadata.class_names)

    def validation_step(self, batch: ClassificationBatch, batch_idx: int) -> None:
        """Collect probabilities; without labels compare with the teacher."""
        model: Any = self.evaluation_model
        if not self.labelled:
            logits, maps = self.answers(batch, model)
            return self.compare_with_teacher(logits, batch, maps)
        assert self.evaluator is not None
        logits = model(self.pixels(batch)).float()
        labels = self.label_map[batch["labels"]]
        loss = nn.functional.cross_entropy(logits, labels)
        self.log("val/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.evaluator.update(model.decoder(logits), labels, batch["indices"])

    def on_validation_epoch_end(self) -> None:
        """Accuracies, the same in every process."""
        if not self.labelled:
            return
        assert self.evaluator is not None
        self.evaluator.gather()
        self.scores = self.evaluator.compute()
        names = ("top1", "top5", "mean_per_class")
        values = {f"val/{name}": getattr(self.scores, name) for name in names}
        self.log_dict({name: value for name, value in values.items() if value is not None})

    def write_report(self, folder: Path) -> list[str]:
        """Accuracy per class, the confusion matrix and pictures of the commonest mistakes of the last evaluation.

        Returns:
            Lines for the terminal.
        """
        from tasks.reports import classification_report

        assert self.scores is not None
        picture = None if self._dataset is None else self._picture
        return classification_report(folder, self.scores, self._notes, picture)

    def _picture(self, position: int) -> NDArray[np.uint8]:
        """What the network saw of an evaluated sample, ``(H, W, 3)``."""
        pixels: NDArray[np.uint8] = self._dataset.view(position).image.permute(1, 2, 0).numpy()
        return pixels
