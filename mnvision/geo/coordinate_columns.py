"""Which columns of a table hold latitude, longitude and the name of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from mnvision.errors import UserError

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "latitude": ("latitude", "lat", "gps_latitude", "gpslatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gps_longitude", "gpslongitude"),
    "image": ("image", "path", "file", "filename", "file_name", "image_path", "img_path", "img_id", "image_id"),
}
"""Names by which columns are found, in upper or lower case, where the user gives none."""

_SHOWN = 12


class CoordinateColumns(NamedTuple):
    """Names of the columns of a table; None for those to be found by their usual names.

    Attributes:
        latitude: Degrees.
        longitude: Degrees.
        image: File name of the picture.
        names: Of all columns, for a text file whose first line is a row already.
    """

    latitude: str | None = None
    longitude: str | None = None
    image: str | None = None
    names: Sequence[str] | None = None


class Places(NamedTuple):
    """Indices of the columns."""

    latitude: int
    longitude: int
    image: int | None


def find_places(path: Path, header: Sequence[str], columns: CoordinateColumns, with_images: bool) -> Places:
    """Indices of the columns of a table.

    Args:
        path: The table, for messages.
        header: Names of its columns.
        columns: What the user said of them.
        with_images: Whether the column of pictures is needed.

    Raises:
        UserError: A column is missing, or several could be meant.
    """
    image = _place(path, header, "image", columns.image) if with_images else None
    latitude = _place(path, header, "latitude", columns.latitude)
    return Places(latitude, _place(path, header, "longitude", columns.longitude), image)


def _place(path: Path, header: Sequence[str], what: str, given: str | None) -> int:
    if given is not None:
        hits = [place for place, name in enumerate(header) if name == given]
    else:
        hits = [place for place, name in enumerate(header) if name.strip().lower() in USUAL_NAMES[what]]
    if len(hits) == 1:
        return hits[0]
    shown = ", ".join(header[:_SHOWN]) + (", ..." if len(header) > _SHOWN else "")
    if hits:
        several = ", ".join(header[place] for place in hits)
        raise UserError(f"{path}: several columns may hold the {what}: {several}; choose with columns.{what}=NAME")
    if given is not None:
        near = get_close_matches(given, header, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{path} has no column {given!r}; {hint}it has {shown}")
    usual = ", ".join(USUAL_NAMES[what][:4])
    raise UserError(
        f"{path} has no column for the {what} ({usual}); it has {shown}; give columns.{what}=NAME, or for a file "
        "without header the names of all columns, columns.names=[...]"
    )
