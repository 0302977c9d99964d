from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from mnvision.boxes import fit
from mnvision.boxes.default_boxes import feature_map_sizes, make_default_boxes, ssd_box_sizes
from mnvision.boxes.fit import best_possible_ious, cluster_sizes, fit_box_sizes, recall_by_size, search_scales
from mnvision.errors import UserError
from mnvision.heads.ssd import SSDHead
from tests.test_matcher import ssd_default_boxes

RESOLUTION = (160, 160)
MAP_SIZES = feature_map_sizes(RESOLUTION, (16, 32), 4)


def flat_objects(count: int = 400, seed: int = 0) -> np.ndarray:
    """Objects five times as wide as high, of 20 to 120 px, anywhere in the picture."""
    rng = np.random.default_rng(seed)
    width = rng.uniform(20, 120, count)
    sizes = np.stack([width, width / 5], axis=1)
    low = rng.uniform(0, 1, (count, 2)) * (160 - sizes)
    return np.concatenate([low, low + sizes], axis=1)


def test_best_ious_equal_torchvision_in_slices(monkeypatch):
    monkeypatch.setattr(fit, "PAIRS_AT_ONCE", 1000)
    boxes, default_boxes = flat_objects(50), ssd_default_boxes(160)
    expected = box_iou(torch.from_numpy(boxes).float(), default_boxes).amax(dim=1).numpy()
    got = best_possible_ious(boxes, default_boxes.numpy())
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert best_possible_ious(np.zeros((0, 4)), default_boxes.numpy()).shape == (0,)


def test_recall_by_coco_size():
    ious = np.array([0.9, 0.4, 0.5, 0.1, 0.6])
    areas = np.array([10.0, 1023.9, 1024.0, 9215.0, 9216.0])
    assert recall_by_size(ious, areas) == {"all": 0.6, "small": 0.5, "medium": 0.5, "large": 1.0}
    assert math.isnan(recall_by_size(ious[:1], areas[:1])["large"])


def test_clusters_find_well_separated_sizes():
    rng = np.random.default_rng(0)
    true = np.array([[10.0, 10.0], [20.0, 80.0], [100.0, 60.0]])
    sizes = np.concatenate([size * rng.uniform(0.95, 1.05, (40, 2)) for size in true])
    rng.shuffle(sizes)
    centers = cluster_sizes(sizes, 3)
    np.testing.assert_allclose(centers, true, rtol=0.03)
    assert np.array_equal(centers, cluster_sizes(sizes, 3))


def test_fitted_boxes_match_objects_that_the_rule_misses_and_the_head_takes_them():
    boxes = flat_objects()
    before = best_possible_ious(boxes, ssd_default_boxes(160).numpy())
    sizes = fit_box_sizes(boxes, MAP_SIZES, RESOLUTION, count=12)
    assert sizes == fit_box_sizes(boxes, MAP_SIZES, RESOLUTION, count=12)
    assert len(sizes) == len(MAP_SIZES)
    assert all(len(level) >= 1 for level in sizes)
    head = SSDHead([8, 8], [16, 32], 3, RESOLUTION, alpha=0.1, box_sizes=sizes)
    after = best_possible_ious(boxes, head.default_boxes.numpy())
    assert (before >= 0.5).mean() < 0.6
    assert (after >= 0.5).mean() > (before >= 0.5).mean() + 0.2
    # Smaller boxes lie on finer maps.
    assert np.mean([w for w, _ in sizes[0]]) < np.mean([w for w, _ in sizes[1] + sizes[2]])


def test_scale_search_finds_the_best_of_the_scales_it_tries():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 140, (300, 2))
    boxes = np.concatenate([low, low + rng.uniform(12, 20, (300, 2))], axis=1)
    best = search_scales(boxes, MAP_SIZES, RESOLUTION, reduce_lowest=False, max_scales=(0.6, 0.95))
    recall = {}
    for scale in (0.05, 0.1, 0.125, 0.2, 0.3):
        sizes = ssd_box_sizes(6, scale, best.max_scale, reduce_lowest=False)
        ious = best_possible_ious(boxes, make_default_boxes(sizes, MAP_SIZES, RESOLUTION).numpy())
        recall[scale] = (ious >= 0.5).mean()
    assert best.min_scale < 0.2
    assert best.recall > recall[0.2] + 0.1
    assert best.recall >= max(recall.values())
    assert best.recall == pytest.approx(recall[best.min_scale])


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        (np.zeros((0, 2)), 1),
        (np.ones((5, 2)), 2),
        (np.array([[1.0, 0.0]]), 1),
        (np.array([[1.0, np.nan]]), 1),
        (np.random.default_rng(0).uniform(1, 2, (5, 2)), 0),
    ],
)
def test_refuses_sizes_that_cannot_be_clustered(sizes, count):
    with pytest.raises(UserError):
        cluster_sizes(sizes, count)


def test_refuses_a_data_set_without_objects():
    with pytest.raises(UserError, match="without objects"):
        search_scales(np.zeros((0, 4)), MAP_SIZES, RESOLUTION)
