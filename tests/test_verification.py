"""Verification against plain implementations of the protocol's definition, scikit-learn, and cases counted by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from mnvision.errors import UserError
from mnvision.metrics.verification import VerificationEvaluator, acceptance_at, verify
from mnvision.metrics.verification_scores import VerificationScores


def faces(people: int = 30, each: int = 4, dim: int = 16, noise: float = 0.9, seed: int = 0) -> Any:
    """Unit embeddings ``(people * each, dim)`` float32 around one centre per person, and their people."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(people), each)
    points = rng.normal(size=(people, dim))[owners] + noise * rng.normal(size=(people * each, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), owners


def pair_list(owners: Any, folds: int = 10, per_fold: int = 12, seed: int = 1) -> Any:
    """Pairs ``(P, 2)``, answers and folds; each fold has as many of one kind as of the other."""
    rng = np.random.default_rng(seed)
    pairs, same, fold = [], [], []
    for f in range(folds):
        for kind in (True, False):
            while same[f * per_fold :].count(kind) < per_fold // 2:
                a, b = rng.choice(len(owners), 2, replace=False)
                if (owners[a] == owners[b]) == kind:
                    pairs.append((a, b))
                    same.append(kind)
                    fold.append(f)
    return np.array(pairs), np.array(same), np.array(fold)


def on_a_line(distances: Any) -> Any:
    """Embeddings on the unit circle, pair i of squared distance ``distances[i]`` in rows 2 i and 2 i + 1."""
    angles = 2 * np.arcsin(np.sqrt(np.asarray(distances, float)) / 2)
    rows = np.zeros((2 * len(angles), 2))
    rows[::2, 0] = 1
    rows[1::2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rows, np.arange(2 * len(angles)).reshape(-1, 2)


def plain_accuracy(threshold: float, distances: Any, same: Any) -> float:
    return sum((d < threshold) == bool(s) for d, s in zip(distances, same)) / len(same)


def plain_folds(distances: Any, same: Any, num_folds: int = 10) -> tuple[list[float], list[float]]:
    """Accuracies and thresholds as insightface defines them: scikit-learn's folds, a loop over candidates."""
    accuracies, chosen = [], []
    for train, test in KFold(num_folds, shuffle=False).split(distances):
        candidates = np.arange(0, 4, 0.01)
        scores = [plain_accuracy(t, distances[train], same[train]) for t in candidates]
        chosen.append(candidates[scores.index(max(scores))])
        accuracies.append(plain_accuracy(chosen[-1], distances[test], same[test]))
    return accuracies, chosen


def plain_val(distances: Any, same: Any, limit: float, num_folds: int = 10) -> tuple[float, float, float]:
    """VAL and FAR by the definition of facenet's code, with NumPy's interpolation."""
    vals, fars = [], []
    candidates = np.arange(0, 4, 0.001)
    for train, test in KFold(num_folds, shuffle=False).split(distances):
        others = distances[train][~same[train]]
        far = np.array([(others < t).mean() for t in candidates])
        threshold = np.interp(limit, far, candidates) if far.max() >= limit else 0.0
        vals.append((distances[test][same[test]] < threshold).mean())
        fars.append((distances[test][~same[test]] < threshold).mean())
    return float(np.mean(vals)), float(np.std(vals)), float(np.mean(fars))


@pytest.mark.parametrize("noise", [0.5, 0.9, 1.5])
def test_the_same_numbers_as_the_protocol_of_insightface(noise: float):
    embeddings, owners = faces(noise=noise)
    pairs, same, folds = pair_list(owners)
    wide = embeddings.astype(np.float64)
    distances = np.sum(np.square(wide[pairs[:, 0]] - wide[pairs[:, 1]]), 1)
    accuracies, thresholds = plain_folds(distances, same)
    scores = verify(embeddings, pairs, same, folds, rates=(0.1, 0.03))
    assert [fold.accuracy for fold in scores.folds] == accuracies
    assert [fold.threshold for fold in scores.folds] == thresholds
    assert scores.accuracy == np.mean(accuracies)
    assert scores.std == np.std(accuracies)
    # Huang et al. 2007: the root of the sum of squares over nine, over the root of ten.
    mean = sum(accuracies) / 10
    deviation = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / 9)
    assert scores.standard_error == pytest.approx(deviation / math.sqrt(10), abs=1e-12)
    for val, limit in zip(scores.val_at_far, (0.1, 0.03)):
        assert (val.mean, val.std, val.far) == pytest.approx(plain_val(distances, same, limit), abs=1e-12)


def test_by_hand():
    # Fold 0 is answered with what serves fold 1 and the other way round.
    distances = [0.205, 0.505, 0.305, 1.005, 0.105, 0.405, 0.705, 0.905]
    same = np.array([True, True, False, False, True, True, False, False])
    embeddings, pairs = on_a_line(distances)
    scores = verify(embeddings, pairs, same, np.array([3, 3, 3, 3, 7, 7, 7, 7]), rates=[0.5])
    # Of fold 7, 0.41 is the first threshold that answers all; in fold 3 it accepts 0.205 and, wrongly, 0.305.
    assert (scores.folds[0].fold, scores.folds[0].threshold) == (3, pytest.approx(0.41))
    assert scores.folds[0].accuracy == 0.5
    # Of fold 3, the first best is 0.21 (three right); in fold 7 it accepts only 0.105: three right.
    assert (scores.folds[1].fold, scores.folds[1].threshold) == (7, pytest.approx(0.21))
    assert scores.folds[1].accuracy == 0.75
    assert scores.accuracy == 0.625
    assert scores.std == 0.125
    assert scores.standard_error == pytest.approx(0.125)  # sqrt(2 * 0.125^2 / 1) / sqrt(2)
    # 16 couples of a same and a different pair; in the wrong order are 0.505 and 0.405, each after 0.305.
    assert scores.auc == pytest.approx(14 / 16)
    assert scores.eer == pytest.approx(0.25)
    (rate,) = scores.tar_at_far
    assert (rate.limit, rate.tar, rate.far) == (0.5, 1.0, 0.25)
    # Seven right between 0.505 and 0.705, with the most room.
    assert scores.threshold == pytest.approx(0.605)
    assert scores.threshold_accuracy == 7 / 8
    assert scores.similarity == pytest.approx(1 - 0.605 / 2)
    assert scores.similarities == pytest.approx(1 - np.array(distances) / 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_auc_and_equal_error_rate_with_ties(data):
    count = data.draw(st.integers(4, 40))
    steps = np.array(data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)))
    same = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    same[:2] = True, False
    embeddings, pairs = on_a_line(steps / 4)
    embeddings = embeddings.round(9)  # equal distances stay equal
    scores = verify(embeddings, pairs, same, np.arange(count) % 2)
    assert scores.auc == pytest.approx(roc_auc_score(same, -steps), abs=1e-9)
    far, tar, _ = roc_curve(same, -steps, drop_intermediate=False)
    # A vertical step of the curve is a function of nothing; a hair of width lets SciPy interpolate it.
    curve = interp1d(far + 1e-9 * np.arange(len(far)), tar, bounds_error=False, fill_value=(0.0, 1.0))
    assert scores.eer == pytest.approx(brentq(lambda x: 1 - x - curve(x), -1e-6, 1 + 1e-6), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_pairs_and_of_their_pictures_does_not_matter(seed: int):
    embeddings, owners = faces(people=8, noise=1.2, seed=seed)
    pairs, same, folds = pair_list(owners, folds=4, per_fold=6, seed=seed)
    order = np.random.default_rng(seed).permutation(len(pairs))
    scores = verify(embeddings, pairs, same, folds)
    shuffled = verify(embeddings, pairs[order][:, ::-1], same[order], folds[order])
    assert shuffled == scores
    renamed = verify(embeddings, pairs, same, 5 - folds)
    assert sorted(f.accuracy for f in renamed.folds) == sorted(f.accuracy for f in scores.folds)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), candidates=st.sampled_from(["grid", "exact"]))
