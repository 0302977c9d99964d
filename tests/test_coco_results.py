"""The official results file: every bit kept, bad files refused, the same numbers when scored again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.errors import UserError
from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.coco_results import CocoResults, read_results, write_results
from tests.coco_reference import detection, jittered, official, results_of


def test_saved_results_give_the_same_numbers_everywhere(shared_data, tmp_path):
    content = json.loads((shared_data / "coco/annotations/instances_val2017.json").read_text())
    evaluator = CocoEvaluator(content)
    ids = np.array([image["id"] for image in content["images"]])
    evaluator.add(results_of(jittered(content, np.random.default_rng(5))), ids)
    path = tmp_path / "new" / "results.json"
    evaluator.save_results(path)
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    scores = evaluator.compute()
    assert official(content, json.loads(path.read_text())).stats.tolist() == list(scores.twelve().values())
    again = CocoEvaluator(content, "pycocotools")
    again.load_results(path)
    assert again.compute(all_images=True).twelve() == scores.twelve()
    first = json.loads(path.read_text())[0]
    assert list(first) == ["image_id", "category_id", "bbox", "score"]


@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 5), max_size=5))
@settings(deadline=None, max_examples=30)
def test_results_file_keeps_every_bit(tmp_path_factory, rows):
    numbers = np.array(rows, np.float64).reshape(-1, 5)
    ids = np.arange(len(rows)) * 2**40
    path = tmp_path_factory.mktemp("results") / "r.json"
    write_results(path, CocoResults(ids, ids + 1, numbers[:, :4], numbers[:, 4]))
    back = read_results(path)
    assert (back.image_ids == ids).all()
    assert (back.category_ids == ids + 1).all()
    assert back.boxes.tobytes() == numbers[:, :4].tobytes()
    assert back.scores.tobytes() == numbers[:, 4].tobytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "not JSON"),
        ("{}", "not a list of detections"),
        ('[{"id": 1}]', "not a list of detections"),
        ('[{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]}]', "entry 0: field 'score' is missing"),
        ('[{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1], "score": 1}]', "four numbers"),
        ('[{"image_id": "a", "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]', "entry 0"),
        ('[{"image_id": 1.5, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]', "entry 0"),
        ('[{"image_id": 1, "category_id": 2, "bbox": null, "score": 1}]', "entry 0"),
    ],
)
def test_bad_results_files_are_refused(tmp_path, text, words):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_results(path)


def test_foreign_results_with_extra_fields_are_read(tmp_path):
    path = tmp_path / "r.json"
    mask = {"size": [5, 5], "counts": "abc"}
    path.write_text(json.dumps([{**detection(4, 3, [0, 0, 1, 1], 1), "segmentation": mask}]))
    assert len(read_results(path)) == 1
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "absent.json")
