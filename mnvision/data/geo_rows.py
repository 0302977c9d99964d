"""Rows of a table of pictures and positions, and which of them cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.index import MAX_EXAMPLES, FindingCounter, encode_file_names
from mnvision.errors import UserError
from mnvision.geo.coordinate_columns import CoordinateColumns
from mnvision.geo.coordinate_files import read_places

_COLUMNS = ("image", "latitude", "longitude", "split")


@dataclass(frozen=True)
class PlaceRows:
    """N rows with valid places.

    Attributes:
        path: The table.
        lines: ``(N,)`` int64, line in a text file, row in a Parquet file, from 1.
        file_names: ``(N,)`` file-system encoded bytes.
        coordinates: ``(N, 2)`` float64, latitude and longitude in degrees.
        splits: ``(N,)`` text of the split column, if there is one.
    """

    path: Path
    lines: NDArray[np.int64]
    file_names: NDArray[np.bytes_]
    coordinates: NDArray[np.float64]
    splits: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def take(self, kept: NDArray[Any]) -> PlaceRows:
        """Rows that ``kept``, a mask or positions, selects."""
        splits = None if self.splits is None else self.splits[kept]
        return PlaceRows(self.path, self.lines[kept], self.file_names[kept], self.coordinates[kept], splits)

    def describe(self, position: int) -> str:
        """A row in words."""
        return f"{self.path.name} line {self.lines[position]}: {self.file_names[position].decode(errors='replace')}"

    def leave_out(self, dropped: NDArray[np.bool_], what: str, found: FindingCounter) -> PlaceRows:
        """The rows but for some, which are counted as ``what``."""
        hits = np.flatnonzero(dropped)
        found.add(what, [self.describe(hit) for hit in hits[:MAX_EXAMPLES].tolist()], len(hits))
        return self.take(~dropped) if len(hits) else self


def read_rows(path: Path, columns: Mapping[str, Any], file_name: str, found: FindingCounter) -> PlaceRows:
    """Reads a table.

    Args:
        path: CSV with commas, tabs or semicolons, plain or gzip; or Parquet.
        columns: ``image``, ``latitude``, ``longitude`` and ``split`` -> name of the column, or its number from 1 in a
            text file without a header; None looks for the usual names (and for no split). ``names`` -> those of all
            columns, where the first line is a row already.
        file_name: What becomes of the text in the column of pictures, such as ``"{}.jpg"``.
        found: Receives how many rows were left out, by reason, with their lines.

    Raises:
        UserError: The table cannot be read, or a column is missing.
    """
    unknown = sorted(set(columns) - {*_COLUMNS, "names"})
    if unknown:
        raise UserError(f"data.columns has no {unknown[0]}; there are {', '.join(_COLUMNS)} and names")
    try:
        return _read_rows(path, columns, file_name, found)
    except UserError as error:  # the reader serves tools with options of their own names
        raise UserError(str(error).replace(" columns.", " data.columns.")) from None


def _read_rows(path: Path, columns: Mapping[str, Any], file_name: str, found: FindingCounter) -> PlaceRows:
    given = {what: columns.get(what) for what in _COLUMNS}
    named = {what: value if value is None or isinstance(value, int) else str(value) for what, value in given.items()}
    split = named.pop("split")
    chosen = CoordinateColumns(**named, names=columns.get("names"))
    if chosen.numbered and isinstance(split, str):
        raise UserError(f"data.columns.split={split}: give its number, as for the other columns")
    lines, names, places, splits = [], list[str](), [], list[str]()
    for chunk in read_places(path, chosen, found, with_images=True):
        lines.append(chunk.lines)
        places.append(np.stack([chunk.latitudes, chunk.longitudes], axis=1))
        names += chunk.images or []
    if split is not None:
        # The reader gives one column beside the places; a second pass gives the other, of the same rows.
        for chunk in read_places(path, chosen._replace(image=split), with_images=True):
            splits += chunk.images or []
    rows = PlaceRows(
        path,
        np.concatenate([np.zeros(0, np.int64), *lines]),
        encode_file_names([_file_name(name.strip(), file_name) for name in names]),
        np.concatenate([np.zeros((0, 2)), *places]),
        np.array([text.strip().lower() for text in splits]) if split is not None else None,
    )
    rows = rows.leave_out(rows.file_names == b"", "rows that name no picture left out", found)
    return _unique(rows, found)


def _unique(rows: PlaceRows, found: FindingCounter) -> PlaceRows:
    """One row for each picture; none for pictures that are said to be in two places."""
    if not len(rows):
        return rows
    _, first, group = np.unique(rows.file_names, return_index=True, return_inverse=True)
    elsewhere = (rows.coordinates != rows.coordinates[first][group]).any(axis=1)
    disputed = np.isin(group, group[elsewhere])
    again = np.ones(len(rows), np.bool_)
    again[first] = False
    kept = ~disputed[~(again & ~disputed)]
    rows = rows.leave_out(again & ~disputed, "rows that repeat another one left out", found)
    return rows.leave_out(~kept, "rows of pictures with several positions left out", found)


def _file_name(text: str, template: str) -> str:
    try:
        return template.format(text) if text else ""
    except (IndexError, KeyError, ValueError):
        raise UserError(f"data.file_name={template!r} is no template; write {{}} for the text of the column") from None
