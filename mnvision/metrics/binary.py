"""Scores of many yes-or-no questions at once, each over the samples whose answer is known.

Everywhere ``probabilities`` is ``(N, A)`` float in [0, 1] and ``labels`` ``(N, A)`` integer: 1 yes, 0 no, -1 not
known. A result that is not defined for want of labels is NaN. An answer is yes where probability >= threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int8]
Criterion = Literal["balanced_accuracy", "accuracy", "f1"]
CRITERIA: tuple[Criterion, ...] = ("balanced_accuracy", "accuracy", "f1")

_BINS = 15


class Counts(NamedTuple):
    """Answers counted, ``(A,)`` or ``(N, A)`` float64 each: right yes, wrong yes, and all that are truly yes or no."""

    true_yes: Floats
    false_yes: Floats
    yes: Floats
    no: Floats

    def accuracy(self) -> Floats:
        """Share of right answers."""
        return _divide(self.true_yes + self.no - self.false_yes, self.yes + self.no)

    def balanced_accuracy(self) -> Floats:
        """Mean of the shares of right answers among those truly yes and among those truly no."""
        return (_divide(self.true_yes, self.yes) + _divide(self.no - self.false_yes, self.no)) / 2

    def f1(self) -> Floats:
        """Harmonic mean of precision and recall."""
        return _divide(2 * self.true_yes, self.true_yes + self.false_yes + self.yes)

    def by(self, criterion: Criterion) -> Floats:
        """The measure of that name."""
        return {"accuracy": self.accuracy, "balanced_accuracy": self.balanced_accuracy, "f1": self.f1}[criterion]()


class _Ranking(NamedTuple):
    """Columns sorted by falling probability, unknown ones last.

    Attributes:
        scores: ``(N, A)``, -inf where not known.
        positive: ``(N, A)``, 1 where the answer is yes.
        ends: ``(N, A)`` bool, whether the next probability is another one: equal ones cannot be told apart.
        counts: If all up to this row are answered yes.
    """

    scores: Floats
    positive: Floats
    ends: NDArray[np.bool_]
    counts: Counts


def _divide(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _rank(probabilities: NDArray[np.floating], labels: Labels) -> _Ranking:
    known = labels >= 0
    scores = np.where(known, probabilities.astype(np.float64), -np.inf)
    order = np.argsort(-scores, axis=0, kind="stable")
    scores = np.take_along_axis(scores, order, axis=0)
    positive = np.take_along_axis(labels == 1, order, axis=0).astype(np.float64)
    seen = np.take_along_axis(known, order, axis=0).astype(np.float64).cumsum(axis=0)
    ends = np.ones(scores.shape, bool)
    ends[:-1] = scores[:-1] != scores[1:]
    right = positive.cumsum(axis=0)
    counts = Counts(right, seen - right, (labels == 1).sum(axis=0) + 0.0, (labels == 0).sum(axis=0) + 0.0)
    return _Ranking(scores, positive, ends, counts)


def average_precision(probabilities: NDArray[np.floating], labels: Labels) -> Floats:
    """Average precision per column: precision averaged over the positives in the order of their probability.

    Equal to ``sklearn.metrics.average_precision_score``: no interpolation, equal probabilities count as one step.

    Args:
        probabilities: ``(N, A)``.
        labels: ``(N, A)``.

    Returns:
        ``(A,)`` in [0, 1]; NaN for columns without a positive.
    """
    if not len(labels):
        return np.full(labels.shape[1], np.nan)
    ranking = _rank(probabilities, labels)
    precision = _divide(ranking.counts.true_yes, ranking.counts.true_yes + ranking.counts.false_yes)
    rows = np.arange(len(labels))[:, None]
    last = np.minimum.accumulate(np.where(ranking.ends, rows, len(labels))[::-1], axis=0)[::-1]
    at_end = np.where(ranking.positive > 0, np.take_along_axis(precision, last, axis=0), 0.0)
    return _divide(at_end.sum(axis=0), ranking.counts.yes)


def best_thresholds(
    probabilities: NDArray[np.floating], labels: Labels, criterion: Criterion = "balanced_accuracy"
) -> Floats:
    """The threshold per column that maximises a measure.

    Thresholds lie halfway between two neighbouring probabilities; of several best ones the one nearest to 0.5 is
    taken.

    Args:
        probabilities: ``(N, A)``.
        labels: ``(N, A)``.
        criterion: What is maximised.

    Returns:
        ``(A,)``; 0.5 for columns that lack positives or negatives.
    """
    columns = labels.shape[1]
    if not len(labels):
        return np.full(columns, 0.5)
    ranking = _rank(probabilities, labels)
    below = np.vstack([ranking.scores[1:], np.full((1, columns), -np.inf)])
    with np.errstate(invalid="ignore"):
        halfway = (ranking.scores + np.where(np.isfinite(below), below, 0.0)) / 2
    highest = ranking.scores[:1]
    # One more candidate answers no to all; a threshold of 1 would still answer yes where the probability is 1.
    none = np.maximum((highest + 1) / 2, np.nextafter(highest, np.inf))
    thresholds = np.vstack([none, halfway])
    first = np.zeros((1, columns))
    counts = ranking.counts._replace(
        true_yes=np.vstack([first, ranking.counts.true_yes]), false_yes=np.vstack([first, ranking.counts.false_yes])
    )
    usable = np.vstack([np.ones((1, columns), bool), ranking.ends & np.isfinite(ranking.scores)])
    values = np.where(usable, counts.by(criterion), -1.0)
    # Sums in another order may differ in the last digit.
    best = values >= values.max(axis=0) - 1e-12
    distance = np.where(best, np.abs(thresholds - 0.5), np.inf)
    chosen = np.take_along_axis(thresholds, distance.argmin(axis=0)[None], axis=0)[0]
    return np.where((ranking.counts.yes > 0) & (ranking.counts.no > 0), chosen, 0.5)


def count_answers(probabilities: NDArray[np.floating], labels: Labels, thresholds: Floats | float) -> Counts:
    """Answers at given thresholds.

    Args:
        probabilities: ``(N, A)``.
        labels: ``(N, A)``.
        thresholds: ``(A,)``, or one for all columns.

    Returns:
        Counts per column.
    """
    answers = probabilities.astype(np.float64) >= np.asarray(thresholds, np.float64)
    yes, no = labels == 1, labels == 0
    return Counts(*((part.sum(axis=0) + 0.0) for part in (answers & yes, answers & no, yes, no)))


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the answer is yes where a probability is given.

    Attributes:
        predicted: ``(15,)`` mean probability of each bin of equal width; NaN where it is empty.
        observed: ``(15,)`` share of yes among the known labels of the bin; NaN where it is empty.
        counts: ``(15,)`` int64 known labels in the bin.
        ece: Expected calibration error: mean distance of the two, weighted by the counts; NaN without labels.
        brier: Mean squared difference of probability and answer; NaN without labels.
    """

    predicted: Floats
    observed: Floats
    counts: NDArray[np.int64]
    ece: float
    brier: float


def reliability(probabilities: NDArray[np.floating], labels: Labels) -> Reliability:
    """Reliability over all columns together.

    Sources: Brier score, Monthly Weather Review 78(1), 1950; expected calibration error with equal-width bins,
    https://arxiv.org/abs/1706.04599, section 2.

    Args:
        probabilities: ``(N, A)``.
        labels: ``(N, A)``.
    """
    known = labels >= 0
    given, answer = probabilities[known].astype(np.float64), labels[known].astype(np.float64)
    bins = np.minimum((given * _BINS).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    predicted = _divide(np.bincount(bins, given, _BINS), counts)
    observed = _divide(np.bincount(bins, answer, _BINS), counts)
    total = max(counts.sum(), 1)
    gaps = np.nan_to_num(np.abs(predicted - observed)) * counts
    return Reliability(
        predicted,
        observed,
        counts,
        ece=float(gaps.sum() / total) if len(given) else np.nan,
        brier=float(((given - answer) ** 2).mean()) if len(given) else np.nan,
    )
