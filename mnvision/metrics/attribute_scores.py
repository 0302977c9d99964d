"""What an evaluation of attributes found, as numbers, text and plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mnvision.metrics.binary import Reliability

_EXPLAINED = 8  # attributes whose reasons are printed


@dataclass(frozen=True)
class AttributeRow:
    """Scores of one attribute over the pictures where it is known. Shares lie in [0, 1]; -1 is not defined.

    Attributes:
        ap: Average precision; -1 without positives or without negatives.
        balanced_accuracy: At ``threshold``; -1 without positives or without negatives.
        accuracy: At ``threshold``.
        balanced_accuracy_at_half: At 0.5.
        accuracy_at_half: At 0.5.
        majority: Accuracy of always giving the commoner answer.
        threshold: Calibrated where thresholds were given, else 0.5.
        positives: Pictures where it is true.
        n: Pictures where it is known.
    """

    ap: float
    balanced_accuracy: float
    accuracy: float
    balanced_accuracy_at_half: float
    accuracy_at_half: float
    majority: float
    threshold: float
    positives: int
    n: int


@dataclass(frozen=True)
class AttributeMetrics:
    """Result of an evaluation of attributes. Shares lie in [0, 1]; -1 means that nothing could be scored.

    Attributes:
        mean_ap: Mean of the average precisions that are defined (paper, Table 12).
        balanced_accuracy: Mean over attributes, at the calibrated thresholds.
        accuracy: Mean over attributes, at the calibrated thresholds.
        balanced_accuracy_at_half: The same at 0.5.
        accuracy_at_half: The same at 0.5.
        majority: Mean accuracy of always giving the commoner answer.
        majority_of: Where the commoner answer was counted: "training set" or "evaluated split".
        calibrated: Whether thresholds were given; without, all are 0.5.
        per_attribute: Name -> its row.
        unscored: Name -> why it has no average precision.
        dead: Name -> what is constant about its answers.
        reliability: Over all attributes together.
        num_samples: Pictures counted.
        num_repeated: Pictures left out because they had been given before.
    """

    mean_ap: float
    balanced_accuracy: float
    accuracy: float
    balanced_accuracy_at_half: float
    accuracy_at_half: float
    majority: float
    majority_of: str
    calibrated: bool
    per_attribute: dict[str, AttributeRow]
    unscored: dict[str, str]
    dead: dict[str, str]
    reliability: Reliability = field(repr=False, compare=False)
    num_samples: int = 0
    num_repeated: int = 0

    def scalars(self) -> dict[str, float]:
        """The means by their short names."""
        return {
            "mAP": self.mean_ap,
            "balanced_accuracy": self.balanced_accuracy,
            "accuracy": self.accuracy,
            "balanced_accuracy_at_half": self.balanced_accuracy_at_half,
            "accuracy_at_half": self.accuracy_at_half,
            "majority_accuracy": self.majority,
            "brier": defined(self.reliability.brier),
            "ece": defined(self.reliability.ece),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the reliability curve, ready for JSON."""
        return {
            **self.scalars(),
            "majority_of": self.majority_of,
            "thresholds": "calibrated" if self.calibrated else "0.5",
            "num_samples": self.num_samples,
            "num_repeated": self.num_repeated,
            "unscored": self.unscored,
            "dead": self.dead,
            "per_attribute": {name: vars(row) for name, row in self.per_attribute.items()},
        }

    def table(self) -> str:
        """A few lines of text."""
        counts = f"{self.num_samples} images, {len(self.per_attribute)} attributes"
        if self.num_repeated:
            counts += f", {self.num_repeated} repeated images left out"
        at = "at calibrated thresholds" if self.calibrated else "at 0.5 (no calibrated thresholds)"
        lines = [
            f"Mean AP            {self.mean_ap:>6.3f}  over {len(self.per_attribute) - len(self.unscored)} attributes",
            f"Balanced accuracy  {self.balanced_accuracy:>6.3f}  {at}",
            f"Accuracy           {self.accuracy:>6.3f}  {at}",
        ]
        if self.calibrated:
            lines += [
                f"Balanced accuracy  {self.balanced_accuracy_at_half:>6.3f}  at 0.5",
                f"Accuracy           {self.accuracy_at_half:>6.3f}  at 0.5",
            ]
        lines += [
            f"Majority guess     {self.majority:>6.3f}  by the {self.majority_of}",
            f"Brier, ECE         {defined(self.reliability.brier):>6.3f}  {defined(self.reliability.ece):.3f}",
            counts,
        ]
        if self.unscored:
            lines.append(f"without average precision: {_listed(self.unscored)}")
        if self.dead:
            lines.append(f"dead attributes: {_listed(self.dead)}")
        return "\n".join(lines)


def defined(value: float) -> float:
    """``value`` itself; -1 where it is NaN."""
    return -1.0 if np.isnan(value) else float(value)


def _listed(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, which metrics.json has where they are many."""
    if len(reasons) > _EXPLAINED:
        return f"{len(reasons)}: {', '.join(reasons)}"
    return "; ".join(f"{name} ({why})" for name, why in reasons.items())
