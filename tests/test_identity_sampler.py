"""Batches of P identities with K pictures each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnvision.data.identity_sampler import IdentitySampler
from mnvision.data.loaders import SampleKey
from mnvision.errors import UserError

sets = st.lists(st.integers(1, 7), min_size=4, max_size=30)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def batches(sampler: IdentitySampler, epoch: int = 0) -> list[list[SampleKey]]:
    sampler.set_epoch(epoch)
    keys, size = list(sampler), sampler.identities * sampler.images
    assert len(keys) == len(sampler)
    return [keys[start : start + size] for start in range(0, len(keys), size)]


@given(sets, st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.integers(0, 3))
def test_every_batch_has_p_identities_with_k_pictures(sizes: list[int], p: int, k: int, world: int, seed: int):
    labels = labels_of(sizes)
    if len(sizes) // world < p:
        with pytest.raises(UserError, match="too few for batches"):
            IdentitySampler(labels, p, k, seed, 0, world)
        return
    samplers = [IdentitySampler(labels, p, k, seed, rank, world) for rank in range(world)]
    shown: list[set[int]] = []
    for sampler in samplers:
        assert sampler.num_batches == max(len(labels) // (p * k * world), 1)
        people: set[int] = set()
        for batch in batches(sampler):
            rows = labels[[key.position for key in batch]].reshape(p, k)
            assert (rows == rows[:, :1]).all()
            assert len(set(rows[:, 0].tolist())) == p
            people |= set(rows[:, 0].tolist())
            for group in np.array([key.position for key in batch]).reshape(p, k):
                size = sizes[labels[group[0]]]
                assert len(set(group.tolist())) == min(size, k)
                assert np.bincount(group).max() <= -(-k // size)
        shown.append(people)
    assert sum(len(people) for people in shown) == len(set().union(*shown))


@given(sets, st.integers(0, 3))
def test_no_sample_is_augmented_alike_twice(sizes: list[int], seed: int):
    sampler = IdentitySampler(labels_of(sizes), 2, 3, seed, 0, 1)
    keys = [key for epoch in range(3) for batch in batches(sampler, epoch) for key in batch]
    assert len(set(keys)) == len(keys)


def test_all_pictures_of_an_identity_come_before_any_comes_again():
    sampler = IdentitySampler(np.repeat([0, 1], 12), 2, 4, rank=0, world_size=1)
    assert sampler.num_batches == 3
    assert sorted(key.position for batch in batches(sampler) for key in batch) == list(range(24))


def test_identities_are_equally_frequent():
    labels = np.repeat(np.arange(10), [1, 1, 1, 1, 1, 1, 1, 1, 1, 191])
    sampler = IdentitySampler(labels, 5, 2, rank=0, world_size=1)
    counts = np.zeros(10)
    for batch in batches(sampler):
        counts += np.bincount(labels[[key.position for key in batch]], minlength=10)
    assert counts.tolist() == [20 * 5 * 2 / 10] * 10


def test_order_depends_on_seed_and_epoch_alone():
    labels = labels_of([4] * 12)
    one, again, other = (IdentitySampler(labels, 3, 2, seed, 0, 2) for seed in (0, 0, 1))
    assert batches(one, 3) == batches(again, 3)
    assert batches(one, 3) != batches(one, 4)
    assert batches(one, 3) != batches(other, 3)


def test_every_process_gets_all_identities_in_time():
    labels = labels_of([4] * 12)
    sampler = IdentitySampler(labels, 3, 2, rank=0, world_size=2)
    seen = {int(labels[key.position]) for epoch in range(12) for batch in batches(sampler, epoch) for key in batch}
    assert seen == set(range(12))


def test_views_are_replayed():
    sampler = IdentitySampler(np.repeat([0, 1], 2), 2, 4, rank=0, world_size=1, views=3)
    for epoch in (0, 4):
        (batch,) = batches(sampler, epoch)
        views = sorted((key.position, key.epoch) for key in batch)
        assert views == sorted((position, (epoch + again) % 3) for position in range(4) for again in (0, 1))


def test_an_epoch_is_entered_anywhere():
    sampler = IdentitySampler(labels_of([4] * 12), 3, 2, rank=0, world_size=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.start = 18
    assert list(sampler) == whole[18:]
    assert list(sampler) == whole  # only once


def test_unknown_pictures_are_not_shown():
    labels = np.array([-1, 3, 3, -1, 8, 8, 8])
    sampler = IdentitySampler(labels, 2, 2, rank=0, world_size=1)
    positions = {key.position for epoch in range(5) for batch in batches(sampler, epoch) for key in batch}
    assert positions == {1, 2, 4, 5, 6}


@pytest.mark.parametrize(("p", "k"), [(0, 2), (2, 1)])
def test_impossible_sizes_are_refused(p: int, k: int):
    with pytest.raises(UserError, match="give at least 1 and 2"):
        IdentitySampler(np.repeat([0, 1], 2), p, k, rank=0, world_size=1)


def test_the_process_group_is_asked(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sampler = IdentitySampler(np.repeat([0, 1], 2), 1, 2)
        assert (sampler.rank, sampler.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
