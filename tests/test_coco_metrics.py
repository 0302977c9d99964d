"""CocoEvaluator against pycocotools used as its own documentation shows, to the last bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.errors import UserError
from mnvision.metrics.coco import BACKENDS, CocoEvaluator
from tests.coco_reference import annotation, batch, detection, jittered, official, results_of, scored, tiny


def test_hand_worked_average_precision():
    # Ranking: hit (IoU 1), miss, hit (IoU 0.6, so at thresholds 0.50, 0.55 and 0.60).
    entries = [
        detection(4, 3, [0, 0, 100, 100], 0.9),
        detection(4, 3, [0, 300, 100, 100], 0.8),
        detection(4, 3, [200, 0, 60, 100], 0.7),
    ]
    scores = scored(tiny(), entries)
    # Recall 0 .. 0.50 (51 points) at precision 1; beyond it 2/3 where the second object is found.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert pytest.approx(low) == scores.AP50
    assert pytest.approx(high) == scores.AP75
    assert pytest.approx((3 * low + 7 * high) / 10) == scores.AP
    assert pytest.approx(0.5) == scores.AR_1
    assert pytest.approx((3 * 1.0 + 7 * 0.5) / 10) == scores.AR_100
    assert scores.AP_small == -1.0
    assert scores.AP_medium == -1.0
    assert scores.AP_large == pytest.approx(scores.AP)
    assert scores.per_class == {"cat": scores.AP, "dog": -1.0}
    assert scores.precision_curves[:, 0] == pytest.approx([1.0] * 51 + [2 / 3] * 50)
    assert (scores.precision_curves[:, 1] == -1).all()
    assert (scores.num_images, scores.num_detections) == (2, 3)


_boxes = st.tuples(*[st.sampled_from([0.0, 16.0, 32.0, 33.0, 64.0, 96.0])] * 2).flatmap(
    lambda xy: st.tuples(
        st.just(xy[0]), st.just(xy[1]), *[st.sampled_from([0.0, 16.0, 32.0, 48.0, 96.0, 97.0, 200.0])] * 2
    ).map(list)
)


@st.composite
def problems(draw):
    images = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True))
    categories = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3, unique=True))
    truth_rows = draw(
        st.lists(
            st.tuples(st.sampled_from(images), st.sampled_from(categories), _boxes, st.sampled_from([0, 0, 0, 1])),
            max_size=14,
        )
    )
    first = draw(st.sampled_from([0, 1]))  # an annotation with id 0 is a special case in pycocotools
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(images), st.sampled_from(categories), _boxes, st.sampled_from([0.1, 0.5, 0.9])),
            min_size=1,
            max_size=30,
        )
    )
    content = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": category, "name": f"class {category}"} for category in categories],
        "annotations": [annotation(index + first, *row) for index, row in enumerate(truth_rows)],
    }
    return content, [detection(*row) for row in rows]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_equals_pycocotools_on_random_problems(problem):
    content, entries = problem
    expected = official(content, entries).stats.tolist()
    for backend in BACKENDS:
        assert list(scored(content, entries, backend).twelve().values()) == expected


@pytest.mark.parametrize("seed", range(150))
def test_equals_pycocotools_in_a_crowded_image(seed):
    # Everything overlaps, on a coarse grid: equal IoUs, equal scores, crowds, and areas (as those of masks)
    # that leave the range although the box does not.
    generator = np.random.default_rng(seed)

    def box():
        return (
            [*generator.integers(0, 3, 2) * 8.0, *generator.integers(4, 8, 2) * 8.0]
            if generator.random() < 0.8
            else [0.0, 0.0, 150.0, 150.0]
        )

    content = tiny()
    content["annotations"] = [
        {
            **annotation(index + 1, int(generator.choice([4, 9])), 3, box(), int(generator.random() < 0.2)),
            "area": float(generator.choice([500.0, 1024.0, 2000.0, 9216.0, 10000.0])),
        }
        for index in range(int(generator.integers(2, 12)))
    ]
    entries = [
        detection(int(generator.choice([4, 9])), 3, box(), float(generator.choice([0.2, 0.5, 0.8]))) for _ in range(25)
    ]
    assert list(scored(content, entries).twelve().values()) == official(content, entries).stats.tolist()


def test_equals_pycocotools_on_real_annotations(shared_data):
    content = json.loads((shared_data / "coco/annotations/instances_val2017.json").read_text())
    entries = jittered(content, np.random.default_rng(0))
    reference = official(content, entries)
    scores = scored(content, entries)
    assert list(scores.twelve().values()) == reference.stats.tolist()
    assert scores.AP > 0.1
    assert (scores.precision_curves == reference.eval["precision"][0, :, :, 0, 2]).all()
    names = {category["id"]: category["name"] for category in content["categories"]}
    for label, category in enumerate(sorted(names)):
        defined = reference.eval["precision"][:, :, label, 0, 2]
        defined = defined[defined > -1]
        assert scores.per_class[names[category]] == (defined.mean() if len(defined) else -1)


def test_more_than_a_hundred_detections_of_one_class():
    generator = np.random.default_rng(1)
    content = tiny()
    content["annotations"] = [
        annotation(index + 1, 4, 3, [*generator.uniform(0, 400, 2), 50.0, 50.0]) for index in range(70)
    ]
    entries = [
        detection(4, 3, (np.array(item["bbox"]) + generator.normal(0, 4, 4)).tolist(), float(generator.random()))
        for item in content["annotations"] * 3
    ]
    assert list(scored(content, entries).twelve().values()) == official(content, entries).stats.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_detections_and_without_annotations(backend):
    nothing_found = scored(tiny(), [], backend)
    assert nothing_found.AP == 0.0
    assert nothing_found.AR_100 == 0.0
    assert nothing_found.AP_small == -1.0
    nothing_there = scored({**tiny(), "annotations": []}, [detection(4, 3, [0, 0, 9, 9], 0.5)], backend)
    assert set(nothing_there.twelve().values()) == {-1.0}
    assert nothing_there.per_class == {"cat": -1.0, "dog": -1.0}


def test_only_the_images_given_are_evaluated(shared_data):
    content = json.loads((shared_data / "coco/annotations/instances_val2017.json").read_text())
    entries = jittered(content, np.random.default_rng(3))
    some = [image["id"] for image in content["images"]][::3]
    scores = scored(content, entries, image_ids=some)
    assert list(scores.twelve().values()) == official(content, entries, some).stats.tolist()
    assert scores.num_images == len(some)
    evaluator = CocoEvaluator(content)
    kept = [entry for entry in entries if entry["image_id"] in set(some)]
    evaluator.add(results_of(kept), np.array(some))
    over_all = evaluator.compute(all_images=True)
    assert list(over_all.twelve().values()) == official(content, kept).stats.tolist()
    assert over_all.num_images == len(content["images"])


def test_update_maps_labels_and_corners():
    evaluator = CocoEvaluator(tiny())
    evaluator.update(
        torch.tensor([9, 4]), batch([(1, 1, [200.0, 0.0, 300.0, 100.0], 0.5)], images=2), category_ids=[7, 3]
    )
    results = evaluator.results
    assert results.image_ids.tolist() == [4]
    assert results.category_ids.tolist() == [3]
    assert results.boxes.tolist() == [[200, 0, 100, 100]]
    assert pytest.approx(51 / 101) == evaluator.compute().AP
    evaluator.reset()
    assert len(evaluator.results) == 0
    assert evaluator.compute().num_images == 0


def test_a_repeated_image_counts_once():
    evaluator = CocoEvaluator(tiny())
    right, wrong = (0, 1, [0.0, 0.0, 100.0, 100.0], 0.5), (1, 1, [0.0, 500.0, 9.0, 510.0], 0.9)
    evaluator.update(torch.tensor([4, 4]), batch([right, wrong], images=2), [7, 3])
    evaluator.update([4], batch([(0, *wrong[1:])]), [7, 3])
    scores = evaluator.compute()
    assert scores.num_repeated == 2
    assert scores.num_detections == 1
    assert pytest.approx(51 / 101) == scores.AP
    assert "2 repeated images left out" in scores.table()


@pytest.mark.parametrize(
    ("ids", "rows", "categories", "words"),
    [
        ([5], [], [7, 3], "image id 5 is not in the ground truth"),
        ([4], [(0, 2, [0.0, 0.0, 1.0, 1.0], 0.5)], [7, 3], "image 4: label 2"),
        ([4], [(0, 0, [0.0, 0.0, float("nan"), 1.0], 0.5)], [7, 3], "image 4: box"),
        ([4], [(0, 0, [0.0, 0.0, 1.0, 1.0], float("inf"))], [7, 3], "image 4: box"),
        ([4], [(0, 0, [5.0, 0.0, 1.0, 1.0], 0.5)], [7, 3], "not negative"),
        ([4, 9], [], [7, 3], "2 image ids for the detections of 1 images"),
    ],
)
def test_bad_updates_are_refused(ids, rows, categories, words):
    with pytest.raises(UserError, match=words):
        CocoEvaluator(tiny()).update(ids, batch(rows), categories)


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_of_other_categories_are_counted(backend):
    evaluator = CocoEvaluator(tiny(), backend)
    right, foreign = (0, 0, [0.0, 0.0, 100.0, 100.0], 0.5), (0, 1, [0.0, 0.0, 100.0, 100.0], 0.9)
    evaluator.update([4], batch([right, foreign]), [3, 55])
    scores = evaluator.compute()
    assert (scores.num_detections, scores.num_foreign_detections) == (1, 1)
    assert pytest.approx(51 / 101) == scores.AP
    assert "1 detections of other categories" in scores.table()


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match="vectorized, pycocotools"):
        CocoEvaluator(tiny(), "faster")


def test_table_and_dict():
    scores = scored(tiny(), [detection(4, 3, [0, 0, 100, 100], 0.9)])
    lines = scores.table().splitlines()
    assert len(lines) == 13
    assert lines[0].split()[-1] == "0.505"
    assert lines[3].split()[-1] == "-1.000"
    values = json.loads(json.dumps(scores.to_dict()))
    assert values["AP50"] == scores.AP50
    assert values["per_class"] == scores.per_class
    assert list(scores.twelve()) == list(values)[:12]


def test_nothing_is_printed(capsys):
    for backend in BACKENDS:
        scored(tiny(), [detection(4, 3, [0, 0, 100, 100], 0.9)], backend)
    assert capsys.readouterr() == ("", "")
