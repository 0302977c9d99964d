"""Photos with positions in tables and in Exif data: what is read, and what cannot be used."""

from __future__ import annotations

import csv
import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.TiffImagePlugin import IFDRational

from mnvision.data.exif_gps import BROKEN, NO_GPS, gps_of_file
from mnvision.data.geo_exif import GeoExifDataModule
from mnvision.data.geo_index import GeoIndex
from mnvision.data.geo_table import GeoTableDataModule
from mnvision.data.images import EncodedImage, check_image, image_size, read_image
from mnvision.data.shapes_geo import ShapesGeoDataModule
from mnvision.data.shapes_places import CITIES
from mnvision.data.shapes_write import generate, shapes_places_job
from mnvision.errors import UserError
from mnvision.geo.cells import from_tokens, parents
from mnvision.geo.cells import levels as levels_of
from mnvision.geo.partition import Partition, partition_photos
from tests.builders_geo import PLACES, gps_tags, make_geo_table, picture, place_near, write_exif_photo

CELLS = {"max_photos": 6, "min_photos": 1}
NUMBERED = {"image": 1, "latitude": 2, "longitude": 3}


def module(root: Path, **options: Any) -> GeoTableDataModule:
    given = {"images": "images", "resolution": 32, "batch_size": 4, "num_workers": 0, "cells": CELLS, **options}
    return GeoTableDataModule(root, **given)


def findings(index: GeoIndex) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {what: (found.count, found.examples) for what, found in index.report.findings.items()}


def evaluated(data: Any, split: str) -> dict[str, Any]:
    batches = list(data.eval_dataloader(split))
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("labels", "coordinates", "indices", "images")}


def test_a_list_as_that_of_mp16_is_read_by_its_own_column_names(tmp_path: Path):
    make_geo_table(tmp_path)
    make_geo_table(tmp_path, 6, "val.csv", first=24)
    data = module(tmp_path, val_table="val.csv")
    data.setup("fit")
    got = evaluated(data, "val")
    assert got["coordinates"].dtype == torch.float64
    assert got["coordinates"].tolist() == [list(place_near(index)) for index in range(24, 30)]
    assert got["images"].shape == (6, 3, 32, 32)
    assert [data.eval_dataset("val", None).name(row) for row in (0, 5)] == ["a/photo_24.jpg", "a/photo_29.jpg"]
    names = data.class_names
    assert data.num_classes == len(names) == len(PLACES)
    # A label is right if the cell of that name holds the place.
    for label, (latitude, longitude) in zip(got["labels"].tolist(), got["coordinates"].tolist()):
        cell = from_tokens([names[label]])
        assert cells_of(latitude, longitude, int(levels_of(cell)[0])) == cell[0]
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"images", "labels", "indices", "coordinates"}
    source = data.source("train")
    for row, place in zip(batch["indices"].tolist(), batch["coordinates"].tolist()):
        assert source.coordinates[row].tolist() == place


def cells_of(latitude: float, longitude: float, level: int) -> int:
    from mnvision.geo.cells import cell_ids

    return int(parents(cell_ids(np.array([latitude]), np.array([longitude])), level)[0])


def test_unusable_rows_are_counted_by_kind_and_named_by_line(tmp_path: Path):
    rows = (
        "a/photo_0.jpg,191,10",
        "a/photo_1.jpg,139.69,35.69",
        "a/photo_2.jpg,x,3",
        "a/photo_3.jpg,0,0",
        "a/photo_4.jpg,10,181",
        ",10,11",
        "a/gone.jpg,10,11",
        "a/torn.jpg,12,13",
        "a/photo_5.jpg,{},{}".format(*place_near(5)),
        "a/photo_6.jpg,1,1",
        "a/photo_7.jpg,3",
    )
    make_geo_table(tmp_path, more_rows=rows)
    (tmp_path / "images" / "a" / "torn.jpg").write_bytes(picture(99)[:-40])
    data = module(tmp_path, max_faulty=0.5)
    data.setup("fit")
    found = findings(data.listed("train"))
    first = 26  # line of the first such row: a header and 24 rows before it
    expected = {
        "beyond 90 degrees": (1, f"line {first}: 191, 10"),
        "exchanged": (1, f"line {first + 1}: 139.69, 35.69"),
        "without two numbers": (1, f"line {first + 2}: x, 3"),
        "latitude 0, longitude 0": (1, f"line {first + 3}: 0, 0"),
        "beyond 180": (1, f"line {first + 4}"),
        "name no picture": (1, f"line {first + 5}"),
        "without a file": (1, f"line {first + 6}: a/gone.jpg"),
        "unreadable": (1, f"line {first + 7}: a/torn.jpg: image file is truncated"),
        "repeat another": (1, f"line {first + 8}"),
        "several positions": (2, "line 8: a/photo_6.jpg"),
        "number of fields": (1, f"line {first + 10}"),
    }
    for what, (count, example) in expected.items():
        kinds = [name for name in found if what in name and not (what == "beyond 90 degrees" and "exchanged" in name)]
        assert len(kinds) == 1, (what, list(found))
        (kind,) = kinds
        assert found[kind][0] == count, kind
        assert example in found[kind][1][0], kind
    assert len(found) == len(expected)
    used = {name for split in ("train", "val") for name in data.listed(split).file_names.tolist()}
    assert used == {f"a/photo_{index}.jpg".encode() for index in range(24) if index != 6}


