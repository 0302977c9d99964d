"""tools/predict.py and what is behind it: every file that it writes, and every input that it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

import mnvision
from mnvision.errors import UserError
from mnvision.prediction.folders import Options, predict_pictures
from mnvision.prediction.pictures import folder_name, write_picture
from tests.builders_models import (
    CATEGORY_IDS,
    CLASS_NAMES,
    files_below,
    picture,
    save_classifier,
    save_detector,
)
from tests.builders_tools import call, refusal, save_photos
from tools.cli import CONF
from tools.predict import literal_paths, main

NAMES = ["a.png", "b.jpg", "sub/a.png", "sub/a.jpg"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_detector(folder / "detector.ckpt")
    save_classifier(folder / "classifier.ckpt")
    return folder


@pytest.fixture(scope="module")
def detector(checkpoints: Path) -> Any:
    return mnvision.load(checkpoints / "detector.ckpt")


@pytest.fixture(scope="module")
def classifier(checkpoints: Path) -> Any:
    return mnvision.load(checkpoints / "classifier.ckpt")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_photos(tmp_path / "in", NAMES)


@pytest.fixture
def run_tool(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(kind: str, source: Path | str, output: Path, *words: str) -> None:
        paths = [f"checkpoint={checkpoints / kind}.ckpt", f"input={source}", f"output={output}"]
        call(monkeypatch, main, *paths, "device=cpu", *words)

    return run


def predict(predictor: Any, source: Any, output: Path, **options: Any) -> Any:
    return predict_pictures(predictor, source, Options(output, **options), Console(quiet=True))


def test_folder_becomes_json_and_annotated_copies(run_tool, detector, photos: Path, tmp_path: Path, capsys):
    before = {name: (photos / name).read_bytes() for name in NAMES}
    output = tmp_path / "out"
    run_tool("detector", photos, output, "score_threshold=0.2", "batch_size=3")
    assert files_below(output) == {"predictions.json", *(f"images/{name}" for name in NAMES)}
    records = json.loads((output / "predictions.json").read_text())
    assert [record["path"] for record in records] == sorted(NAMES)
    for record in records:
        expected = detector.predict(photos / record["path"], score_threshold=0.2)
        assert record["size"] == list(expected.size)
        assert [found["name"] for found in record["detections"]] == [found.name for found in expected]
        for found, wanted in zip(record["detections"], expected):
            np.testing.assert_allclose(found["box"], wanted.box, atol=0.02)
        image = cv2.imread(str(output / "images" / record["path"]))
        assert image.shape[:2] == expected.size
        assert expected.detections
        assert np.abs(image.astype(int) - cv2.imread(str(photos / record["path"]))).max() > 50
    assert {name: (photos / name).read_bytes() for name in NAMES} == before
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"results: {output}/ (predictions.json, images/)"


def test_csv_has_a_row_per_detection(detector, photos: Path, tmp_path: Path):
    predict(detector, photos / "b.jpg", tmp_path / "out", file_format="csv", save_images=False)
    assert files_below(tmp_path / "out") == {"predictions.csv"}
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = detector.predict(photos / "b.jpg")
    assert len(rows) == len(expected) > 0
    for row, found in zip(rows, expected):
        assert (row["path"], row["width"], row["height"]) == ("b.jpg", "150", "110")
        assert (row["name"], int(row["label"])) == (found.name, found.label)
        np.testing.assert_allclose([float(row[edge]) for edge in ("x1", "y1", "x2", "y2")], found.box, atol=0.01)


def test_coco_results_load_in_pycocotools(detector, photos: Path, tmp_path: Path, capsys):
    (photos / "a_broken.jpg").write_text("no picture")
    output = tmp_path / "out"
    summary = predict(detector, photos, output, file_format="coco", save_images=False)
    assert summary.skipped == 1
    images = json.loads((output / "images.json").read_text())
    assert [image["id"] for image in images["images"]] == [0, 2, 3, 4]  # 1 could not be read
    truth = COCO(str(output / "images.json"))
    results = truth.loadRes(str(output / "detections.json"))
    capsys.readouterr()
    for image in images["images"]:
        expected = detector.predict(photos / image["file_name"])
        assert (image["height"], image["width"]) == expected.size
        found = results.loadAnns(results.getAnnIds(imgIds=[image["id"]]))
        assert [a["category_id"] for a in found] == [CATEGORY_IDS[d.label] for d in expected]
        assert [truth.cats[a["category_id"]]["name"] for a in found] == [d.name for d in expected]
        for annotation, wanted in zip(found, expected):
            x1, y1, x2, y2 = wanted.box
            np.testing.assert_allclose(annotation["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=0.01)


def test_crops_are_the_boxes_and_never_collide(detector, photos: Path, tmp_path: Path):
    output = tmp_path / "out"
    predict(detector, photos, output, crops=True, save_images=False)
    expected = set()
    for name in NAMES:
        stem = name if name.startswith("sub") else name[:-4]  # sub/a.png and sub/a.jpg share a stem
        for number, found in enumerate(detector.predict(photos / name)):
            expected.add(f"crops/{found.name.replace('/', '_')}/{stem}_{number}.jpg")
            written = cv2.imread(str(output / "crops" / folder_name(found.name) / f"{stem}_{number}.jpg"))
            width, height = found.box[2] - found.box[0], found.box[3] - found.box[1]
            assert abs(written.shape[1] - width) <= 2
            assert abs(written.shape[0] - height) <= 2
    assert expected
    assert files_below(output) == {"predictions.json", *expected}


def test_classifier_prints_and_writes_the_best_classes(run_tool, classifier, photos: Path, tmp_path: Path, capsys):
    run_tool("classifier", photos / "*.png", tmp_path / "out", "topk=2", "format=csv")
    expected = classifier.predict(photos / "a.png")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(expected)
    assert all(name in printed[0] for name in CLASS_NAMES)
    rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    best = expected.top(2)
    assert rows[1:] == [
        f"a.png,150,100,{rank},{e.label},{e.name},{round(e.probability, 6)}" for rank, e in enumerate(best, 1)
    ]
    assert cv2.imread(str(tmp_path / "out" / "images" / "a.png")).shape == (100, 150, 3)


def test_video_goes_to_a_video(run_tool, tmp_path: Path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for number in range(3):
        writer.write(picture(number, 64, 96))
    writer.release()
    run_tool("detector", tmp_path / "v.avi", tmp_path / "out", "stride=2", "format=csv")
    assert files_below(tmp_path / "out") == {"predictions.csv", "v.mp4"}
    assert capsys.readouterr().out.startswith("2 frames in ")


def test_unreadable_pictures_are_named_counted_and_skipped(run_tool, photos: Path, tmp_path: Path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:800])
    run_tool("detector", photos, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "skipped: " in printed
    assert "broken.jpg" in printed
    assert "1 unreadable and skipped" in printed
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == len(NAMES)


def test_nothing_readable_is_an_error_and_leaves_nothing(run_tool, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.jpg").write_text("no picture")
    with pytest.raises(SystemExit) as left:
        run_tool("detector", tmp_path / "in", tmp_path / "out")
    assert left.value.code == 2
    assert "none of 1 pictures could be read" in capsys.readouterr().err
    assert files_below(tmp_path / "out") == set()


def test_results_stay_with_their_pictures_beyond_what_is_read_ahead(detector, tmp_path: Path):
    for number in range(12):
        write_picture(tmp_path / "in" / f"{number:02d}.png", picture(number, 40 + number, 50))
    (tmp_path / "in" / "05.png").write_text("no picture")
    predict(detector, tmp_path / "in", tmp_path / "out", batch_size=1)
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    readable = [number for number in range(12) if number != 5]
    assert [r["path"] for r in records] == [f"{number:02d}.png" for number in readable]
    assert [r["size"] for r in records] == [[40 + number, 50] for number in readable]
    for number in readable:
        assert cv2.imread(str(tmp_path / "out" / "images" / f"{number:02d}.png")).shape[0] == 40 + number


def test_other_formats_keep_their_name_and_become_png(detector, tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "a.gif")
    predict(detector, tmp_path / "a.gif", tmp_path / "out")
    assert cv2.imread(str(tmp_path / "out" / "images" / "a.gif.png")).shape == (120, 200, 3)


def test_turned_photos_are_annotated_upright(detector, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    predict(detector, tmp_path / "a.jpg", tmp_path / "out")
    assert cv2.imread(str(tmp_path / "out" / "images" / "a.jpg")).shape == (200, 120, 3)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())[0]["size"] == [200, 120]


def test_results_of_an_earlier_run_are_no_input(detector, photos: Path):
    for _ in range(2):
        summary = predict(detector, photos, photos / "out", crops=True)
        assert summary.done == len(NAMES)
    with pytest.raises(UserError, match="where the results go"):
        predict(detector, photos / "out" / "images", photos / "out")
    with pytest.raises(UserError, match="where the results go"):
        predict(detector, photos / "out" / "images" / "a.png", photos / "out")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["format=xml"], "format=xml: choose one of json, csv, coco"),
        (["score_threshold=2"], "score_threshold=2"),
        (["score_threshold=high"], "score_threshold=high"),
        (["batch_size=0"], "batch_size must be a whole number >= 1"),
        (["topk=0"], "topk must be"),
        (["crops=maybe"], "give true or false"),
        (["device=gpu"], "device='gpu'"),
        (["treshold=0.5"], "there is no config key 'treshold'"),
        (["checkpoint=none.ckpt"], "none.ckpt does not exist"),
        (["input=null"], "no input given"),
        (["output=null"], "no output given"),
    ],
)
def test_bad_words_end_in_one_line(run_tool, photos: Path, tmp_path: Path, capsys, words, expected):
    assert expected in refusal(capsys, run_tool, "detector", photos, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"crops": True}, {"file_format": "coco"}, {"score_threshold": 0.5}])
def test_classifier_refuses_what_only_detectors_have(classifier, photos: Path, tmp_path: Path, options):
    with pytest.raises(UserError, match="detectors"):
        predict(classifier, photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_refused(detector, photos: Path, tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="cannot write"):
        predict(detector, photos, tmp_path / "out")


def test_paths_are_taken_literally(run_tool, photos: Path, tmp_path: Path):
    odd = tmp_path / "x,y [1] {2} (a=b) it's"
    photos.rename(odd)
    run_tool("detector", odd, tmp_path / "o,u t", "save_images=false")
    assert files_below(tmp_path / "o,u t") == {"predictions.json"}
    assert literal_paths(["input='a b'", "topk=3", "output=null"]) == ["input='a b'", "topk=3", "output=null"]


def test_help_fits_a_screen():
    lines = (CONF / "hydra" / "help" / "predict.yaml").read_text().split("template: |-\n")[1].splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 2 + 110
