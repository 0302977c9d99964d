"""What a student is trained towards when a teacher's answers stand in for labels.

Sources: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
https://arxiv.org/abs/1503.02531; the MobileNet paper, https://arxiv.org/abs/1704.04861, sections 4.5 and 4.7.
Detectors have theirs in ``distillation_ssd.py``, feature maps in ``distillation_features.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.teachers.matching import match_columns, match_embedding, require_outputs
from mnvision.teachers.spec import TeacherSpec


class Criterion(nn.Module, ABC):
    """A loss between a student's raw outputs and a teacher's, in float32 whatever the precision of the run.

    Attributes:
        outputs: Names of the teacher's outputs that it needs. One is given to ``forward`` as it is, several as a
            mapping.
    """

    outputs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def fit_to(self, student: Any, class_names: Sequence[str], teacher: TeacherSpec) -> None:
        """Look once, before training, whether these two fit, and find the student's classes among the teacher's.

        Args:
            student: One of ``mnvision.models``.
            class_names: Names of the student's classes, in the order of its outputs.
            teacher: What the teacher gives.

        Raises:
            UserError: They do not fit; both shapes are named.
        """

    @abstractmethod
    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Scalar loss of one batch."""


def stored_outputs(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A teacher's live answers as a cache would give them back: rounded to float16, as float32."""
    largest = torch.finfo(torch.float16).max
    return {name: value.float().clamp(-largest, largest).half().float() for name, value in outputs.items()}


class _ColumnCriterion(Criterion):
    """A loss on one logit per class, for teachers that know the student's classes and perhaps more.

    Args:
        temperature: Logits of both are divided by it; above 0.

    Attributes:
        columns: ``(K,)`` int64, the teacher's column of each of the student's classes; empty for "as they stand".
    """

    what: ClassVar[str]
    columns: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = checked_number("distill.temperature", temperature, above=0)
        self.register_buffer("columns", torch.empty(0, dtype=torch.int64), persistent=False)

    def fit_to(self, student: Any, class_names: Sequence[str], teacher: TeacherSpec) -> None:
        """See :meth:`Criterion.fit_to`."""
        require_outputs(teacher, *self.outputs)
        (count,) = teacher.outputs[self.outputs[0]]
        columns = match_columns(teacher.class_names, count, class_names, self.what, teacher.name)
        if columns is not None:
            self.columns = columns

    def _pair(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both in float32, in the student's columns, over the temperature."""
        if len(self.columns):
            teacher = teacher[:, self.columns]
        check_same_shape(student, teacher)
        return student.float() / self.temperature, teacher.float() / self.temperature


class SoftTargets(_ColumnCriterion):
    """``T^2 * KL(teacher || student)`` of softened class probabilities, averaged over the batch.

    The factor keeps the size of the gradient as T changes (Hinton et al., section 2). Of a teacher with more
    classes than the student those of the student count: its probabilities given that it is one of them.

    Args:
        temperature: T above 0; 1 gives the plain probabilities.

    Raises:
        UserError: A temperature that is not above 0.
    """

    outputs = ("logits",)
    what = "classes"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of logits ``(B, K)`` towards logits ``(B, K')``.

        Raises:
            UserError: The numbers of classes differ.
        """
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = self._pair(student, teacher)
            return self.temperature**2 * F.kl_div(
                ours.log_softmax(dim=1), theirs.log_softmax(dim=1), reduction="batchmean", log_target=True
            )


class AttributeTargets(_ColumnCriterion):
    """Cross-entropy of each attribute's sigmoid with the teacher's probability, averaged over the attributes.

    As the face attributes of the MobileNet paper are distilled (section 4.5). Its least value is the entropy of
    the teacher's answers, not zero.

    Args:
        temperature: T above 0, with the factor ``T^2`` as in :class:`SoftTargets`; the paper uses none.

    Raises:
        UserError: A temperature that is not above 0.
    """

    outputs = ("attribute_logits",)
    what = "attributes"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of logits ``(B, A)`` towards logits ``(B, A')``.

        Raises:
            UserError: The numbers of attributes differ.
        """
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = self._pair(student, teacher)
            return self.temperature**2 * F.binary_cross_entropy_with_logits(ours, theirs.sigmoid())


class EmbeddingTargets(Criterion):
    """Distance of the student's embedding to the teacher's.

    ``"squared"`` is the MobileNet paper's (section 4.7): the squared difference, summed over the dimensions and
    averaged over the batch. ``"cosine"`` is one minus the cosine, which does not see the student's length. For
    two embeddings of length one the first is twice the second.

    Args:
        distance: See above.

    Raises:
        UserError: Another word.
    """

    outputs = ("embedding",)

    def __init__(self, distance: Literal["squared", "cosine"] = "squared") -> None:
        super().__init__()
        if distance not in ("squared", "cosine"):
            raise UserError(f"distance of the embeddings must be squared or cosine, got {distance!r}")
        self.distance = distance

    def fit_to(self, student: Any, class_names: Sequence[str], teacher: TeacherSpec) -> None:
        """See :meth:`Criterion.fit_to`."""
        match_embedding(teacher, student.head.dim)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of embeddings ``(B, D)`` towards ``(B, D)`` of length one.

        Raises:
            UserError: The sizes differ.
        """
        check_same_shape(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs = student.float(), teacher.float()
            if self.distance == "cosine":
                return (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()
            return (ours - theirs).square().sum(dim=1).mean()


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise :class:`UserError` where a student's outputs cannot be compared with a teacher's."""
    if student.shape != teacher.shape:
        raise UserError(
            f"the student's outputs have shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}: "
            "give a teacher of the same classes"
        )


def checked_number(name: str, value: float, least: float = -math.inf, above: float = -math.inf) -> float:
    """``value`` once it is known to be a finite number in range; else a :class:`UserError` that names it."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < least or value <= above:
        bound = f"above {above:g}" if math.isfinite(above) else f"of at least {least:g}"
        raise UserError(f"{name}={value!r}: give a number {bound}")
    return float(value)
