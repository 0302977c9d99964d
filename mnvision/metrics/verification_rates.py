"""True accepts at limited false accepts, from the distances of pairs of one person and of pairs of two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.metrics.verification_scores import AcceptanceRate, RocCurve, ValidationRate

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
"""Rates that are reported where the pairs can resolve them."""

# From which facenet's and insightface's code interpolate VAL at FAR.
_FINE_GRID = np.arange(0, 4, 0.001)

Distances = NDArray[np.float64]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]


def roc_curve(distances: Distances, same: Flags) -> RocCurve:
    """All points of the curve; equal distances move it in one step.

    Args:
        distances: ``(P,)`` squared distances.
        same: ``(P,)`` whether a pair is of one person; both kinds occur.
    """
    ours, others = sorted_distances(distances, same)
    thresholds = np.append(np.unique(distances), np.inf)
    tar = np.searchsorted(ours, thresholds) / len(ours)
    far = np.searchsorted(others, thresholds) / len(others)
    return RocCurve(far, tar, thresholds)


def sorted_distances(distances: Distances, same: Flags) -> tuple[Distances, Distances]:
    """Those of one person and those of two, each in ascending order."""
    return np.sort(distances[same]), np.sort(distances[~same])


def equal_error_rate(roc: RocCurve) -> float:
    """Where false accepts equal false rejects, on straight lines between the curve's points."""
    excess = roc.far - (1 - roc.tar)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(roc.far[after - 1] + share * (roc.far[after] - roc.far[after - 1]))


def resolved_rates(rates: Sequence[float] | None, same: Flags, folds: Integers) -> tuple[float, ...]:
    """The false accept rates to report, highest first.

    Args:
        rates: Asked for; None is those of :data:`FALSE_ACCEPT_RATES` that the pairs resolve.
        same: ``(P,)`` whether a pair is of one person.
        folds: ``(P,)`` the fold of each pair.

    Raises:
        UserError: A rate asked for is lower than one in the number of different-person pairs. One fold's are not
            counted, for VAL at FAR finds its thresholds without them.
    """
    fewest = int((~same).sum()) - max(int((~same[folds == fold]).sum()) for fold in np.unique(folds))
    if rates is None:
        return tuple(rate for rate in FALSE_ACCEPT_RATES if _resolves(rate, fewest))
    for rate in rates:
        check_rate(rate, fewest)
    return tuple(sorted(set(rates), reverse=True))


def check_rate(rate: float, different: int) -> None:
    """Refuses a false accept rate that so many different-person pairs cannot resolve.

    Raises:
        UserError: It is out of range, or lower than ``1 / different``.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise UserError(f"false accept rate {rate!r}: give a number in (0, 1]")
    if not _resolves(rate, different):
        lowest = f"the lowest they resolve is {1 / different:.2g}: give a higher rate or" if different else "give"
        raise UserError(
            f"false accept rate {rate:g} cannot be measured with {different} pairs of two people; {lowest} more pairs"
        )


def _resolves(rate: float, different: int) -> bool:
    return rate * different >= 1 - 1e-9


def acceptance(roc: RocCurve, limit: float) -> AcceptanceRate:
    """The highest share of true accepts at a false accept rate of at most ``limit``, and the lowest rate it needs."""
    last = int(np.searchsorted(roc.far, limit + 1e-12, side="right")) - 1
    least = int(np.searchsorted(roc.tar, roc.tar[last]))
    return AcceptanceRate(limit, float(roc.tar[least]), float(roc.far[least]), float(roc.thresholds[least]))


def validation_rate(distances: Distances, same: Flags, folds: Integers, limit: float) -> ValidationRate:
    """VAL at FAR by folds.

    Each fold's threshold is where the others' false accept rate reaches ``limit``, interpolated on a grid of 0.001.
    Means are over the folds that have pairs of the kind.

    Args:
        distances: ``(P,)`` squared distances.
        same: ``(P,)`` whether a pair is of one person.
        folds: ``(P,)`` the fold of each pair.
        limit: From :func:`resolved_rates`.
    """
    values = []
    for fold in np.unique(folds):
        own = folds == fold
        threshold = _threshold_at(np.sort(distances[~own & ~same]), limit)
        kinds = (distances[own & same], distances[own & ~same])
        values.append([float((part < threshold).mean()) if len(part) else np.nan for part in kinds])
    (mean, far), (std, _) = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return ValidationRate(limit, float(mean), float(std), float(far))


def _threshold_at(others: Distances, limit: float) -> float:
    """Where the false accept rate reaches ``limit``; 0 where it never does, as in facenet's code."""
    far = np.searchsorted(others, _FINE_GRID) / len(others)
    if far[-1] < limit:
        return 0.0
    above = int(np.searchsorted(far, limit, side="right"))
    if above == len(far):
        return float(_FINE_GRID[-1])
    share = (limit - far[above - 1]) / (far[above] - far[above - 1])
    return float(_FINE_GRID[above - 1] + share * (_FINE_GRID[above] - _FINE_GRID[above - 1]))