def test_what_holds_for_every_set_of_pairs(seed: int, candidates):
    embeddings, owners = faces(people=10, noise=1.0, seed=seed)
    pairs, same, folds = pair_list(owners, folds=5, per_fold=8, seed=seed)
    scores = verify(embeddings, pairs, same, folds, candidates, rates=[0.5, 0.25, 0.1])
    assert scores.roc is not None
    assert (np.diff(scores.roc.far) >= 0).all()
    assert (np.diff(scores.roc.tar) >= 0).all()
    assert (scores.roc.far[[0, -1]] == [0, 1]).all()
    assert (scores.roc.tar[[0, -1]] == [0, 1]).all()
    tars = [rate.tar for rate in scores.tar_at_far]
    assert tars == sorted(tars, reverse=True)  # limits fall
    assert all(rate.far <= rate.limit for rate in scores.tar_at_far)
    for rate in scores.tar_at_far:
        distances = 2 - 2 * scores.similarities
        assert rate.tar == (distances[same] < rate.threshold - 1e-9).mean()
        assert rate.far == (distances[~same] < rate.threshold - 1e-9).mean()
    # No threshold answers more of the pairs than the best one.
    distances = 2 - 2 * scores.similarities
    assert plain_accuracy(scores.threshold, distances, same) == scores.threshold_accuracy
    assert all(plain_accuracy(t, distances, same) <= scores.threshold_accuracy for t in np.arange(0, 4, 0.05))
    assert scores.threshold_accuracy >= 0.5


