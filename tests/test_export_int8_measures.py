"""How an int8 file is judged, by hand: noise in decibels, and decisions that two answers have in common."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mnvision.errors import UserError
from mnvision.export.agreement import agreement
from mnvision.export.base import Wish
from mnvision.export.exporter import export
from mnvision.export.layer_noise import LayerNoise, sqnr_db, worst_first
from mnvision.types import Detections


def test_sqnr_by_hand():
    signal = np.array([3.0, 4.0, 0.0])
    noise = np.array([0.3, 0.0, 0.4])
    assert sqnr_db(np.square(signal).sum(), np.square(noise).sum()) == pytest.approx(10 * math.log10(25 / 0.25))
    assert sqnr_db(1.0, 10.0) == pytest.approx(-10)
    assert sqnr_db(1.0, 0.0) == 150
    assert sqnr_db(0.0, 0.0) == 0
    # A sine of full scale in 8 bits: 6.02 * 8 + 1.76 dB.
    wave = np.sin(np.linspace(0, 2000 * np.pi, 1_000_003))
    error = np.round(wave * 127.5) / 127.5 - wave
    assert sqnr_db(np.square(wave).sum(), np.square(error).sum()) == pytest.approx(6.02 * 8 + 1.76, abs=0.3)


def test_the_layer_whose_float_helps_most_comes_first():
    rows = [LayerNoise("a", "conv", 10, 0.1), LayerNoise("b", "conv", 30, 2.0), LayerNoise("c", "conv", 5, 0.1)]
    assert [row.layer for row in worst_first(rows)] == ["b", "c", "a"]


def test_agreement_by_hand():
    one = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    two = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.3, 0.7]])
    assert agreement("classification", one, two, {}).share == 0.75
    # At thresholds of 0.65 and 0.5: the first attribute differs in rows 0 and 1, the second in row 1.
    assert agreement("face_attributes", one, two, {"thresholds": [0.65, 0.5]}).share == pytest.approx(5 / 8)
    unit = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    turned = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    assert agreement("face_embeddings", unit, turned, {}).share == pytest.approx(0.8)


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Squares of 10 pixels: left edge, score, label."""
    boxes = [[left, 0.0, left + 10, 10.0] for left, _, _ in rows]
    scores, labels = [score for _, score, _ in rows], [label for _, _, label in rows]
    return Detections(boxes=torch.tensor([boxes]), scores=torch.tensor([scores]), labels=torch.tensor([labels]))


def test_agreement_of_detections_pairs_each_once():
    one = detections((0, 0.9, 1), (20, 0.8, 0), (40, 0.5, 0), (60, 0.1, 0), (0, 0.0, -1))
    # Found; of another class; twice, of which one counts; below the score.
    two = detections((2, 0.8, 1), (20, 0.8, 2), (40, 0.5, 0), (41, 0.4, 0), (60, 0.2, 0))
    found = agreement("detection", one, two, {})
    assert found.share == pytest.approx(2 * 2 / (3 + 4))
    assert found.what.startswith("of 7 detections on 1 held-out pictures")
    with pytest.raises(UserError, match="nothing scores"):
        agreement("detection", detections((0, 0.1, 1)), detections((0, 0.1, 1)), {})


def test_pt2_has_no_int8(tmp_path: Path):
    from mnvision.export.pt2 import Pt2

    with pytest.raises(UserError, match="format=pt2 holds fp32, not precision=int8"):
        export(tmp_path / "no.ckpt", Pt2(), Wish("int8"))
