"""Accuracy of a classifier, counted exactly and one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.metrics.confused_pairs import ConfusedPair, most_confused
from mnvision.metrics.processes import from_all_processes

_TOP = 5


@dataclass(frozen=True)
class ClassificationScores:
    """Result of a classification evaluation. Shares lie in [0, 1]; -1 means there were no samples.

    Attributes:
        top1: Share of samples whose best class is right.
        top5: Share of samples whose class is among the best five; ``None`` for five classes or fewer.
        mean_per_class: Mean over the classes that have samples of their own top-1 accuracy.
        per_class: Class name -> top-1 accuracy over its samples, -1 without samples.
        num_samples: Samples counted.
        num_repeated: Samples left out because they had been given before.
        confusion: ``(K, K)`` int64, row true class, column predicted class, in the order of ``per_class``.
        confused: The pairs of classes with the most mistakes between them.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    per_class: dict[str, float]
    num_samples: int
    num_repeated: int
    confusion: NDArray[np.int64] = field(repr=False, compare=False)
    confused: tuple[ConfusedPair, ...] = field(default=(), repr=False)

    def scalars(self) -> dict[str, float]:
        """The accuracies by name; ``top5`` only where it is defined."""
        top5 = {} if self.top5 is None else {"top5": self.top5}
        return {"top1": self.top1, **top5, "mean_per_class": self.mean_per_class}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the confusion matrix, ready for JSON; ``top5`` is left out where undefined."""
        return {
            **self.scalars(),
            "per_class": self.per_class,
            "num_samples": self.num_samples,
            "num_repeated": self.num_repeated,
            "most_confused": [pair.to_dict() for pair in self.confused],
        }

    def table(self) -> str:
        """A few lines of text."""
        top5 = [] if self.top5 is None else [f"Top-5 accuracy           {self.top5:>6.3f}"]
        counts = f"{self.num_samples} images"
        if self.num_repeated:
            counts += f", {self.num_repeated} repeated images left out"
        return "\n".join(
            [
                f"Top-1 accuracy           {self.top1:>6.3f}",
                *top5,
                f"Mean per-class accuracy  {self.mean_per_class:>6.3f}",
                counts,
            ]
        )


class ClassificationEvaluator:
    """Counts right answers, each sample once.

    A sample is known by its position in the data set. One given again is left out and counted in
    ``ClassificationScores.num_repeated``, since distributed samplers repeat samples to fill the last batch.

    Args:
        class_names: One per class, in the order of the logits.

    Raises:
        UserError: No class names, or a name that occurs twice.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        if not class_names:
            raise UserError("no class names given; a classifier needs at least one class")
        self.class_names = tuple(class_names)
        if len(set(self.class_names)) != len(self.class_names):
            twice = max(self.class_names, key=self.class_names.count)
            raise UserError(f"class name {twice!r} occurs twice; names must be unique")
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        # One row per sample: index, label, best class, whether the label is among the best five.
        self._parts: list[NDArray[np.int64]] = []
        self._repeated = 0

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Equal logits rank in the order of the classes, so that a constant output is not credited with every
        answer.

        Args:
            logits: ``(B, K)``, any monotone score.
            labels: ``(B,)`` int64, ``0 .. K-1``.
            indices: ``(B,)`` int64, position of each sample in its data set.

        Raises:
            UserError: Shapes do not fit, a label is out of range, or a logit is NaN.
        """
        classes = len(self.class_names)
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise UserError(f"logits have shape {tuple(logits.shape)}; expected (B, {classes}), one per class")
        if labels.shape != logits.shape[:1] or indices.shape != logits.shape[:1]:
            raise UserError(
                f"{len(logits)} logit rows, {len(labels)} labels, {len(indices)} indices; give one per sample"
            )
        # NaN makes the row's own maximum NaN, which costs less than a second pass over all logits.
        bad = torch.isnan(logits.amax(dim=1)) | (labels < 0) | (labels >= classes)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise UserError(
                f"sample {int(indices[row])}: label {int(labels[row])} is not in 0 .. {classes - 1}, "
                "or its logits contain NaN"
            )
        order = torch.sort(logits.detach(), dim=1, descending=True, stable=True).indices[:, :_TOP]
        in_top = (order == labels[:, None]).any(dim=1)
        rows = torch.stack([indices, labels, order[:, 0], in_top.to(labels.dtype)], dim=1)
        self._parts.append(rows.cpu().numpy().astype(np.int64))

    def gather(self) -> None:
        """Exchange samples, so that every process holds all of them. Does nothing in a single process."""
        theirs = from_all_processes(lambda: (self._unique(), self._repeated))
        if theirs is None:
            return
        self.reset()
        for rows, repeated in theirs:
            self._parts.append(rows)
            self._repeated += repeated

    def _unique(self) -> NDArray[np.int64]:
        """All samples, each once; what is left out is counted."""
        rows = np.concatenate([np.empty((0, 4), np.int64), *self._parts])
        _, first = np.unique(rows[:, 0], return_index=True)
        self._repeated += len(rows) - len(first)
        self._parts = [rows[first]]
        return self._parts[0]

    def compute(self) -> ClassificationScores:
        """Score what was collected.

        Returns:
            The scores.
        """
        classes = len(self.class_names)
        positions, labels, predicted, in_top = self._unique().T
        confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
        right, totals = confusion.diagonal(), confusion.sum(axis=1)
        with_samples = totals > 0
        shares = np.where(with_samples, right / np.maximum(totals, 1), -1.0)
        count = len(labels)
        return ClassificationScores(
            top1=float(right.sum() / count) if count else -1.0,
            top5=None if classes <= _TOP else float(in_top.sum() / count) if count else -1.0,
            mean_per_class=float(shares[with_samples].mean()) if count else -1.0,
            per_class=dict(zip(self.class_names, shares.tolist())),
            num_samples=count,
            num_repeated=self._repeated,
            confusion=confusion.astype(np.int64),
            confused=most_confused(labels, predicted, positions, self.class_names),
        )
