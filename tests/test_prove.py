"""The arithmetic of proofs: resamples against closed forms, flips counted by hand, and what passes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mnvision.errors import UserError
from mnvision.proof.answers import Answers
from mnvision.proof.bootstrap import draws, interval_of_mean, interval_of_metric
from mnvision.proof.differences import (
    compare_attributes,
    compare_classes,
    compare_detections,
    compare_embeddings,
    ious,
)
from mnvision.proof.scoring import AttributeScoring, BoxScoring, ClassScoring, PairScoring, PlaceScoring
from mnvision.proof.truth import spread
from mnvision.proof.verdict import TOLERANCES, FileProof, tolerance_for


def test_interval_of_a_mean_is_that_of_the_normal_law():
    """The mean of n draws from fixed values has their mean and their deviation over the root of n."""
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 4000, p=[0.1, 0.7, 0.2])
    found = interval_of_mean(values, resamples=4000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.06 * half)
    assert found.resamples == 4000


def test_intervals_repeat_and_those_of_nothing_are_nothing():
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    assert interval_of_mean(values) == interval_of_mean(values)
    same = interval_of_mean(np.zeros(7))
    assert (same.low, same.high) == (0.0, 0.0)


def test_a_metric_is_resampled_over_rows_and_undefined_resamples_are_left_out():
    values = np.array([3.0, 5.0])
    found = interval_of_metric(lambda rows: float(values[rows].mean()), 2, "pairs", 400)
    assert found is not None
    # Two draws of two values: their mean is 3, 4, 4 or 5, each a quarter.
    assert (found.low, found.high, found.over) == (3.0, 5.0, "pairs")
    half = interval_of_metric(lambda rows: 1.0 if rows[0] == rows[1] else float("nan"), 2, resamples=400)
    assert half is None or half.resamples >= 200
    assert interval_of_metric(lambda rows: float("nan"), 2) is None
    assert {tuple(rows) for rows in draws(2, 200, 0)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_top1_flips_by_hand():
    expected = Answers(np.array([[0.6, 0.4], [0.51, 0.49], [0.2, 0.8]], np.float32))
    found = Answers(np.array([[0.7, 0.3], [0.49, 0.51], [0.2, 0.8]], np.float32))
    got = compare_classes(expected, found)
    assert got.flips.tolist() == [0, 1, 0]
    assert (got.flipped, got.decisions, got.kinds) == (1, 3, {"top-1 changed": 1})
    assert got.share == pytest.approx(1 / 3)
    assert got.outputs == pytest.approx([0.1, 0.02, 0.0], abs=1e-6)
    assert got.mean == pytest.approx((2 * 0.1 + 2 * 0.02) / 6, abs=1e-6)
    assert got.worst(2) == [1, 0]


def test_cells_are_those_answered_and_nan_is_infinitely_far():
    rows = np.array([[0.6, 0.4], [0.6, 0.4]], np.float32)
    expected, found = Answers(rows, np.array([1, 0])), Answers(rows.copy(), np.array([1, 1]))
    assert compare_classes(expected, found).kinds == {"cell changed": 1}
    found.rows[1, 0] = np.nan  # type: ignore[index]
    assert compare_classes(expected, found).largest == math.inf


def test_attribute_thresholds_crossed_by_hand():
    expected = Answers(np.array([[0.5, 0.39], [0.2, 0.9]], np.float32))
    found = Answers(np.array([[0.49, 0.41], [0.2, 0.9]], np.float32))
    limits = np.array([0.5, 0.4])
    got = compare_attributes(expected, found, limits, limits)
    assert got.kinds == {"no became yes": 1, "yes became no": 1}
    assert (got.flips.tolist(), got.decisions) == ([2, 0], 4)
    moved = compare_attributes(expected, expected, limits, np.array([0.5, 0.3]))
    assert moved.kinds == {"no became yes": 1}


def test_pairs_of_embeddings_by_hand():
    angles = np.radians([0.0, 58.0, 120.0])
    turned = np.radians([0.0, 62.0, 120.0])
    expected, found = (Answers(np.stack([np.cos(a), np.sin(a)], 1).astype(np.float32)) for a in (angles, turned))
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    got = compare_embeddings(expected, found, pairs, 0.5)
    # 58 degrees have a cosine above 0.5 and 62 below; 62 and 58 between the second and the third likewise.
    assert got.kinds == {"different became same": 1, "same became different": 1}
    assert got.flips.tolist() == [1, 2, 1]
    assert got.cosine == pytest.approx(math.cos(math.radians(4)), abs=1e-6)
    assert compare_embeddings(expected, found).decisions == 0


def boxes(*rows: tuple[float, float, float, float, float, int]):
    table = np.array(rows, np.float64).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].astype(np.int64)


def test_detections_by_hand():
    size = np.array([[100, 200]])
    expected = Answers(
        boxes=[
            boxes((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 70, 0.8, 1), (20, 20, 40, 40, 0.31, 0), (0, 0, 9, 9, 0.2, 0))
        ],
        sizes=size,
    )
    found = Answers(
        boxes=[
            boxes(
                (0, 0, 10, 12, 0.85, 0), (50, 50, 70, 70, 0.8, 2), (20, 20, 40, 40, 0.29, 0), (80, 80, 90, 90, 0.4, 0)
            )
        ],
        sizes=size,
    )
    got = compare_detections(expected, found, 0.3)
    assert got.kinds == {"disappeared": 1, "appeared": 1, "class changed": 1}
    assert (got.flipped, got.decisions) == (3, 4)
    assert got.largest == pytest.approx(0.05)
    assert got.largest_pixels == pytest.approx(2.0)
    nothing = Answers(boxes=[boxes()], sizes=size)
    assert compare_detections(nothing, nothing, 0.3).decisions == 0
    assert compare_detections(nothing, found, 0.3).kinds == {"appeared": 3}


def test_matching_prefers_the_same_class_and_boxes_overlap_as_by_hand():
    expected = Answers(boxes=[boxes((0, 0, 10, 10, 0.9, 0))], sizes=np.array([[10, 10]]))
    found = Answers(boxes=[boxes((0, 0, 10, 10, 0.8, 1), (0, 0, 10, 8, 0.7, 0))], sizes=np.array([[10, 10]]))
    assert compare_detections(expected, found, 0.3).kinds == {"appeared": 1}
    a, b = np.array([[0.0, 0, 2, 2], [5, 5, 5, 5]]), np.array([[1.0, 1, 3, 3], [5, 5, 5, 5]])
    assert ious(a, b) == pytest.approx(np.array([[1 / 7, 0], [0, 0]]))


def test_scores_of_drawn_pictures_are_those_of_the_evaluators():
    rng = np.random.default_rng(0)
    answers, labels = Answers(rng.random((30, 3)).astype(np.float32)), rng.integers(0, 3, 30)
    scoring = ClassScoring(labels, ["a", "b", "c"])
    drawn = rng.integers(0, 30, 30)
    assert answers.rows is not None
    assert scoring.scores(answers, drawn)["top1"] == (answers.rows[drawn].argmax(1) == labels[drawn]).mean()
    hits = scoring.hits(answers, "top1")
    assert hits is not None
    assert hits.mean() == scoring.scores(answers)["top1"]
    assert scoring.hits(answers, "mean_per_class") is None
    interval = scoring.interval(answers, answers, "mean_per_class")
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_attributes_pairs_and_places_are_scored():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 2)).astype(np.int8)
    perfect = Answers(np.stack([labels[:, 1], labels[:, 0]], 1).astype(np.float32) * 0.8 + 0.1)
    scoring = AttributeScoring(labels, ["x", "y"], [1, 0], None)
    assert scoring.scores(perfect)["mAP"] == 1.0
    assert scoring.interval(perfect, perfect, "mAP") is not None
    circle = np.radians([0, 5, 180, 185, 90, 270])
    ring = Answers(np.stack([np.cos(circle), np.sin(circle)], 1).astype(np.float32))
    pairs = np.array([[0, 1], [0, 2], [2, 3], [4, 5]])
    verified = PairScoring(pairs, np.array([True, False, True, False]), np.array([0, 0, 1, 1]))
    assert verified.scores(ring)["accuracy"] == 1.0
    places = PlaceScoring(np.array([0, 1]), np.array([[0.0, 0.0], [0.0, 90.0]]), np.array([[0.0, 0.0], [0.0, 10.0]]))
    placed = Answers(np.array([[0.9, 0.1], [0.9, 0.1]], np.float32), np.array([0, 0]))
    assert places.scores(placed)["within_750km"] == 0.5
    hits = places.hits(placed, "within_750km")
    assert hits is not None
    assert hits.tolist() == [1.0, 0.0]


def test_a_picture_drawn_twice_counts_twice_in_ap():
    truth = {
        "images": [{"id": 5, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": 3, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
            for n, image in enumerate((5, 9), 1)
        ],
    }
    answers = Answers(boxes=[boxes((0, 0, 50, 50, 0.9, 0)), boxes()], sizes=np.full((2, 2), 100))
    scoring = BoxScoring(truth, np.array([5, 9]), [3])
    # 51 of the 101 recall points, 0 .. 0.50, have precision 1 where half of the objects are found.
    assert scoring.scores(answers)["AP"] == pytest.approx(51 / 101)
    assert scoring.scores(answers, np.array([0, 0]))["AP"] == pytest.approx(1.0)
    assert scoring.scores(answers, np.array([1, 1]))["AP"] == 0.0
    interval = scoring.interval(answers, answers, "AP")
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_pictures_are_spread_over_a_sorted_split():
    assert spread(10, None).tolist() == list(range(10))
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(3, 9).tolist() == [0, 1, 2]


def judged(gap: float, change: float | None, flip: bool = False, metric: str = "top1") -> list[str]:
    rows = np.array([[0.6, 0.4]] * 100)
    other = rows + gap
    if flip:
        other[0] = [0.4, 0.6]
    found = compare_classes(Answers(rows), Answers(other))  # type: ignore[arg-type]
    proof = FileProof(
        "a", Path("a"), "torch", "fp32", 1.0, found, tolerance_for("fp32", {"output": 1.0 if flip else None})
    )
    proof.change = change
    proof.judge(metric)
    return proof.failures


def test_what_passes_and_what_fails():
    assert judged(5e-5, -1e-3) == []
    assert judged(5e-5, 0.5) == []
    assert judged(2e-4, 0.0) == ["largest difference 2.0e-04, tolerance 0.0001"]
    assert judged(0.0, -0.002) == ["top1 is worse by 0.0020, tolerance 0.001"]
    assert judged(0.0, 0.002, metric="eer") == ["eer is worse by 0.0020, tolerance 0.001"]
    assert judged(0.0, 0.0, flip=True) == ["1 of 100 decisions flipped (1.00%), tolerance 0.10%"]
    assert judged(float("nan"), None) == ["largest difference inf, tolerance 0.0001"]


def test_tolerances_are_by_precision_unless_given():
    assert tolerance_for("fp16", {"output": None, "flips": None, "metric": None}) == TOLERANCES["fp16"]
    assert tolerance_for("fp32", {"metric": 0.25}).metric == 0.25
    with pytest.raises(UserError, match=r"tolerance\.flips=-1: give a number"):
        tolerance_for("fp32", {"flips": -1})
    with pytest.raises(UserError, match="'int4'"):
        tolerance_for("int4", {})
