"""Tables of coordinates: what is read, what is refused and counted, and where a message points."""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.data.index import FindingCounter
from mnvision.errors import UserError
from mnvision.geo.coordinate_columns import CoordinateColumns
from mnvision.geo.coordinate_files import PlaceChunk, coordinate_paths, read_places
from mnvision.geo.coordinates import REASONS

ROWS = [("a.jpg", "48.85", "2.35"), ("b, c.jpg", "-33.9", "151.2"), ('d "e".jpg', "64.1", "-21.9")]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, columns: CoordinateColumns | None = None, **options: bool | int) -> list[PlaceChunk]:
    return list(read_places(path, columns, **options))


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_any_delimiter_with_quotes_and_gzip(delimiter: str, end: str, packed: bool, tmp_path: Path):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([("Path", "LAT", " Lon "), *ROWS])
    data = b"\xef\xbb\xbf" + text.getvalue().encode()
    path = write(tmp_path / "photos", gzip.compress(data) if packed else data)
    (chunk,) = read(path, with_images=True)
    assert chunk.images == [row[0] for row in ROWS]
    assert chunk.latitudes.tolist() == [float(row[1]) for row in ROWS]
    assert chunk.longitudes.tolist() == [float(row[2]) for row in ROWS]
    assert chunk.lines.tolist() == [2, 3, 4]
    assert read(path)[0].images is None


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=40), st.integers(1, 15))
@settings(deadline=None, max_examples=40)
def test_chunks_hold_every_row_once(tmp_path_factory, places: list[tuple[float, float]], size: int):
    places = [place for place in places if place != (0.0, 0.0)] or [(1.0, 1.0)]
    text = "lat,lon\n" + "".join(f"{latitude!r},{longitude!r}\n" for latitude, longitude in places)
    path = write(tmp_path_factory.mktemp("table") / "t.csv", text)
    chunks = read(path, rows_per_chunk=size)
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    found = np.concatenate([np.stack([chunk.latitudes, chunk.longitudes], 1) for chunk in chunks])
    assert found.tolist() == [list(place) for place in places]
    assert np.concatenate([chunk.lines for chunk in chunks]).tolist() == list(range(2, len(places) + 2))


BAD = """lat,lon,title
1,2,good

x,2,a
3,,b
95,10,c
100,20,d
99,99,e
5,181,f
0,0.0,g
6,7
6,7,h,i
8,9,"two
lines"
nan,1,j
10,11,good,,
"""


@pytest.mark.parametrize("size", [1, 2, 100])
def test_refused_rows_are_counted_by_reason_and_named(tmp_path: Path, size: int):
    found = FindingCounter()
    path = write(tmp_path / "bad.csv", BAD)
    chunks = list(read_places(path, found=found, rows_per_chunk=size))
    assert [line for chunk in chunks for line in chunk.lines.tolist()] == [2, 14, 16]
    seen = {what: (finding.count, finding.examples) for what, finding in found.findings().items()}
    assert seen == {
        "rows with another number of fields than there are columns": (
            2,
            ("bad.csv line 11: 2 fields", "bad.csv line 12: 4 fields"),
        ),
        f"rows {REASONS['not_a_number']}": (
            3,
            ("bad.csv line 4: x, 2", "bad.csv line 5: 3, (empty)", "bad.csv line 15: nan, 1"),
        ),
        f"rows {REASONS['swapped']}": (2, ("bad.csv line 6: 95, 10", "bad.csv line 7: 100, 20")),
        f"rows {REASONS['latitude_out_of_range']}": (1, ("bad.csv line 8: 99, 99",)),
        f"rows {REASONS['longitude_out_of_range']}": (1, ("bad.csv line 9: 5, 181",)),
        f"rows {REASONS['null_island']}": (1, ("bad.csv line 10: 0, 0.0",)),
    }


