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
    """Columns of a table by name; by number from 1 in a text file without a header; None finds them by usual names.

    Attributes:
        latitude: Degrees.
        longitude: Degrees.
        image: File name of the picture.
        names: Of all columns, for a text file whose first line is a row already.
    """

    latitude: str | int | None = None
    longitude: str | int | None = None
    image: str | int | None = None
    names: Sequence[str] | None = None

    @property
    def numbered(self) -> bool:
        """Whether columns are given by number, and the file therefore has no header."""
        return any(isinstance(column, int) for column in self[:3])


class Places(NamedTuple):
    """Indices of the columns."""

    latitude: int
    longitude: int
    image: int | None


def find_places(path: Path, header: Sequence[str], columns: CoordinateColumns, with_images: bool) -> Places:
    """Indices of the columns of a table.

    Args:
        path: The table, for messages.
        header: Names of its columns; their numbers where columns are given by number.
        columns: What the user said of them.
        with_images: Whether the column of pictures is needed.

    Raises:
        UserError: A column is missing, several could be meant, or only some are given by number.
    """
    needed = {"latitude": columns.latitude, "longitude": columns.longitude}
    needed |= {"image": columns.image} if with_images else {}
    unnumbered = [what for what, column in needed.items() if not isinstance(column, int)]
    if columns.numbered and unnumbered:
        raise UserError(
            f"{path}: columns are given by number, as for a file without a header; give columns.{unnumbered[0]} by "
            "number too"
        )
    image = _place(path, header, "image", columns.image) if with_images else None
    latitude = _place(path, header, "latitude", columns.latitude)
    return Places(latitude, _place(path, header, "longitude", columns.longitude), image)


def _place(path: Path, header: Sequence[str], what: str, given: str | int | None) -> int:
    if given is not None:
        hits = [place for place, name in enumerate(header) if name == str(given)]
    else:
        hits = [place for place, name in enumerate(header) if name.strip().lower() in USUAL_NAMES[what]]
    if len(hits) == 1:
        return hits[0]
    shown = ", ".join(header[:_SHOWN]) + (", ..." if len(header) > _SHOWN else "")
    if hits:
        several = ", ".join(header[place] for place in hits)
        raise UserError(f"{path}: several columns may hold the {what}: {several}; choose with columns.{what}=NAME")
    if isinstance(given, int):
        raise UserError(f"{path} has {len(header)} columns, counted from 1; there is no columns.{what}={given}")
    if given is not None:
        near = get_close_matches(str(given), header, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{path} has no column {given!r}; {hint}it has {shown}")
    usual = ", ".join(USUAL_NAMES[what][:4])
    raise UserError(
        f"{path} has no column for the {what} ({usual}); it has {shown}; give columns.{what}=NAME, or for a file "
        "without header its number from 1"
    )
