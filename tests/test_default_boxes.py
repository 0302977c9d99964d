from __future__ import annotations

import math

import pytest
import torch

from mnvision.boxes.default_boxes import (
    checked_box_sizes,
    feature_map_sizes,
    make_default_boxes,
    ssd_box_sizes,
)
from mnvision.errors import UserError


def test_hand_worked_sizes_of_the_tf_config():
    sizes = ssd_box_sizes(6)
    root2, root3, mean = math.sqrt(2), math.sqrt(3), math.sqrt(0.35 * 0.5)
    # Lowest map: (scale 0.1, ratio 1), (0.2, 2), (0.2, 1/2).
    assert flat(sizes[0]) == pytest.approx([0.1, 0.1, 0.2 * root2, 0.2 / root2, 0.2 / root2, 0.2 * root2])
    # Second map: scale 0.35, next scale 0.5.
    expected = [0.35, 0.35, 0.35 * root2, 0.35 / root2, 0.35 / root2, 0.35 * root2]
    expected += [0.35 * root3, 0.35 / root3, 0.35 / root3, 0.35 * root3, mean, mean]
    assert flat(sizes[1]) == pytest.approx(expected)
    # Last map: scale 0.95, then 1.0.
    assert sizes[5][0] == pytest.approx((0.95, 0.95))
    assert sizes[5][5] == pytest.approx((math.sqrt(0.95), math.sqrt(0.95)))
    assert [size[0][0] for size in sizes[1:]] == pytest.approx([0.35, 0.5, 0.65, 0.8, 0.95])


def flat(sizes: list[tuple[float, float]]) -> list[float]:
    return [side for size in sizes for side in size]


def test_hand_worked_coordinates_on_a_non_square_input():
    # 40 px high, 80 px wide; 1 x 2 cells with centres (20, 20) and (60, 20); sizes count from the 40 px.
    boxes = make_default_boxes([[(0.5, 0.25), (2.0, 1.0)]], [(1, 2)], (40, 80))
    expected = [[10, 15, 30, 25], [-20, 0, 60, 40], [50, 15, 70, 25], [20, 0, 100, 40]]
    torch.testing.assert_close(boxes, torch.tensor(expected, dtype=torch.float32))


def test_rows_come_before_columns_and_maps_in_order():
    boxes = make_default_boxes([[(0.1, 0.1)], [(0.5, 0.5)]], [(2, 2), (1, 1)], (100, 100))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centers.tolist() == [[25, 25], [75, 25], [25, 75], [75, 75], [50, 50]]


def test_1917_boxes_at_300_px():
    map_sizes = feature_map_sizes((300, 300), (16, 32), 4)
    assert map_sizes == [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    boxes = make_default_boxes(ssd_box_sizes(6), map_sizes, (300, 300))
    assert boxes.shape == (1917, 4)
    assert boxes.dtype == torch.float32
    # First cell's centre is half of 300 / 19, not half a stride of 16; boxes are not clipped.
    center = 150 / 19
    torch.testing.assert_close(boxes[0], torch.tensor([center - 15, center - 15, center + 15, center + 15]))


@pytest.mark.parametrize("num_maps", [1, 2, 7])
@pytest.mark.parametrize("resolution", [(96, 96), (33, 500), (1, 1)])
def test_any_number_of_maps_and_any_resolution(num_maps, resolution):
    map_sizes = feature_map_sizes(resolution, [16], num_maps - 1)
    boxes = make_default_boxes(ssd_box_sizes(num_maps, reduce_lowest=False), map_sizes, resolution)
    assert len(boxes) == 6 * sum(rows * columns for rows, columns in map_sizes)
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_maps": 0},
        {"num_maps": 6, "min_scale": 0.0},
        {"num_maps": 6, "min_scale": 0.9, "max_scale": 0.5},
        {"num_maps": 6, "max_scale": 1.5},
        {"num_maps": 6, "min_scale": float("nan")},
        {"num_maps": 6, "aspect_ratios": ()},
        {"num_maps": 6, "aspect_ratios": (1.0, -2.0)},
    ],
)
def test_refuses_bad_arguments(arguments):
    with pytest.raises(UserError):
        ssd_box_sizes(**arguments)


@pytest.mark.parametrize("sizes", [[[(0.1, 0.1)]], [[(0.1, 0.1)], []], [[(0.1,)], [(1, 1)]], [[(0, 1)], [(1, 1)]]])
def test_refuses_bad_explicit_sizes(sizes):
    with pytest.raises(UserError, match="box_sizes"):
        checked_box_sizes(sizes, 2)


def test_explicit_sizes_from_a_config_become_tuples():
    assert checked_box_sizes([[[0.1, 1]], [[0.5, 0.5]]], 2) == [[(0.1, 1.0)], [(0.5, 0.5)]]
