"""Triplet mining and loss against brute force and pytorch-metric-learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor
from torch.nn.functional import normalize

from mnvision.errors import UserError
from mnvision.losses.triplet import (
    TripletLoss,
    batch_hard_triplets,
    pair_masks,
    pairwise_distances,
    semi_hard_triplets,
)


def batch(seed: int = 0, people: int = 6, each: int = 4, dim: int = 8, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Embeddings around one centre per identity, in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(people).repeat_interleave(each)[torch.randperm(people * each, generator=generator)]
    centres = torch.randn(people, dim, generator=generator)
    return centres[labels] + spread * torch.randn(people * each, dim, generator=generator), labels


def brute_semi_hard(distances: Tensor, labels: Tensor, fallback: bool) -> set[tuple[int, int, int]]:
    found = set()
    for a, p in np.ndindex(len(labels), len(labels)):
        if a == p or labels[a] != labels[p] or labels[a] < 0:
            continue
        negatives = [n for n in range(len(labels)) if labels[n] >= 0 and labels[n] != labels[a]]
        farther = [n for n in negatives if distances[a, n] > distances[a, p]]
        if farther:
            found.add((a, p, min(farther, key=lambda n: float(distances[a, n]))))
        elif fallback and negatives:
            found.add((a, p, max(negatives, key=lambda n: float(distances[a, n]))))
    return found


def as_set(triplets: tuple[Tensor, Tensor, Tensor]) -> set[tuple[int, int, int]]:
    return set(zip(*(part.tolist() for part in triplets), strict=True))


@given(
    seed=st.integers(0, 10_000),
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=14),
    fallback=st.booleans(),
)
def test_semi_hard_is_brute_force(seed: int, labels: list[int], fallback: bool) -> None:
    given_labels = torch.tensor(labels)
    points = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    distances = pairwise_distances(normalize(points), True)
    triplets = semi_hard_triplets(distances, *pair_masks(given_labels), fallback)
    assert as_set(triplets) == brute_semi_hard(distances, given_labels, fallback)


@pytest.mark.parametrize("seed", range(3))
def test_semi_hard_within_the_margin_are_among_pytorch_metric_learnings(seed: int) -> None:
    embeddings, labels = batch(seed)
    distances = pairwise_distances(normalize(embeddings), True)
    ours = semi_hard_triplets(distances, *pair_masks(labels), fallback=False)
    gaps = distances[ours.anchors, ours.negatives] - distances[ours.anchors, ours.positives]
    within = gaps < 0.2
    miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=LpDistance(power=2))
    theirs = as_set(miner(embeddings, labels))
    mine = as_set(tuple(part[within] for part in ours))
    assert 20 < len(mine) < len(theirs)
    assert mine <= theirs
    # Theirs holds every negative within the margin, ours the hardest of each pair.
    assert {pair[:2] for pair in mine} == {pair[:2] for pair in theirs}
    for a, p, n in theirs:
        (chosen,) = (own[2] for own in mine if own[:2] == (a, p))
        assert distances[a, chosen] <= distances[a, n] + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_batch_hard_is_pytorch_metric_learnings(seed: int) -> None:
    embeddings, labels = batch(seed, each=3)
    distances = pairwise_distances(normalize(embeddings), False)
    ours = batch_hard_triplets(distances, *pair_masks(labels))
    theirs = BatchHardMiner(distance=LpDistance())(embeddings, labels)
    assert len(ours.anchors) == len(labels)
    assert as_set(ours) == as_set(theirs)


@pytest.mark.parametrize(("squared", "power"), [(True, 2), (False, 1)])
def test_batch_hard_loss_and_gradient_are_pytorch_metric_learnings(squared: bool, power: int) -> None:
    embeddings, labels = batch(1)
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    loss = TripletLoss("batch_hard", margin=0.3, squared=squared)(ours, labels)["loss"]
    peer = TripletMarginLoss(margin=0.3, distance=LpDistance(power=power), reducer=MeanReducer())
    expected = peer(theirs, labels, BatchHardMiner(distance=LpDistance())(theirs, labels))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_semi_hard_loss_by_hand() -> None:
    # On the circle: identity 0 at 0 and 60 degrees, identity 1 at 90 and 180.
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1], [2.0]])
    found = TripletLoss("semi_hard", margin=0.2)(embeddings, torch.tensor([0, 0, 1, 1]))
    # Squared distances 2 - 2 cos: 0-60 1, 0-90 2, 0-180 4, 60-90 2 - sqrt 3, 60-180 3, 90-180 2.
    # (0, 60): nearest farther negative 90, 1 - 2 + 0.2 < 0. (60, 0): 180, 1 - 3 + 0.2 < 0.
    # (90, 180): none farther than 2 but the one at 0 is equally far; falls back to it: 2 - 2 + 0.2.
    # (180, 90): 60 at 3, 2 - 3 + 0.2 < 0.
    assert float(found["loss"]) == pytest.approx(0.2, abs=1e-5)
    assert float(found["triplets"]) == 4
    assert float(found["active_triplets"]) == 1
    assert float(found["positive_distance"]) == pytest.approx((1 + 2) / 2, abs=1e-5)
    assert float(found["negative_distance"]) == pytest.approx((2 + 4 + 2 - 3**0.5 + 3) / 4, abs=1e-5)


def test_soft_margin_is_softplus_of_the_gap() -> None:
    embeddings, labels = batch(2)
    distances = pairwise_distances(normalize(embeddings), False)
    a, p, n = batch_hard_triplets(distances, *pair_masks(labels))
    expected = torch.log1p((distances[a, p] - distances[a, n]).exp()).mean()
    loss = TripletLoss("batch_hard", squared=False, soft_margin=True)(embeddings, labels)["loss"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [5, 5, 5, 5], [-1, -1, -1, 0], [0]])
def test_batches_without_triplets_give_zero_with_a_gradient(mining, labels: list[int]) -> None:
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    found = TripletLoss(mining)(embeddings, torch.tensor(labels))
    found["loss"].backward()
    assert found["loss"].item() == found["triplets"].item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


@pytest.mark.parametrize("mining", ["semi_hard", "batch_hard"])
@pytest.mark.parametrize("squared", [True, False])
def test_equal_embeddings_have_a_finite_gradient(mining, squared: bool) -> None:
    embeddings = torch.ones(6, 4, requires_grad=True)
    found = TripletLoss(mining, squared=squared)(embeddings, torch.tensor([0, 0, 0, 1, 1, 1]))
    found["loss"].backward()
    assert found["loss"].item() == pytest.approx(0.2)
    assert torch.isfinite(embeddings.grad).all()


def test_half_precision_is_computed_in_float32() -> None:
    embeddings, labels = batch(3)
    half = embeddings.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = TripletLoss()(half, labels)["loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, TripletLoss()(half.float(), labels)["loss"])


def test_training_pulls_identities_apart() -> None:
    embeddings, labels = batch(4, spread=3.0)
    embeddings.requires_grad_()
    loss, optimizer = TripletLoss(), torch.optim.Adam([embeddings], lr=0.1)
    first = loss(embeddings, labels)
    for _ in range(60):
        optimizer.zero_grad()
        loss(embeddings, labels)["loss"].backward()
        optimizer.step()
    last = loss(embeddings, labels)
    assert last["active_triplets"] < 0.2 * first["active_triplets"]
    assert last["negative_distance"] > last["positive_distance"] + 0.5


@pytest.mark.parametrize(
    "options", [{"mining": "hard"}, {"margin": 0.0}, {"margin": float("nan")}, {"fallback": "hardest"}]
)
def test_bad_options_are_refused(options) -> None:
    with pytest.raises(UserError):
        TripletLoss(**options)