@pytest.mark.parametrize("candidates", ["grid", "exact"])
def test_perfect_embeddings(candidates):
    embeddings, owners = np.eye(12, dtype=np.float32)[np.repeat(np.arange(12), 4)], np.repeat(np.arange(12), 4)
    pairs, same, folds = pair_list(owners, folds=5)
    scores = verify(embeddings, pairs, same, folds, candidates, rates=[0.1])
    assert (scores.accuracy, scores.std, scores.standard_error) == (1, 0, 0)
    assert (scores.auc, scores.eer) == (1, 0)
    assert (scores.tar_at_far[0].tar, scores.tar_at_far[0].far) == (1, 0)
    assert scores.threshold == pytest.approx(1.0)  # half way between 0 and 2
    assert scores.threshold_accuracy == 1


def test_collapsed_embeddings_are_worth_nothing():
    embeddings = np.tile(np.eye(4, dtype=np.float32)[:1], (40, 1))
    pairs, same, folds = pair_list(np.repeat(np.arange(10), 4))
    scores = verify(embeddings, pairs, same, folds)
    assert (scores.accuracy, scores.auc, scores.eer) == (0.5, 0.5, 0.5)


def test_exact_candidates_serve_distances_that_the_grid_cannot_tell_apart():
    near = 0.0041 + 0.0001 * np.arange(20)
    embeddings, pairs = on_a_line(np.concatenate([near, near + 0.003]))
    same, folds = np.repeat([True, False], 20), np.arange(40) % 5
    assert verify(embeddings, pairs, same, folds).accuracy == 0.5
    assert verify(embeddings, pairs, same, folds, "exact").accuracy == 1


def test_rates_that_the_pairs_cannot_resolve_are_refused():
    embeddings, owners = faces()
    pairs, same, folds = pair_list(owners)  # 60 different pairs, 54 without one fold
    scores = verify(embeddings, pairs, same, folds)
    assert [rate.limit for rate in scores.tar_at_far] == [0.1]
    assert scores.unresolved == (0.01, 0.001)
    assert "Not measurable" in scores.table()
    assert [r.limit for r in verify(embeddings, pairs, same, folds, rates=[1 / 54, 0.3]).tar_at_far] == [0.3, 1 / 54]
    with pytest.raises(UserError, match=r"0\.01 cannot be measured with 54 pairs of two people.*0\.019"):
        verify(embeddings, pairs, same, folds, rates=[0.1, 0.01])
    with pytest.raises(UserError, match=r"give a number in \(0, 1\]"):
        verify(embeddings, pairs, same, folds, rates=[0.0])
    assert acceptance_at(scores, 1 / 60).far <= 1 / 60
    with pytest.raises(UserError, match="60 pairs of two people"):
        acceptance_at(scores, 1 / 61)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.eye(4)[0]}, "give \\(N, D\\)"),
        ({"pairs": np.zeros((120, 3), int)}, "and \\(P, 2\\)"),
        ({"same": np.ones(3, bool)}, "3 answers"),
        ({"pairs": np.full((120, 2), 120)}, "pair 0 names rows \\[120, 120\\]; there are 120"),
        ({"same": np.ones(120, bool)}, "120 of 120 pairs are of one person"),
        ({"folds": np.zeros(120, int)}, "give at least two"),
        ({"candidates": "fine"}, "choose one of grid, exact"),
    ],
)
def test_input_that_does_not_fit_is_refused(change, message):
    embeddings, owners = faces()
    pairs, same, folds = pair_list(owners)
    given = {"embeddings": embeddings, "pairs": pairs, "same": same, "folds": folds, **change}
    with pytest.raises(UserError, match=message) as error:
        verify(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0.0, 2.0, np.nan, np.inf])
def test_embeddings_not_of_unit_length_are_refused(value):
    embeddings, owners = faces()
    embeddings[7] *= np.float32(value)
    with pytest.raises(UserError, match="embedding 7 has length"):
        verify(embeddings, *pair_list(owners))


