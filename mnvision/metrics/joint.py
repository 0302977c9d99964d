"""One score for several heads, each relative to what it reaches alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

_LEAST = 1e-9


class Monitored(NamedTuple):
    """What a head is judged by.

    Attributes:
        metric: Of its single task, such as ``"val/AP"``.
        mode: ``"max"`` or ``"min"``: whether it should rise or fall.
        reference: The score of the head trained alone.
        weight: In the joint score.
    """

    metric: str
    mode: str
    reference: float = 1.0
    weight: float = 1.0

    def relative(self, value: float) -> float:
        """1 for the reference, more for better; of a metric that falls, reference over value."""
        return value / self.reference if self.mode == "max" else self.reference / max(value, _LEAST)


def joint_score(values: Mapping[str, float], monitored: Mapping[str, Monitored]) -> float:
    """The weighted mean of the heads' scores, each relative to its reference.

    Source: as the average relative change of Maninis et al. 2019, https://arxiv.org/abs/1904.08918, plus 1.

    Args:
        values: Score by head.
        monitored: By head.

    Returns:
        NaN where a head has no score.
    """
    if values.keys() != monitored.keys():
        return math.nan
    total = sum(one.weight for one in monitored.values())
    return sum(one.weight * one.relative(values[name]) for name, one in monitored.items()) / total
