"""Bad input through the tools: refused in one line that names it, or counted, skipped and reported."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.builders import make_image_folder, make_tiny_coco, make_tiny_voc, voc_object, voc_xml
from tests.builders_harm import (
    JPEG,
    Harm,
    compose,
    cut,
    in_json,
    line_of,
    nothing,
    remove,
    remove_images,
    set_box,
    write,
)
from tests.builders_models import save_classifier
from tools.run import train

JSON = "annotations/instances_train2017.json"

COCO_REFUSED: dict[str, tuple[Harm, list[str], list[str]]] = {
    "no data root": (nothing, ["data.root=nowhere"], ["data root not found: nowhere", "set data.root"]),
    "no annotation file": (remove(JSON), [], ["instances_train2017.json", "not found"]),
    "a missing picture": (
        remove(JPEG),
        [],
        ["1 of 6 image files", "000000000003.jpg", "data.missing=skip"],
    ),
    "an unknown category id": (
        in_json(lambda d: d["annotations"][1].update(category_id=55)),
        [],
        ["instances_train2017.json", "55", "annotation 2", "add them or remove"],
    ),
    "an unknown image id": (
        in_json(lambda d: d["annotations"][1].update(image_id=55)),
        [],
        ["annotation 2", "image id 55", "remove it or add"],
    ),
    "an image id twice": (
        in_json(lambda d: d["images"][1].update(id=100)),
        [],
        ["image id used more than once: 100", "give each its own"],
    ),
    "an annotation id twice": (
        in_json(lambda d: d["annotations"][1].update(id=1)),
        [],
        ["annotation id used more than once: 1", "give each its own"],
    ),
    "a category id twice": (
        in_json(lambda d: d["categories"][1].update(id=7)),
        [],
        ["category id used more than once: 7"],
    ),
    "a box of three numbers": (in_json(set_box(1, 1, 2, 3)), [], ["annotation 2", "four numbers"]),
    "a box of words": (in_json(lambda d: d["annotations"][1].update(bbox="all")), [], ["annotation 2"]),
    "other categories in val": (
        in_json(lambda d: d["categories"][1].update(name="human"), "val2017"),
        [],
        ["categories of train and val differ", "2: person / human", "instances_val2017.json"],
    ),
    "no images in train": (
        in_json(lambda d: d.update(images=[], annotations=[])),
        [],
        ["instances_train2017.json", "'images' is empty"],
    ),
    "no images in val": (
        in_json(lambda d: d.update(images=[], annotations=[]), "val2017"),
        [],
        ["instances_val2017.json", "'images' is empty"],
    ),
    "no boxes in train": (
        in_json(lambda d: d.update(annotations=[])),
        [],
        ["instances_train2017.json", "no usable box"],
    ),
    "no JSON": (cut(JSON), [], ["instances_train2017.json is not valid JSON"]),
    "a list for a file": (write(JSON, "[]"), [], ["not a COCO annotation file"]),
    "a size that is not the picture's": (
        in_json(lambda d: d["images"][0].update(width=640)),
        ["debug=fast"],
        ["000000000000.jpg is 64x48 but annotated as 640x48", "image id 100", "correct"],
    ),
    "a truncated picture": (cut(JPEG), ["debug=fast"], ["truncated", JPEG, "fetch it again"]),
    "a truncated picture in a worker": (
        cut(JPEG),
        ["debug=fast", "data.num_workers=1"],
        ["truncated", JPEG, "fetch it again"],
    ),
    "no picture at all": (write(JPEG, "<html>not found</html>"), ["debug=fast"], ["not an image", JPEG]),
    "no picture at all in a worker": (
        write(JPEG, "<html>not found</html>"),
        ["debug=fast", "data.num_workers=1"],
        ["not an image", JPEG],
    ),
    "an empty picture": (write(JPEG, ""), ["debug=fast"], ["empty", JPEG, "fetch it again"]),
    "a folder for a picture": (
        lambda root: ((root / JPEG).unlink(), (root / JPEG).mkdir()),
        ["debug=fast"],
        [JPEG],
    ),
    "alpha 0": (nothing, ["backbone.alpha=0"], ["alpha", "0"]),
    "alpha below 0": (nothing, ["backbone.alpha=-0.5"], ["alpha", "-0.5"]),
    "resolution 0": (nothing, ["backbone.resolution=0"], ["resolution", "0"]),
    "resolution below 0": (nothing, ["backbone.resolution=-96"], ["resolution", "-96"]),
    "no checkpoint": (nothing, ["ckpt_path=nowhere.ckpt"], ["nowhere.ckpt does not exist"]),
    "no pretrained file": (nothing, ["backbone.pretrained=nowhere.h5"], ["nowhere.h5"]),
}


@pytest.mark.parametrize("case", COCO_REFUSED)
def test_detection_data_that_cannot_be_used_are_refused_by_name(case: str, tmp_path: Path):
    harm, words, texts = COCO_REFUSED[case]
    harm(make_tiny_coco(tmp_path / "data"))
    line = line_of(train, compose(tmp_path / "run", "ssd_coco", f"data.root={tmp_path / 'data'}", *words))
    for text in texts:
        assert text in line
    assert not list((tmp_path / "run").rglob("*.ckpt"))


COCO_COUNTED: dict[str, tuple[Harm, list[str], str]] = {
    "zero width": (in_json(set_box(1, 5, 5, 0, 9)), [], "1 boxes of zero area skipped (annotation 2)"),
    "negative height": (in_json(set_box(1, 5, 5, 9, -9)), [], "1 boxes of zero area skipped (annotation 2)"),
    "outside": (in_json(set_box(1, 500, 5, 9, 9)), [], "1 boxes outside their image skipped (annotation 2)"),
    "over the edge": (in_json(set_box(1, 50, 5, 99, 9)), [], "1 boxes clipped to their image (annotation 2)"),
    "NaN": (
        in_json(set_box(1, float("nan"), 5, 9, 9)),
        [],
        "1 boxes with NaN or infinite coordinates skipped (annotation 2)",
    ),
    "infinity": (
        in_json(set_box(1, 5, 5, float("inf"), 9)),
        [],
        "1 boxes with NaN or infinite coordinates skipped (annotation 2)",
    ),
    "a missing picture": (
        remove(JPEG),
        ["data.missing=skip"],
        "5 images, 8 boxes; 1 images without file skipped (000000000003.jpg)",
    ),
    "crowds": (nothing, [], "1 crowd regions (annotation 1000)"),
}


@pytest.mark.parametrize("case", COCO_COUNTED)
def test_boxes_that_cannot_be_used_are_counted_and_the_rest_trains(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    harm, words, text = COCO_COUNTED[case]
    harm(make_tiny_coco(tmp_path / "data"))
    with caplog.at_level(logging.INFO, "mnvision"):
        trainer = train(
            compose(
                *(tmp_path / "run", "ssd_coco", "debug=fast", f"data.root={tmp_path / 'data'}", *words),
                "data.batch_size=5",
            )
        )
    reported = [record.getMessage() for record in caplog.records if "instances_train2017" in record.getMessage()]
    assert len(reported) == 1
    assert text in reported[0]
    assert trainer.global_step == 1
    assert all(p.isfinite().all() for p in trainer.lightning_module.parameters())


XML = "Annotations/2007_000001.xml"
VOC_REFUSED: dict[str, tuple[Harm, list[str]]] = {
    "no XML": (write(XML, "<annotation><object>"), [XML, "not readable XML"]),
    "an empty XML": (write(XML, ""), [XML, "not readable XML"]),
    "no XML file": (remove(XML), [XML, "not found"]),
    "no picture": (remove("JPEGImages/2007_000001.jpg"), ["2007_000001", "complete the folder or the list"]),
    "no corners": (
        write(XML, voc_xml("2007_000001", (48, 64), "<object><name>cat</name></object>")),
        [XML, "bndbox/xmin is missing"],
    ),
    "a corner of letters": (
        write(XML, voc_xml("2007_000001", (48, 64), voc_object("cat", ("a", 1, 2, 3)))),  # type: ignore[arg-type]
        [XML, "'a', not a number"],
    ),
    "a size of NaN": (
        write(XML, voc_xml("2007_000001", (float("nan"), 64), "")),  # type: ignore[arg-type]
        [XML, "size/height", "nan"],
    ),
    "no name": (
        write(XML, voc_xml("2007_000001", (48, 64), voc_object("", (1, 1, 9, 9)))),
        [XML, "no name"],
    ),
    "an empty list": (write("ImageSets/Main/val.txt", "\n"), ["val.txt is empty"]),
    "no list": (remove("ImageSets/Main/train.txt"), ["train.txt", "not found"]),
    "an image twice": (
        write("ImageSets/Main/train.txt", "2007_000001\n2007_000001\n"),
        ["train.txt", "more than once: 2007_000001"],
    ),
}


@pytest.mark.parametrize("case", VOC_REFUSED)
def test_voc_sets_that_cannot_be_read_are_refused_by_name(case: str, tmp_path: Path):
    harm, texts = VOC_REFUSED[case]
    harm(make_tiny_voc(tmp_path / "data"))
    line = line_of(train, compose(tmp_path / "run", "ssd_voc", f"data.root={tmp_path / 'data'}"))
    for text in texts:
        assert text in line


def add_class(root: Path) -> None:
    (root / "val" / "violet").mkdir()
    (root / "val" / "red" / "1.jpg").rename(root / "val" / "violet" / "1.jpg")


def remove_folders(root: Path) -> None:
    (root / "val").rename(root / "gone")
    (root / "val").mkdir()


FOLDER_REFUSED: dict[str, tuple[Harm, list[str], list[str]]] = {
    "no data root": (nothing, ["data.root=nowhere"], ["data root not found: nowhere", "set data.root"]),
    "a class of val that train lacks": (add_class, [], ["violet", "remove or rename"]),
    "no images": (remove_images, [], ["train holds no images"]),
    "no classes": (remove_folders, [], ["val has no class folders"]),
    "a truncated picture": (cut("train/red/1.jpg"), ["debug=fast"], ["truncated", "train/red/1.jpg"]),
    "a truncated picture in a worker": (
        cut("train/red/1.jpg"),
        ["debug=fast", "data.num_workers=1"],
        ["truncated", "train/red/1.jpg"],
    ),
    "a picture cut in its header": (
        cut("train/red/1.jpg", 100),
        ["debug=fast"],
        ["cannot read the image header", "train/red/1.jpg", "fetch it again"],
    ),
    "no picture": (write("train/red/1.jpg", "no"), ["debug=fast"], ["train/red/1.jpg"]),
    "a truncated picture to validate on": (
        cut("val/red/1.jpg"),
        ["debug=fast"],
        ["truncated", "val/red/1.jpg"],
    ),
    "alpha 0": (nothing, ["backbone.alpha=0"], ["alpha", "0"]),
    "resolution 0": (nothing, ["backbone.resolution=0"], ["resolution", "0"]),
}


@pytest.mark.parametrize("case", FOLDER_REFUSED)
def test_image_folders_that_cannot_be_used_are_refused_by_name(case: str, tmp_path: Path):
    harm, words, texts = FOLDER_REFUSED[case]
    harm(make_image_folder(tmp_path / "data"))
    words = [f"data.root={tmp_path / 'data'}", "data.batch_size=18", *words]
    line = line_of(train, compose(tmp_path / "run", "classification", *words))
    for text in texts:
        assert text in line


def test_a_pretrained_classifier_of_other_classes_is_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_image_folder(tmp_path / "data")
    save_classifier(tmp_path / "pets.ckpt")
    words = ["debug=fast", f"data.root={tmp_path / 'data'}", f"backbone.pretrained={tmp_path / 'pets.ckpt'}"]
    with caplog.at_level(logging.INFO, "mnvision"):
        train(compose(tmp_path / "run", "classification", *words))
    assert re.search(r"classifier of \S*pets\.ckpt left out: it has no class named 'blue', 'green'", caplog.text)
