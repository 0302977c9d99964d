"""The cache of a teacher's outputs: equal to the teacher itself, shared, resumed, and never stale."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.data.coco import CocoDataModule
from mnvision.data.image_folder import ImageFolderDataModule
from mnvision.data.loaders import TrainSampler
from mnvision.data.teacher_view import TeacherView
from mnvision.data.unlabelled import UnlabelledDataModule, UnlabelledDetectionDataModule
from mnvision.errors import UserError
from mnvision.teachers import cache, cache_key, cache_store
from mnvision.teachers.cache import prepare
from mnvision.teachers.cache_store import ChunkReader, Layout
from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_teachers import TinyTeacher, make_photos

VIEWS = 3


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "CHUNK_ROWS", 5)


def folder_data(root: Path, resolution: int = 16, **changes: Any) -> UnlabelledDataModule:
    options: dict[str, Any] = {"batch_size": 3, "num_workers": 0, "val_fraction": 0.2} | changes
    data = UnlabelledDataModule(root, "classification", resolution=resolution, **options)
    data.adopt(["a"] * 5)
    data.setup("fit")
    return data


def coco_data(root: Path, resolution: int = 32, **changes: Any) -> CocoDataModule:
    options: dict[str, Any] = {"batch_size": 3, "num_workers": 0} | changes
    data = CocoDataModule(root=root, resolution=resolution, **options)
    data.setup("fit")
    return data


def batches(data: Any, view: TeacherView, epochs: int) -> list[dict[str, Any]]:
    data.teacher_view = view
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def chunks(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("chunk_*"))}


def assert_cached_is_live(data: Any, teacher: TinyTeacher, cached: TeacherView) -> None:
    live = TeacherView(teacher.spec.resolution, VIEWS)
    ours, theirs = batches(data, cached, VIEWS + 1), batches(data, live, VIEWS + 1)
    assert len(ours) == len(theirs) > 0
    for stored, shown in zip(ours, theirs):
        assert torch.equal(stored["images"], shown["images"])
        assert "teacher_images" not in stored
        assert "teacher_outputs" not in shown
        for name, value in teacher(shown["teacher_images"]).items():
            assert stored["teacher_outputs"][name].dtype == torch.float16
            torch.testing.assert_close(stored["teacher_outputs"][name], value.half(), rtol=2e-3, atol=1e-4)


def test_a_cached_run_equals_a_live_one(photos: Path, tmp_path: Path) -> None:
    teacher, data = TinyTeacher(side=40), folder_data(photos)
    assert_cached_is_live(data, teacher, prepare(teacher, data, tmp_path / "cache", VIEWS, batch_size=4))


@pytest.mark.parametrize("mosaic", [0.0, 0.5])
def test_so_it_is_for_detection(tmp_path: Path, mosaic: float) -> None:
    root = make_tiny_coco(tmp_path / "coco", size=(120, 160))
    teacher, data = TinyTeacher(side=24), coco_data(root, augment={"mosaic": mosaic})
    view = prepare(teacher, data, tmp_path / "cache", VIEWS, batch_size=4)
    assert view.eval_outputs is None
    assert_cached_is_live(data, teacher, view)


def test_labels_and_order_are_those_of_a_run_without_teacher(tmp_path: Path) -> None:
    root, teacher = make_image_folder(tmp_path / "set"), TinyTeacher()
    data = ImageFolderDataModule(root, 16, batch_size=4, num_workers=0)
    data.setup("fit")
    plain = list(data.train_dataloader())
    taught = batches(data, prepare(teacher, data, tmp_path / "cache", VIEWS), 1)
    for ours, theirs in zip(plain, taught, strict=True):
        assert torch.equal(ours["images"], theirs["images"])
        assert torch.equal(ours["labels"], theirs["labels"])
    # Labelled data are validated without a teacher.
    assert set(next(iter(data.val_dataloader()))) == {"images", "labels", "indices"}


def test_unlabelled_validation_has_the_teachers_answers_to_whole_views(photos: Path, tmp_path: Path) -> None:
    teacher, data = TinyTeacher(), folder_data(photos)
    view = prepare(teacher, data, tmp_path / "cache", VIEWS)
    data.teacher_view = view
    stored = next(iter(data.val_dataloader()))
    data.teacher_view = TeacherView(teacher.spec.resolution, VIEWS)
    shown = next(iter(data.val_dataloader()))
    expected = teacher(shown["teacher_images"])["logits"]
    torch.testing.assert_close(stored["teacher_outputs"]["logits"], expected.half(), rtol=2e-3, atol=1e-4)
    assert stored["labels"].tolist() == [-1] * len(stored["images"])


def test_students_of_two_resolutions_share_it(photos: Path, tmp_path: Path) -> None:
    teacher = TinyTeacher(side=40)
    for resolution in (16, 24, 64):
        view = prepare(teacher, folder_data(photos, resolution), tmp_path / "cache", VIEWS)
        assert_cached_is_live(folder_data(photos, resolution), teacher, view)
    assert len(folders(tmp_path / "cache")) == 2  # train and val


@given(student=st.integers(8, 64), other=st.integers(8, 64), teacher=st.integers(8, 64))
@settings(max_examples=15, deadline=None)
def test_what_a_teacher_sees_does_not_depend_on_the_students_resolution(
    tmp_path_factory: pytest.TempPathFactory, student: int, other: int, teacher: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "shared_photos"
    if not root.is_dir():
        make_photos(root, 3)
    view = TeacherView((teacher, teacher), 2)
    for augment in (True, False):
        shown = []
        for side in (student, other):
            data = folder_data(root, side, augment=augment)
            dataset = data.train_dataset(view)
            shown.append(dataset.teacher_picture(0))
            sample = dataset[0]
            assert torch.equal(shown[-1], sample.teacher_image)
            assert torch.equal(sample.image, data.train_dataset(None)[0].image)
        assert torch.equal(shown[0], shown[1])


@given(length=st.integers(1, 30), views=st.integers(1, 5), epoch=st.integers(0, 40), world=st.integers(1, 3))
def test_views_are_replayed_in_the_order_of_the_epoch(length: int, views: int, epoch: int, world: int) -> None:
    for rank in range(world):
        free = TrainSampler(length, 3, rank, world)
        bound = TrainSampler(length, 3, rank, world, views)
        free.set_epoch(epoch)
        bound.set_epoch(epoch)
        assert [key.position for key in free] == [key.position for key in bound]
        assert {key.epoch for key in bound} == {epoch % views}


def test_the_second_run_computes_nothing(photos: Path, tmp_path: Path) -> None:
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS)
    before = {folder: chunks(folder) for folder in folders(tmp_path / "cache")}
    teacher = TinyTeacher()
    prepare(teacher, folder_data(photos), tmp_path / "cache", VIEWS)
    assert teacher.seen == 0
    assert {folder: chunks(folder) for folder in folders(tmp_path / "cache")} == before


class KilledError(Exception):
    pass


class DyingTeacher(TinyTeacher):
    """Stops after some pictures, as a killed process would."""

    left = 10**9

    def answer(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.left -= len(images)
        if self.left < 0:
            raise KilledError
        return super().answer(images)

    def fingerprint(self) -> str:
        return TinyTeacher().fingerprint()


def test_a_killed_run_is_gone_on_with(photos: Path, tmp_path: Path) -> None:
    dying = DyingTeacher()
    dying.left = 13
    with pytest.raises(KilledError):
        prepare(dying, folder_data(photos), tmp_path / "cache", VIEWS, batch_size=1)
    (folder,) = folders(tmp_path / "cache")
    kept = chunks(folder)
    assert list(kept) == ["chunk_000000.f16", "chunk_000001.f16"]  # 5 rows each of the 13
    assert not list(folder.glob(".chunk*"))
    teacher = TinyTeacher()
    view = prepare(teacher, folder_data(photos), tmp_path / "cache", VIEWS)
    assert teacher.seen == 6 * VIEWS - 10 + 2  # 6 training pictures, 2 to validate on
    assert kept.items() <= chunks(folder).items()
    assert_cached_is_live(folder_data(photos), teacher, view)


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def damage_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_end, damage_middle, Path.unlink])
def test_a_torn_chunk_is_computed_again_and_no_other(photos: Path, tmp_path: Path, damage: Any) -> None:
    view = prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS)
    assert isinstance(view.outputs, ChunkReader)
    folder = view.outputs.folder
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS)  # its chunks are known to be whole now
    whole = {path: path.read_bytes() for path in folder.glob("chunk_*")}
    damaged = folder / "chunk_000002.f16"
    damage(damaged)
    os.utime(folder)
    teacher = TinyTeacher()
    prepare(teacher, folder_data(photos), tmp_path / "cache", VIEWS)
    assert teacher.seen == 5
    assert {path: path.read_bytes() for path in folder.glob("chunk_*")} == whole


def test_what_a_killed_writer_left_is_removed(photos: Path, tmp_path: Path) -> None:
    view = prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 1)
    assert isinstance(view.outputs, ChunkReader)
    (view.outputs.folder / ".chunk_000000.999.f16").write_bytes(b"half")
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 2)
    assert not list(view.outputs.folder.glob(".chunk*"))


def test_more_views_are_added_and_fewer_are_there_already(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 1)
    before = first.outputs.read(0, 5)["logits"]
    teacher = TinyTeacher()
    more = prepare(teacher, folder_data(photos), tmp_path / "cache", VIEWS)
    assert "2 views are added to 1" in caplog.text
    assert teacher.seen == 6 * VIEWS - 5  # the first chunk of five rows stays
    assert np.array_equal(more.outputs.read(0, 5)["logits"], before)
    assert_cached_is_live(folder_data(photos), teacher, more)
    before_fewer = teacher.seen
    fewer = prepare(teacher, folder_data(photos), tmp_path / "cache", 2)
    assert teacher.seen == before_fewer
    assert fewer.views == 2
    assert np.array_equal(first.outputs.read(0, 5)["logits"], before)  # a run that goes on meanwhile


def change_teacher(photos: Path) -> dict[str, Any]:
    return {"teacher": TinyTeacher(seed=1)}


def change_file(photos: Path) -> dict[str, Any]:
    make_photos(photos.parent / "others", seed=9)
    for name in ("0.jpg", "deep/er/1.jpg"):
        shutil.copy(photos.parent / "others" / name, photos / name)
    return {}


def change_augmentation(photos: Path) -> dict[str, Any]:
    return {"data": folder_data(photos, augment={"flip": 0.0})}


def change_seed(photos: Path) -> dict[str, Any]:
    return {"data": folder_data(photos, seed=5)}


def change_framing(photos: Path) -> dict[str, Any]:
    return {"data": folder_data(photos, framing={"resize": "stretch"})}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_teacher, r"the teacher changed \(its weights or options\)"),
        (change_file, r"\d files changed \("),
        (change_augmentation, r"the augmentation changed \(augment.flip 0.5 -> 0.0\)"),
        (change_seed, r"seed 0 -> 5"),
        (change_framing, r"framing.resize \"center_crop\" -> \"stretch\""),
    ],
)
def test_whatever_changes_it_is_made_anew_and_the_log_says_why(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    old = prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS)
    changed = change(photos)
    teacher = changed.get("teacher", TinyTeacher())
    new = prepare(teacher, changed.get("data", folder_data(photos)), tmp_path / "cache", VIEWS)
    assert new.outputs.folder != old.outputs.folder
    assert re.search(f"made anew: .*{reason}.* since {old.outputs.folder.name} was made", caplog.text)
    assert_cached_is_live(changed.get("data", folder_data(photos)), teacher, new)


def test_a_new_recipe_and_a_grown_data_set_are_noticed_too(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 1)
    monkeypatch.setattr(cache_key, "RECIPE_VERSION", 2)
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 1)
    assert "made anew: this version of mnvision makes the pictures in another way (1 -> 2)" in caplog.text
    shutil.copy(photos / "0.jpg", photos / "9.jpg")
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 1)
    assert re.search(r"made anew: .*files (new|gone) \(", caplog.text)
    # Neither the same teacher nor the same pictures: nothing is said to have changed.
    caplog.clear()
    others = make_photos(tmp_path / "others", seed=3)
    prepare(TinyTeacher(seed=2), folder_data(others), tmp_path / "cache", 1)
    assert "teacher cache: new" in caplog.text


def test_a_data_set_that_was_moved_or_touched_is_still_the_same(photos: Path, tmp_path: Path) -> None:
    prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS)
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    os.utime(photos / "0.jpg", (1, 1))
    for root in (photos, moved):
        teacher = TinyTeacher()
        prepare(teacher, folder_data(root), tmp_path / "cache", VIEWS)
        assert teacher.seen == 0


def test_changed_boxes_make_other_crops(tmp_path: Path) -> None:
    def shift(data: dict[str, Any]) -> None:
        data["annotations"][0]["bbox"][0] += 1

    found = []
    for name, change in (("a", None), ("b", shift)):
        root = make_tiny_coco(tmp_path / name, change=change)
        view = prepare(TinyTeacher(), coco_data(root, augment={"min_size": 2.0}), tmp_path / "cache", 1)
        found.append(view.outputs.folder)
    assert found[0] != found[1]
    same = coco_data(
        tmp_path / "a", augment={"min_size": 3.0}
    )  # which objects are left out is no affair of the teacher
    assert prepare(TinyTeacher(), same, tmp_path / "cache", 1).outputs.folder == found[0]


def test_workers_read_it(photos: Path, tmp_path: Path) -> None:
    teacher, data = TinyTeacher(), folder_data(photos, num_workers=2)
    view = prepare(teacher, data, tmp_path / "cache", 2, batch_size=2)
    alone = batches(folder_data(photos), view, 2)
    for ours, theirs in zip(batches(data, view, 2), alone, strict=True):
        assert torch.equal(ours["teacher_outputs"]["logits"], theirs["teacher_outputs"]["logits"])
        assert torch.equal(ours["images"], theirs["images"])


def test_a_reader_keeps_few_files_open(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "_MAX_OPEN", 2)
    reader = prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS).outputs
    rows = [reader.read(view, position)["logits"] for view in range(VIEWS) for position in range(6)]
    assert len(reader._maps) == 2
    assert len({row.tobytes() for row in rows}) == len(rows)
    with pytest.raises(IndexError, match="3 x 6"):
        reader.read(VIEWS, 0)


def test_a_full_disk_is_one_line_before_anything_runs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=100))
    teacher = TinyTeacher()
    with pytest.raises(UserError, match=r"needs \d+ bytes in .*cache, where 100 bytes are free: take fewer"):
        prepare(teacher, folder_data(photos), tmp_path / "cache", VIEWS)
    assert teacher.seen == 0


def test_outputs_beyond_float16_name_the_picture(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"photos/.*jpg \(view 0\) logits holds -?\d.*float16 takes -65504 to 65504"):
        prepare(TinyTeacher(scale=1e7), folder_data(photos), tmp_path / "cache", VIEWS)


def test_an_unreadable_picture_is_named(photos: Path, tmp_path: Path) -> None:
    data = folder_data(photos)
    path = data.source("train").path(2)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"truncated: {path}"):
        prepare(TinyTeacher(), data, tmp_path / "cache", VIEWS)


def test_a_folder_that_cannot_be_written_is_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*choose a teacher.cache_dir"):
        prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", VIEWS)


def test_views_must_be_positive(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher.views=0: give a whole number"):
        prepare(TinyTeacher(), folder_data(photos), tmp_path / "cache", 0)


def test_only_one_process_fills_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    caplog.set_level(logging.INFO)
    events: list[str] = []

    def second() -> None:
        with cache.folder_lock(tmp_path / "locked"):
            events.append("second")

    with cache.folder_lock(tmp_path / "locked"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        events.append("first")
    thread.join(5)
    assert events == ["first", "second"]
    assert "waiting for another process" in caplog.text


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_rows_hold_every_output(shapes: list[tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout = Layout.of({f"o{i}": shape for i, shape in enumerate(shapes)}, 2, 7)
    outputs = {f"o{i}": rng.standard_normal((4, *shape)).astype(np.float32) for i, shape in enumerate(shapes)}
    rows, wrong = layout.pack(outputs)
    assert not wrong
    for number, row in enumerate(rows):
        for name, value in layout.unpack(row).items():
            assert np.array_equal(value, outputs[name][number].astype(np.float16))
    spans = [row for chunk in range(layout.chunks) for row in layout.span(chunk)]
    assert spans == list(range(14))


def test_labels_beyond_what_half_precision_counts_are_refused() -> None:
    layout = Layout.of({"labels": (2,)}, 1, 1)
    assert layout.pack({"labels": np.array([[2048.0, -1.0]], np.float32)})[1] == {}
    assert "labels holds 2049" in layout.pack({"labels": np.array([[0.0, 2049.0]], np.float32)})[1][0]
    with pytest.raises(UserError, match=r"gave outputs labels \(3\) where labels \(2\) were announced"):
        layout.pack({"labels": np.zeros((1, 3), np.float32)})


def test_unlabelled_detection_is_taught_too(photos: Path, tmp_path: Path) -> None:
    teacher = TinyTeacher()
    data = UnlabelledDetectionDataModule(photos, 0.2, resolution=32, batch_size=2, num_workers=0)
    data.adopt(["cat", "dog"])
    data.setup("fit")
    view = prepare(teacher, data, tmp_path / "cache", VIEWS)
    assert view.eval_outputs is not None
    assert_cached_is_live(data, teacher, view)
