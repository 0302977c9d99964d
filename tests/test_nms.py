from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms

from mnvision.boxes import nms as module
from mnvision.boxes.nms import grouped_nms, rank_in_group


def random_groups(count: int, groups: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=rng) * 60
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=rng) * 40 + 5], dim=1)
    return boxes, torch.randint(0, groups, (count,), generator=rng).sort().values


@pytest.mark.parametrize("pairs_at_once", [1 << 20, 7])
@pytest.mark.parametrize(("count", "groups"), [(0, 1), (1, 1), (300, 1), (300, 20)])
@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_equals_torchvision_group_by_group(count, groups, threshold, pairs_at_once, monkeypatch):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", pairs_at_once)
    boxes, group = random_groups(count, groups, seed=count + groups)
    kept = grouped_nms(boxes, group, threshold)
    expected = torch.zeros(count, dtype=torch.bool)
    for g in group.unique():
        members = (group == g).nonzero().squeeze(1)
        scores = torch.arange(len(members), 0, -1).float()
        expected[members[nms(boxes[members], scores, threshold)]] = True
    assert count < 2 or 0 < expected.sum() < count
    assert torch.equal(kept, expected)


def test_a_long_chain_keeps_every_second_box():
    # Each box overlaps only its neighbours, so the greedy result alternates: the deepest chain there can be.
    starts = torch.arange(50.0) * 3
    boxes = torch.stack([starts, torch.zeros(50), starts + 10, torch.full((50,), 10.0)], dim=1)
    kept = grouped_nms(boxes, torch.zeros(50, dtype=torch.int64), 0.5)
    assert kept.tolist() == [i % 2 == 0 for i in range(50)]


def test_boxes_without_area_are_left_alone():
    boxes = torch.zeros(3, 4)
    assert grouped_nms(boxes, torch.zeros(3, dtype=torch.int64), 0.5).all()


def test_rank_in_group():
    assert rank_in_group(torch.tensor([2, 2, 2, 5, 7, 7])).tolist() == [0, 1, 2, 0, 0, 1]
    assert rank_in_group(torch.zeros(0, dtype=torch.int64)).tolist() == []
