"""Latitudes and longitudes from tables of any length, in chunks: CSV (commas, tabs, semicolons; gzip) and Parquet."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from mnvision.data.index import MAX_EXAMPLES, FindingCounter
from mnvision.errors import UserError
from mnvision.geo.coordinate_columns import CoordinateColumns, Places, find_places
from mnvision.geo.coordinates import REASONS, check_coordinates

ROWS = 250_000
"""Rows of a chunk: large enough for vectorised work, some tens of MB."""

_DELIMITERS = (",", "\t", ";")


@dataclass(frozen=True)
class PlaceChunk:
    """N rows of a table that hold valid places.

    Attributes:
        lines: ``(N,)`` int64, from 1: lines of a text file, rows of a Parquet file.
        latitudes: ``(N,)`` float64 degrees.
        longitudes: ``(N,)`` float64 degrees.
        images: The N names of their pictures, if they were asked for; what is no UTF-8 as ``os.fsdecode`` gives it.
    """

    lines: NDArray[np.int64]
    latitudes: NDArray[np.float64]
    longitudes: NDArray[np.float64]
    images: list[str] | None

    def __len__(self) -> int:
        return len(self.lines)


class _Rows(NamedTuple):
    """Rows as they were read: NaN for what is no number, and the number of fields where that is wrong, by row."""

    lines: NDArray[np.int64]
    latitudes: NDArray[np.float64]
    longitudes: NDArray[np.float64]
    images: list[str] | None
    texts: tuple[Sequence[Any], Sequence[Any]]
    wrong_widths: dict[int, int]


def coordinate_paths(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files that a path, a glob pattern or a list of them names; each once, in order.

    Raises:
        UserError: A pattern or a name without a file.
    """
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    paths: dict[Path, Path] = {}
    for name in names:
        path = Path(name).expanduser()
        matches = [path]
        if not path.exists() and glob.has_magic(str(path)):
            matches = [Path(found) for found in sorted(glob.glob(str(path), recursive=True)) if Path(found).is_file()]
        if not matches or not matches[0].exists():
            hint = "; several are given as [a.csv,b.csv]" if "," in str(name) else ""
            raise UserError(f"table of coordinates not found: {name}{hint}")
        for match in matches:
            paths.setdefault(match.resolve(), match)
    if not paths:
        raise UserError("no table of coordinates given")
    return list(paths.values())


def read_places(
    path: Path | str,
    columns: CoordinateColumns | None = None,
    found: FindingCounter | None = None,
    with_images: bool = False,
    rows_per_chunk: int = ROWS,
) -> Iterator[PlaceChunk]:
    """Rows of one table that hold valid places, chunk by chunk.

    Args:
        path: CSV, plain or gzip, or Parquet; told apart by their first bytes.
        columns: Which columns to read; those not named are found by their usual names.
        found: Receives how many rows were refused, by reason, with the first few of them.
        with_images: Whether to read the column of pictures.
        rows_per_chunk: Upper bound of N.

    Yields:
        Chunks in the order of the table; rows that hold no place are left out and counted.

    Raises:
        UserError: The file cannot be read, is empty, or a column is missing.
    """
    path = Path(path)
    found = FindingCounter() if found is None else found
    columns = columns or CoordinateColumns()
    with _readable(path):
        kind = _kind(path)
        reader = _parquet_rows if kind == "parquet" else _csv_rows
        for rows in reader(path, columns, with_images, rows_per_chunk):
            chunk = _valid(rows, found, path.name, "row" if kind == "parquet" else "line")
            if len(chunk):
                yield chunk


def _valid(rows: _Rows, found: FindingCounter, name: str, unit: str) -> PlaceChunk:
    """The rows that hold places; the others are counted."""
    check = check_coordinates(rows.latitudes, rows.longitudes)
    wrong = np.zeros(len(rows.lines), np.bool_)
    wrong[list(rows.wrong_widths)] = True
    first = list(rows.wrong_widths.items())[:MAX_EXAMPLES]
    examples = [f"{name} {unit} {rows.lines[i]}: {width} fields" for i, width in first]
    found.add("rows with another number of fields than there are columns", examples, len(rows.wrong_widths))
    for reason, mask in check.refused.items():
        hits = np.flatnonzero(mask & ~wrong)
        examples = [
            f"{name} {unit} {rows.lines[i]}: {_shown(rows.texts[0][i])}, {_shown(rows.texts[1][i])}"
            for i in hits[:MAX_EXAMPLES].tolist()
        ]
        found.add(f"rows {REASONS[reason]}", examples, len(hits))
    keep = np.flatnonzero(check.valid & ~wrong)
    images = None if rows.images is None else [rows.images[i] for i in keep.tolist()]
    return PlaceChunk(rows.lines[keep], rows.latitudes[keep], rows.longitudes[keep], images)


