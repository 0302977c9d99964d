"""Plain folders of pictures: what is in them, what is held out, and batches without labels for every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnvision.data.teacher_view import TeacherView
from mnvision.data.unlabelled import UnlabelledDataModule, UnlabelledDetectionDataModule, unlabelled_data
from mnvision.errors import UserError
from tests.builders_teachers import make_photos

COMMON: dict[str, Any] = {"resolution": 16, "batch_size": 4, "num_workers": 0}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = make_photos(tmp_path / "photos", 10)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.jpg").write_bytes(b"")
    return root


def module(root: Path, model: str, **changes: Any) -> Any:
    data = unlabelled_data(root, f"mnvision.models.{model}", **(COMMON | changes))
    data.adopt(["a", "b", "c"])
    data.setup("fit")
    return data


def names(data: Any, split: str) -> set[str]:
    return {data.source(split).path(row).name for row in range(data.num_images(split))}


def test_every_picture_is_in_one_of_two_parts(photos: Path) -> None:
    data = module(photos, "Classifier", val_fraction=0.3)
    assert data.num_images("train") == 7
    assert data.num_images("val") == 3
    assert names(data, "train") | names(data, "val") == {f"{i}.jpg" for i in range(10)}
    again, other = (
        module(photos, "Classifier", val_fraction=0.3),
        module(photos, "Classifier", val_fraction=0.3, seed=1),
    )
    assert names(again, "val") == names(data, "val") != names(other, "val")
    report = data.reports()["train"]
    assert "1 files that are no images skipped (notes.txt)" in report.summary()


@pytest.mark.parametrize(
    ("model", "shape", "dtype"),
    [
        ("Classifier", (4,), torch.int64),
        ("AttributeClassifier", (4, 3), torch.int8),
        ("Embedder", (4,), torch.int64),
    ],
)
def test_labels_are_missing_in_the_models_own_form(
    photos: Path, model: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    data = module(photos, model)
    assert not data.labelled
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert batch["labels"].dtype == dtype
        assert batch["labels"].shape[1:] == shape[1:]
        assert (batch["labels"] == -1).all()
        assert batch["images"].shape[1:] == (3, 16, 16)


def test_detectors_get_empty_targets_and_a_ground_truth_without_objects(photos: Path) -> None:
    data = module(photos, "Detector", augment=True)
    assert isinstance(data, UnlabelledDetectionDataModule)
    batch = next(iter(data.train_dataloader()))
    assert (batch["targets"]["labels"] == -1).all()
    assert batch["sizes"].tolist() == [[90, 120]] * 4
    truth = data.ground_truth("val")
    assert truth["annotations"] == []
    assert truth["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]
    assert [entry["height"] for entry in truth["images"]] == [90]
    assert data.category_ids == [1, 2, 3]
    assert data.num_classes == 3


def test_validation_shows_a_live_teacher_its_pictures(photos: Path) -> None:
    for model in ("Classifier", "Detector"):
        data = module(photos, model)
        data.teacher_view = TeacherView((20, 24))
        batch = next(iter(data.val_dataloader()))
        assert batch["teacher_images"].shape == (1, 3, 20, 24)


def test_faces_are_cropped_gently_and_framed_as_asked(photos: Path) -> None:
    assert module(photos, "Classifier").preprocess["resize"] == "center_crop"
    assert module(photos, "Classifier").augment.area == (0.05, 1.0)
    faces = module(photos, "AttributeClassifier", framing={"resize": "box", "box": [0, 0.1, 1, 0.9]})
    assert faces.preprocess["resize"] == "box"
    assert faces.augment.area == (0.7, 1.0)
    assert module(photos, "Embedder").preprocess == {"resize": "stretch"}
    assert module(photos, "Embedder", augment=False).augment is None


def test_classes_come_from_the_teacher_or_not_at_all(photos: Path) -> None:
    data = UnlabelledDataModule(photos, "classification", **COMMON)
    with pytest.raises(UserError, match="have no labels: give a teacher"):
        _ = data.class_names
    data.adopt(("x",))
    assert data.class_names == ["x"]
    assert UnlabelledDataModule(photos, "face_embeddings", **COMMON).class_names == []


@pytest.mark.parametrize("model", ["Classifier", "Detector"])
def test_bad_folders_are_one_line(tmp_path: Path, model: str) -> None:
    with pytest.raises(UserError, match=r"data root not found: .*absent; set data\.root"):
        module(tmp_path / "absent", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds 0 images, two are the least"):
        module(tmp_path / "empty", model)
    make_photos(tmp_path / "one", 1)
    with pytest.raises(UserError, match="one holds 1 images"):
        module(tmp_path / "one", model)
    make_photos(tmp_path / "two", 2)
    assert module(tmp_path / "two", model).num_images("val") == 1
    with pytest.raises(UserError, match="no test split"):
        module(tmp_path / "two", model).eval_dataloader("test")
    for value in (0, 1, True, "half"):
        with pytest.raises(UserError, match=r"data\.val_fraction must lie between 0 and 1"):
            module(tmp_path / "two", model, val_fraction=value)


def test_a_file_that_is_no_picture_is_named(photos: Path) -> None:
    (photos / "3.jpg").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"not an image, or of an unknown format: .*3\.jpg"):
        module(photos, "Detector")


def test_detectors_are_shown_whole_pictures(photos: Path) -> None:
    with pytest.raises(UserError, match="framing: a detector is shown whole pictures"):
        module(photos, "Detector", framing={"resize": "stretch"})


def test_the_teacher_sees_the_students_proportions_without_augmentation(photos: Path) -> None:
    wide = module(photos, "Classifier", resolution=(16, 32), augment=False)
    narrow = module(photos, "Classifier", resolution=(32, 32), augment=False)
    view = TeacherView((24, 24))
    shown = [data.train_dataset(view).teacher_picture(0) for data in (wide, narrow)]
    assert not torch.equal(*shown)
    assert wide.train_dataset(view).recipe()["proportions"] == [1, 2]
    # A wide crop of a 120 x 90 picture has all of its width, a square one has not.
    expected = narrow.train_dataset(TeacherView((32, 32))).teacher_picture(0)
    assert np.array_equal(narrow.train_dataset(None)[0].image, expected)
