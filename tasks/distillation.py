"""How a task learns from a teacher: its outputs, the loss towards them, and the mixture with the labels' loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.losses.distillation import Criterion, checked_number, stored_outputs
from mnvision.losses.distillation_features import PREFIX, FeatureTargets
from mnvision.teachers.base import Teacher
from mnvision.teachers.matching import require_outputs


class Distillation(nn.Module):
    """``labels * label loss + (1 - labels) * weight * (criterion + feature_weight * feature regression)``.

    Everything that the run needs is checked here, before its first step. The teacher is not a submodule: it is not
    trained, averaged, synchronised or saved with the task. What is learned for its sake, the adapters of feature
    regression, is trained and saved, but is no part of the model.

    Args:
        teacher: Answers for pictures whose answers are not stored.
        criterion: Between the raw outputs of student and teacher; ``None`` for feature regression alone.
        student: One of ``mnvision.models``.
        class_names: Names of the student's classes or attributes, in the order of its outputs.
        weight: Of the teacher's part, not negative.
        labels: Share of the labels' loss, in [0, 1]; 0 needs no labels.
        features: Strides of the maps to regress; none for no regression.
        feature_weight: Of the feature regression, not negative.

    Raises:
        UserError: A value out of range, nothing to learn from the teacher, or a teacher that does not fit.
    """

    def __init__(
        self,
        teacher: Teacher,
        criterion: Criterion | None,
        student: Any,
        class_names: Sequence[str],
        weight: float = 1.0,
        labels: float = 0.0,
        features: Sequence[int] = (),
        feature_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = checked_number("distill.weight", weight, least=0)
        self.labels = checked_number("distill.labels", labels, least=0)
        self.feature_weight = checked_number("distill.feature_weight", feature_weight, least=0)
        if self.labels > 1:
            raise UserError(f"distill.labels={labels}: the share of the labels' loss lies between 0 and 1")
        if criterion is None and not features:
            raise UserError("distill.criterion=null leaves nothing to learn from the teacher: give distill.features")
        if criterion is None and self.labels == 0:
            raise UserError(
                "distill.criterion=null and distill.labels=0 leave the head untrained: raise distill.labels"
            )
        # In a tuple, lest its weights be taken for the task's own.
        self._teacher = (teacher,)
        self.criterion = criterion
        self.feature_targets = _feature_targets(features, student, teacher) if features else None
        if criterion is not None:
            require_outputs(teacher.spec, *criterion.outputs)
            criterion.fit_to(student, class_names, teacher.spec)

    @property
    def teacher(self) -> Teacher:
        """The teacher, on the CPU until it first runs."""
        return self._teacher[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the teacher's outputs that are needed."""
        criterion, features = self.criterion, self.feature_targets
        return (*(criterion.outputs if criterion else ()), *(features.outputs if features else ()))

    @torch.no_grad()
    def teacher_outputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The teacher's answers to a batch: the stored ones, or by running it on ``teacher_images``.

        Both are float32 numbers that float16 can hold, so that a run learns the same from either.

        Raises:
            UserError: The batch has neither, or its answers lack an output.
        """
        found = batch.get("teacher_outputs")
        if found is None:
            if "teacher_images" not in batch:
                raise UserError("the data give no view for the teacher: this data set cannot be distilled on")
            images = batch["teacher_images"]
            found = stored_outputs(self.teacher.to(images.device)(images))
        lacking = [name for name in self.outputs if name not in found]
        if lacking:
            raise UserError(
                f"the stored outputs of {self.teacher.spec.name} lack {', '.join(lacking)}; they hold "
                f"{', '.join(found)}: store them anew"
            )
        return {name: found[name].float() for name in self.outputs}

    def forward(self, student: Any, batch: Mapping[str, Any], features: Mapping[int, Tensor] | None = None) -> Tensor:
        """The teacher's part of the loss, before ``weight``.

        Args:
            student: Raw outputs, as the criterion takes them.
            batch: With ``teacher_outputs`` or ``teacher_images``.
            features: The student's maps by stride, where they are regressed.
        """
        teacher = self.teacher_outputs(batch)
        parts: list[Tensor] = []
        if self.criterion is not None:
            names = self.criterion.outputs
            answer = teacher[names[0]] if len(names) == 1 else {name: teacher[name] for name in names}
            parts.append(self.criterion(student, answer))
        if self.feature_targets is not None:
            if features is None:
                raise UserError("this task gives no feature maps to regress: leave distill.features out")
            parts.append(self.feature_weight * self.feature_targets(features, teacher))
        return torch.stack(parts).sum()

    def mix(
        self,
        label_loss: Tensor | None,
        student: Any,
        batch: Mapping[str, Any],
        features: Mapping[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The whole loss of one batch.

        Args:
            label_loss: Scalar; ``None`` where there are no labels or ``labels`` is 0.
            student: See :meth:`forward`.
            batch: See :meth:`forward`.
            features: See :meth:`forward`.

        Returns:
            ``loss``, ``loss_distill`` (before ``weight``) and, where it is given, ``loss_labels``.

        Raises:
            UserError: ``labels`` is above 0 and there is no label loss.
        """
        distill = self(student, batch, features)
        loss = (1 - self.labels) * self.weight * distill
        if label_loss is None:
            if self.labels > 0:
                raise UserError(f"distill.labels={self.labels:g}, but the data have no labels: set distill.labels=0")
            return {"loss": loss, "loss_distill": distill}
        return {"loss": loss + self.labels * label_loss, "loss_labels": label_loss, "loss_distill": distill}


def _feature_targets(strides: Sequence[int], student: Any, teacher: Teacher) -> FeatureTargets:
    ours = dict(zip(student.backbone.feature_strides, student.backbone.feature_channels, strict=True))
    shapes = teacher.spec.outputs
    theirs = {int(name.removeprefix(PREFIX)): shape[0] for name, shape in shapes.items() if name.startswith(PREFIX)}
    return FeatureTargets(strides, ours, theirs)