def test_a_set_with_too_many_flaws_is_refused(tmp_path: Path):
    make_geo_table(tmp_path, 10, more_rows=["a/x.jpg,91,200", "a/y.jpg,95,200"])
    with pytest.raises(UserError, match=r"2 of 12 entries cannot be used, more than data.max_faulty=0.1.*line 12"):
        module(tmp_path).setup("fit")
    assert len(module(tmp_path, max_faulty=0.2).listed("train")) > 0
    with pytest.raises(UserError, match=r"10 of 10 entries cannot be used: .*without a file"):
        module(tmp_path, images="elsewhere", max_faulty=1.0).setup("fit")
    (tmp_path / "swapped.csv").write_text("path,lat,lon\na.jpg,139.7,35.6\nb.jpg,151.2,-33.8\n")
    with pytest.raises(UserError, match=r"2 of 2 entries.*latitude and longitude exchanged"):
        module(tmp_path, table="swapped.csv").setup("fit")


def test_unreadable_pictures_end_the_run_by_name_where_they_were_not_looked_for(tmp_path: Path):
    make_geo_table(tmp_path, 10)
    (tmp_path / "images" / "a" / "photo_3.jpg").write_bytes(b"no picture at all")
    data = module(tmp_path, check=False)
    data.setup("fit")
    split = "val" if b"a/photo_3.jpg" in data.listed("val").file_names.tolist() else "train"
    with pytest.raises(UserError, match=r"photo_3.jpg"):
        list(data.eval_dataloader(split))


