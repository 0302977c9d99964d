"""The most confused classes against a full confusion matrix, and what the report shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnvision.metrics.classification import ClassificationEvaluator
from mnvision.metrics.confused_pairs import MAX_EXAMPLES, most_confused
from tasks.reports import classification_report


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_the_confusion_matrix(seed: int):
    from sklearn.metrics import confusion_matrix

    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 6, (2, 300))
    positions = rng.permutation(300)
    names = [f"class {i}" for i in range(6)]
    matrix = confusion_matrix(labels, predicted, labels=range(6))
    both = matrix + matrix.T
    pairs = most_confused(labels, predicted, positions, names)
    ranked = sorted((-both[a, b], a, b) for a in range(6) for b in range(a + 1, 6))
    assert [pair.count for pair in pairs] == [-count for count, _, _ in ranked[:10]]
    for pair, (_, a, b) in zip(pairs, ranked):
        assert {pair.forth.true, pair.back.true} == {names[a], names[b]}
        assert pair.forth.count >= pair.back.count
        for way in (pair.forth, pair.back):
            true, other = names.index(way.true), names.index(way.predicted)
            assert way.count == matrix[true, other]
            assert way.total == matrix[true].sum()
            mistaken = positions[(labels == true) & (predicted == other)]
            assert list(way.examples) == sorted(mistaken.tolist())[:MAX_EXAMPLES]


def test_no_mistakes_no_pairs():
    labels = np.arange(5)
    assert most_confused(labels, labels, labels, [*"abcde"]) == ()
    assert most_confused(labels[:0], labels[:0], labels[:0], [*"abcde"]) == ()


def test_the_report_names_and_shows_them(tmp_path: Path):
    """Three of four ants are called bees, one bee an ant; each picture is one grey level."""
    evaluator = ClassificationEvaluator(["ant", "bee", "a_$cat"])
    labels, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 1, 0, 1, 2])
    evaluator.update(torch.eye(3)[predicted], labels, torch.arange(7) + 10)
    scores = evaluator.compute()
    asked: list[int] = []

    def picture(position: int) -> np.ndarray:
        asked.append(position)
        return np.full((8, 8, 3), 20 * (position - 9), np.uint8)

    lines = classification_report(tmp_path, scores, ["these labels are made up"], picture)
    assert "note: these labels are made up" in lines
    assert lines[-2:] == ["most confused:", "  3 of 4 ant called bee, 1 of 2 bee called ant"]
    assert asked == [10, 11, 13, 14]
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["notes"] == ["these labels are made up"]
    assert report["most_confused"] == [{"classes": ["ant", "bee"], "mistaken": [3, 1], "samples": [4, 2]}]
    shown = np.asarray(Image.open(tmp_path / "figures" / "most_confused.png").convert("RGB"))
    for position in asked:
        assert (shown == 20 * (position - 9)).all(axis=2).sum() > 1000


def test_the_report_of_a_perfect_classifier_shows_none(tmp_path: Path):
    evaluator = ClassificationEvaluator(["ant", "bee"])
    evaluator.update(torch.eye(2), torch.tensor([0, 1]), torch.arange(2))
    lines = classification_report(tmp_path, evaluator.compute(), picture=lambda position: np.zeros((8, 8, 3), np.uint8))
    assert "most confused:" not in lines
    assert not (tmp_path / "figures" / "most_confused.png").exists()
    assert "notes" not in json.loads((tmp_path / "metrics.json").read_text())