def _shown(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return (text if len(text) <= 24 else f"{text[:23]}…") or "(empty)"


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise UserError(f"table of coordinates is empty: {path}")
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:2] == b"\x1f\x8b":
        return "gzip"
    if b"\0" in start:
        raise UserError(f"{path} is neither UTF-8 text nor Parquet; save it as CSV in UTF-8")
    return "text"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"table of coordinates not found: {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path} is damaged or cut off: its gzip data ends early or is wrong") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A text file, plain or gzip; bytes that are no UTF-8 do not stop the reading of numbers."""
    with gzip.open(path) if _kind(path) == "gzip" else path.open("rb") as raw:
        yield io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")


def _csv_rows(path: Path, columns: CoordinateColumns, with_images: bool, size: int) -> Iterator[_Rows]:
    if isinstance(columns.names, str):
        raise UserError(f"columns.names={columns.names}: give a list of all columns, e.g. [id,lat,lon]")
    with _text(path) as file:
        skipped, first = 0, file.readline()
        while first and not first.strip():
            skipped, first = skipped + 1, file.readline()
        if not first:
            raise UserError(f"table of coordinates is empty: {path}")
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
        try:
            if columns.numbered:
                width = len(next(csv.reader([first], delimiter=delimiter)))
                header = [str(number) for number in range(1, width + 1)]
            else:
                header = list(columns.names or [cell.strip() for cell in next(reader)])
            places = find_places(path, header, columns, with_images)
            yield from _csv_chunks(reader, skipped, len(header), places, size)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num + skipped}: {error}; correct that line") from None


def _csv_chunks(reader: Any, skipped: int, width: int, places: Places, size: int) -> Iterator[_Rows]:
    lines, wrong = array("q"), dict[int, int]()
    latitudes, longitudes, images = list[str](), list[str](), list[str]()
    at_latitude, at_longitude, at_image = places
    for row in reader:
        # Some writers end each line with a delimiter.
        if len(row) != width and (len(row) < width or any(row[width:])):
            if not any(map(str.strip, row)):
                continue
            wrong[len(lines)] = len(row)
            row = [""] * width
        lines.append(reader.line_num + skipped)
        latitudes.append(row[at_latitude])
        longitudes.append(row[at_longitude])
        if at_image is not None:
            images.append(row[at_image])
        if len(lines) == size:
            yield _rows(lines, latitudes, longitudes, None if at_image is None else images, wrong)
            lines, wrong, latitudes, longitudes, images = array("q"), {}, [], [], []
    if lines:
        yield _rows(lines, latitudes, longitudes, None if at_image is None else images, wrong)


def _rows(
    lines: array[int], latitudes: list[str], longitudes: list[str], images: list[str] | None, wrong: dict[int, int]
) -> _Rows:
    numbers = np.frombuffer(lines, np.int64)
    return _Rows(numbers, _numbers(latitudes), _numbers(longitudes), images, (latitudes, longitudes), wrong)


def _numbers(texts: Sequence[Any]) -> NDArray[np.float64]:
    """Numbers of texts; NaN for the others."""
    try:
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except (TypeError, ValueError):
        return np.fromiter(map(_number, texts), np.float64, len(texts))


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _parquet_rows(path: Path, columns: CoordinateColumns, with_images: bool, size: int) -> Iterator[_Rows]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install 'mnvision[parquet]', or save it as CSV") from None
    if columns.numbered:
        raise UserError(f"the columns of {path} have names; give those instead of numbers")
    try:
        with parquet.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            places = find_places(path, header, columns._replace(names=None), with_images)
            wanted = [header[place] for place in places if place is not None]
            start = 1
            for batch in file.iter_batches(size, columns=wanted):
                latitudes, longitudes, *images = (batch.column(name) for name in wanted)
                names = [str(name) for name in images[0].to_pylist()] if images else None
                lines = np.arange(start, start + len(batch))
                texts = (_Values(latitudes), _Values(longitudes))
                yield _Rows(lines, _arrow_numbers(latitudes), _arrow_numbers(longitudes), names, texts, {})
                start += len(batch)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is damaged or no Parquet file: {str(error).splitlines()[0]}") from None


class _Values(Sequence[Any]):
    """Values of an Arrow column one by one, for messages."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        return self._column[index].as_py()


def _arrow_numbers(column: Any) -> NDArray[np.float64]:
    import pyarrow

    if not (pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)):
        return _numbers(column.to_pylist())
    values: NDArray[np.float64] = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values
