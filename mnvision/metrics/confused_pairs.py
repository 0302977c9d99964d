"""Which classes are taken for each other most often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PAIRS = 10
MAX_EXAMPLES = 4


@dataclass(frozen=True)
class Mistakes:
    """Samples of one class that were taken for another.

    Attributes:
        true: Name of the class.
        predicted: Name of the other one.
        count: Their number.
        total: Samples of the class.
        examples: Positions of the first few in the data set.
    """

    true: str
    predicted: str
    count: int
    total: int
    examples: tuple[int, ...]

    def text(self) -> str:
        """Such as ``5 of 30 beagle called basset``."""
        return f"{self.count} of {self.total} {self.true} called {self.predicted}"


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes, and the mistakes in both directions, the more frequent one first."""

    forth: Mistakes
    back: Mistakes

    @property
    def count(self) -> int:
        """Mistakes in both directions."""
        return self.forth.count + self.back.count

    def to_dict(self) -> dict[str, Any]:
        """Plain data: names, and counts in both directions."""
        return {
            "classes": [self.forth.true, self.back.true],
            "mistaken": [self.forth.count, self.back.count],
            "samples": [self.forth.total, self.back.total],
        }


def most_confused(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    positions: NDArray[np.int64],
    class_names: Sequence[str],
    limit: int = MAX_PAIRS,
) -> tuple[ConfusedPair, ...]:
    """The pairs of classes with the most mistakes between them, both directions counted together.

    Of equally many the pair whose classes come first stands first. Needs memory for the mistakes alone, not for a
    matrix of all pairs.

    Args:
        labels: ``(N,)``, ``0 .. K-1``.
        predicted: ``(N,)``, ``0 .. K-1``.
        positions: ``(N,)``, of the samples in their data set.
        class_names: K names.
        limit: Most pairs that are returned.
    """
    totals = np.bincount(labels, minlength=len(class_names))
    wrong = labels != predicted
    labels, predicted, positions = labels[wrong], predicted[wrong], positions[wrong]
    ids = np.minimum(labels, predicted) * len(class_names) + np.maximum(labels, predicted)
    found, counts = np.unique(ids, return_counts=True)
    pairs = []
    for pair in found[np.argsort(-counts, kind="stable")[:limit]].tolist():
        ways = []
        for true, other in (divmod(pair, len(class_names)), divmod(pair, len(class_names))[::-1]):
            mine = np.sort(positions[(labels == true) & (predicted == other)])
            examples = tuple(mine[:MAX_EXAMPLES].tolist())
            ways.append(Mistakes(class_names[true], class_names[other], len(mine), int(totals[true]), examples))
        ways.sort(key=lambda way: -way.count)
        pairs.append(ConfusedPair(*ways))
    return tuple(pairs)
