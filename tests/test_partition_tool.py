"""tools/partition.py, and its map."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import s2geometry as s2
from matplotlib.path import Path as Outline

from mnvision.figures_partition import outlines, save_partition_map
from mnvision.geo.cells import cell_ids, children
from mnvision.geo.partition import Partition, partition_photos
from tests.builders_models import files_below
from tools.partition import literal_inputs, main


@pytest.fixture
def run_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*words: str) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["partition.py", *words])
        main()

    return run


def places(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    towns = np.column_stack([rng.uniform(-60, 70, 30), rng.uniform(-180, 180, 30)])
    points = towns[rng.integers(0, 30, count)] + rng.normal(0, 1, (count, 2))
    return np.round(np.column_stack([points[:, 0], (points[:, 1] + 180) % 360 - 180]), 6)


def table(points: np.ndarray, header: str = "latitude,longitude") -> str:
    return header + "\n" + "".join(f"{latitude},{longitude}\n" for latitude, longitude in points.tolist())


def test_tables_become_a_partition_and_a_map(run_tool, tmp_path: Path, capsys):
    points = places(2000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(table(points[:1500]) + "0,0\n91,91\nx,1\n")
    (tmp_path / "in" / "b.csv.gz").write_bytes(gzip.compress(table(points[1500:]).encode()))
    run_tool("input=in/*.csv*", "output=out/cells.npz", "max_photos=100", "min_photos=10")
    assert files_below(tmp_path / "out") == {"cells.npz", "cells.png"}
    found = Partition.load(tmp_path / "out" / "cells.npz")
    expected = partition_photos([(points[:, 0], points[:, 1])], 100, 10)
    assert found.fingerprint == expected.fingerprint
    assert found.source == "a.csv, b.csv.gz"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2,003 rows of 2 tables: 2,000 places, 3 refused"
    assert (
        "1 rows at latitude 0, longitude 0, which cameras write where they know no place (a.csv line 1502: 0, 0)"
        in (lines)
    )
    assert "1 rows with a latitude beyond 90 degrees (a.csv line 1503: 91, 91)" in lines
    assert "1 rows without two numbers (a.csv line 1504: x, 1)" in lines
    by_level = np.bincount([s2.S2CellId(cell).level() for cell in found.cells.tolist()])
    listed = ", ".join(f"{level}: {count}" for level, count in enumerate(by_level.tolist()) if count)
    assert f"{len(found)} cells (level: cells) {listed}" in lines
    dropped = 2000 - int(found.counts.sum())
    assert f"dropped: {dropped} photos ({dropped / 2000:.1%}) in cells with fewer than 10" in lines
    assert lines[-1] == "partition: out/cells.npz"
    picture = cv2.imread(str(tmp_path / "out" / "cells.png"))
    assert picture.shape[1] > 1500
    assert picture.std() > 10


def test_lists_columns_and_levels(run_tool, tmp_path: Path, capsys):
    points = places(300)
    (tmp_path / "a b.csv").write_text(table(points[:200], "gps y,x"))
    (tmp_path / "c.csv").write_text(table(points[200:], "gps y,x"))
    words = ["input=[a b.csv,c.csv]", "columns.latitude='gps y'", "columns.longitude=x", "map=false"]
    run_tool(*words, "max_photos=5", "min_photos=1", "min_level=3", "max_level=4")
    assert files_below(tmp_path) == {"a b.csv", "c.csv", "cells.npz"}
    found = Partition.load(tmp_path / "cells.npz")
    expected = partition_photos([(points[:, 0], points[:, 1])], 5, 1, 3, 4)
    assert found.fingerprint == expected.fingerprint
    full = (expected.counts > 5).sum()
    assert full
    assert f"{full} cells hold more than 5 photos: max_level=4 is reached" in capsys.readouterr().out


def test_columns_of_a_file_without_header_are_numbered(run_tool, tmp_path: Path):
    points = places(300)
    (tmp_path / "t.tsv").write_text("".join(f"id\t{x}\t\t{y}\n" for y, x in points.tolist()))
    run_tool("input=t.tsv", "columns={latitude: 4, longitude: 2}", "max_photos=50", "min_photos=1", "map=false")
    expected = partition_photos([(points[:, 0], points[:, 1])], 50, 1)
    assert Partition.load(tmp_path / "cells.npz").fingerprint == expected.fingerprint


def test_paths_are_taken_literally_and_lists_are_not():
    words = ["input=a, b.csv", "input=[a.csv,b.csv]", "input=[0-9]*.csv", "output=o=1.npz", "max_photos=3"]
    assert literal_inputs(words) == [
        "input='a, b.csv'",
        "input=[a.csv,b.csv]",
        "input='[0-9]*.csv'",
        "output='o=1.npz'",
        "max_photos=3",
    ]


GOOD = "lat,lon\n" + "1,2\n" * 60


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, [], "table of coordinates not found: t.csv"),
        ("", [], "table of coordinates is empty: t.csv"),
        ("lat,lon\n", [], "no rows below the header of t.csv"),
        ("lat,lon\n0,0\nx,y\n", [], "no row holds a place: 1 rows without two numbers (t.csv line 3: x, y); 1 rows at"),
        ("lat,lon\n139,35\n151,-33\n2,48\n", [], "2 of 3 rows have a latitude beyond 90 degrees (t.csv line 2"),
        ("a,b\n1,2\n", [], "no column for the latitude"),
        (GOOD, ["columns.latitude=lati"], "has no column 'lati'; did you mean lat?"),
        (GOOD, ["columns.lat=lat"], "no config key 'columns.lat'; did you mean columns.latitude"),
        (GOOD, ["min_photos=100"], "no cell holds min_photos=100 of the 60 photos"),
        (GOOD, ["max_photos=10"], "max_photos=10 is below min_photos=50"),
        (GOOD, ["max_photos=many"], "max_photos='many': give a whole number"),
        (GOOD, ["max_level=31"], "give levels 0 to 30"),
        (GOOD, ["output=cells.json"], "output=cells.json: a partition is written as .npz"),
        (GOOD, ["output=t.csv/cells.npz"], "cannot write t.csv/cells.npz"),
        (GOOD, ["input=null"], "no input given"),
        (GOOD, ["columns.names=lat"], "columns.names=lat: give a list"),
    ],
)
def test_wrong_input_ends_in_one_line(run_tool, tmp_path: Path, capsys, content, words: list[str], message: str):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    with pytest.raises(SystemExit) as left:
        run_tool("input=t.csv", *words)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert files_below(tmp_path) <= {"t.csv"}


def area(outline: np.ndarray) -> float:
    """Square degrees on the map, positive counterclockwise."""
    y, x = outline.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@pytest.mark.parametrize("level", [0, 1, 4])
def test_outlines_cover_the_map_once(level: int):
    cells = np.array([s2.S2CellId.FromFacePosLevel(face, 0, 0).id() for face in range(6)], np.uint64)
    for _ in range(level):
        cells = children(cells).ravel()
    found = list(outlines(cells))
    assert {cell for cell, _ in found} == set(range(len(cells)))
    first = dict(reversed(found))
    assert all(area(outline) > 0 for outline in first.values())
    assert sum(map(area, first.values())) == pytest.approx(360 * 180, rel=1e-3)
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-89, 89, 100), rng.uniform(-179.9, 179.9, 100)])
    points[:40, 1] = np.where(np.arange(40) % 2, 179.9, -179.9)
    owners = cell_ids(points[:, 0], points[:, 1], level)
    inside = np.zeros((len(cells), len(points)), bool)
    for cell, outline in found:
        inside[cell] |= Outline(outline).contains_points(points)
    agree = (inside == (cells[:, None] == owners)).all(axis=0)
    # Straight pieces stand for curves: a point beside an edge may lie on the wrong side of it.
    assert np.mean(agree) > 0.95


def test_a_map_of_one_photo(tmp_path: Path):
    save_partition_map(partition_photos([(np.array([90.0]), np.array([0.0]))], 1, 1), tmp_path / "one.png")
    assert cv2.imread(str(tmp_path / "one.png")) is not None