def test_a_file_without_header_is_read_by_the_numbers_of_its_columns(tmp_path: Path):
    """YFCC100M's metadata: tabs, no header, many columns; a name that needs an ending."""
    root = make_geo_table(tmp_path)
    rows = [
        f"{index}\tuser\tcamera\t\t{place_near(index)[1]}\t{place_near(index)[0]}\tphoto_{index}" for index in range(20)
    ]
    with gzip.open(root / "yfcc.tsv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    columns = {"image": 7, "latitude": 6, "longitude": 5}
    data = module(root, table="yfcc.tsv.gz", columns=columns, file_name="a/{}.jpg", val_fraction=0.25)
    data.setup("fit")
    index = data.listed("val")
    assert len(index) == 5
    for row in range(5):
        number = int(index.name(row).removeprefix("a/photo_").removesuffix(".jpg"))
        assert index.coordinates[row].tolist() == list(place_near(number))
    for wrong, message in (
        ({"image": 8, "latitude": 6, "longitude": 5}, "7 columns, counted from 1; there is no data.columns.image=8"),
        ({"image": 7, "latitude": 6, "longitude": None}, "give data.columns.longitude by number too"),
        ({"path": 7}, "data.columns has no path"),
        ({**columns, "split": "part"}, "data.columns.split=part: give its number"),
    ):
        with pytest.raises(UserError, match=message):
            module(root, table="yfcc.tsv.gz", columns=wrong).setup("fit")
    with pytest.raises(UserError, match="is no template"):
        module(root, table="yfcc.tsv.gz", columns=columns, file_name="{0}{1}").setup("fit")


def test_parquet_is_read_as_csv_is(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    make_geo_table(tmp_path)
    places = [place_near(index) for index in range(24)]
    table = {
        "path": [f"a/photo_{index}.jpg" for index in range(24)],
        "lat": [place[0] for place in places],
        "lng": [place[1] for place in places],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    texts, typed = module(tmp_path), module(tmp_path, table="train.parquet")
    for data in (texts, typed):
        data.setup("fit")
    assert texts.listed("train").file_names.tolist() == typed.listed("train").file_names.tolist()
    assert texts.partition.fingerprint == typed.partition.fingerprint


def test_a_column_tells_the_splits(tmp_path: Path):
    make_geo_table(tmp_path, 12)
    places = [",".join(map(str, place_near(index))) for index in range(12)]
    parts = ["train"] * 6 + ["Val"] * 3 + ["TEST"] * 2 + ["other"]
    lines = [f"a/photo_{index}.jpg,{place},{part}" for index, (place, part) in enumerate(zip(places, parts))]
    (tmp_path / "all.csv").write_text("\n".join(["path,lat,lon,part", *lines, ""]))
    data = module(tmp_path, table="all.csv", columns={"split": "part"})
    data.setup("fit")
    data.setup("test")
    got = {
        split: [data.listed(split).name(row)[8:-4] for row in range(len(data.listed(split)))]
        for split in ("train", "val", "test")
    }
    assert got == {"train": list("012345"), "val": list("678"), "test": ["9", "10"]}
    assert findings(data.listed("train"))["rows whose split is none of train, val and test left out"][0] == 1
    with pytest.raises(UserError, match="two ways to part"):
        module(tmp_path, table="all.csv", columns={"split": "part"}, val_table="val.csv")


def test_pictures_to_be_scored_are_not_trained_on(tmp_path: Path):
    make_geo_table(tmp_path, 12)
    make_geo_table(tmp_path, 4, "val.csv", first=10)
    make_geo_table(tmp_path, 2, "test.csv", first=0)
    data = module(tmp_path, val_table="val.csv", test_table="test.csv")
    data.setup("fit")
    trained = [data.listed("train").name(row) for row in range(len(data.listed("train")))]
    assert trained == [f"a/photo_{index}.jpg" for index in range(2, 10)]
    found = findings(data.listed("train"))
    assert found["training pictures that are also val pictures left out"][0] == 2
    assert found["training pictures that are also test pictures left out"][0] == 2


def test_training_pictures_are_never_taken_to_validate_on(tmp_path: Path):
    make_geo_table(tmp_path, 12)
    write_exif_photo(tmp_path / "photos" / "a.jpg", gps_tags(1, 2))
    for data in (module(tmp_path, val_fraction=None), GeoExifDataModule(tmp_path / "photos", val_fraction=None)):
        assert len(data.listed("train")) > 0
        with pytest.raises(UserError, match=r"no val split: give data.val_(table|dir)"):
            data.setup("fit")


def test_a_part_to_validate_on_is_drawn_by_seed(tmp_path: Path):
    make_geo_table(tmp_path, 20)
    parts = []
    for seed in (0, 0, 1):
        data = module(tmp_path, val_fraction=0.3, seed=seed)
        data.setup("fit")
        train, val = (set(data.listed(split).file_names.tolist()) for split in ("train", "val"))
        assert len(val) == 6
        assert len(train | val) == 20
        assert "random part" in data.notes("val")[-1]
        parts.append(val)
    assert parts[0] == parts[1] != parts[2]


def test_pictures_outside_the_cells_are_not_trained_on_but_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_geo_table(tmp_path, 24)
    make_geo_table(tmp_path, 6, "val.csv", first=24)
    inside = np.array([PLACES[index] for index in (0, 1, 2)])
    partition = partition_photos([(inside[:, 0], inside[:, 1])], 1, 1, min_level=6, source="three places")
    partition.save(tmp_path / "cells.npz")
    data = module(tmp_path, val_table="val.csv", partition=tmp_path / "cells.npz")
    with caplog.at_level(logging.INFO, "mnvision"):
        data.setup("fit")
        assert data.num_images("train") == 12
    assert "12 pictures outside every cell left out of training" in caplog.text
    assert data.partition.fingerprint == partition.fingerprint
    assert all((batch["labels"] >= 0).all() for batch in data.train_dataloader())
    got = evaluated(data, "val")
    assert (got["labels"] == -1).tolist() == [False, False, False, True, True, True]
    assert got["indices"].tolist() == list(range(6))
    assert data.notes("val") == ["3 pictures outside every cell, scored by distance alone"]
    assert data.reports()["train"].findings["pictures outside every cell left out of training"].count == 12
    # A checkpoint's own cells replace these.
    data.use_partition(module(tmp_path).partition)
    assert (evaluated(data, "val")["labels"] >= 0).all()
    assert data.num_images("train") == 24
    far = Partition.load(tmp_path / "cells.npz")
    other = partition_photos([(np.array([60.0]), np.array([-120.0]))], 1, 1, min_level=3)
    data.use_partition(other)
    with pytest.raises(UserError, match="all 24 pictures lie outside the 1 cells"):
        data.train_dataloader()
    assert len(far) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "no.csv"}, "table of coordinates not found"),
        ({"cells": {"max_photo": 3}}, "data.cells has no max_photo"),
        ({"cells": {"max_photos": "many"}}, "data.cells.max_photos='many': give a whole number"),
        ({"cells": {"max_photos": 3, "min_photos": 9}}, "data.partition=null makes cells from .*max_photos=3 is below"),
        ({"partition": "none.npz"}, "none.npz"),
        ({"max_faulty": 2}, "data.max_faulty must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "data.val_fraction must lie between 0 and 1"),
        ({"columns": {"latitude": "IMG_IDS"}}, "has no column 'IMG_IDS'; did you mean IMG_ID"),
        ({"root": "nowhere"}, "data root not found"),
        ({"columns": NUMBERED, "table": "cut.csv.gz"}, "damaged or cut off"),
        ({"columns": NUMBERED, "table": "t.parquet"}, "give those instead of numbers"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str, tmp_path: Path):
    make_geo_table(tmp_path, 8)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress((tmp_path / "train.csv").read_bytes())[:40])
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    root = tmp_path / options.pop("root", ".")
    with pytest.raises(UserError, match=message):
        module(root, **options).source("train")


@pytest.mark.parametrize(("latitude", "longitude"), [(51.5, -0.25), (-33.8675, 151.2), (-54.8, -68.3), (64.7, 177.5)])
def test_exif_positions_of_all_hemispheres(latitude: float, longitude: float, tmp_path: Path):
    for name in ("photo.jpg", "photo.tif", "photo.png", "photo.webp"):
        got = gps_of_file(write_exif_photo(tmp_path / name, gps_tags(latitude, longitude)))
        assert (got.latitude, got.longitude, got.flaw) == (pytest.approx(latitude), pytest.approx(longitude), None)


def test_broken_exif_positions_are_no_positions(tmp_path: Path):
    good = gps_tags(10.5, 20.5)
    no_seconds = (IFDRational(10, 1), IFDRational(3030, 100), IFDRational(0, 0))
    no_minutes = (IFDRational(10, 1), IFDRational(0, 0), IFDRational(0, 0))
    cases: dict[str, tuple[dict[int, Any] | None, str | None]] = {
        "minutes_with_fractions": ({**good, 2: no_seconds}, None),
        "lower_case": ({**good, 1: "s"}, None),
        "no_minutes": ({**good, 2: no_minutes}, BROKEN),
        "no_hemisphere": ({key: value for key, value in good.items() if key != 3}, BROKEN),
        "wrong_hemisphere": ({**good, 1: "E"}, BROKEN),
        "ninety_minutes": ({**good, 2: (IFDRational(10, 1), IFDRational(90, 1), IFDRational(0, 1))}, BROKEN),
        "infinite": ({**good, 2: (IFDRational(1, 0), IFDRational(0, 1), IFDRational(0, 1))}, BROKEN),
        "latitude_only": ({1: "N", 2: good[2]}, BROKEN),
        "altitude_only": ({6: IFDRational(30, 1)}, NO_GPS),
        "nothing": (None, NO_GPS),
    }
    for name, (tags, flaw) in cases.items():
        got = gps_of_file(write_exif_photo(tmp_path / f"{name}.jpg", tags))
        assert got.flaw == flaw, name
    assert gps_of_file(tmp_path / "minutes_with_fractions.jpg").latitude == pytest.approx(10 + 30.3 / 60)
    assert gps_of_file(tmp_path / "lower_case.jpg").latitude == pytest.approx(-10.5)


def test_a_folder_of_photos_with_exif(tmp_path: Path):
    for index in range(12):
        write_exif_photo(tmp_path / f"trip {index % 2}" / f"{index}.jpg", gps_tags(*place_near(index)), index)
    write_exif_photo(tmp_path / "plain.jpg", None)
    write_exif_photo(tmp_path / "zero.jpg", gps_tags(0, 0))
    write_exif_photo(
        tmp_path / "far.jpg", {**gps_tags(1, 1), 2: (IFDRational(91, 1), IFDRational(0, 1), IFDRational(0, 1))}
    )
    torn = write_exif_photo(tmp_path / "torn.jpg", gps_tags(5, 5))
    torn.write_bytes(torn.read_bytes()[:-30])
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("x")
    data = GeoExifDataModule(tmp_path, val_fraction=0.25, resolution=32, num_workers=0, cells=CELLS)
    data.setup("fit")
    assert (len(data.listed("train")), len(data.listed("val"))) == (9, 3)
    counts = {what: found.count for what, found in data.listed("train").report.findings.items()}
    assert len(counts) == 6
    assert set(counts.values()) == {1}
    index = data.listed("val")
    for row in range(3):
        number = int(Path(index.name(row)).stem)
        assert index.coordinates[row] == pytest.approx(place_near(number), abs=1e-5)
    with pytest.raises(UserError, match=r"5 of 17 entries cannot be used, more than data.max_faulty=0.1"):
        GeoExifDataModule(tmp_path, max_faulty=0.1, num_workers=0).setup("fit")
    with pytest.raises(UserError, match="no test split"):
        data.setup("test")


def test_folders_to_be_scored_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index in range(12):
        folder = ("a", "b/c", "val/x", "test", "val 2", "b")[index % 6]
        write_exif_photo(tmp_path / folder / f"{index}.jpg", gps_tags(*place_near(index)), index)
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, Path(), Path("b/..")):
        data = GeoExifDataModule(root, val_dir="val", test_dir="b/../test", num_workers=0)
        assert [len(data.listed(split)) for split in ("train", "val", "test")] == [8, 2, 2]
        found = findings(data.listed("train"))
        assert found["training pictures that are also val pictures left out"] == (2, ("val/x/2.jpg", "val/x/8.jpg"))
        assert found["training pictures that are also test pictures left out"][0] == 2
    whole = GeoExifDataModule(Path(), val_dir=".", num_workers=0)
    assert len(whole.listed("val")) == 12  # to score a folder as it is
    with pytest.raises(UserError, match=r"no pictures to train on but those of data.val_dir=\."):
        whole.listed("train")


