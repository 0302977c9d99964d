"""Which heads' batches a step takes."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnvision.data.joint_schedule import DRAWS, Draw, JointSchedule
from mnvision.errors import UserError

sizes_of_sets = st.lists(st.integers(1, 400), min_size=1, max_size=7)


def schedule(sizes: list[int], draw: Draw, per_step: int | None = None) -> JointSchedule:
    return JointSchedule({f"h{number}": size for number, size in enumerate(sizes)}, draw, per_step)


def heads_of(plan: JointSchedule, steps: int, first: int = 0) -> list[list[int]]:
    return [[item.head for item in step] for step in islice(plan.steps(first), steps)]


def test_round_robin_takes_one_batch_of_each_head_per_step():
    plan = schedule([5, 2, 4], "round_robin")
    assert len(plan) == 5
    assert heads_of(plan, 6) == [[0, 1, 2]] * 6
    assert [[item.batch for item in step] for step in islice(plan.steps(), 3)] == [[0] * 3, [1] * 3, [2] * 3]
    assert plan.passes() == {"h0": 1.0, "h1": 2.5, "h2": 1.25}


def test_round_robin_goes_on_where_a_step_holds_fewer_batches_than_there_are_heads():
    plan = schedule([5, 2, 4], "round_robin", 2)
    assert heads_of(plan, 3) == [[0, 1], [2, 0], [1, 2]]
    assert len(plan) == 8  # 15 batches


def test_proportional_shares_counted_by_hand():
    """Shares 2/3 and 1/3: the first head; then, with quotas of 4/3 and 2/3, 2/2 and 1/1 are equal, so it again; then,
    with its 2 of 2, the other one. Then 3/6, 2/6, 1/6, whose order the rule of Balinski and Young gives by hand.

    Draw 1: all below their quota of 3/6, 2/6, 1/6; weights per batch 3, 2, 1: the first. Draw 2, quotas 1, 2/3, 1/3:
    the first has its 1, so the second. Draw 3, quotas 3/2, 1, 1/2: the second has its 1; 3/2 against 1/1: the first.
    Draw 4, quotas 2, 4/3, 2/3: the first has its 2; 2/2 and 1/1 are equal: the second. Draw 5, quotas 5/2, 5/3, 5/6:
    the second has more than 5/3; 3/3 and 1/1 are equal: the first. Draw 6: the third, which alone has less than its
    quota.
    """
    plan = schedule([8, 4], "proportional", 3)
    assert len(plan) == 4
    assert heads_of(plan, 2) == [[0, 0, 1], [0, 0, 1]]
    plan = schedule([9, 6, 3], "proportional", 6)
    assert len(plan) == 3
    assert heads_of(plan, 2) == [[0, 1, 0, 1, 0, 2]] * 2
    assert plan.passes() == {"h0": 1.0, "h1": 1.0, "h2": 1.0}


def test_square_root_shares_counted_by_hand():
    """Sets of 100, 25 and 4 batches: shares 10/17, 5/17, 2/17; 170 batches show the largest once."""
    plan = schedule([100, 25, 4], "square_root", 17)
    assert len(plan) == 10
    assert Counter(heads_of(plan, 1)[0]) == {0: 10, 1: 5, 2: 2}
    assert plan.passes() == {"h0": 1.0, "h1": 2.0, "h2": 5.0}


@settings(max_examples=60, deadline=None)
@given(sizes_of_sets, st.sampled_from(DRAWS), st.integers(1, 5))
@example([300, 200, 200, 100, 100, 50, 50], "proportional", 3)
def test_every_head_has_its_share_to_within_a_batch_at_any_time(sizes: list[int], draw: Draw, per_step: int):
    plan = schedule(sizes, draw, per_step)
    ideal = {"round_robin": lambda size: 1.0, "proportional": float, "square_root": math.sqrt}[draw]
    whole = sum(map(ideal, sizes))
    for weight, size in zip(plan.weights, sizes):
        assert weight / sum(plan.weights) == pytest.approx(ideal(size) / whole, rel=1e-3)
    counts, total = [0] * len(sizes), sum(plan.weights)
    drawn = (item for step in plan.steps() for item in step)
    for place, item in enumerate(islice(drawn, 600), 1):
        assert item.batch == counts[item.head]  # no batch is left out, none comes twice
        counts[item.head] += 1
        for count, weight in zip(counts, plan.weights):
            assert abs(count - Fraction(place * weight, total)) < 1


@settings(max_examples=40, deadline=None)
@given(sizes_of_sets, st.sampled_from(DRAWS), st.integers(1, 9), st.integers(0, 3000))
def test_a_step_depends_on_its_number_alone(sizes: list[int], draw: Draw, per_step: int, first: int):
    plan = schedule(sizes, draw, per_step)
    assert list(islice(plan.steps(first), 5)) == list(islice(plan.steps(), first, first + 5))


@settings(max_examples=40, deadline=None)
@given(sizes_of_sets, st.sampled_from(DRAWS), st.integers(1, 5))
def test_an_epoch_shows_the_largest_set_once_and_no_other_less(sizes: list[int], draw: Draw, per_step: int):
    plan = schedule(sizes, draw, per_step)
    drawn = Counter(head for step in heads_of(plan, len(plan)) for head in step)
    largest = sizes.index(max(sizes))
    assert max(sizes) <= drawn[largest] <= max(sizes) + per_step
    assert min(drawn[head] - size for head, size in enumerate(sizes)) >= -1
    assert len(plan) == 1 or Fraction((len(plan) - 1) * per_step * plan.weights[largest], sum(plan.weights)) < max(
        sizes
    )


@pytest.mark.parametrize(
    ("sizes", "draw", "per_step", "message"),
    [
        ([3], "random", None, "draw=random: choose round_robin, proportional, square_root"),
        ([3], "round_robin", 0, "batches_per_step=0"),
        ([3], "round_robin", True, "batches_per_step=True"),
        ([], "round_robin", None, "at least one batch"),
    ],
)
def test_impossible_schedules_are_refused(sizes: list[int], draw: Any, per_step: Any, message: str):
    with pytest.raises(UserError, match=message):
        schedule(sizes, draw, per_step)
