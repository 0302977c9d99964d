"""Coordinates of photos from a checkpoint alone: results, files, maps, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.geo.cells import cell_ids, centres, vertices
from mnvision.geo.distance import great_circle_km
from mnvision.geo.partition import Partition, PartitionSettings, partition_photos
from mnvision.prediction.cell_table import CellTable
from mnvision.prediction.results import Shown
from mnvision.prediction.results_geo import ImageLocation, position_text
from mnvision.world_map import RegionView, WorldView, borders, on_land, outlines
from tests.builders_models import CLASSIFIER, files_below, picture, save_checkpoint
from tests.builders_tools import call, refusal, save_photos
from tools.predict import main

# Around Rio, Paris, London, Tokyo and Fiji; the last number is the cell's level.
PLACES = [(-22.9, -43.2, 4), (48.8, 2.3, 5), (51.5, -0.1, 5), (35.7, 139.7, 6), (-17.5, 177.0, 3)]


def small_partition() -> Partition:
    ids = np.sort(np.concatenate([cell_ids([latitude], [longitude], level) for latitude, longitude, level in PLACES]))
    return Partition(ids, np.full(len(ids), 7), np.round(centres(ids), 5), PartitionSettings(9, 1), 35, 0, "by hand")


PARTITION = small_partition()
NAMES = PARTITION.names
MODEL: dict[str, Any] = {
    **CLASSIFIER,
    "_target_": "mnvision.models.Geolocator",
    "head": {"_target_": "mnvision.heads.classifier.ClassifierHead", "num_classes": len(PLACES)},
    "decoder": {"_target_": "mnvision.heads.cells.CellScores"},
}
ENTRY: dict[str, Any] = {"kind": "geolocation", "class_names": NAMES, "preprocess": {"resize": "stretch"}}
CELLS: dict[str, Any] = {"partition": PARTITION.to_dict()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "where.ckpt"
    save_checkpoint(path, MODEL, **ENTRY, calibration=CELLS)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Any:
    return mnvision.load(checkpoint)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_photos(tmp_path / "in", ["0.png", "1.png", "2.png"], (109, 189))


@pytest.fixture
def run_tool(checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def run(*words: str) -> Path:
        paths = [f"checkpoint={checkpoint}", f"input={photos}", f"output={tmp_path / 'out'}"]
        call(monkeypatch, main, *paths, "device=cpu", *words)
        return tmp_path / "out"

    return run


def test_the_answer_is_the_position_of_the_most_probable_cell(predictor: Any):
    pixels = picture(1, 96, 96)
    result = predictor.predict(pixels)
    logits = predictor.model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(result.probabilities, torch.softmax(logits.detach(), 0), atol=1e-5)
    best = int(logits.argmax())
    assert (result.latitude, result.longitude) == tuple(PARTITION.positions[best])
    assert result.probability == pytest.approx(float(torch.softmax(logits.detach(), 0)[best]), abs=1e-5)
    top = result.top(9)
    assert len(top) == len(NAMES)
    assert [place.probability for place in top] == sorted(result.probabilities.tolist(), reverse=True)
    assert [place.name for place in top] == [NAMES[place.label] for place in top]
    assert result.found() == [f"cell {NAMES[best]}"]


def test_the_radius_reaches_every_place_of_the_cell(predictor: Any):
    table = predictor.cells
    corners = vertices(PARTITION.cells)
    rng = np.random.default_rng(0)
    for k, (latitude, longitude) in enumerate(PARTITION.positions):
        farthest = max(float(great_circle_km(latitude, longitude, *corner)) for corner in corners[k])
        assert table.radii_km[k] == pytest.approx(farthest)
        north, east = rng.uniform(-1, 1, (2, 4000)) * farthest / 100  # a degree is 111 km
        inside = PARTITION.labels(np.clip(latitude + north, -90, 90), (longitude + east + 180) % 360 - 180) == k
        reached = great_circle_km(latitude, longitude, latitude + north, longitude + east)[inside]
        assert len(reached) > 100
        assert reached.max() <= farthest


def test_files_have_an_answer_per_photo(run_tool, predictor: Any, photos: Path, capsys):
    output = run_tool("topk=2")
    assert files_below(output) == {"predictions.json", *(f"images/{number}.png" for number in range(3))}
    printed = capsys.readouterr().out.splitlines()
    records = json.loads((output / "predictions.json").read_text())
    run_tool("format=csv", "save_images=false", "topk=2")
    rows = list(csv.DictReader(io.StringIO((output / "predictions.csv").read_text())))
    for number, record in enumerate(records):
        expected = predictor.predict(photos / f"{number}.png")
        assert printed[number] == str(expected)
        assert f"({expected.probability:.3f})" in printed[number]
        assert record["latitude"] == expected.latitude
        assert record["longitude"] == expected.longitude
        assert len(record["cells"]) == 2
        mine = [row for row in rows if row["path"] == f"{number}.png"]
        assert [row["rank"] for row in mine] == ["1", "2"]
        for row, cell in zip(mine, record["cells"], strict=True):
            assert row["cell"] == cell["name"]
            assert float(row["latitude"]) == cell["latitude"]
            assert float(row["radius_km"]) == cell["radius_km"]
            assert float(row["probability"]) == cell["probability"]
    assert "3 pictures in" in printed[3]


def test_hierarchical_answers_come_first_although_less_probable():
    table = CellTable(PARTITION)
    probabilities = np.array([0.1, 0.2, 0.3, 0.4, 0.0], np.float32)
    result = ImageLocation(None, (10, 10), probabilities, 1, table)
    assert [place.label for place in result.top(3)] == [1, 3, 2]
    assert [place.label for place in result.top(1)] == [1]
    assert result.to_dict(2)["probability"] == pytest.approx(0.2)


def test_coordinates_are_written_as_people_do():
    assert position_text(48.8566, 2.3522) == "48.86 N 2.35 E"
    assert position_text(-33.87, -151.2) == "33.87 S 151.20 W"


def panel_of(cell: int, partition: Partition = PARTITION, size: tuple[int, int] = (500, 400)) -> np.ndarray:
    probabilities = np.full(len(partition), 1e-6, np.float32)
    probabilities[cell] = 1.0
    pixels = np.full((*size, 3), 128, np.uint8)
    return ImageLocation(None, size, probabilities, cell, CellTable(partition)).draw(pixels, Shown())


def dark_red(part: np.ndarray) -> np.ndarray:
    red, green, blue = (part[..., i].astype(int) for i in range(3))
    return (red > 120) & (green < 70) & (blue < 90) & (red - blue > 60)


def test_the_photo_stays_and_all_frames_of_a_video_get_one_size():
    panel = panel_of(0)
    assert (panel[:500, :400] == 128).all()
    assert panel_of(1).shape == panel.shape
    assert panel_of(0, size=(100, 100)).shape[1] > 4 * 100  # a small photo grows
    for size in [(1, 1), (2, 3000), (3000, 2)]:
        assert panel_of(0, size=size).dtype == np.uint8


def test_the_map_colours_the_cell_where_it_lies():
    """Each cell is painted around its own place on the map of the world, which begins at the date line."""
    for cell, (latitude, longitude) in enumerate(PARTITION.positions):
        rows, columns = np.nonzero(dark_red(panel_of(cell)[:300, 410:890]))
        assert len(rows)
        x = np.median(columns) / 480 * 360 - 180
        assert abs(x - longitude) < 8
        ys = [float(np.median(np.nonzero(dark_red(panel_of(k)[:300, 410:890]))[0])) for k in (cell, 0)]
        expected = (PARTITION.positions[0, 0] - latitude) * 240 / 180
        assert abs((ys[0] - ys[1]) - expected) < 8


def test_a_cell_at_the_date_line_is_whole_in_its_regions_map():
    rng = np.random.default_rng(0)
    around = (rng.uniform(-20, -15, 500), (rng.uniform(175, 185, 500) + 180) % 360 - 180)
    partition = partition_photos([around], max_photos=300, min_photos=50)
    table = CellTable(partition)
    view = RegionView(300, 200, -17.0, 180.0, 900.0)
    labels = table.labels_at(*view.places())
    west, east = labels[:, :149], labels[:, 151:]
    assert (west >= 0).mean() > 0.3
    assert (east >= 0).mean() > 0.3
    assert {*np.unique(west)} != {*np.unique(east)}  # two sides of a cell border, no gap between them
    assert (labels[60:140, 148:152] >= 0).all()


@pytest.mark.parametrize(("latitude", "longitude"), [(48.0, 2.0), (-17.0, 180.0), (90.0, 0.0), (-89.0, -120.0)])
def test_places_and_pixels_of_a_region_are_inverse_and_true_to_distance(latitude: float, longitude: float):
    view = RegionView(60, 40, latitude, longitude, 2000.0)
    latitudes, longitudes = view.places()
    points = view.pixels(latitudes.ravel(), longitudes.ravel()).reshape(40, 60, 2)
    np.testing.assert_allclose(points[..., 0], np.broadcast_to(np.arange(60) + 0.5, (40, 60)), atol=1e-6)
    np.testing.assert_allclose(points[..., 1], np.broadcast_to(np.arange(40)[:, None] + 0.5, (40, 60)), atol=1e-6)
    km = great_circle_km(latitude, longitude, latitudes, longitudes)
    drawn = np.hypot(points[..., 0] - 30, points[..., 1] - 20) * view.km_per_pixel
    np.testing.assert_allclose(km, drawn, atol=1e-3)
    assert view.km_per_pixel == 100


def test_the_world_is_cut_opposite_to_its_middle():
    view = WorldView(360, longitude=180.0)
    latitudes, longitudes = view.places()
    assert latitudes[[0, -1], 0].tolist() == [89.5, -89.5]
    assert longitudes[0, [0, 179, 180, 359]].tolist() == [0.5, 179.5, -179.5, -0.5]
    np.testing.assert_allclose(view.pixels([0.0, 90.0], [-179.0, 10.0]), [[181.0, 90.0], [10.0, 0.0]])
    line = WorldView(360).runs([0.0, 0.0, 0.0, 0.0], [178.0, 179.0, -179.0, -178.0])
    assert [len(part) for part in line] == [2, 2]


def test_land_is_land():
    cities = {"Madrid": (40.4, -3.7), "Nairobi": (-1.3, 36.8), "Kansas": (38.5, -98.0), "Alice Springs": (-23.7, 133.9)}
    seas = {"Atlantic": (30.0, -40.0), "Pacific": (0.0, -150.0), "Indian Ocean": (-20.0, 80.0), "date line": (0, 180.0)}
    assert on_land(*zip(*cities.values())).all()
    assert not on_land(*zip(*seas.values())).any()
    rows = np.arange(-90, 90, 0.5) + 0.25
    share = (on_land(rows[:, None], np.arange(-180, 180, 0.5)[None]).mean(axis=1) * np.cos(np.radians(rows))).sum()
    assert 0.27 < share / np.cos(np.radians(rows)).sum() < 0.31  # 29.2 % of the earth
    assert len(outlines()) > 200
    assert all(np.abs(np.diff(line, axis=0)).max() <= 1 + 1e-9 for line in borders())


def test_a_checkpoint_of_planets_size_stays_small_and_loads(tmp_path: Path):
    """26,263 cells as many as PlaNet's: what they add to a file."""
    rng = np.random.default_rng(0)
    count = 26_263
    clusters = rng.uniform([-55, -180], [70, 180], (3000, 2))
    spots = clusters[rng.integers(0, 3000, 400_000)] + rng.normal(0, 0.6, (400_000, 2))
    places = (np.clip(spots[:, 0], -90, 90), (spots[:, 1] + 180) % 360 - 180)
    partition = partition_photos([places], max_photos=18, min_photos=2)
    assert len(partition) > count
    plain = partition.to_dict()
    torch.save({"calibration": {"partition": plain}, "class_names": partition.names}, tmp_path / "cells.ckpt")
    size = (tmp_path / "cells.ckpt").stat().st_size * count / len(partition)
    assert size < 2e6
    stored = torch.load(tmp_path / "cells.ckpt", weights_only=True)["calibration"]["partition"]
    assert Partition.from_dict(stored).fingerprint == partition.fingerprint


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"calibration": {}}, "calibration.partition is missing"),
        ({"calibration": {"partition": "cells"}}, "is a str, not a partition"),
        ({"calibration": {"partition": {"cells": []}}}, "this is no partition"),
        ({"class_names": [*NAMES[1:], NAMES[0]]}, "cells that are not the model's 5"),
        ({"kind": "classification"}, "holds a geolocation model"),
    ],
)
def test_checkpoints_without_right_cells_are_refused(changes: dict[str, Any], text: str, tmp_path: Path):
    save_checkpoint(tmp_path / "bad.ckpt", MODEL, **(ENTRY | {"calibration": CELLS} | changes))
    with pytest.raises(UserError, match=rf"bad.ckpt: .*{text}"):
        mnvision.load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["score_threshold=0.5"], "score_threshold is for detectors; this is a geolocation checkpoint"),
        (["crops=true"], "crops=true is for detectors"),
        (["format=coco"], "format=coco is for detectors"),
        (["topk=0"], "topk must be"),
    ],
)
def test_words_for_others_end_in_one_line(run_tool, tmp_path: Path, capsys, words: list[str], text: str):
    assert text in refusal(capsys, run_tool, *words)
    assert not (tmp_path / "out").exists()


def test_a_video_becomes_a_video_with_maps(run_tool, tmp_path: Path):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for number in range(2):
        writer.write(picture(number, 64, 96))
    writer.release()
    output = run_tool(f"input={tmp_path / 'v.avi'}", "format=csv")
    assert files_below(output) == {"predictions.csv", "v.mp4"}


def test_real_photos_get_coordinates(shared_data: Path, predictor: Any):
    files = sorted((shared_data / "geo" / "images").iterdir())[:4]
    for result in predictor.predict(files):
        assert -90 <= result.latitude <= 90
        assert result.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
        assert str(result).startswith(str(result.path))