def test_real_photos_are_placed_where_other_tools_place_them(shared_data: Path):
    """Positions that another Exif reader found, of cameras and phones of many makers."""
    with open(shared_data / "geo" / "gps.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "exif" and row["filename"].endswith(".jpg")]
    assert len(rows) == 35
    for row in rows:
        got = gps_of_file(shared_data / "geo" / "images" / row["filename"])
        assert (got.latitude, got.longitude) == pytest.approx((float(row["lat"]), float(row["lon"])), abs=2e-6)
    with pytest.raises(UserError, match=r"filename, path; choose with data.columns.image=NAME"):
        module(shared_data / "geo", table="gps.csv").setup("fit")
    data = module(shared_data / "geo", table="gps.csv", columns={"image": "filename"})
    data.setup("fit")
    assert len(data.listed("train")) + len(data.listed("val")) == 72


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
def test_pictures_are_read_from_memory_as_from_files(suffix: str, tmp_path: Path):
    data = picture(3, (240, 320), suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    memory = EncodedImage("shard.tar/a", data)
    assert image_size(memory) == image_size(path) == (240, 320)
    for least in (None, (100, 100)):
        np.testing.assert_array_equal(read_image(memory, least).pixels, read_image(path, least).pixels)
    check_image(memory)
    for harm, message in (
        (data[: len(data) // 2], "truncated|cannot|not an image"),
        (b"", "empty"),
        (b"text", "not an image"),
    ):
        if suffix == ".tiff" and harm == data[: len(data) // 2]:
            continue  # its header stands at its end or not; only decoding tells
        with pytest.raises(UserError, match=message) as caught:
            check_image(EncodedImage("shard.tar/a", harm))
        assert "shard.tar/a" in str(caught.value)


def test_generated_places(tmp_path: Path):
    small, large = shapes_places_job(20, 8), shapes_places_job(40, 8)
    one = generate(tmp_path / "one", large, processes=1)
    two = generate(tmp_path / "two", large, processes=2)
    few = generate(tmp_path / "few", small, processes=1)
    for name in ("train.csv", "val.csv", "train/000007.jpg", "val/000003.jpg"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (few / "train/000019.jpg").read_bytes() == (one / "train/000019.jpg").read_bytes()
    assert len({path.read_bytes() for path in one.rglob("*.jpg")}) == 48
    options = {"num_train": 40, "num_val": 8, "resolution": 32, "num_workers": 0, "check": False}
    data = ShapesGeoDataModule(tmp_path / "one", **options, cells={"max_photos": 10, "min_photos": 1})
    data.prepare_data()
    data.setup("fit")
    assert (len(data.listed("train")), len(data.listed("val"))) == (40, 8)
    assert "generated" in data.notes("val")[-1]
    by_name = {city.name: city for city in CITIES}
    with open(one / "train.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["city"]:
                assert float(row["latitude"]) == pytest.approx(by_name[row["city"]].latitude, abs=0.7)
            assert -180 <= float(row["longitude"]) < 180
    assert not data.listed("val").report.findings
