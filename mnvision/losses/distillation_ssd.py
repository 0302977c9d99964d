"""Detectors that learn from detectors: raw outputs of the same default boxes, or the boxes of any detector.

Source: Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017,
sections 3.2 (class weights against the mass of background) and 3.3 (regression towards the teacher's boxes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mnvision.errors import UserError
from mnvision.losses.distillation import Criterion, checked_number
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.teachers.matching import match_columns, match_default_boxes, match_labels, require_outputs
from mnvision.teachers.spec import TeacherSpec
from mnvision.types import DetectionTargets, SSDOutputs


class SSDTargets(Criterion):
    """Class probabilities and offsets of a teacher with the same default boxes.

    Classification: ``T^2 * KL(teacher || student)`` of every default box, softmax over the K + 1 columns or, for
    sigmoid scores, the sum over the K class columns. Nearly all default boxes show background. Chen et al. weigh
    the classes in the cross-entropy against that, which moves its minimum away from the teacher's probabilities;
    here the whole term of a default box is weighted by the mean of the class weights under the teacher's
    probabilities, ``p_object + background_weight * p_background``, and the minimum stays where it was.

    Boxes: smooth L1 of the encoded offsets to the teacher's, on default boxes where the teacher sees an object
    with a probability of ``object_threshold`` or more, weighted by it.

    Both sums are divided by the expected number of default boxes with an object in the batch, at least 1, as
    ``MultiBoxLoss`` divides by the number of matched ones.

    Classes of the teacher that the student does not have count as background.

    Args:
        temperature: T above 0, of the class probabilities.
        box_weight: Weight of the second term, not negative.
        background_weight: See above, in [0, 1]; 0.05 gives background about five times the weight of objects in
            a picture with 20 matched default boxes of 1917, near the three to one of hard-negative mining.
        object_threshold: In [0, 1].
        classification: "softmax", or "sigmoid" / "focal" for sigmoid scores; that of both models.

    Raises:
        UserError: An argument outside its range.
    """

    outputs = ("cls_logits", "box_offsets")

    columns: Tensor
    dropped: Tensor

    def __init__(
        self,
        temperature: float = 1.0,
        box_weight: float = 1.0,
        background_weight: float = 0.05,
        object_threshold: float = 0.5,
        classification: Literal["softmax", "sigmoid", "focal"] = "softmax",
    ) -> None:
        super().__init__()
        self.temperature = checked_number("distill.temperature", temperature, above=0)
        self.box_weight = checked_number("distill.criterion.box_weight", box_weight, least=0)
        for name, value in (("background_weight", background_weight), ("object_threshold", object_threshold)):
            if checked_number(f"distill.criterion.{name}", value, least=0) > 1:
                raise UserError(f"distill.criterion.{name}={value}: give a number in [0, 1]")
        if classification not in ("softmax", "sigmoid", "focal"):
            raise UserError(f"classification must be softmax, sigmoid or focal, got {classification!r}")
        self.background_weight, self.object_threshold = background_weight, object_threshold
        self.classification = classification
        # Columns of the teacher's logits: those of the student's classes, and those that become background.
        for name in ("columns", "dropped"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)

    def fit_to(self, student: Any, class_names: Sequence[str], teacher: TeacherSpec) -> None:
        """See :meth:`Criterion.fit_to`; the default boxes must be the same too."""
        match_default_boxes(teacher, student.head.default_boxes, student.head.resolution)
        count = teacher.outputs["cls_logits"][-1] - 1
        classes = match_columns(teacher.class_names, count, class_names, teacher=teacher.name)
        if classes is not None:
            dropped = torch.ones(1 + count, dtype=torch.bool)
            dropped[0] = dropped[1 + classes] = False
            self.columns, self.dropped = 1 + classes, dropped.nonzero().squeeze(1)

    def forward(self, student: SSDOutputs, teacher: Mapping[str, Tensor]) -> Tensor:
        """Loss of one batch.

        Args:
            student: Raw outputs ``(B, A, K + 1)`` and ``(B, A, 4)``.
            teacher: ``cls_logits`` and ``box_offsets`` of the same A default boxes.

        Raises:
            UserError: The numbers of default boxes or of classes differ.
        """
        ours, theirs = student["cls_logits"], teacher["cls_logits"]
        with torch.autocast(ours.device.type, enabled=False):
            ours, theirs = ours.float(), self._in_our_columns(theirs.float())
            if ours.shape != theirs.shape:
                raise UserError(
                    f"the student gives class logits of shape {tuple(ours.shape)} and the teacher {tuple(theirs.shape)}"
                    ": both need the same default boxes and classes"
                )
            seen = self._object_probability(theirs)
            objects = seen.sum().clamp(min=1)
            weight = seen + self.background_weight * (1 - seen)
            loss_cls = self.temperature**2 * (weight * self._divergence(ours, theirs)).sum()
            distance = F.smooth_l1_loss(
                student["box_offsets"].float(), teacher["box_offsets"].float(), reduction="none"
            ).sum(dim=-1)
            loss_box = (distance * seen * (seen >= self.object_threshold)).sum()
            return (loss_cls + self.box_weight * loss_box) / objects

    def _in_our_columns(self, logits: Tensor) -> Tensor:
        """The teacher's logits as if it knew the student's classes only."""
        if not len(self.columns):
            return logits
        background = logits[..., :1]
        if len(self.dropped) and self.classification == "softmax":
            background = torch.cat([background, logits[..., self.dropped]], dim=-1).logsumexp(dim=-1, keepdim=True)
        return torch.cat([background, logits[..., self.columns]], dim=-1)

    def _object_probability(self, logits: Tensor) -> Tensor:
        """``(B, A)``: that the box shows an object of any class."""
        if self.classification == "softmax":
            return 1 - logits.softmax(dim=-1)[..., 0]
        return logits[..., 1:].amax(dim=-1).sigmoid()

    def _divergence(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """``(B, A)`` Kullback-Leibler divergence at the temperature."""
        ours, theirs = ours / self.temperature, theirs / self.temperature
        if self.classification == "softmax":
            q, p = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
            return (p.exp() * (p - q)).sum(dim=-1)
        ours, theirs = ours[..., 1:], theirs[..., 1:]
        p = theirs.sigmoid()
        cross = F.binary_cross_entropy_with_logits(ours, p, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(theirs, p, reduction="none")
        return (cross - entropy).sum(dim=-1)


class PseudoLabels(Criterion):
    """Boxes of any detector as ground truth for the student's own loss.

    Boxes of classes that the student does not have are left out. Boxes that the detector is unsure of are neither
    objects nor background: default boxes inside them are not trained on, like those in a crowd.

    Args:
        loss: The student's loss.
        score_threshold: Boxes with this score or more are objects; in (0, 1].
        ignore_threshold: Boxes below that with this score or more are neither; in [0, ``score_threshold``].

    Raises:
        UserError: A threshold outside its range.
    """

    outputs = ("boxes", "scores", "labels")

    default_boxes: Tensor
    classes: Tensor

    def __init__(self, loss: MultiBoxLoss, score_threshold: float = 0.5, ignore_threshold: float = 0.3) -> None:
        super().__init__()
        if not 0 < score_threshold <= 1 or not 0 <= ignore_threshold <= score_threshold:
            raise UserError(
                f"distill.criterion.score_threshold={score_threshold}, ignore_threshold={ignore_threshold}: give "
                "0 <= ignore_threshold <= score_threshold <= 1, the last two above 0"
            )
        self.loss = loss
        self.score_threshold, self.ignore_threshold = score_threshold, ignore_threshold
        self.resolution = (1, 1)
        self.register_buffer("default_boxes", torch.empty(0, 4), persistent=False)
        # The student's class by the teacher's, -1 for none.
        self.register_buffer("classes", torch.empty(0, dtype=torch.int64), persistent=False)

    def fit_to(self, student: Any, class_names: Sequence[str], teacher: TeacherSpec) -> None:
        """See :meth:`Criterion.fit_to`."""
        require_outputs(teacher, *self.outputs)
        # A detector without names is taken to have the student's classes: its labels do not tell how many it has.
        count = len(class_names if teacher.class_names is None else teacher.class_names)
        self.classes = match_labels(match_columns(teacher.class_names, count, class_names, teacher=teacher.name), count)
        self.default_boxes, self.resolution = student.head.default_boxes.clone(), student.head.resolution

    def forward(self, student: SSDOutputs, teacher: Mapping[str, Tensor]) -> Tensor:
        """Loss of one batch of raw outputs towards detections, see :meth:`targets`."""
        return self.loss(student, self.targets(teacher), self.default_boxes)["loss"]

    @torch.no_grad()
    def targets(self, detections: Mapping[str, Tensor]) -> DetectionTargets:
        """Ground truth made of detections.

        Args:
            detections: ``boxes`` ``(B, D, 4)`` xyxy as fractions of the input, ``scores`` ``(B, D)`` and ``labels``
                ``(B, D)``, those of the teacher with -1 in padding; any float type.

        Returns:
            Objects in pixels of the student's input, padded to the largest number in the batch.
        """
        height, width = self.resolution
        scores, theirs = detections["scores"].float(), detections["labels"].round().long()
        boxes = detections["boxes"].float().clamp(0, 1) * scores.new_tensor([width, height, width, height])
        labels = torch.where(theirs >= 0, self.classes[theirs.clamp(min=0)], -1)
        kept = (labels >= 0) & (scores >= self.ignore_threshold) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        # Real rows first, so that padding is no longer than it must be.
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : max(int(kept.sum(dim=1).max()), 1)]
        kept, scores, labels = kept.gather(1, order), scores.gather(1, order), labels.gather(1, order)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return {
            "boxes": boxes.masked_fill(~kept[..., None], 0.0),
            "labels": labels.masked_fill(~kept, -1),
            "crowd": kept & (scores < self.score_threshold),
        }
