"""What a Faster R-CNN learns from: hand-made cases of its targets and its loss, and the random choice among them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.boxes.sampling import STEP, _mixed, random_streams, sample_balanced, uniform
from mnvision.errors import UserError
from mnvision.losses.regions import RegionLoss


def one_image(boxes: list, labels: list, crowd: list | None = None) -> dict:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64).reshape(1, -1),
        "crowd": torch.tensor(crowd or [False] * len(labels), dtype=torch.bool).reshape(1, -1),
    }


def proposals_of(boxes: list) -> dict:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    return {
        "objectness": torch.zeros(1, 4),
        "anchor_offsets": torch.zeros(1, 4, 4),
        "proposals": tensor,
        "proposal_scores": (tensor.amax(dim=-1) > 0).float(),
    }


ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [40, 40, 50, 50]])
STREAMS = random_streams(0, 0, torch.tensor([7]))


def test_proposals_learn_the_object_they_overlap_by_half():
    targets = one_image([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 0, 0]], [2, 0, -1])
    # IoU 1 and 0.5 with the first object, 0.49 with the second, none, and a padding row.
    rows = [[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 40, 29.8], [50, 50, 60, 60], [0, 0, 0, 0]]
    loss = RegionLoss(region_positive_share=1.0)
    regions = loss.choose(proposals_of(rows), targets, STREAMS, with_truth=False)
    learned = dict(zip(regions.row.tolist(), regions.columns.tolist()))
    assert learned == {0: 3, 1: 3, 2: 0, 3: 0}
    assert regions.truth.tolist() == [[0, 0, 10, 10]] * 2
    with_truth = loss.choose(proposals_of(rows), targets, STREAMS, with_truth=True)
    assert dict(zip(with_truth.row.tolist(), with_truth.columns.tolist())) == {**learned, 5: 3, 6: 1}


def test_what_lies_in_a_crowd_is_neither_object_nor_background():
    targets = one_image([[0, 0, 30, 30]], [1], [True])
    rows = [[0, 0, 10, 10], [25, 0, 45, 20]]
    regions = RegionLoss().choose(proposals_of(rows), targets, STREAMS, with_truth=True)
    assert (regions.row.tolist(), regions.columns.tolist()) == ([1], [0])


def test_the_loss_of_a_hand_made_case():
    """One object: the first two anchors have IoU 1 and 0.8, the third 0.5 is between, the fourth is background."""
    targets = one_image([[0, 0, 10, 10]], [1])
    proposals = proposals_of([[0, 0, 10, 10], [50, 50, 60, 60]])
    proposals["objectness"] = torch.tensor([[0.0, 0.0, 9.0, 0.0]])
    loss = RegionLoss(region_positive_share=1.0)
    regions = loss.choose(proposals, targets, STREAMS, with_truth=False)
    logits, offsets = torch.zeros(2, 4), torch.ones(2, 3, 4)
    offsets[0, 1] = torch.tensor([0.0, 0.5, 0.0, 3.0])
    got = loss(proposals, regions, logits, offsets, targets, ANCHORS, STREAMS)
    # Second anchor: the centre is 1 of 8 pixels off, times 10; the height is 10 / 8, its logarithm times 5.
    height = 5 * torch.log(torch.tensor(1.25))
    expected = {
        "loss_rpn_cls": torch.log(torch.tensor(2.0)),
        "loss_rpn_box": (1.25 - 0.5 + height - 0.5) / 3,
        "loss_cls": torch.log(torch.tensor(4.0)),
        "loss_box": torch.tensor((0.5 * 0.5**2 + (3 - 0.5)) / 2),
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)
    total = expected["loss_rpn_cls"] + expected["loss_cls"] + 2 * (expected["loss_rpn_box"] + expected["loss_box"])
    torch.testing.assert_close(got["loss"], total)


@pytest.mark.parametrize("padded", [0, 2])
def test_pictures_without_objects_train_the_background(padded: int):
    targets = one_image([[0, 0, 0, 0]] * padded, [-1] * padded)
    proposals = proposals_of([[0, 0, 10, 10], [50, 50, 60, 60]])
    proposals["objectness"] = proposals["objectness"].requires_grad_()
    proposals["anchor_offsets"] = proposals["anchor_offsets"].requires_grad_()
    loss = RegionLoss()
    regions = loss.choose(proposals, targets, STREAMS, with_truth=True)
    assert regions.columns.tolist() == [0, 0]
    logits, offsets = torch.zeros(2, 4, requires_grad=True), torch.zeros(2, 3, 4, requires_grad=True)
    got = loss(proposals, regions, logits, offsets, targets, ANCHORS, STREAMS)
    got["loss"].backward()
    assert got["loss_rpn_box"] == got["loss_box"] == 0
    assert (proposals["objectness"].grad > 0).all()
    assert offsets.grad is not None
    assert not offsets.grad.any()


def test_a_label_beyond_the_head_is_refused():
    targets = one_image([[0, 0, 10, 10]], [3])
    proposals = proposals_of([[0, 0, 10, 10]])
    loss = RegionLoss()
    regions = loss.choose(proposals, targets, STREAMS, with_truth=False)
    with pytest.raises(UserError, match="label 3 in the targets, but the head has 3 classes"):
        loss(proposals, regions, torch.zeros(1, 4), torch.zeros(1, 3, 4), targets, ANCHORS, STREAMS)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.1, 1.0))
def test_samples_are_balanced_and_allowed(seed: int, count: int, share: float):
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (4, 30), generator=rng)
    positive, negative = kind == 0, kind == 1
    streams = random_streams(seed, 0, torch.arange(4))
    image, index = sample_balanced(positive, negative, streams, count, share)
    assert len(set(zip(image.tolist(), index.tolist()))) == len(image)
    assert (positive | negative)[image, index].all()
    for row in range(4):
        mine = index[image == row]
        num_positive = min(int(positive[row].sum()), int(count * share))
        assert int(positive[row][mine].sum()) == num_positive
        assert len(mine) == num_positive + min(int(negative[row].sum()), count - num_positive)


def test_random_numbers_belong_to_seed_epoch_and_picture_and_nothing_else():
    ids = torch.tensor([139, 285, -3])
    numbers = uniform(random_streams(1, 2, ids), 1000)
    assert torch.equal(uniform(random_streams(1, 2, ids.flip(0)), 1000), numbers.flip(0))
    assert torch.equal(uniform(random_streams(1, 2, ids), 10), numbers[:, :10])
    for other in (random_streams(0, 2, ids), random_streams(1, 3, ids), random_streams(2, 1, ids)):
        assert not (uniform(other, 1000) == numbers).any(dim=1).all()
        assert abs(float(torch.corrcoef(torch.cat([uniform(other, 1000), numbers])).triu(1).abs().max())) < 0.15
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    torch.testing.assert_close(numbers.mean(dim=1), torch.full((3,), 0.5), atol=0.05, rtol=0)


def test_splitmix64_gives_its_published_numbers():
    """First outputs of the generator seeded with 1234567 (Vigna's splitmix64.c, as Rosetta Code lists them)."""
    state = torch.tensor(1234567) + torch.arange(1, 6) * STEP
    numbers = [int(value) % (1 << 64) for value in _mixed(state)]
    assert numbers == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize(
    "options",
    [{"rpn_count": 0}, {"region_positive_share": 0.0}, {"rpn_iou": (0.7, 0.3)}, {"region_iou": 2}, {"box_weight": -1}],
)
def test_wrong_settings_of_the_loss(options: dict):
    with pytest.raises(UserError, match=next(iter(options))):
        RegionLoss(**options)
