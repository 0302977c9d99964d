"""The files, the cache and the data modules of the shapes data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mnvision.data import shapes_write
from mnvision.data.shapes import (
    ShapesClassificationDataModule,
    ShapesDataModule,
    write_shapes,
    write_shapes_classes,
)
from mnvision.data.shapes_scene import CATEGORY_IDS, SHAPES, SceneOptions
from mnvision.errors import UserError

SMALL = SceneOptions(min_side=96, max_side=160)
ROOT = Path(__file__).resolve().parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), 30, 20, seed=3, options=SMALL, processes=1)


def annotations(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())


# The files


def test_pycocotools_loads_it_and_masks_agree_with_boxes(folder: Path) -> None:
    for split in ("train", "val"):
        coco = COCO(str(folder / "annotations" / f"instances_{split}2017.json"))
        for image in coco.loadImgs(coco.getImgIds()):
            picture = cv2.imread(str(folder / f"{split}2017" / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3)
        for item in coco.loadAnns(coco.getAnnIds()):
            encoded = item["segmentation"]
            assert rle.area(encoded) == item["area"]
            assert rle.toBbox(encoded).tolist() == item["bbox"]
            x, y, width, height = item["bbox"]
            image = coco.imgs[item["image_id"]]
            assert 0 <= x < x + width <= image["width"]
            assert 0 <= y < y + height <= image["height"]


def test_every_class_crowds_and_empty_pictures_in_both_splits(folder: Path) -> None:
    for split, count in (("train", 30), ("val", 20)):
        data = annotations(folder, split)
        assert len(data["images"]) == count == len(list((folder / f"{split}2017").iterdir()))
        assert {a["category_id"] for a in data["annotations"] if not a["iscrowd"]} == set(CATEGORY_IDS)
        assert any(a["iscrowd"] for a in data["annotations"])
        assert {i["id"] for i in data["images"]} - {a["image_id"] for a in data["annotations"]}
        assert len({(i["height"], i["width"]) for i in data["images"]}) > count / 2


def test_ids_are_unique_with_gaps_and_splits_do_not_meet(folder: Path) -> None:
    train, val = annotations(folder, "train"), annotations(folder, "val")
    ids = [c["id"] for c in train["categories"]]
    assert len(set(ids)) == len(ids) == len(SHAPES) == 12 < max(ids)
    assert train["categories"] == val["categories"]
    assert not {i["id"] for i in train["images"]} & {i["id"] for i in val["images"]}
    for data in (train, val):
        assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    runs = [write_shapes(tmp_path / f"p{n}", 5, 2, 7, SMALL, processes=n) for n in (1, 2, 3)]
    assert contents(runs[0]) == contents(runs[1]) == contents(runs[2])
    other = write_shapes(tmp_path / "other", 5, 2, 8, SMALL, processes=1)
    pictures = [{v for k, v in contents(f).items() if k.endswith("jpg")} for f in (runs[0], other)]
    assert len(pictures[0]) == 7
    assert not pictures[0] & pictures[1]


def test_smaller_set_is_the_beginning_of_a_larger_one(folder: Path, tmp_path: Path) -> None:
    few = write_shapes(tmp_path, 4, 2, seed=3, options=SMALL, processes=1)
    assert few.name != folder.name
    whole = contents(folder)
    assert all(whole[name] == data for name, data in contents(few).items() if name.endswith("jpg"))


def test_class_folders_are_balanced_and_readable(tmp_path: Path) -> None:
    options = SceneOptions(min_side=64, max_side=96)
    folder = write_shapes_classes(tmp_path, 24, 12, seed=0, options=options, processes=1)
    for split, each in (("train", 2), ("val", 1)):
        counts = Counter(path.parent.name for path in folder.glob(f"{split}/*/*.jpg"))
        assert counts == dict.fromkeys(SHAPES, each)
    assert cv2.imread(str(next(folder.glob("val/star6/*.jpg")))) is not None


# The cache


def test_cached_set_is_not_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes_write, "_fill", lambda *_: pytest.fail("generated again"))
    assert write_shapes(folder.parent, 30, 20, seed=3, options=SMALL) == folder


def start(root: Path, count: int) -> subprocess.Popen[str]:
    code = (
        "from mnvision.data.shapes_write import generate, shapes_job\n"
        f"print(generate({str(root)!r}, shapes_job({count}, 2), processes=2))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_two_generators_at_once_leave_one_whole_set(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    programs = [start(root, 12) for _ in range(2)]
    outputs = [program.communicate(timeout=120)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert outputs[0] == outputs[1]
    (folder,) = root.iterdir()  # and no temporary folder beside it
    assert contents(folder) == contents(write_shapes(tmp_path / "alone", 12, 2, 0, processes=1))


def test_loser_of_the_race_discards_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = shapes_write._fill

    def slow_fill(temporary: Path, job: object, processes: int) -> None:
        fill(temporary, job, processes)
        monkeypatch.setattr(shapes_write, "_fill", fill)
        write_shapes(tmp_path, 3, 2, 0, SMALL, processes=1)  # somebody else finishes first

    monkeypatch.setattr(shapes_write, "_fill", slow_fill)
    folder = write_shapes(tmp_path, 3, 2, 0, SMALL, processes=1)
    assert list(tmp_path.iterdir()) == [folder]
    assert len(list(folder.glob("train2017/*.jpg"))) == 3


def test_killed_generation_leaves_nothing_that_passes_for_whole(tmp_path: Path) -> None:
    program = start(tmp_path, 5000)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".*/train2017/*.jpg")) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert not (left / shapes_write.MANIFEST).exists()
    old = time.time() - 2 * shapes_write.STALE_SECONDS
    os.utime(left, (old, old))
    assert list(tmp_path.iterdir()) == [left]
    folder = write_shapes(tmp_path, 3, 2, 0, SMALL, processes=1)
    assert list(tmp_path.iterdir()) == [folder]


def test_failed_generation_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes_write, "write_share", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write_shapes(tmp_path, 3, 2, 0, SMALL, processes=1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_failed_rename_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        write_shapes(tmp_path, 3, 2, 0, SMALL, processes=1)
    assert list(tmp_path.iterdir()) == []


def test_failing_process_is_reported(tmp_path: Path) -> None:
    job = shapes_write.shapes_job(3, 2, 0, SMALL)
    with pytest.raises(OSError, match="No such file"):  # the folders of the splits are missing
        shapes_write._in_parallel(tmp_path, job, 2)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    folder = shapes_write.shapes_folder(tmp_path, shapes_write.shapes_job(3, 2, 0, SMALL))
    folder.mkdir()
    (folder / "something").touch()
    with pytest.raises(UserError, match="not a whole data set"):
        write_shapes(tmp_path, 3, 2, 0, SMALL)


@pytest.mark.parametrize(
    "changes",
    [{"num_train": 0}, {"num_val": -1}, {"seed": -1}, {"processes": 0}],
)
def test_bad_arguments_are_refused_by_name(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        write_shapes(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


# The data modules


def test_detection_module_generates_and_reads_everything(tmp_path: Path) -> None:
    data = ShapesDataModule(
        tmp_path,
        num_train=14,
        num_val=6,
        data_seed=2,
        resolution=96,
        batch_size=4,
        num_workers=0,
        augment=False,
    )
    assert list(tmp_path.iterdir()) == []
    data.prepare_data()
    assert list(tmp_path.iterdir()) == [data.root] == [write_shapes(tmp_path, 14, 6, seed=2)]
    data.setup("fit")
    assert data.class_names == list(SHAPES)
    assert data.category_ids == list(CATEGORY_IDS)
    assert [set(report.findings) for report in data.reports().values()] == [{"crowd regions"}] * 2
    truth, written = data.ground_truth("val"), annotations(data.root, "val")
    shown = [{k: v for k, v in item.items() if k != "segmentation"} for item in written["annotations"]]
    assert truth["annotations"] == shown
    batches = list(data.val_dataloader())
    assert sum(int((batch["targets"]["labels"] >= 0).sum()) for batch in batches) == len(shown)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (4, 3, 96, 96)


def test_classification_module_generates_and_reads(tmp_path: Path) -> None:
    data = ShapesClassificationDataModule(
        tmp_path, num_train=24, num_val=12, resolution=64, batch_size=12, num_workers=0, augment=False
    )
    data.prepare_data()
    data.setup("fit")
    assert data.class_names == sorted(SHAPES)
    (batch,) = data.val_dataloader()
    assert batch["images"].shape == (12, 3, 64, 64)
    assert sorted(batch["labels"].tolist()) == list(range(12))


@pytest.mark.parametrize("module", [ShapesDataModule, ShapesClassificationDataModule])
def test_modules_refuse_bad_numbers(tmp_path: Path, module: type[ShapesDataModule]) -> None:
    with pytest.raises(UserError, match="num_val"):
        module(tmp_path, num_val=0)
    with pytest.raises(UserError, match="resolution"):
        module(tmp_path, resolution=0)
