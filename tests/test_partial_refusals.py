"""Shared pictures: what is refused or warned of, and how gentle one augmentation for all heads is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import pytest

from mnvision.data.geo_shards import GeoShardsDataModule
from mnvision.data.partial import PartialLabelsDataModule
from mnvision.data.partial_augment import gentlest
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.detection import DetectionAugment
from tests.builders_geo import make_geo_shards
from tests.builders_partial import ROWS, make_partial, partial_heads, partial_module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_partial(tmp_path_factory.mktemp("partial") / "set")


def test_the_gentlest_augmentation_counted_by_hand():
    faces = ClassificationAugment((0.7, 1.0), (0.85, 1.18), 0.5, 24, 0.3)
    boxes = DetectionAugment(flip=0.4, crop_scale=(0.5, 1.0), crop_aspect=(0.9, 1.5), brightness=32, saturation=0.2)
    found = gentlest({"attributes": faces, "ssd": boxes})
    assert found is not None
    assert (found.area, found.aspect) == ((0.7, 1.0), (0.9, 1.18))
    assert (found.flip, found.brightness, found.saturation) == (0.4, 24, 0.2)
    boxes = DetectionAugment(crop_scale=(0.9, 1.0))
    assert gentlest({"ssd": boxes, "attributes": faces}).area == pytest.approx((0.81, 1.0))  # type: ignore[union-attr]
    uncropped = gentlest({"ssd": DetectionAugment(crop=0), "attributes": faces})
    assert uncropped is not None
    assert (uncropped.area, uncropped.aspect) == ((1.0, 1.0), (1.0, 1.0))
    assert gentlest({"ssd": boxes, "attributes": None}) is None
    extra = ClassificationAugment(extra=[__import__("albumentations").ToGray()])
    with pytest.raises(UserError, match=r"attributes\.data\.augment\.extra"):
        gentlest({"ssd": boxes, "attributes": extra})
    with pytest.raises(UserError, match=r"ssd\.data\.augment\.mosaic=0\.5"):
        gentlest({"ssd": DetectionAugment(mosaic=0.5), "attributes": faces})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes_resolution": 64}, "ssd takes 48 x 48 pixels, attributes 64 x 64; set backbone.resolution"),
        (
            {"attributes_framing": {"resize": "box", "box": [0, 0, 1, 0.5]}},
            "ssd and attributes cannot share pictures: ssd shows them by {'resize': 'stretch'}, attributes by",
        ),
        (
            {"embedding_sampling": "identities", "embedding_images_per_identity": 3},
            "embedding.data.sampling=identities makes batches of its own pictures",
        ),
        ({"batch_size": 3}, "6 of 11 pictures have labels of embedding: 1.6 of a batch of 3; raise multitask.pictures"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_what_cannot_share_pictures_is_refused(root: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError) as refused:
        partial_module(root, **options).train_dataloader()
    assert message in str(refused.value)


def test_a_central_crop_in_evaluation_is_no_hindrance(root: Path):
    central = {"attributes_framing": {"resize": "center_crop", "crop_fraction": 0.875}}
    assert len(partial_module(root, batch_size=11, **central).train_dataloader()) == 1


def test_stored_answers_of_a_teacher_are_refused(root: Path):
    data = partial_module(root)
    data.data["attributes"].teacher_view = TeacherView((32, 32), views=2)
    with pytest.raises(UserError, match=r"^attributes: a teacher's stored answers are to other views"):
        data.train_dataloader()


def test_shards_are_refused(root: Path, tmp_path: Path):
    make_geo_shards(tmp_path)
    cells = {"max_photos": 6, "min_photos": 1}
    places = GeoShardsDataModule(
        tmp_path, val=None, val_fraction=0.4, resolution=48, batch_size=6, num_workers=0, cells=cells
    )
    with pytest.raises(UserError, match=r"^geolocation: pictures in shards are no files"):
        _ = PartialLabelsDataModule({**partial_heads(root), "geolocation": places}).pictures


def test_sets_without_a_common_picture_are_warned_of(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    copy = make_partial(tmp_path / "copy")
    heads = partial_heads(root)
    heads = {"ssd": heads["ssd"], "attributes": partial_heads(copy)["attributes"]}
    with caplog.at_level(logging.WARNING, "mnvision"):
        pictures = PartialLabelsDataModule(heads).pictures
    assert len(pictures) == 8 + 8  # the leak is a file of its own there
    assert "no picture has labels of two heads" in caplog.text


def test_links_to_a_folder_are_followed(root: Path, tmp_path: Path):
    (tmp_path / "linked").symlink_to(root)
    heads = partial_heads(root) | {"attributes": partial_heads(tmp_path / "linked")["attributes"]}
    assert len(PartialLabelsDataModule(heads).pictures) == len(ROWS)


def test_nothing_left_to_train_on_is_refused(root: Path):
    heads = partial_heads(root, ssd_val_annotations="train.json")
    with pytest.raises(UserError, match="no picture is left to train ssd on: a head is evaluated on each of them"):
        _ = PartialLabelsDataModule({"ssd": heads["ssd"]}).pictures


def test_a_picture_of_another_size_than_annotated_is_refused(tmp_path: Path):
    make_partial(tmp_path / "set")
    path = tmp_path / "set" / "pictures" / "p06.png"
    cv2.imwrite(str(path), cv2.imread(str(path)).transpose(1, 0, 2))
    with pytest.raises(UserError, match=r"p06\.png is 60x80 but annotated as 80x60"):
        list(partial_module(tmp_path / "set", batch_size=11).train_dataloader())
