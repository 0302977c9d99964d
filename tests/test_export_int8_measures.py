"""How an int8 file is judged, by hand: noise in decibels, and decisions that two answers have in common."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnvision.errors import UserError
from mnvision.export.agreement import Agreement, agreement
from mnvision.export.base import Wish
from mnvision.export.before_after import BeforeAfter, Speed
from mnvision.export.exporter import export
from mnvision.export.judge import Judgement, refusal
from mnvision.export.layer_noise import LayerNoise, sqnr_db, worst_first
from mnvision.proof.answers import Answers


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


def rows(*values: tuple[float, ...], choices: list[int] | None = None) -> Answers:
    return Answers(np.array(values, np.float32), None if choices is None else np.array(choices))


def share(kind: str, one: Answers, two: Answers, **calibration: Any) -> float:
    found = agreement(kind, one, two, calibration)
    assert found is not None
    return found.share


def test_agreement_by_hand():
    one = rows((0.7, 0.3), (0.4, 0.6), (0.9, 0.1), (0.2, 0.8), choices=[0, 1, 0, 1])
    two = rows((0.6, 0.4), (0.7, 0.3), (0.8, 0.2), (0.3, 0.7), choices=[0, 0, 1, 1])
    assert share("geolocation", one, two) == 0.5  # of cells, which need not be the most probable ones
    one.choices = two.choices = None
    assert share("classification", one, two) == 0.75
    # At thresholds of 0.65 and 0.5: the first attribute differs in rows 0 and 1, the second in row 1.
    assert share("face_attributes", one, two, thresholds=[0.65, 0.5]) == pytest.approx(5 / 8)
    assert share("face_attributes", one, two) == pytest.approx(6 / 8)
    assert share("face_embeddings", rows((1, 0), (0, 1)), rows((0.6, 0.8), (0, 1))) == pytest.approx(0.8)


def detections(*found: tuple[float, float, int]) -> Answers:
    """Squares of 10 pixels: left edge, score, label."""
    boxes = np.array([[left, 0.0, left + 10, 10.0] for left, _, _ in found])
    scores, labels = np.array([score for _, score, _ in found]), np.array([label for _, _, label in found], np.int64)
    return Answers(boxes=[(boxes, scores, labels)], sizes=np.array([[100, 100]]))


def test_agreement_of_detections_pairs_each_once():
    one = detections((0, 0.9, 1), (20, 0.8, 0), (40, 0.5, 0), (60, 0.1, 0))
    # Found; of another class; twice, of which one counts; below the score.
    two = detections((2, 0.8, 1), (20, 0.8, 2), (40, 0.5, 0), (41, 0.4, 0), (60, 0.2, 0))
    found = agreement("detection", one, two, {})
    assert found is not None
    assert found.share == pytest.approx(2 * 2 / (3 + 4))
    assert found.what.startswith("of 7 detections on 1 held-out pictures")
    assert agreement("detection", detections((0, 0.1, 1)), detections((0, 0.1, 1)), {}) is None


def test_what_may_be_lost_by_hand():
    same = Agreement(0.93, "of them")
    scored = Judgement(same, "AP", 0.40, 0.36)
    assert scored.drop == pytest.approx(0.04)
    assert (scored.fits("detection", 0.05), scored.fits("detection", 0.03)) == (True, False)
    assert Judgement(None, "AP", 0.40, 0.36).fits("detection", None)  # 0.05 unless said
    assert not Judgement(same, "AP", 0.40, 0.34).fits("detection", None)
    assert Judgement(same, "top1", 0.3, 0.4).drop == pytest.approx(-0.1)  # a gain passes any limit
    assert Judgement(same, "top1", 0.3, 0.4).fits("classification", 0.0)
    assert (Judgement(same).fits("detection", 0.07), Judgement(same).fits("detection", 0.06)) == (True, False)
    assert (Judgement(same).fits("detection", None), Judgement(Agreement(0.69, "")).fits("detection", None)) == (
        True,
        False,
    )
    assert scored.to_dict() == {
        "measured": "AP 0.4000 became 0.3600; 93.0 % of them",
        "agreement": 0.93,
        "metric": {"name": "AP", "float": 0.4, "int8": 0.36},
    }
    assert "0.0400 of AP (0.01 allowed)" in refusal(scored, "detection", 0.01)
    assert "half of the layers in float do not suffice" in refusal(scored, "detection", 0.01)


def test_before_and_after_stand_side_by_side():
    judged = Judgement(Agreement(0.981, "of 800 held-out pictures keep their best class"), "top1", 0.765, 0.7625, 800)
    table = BeforeAfter(judged, 800, (869_000, 301_000), Speed(3.0, 1.5, 2.01, 1.9))
    assert table.lines() == [
        "                fp32       int8",
        "top1          0.7650     0.7625  -0.0025 on 800 validation pictures",
        "agreement    100.0 %     98.1 %  of 800 held-out pictures keep their best class",
        "size         0.87 MB    0.30 MB  0.35 of it",
        "latency      3.00 ms    1.50 ms  2.01 times as fast (1.90 by processor time): one picture, one thread",
    ]
    assert table.to_dict()["latency"] == {"before_ms": 3.0, "after_ms": 1.5, "ratio": 2.01, "cpu_ratio": 1.9}
    untimed = BeforeAfter(Judgement(judged.agreement), 8, (2, 1), None, "not measured (no runtime)")
    assert [line.split()[0] for line in untimed.lines()] == ["fp32", "agreement", "size", "latency:"]


def test_pt2_has_no_int8(tmp_path: Path):
    from mnvision.export.pt2 import Pt2

    with pytest.raises(UserError, match="format=pt2 holds fp32, not precision=int8"):
        export(tmp_path / "no.ckpt", Pt2(), Wish("int8"))
