"""Which width and resolution fit a budget, and which of them is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mnvision.cost import Cost
from mnvision.errors import UserError

Ranking = Literal["own", "published", "mult_adds"]
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_BIAS_BYTES = {"fp32": 4, "fp16": 2, "int8": 4}
# Key of a budget -> field of a point, its unit in words, and by how much to divide it.
COSTS: dict[str, tuple[str, str, float]] = {
    "latency_ms": ("latency_ms", "ms", 1.0),
    "madds": ("mult_adds", "M multiply-adds", 1e6),
    "params": ("params", "M parameters", 1e6),
    "file_mb": ("file_mb", "MB", 1.0),
}


@dataclass(frozen=True)
class Point:
    """One width and resolution.

    Attributes:
        alpha: Width multiplier.
        resolution: Pixels.
        mult_adds: Of one picture.
        params: Learnable values.
        file_mb: Of the weights in an exported file, MB of 10^6 bytes.
        latency_ms: Median; None where it was not measured.
        published: Top-1 on ImageNet in [0, 1]; None where nothing is published, or the task is another.
        own: The user's best measured score; None where there is no run.
        runs: How many runs there are.
    """

    alpha: float
    resolution: int
    mult_adds: int
    params: int
    file_mb: float
    latency_ms: float | None = None
    published: float | None = None
    own: float | None = None
    runs: int = 0

    @property
    def name(self) -> str:
        """As the paper calls it, e.g. "0.5-160"."""
        return f"{self.alpha:g}-{self.resolution}"

    def cost(self, key: str) -> float:
        """What it needs of one budget, in the budget's own unit.

        Raises:
            ValueError: Latency was not measured.
        """
        value = getattr(self, COSTS[key][0])
        if value is None:
            raise ValueError(f"{self.name} has no {key}")
        return float(value)

    def score(self, ranking: Ranking) -> float | None:
        """What it is ranked by."""
        return {"own": self.own, "published": self.published, "mult_adds": float(self.mult_adds)}[ranking]


@dataclass(frozen=True)
class Budget:
    """Upper limits; None is no limit. All given ones must be kept."""

    latency_ms: float | None = None
    madds: float | None = None
    params: float | None = None
    file_mb: float | None = None

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Budget:
        """Check what a user wrote.

        Raises:
            UserError: An unknown limit, or one that is no number above 0.
        """
        known = [field.name for field in fields(cls)]
        for key, value in given.items():
            if key not in known:
                raise UserError(f"budget.{key}: there is no such budget; known are {', '.join(known)}")
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"budget.{key}={value}: give a number above 0, e.g. budget.{key}={_EXAMPLES[key]}")
        return cls(**given)

    @property
    def limits(self) -> dict[str, float]:
        """Those that are given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: float(value) for key, value in values.items() if value is not None}

    def excess(self, point: Point) -> dict[str, float]:
        """By limit, how many times it the point needs; the point fits where none is above 1."""
        return {key: point.cost(key) / limit for key, limit in self.limits.items()}

    def fits(self, point: Point) -> bool:
        """Whether the point keeps all limits."""
        return all(times <= 1 for times in self.excess(point).values())


_EXAMPLES = {"latency_ms": "8", "madds": "150e6", "params": "2e6", "file_mb": "2"}


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes:
        best: None where nothing fits.
        ranking: By what the feasible points were compared.
        reason: Why by that, for the user.
        nearest: The point that exceeds the limits least.
    """

    best: Point | None
    ranking: Ranking
    reason: str
    nearest: Point


def file_megabytes(cost: Cost, precision: str) -> float:
    """Size of the weights in an exported file: batch normalisation folded into one bias per channel.

    In int8, weights take a byte and biases four. What a format adds of its own (names, scales) is not counted.

    Raises:
        UserError: An unknown precision.
    """
    if precision not in BYTES:
        raise UserError(f"precision={precision}: choose {', '.join(BYTES)}")
    norms = sum(layer.params for layer in cost.layers if layer.type == "batch norm")
    weights = cost.weights
    biases = cost.params - weights - norms + norms // 2
    return (weights * BYTES[precision] + biases * _BIAS_BYTES[precision]) / 1e6


def frontier(costs: Sequence[float], scores: Sequence[float | None]) -> list[bool]:
    """Which points no other point beats: at most its cost, at least its score, and better in one of them.

    Args:
        costs: Less is better.
        scores: More is better; points of unknown score are never on the frontier.
    """
    known = [(cost, score) for cost, score in zip(costs, scores, strict=True) if score is not None]
    return [
        score is not None and not any(c <= cost and s >= score and (c < cost or s > score) for c, s in known)
        for cost, score in zip(costs, scores, strict=True)
    ]


def choose(points: Sequence[Point], budget: Budget, main: str) -> Choice:
    """The best point within the budget.

    Ranked by the user's own scores where a feasible point has one; else by what is published, if that is known of all
    feasible points; else by multiply-adds, which is a guess: more of them are mostly better, not always.

    Args:
        points: At least one.
        budget: What to keep.
        main: Of two equally good points the one that needs less of this is taken.
    """
    feasible = [point for point in points if budget.fits(point)]
    nearest = min(points, key=lambda point: (max(budget.excess(point).values(), default=0.0), point.mult_adds))
    ranking, reason = _ranking(feasible or points)
    ranked = [point for point in feasible if point.score(ranking) is not None]
    best = min(ranked, key=lambda point: (-_known(point, ranking), point.cost(main), point.mult_adds), default=None)
    return Choice(best, ranking, reason, nearest)


def _known(point: Point, ranking: Ranking) -> float:
    score = point.score(ranking)
    assert score is not None
    return score


def _ranking(points: Sequence[Point]) -> tuple[Ranking, str]:
    scored = sum(point.own is not None for point in points)
    if scored:
        return "own", f"by your own runs; {scored} of {len(points)} points have one, the others were not considered"
    unknown = sum(point.published is None for point in points)
    if unknown == 0:
        return "published", "by the top-1 on ImageNet that was published; on your pictures the order may differ"
    known = (
        "no score is published for this task" if unknown == len(points) else f"{unknown} points have no published score"
    )
    return "mult_adds", f"by multiply-adds, the most that fit: {known}; runs=FOLDER ranks by your own runs"


def with_scores(points: Sequence[Point], scores: Mapping[tuple[float, int], Sequence[float]]) -> list[Point]:
    """The points with the best of the user's scores of each."""
    return [
        replace(point, own=max(found), runs=len(found))
        if (found := scores.get((point.alpha, point.resolution)))
        else point
        for point in points
    ]


def shortfall(choice: Choice, budget: Budget) -> str:
    """One line for a budget that nothing fits."""
    point, over = choice.nearest, budget.excess(choice.nearest)
    parts = []
    for key, times in over.items():
        if times > 1:
            _, unit, scale = COSTS[key]
            parts.append(f"{point.cost(key) / scale:.3g} {unit}, {times:.3g} times budget.{key}")
    return (
        f"nothing fits: the nearest is alpha {point.alpha:g} at {point.resolution} px with {' and '.join(parts)}; "
        "raise the budget, or give smaller alphas=[...] or resolutions=[...]"
    )
