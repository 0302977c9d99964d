"""Who is decayed, and how the learning rate moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mnvision.errors import UserError
from mnvision.optim import constant, cosine, exponential, multistep, parameter_groups


def rates(schedule, steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total_steps=steps, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_only_full_and_pointwise_kernels_decay():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 4, 1),
        nn.Linear(4, 2),
    )
    decayed, plain = parameter_groups(net)
    assert {id(p) for p in decayed["params"]} == {id(net[i].weight) for i in (0, 3, 4)}
    assert "weight_decay" not in decayed
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 2 + 1 + 1 + 1
    net.requires_grad_(False)
    assert parameter_groups(net) == []


def test_cosine_warms_up_and_ends_at_the_final_factor():
    got = rates(cosine, 100, steps_per_epoch=10, warmup_epochs=1.0, final_factor=0.1)
    assert got[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert got[10] == pytest.approx(1.0)
    middle = 10 + 45
    assert got[middle] == pytest.approx(0.1 + 0.9 * 0.5)
    assert got[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 89 / 90)))


def test_warm_up_takes_at_most_a_tenth_of_the_run():
    assert rates(constant, 20, steps_per_epoch=100, warmup_epochs=5)[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_multistep_falls_at_shares_of_the_run():
    got = rates(multistep, 100, steps_per_epoch=10, milestones=(0.5, 0.8), gamma=0.1, warmup_epochs=0)
    assert [got[i] for i in (0, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_exponential_is_a_staircase_or_smooth():
    stairs = rates(exponential, 100, steps_per_epoch=10, gamma=0.5, every_epochs=2.5)
    assert [stairs[i] for i in (0, 24, 25, 50)] == pytest.approx([1, 1, 0.5, 0.25])
    smooth = rates(exponential, 100, steps_per_epoch=10, gamma=0.5, every_epochs=2.5, staircase=False)
    assert smooth[10] == pytest.approx(0.5**0.4)


@pytest.mark.parametrize(
    ("schedule", "options", "text"),
    [
        (cosine, {"warmup_epochs": -1}, "warmup_epochs"),
        (multistep, {"milestones": (0.5, 1.5)}, "milestones"),
        (exponential, {"gamma": 0}, "gamma"),
    ],
)
def test_impossible_schedules_are_refused(schedule, options, text):
    with pytest.raises(UserError, match=text):
        rates(schedule, 10, steps_per_epoch=1, **options)