def test_scores_as_json_and_text():
    embeddings, owners = faces()
    pairs, same, folds = pair_list(owners)
    scores = verify(embeddings, pairs, same, folds, rates=[1.0])
    assert scores.roc is not None
    everything = replace(scores, tar_at_far=(replace(scores.tar_at_far[0], threshold=float("inf")),))
    stored = json.loads(json.dumps(everything.to_dict(), allow_nan=False))
    assert stored["accuracy"] == scores.accuracy
    assert stored["similarity"] == scores.similarity
    assert len(stored["folds"]) == 10
    assert {"roc", "same", "similarities"}.isdisjoint(stored)
    assert stored["tar_at_far"][0]["threshold"] is None  # everything may be accepted
    assert scores.scalars()["tar_at_far_1"] == 1
    table = scores.table()
    assert "120 pairs, 60 of one person and 60 of two" in table
    assert f"{scores.accuracy:.4f} +- {scores.standard_error:.4f}" in table


class TestEvaluator:
    def test_batches_in_any_order_score_as_the_whole(self):
        embeddings, owners = faces()
        pairs, same, folds = pair_list(owners)
        evaluator = VerificationEvaluator(pairs, same, folds)
        order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))
        for batch in [*order.split(32), order[:5]]:
            evaluator.update(torch.from_numpy(embeddings)[batch], batch)
        assert evaluator.compute() == replace(verify(embeddings, pairs, same, folds), num_repeated=5)
        evaluator.reset()
        assert evaluator.compute() == VerificationScores.unscored(120)

    def test_mirrored_embeddings_are_added(self):
        embeddings, owners = faces()
        mirrored, _ = faces(seed=5)
        pairs, same, folds = pair_list(owners)
        both = embeddings.astype(np.float64) + mirrored
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        evaluator = VerificationEvaluator(pairs, same, folds)
        evaluator.update(torch.from_numpy(embeddings), torch.arange(120), torch.from_numpy(mirrored))
        scores = evaluator.compute()
        np.testing.assert_allclose(scores.similarities, verify(both, pairs, same, folds).similarities, atol=1e-6)

    def test_pairs_without_their_pictures_are_counted(self):
        embeddings, owners = faces()
        pairs, same, folds = pair_list(owners)
        evaluator = VerificationEvaluator(pairs, same, folds, rates=[1 / 54])
        evaluator.update(torch.from_numpy(embeddings)[:100], torch.arange(100))
        known = (pairs < 100).all(axis=1)
        scores = evaluator.compute()
        assert 0 < scores.num_left_out == (~known).sum()
        assert scores == replace(
            verify(embeddings, pairs[known], same[known], folds[known]), num_left_out=scores.num_left_out
        )
        assert f"{scores.num_left_out} left out" in scores.table()

    def test_too_little_to_score_is_said_and_no_error(self):
        embeddings, owners = faces()
        pairs, same, folds = pair_list(owners)
        evaluator = VerificationEvaluator(pairs, same, folds)
        evaluator.update(torch.from_numpy(embeddings)[:2], torch.arange(2))
        scores = evaluator.compute()
        assert scores.accuracy == scores.auc == -1
        assert scores.num_left_out >= 119
        assert "no pairs could be scored" in scores.table()
        json.dumps(scores.to_dict(), allow_nan=False)
        with pytest.raises(UserError, match="no pairs were scored"):
            acceptance_at(scores, 0.1)

    def test_bad_batches_are_refused(self):
        evaluator = VerificationEvaluator(*pair_list(faces()[1]))
        with pytest.raises(UserError, match="one per row"):
            evaluator.update(torch.ones(3, 2), torch.arange(2))
        with pytest.raises(UserError, match="mirrored"):
            evaluator.update(torch.ones(3, 2), torch.arange(3), torch.ones(3, 4))
        with pytest.raises(UserError, match=r"sample 8.*NaN"):
            evaluator.update(torch.tensor([[1.0, 0.0], [float("nan"), 0.0]]), torch.tensor([4, 8]))

    def test_several_processes_exchange_what_they_have(self, monkeypatch: pytest.MonkeyPatch):
        embeddings, owners = faces()
        pairs, same, folds = pair_list(owners)
        parts = [torch.arange(0, 70), torch.arange(60, 120)]  # ten pictures in both
        ranks = [VerificationEvaluator(pairs, same, folds) for _ in parts]
        for rank, part in zip(ranks, parts):
            rank.update(torch.from_numpy(embeddings)[part], part)
        third = VerificationEvaluator(pairs, same, folds)  # a process may have had nothing
        theirs = [(*rank._unique(), rank._repeated) for rank in (*ranks, third)]
        distributed = torch.distributed
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
        monkeypatch.setattr(distributed, "all_gather_object", lambda out, _: out.__setitem__(slice(None), theirs))
        third.gather()
        assert third.compute() == replace(verify(embeddings, pairs, same, folds), num_repeated=10)
