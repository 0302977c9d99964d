"""How far a difference of scores may be chance: the percentile bootstrap (Efron 1979) over pictures.

Both scores are of the same pictures, so a resample takes the same ones for both: what is hard for one is mostly hard
for the other, and the difference is known far better than either score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Of a mean, which costs next to nothing."""
METRIC_RESAMPLES = 200
"""Of a metric that is computed anew each time."""
LEVEL = 0.95

_CHUNK = 2_000_000  # drawn positions held at once
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """Where a difference lies in 95 % of the resamples.

    Attributes:
        low: Lower end.
        high: Upper end.
        resamples: How many gave a number.
        over: What was drawn: "pictures" or "pairs".
    """

    low: float
    high: float
    resamples: int
    over: str = "pictures"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.low:+.4f} .. {self.high:+.4f}"


def interval_of_mean(values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Of the mean of N values, such as differences of hits.

    Args:
        values: ``(N,)`` float64, N at least 1.
        resamples: How many.
        seed: Of the draws.
    """
    step = max(1, _CHUNK // len(values))
    rng = np.random.default_rng(seed)
    parts = [
        values[rng.integers(0, len(values), (min(step, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return _interval(np.concatenate(parts), "pictures")


def interval_of_metric(
    difference: Callable[[Rows], float],
    count: int,
    over: str = "pictures",
    resamples: int = METRIC_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Of a difference that is computed anew for every resample.

    Args:
        difference: Drawn rows ``(count,)`` -> the difference, NaN where these rows do not define it.
        count: Rows there are.
        over: What a row is.
        resamples: How many.
        seed: Of the draws.

    Returns:
        None where fewer than half of the resamples define it.
    """
    found = np.array([difference(rows) for rows in draws(count, resamples, seed)])
    known = found[np.isfinite(found)]
    return _interval(known, over) if 2 * len(known) >= max(resamples, 1) else None


def draws(count: int, resamples: int, seed: int) -> Iterator[Rows]:
    """``resamples`` times ``(count,)`` rows of ``0 .. count - 1``, with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield rng.integers(0, count, count)


def _interval(found: NDArray[np.float64], over: str) -> Interval:
    low, high = np.percentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(low), float(high), len(found), over)
