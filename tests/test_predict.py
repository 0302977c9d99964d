"""Predictions from a checkpoint alone: right pixels, right names, one result per picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mnvision
from mnvision.data.detection_dataset import DetectionDataset
from mnvision.data.index import DataReport, DetectionIndex, encode_file_names
from mnvision.errors import UserError
from mnvision.prediction.predictor import as_device
from mnvision.prediction.preprocess import Preprocess
from mnvision.prediction.results import Detection, ImageClasses, ImageDetections
from tests.builders_models import CLASS_NAMES, SIDE, picture, save_classifier, save_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    save_detector(folder / "detector.ckpt")
    save_classifier(folder / "classifier.ckpt")
    return folder


@pytest.fixture(scope="module")
def detector(folder: Path) -> Any:
    return mnvision.load(folder / "detector.ckpt")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Any:
    return mnvision.load(folder / "classifier.ckpt")


def values(result: ImageDetections) -> np.ndarray:
    return np.array([[*found.box, found.score, found.label] for found in result])


def test_boxes_are_in_pixels_of_the_original_picture(folder: Path, detector: Any):
    pixels = picture()
    model = save_detector(folder / "again.ckpt")
    network_input = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        raw = model.predict(torch.from_numpy(network_input).permute(2, 0, 1)[None])
    result = detector.predict(pixels, score_threshold=0.05)
    assert len(result) > 5
    assert result.size == (120, 200)
    scale = np.array([200 / SIDE, 120 / SIDE, 200 / SIDE, 120 / SIDE])
    np.testing.assert_allclose(values(result)[:, :4], raw["boxes"][0, : len(result)].numpy() * scale, atol=0.05)
    np.testing.assert_allclose(values(result)[:, 4], raw["scores"][0, : len(result)].numpy(), atol=1e-4)
    assert [found.name for found in result] == [CLASS_NAMES[i] for i in raw["labels"][0, : len(result)]]


def test_network_sees_what_evaluation_sees(tmp_path: Path, detector: Any):
    cv2.imwrite(str(tmp_path / "a.jpg"), picture(height=400, width=600))  # large enough to be decoded at half scale
    index = DetectionIndex(
        tmp_path,
        encode_file_names(["a.jpg"]),
        np.array([1]),
        np.array([[400, 600]], np.int32),
        np.array([0, 0]),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, np.bool_),
        ("cat",),
        (1,),
        DataReport("test", 1, 0, ()),
    )
    expected = DetectionDataset(index, (SIDE, SIDE))[0].image
    prepared = detector.preprocess(tmp_path / "a.jpg")
    np.testing.assert_array_equal(prepared.pixels, expected.permute(1, 2, 0).numpy())
    assert prepared.size == (400, 600)


def test_center_crop_is_the_middle_of_the_picture():
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[25:175, 125:275] = 255  # the centred square of 3/4 of the shorter side
    prepare = Preprocess({"resize": "center_crop", "crop_fraction": 0.75}, (50, 50))
    assert prepare(pixels).pixels.min() == 255
    pixels[:] = 255
    pixels[25:175, 125:275] = 0
    assert prepare(pixels).pixels.max() == 0


def test_batches_give_what_single_pictures_give(detector: Any):
    pictures = [picture(seed, 100 + 10 * seed, 150) for seed in range(5)]
    together = detector.predict(pictures, score_threshold=0.1, batch_size=2)
    assert isinstance(together, list)
    assert len(together) == 5
    for one, pixels in zip(together, pictures):
        alone = detector.predict(pixels, score_threshold=0.1)
        assert alone.size == one.size == pixels.shape[:2]
        np.testing.assert_allclose(values(one), values(alone), atol=1e-2)
    assert not np.allclose(values(together[0])[:3], values(together[1])[:3])


def test_threshold_keeps_the_best(detector: Any):
    everything = detector.predict(picture(), score_threshold=0.05)
    cut = everything[4].score
    best = detector.predict(picture(), score_threshold=cut)
    assert [found.score for found in best] == [found.score for found in everything if found.score >= cut]
    assert 5 <= len(best) < len(everything)
    usual = [found.score for found in detector.predict(picture())]
    assert usual == [found.score for found in everything if found.score >= 0.3]
    assert usual


@pytest.mark.parametrize("threshold", [-1.0, 0.01, 1.01, "high"])
def test_threshold_that_the_decoder_cannot_serve_is_refused(detector: Any, threshold: Any):
    with pytest.raises(UserError, match="decoder"):
        detector.predict(picture(), score_threshold=threshold)


def test_path_text_array_and_pillow_agree(tmp_path: Path, detector: Any):
    path, pixels = tmp_path / "a.png", picture()
    Image.fromarray(pixels).save(path)
    expected = values(detector.predict(pixels))
    assert len(expected)
    with Image.open(path) as image:
        for source in (path, str(path), image):
            np.testing.assert_array_equal(values(detector.predict(source)), expected)
    assert detector.predict(path).path == path
    assert detector.predict(pixels).path is None


def test_exif_orientation_is_applied_to_files_and_pillow_images(tmp_path: Path, detector: Any):
    upright, path = picture(), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    stored = np.rot90(upright)
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    expected = detector.predict(upright)
    assert len(expected)
    with Image.open(path) as image:
        for source in (path, image):
            result = detector.predict(source)
            assert result.size == (120, 200)
            np.testing.assert_array_equal(values(result), values(expected))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_other_colour_modes_are_predicted_as_their_rgb(classifier: Any, mode: str):
    image = Image.fromarray(picture()).convert(mode)
    expected = classifier.predict(np.asarray(image.convert("RGB"))).probabilities
    np.testing.assert_array_equal(classifier.predict(image).probabilities, expected)


def test_sixteen_bit_pillow_images_keep_their_high_byte(classifier: Any):
    grey = picture()[..., 0]
    image = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    expected = classifier.predict(np.repeat(grey[..., None], 3, axis=2)).probabilities
    np.testing.assert_array_equal(classifier.predict(image).probabilities, expected)


def test_classification_gives_sorted_names(classifier: Any):
    first, second = classifier.predict([picture(0), picture(1)])
    assert first.probabilities.sum() == pytest.approx(1.0)
    assert not np.allclose(first.probabilities, second.probabilities)
    top = first.top(2)
    assert [entry.probability for entry in top] == sorted(first.probabilities.tolist(), reverse=True)[:2]
    assert top[0].name == CLASS_NAMES[int(first.probabilities.argmax())]
    assert len(first.top(5)) == 3


def test_results_are_plain_data_and_readable():
    found = Detection((1.0, 2.25, 30.0, 40.0), 0.875, 1, "dog")
    result = ImageDetections(Path("a.jpg"), (60, 80), (found,))
    assert str(result) == "a.jpg (80x60): dog 0.88 [1 2 30 40]"
    assert json.loads(json.dumps(result.to_dict())) == {
        "path": "a.jpg",
        "size": [60, 80],
        "detections": [{"label": 1, "name": "dog", "score": 0.875, "box": [1.0, 2.25, 30.0, 40.0]}],
    }
    classes = ImageClasses(None, (60, 80), np.array([0.25, 0.75], np.float32), ("cat", "dog"))
    assert str(classes) == "picture (80x60): dog 0.750, cat 0.250"
    assert classes.to_dict(1)["classes"] == [{"label": 1, "name": "dog", "probability": 0.75}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8"),
        (np.zeros((8, 8), np.uint8), "shape"),
        (np.zeros((8, 8, 4), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros((2, 8, 8, 3), np.uint8), "as a list"),
        (7, "not a int"),
        (("a.jpg", "b.jpg"), "not a tuple"),
        ("no/such.jpg", "not found: no/such.jpg"),
        (Image.new("F", (8, 8)), "mode F"),
    ],
)
def test_bad_sources_are_refused(detector: Any, source: Any, expected: str):
    with pytest.raises(UserError, match=expected):
        detector.predict(source)


def test_unreadable_file_is_named(tmp_path: Path, detector: Any):
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"bad\.jpg"):
        detector.predict([picture(), tmp_path / "bad.jpg"])


def test_empty_list_and_bad_batch_size(detector: Any):
    assert detector.predict([]) == []
    with pytest.raises(UserError, match="batch_size"):
        detector.predict([picture()], batch_size=0)


def test_classifier_refuses_a_threshold(classifier: Any):
    with pytest.raises(UserError, match="detectors"):
        classifier.predict(picture(), score_threshold=0.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "classification"}, "holds a detection model"),
        ({"class_names": ["cat"]}, "1 class names"),
        ({"category_ids": [1]}, "1 category ids"),
        ({"preprocess": {}}, "preprocess.resize=None"),
        ({"preprocess": {"resize": "center_crop", "crop_fraction": 1.5}}, "crop_fraction=1.5"),
    ],
)
def test_checkpoints_that_contradict_themselves_are_refused(tmp_path: Path, changes: Any, expected: str):
    save_detector(tmp_path / "x.ckpt", **changes)
    with pytest.raises(UserError, match=rf"x\.ckpt: .*{expected}"):
        mnvision.load(tmp_path / "x.ckpt")


def test_missing_checkpoint_and_unknown_device_are_refused(folder: Path):
    with pytest.raises(UserError, match="does not exist"):
        mnvision.load(folder / "none.ckpt")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=f"device='{name}'"):
            mnvision.load(folder / "detector.ckpt", device=name)
    assert as_device("auto").type in ("cpu", "cuda")


def test_needs_neither_lightning_nor_hydra_nor_tasks(folder: Path):
    code = """if True:
        import sys, numpy, mnvision
        mnvision.load(sys.argv[1]).predict(numpy.zeros((50, 60, 3), numpy.uint8))
        banned = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "tasks", "tools", "albumentations"}
        sys.exit(str(banned & set(sys.modules)) if banned & set(sys.modules) else 0)
    """
    done = subprocess.run([sys.executable, "-c", code, folder / "detector.ckpt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
