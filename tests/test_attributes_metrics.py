"""Average precision, thresholds, reliability and dead attributes against scikit-learn and hand-made cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
)

from mnvision.errors import UserError
from mnvision.metrics.attributes import AttributeEvaluator
from mnvision.metrics.binary import average_precision, best_thresholds, count_answers, reliability

SKLEARN = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score, "f1": f1_score}
# Few different values, so that ties are common; 0 and 1 themselves are among them.
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 3)))
    scores = draw(arrays(np.float32, shape, elements=SCORES.map(np.float32)))
    labels = draw(arrays(np.int8, shape, elements=st.sampled_from([-1, 0, 1])))
    return scores, labels


def known(scores: np.ndarray, labels: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = labels[:, column] >= 0
    return scores[chosen, column].astype(np.float64), labels[chosen, column].astype(int)


@settings(deadline=None)
@given(cases())
def test_average_precision_is_scikit_learns_ties_and_missing_labels_included(case):
    scores, labels = case
    for column, ours in enumerate(average_precision(scores, labels)):
        given_scores, truth = known(scores, labels, column)
        if truth.sum() == 0:
            assert np.isnan(ours)
        else:
            assert ours == pytest.approx(average_precision_score(truth, given_scores), abs=1e-12)


@settings(deadline=None)
@given(cases(), st.sampled_from(sorted(SKLEARN)))
def test_no_threshold_is_better_than_the_chosen_one(case, criterion):
    scores, labels = case
    chosen = best_thresholds(scores, labels, criterion)
    for column, threshold in enumerate(chosen):
        given_scores, truth = known(scores, labels, column)
        if len(set(truth.tolist())) < 2:
            assert threshold == 0.5
            continue
        values = np.unique(given_scores)
        every = [*values, *(values[1:] + values[:-1]) / 2, 2.0, -1.0]
        best = max(SKLEARN[criterion](truth, given_scores >= t) for t in every)
        assert SKLEARN[criterion](truth, given_scores >= threshold) == pytest.approx(best, abs=1e-12)


@settings(deadline=None)
@given(cases(), st.floats(0, 1))
def test_counted_answers_give_scikit_learns_accuracies(case, threshold):
    scores, labels = case
    counts = count_answers(scores, labels, threshold)
    for column in range(labels.shape[1]):
        given_scores, truth = known(scores, labels, column)
        answers = given_scores >= threshold
        if len(truth) == 0:
            assert np.isnan(counts.accuracy()[column])
            continue
        assert counts.accuracy()[column] == pytest.approx(accuracy_score(truth, answers))
        if len(set(truth.tolist())) == 2:
            assert counts.balanced_accuracy()[column] == pytest.approx(balanced_accuracy_score(truth, answers))
        if (truth + answers).sum():
            assert counts.f1()[column] == pytest.approx(f1_score(truth, answers))


def columns(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values).T.contiguous()


def evaluator_of(probabilities: torch.Tensor, labels: torch.Tensor, names: str = "abcdefgh") -> AttributeEvaluator:
    evaluator = AttributeEvaluator(list(names[: labels.shape[1]]))
    evaluator.update(probabilities, labels, torch.arange(len(labels)))
    return evaluator


def test_a_case_worked_by_hand():
    probabilities = columns([0.9, 0.8, 0.3, 0.1], [0.2, 0.6, 0.7, 0.4], [0.1, 0.2, 0.3, 0.4])
    labels = columns([1, 0, 1, 0], [0, 1, 1, -1], [0, 0, -1, 0]).to(torch.int8)
    scores = evaluator_of(probabilities, labels).compute(majority=[1, 0, 1])
    one, two, three = scores.per_attribute.values()
    assert one.ap == pytest.approx((1 + 2 / 3) / 2)
    assert two.ap == 1.0
    assert three.ap == three.balanced_accuracy == -1.0
    assert scores.mean_ap == pytest.approx((one.ap + two.ap) / 2)
    assert [row.accuracy for row in (one, two, three)] == [0.5, 1.0, 1.0]
    assert [row.n for row in (one, two, three)] == [4, 3, 3]
    assert [row.majority for row in (one, two, three)] == pytest.approx([0.5, 1 / 3, 0.0])
    assert scores.majority_of == "training set"
    assert scores.unscored == {"c": "no positives"}
    assert scores.balanced_accuracy == pytest.approx(0.75)
    assert not scores.calibrated
    assert "no calibrated thresholds" in scores.table()
    assert json.loads(json.dumps(scores.to_dict()))["per_attribute"]["b"]["ap"] == 1.0


def test_calibrated_thresholds_count_beside_half():
    probabilities, labels = columns([0.4, 0.3, 0.2, 0.1]), columns([1, 1, 0, 0]).to(torch.int8)
    evaluator = evaluator_of(probabilities, labels)
    thresholds = evaluator.thresholds()
    assert thresholds == pytest.approx([0.25])
    scores = evaluator.compute(thresholds)
    row = scores.per_attribute["a"]
    assert (row.accuracy, row.accuracy_at_half, row.balanced_accuracy_at_half) == (1.0, 0.5, 0.5)
    assert row.threshold == pytest.approx(0.25)
    assert scores.majority_of == "evaluated split"
    assert scores.dead == {}
    assert evaluator.compute().dead == {"a": "answer always no, wrong for 2 of 4"}


@pytest.mark.parametrize("level", [0.5, 0.01, 0.999])
def test_dead_attributes_are_those_that_do_not_depend_on_the_picture(level: float):
    rng = np.random.default_rng(0)
    logit = np.log(level / (1 - level))
    faint, clear = (1 / (1 + np.exp(-(logit + rng.normal(0, spread, 400)))) for spread in (1e-3, 0.5))
    probabilities = torch.tensor(np.stack([faint, clear], axis=1), dtype=torch.float32)
    labels = torch.from_numpy(rng.integers(0, 2, (400, 2)).astype(np.int8))
    dead = evaluator_of(probabilities, labels).compute([level, level]).dead
    assert list(dead) == ["a"]
    assert "probability always" in dead["a"]


def test_nothing_known_is_no_score_and_no_error():
    scores = evaluator_of(torch.rand(3, 2), torch.full((3, 2), -1)).compute()
    assert scores.scalars() == dict.fromkeys(scores.scalars(), -1.0)
    assert scores.unscored == {"a": "no labels", "b": "no labels"}
    empty = AttributeEvaluator(["a"])
    assert empty.thresholds().tolist() == [0.5]
    assert empty.compute().num_samples == 0


def test_a_picture_given_twice_counts_once():
    probabilities, labels = torch.rand(6, 2), torch.randint(0, 2, (6, 2))
    evaluator = evaluator_of(probabilities, labels)
    once = evaluator.compute().to_dict()
    evaluator.update(probabilities[2:4], labels[2:4], torch.tensor([2, 3]))
    twice = evaluator.compute().to_dict()
    assert twice.pop("num_repeated") == 2
    assert "2 repeated" in evaluator.compute().table()
    once.pop("num_repeated")
    assert twice == once


def test_processes_together_score_as_one(monkeypatch: pytest.MonkeyPatch):
    probabilities, labels = torch.rand(7, 3), torch.randint(-1, 2, (7, 3))
    whole = evaluator_of(probabilities, labels)
    # Both have picture 3: samplers repeat some to give every process as many.
    parts = [slice(0, 4), slice(3, 7)]
    evaluators = [AttributeEvaluator("abc") for _ in parts]
    for evaluator, part in zip(evaluators, parts):
        evaluator.update(probabilities[part], labels[part], torch.arange(7)[part])

    def all_gather_object(into: list, mine: object) -> None:
        into[:] = [(evaluator.collected(), 0) for evaluator in evaluators]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", all_gather_object)
    first = evaluators[0]
    first.gather()
    assert first.compute().to_dict() == {**whole.compute().to_dict(), "num_repeated": 1}
    assert first.thresholds().tolist() == whole.thresholds().tolist()


def test_reliability_is_scikit_learns_brier_score_and_the_gap_worked_by_hand():
    probabilities = np.array([[0.05, 0.95], [0.05, 0.9], [1.0, 0.3]], np.float32)
    labels = np.array([[1, 1], [0, 1], [1, -1]], np.int8)
    curve = reliability(probabilities, labels)
    truth, given_scores = [1, 0, 1, 1, 1], [0.05, 0.05, 1.0, 0.95, 0.9]
    assert curve.brier == pytest.approx(brier_score_loss(truth, given_scores))
    # Bins of width 1/15: two labels at 0.05, one at 0.9, two at 0.95 and 1.
    assert curve.ece == pytest.approx((2 * abs(0.05 - 0.5) + abs(0.9 - 1) + 2 * abs(0.975 - 1)) / 5)
    assert curve.counts.sum() == 5
    assert curve.counts[[0, 13, 14]].tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("probabilities", "labels", "text"),
    [
        (torch.tensor([[0.5, float("nan")]]), torch.zeros(1, 2), "sample 7, b: probability nan"),
        (torch.tensor([[0.5, 1.5]]), torch.zeros(1, 2), "sample 7, b: probability 1.5"),
        (torch.rand(1, 2), torch.tensor([[2, 0]]), "sample 7, a: probability .* and label 2"),
        (torch.rand(1, 3), torch.zeros(1, 3), r"expected \(B, 2\)"),
        (torch.rand(1, 2), torch.zeros(2, 2), "one of each per picture"),
    ],
)
def test_batches_that_make_no_sense_are_refused(probabilities, labels, text):
    with pytest.raises(UserError, match=text):
        AttributeEvaluator("ab").update(probabilities, labels.to(torch.int8), torch.tensor([7]))


def test_names_are_unique_and_there_are_some():
    with pytest.raises(UserError, match="'a' occurs twice"):
        AttributeEvaluator("aba")
    with pytest.raises(UserError, match="no attribute names"):
        AttributeEvaluator([])