def test_columns_can_be_named_and_a_header_may_be_missing(tmp_path: Path):
    path = write(tmp_path / "t.tsv", "7\t2.5\t1.5\n8\t4.5\t3.5\n")
    (chunk,) = read(path, CoordinateColumns(names=["id", "lon", "lat"]))
    assert chunk.latitudes.tolist() == [1.5, 3.5]
    assert chunk.lines.tolist() == [1, 2]
    (chunk,) = read(path, CoordinateColumns(3, 2, 1), with_images=True)
    assert (chunk.latitudes.tolist(), chunk.longitudes.tolist(), chunk.images) == ([1.5, 3.5], [2.5, 4.5], ["7", "8"])
    path = write(tmp_path / "u.csv", "y,x,LAT,lat,long\n1,2,3,4,5\n")
    (chunk,) = read(path, CoordinateColumns(latitude="y", longitude="x"))
    assert (chunk.latitudes.tolist(), chunk.longitudes.tolist()) == ([1.0], [2.0])
    assert read(path, CoordinateColumns(latitude="LAT"))[0].longitudes.tolist() == [5.0]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, "is empty"),
        ("\n \n", {}, "is empty"),
        (
            "a,b\n1,2\n",
            {},
            r"no column for the latitude \(latitude, lat, .*\); it has a, b; give columns.latitude=NAME",
        ),
        ("lat,b\n1,2\n", {}, "no column for the longitude"),
        ("lat,Lat,lon\n1,2,3\n", {}, "several columns may hold the latitude: lat, Lat; choose with"),
        ("lat,lon\n1,2\n", {"latitude": "latt"}, "has no column 'latt'; did you mean lat"),
        ("lat,lon\n1,2\n", {"names": ["id", "x"]}, "no column for the latitude"),
        ("1,2\n", {"latitude": 2}, "given by number, .*; give columns.longitude by number too"),
        ("1,2\n", {"latitude": 2, "longitude": 3}, "has 2 columns, counted from 1; there is no columns.longitude=3"),
        ("1,2\n", {"latitude": 0, "longitude": 1}, "there is no columns.latitude=0"),
        ('lat,lon\n1,2\n"3"4,5\n', {}, "line 3: .*; correct that line"),
        ('lat,lon\n1,"2\n', {}, "line 2: .*; correct that line"),
        ("lat,lon\n1,2\n".encode("utf-16"), {}, "neither UTF-8 text nor Parquet"),
        (gzip.compress(b"lat,lon\n1,2\n", mtime=0)[:-9], {}, "damaged or cut off"),
        (b"PAR1 and nothing else", {}, "damaged or no Parquet file"),
    ],
)
def test_tables_that_cannot_be_read(text: str | bytes, columns: dict, message: str, tmp_path: Path):
    if "Parquet file" in message:
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / "t.csv", text), CoordinateColumns(**columns))
    assert "\n" not in str(caught.value)


def test_no_picture_column_and_several(tmp_path: Path):
    path = write(tmp_path / "t.csv", "lat,lon,file,path\n1,2,a,b\n")
    with pytest.raises(UserError, match=r"several columns may hold the image: file, path; choose with columns\.image"):
        read(path, with_images=True)
    assert read(path, CoordinateColumns(image="path"), with_images=True)[0].images == ["b"]


def test_names_that_are_no_utf8_come_as_the_file_system_has_them(tmp_path: Path):
    path = write(tmp_path / "t.csv", b"path,lat,lon\ncaf\xe9.jpg,1,2\n")
    (chunk,) = read(path, with_images=True)
    assert os.fsencode(chunk.images[0]) == b"caf\xe9.jpg"


def test_missing_files_folders_and_patterns(tmp_path: Path):
    for name in ("b.csv", "a.csv", "c.txt", "[1].csv"):
        write(tmp_path / name, "lat,lon\n1,2\n")
    assert coordinate_paths(str(tmp_path / "?.csv")) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert coordinate_paths([tmp_path / "b.csv", f"{tmp_path}/*.csv", tmp_path / "b.csv"]) == [
        tmp_path / "b.csv",
        tmp_path / "[1].csv",
        tmp_path / "a.csv",
    ]
    assert coordinate_paths(tmp_path / "[1].csv") == [tmp_path / "[1].csv"]
    for name in ("*.parquet", "none.csv"):
        with pytest.raises(UserError, match="table of coordinates not found: .*" + name.replace("*", r"\*")):
            coordinate_paths(tmp_path / name)
    with pytest.raises(UserError, match="several are given as"):
        coordinate_paths("a.csv,b.csv")
    with pytest.raises(UserError, match="no table of coordinates given"):
        coordinate_paths([])
    with pytest.raises(UserError, match="not found"):
        read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path)


def test_parquet_of_numbers_texts_and_nulls(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "lat": pyarrow.array([1.5, None, 3.5, 95.0], pyarrow.float32()),
        "lng": pyarrow.array(["10", "11", "east", "13"]),
        "path": pyarrow.array(["a", "b", "c", "d"]),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = FindingCounter()
    chunks = list(read_places(tmp_path / "t.parquet", found=found, with_images=True, rows_per_chunk=3))
    (chunk,) = chunks
    assert (chunk.latitudes.tolist(), chunk.longitudes.tolist(), chunk.images) == ([1.5], [10.0], ["a"])
    assert chunk.lines.tolist() == [1]
    seen = {what: finding.examples for what, finding in found.findings().items()}
    assert seen == {
        f"rows {REASONS['not_a_number']}": ("t.parquet row 2: (empty), 11", "t.parquet row 3: 3.5, east"),
        f"rows {REASONS['swapped']}": ("t.parquet row 4: 95.0, 13",),
    }
    with pytest.raises(UserError, match="has no column 'y'"):
        read(tmp_path / "t.parquet", CoordinateColumns(latitude="y"))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'mnvision\[parquet\]', or save it as CSV"):
        read(write(tmp_path / "t.parquet", b"PAR1"))


def test_real_tables(shared_data: Path):
    with (shared_data / "geo" / "impress_meta.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [(float(row["lat"]), float(row["lon"])) for row in rows if float(row["lat"]) or float(row["lon"])]
    chunks = read(shared_data / "geo" / "impress_meta.csv", rows_per_chunk=1000)
    found = [place for chunk in chunks for place in zip(chunk.latitudes.tolist(), chunk.longitudes.tolist())]
    assert len(found) == 2610
    assert found == expected
