"""Ground truth that is bad is refused; what custom files lack is filled in."""

from __future__ import annotations

import copy

import pytest

from mnvision.errors import UserError
from mnvision.metrics.coco import CocoEvaluator
from tests.coco_reference import annotation, detection, scored, tiny


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, "no list 'images'"),
        ({"images": [{"id": 4}, {"id": 4}]}, "images: id 4 occurs twice"),
        ({"categories": [{"id": "7"}]}, "categories.0.: id is '7'"),
        ({"annotations": [annotation(1, 4, 3, [0, 0, float("nan"), 1])]}, "annotation 1: bbox is not finite"),
        ({"annotations": [{"id": 1, "image_id": 4, "category_id": 3}]}, "annotation 1: field 'bbox'"),
        ({"annotations": [{"id": 1, "category_id": 3}]}, "annotation 1: field 'image_id'"),
        (
            {"annotations": [{"id": 1, "image_id": 4, "category_id": 3, "bbox": [0, 0, 1]}]},
            "not four numbers",
        ),
    ],
)
def test_bad_ground_truth_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        CocoEvaluator({**tiny(), **change})


def test_custom_annotations_without_area_or_crowd_flag():
    content = tiny()
    expected = scored(content, [detection(4, 3, [0, 0, 100, 100], 0.9)])
    for item in content["annotations"]:
        del item["area"], item["iscrowd"]
    before = copy.deepcopy(content)
    assert scored(content, [detection(4, 3, [0, 0, 100, 100], 0.9)]) == expected
    assert content == before


def test_annotations_of_unknown_images_are_counted_and_names_made_unique():
    content = tiny()
    content["annotations"].append(annotation(3, 77, 3, [0, 0, 5, 5]))
    content["categories"][0]["name"] = "cat"
    scores = scored(content, [])
    assert scores.num_ignored_annotations == 1
    assert "1 annotations of unknown" in scores.table()
    assert list(scores.per_class) == ["cat (id 3)", "cat (id 7)"]
