"""Which heads' batches a step takes: fixed shares, kept to within one batch at any time.

Source: M. Balinski and H. Young, "The quota method of apportionment" (American Mathematical Monthly 82, 1975). Dealing
out one batch after another, a head may get the next one only if that keeps it within its share rounded up; of those
who may, the one with the largest share per batch gets it. Every head then always has its share rounded down or up.
Whoever is simply furthest behind being served does not guarantee that for three heads or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from mnvision.errors import UserError

Draw = Literal["round_robin", "proportional", "square_root"]
DRAWS: tuple[Draw, ...] = get_args(Draw)

_ROOT_PRECISION = 1 << 10  # roots are whole multiples of 1 / 1024, so that all arithmetic is exact


class Drawn(NamedTuple):
    """One batch of the schedule.

    Attributes:
        head: Number of the head.
        batch: How many batches of that head were drawn before.
    """

    head: int
    batch: int


class JointSchedule:
    """The heads of every step; it holds no state and draws nothing at random.

    An epoch is as long as it takes to see the largest data set (the one with the most batches) once. Smaller ones
    begin again within it, unless shares are proportional.

    Args:
        batches: Head -> batches in one pass through its training data.
        draw: "round_robin": equal shares. "proportional": shares as the numbers of batches, so that every set is seen
            equally often. "square_root": shares as their square roots, in between.
        batches_per_step: Batches of a step; None takes as many as there are heads.

    Attributes:
        heads: Names.
        weights: Whole numbers, in proportion to the shares.

    Raises:
        UserError: No heads, an unknown ``draw``, or fewer than one batch per step.
    """

    def __init__(self, batches: Mapping[str, int], draw: Draw, batches_per_step: int | None = None) -> None:
        if draw not in DRAWS:
            raise UserError(f"draw={draw}: choose {', '.join(DRAWS)}")
        if not batches or min(batches.values()) < 1:
            raise UserError(f"every head needs at least one batch of training data; there are {dict(batches)}")
        per_step = len(batches) if batches_per_step is None else batches_per_step
        if isinstance(per_step, bool) or not isinstance(per_step, int) or per_step < 1:
            raise UserError(f"batches_per_step={per_step!r}: give a whole number of at least 1, or null")
        self.heads, self.sizes, self.batches_per_step = tuple(batches), tuple(batches.values()), per_step
        self.weights = _weights(self.sizes, draw)
        self._total = sum(self.weights)

    def __len__(self) -> int:
        """Steps of an epoch."""
        largest = max(range(len(self.sizes)), key=self.sizes.__getitem__)
        return -(-self.sizes[largest] * self._total // (self.weights[largest] * self.batches_per_step))

    def passes(self) -> dict[str, float]:
        """How often an epoch shows the data of each head, by name."""
        drawn = len(self) * self.batches_per_step
        shares = (drawn * weight / self._total for weight in self.weights)
        return {head: share / size for head, share, size in zip(self.heads, shares, self.sizes)}

    def steps(self, first: int = 0) -> Iterator[list[Drawn]]:
        """What the steps of a run take, without end.

        Args:
            first: Step to begin with, counted through all epochs.
        """
        draws = self._draws(first * self.batches_per_step)
        while True:
            yield [next(draws) for _ in range(self.batches_per_step)]

    def _draws(self, first: int) -> Iterator[Drawn]:
        # After as many draws as the weights sum to, each head has had exactly its weight, and all begins again.
        rounds, skipped = divmod(first, self._total)
        counts = [0] * len(self.weights)
        for place in range(skipped):
            counts[self._next(counts, place)] += 1
        place = skipped
        while True:
            head = self._next(counts, place)
            yield Drawn(head, rounds * self.weights[head] + counts[head])
            counts[head] += 1
            place += 1
            if place == self._total:
                counts, place, rounds = [0] * len(counts), 0, rounds + 1

    def _next(self, counts: Sequence[int], place: int) -> int:
        """The head that gets the draw after ``place`` ones; of equal ones the first."""
        best = -1
        for head, (count, weight) in enumerate(zip(counts, self.weights)):
            within_quota = count * self._total < (place + 1) * weight
            if within_quota and (best < 0 or weight * (counts[best] + 1) > self.weights[best] * (count + 1)):
                best = head
        return best


def _weights(sizes: Sequence[int], draw: Draw) -> tuple[int, ...]:
    if draw == "round_robin":
        return (1,) * len(sizes)
    values = sizes if draw == "proportional" else [math.isqrt(size * _ROOT_PRECISION**2) for size in sizes]
    divisor = math.gcd(*values)
    return tuple(value // divisor for value in values)
