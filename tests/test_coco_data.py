from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from mnvision.data.coco import coco_ground_truth, read_coco
from mnvision.errors import UserError
from tests.builders import make_tiny_coco

JSON = "annotations/instances_train2017.json"


def read_train(root: Path, **options):
    return read_coco(root / JSON, root / "train2017", **options)


def test_index_equals_the_file(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco")
    index = read_train(root)
    raw = json.loads((root / JSON).read_text())
    assert index.class_names == ("person", "car", "kite")
    assert index.category_ids == (2, 7, 90)
    assert index.image_ids.tolist() == [100, 101, 102, 103, 104, 105]
    for position, image_id in enumerate(index.image_ids.tolist()):
        expected = [a for a in raw["annotations"] if a["image_id"] == image_id]
        objects = index.objects(position)
        xywh = np.array([a["bbox"] for a in expected], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(objects["boxes"][:, :2], xywh[:, :2])
        np.testing.assert_array_equal(objects["boxes"][:, 2:], xywh[:, :2] + xywh[:, 2:])
        assert [index.category_ids[label] for label in objects["labels"]] == [a["category_id"] for a in expected]
        assert objects["crowd"].tolist() == [bool(a["iscrowd"]) for a in expected]
        assert index.path(position).is_file()
        assert index.size(position) == (48, 64)
    assert len(index.objects(5)["boxes"]) == 0
    assert index.report.findings["crowd regions"].count == 1
    assert index.report.num_boxes == len(index.boxes) - 1


def test_index_agrees_with_pycocotools_on_real_annotations(shared_data: Path):
    path = shared_data / "coco" / "annotations" / "instances_val2017.json"
    index = read_coco(path, shared_data / "coco" / "val2017")
    coco = COCO(str(path))
    assert len(index) == len(coco.imgs) == 103
    assert len(index.class_names) == 80
    assert index.category_ids == tuple(sorted(coco.getCatIds()))
    for position, image_id in enumerate(index.image_ids.tolist()):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        objects = index.objects(position)
        expected = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_allclose(objects["boxes"], expected, atol=0.02)
        assert [coco.cats[index.category_ids[k]]["name"] for k in objects["labels"]] == [
            coco.cats[a["category_id"]]["name"] for a in annotations
        ]
        assert objects["crowd"].tolist() == [bool(a["iscrowd"]) for a in annotations]


def test_ground_truth_is_the_whole_file(shared_data: Path):
    path = shared_data / "coco" / "annotations" / "instances_val2017.json"
    index = read_coco(path, shared_data / "coco" / "val2017")
    raw, got = json.loads(path.read_text()), coco_ground_truth(path, index)
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    assert got["annotations"] == [{key: a[key] for key in keys} for a in raw["annotations"]]
    assert [i["id"] for i in got["images"]] == [i["id"] for i in raw["images"]]
    assert {c["id"]: c["name"] for c in got["categories"]} == {c["id"]: c["name"] for c in raw["categories"]}


def test_ground_truth_numbers_ids_that_pycocotools_cannot_use(tmp_path: Path):
    def change(data: dict[str, Any]) -> None:
        for number, item in enumerate(data["annotations"]):
            item["id"] = number  # 0 means "unmatched" in pycocotools
            del item["area"]

    root = make_tiny_coco(tmp_path / "coco", change=change)
    truth = coco_ground_truth(root / JSON, read_train(root))
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in truth["annotations"])


def flawed(data: dict[str, Any]) -> None:
    flaws = {
        500: [5, 5, 0, 9],
        501: [5, 5, 9, -2],
        502: [70, 5, 9, 9],
        503: [-30, -30, 9, 9],
        504: [float("nan"), 5, 9, 9],
        505: [5, 5, float("inf"), 9],
        506: [60, 40, 30, 30],
        507: [5, None, 9, 9],
    }
    data["annotations"] += [{"id": key, "image_id": 101, "category_id": 7, "bbox": bbox} for key, bbox in flaws.items()]


def test_flaws_are_counted_by_kind_and_named(tmp_path: Path):
    clean = read_train(make_tiny_coco(tmp_path / "clean"))
    index = read_train(make_tiny_coco(tmp_path / "flawed", change=flawed))
    counts = {what: finding.count for what, finding in index.report.findings.items()}
    assert counts == {
        "boxes with NaN or infinite coordinates skipped": 3,
        "boxes of zero area skipped": 2,
        "boxes outside their image skipped": 2,
        "boxes clipped to their image": 1,
        "crowd regions": 1,
    }
    assert index.report.findings["boxes of zero area skipped"].examples == (
        "annotation 500",
        "annotation 501",
    )
    assert "2 boxes outside their image skipped (annotation 502, annotation 503)" in index.report.summary()
    assert len(index.boxes) == len(clean.boxes) + 1
    np.testing.assert_array_equal(index.objects(1)["boxes"][-1], [60, 40, 64, 48])
    assert np.isfinite(index.boxes).all()
    assert (index.boxes[:, 2:] > index.boxes[:, :2]).all()


def drop(key: str):
    return lambda data: data.pop(key)


def set_field(records: str, field: str, value: object, row: int = 0):
    return lambda data: data[records][row].update({field: value})


REFUSED = {
    "no images": (lambda data: data["images"].clear(), "'images' is empty"),
    "no categories": (lambda data: data["categories"].clear(), "'categories' is empty"),
    "images missing": (drop("images"), "'images' is missing"),
    "annotations missing": (drop("annotations"), "'annotations' is missing"),
    "duplicate image id": (set_field("images", "id", 101), "image id used more than once: 101"),
    "duplicate annotation id": (set_field("annotations", "id", 2), "annotation id used more than once: 2"),
    "duplicate category id": (set_field("categories", "id", 2), "category id used more than once: 2"),
    "duplicate class name": (set_field("categories", "name", "kite"), "class name used by several.*kite"),
    "unknown image": (set_field("annotations", "image_id", 999), "annotation 1: image id 999"),
    "unknown category": (set_field("annotations", "category_id", 12), "category ids 12 .*annotation 1"),
    "absent file": (set_field("images", "file_name", "gone.jpg"), r"1 of 6 image files.*gone\.jpg"),
    "id is a word": (set_field("images", "id", "photo"), "'photo' is not a whole number"),
    "no bbox": (lambda data: data["annotations"][1].pop("bbox"), "annotation 2 has no 'bbox'"),
    "short bbox": (set_field("annotations", "bbox", [1, 2, 3], 1), "four numbers.*annotation 2"),
    "word in bbox": (set_field("annotations", "bbox", [1, 2, 3, "wide"], 1), "four numbers"),
    "no file name": (lambda data: data["images"][2].pop("file_name"), "image 102 has no 'file_name'"),
    "width 0": (set_field("images", "width", 0), "below 1 for image id 100"),
    "width is a word": (set_field("images", "width", "wide"), "not a number"),
    "images of numbers": (lambda data: data.update(images=[1, 2]), "'images' is missing or not a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_annotation_file_is_refused_in_one_line(tmp_path: Path, case: str):
    change, text = REFUSED[case]
    root = make_tiny_coco(tmp_path / "coco", change=change)
    with pytest.raises(UserError, match=text) as caught:
        read_train(root)
    assert "\n" not in str(caught.value)
    assert "instances_train2017.json" in str(caught.value)


def test_unreadable_json_is_refused(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco")
    text = (root / JSON).read_text()
    for content in (text[: len(text) // 2], "", "[1, 2]", "\x00\x01"):
        (root / JSON).write_text(content)
        with pytest.raises(UserError, match=r"instances_train2017\.json is not"):
            read_train(root)
    with pytest.raises(UserError, match="annotation file not found"):
        read_coco(root / "annotations/absent.json", root / "train2017")


def test_missing_files_can_be_skipped_and_are_counted(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco")
    (root / "train2017" / "000000000001.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 6 image files.*000000000001\.jpg"):
        read_train(root)
    index = read_train(root, missing="skip")
    assert index.image_ids.tolist() == [100, 102, 103, 104, 105]
    assert index.report.findings["images without file skipped"].examples == ("000000000001.jpg",)
    truth = coco_ground_truth(root / JSON, index)
    assert {a["image_id"] for a in truth["annotations"]} <= set(index.image_ids.tolist())
    assert len(index.boxes) == len(truth["annotations"])


def test_ids_of_any_kind(tmp_path: Path):
    def change(data: dict[str, Any]) -> None:
        for item in data["categories"]:
            item["id"] = {2: -5, 7: 0, 90: 10**12}[item["id"]]
        for item in data["annotations"]:
            item["category_id"] = {2: -5, 7: 0.0, 90: str(10**12)}[item["category_id"]]
            item.pop("id")

    index = read_train(make_tiny_coco(tmp_path / "coco", change=change))
    assert index.category_ids == (-5, 0, 10**12)
    assert index.class_names == ("person", "car", "kite")
    assert set(index.labels.tolist()) == {0, 1, 2}


def test_files_in_folders_and_sizes_from_the_picture(tmp_path: Path):
    def change(data: dict[str, Any]) -> None:
        for item in data["images"][:3]:
            item["file_name"] = f"städte/{item['file_name']}"
            del item["width"]

    root = make_tiny_coco(tmp_path / "coco", change=change)
    (root / "train2017" / "städte").mkdir()
    for i in range(3):
        shutil.move(root / f"train2017/{i:012d}.jpg", root / f"train2017/städte/{i:012d}.jpg")
    index = read_train(root)
    assert index.size(0) == (48, 64)
    assert index.path(0).is_file()
