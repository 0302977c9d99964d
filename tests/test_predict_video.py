"""Predictions on videos: frames, times, the annotated copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from rich.console import Console

import mnvision
from mnvision.errors import UserError
from mnvision.prediction.folders import Options
from mnvision.prediction.video import predict_video
from tests.builders_models import files_below, picture, save_detector


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("video") / "detector.ckpt"
    save_detector(path)
    return mnvision.load(path)


def write_video(path: Path, frames: int = 7, size: tuple[int, int] = (64, 96)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size[::-1])
    for number in range(frames):
        writer.write(picture(number, *size))
    writer.release()


def test_video_is_annotated_frame_by_frame(detector, tmp_path: Path):
    write_video(tmp_path / "street.mp4")
    output = tmp_path / "out"
    options = Options(output, stride=2, batch_size=3, crops=True)
    predict_video(detector, tmp_path / "street.mp4", options, Console(quiet=True))
    records = json.loads((output / "predictions.json").read_text())
    assert [(r["frame"], r["time_s"], r["path"]) for r in records] == [
        (number, number / 10, "street.mp4") for number in (0, 2, 4, 6)
    ]
    assert all(record["size"] == [64, 96] for record in records)
    found = [(r["frame"], i) for r in records for i in range(len(r["detections"]))]
    crops = {Path(name).name for name in files_below(output / "crops")}
    assert crops == {f"street_{frame:06d}_{i}.jpg" for frame, i in found}
    assert crops
    capture = cv2.VideoCapture(str(output / "street.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5.0)
    assert capture.read()[1].shape == (64, 96, 3)


def test_video_records_as_csv_and_coco(detector, tmp_path: Path):
    write_video(tmp_path / "v.mp4", frames=3)
    for file_format in ("csv", "coco"):
        options = Options(tmp_path / file_format, file_format, save_images=False)
        summary = predict_video(detector, tmp_path / "v.mp4", options, Console(quiet=True))
        assert summary.done == 3
    header, *rows = (tmp_path / "csv" / "predictions.csv").read_text().splitlines()
    assert header.startswith("path,frame,time_s,width,height,label")
    assert {row.split(",")[1] for row in rows} <= {"0", "1", "2"}
    images = json.loads((tmp_path / "coco" / "images.json").read_text())["images"]
    assert [(image["id"], image["frame"]) for image in images] == [(0, 0), (1, 1), (2, 2)]


def test_video_that_is_damaged_or_would_be_replaced_is_refused(detector, tmp_path: Path):
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    quiet = Console(quiet=True)
    with pytest.raises(UserError, match=r"cannot open the video .*bad\.mp4"):
        predict_video(detector, tmp_path / "bad.mp4", Options(tmp_path / "out"), quiet)
    write_video(tmp_path / "v.mp4")
    before = (tmp_path / "v.mp4").read_bytes()
    with pytest.raises(UserError, match="would replace"):
        predict_video(detector, tmp_path / "v.mp4", Options(tmp_path), quiet)
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert not (tmp_path / "out").exists()
