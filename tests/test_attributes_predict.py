"""Attributes of pictures from a checkpoint alone: decisions, files, panels, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.prediction.folders import Options
from mnvision.prediction.results import Shown
from mnvision.prediction.results_faces import ImageAttributes
from mnvision.visualize_faces import draw_attribute_panel
from tests.builders_models import CLASSIFIER, files_below, picture, save_checkpoint
from tests.builders_tools import call, refusal, save_photos
from tools.predict import main

NAMES = ["Smiling", "Young", "Wearing_Hat", "a,b"]
THRESHOLDS = [0.0, 1.1, 0.3, 0.5]
MODEL: dict[str, Any] = {
    **CLASSIFIER,
    "_target_": "mnvision.models.AttributeClassifier",
    "head": {"_target_": "mnvision.heads.attributes.AttributeHead", "num_classes": len(NAMES)},
    "decoder": {"_target_": "mnvision.heads.attributes.AttributeScores"},
}
ENTRY: dict[str, Any] = {"kind": "face_attributes", "class_names": NAMES, "preprocess": {"resize": "stretch"}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "faces.ckpt"
    save_checkpoint(path, MODEL, **ENTRY, calibration={"thresholds": THRESHOLDS, "by": "balanced_accuracy"})
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Any:
    return mnvision.load(checkpoint)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_photos(tmp_path / "in", ["0.png", "1.png", "2.png"], (109, 89))


@pytest.fixture
def run_tool(checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def run(*words: str) -> Path:
        paths = [f"checkpoint={checkpoint}", f"input={photos}", f"output={tmp_path / 'out'}"]
        call(monkeypatch, main, *paths, "device=cpu", *words)
        return tmp_path / "out"

    return run


def test_decisions_are_made_at_the_stored_thresholds(predictor: Any):
    pixels = picture(1, 96, 96)
    result = predictor.predict(pixels)
    logits = predictor.model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(result.probabilities, torch.sigmoid(logits).detach(), atol=1e-5)
    items = list(result)
    assert [item.name for item in items] == NAMES
    assert [item.threshold for item in items] == THRESHOLDS
    assert [item.decision for item in items] == (result.probabilities.astype(float) >= THRESHOLDS).tolist()
    assert items[0].decision
    assert not items[1].decision
    assert result.found() == [item.name for item in items if item.decision]
    ranked = [item.probability for item in result.above()]
    assert ranked == sorted(ranked, reverse=True)
    assert predictor.note == ""


def test_json_has_every_attribute_and_csv_a_row_per_picture(run_tool, predictor: Any, photos: Path, capsys):
    output = run_tool()
    assert files_below(output) == {"predictions.json", *(f"images/{number}.png" for number in range(3))}
    printed = capsys.readouterr().out.splitlines()
    records = json.loads((output / "predictions.json").read_text())
    run_tool("format=csv", "save_images=false")
    with (output / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "width", "height", *NAMES, *(f"{name}_decision" for name in NAMES)]
    together = predictor.predict([photos / f"{number}.png" for number in range(3)])
    for number, (record, row, expected) in enumerate(zip(records, rows, together, strict=True)):
        assert printed[number] == str(expected)
        assert record["attributes"] == [item.to_dict() for item in expected]
        assert (row["path"], row["width"], row["height"]) == (record["path"], "89", "109")
        for item in expected:
            assert float(row[item.name]) == pytest.approx(item.probability, abs=1e-6)
            assert row[f"{item.name}_decision"] == str(int(item.decision))


def result_of(probabilities: list[float], height: int = 109, width: int = 89) -> ImageAttributes:
    names = tuple(f"Attribute_{number}" for number in range(len(probabilities)))
    thresholds = np.full(len(names), 0.5)
    return ImageAttributes(None, (height, width), np.array(probabilities, np.float32), thresholds, names)


def test_a_small_picture_grows_and_gets_a_panel_beside_it():
    pixels = picture(0, 109, 89)
    drawn = result_of([0.9, 0.1, 0.7]).draw(pixels, Shown())
    np.testing.assert_array_equal(drawn[:436, :356], cv2.resize(pixels, (356, 436), interpolation=cv2.INTER_CUBIC))
    panel = drawn[:, 356:]
    assert (panel < 100).any(axis=2).sum() > 300  # letters that can be read
    large = picture(0, 500, 400)
    np.testing.assert_array_equal(result_of([0.9]).draw(large, Shown())[:, :400], large)


def dark_lines(panel: np.ndarray) -> int:
    """Lines with letters of an attribute that is there."""
    rows = (panel < 60).all(axis=2).any(axis=1)
    return int((rows[1:] & ~rows[:-1]).sum())


def test_the_panel_lists_what_is_above_its_threshold_or_all():
    pixels = np.full((400, 300, 3), 128, np.uint8)
    result = result_of([0.9, 0.1, 0.7])
    above, everything = result.draw(pixels, Shown()), result.draw(pixels, Shown(attributes="all"))
    pale = [((part[:, 300:] == 140).all(axis=2)).sum() for part in (above, everything)]
    assert pale[0] < 30 < pale[1]  # a bar of 0.1 alone has that many; letters have a few on their edges
    # Frames of a video must have one size, whatever is found.
    assert result_of([0.1, 0.1, 0.1]).draw(pixels, Shown()).shape == above.shape
    crowded = result_of([0.9] * 50)
    assert crowded.draw(pixels, Shown()).shape[0] == 400
    assert crowded.draw(pixels, Shown(attributes="all")).shape[1] > crowded.draw(pixels, Shown()).shape[1]
    assert dark_lines(above[:, 300:]) < dark_lines(crowded.draw(pixels, Shown())[:, 300:])


@pytest.mark.parametrize("size", [(1, 1), (2, 3000), (3000, 2), (700, 900)])
def test_pictures_of_any_shape_get_a_panel(size: tuple[int, int]):
    drawn = draw_attribute_panel(np.zeros((*size, 3), np.uint8), [("人 $x$\n_y", 1.0, True)], ["人 $x$\n_y"])
    assert drawn.shape[0] >= 360
    assert drawn.shape[1] > size[1]
    assert drawn.dtype == np.uint8


def test_a_video_becomes_a_video_with_a_panel(run_tool, tmp_path: Path):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for number in range(3):
        writer.write(picture(number, 64, 96))
    writer.release()
    output = run_tool(f"input={tmp_path / 'v.avi'}", "format=csv")
    assert files_below(output) == {"predictions.csv", "v.mp4"}
    capture = cv2.VideoCapture(str(output / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_HEIGHT) == 384
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    capture.release()


def test_a_checkpoint_without_thresholds_says_so(tmp_path: Path):
    save_checkpoint(tmp_path / "plain.ckpt", MODEL, **ENTRY)
    predictor = mnvision.load(tmp_path / "plain.ckpt")
    assert "no calibrated thresholds" in predictor.note
    assert predictor.thresholds.tolist() == [0.5] * 4


def test_a_model_of_upright_faces_takes_pictures_without_landmarks_for_upright(tmp_path: Path, caplog):
    save_checkpoint(tmp_path / "upright.ckpt", MODEL, **{**ENTRY, "preprocess": {"resize": "five_points"}})
    with caplog.at_level(logging.WARNING, "mnvision"):
        result = mnvision.load(tmp_path / "upright.ckpt").predict(picture(0, 112, 112))
    assert "no landmarks given" in caplog.text
    assert len(result) == len(NAMES)


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 0.5, float("nan")], "half"])
def test_thresholds_that_do_not_fit_are_refused(thresholds: Any, tmp_path: Path):
    save_checkpoint(tmp_path / "bad.ckpt", MODEL, **ENTRY, calibration={"thresholds": thresholds})
    with pytest.raises(UserError, match=r"bad.ckpt: calibration.thresholds"):
        mnvision.load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["attributes=none"], "attributes=none: choose one of above, all"),
        (["score_threshold=0.5"], "holds a threshold for each attribute"),
        (["crops=true"], "crops=true is for detectors"),
        (["format=coco"], "format=coco is for detectors"),
    ],
)
def test_words_for_others_end_in_one_line(run_tool, tmp_path: Path, capsys, words: list[str], text: str):
    assert text in refusal(capsys, run_tool, *words)
    assert not (tmp_path / "out").exists()


def test_options_know_the_words(tmp_path: Path):
    assert Options(tmp_path, topk=3, attributes="all").shown == Shown(3, "all")
