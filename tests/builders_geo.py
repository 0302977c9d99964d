"""Small sets of photos with positions: tables, Exif files and tar shards, right and wrong ones."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

PLACES = ((48.86, 2.35), (-33.87, 151.21), (35.69, 139.69), (-16.8, 179.97), (-16.5, -179.98), (78.22, 15.63))
"""Six places, two of them on both sides of the date line."""


def place_near(index: int) -> tuple[float, float]:
    """Latitude and longitude of photo ``index``, within a kilometre of one of ``PLACES``."""
    latitude, longitude = PLACES[index % len(PLACES)]
    return round(latitude + 0.001 * (index % 7), 6), round(longitude + 0.001 * (index % 5), 6)


def picture(index: int, size: tuple[int, int] = (48, 64), suffix: str = ".jpg") -> bytes:
    """An encoded picture that no other index has."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(suffix, pixels)[1])


def make_geo_table(
    root: Path,
    count: int = 24,
    table: str = "train.csv",
    header: str | None = "IMG_ID,LAT,LON",
    delimiter: str = ",",
    first: int = 0,
    more_rows: Sequence[str] = (),
) -> Path:
    """A table in the form of MP-16's list and its pictures in ``root/images``.

    Args:
        root: Folder, made if absent.
        count: Pictures.
        table: Name of the table.
        header: Its first line; None for a table without one.
        delimiter: Between the columns.
        first: Number of the first picture.
        more_rows: Lines to add as they are.
    """
    (root / "images" / "a").mkdir(parents=True, exist_ok=True)
    lines = [] if header is None else [header.replace(",", delimiter)]
    for index in range(first, first + count):
        name = f"a/photo_{index}.jpg"
        (root / "images" / name).write_bytes(picture(index))
        lines.append(delimiter.join([name, *(str(value) for value in place_near(index))]))
    (root / table).write_text("\n".join([*lines, *more_rows, ""]))
    return root


def write_exif_photo(path: Path, tags: dict[int, Any] | None, index: int = 0) -> Path:
    """A picture whose GPS part holds ``tags``, by number; None for a picture without Exif data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(picture(index)))
    if tags is None:
        image.save(path)
    elif path.suffix == ".tif":
        directory = ImageFileDirectory_v2()
        directory[ExifTags.IFD.GPSInfo] = tags
        image.save(path, tiffinfo=directory)
    else:
        exif = Image.Exif()
        exif[ExifTags.IFD.GPSInfo] = tags
        image.save(path, exif=exif)
    return path


def gps_tags(latitude: float, longitude: float) -> dict[int, Any]:
    """Degrees, minutes and hundredths of seconds, as cameras write them."""

    def parts(value: float) -> tuple[IFDRational, ...]:
        seconds = round(abs(value) * 360_000)
        return (
            IFDRational(seconds // 360_000, 1),
            IFDRational(seconds // 6000 % 60, 1),
            IFDRational(seconds % 6000, 100),
        )

    return {
        1: "N" if latitude >= 0 else "S",
        2: parts(latitude),
        3: "E" if longitude >= 0 else "W",
        4: parts(longitude),
    }


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of named contents, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shard_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """``KEY.jpg`` and ``KEY.json`` of some pictures."""
    members = []
    for index in range(first, first + count):
        latitude, longitude = place_near(index)
        place = json.dumps({"latitude": latitude, "longitude": longitude, "caption": "x"}).encode()
        members += [(f"{index:06d}.jpg", picture(index)), (f"{index:06d}.json", place)]
    return members


def make_geo_shards(root: Path, counts: Sequence[int] = (7, 5, 9), name: str = "train", first: int = 0) -> Path:
    """Shards ``NAME-000000.tar``, ... of so many pictures each."""
    for number, count in enumerate(counts):
        write_tar(root / f"{name}-{number:06d}.tar", shard_members(first, count))
        first += count
    return root
