"""Scores of yes-or-no attributes: mean average precision, accuracies against the majority guess, reliability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.metrics.attribute_scores import AttributeMetrics, AttributeRow, defined
from mnvision.metrics.binary import (
    Counts,
    Criterion,
    Floats,
    Labels,
    average_precision,
    best_thresholds,
    count_answers,
    reliability,
)
from mnvision.metrics.processes import from_all_processes

CONSTANT_LOGIT_STD = 0.01
"""Logits that vary less than this over the pictures are one constant answer."""


class AttributeEvaluator:
    """Collects probabilities and labels, each picture once, and scores them.

    A picture is known by its position in the data set. One given again is left out and counted in
    ``AttributeMetrics.num_repeated``.

    Args:
        names: One per attribute, in the order of the columns.

    Raises:
        UserError: No names, or a name that occurs twice.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        if not self.names:
            raise UserError("no attribute names given; at least one attribute is needed")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"attribute {max(self.names, key=self.names.count)!r} occurs twice; names must be unique")
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.float32], Labels]] = []
        self._repeated = 0

    def update(self, probabilities: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: ``(B, A)`` in [0, 1].
            labels: ``(B, A)`` integer: 1 yes, 0 no, -1 not known.
            indices: ``(B,)`` int64, position of each picture in its data set.

        Raises:
            UserError: Shapes do not fit, a label is none of the three, or a probability is NaN or out of range.
        """
        columns = len(self.names)
        if probabilities.ndim != 2 or probabilities.shape[1] != columns:
            raise UserError(f"probabilities have shape {tuple(probabilities.shape)}; expected (B, {columns})")
        if labels.shape != probabilities.shape or indices.shape != probabilities.shape[:1]:
            raise UserError(
                f"{tuple(probabilities.shape)} probabilities, {tuple(labels.shape)} labels, {len(indices)} indices: "
                "give one of each per picture and attribute"
            )
        wrong = ~((probabilities >= 0) & (probabilities <= 1)) | (labels < -1) | (labels > 1)
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise UserError(
                f"sample {int(indices[row])}, {self.names[column]}: probability {float(probabilities[row, column])} "
                f"and label {int(labels[row, column])}; expected a number in [0, 1] and -1, 0 or 1"
            )
        self._parts.append(
            (
                indices.cpu().numpy().astype(np.int64),
                probabilities.detach().float().cpu().numpy(),
                labels.to(torch.int8).cpu().numpy(),
            )
        )

    def gather(self) -> None:
        """Exchange samples, so that every process holds all of them. Does nothing in a single process."""
        theirs = from_all_processes(lambda: (self.collected(), self._repeated))
        if theirs is None:
            return
        self.reset()
        for part, repeated in theirs:
            self._parts.append(part)
            self._repeated += repeated

    def collected(self) -> tuple[NDArray[np.int64], NDArray[np.float32], Labels]:
        """Indices ``(N,)`` rising, probabilities ``(N, A)`` and labels ``(N, A)``, each picture once."""
        empty = (np.empty((0, len(self.names)), np.float32), np.empty((0, len(self.names)), np.int8))
        parts = [(np.empty(0, np.int64), *empty), *self._parts]
        indices, probabilities, labels = (np.concatenate(column) for column in zip(*parts))
        unique, first = np.unique(indices, return_index=True)
        self._repeated += len(indices) - len(unique)
        self._parts = [(unique, probabilities[first], labels[first])]
        return self._parts[0]

    def thresholds(self, criterion: Criterion = "balanced_accuracy") -> Floats:
        """The ``(A,)`` thresholds that are best for what was collected; 0.5 where that cannot be told."""
        _, probabilities, labels = self.collected()
        return best_thresholds(probabilities, labels, criterion)

    def compute(
        self, thresholds: Sequence[float] | Floats | None = None, majority: Sequence[int] | None = None
    ) -> AttributeMetrics:
        """Score what was collected.

        Args:
            thresholds: A calibrated thresholds, chosen on other pictures than these where that matters.
            majority: A answers, 1 or 0, that are commoner in the training set. None, and -1 for single ones, counts
                them in the collected labels.

        Returns:
            The scores.
        """
        _, probabilities, labels = self.collected()
        calibrated = np.full(len(self.names), 0.5) if thresholds is None else np.asarray(thresholds, np.float64)
        here, half = count_answers(probabilities, labels, calibrated), count_answers(probabilities, labels, 0.5)
        stated = np.full(len(self.names), -1) if majority is None else np.asarray(majority)
        common = np.where(stated < 0, here.yes >= here.no, stated == 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            guess = np.where(common, here.yes, here.no) / (here.yes + here.no)
        unscored = {name: _lack(yes, no) for name, yes, no in zip(self.names, here.yes, here.no) if not (yes and no)}
        ap = average_precision(probabilities, labels)
        ap[[name in unscored for name in self.names]] = np.nan
        columns = {
            "ap": ap,
            "balanced_accuracy": here.balanced_accuracy(),
            "accuracy": here.accuracy(),
            "balanced_accuracy_at_half": half.balanced_accuracy(),
            "accuracy_at_half": half.accuracy(),
            "majority": guess,
        }
        rows = {
            name: AttributeRow(
                **{key: defined(values[i]) for key, values in columns.items()},
                threshold=float(calibrated[i]),
                positives=int(here.yes[i]),
                n=int(here.yes[i] + here.no[i]),
            )
            for i, name in enumerate(self.names)
        }
        means = {key: _mean(values) for key, values in columns.items()}
        return AttributeMetrics(
            mean_ap=means.pop("ap"),
            **means,
            majority_of="evaluated split" if (stated < 0).all() else "training set",
            calibrated=thresholds is not None,
            per_attribute=rows,
            unscored=unscored,
            dead=_dead(self.names, probabilities, here),
            reliability=reliability(probabilities, labels),
            num_samples=len(labels),
            num_repeated=self._repeated,
        )


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else -1.0


def _lack(yes: float, no: float) -> str:
    return "no labels" if not yes and not no else "no positives" if not yes else "no negatives"


def _dead(names: Sequence[str], probabilities: NDArray[np.float32], here: Counts) -> dict[str, str]:
    """Attributes whose answer does not depend on the picture, with what is seen of it."""
    if len(probabilities) < 2:
        return {}
    dead: dict[str, str] = {}
    mean, spread = probabilities.mean(axis=0, dtype=np.float64), probabilities.std(axis=0, dtype=np.float64)
    # The sigmoid's slope is p (1 - p), so this is the spread of the logits, whatever the probability is.
    constant = spread <= CONSTANT_LOGIT_STD * mean * (1 - mean)
    answered_yes = here.true_yes + here.false_yes
    for i, name in enumerate(names):
        yes, no = int(here.yes[i]), int(here.no[i])
        if constant[i]:
            dead[name] = f"probability always {mean[i]:.3f}"
        elif yes and no and answered_yes[i] in (0, yes + no):
            answer, wrong = ("no", yes) if answered_yes[i] == 0 else ("yes", no)
            dead[name] = f"answer always {answer}, wrong for {wrong} of {yes + no}"
    return dead
