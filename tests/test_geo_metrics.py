"""Errors of placed photos by hand and against other formulas; decoding, the smoothed loss, and two real processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from mnvision.errors import UserError
from mnvision.figures_geo import _around, _extent, _great_circle, _middle, save_error_distribution, save_location_map
from mnvision.geo.cells import cell_ids, from_tokens
from mnvision.geo.partition import Partition, PartitionSettings, partition_photos
from mnvision.heads.cells import CellScores
from mnvision.losses.distance_smoothing import DistanceSmoothedCrossEntropy
from mnvision.metrics.geolocation import RADII_KM, GeolocationEvaluator

RADIUS = 6371.0088
PLACES = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


def law_of_cosines_km(a: Any, b: Any) -> float:
    """Another formula than the one in use; good for points that are neither close nor opposite."""
    (phi, theta), (chi, psi) = np.radians(a), np.radians(b)
    cosine = math.sin(phi) * math.sin(chi) + math.cos(phi) * math.cos(chi) * math.cos(theta - psi)
    return RADIUS * math.acos(min(max(cosine, -1.0), 1.0))


def score(positions: Any, truth: Any, cells: Any, labels: Any = None, logits: Any = None):
    evaluator = GeolocationEvaluator(positions)
    count = len(cells)
    logits = torch.zeros(count, len(positions)) if logits is None else torch.tensor(logits)
    labels = torch.full((count,), -1) if labels is None else torch.tensor(labels)
    truth = torch.tensor(truth, dtype=torch.float64)
    evaluator.update(logits, torch.tensor(cells), labels, truth, torch.arange(count))
    return evaluator.compute()


def test_hand_worked_distances():
    """A degree of latitude is 111.195 km; a quarter of the way round the earth is 90 of them."""
    degree = RADIUS * math.pi / 180
    truth = [[0.0, 0.0], [1.0, 0.0], [0.0, 90.0], [0.0, 180.0], [90.0, 123.0], [0.0, -0.2]]
    scores = score([[0.0, 0.0]], truth, [0] * 6)
    expected = [0, degree, 90 * degree, 180 * degree, 90 * degree, 0.2 * degree]
    np.testing.assert_allclose(scores.photos.km, expected, atol=1e-6)
    assert scores.within == {1: 1 / 6, 25: 2 / 6, 200: 3 / 6, 750: 3 / 6, 2500: 3 / 6}
    assert scores.median_km == pytest.approx((degree + 90 * degree) / 2)
    assert scores.mean_km == pytest.approx(sum(expected) / 6)
    assert scores.num_outside == scores.num_samples == 6
    assert scores.top1 == scores.top5 or scores.top5 is None
    assert "top1" not in scores.scalars()
    assert "6 of them outside every cell" in scores.table()


def test_the_date_line_and_the_poles_are_places_like_others():
    degree = RADIUS * math.pi / 180
    positions = [[0.0, 179.9], [89.9, 0.0], [-90.0, 77.0]]
    scores = score(positions, [[0.0, -179.9], [89.9, 180.0], [-90.0, -50.0]], [0, 1, 2])
    np.testing.assert_allclose(scores.photos.km, [0.2 * degree, 0.2 * degree, 0.0], atol=1e-6)
    assert scores.within[25] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=5))
def test_distances_agree_with_the_law_of_cosines(pairs):
    truth, answers = [a for a, _ in pairs], [b for _, b in pairs]
    scores = score(answers, truth, list(range(len(pairs))))
    expected = np.array([law_of_cosines_km(a, b) for a, b in pairs])
    np.testing.assert_allclose(scores.photos.km, expected, atol=0.2)  # the other formula is that bad for close points
    for radius in RADII_KM:
        assert abs(scores.within[radius] - np.mean(expected <= radius)) <= np.mean(abs(expected - radius) < 0.2)
    assert scores.median_km == pytest.approx(np.median(expected), abs=0.2)


def test_a_photo_on_the_radius_is_within_it():
    degree = RADIUS * math.pi / 180
    scores = score([[0.0, 0.0]], [[25 / degree * (1 - 1e-12), 0.0], [25 / degree * (1 + 1e-9), 0.0]], [0, 0])
    assert scores.within[25] == 0.5


def test_cells_are_scored_where_the_truth_has_one():
    positions = [[float(k), 0.0] for k in range(7)]
    logits = np.zeros((4, 7), np.float32)
    logits[0, 3] = 2.0
    logits[1] = [6, 5, 4, 3, 2, 1, 0]
    logits[2] = logits[1]
    truth = [[3.0, 0.0], [5.0, 0.0], [4.0, 0.0], [60.0, 0.0]]
    scores = score(positions, truth, [3, 0, 0, 0], [3, 5, 4, -1], logits)
    assert (scores.num_samples, scores.num_outside) == (4, 1)
    assert scores.top1 == 1 / 3
    assert scores.top5 == 2 / 3  # ranks 0, 5 and 4
    log_sum = math.log(sum(math.exp(v) for v in range(7)))
    losses = [math.log(6 + math.exp(2)) - 2, log_sum - 1, log_sum - 2]
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert scores.photos.probabilities[0] == pytest.approx(math.exp(2) / (6 + math.exp(2)), rel=1e-6)
    assert scores.photos.labels.tolist() == [3, 5, 4, -1]
    content = scores.to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["within_25km"] == 0.25


def test_a_constant_output_is_not_credited_with_every_cell():
    scores = score([[0.0, float(k)] for k in range(10)], [[0.0, 0.0]] * 10, [0] * 10, list(range(10)))
    assert (scores.top1, scores.top5) == (0.1, 0.5)


def test_repeated_photos_count_once():
    evaluator = GeolocationEvaluator([[0.0, 0.0], [10.0, 10.0]])
    for indices in ([0, 1], [1, 2], [0]):
        count = len(indices)
        truth = torch.tensor([[float(i), 0.0] for i in indices], dtype=torch.float64)
        evaluator.update(
            torch.zeros(count, 2), torch.zeros(count).long(), torch.zeros(count).long(), truth, torch.tensor(indices)
        )
    scores = evaluator.compute()
    assert (scores.num_samples, scores.num_repeated) == (3, 2)
    assert scores.photos.indices.tolist() == [0, 1, 2]
    assert scores.top5 is None
    evaluator.reset()
    empty = evaluator.compute()
    assert (empty.num_samples, empty.median_km, empty.within[25]) == (0, -1.0, -1.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logits": torch.zeros(2, 4)}, r"expected \(B, 3\)"),
        ({"logits": torch.tensor([[0.0, 0, 0], [0, float("nan"), 0]])}, "sample 8: .*NaN"),
        ({"cells": torch.tensor([0, 3])}, "sample 8: cell 3"),
        ({"labels": torch.tensor([-2, 0])}, "sample 7: .*label -2"),
        ({"labels": torch.tensor([0])}, "one of each per photo"),
        ({"coordinates": torch.tensor([[0.0, 0], [91, 0]])}, "sample 8: .*latitude 91"),
        ({"coordinates": torch.tensor([[float("nan"), 0.0], [0, 0]])}, "sample 7"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, torch.Tensor], text: str):
    batch = {
        "logits": torch.zeros(2, 3),
        "cells": torch.tensor([0, 1]),
        "labels": torch.tensor([0, -1]),
        "coordinates": torch.zeros(2, 2, dtype=torch.float64),
        "indices": torch.tensor([7, 8]),
    }
    with pytest.raises(UserError, match=text):
        GeolocationEvaluator([[0.0, 0.0]] * 3).update(**(batch | change))
    with pytest.raises(UserError, match="no cells"):
        GeolocationEvaluator([])


def _evaluate(indices: list[int]):
    rng = np.random.default_rng(0)
    positions = np.stack([rng.uniform(-90, 90, 9), rng.uniform(-180, 180, 9)], axis=1)
    truth = np.stack([rng.uniform(-90, 90, 11), rng.uniform(-180, 180, 11)], axis=1)
    logits, labels = rng.normal(size=(11, 9)).astype(np.float32), rng.integers(-1, 9, 11)
    evaluator = GeolocationEvaluator(positions)
    for index in indices:
        rows = torch.from_numpy(logits[[index]])
        evaluator.update(
            rows, rows.argmax(1), torch.tensor(labels[[index]]), torch.tensor(truth[[index]]), torch.tensor([index])
        )
    evaluator.gather()
    return evaluator.compute()


def _process(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # 11 photos over 2 processes: the sampler repeats photo 0 to fill up.
    scores = _evaluate([*range(rank, 11, 2), *([0] if rank else [])])
    (folder / f"{rank}.json").write_text(json.dumps([scores.to_dict(), scores.photos.km.tolist()]))
    distributed.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path):
    mp.spawn(_process, (tmp_path,), nprocs=2)
    scores = _evaluate(list(range(11)))
    for rank in range(2):
        values, km = json.loads((tmp_path / f"{rank}.json").read_text())
        assert values.pop("num_repeated") == 1
        assert values == {key: value for key, value in scores.to_dict().items() if key != "num_repeated"}
        assert km == scores.photos.km.tolist()


def partition_of(tokens: list[str]) -> Partition:
    from mnvision.geo.cells import centres

    ids = np.sort(from_tokens(tokens))
    counts = np.ones(len(ids), np.int64)
    return Partition(ids, counts, np.round(centres(ids), 5), PartitionSettings(9, 1), len(ids), 0)


def test_the_choice_is_the_most_probable_cell():
    decoder = CellScores()
    probabilities = decoder(torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0]]))
    assert probabilities.sum(dim=1) == pytest.approx(torch.ones(2))
    assert decoder.choose(probabilities).tolist() == [1, 0]


def test_many_small_cells_of_one_part_beat_a_larger_one_elsewhere():
    """Face 0 as a whole holds less than the four quarters of face 2's first quarter together."""
    partition = partition_of(["1", "44", "4c", "54", "5c"])  # a whole face, and the quarters of another
    decoder = CellScores(hierarchical=True)
    with pytest.raises(UserError, match="fit_to"):
        decoder.choose(torch.ones(1, 5) / 5)
    decoder.fit_to(partition)
    flat = torch.tensor([[0.4, 0.1, 0.2, 0.25, 0.05], [0.9, 0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    assert decoder.choose(flat).tolist() == [3, 0, 4]
    assert CellScores().choose(flat).tolist() == [0, 0, 4]
    with pytest.raises(UserError, match=r"decoder.hierarchical='yes'"):
        CellScores("yes")  # type: ignore[arg-type]


def test_the_walk_agrees_with_one_by_hand():
    rng = np.random.default_rng(1)
    places = (rng.uniform(-60, 70, 4000), rng.uniform(-180, 180, 4000))
    partition = partition_photos([places], max_photos=60, min_photos=3)
    probabilities = rng.dirichlet(np.full(len(partition), 0.05), 20)
    decoder = CellScores(hierarchical=True)
    decoder.fit_to(partition)
    found = decoder.choose(torch.from_numpy(probabilities)).tolist()
    names = [f"{int(cell):064b}" for cell in partition.cells]
    depths = [(64 - name[::-1].index("1") - 4) // 2 for name in names]
    for row, answer in zip(probabilities, found):
        left = set(range(len(names)))
        for level in range(31):
            sums: dict[str, float] = {}
            for k in left:
                part = names[k] if depths[k] <= level else names[k][: 3 + 2 * level]
                sums[part] = sums.get(part, 0.0) + row[k]
            best = max(sums, key=lambda part: sums[part])
            left = {k for k in left if (names[k] if depths[k] <= level else names[k][: 3 + 2 * level]) == best}
        assert left == {answer}
    assert any(answer != int(row.argmax()) for row, answer in zip(probabilities, found))


def test_smoothed_targets_by_hand():
    """Cells 0, 1 and 5 degrees north of a photo in the first one; tau of one degree."""
    degree = RADIUS * math.pi / 180
    loss = DistanceSmoothedCrossEntropy(tau=degree)
    loss.fit_to(np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]))
    coordinates, labels = torch.tensor([[0.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    weights = np.array([1.0, math.exp(-1), math.exp(-5)])
    targets = weights / weights.sum()
    np.testing.assert_allclose(loss.targets(labels, coordinates)[0], targets, rtol=1e-5)
    logits = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    value = loss(logits, labels, coordinates)
    shares = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
    assert value.item() == pytest.approx(-(targets * np.log(shares)).sum(), rel=1e-5)
    value.backward()
    np.testing.assert_allclose(logits.grad[0], shares - targets, atol=1e-5)


def test_no_cell_weighs_more_than_the_photos_own():
    """The photo lies nearer to the neighbour's position, across the date line, than to that of its own large cell."""
    loss = DistanceSmoothedCrossEntropy(tau=100.0)
    loss.fit_to(np.array([[0.0, 170.0], [0.0, -179.9], [0.0, 0.0]]))
    targets = loss.targets(torch.tensor([0]), torch.tensor([[0.0, 179.9]], dtype=torch.float64))
    np.testing.assert_allclose(targets[0], [0.5, 0.5, 0.0], atol=1e-6)


def test_a_small_tau_is_plain_cross_entropy():
    rng = np.random.default_rng(0)
    positions = np.stack([rng.uniform(-80, 80, 12), rng.uniform(-180, 180, 12)], axis=1)
    logits, labels = torch.from_numpy(rng.normal(size=(6, 12))).float(), torch.tensor(rng.integers(0, 12, 6))
    loss = DistanceSmoothedCrossEntropy(tau=1e-3)
    with pytest.raises(UserError, match="0 positions"):
        loss(logits, labels, torch.zeros(6, 2, dtype=torch.float64))
    loss.fit_to(positions)
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss(logits, labels, torch.from_numpy(positions[labels]))) == pytest.approx(float(plain), rel=1e-6)
    for tau in (0, -1, float("nan"), "near"):
        with pytest.raises(UserError, match=r"loss.tau"):
            DistanceSmoothedCrossEntropy(tau)  # type: ignore[arg-type]


def test_cells_of_the_labels_are_those_of_the_ids():
    """The contract between a partition and a model: label k is the k-th cell."""
    partition = partition_of(["1", "44", "4c", "54", "5c"])
    labels = partition.labels(partition.positions[:, 0], partition.positions[:, 1])
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert partition.labels(np.array([-89.0]), np.array([0.0])).tolist() == [-1]
    assert len(np.unique(cell_ids(partition.positions[:, 0], partition.positions[:, 1]))) == 5


@pytest.mark.parametrize(
    ("truth", "predicted", "across", "middle"),
    [
        ([[-17.0, 179.5], [-16.0, -179.0]], [[-18.0, 178.0], [-15.0, -178.0]], 4.0, 180.0),
        ([[48.0, 2.0]], [[48.0, 2.0]], 0.0, 2.0),
        ([[48.0, -120.0], [10.0, 100.0]], [[0.0, 0.0], [-48.0, 170.0]], 360.0, 0.0),
        ([[89.0, 0.0]], [[89.0, 2.0]], 2.0, 1.0),
    ],
)
def test_the_map_shows_what_the_photos_cover(truth: Any, predicted: Any, across: float, middle: float, tmp_path: Path):
    places = np.array([*truth, *predicted])
    found = _middle(places)
    assert abs((found - middle + 180) % 360 - 180) <= 1
    west, east = _extent(places, found)[1]
    margin = 1.0 if across < 360 else 0.0
    assert east - west == pytest.approx(across + margin, abs=0.2)
    scores = score(predicted, truth, list(range(len(truth))))
    save_location_map(scores.photos.truth, scores.photos.predicted, scores.photos.km, tmp_path / "map.png")
    save_error_distribution(scores.photos.km, scores.within, scores.median_km, tmp_path / "errors.png")
    for name in ("map", "errors"):
        assert cv2.imread(str(tmp_path / f"{name}.png")).std() > 5


def test_a_line_takes_the_shortest_way_over_the_date_line_and_leaves_a_gap():
    line = _great_circle(np.array([0.0, 170.0]), np.array([0.0, -170.0]))
    np.testing.assert_allclose(line[:, 0], 0, atol=1e-9)
    assert np.abs(line[:, 1]).min() >= 170 - 1e-9
    drawn = _around(line, 0.0)
    assert np.isnan(drawn[:, 0]).sum() == 1
    assert not np.isnan(_around(line, 180.0)).any()
