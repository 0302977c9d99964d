"""The report of default boxes speaks of the very boxes that the head would have."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnvision.data.box_report import report_boxes
from mnvision.data.coco import read_coco
from mnvision.heads.ssd import SSDHead
from tests.builders import make_tiny_coco


@pytest.mark.parametrize("reduce_lowest", [True, False])
def test_current_boxes_are_those_of_the_head(tmp_path: Path, reduce_lowest: bool):
    root = make_tiny_coco(tmp_path / "coco")
    index = read_coco(root / "annotations" / "instances_train2017.json", root / "train2017")
    head = {"min_scale": 0.2, "max_scale": 0.95, "reduce_lowest": reduce_lowest}
    report = report_boxes(index, head, (16, 32), resolution=96, count=4)
    built = SSDHead([8, 8], [16, 32], num_classes=3, resolution=96, reduce_lowest=reduce_lowest)
    assert report.rows[0][1] == len(built.default_boxes)
    assert report.rows[1][1] == len(built.default_boxes)
    assert report.counts["all"] == int((~index.crowd).sum())
    assert 0 < report.rows[0][2]["all"] <= 1
