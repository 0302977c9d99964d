from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnvision.data.voc import VocDataModule
from mnvision.errors import UserError
from tests.builders import make_tiny_voc, voc_object, voc_xml


def module(root: Path, **options: Any) -> VocDataModule:
    return VocDataModule(root, **{"resolution": 64, "batch_size": 2, "num_workers": 0, **options})


def write_objects(root: Path, stem: str, objects: str) -> None:
    (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, (48, 64), objects))


def test_one_based_corners_become_edges(tmp_path: Path):
    root = make_tiny_voc(tmp_path)
    write_objects(root, "2007_000000", voc_object("dog", (1, 1, 64, 48)) + voc_object("cat", (11, 21, 20, 40)))
    boxes = module(root).index("train").objects(0)["boxes"]
    np.testing.assert_array_equal(boxes, [[0, 0, 64, 48], [10, 20, 20, 40]])
    boxes = module(root, one_based=False).index("train").objects(0)["boxes"]
    np.testing.assert_array_equal(boxes, [[1, 1, 64, 48], [11, 21, 20, 40]])


def test_difficult_objects_are_ignored_unless_kept(tmp_path: Path):
    root = make_tiny_voc(tmp_path)
    ignored, kept = module(root), module(root, keep_difficult=True)
    assert ignored.index("train").objects(0)["crowd"].tolist() == [False, True]
    assert kept.index("train").objects(0)["crowd"].tolist() == [False, False]
    for data in (ignored, kept):
        truth = data.ground_truth("train")
        assert [a["iscrowd"] for a in truth["annotations"]] == [0, 1] * 5
        assert data.index("train").report.findings["difficult objects"].count == 5


def test_names_ids_and_loaders(tmp_path: Path):
    data = module(make_tiny_voc(tmp_path))
    data.setup("fit")
    assert data.class_names == ["cat", "dog"]
    assert data.category_ids == [1, 2]
    assert data.index("train").image_ids.tolist() == [2007000000 + i for i in range(6)]
    assert data.index("val").file_name(1) == "2007_000001.jpg"
    assert [batch["image_ids"].tolist() for batch in data.val_dataloader()] == [
        [2007000000, 2007000001],
        [2007000002],
    ]
    assert len(list(data.train_dataloader())) == 3
    data.setup("test")
    truth = data.ground_truth("test")
    assert [image["id"] for image in truth["images"]] == [2007000003, 2007000004, 2007000005]
    assert {a["category_id"] for a in truth["annotations"]} == {1, 2}


def test_bad_annotations_are_refused_by_file(tmp_path: Path):
    root = make_tiny_voc(tmp_path)
    xml = root / "Annotations" / "2007_000002.xml"
    good = xml.read_text()
    for content, text in [
        (good[: len(good) // 2], r"2007_000002\.xml is not readable XML"),
        (good.replace("<xmin>", "<xmin>x"), r"2007_000002\.xml: bndbox/xmin is 'x\d+', not a number"),
        (good.replace("ymax>", "ymx>"), r"2007_000002\.xml: bndbox/ymax is missing"),
        (good.replace("<name>dog</name>", ""), r"2007_000002\.xml: an object has no name"),
    ]:
        xml.write_text(content)
        with pytest.raises(UserError, match=text):
            module(root).setup("fit")
    xml.unlink()
    with pytest.raises(UserError, match=r"annotation file not found: .*2007_000002\.xml"):
        module(root).setup("fit")


def test_flaws_are_counted(tmp_path: Path):
    root = make_tiny_voc(tmp_path)
    boxes = [(10, 10, 10, 20), (30, 10, 20, 20), (80, 10, 90, 20), (60, 40, 70, 60), (float("nan"), 1, 5, 5)]
    write_objects(root, "2007_000005", "".join(voc_object("dog", box) for box in boxes))
    index = module(root, keep_difficult=True).index("train")
    counts = {what: finding.count for what, finding in index.report.findings.items()}
    assert counts == {
        "boxes with NaN or infinite coordinates skipped": 1,
        "boxes of zero area skipped": 2,
        "boxes outside their image skipped": 1,
        "boxes clipped to their image": 1,
        "difficult objects": 5,
    }
    np.testing.assert_array_equal(index.objects(5)["boxes"], [[59, 39, 64, 48]])


def test_bad_lists_and_folders_are_refused(tmp_path: Path):
    root = make_tiny_voc(tmp_path / "voc")
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_text("2007_000000\n2007_000000\n")
    with pytest.raises(UserError, match="more than once: 2007_000000"):
        module(root).setup("fit")
    (lists / "train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        module(root).setup("fit")
    (lists / "train.txt").write_text("2007_000000  1\nabsent -1\n")
    with pytest.raises(UserError, match=r"1 of 2 images of split train are missing \(absent\)"):
        module(root).setup("fit")
    (lists / "train.txt").unlink()
    with pytest.raises(UserError, match=r"split list not found.*train\.txt"):
        module(root).setup("fit")
    with pytest.raises(UserError, match=r"data root not found.*Annotations"):
        module(tmp_path / "nowhere").setup("fit")


def test_class_that_training_does_not_have_is_refused(tmp_path: Path):
    root = make_tiny_voc(tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text("2007_000003\n")
    write_objects(root, "2007_000001", voc_object("horse", (1, 1, 9, 9)))
    with pytest.raises(UserError, match=r"horse \(in 2007_000001\.xml\); known are cat, dog"):
        module(root).setup("fit")
    data = module(root, class_names=["dog", "horse", "cat"])
    data.setup("fit")
    assert data.class_names == ["dog", "horse", "cat"]


def test_real_set_with_two_boxes_of_no_area(shared_data: Path):
    data = module(shared_data / "bccd")
    data.setup("fit")
    data.setup("test")
    assert data.class_names == ["Platelets", "RBC", "WBC"]
    assert {split: report.num_images for split, report in data.reports().items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
    skipped = [
        report.findings["boxes of zero area skipped"].count for report in data.reports().values() if report.findings
    ]
    assert sum(skipped) == 2
    assert sum(report.num_boxes or 0 for report in data.reports().values()) == 4886
    batch = next(iter(data.train_dataloader()))
    assert (batch["targets"]["labels"] >= 0).any()
