"""Boxes from the network's input to the original pictures."""

from __future__ import annotations

import torch

from mnvision.boxes.rescale import to_original_pixels
from mnvision.types import Detections


def test_each_axis_is_scaled_by_its_own_picture():
    detections: Detections = {
        "boxes": torch.tensor([[[10.0, 20.0, 40.0, 60.0]], [[10.0, 20.0, 40.0, 60.0]]]),
        "scores": torch.tensor([[0.5], [0.25]]),
        "labels": torch.tensor([[1], [2]]),
    }
    # Input of height 100 and width 50; pictures of 200 x 200 and of height 50, width 500.
    scaled = to_original_pixels(detections, torch.tensor([[200, 200], [50, 500]]), (100, 50))
    assert scaled["boxes"].tolist() == [[[40.0, 40.0, 160.0, 120.0]], [[100.0, 10.0, 400.0, 30.0]]]
    assert scaled["scores"] is detections["scores"]
    assert scaled["labels"] is detections["labels"]
