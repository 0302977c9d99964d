"""Text tables of one picture per row (blank-separated or CSV) as arrays, with errors that name line and column."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.index import first_few
from mnvision.errors import UserError

NOT_GIVEN = 2
"""Code of a missing label in a table as it was read, beside -1, 0 and 1."""

_DELIMITERS = (",", "\t", ";")


class Row(NamedTuple):
    """One row: its line in the file (from 1), the picture's file name, and the text of its other fields."""

    line: int
    name: str
    cells: Sequence[str]


@dataclass(frozen=True)
class FileTable:
    """What a file says about pictures.

    Attributes:
        path: The file.
        columns: Names of the columns of ``values``.
        file_names: ``I`` different names.
        values: ``(I, ...)``, in the order of ``file_names``.
    """

    path: Path
    columns: tuple[str, ...]
    file_names: list[str]
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.file_names)

    def rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Row of each of the named pictures, ``(N,)``; -1 where the file does not name it."""
        if names == self.file_names:
            return np.arange(len(names))
        row_of = {name: row for row, name in enumerate(self.file_names)}
        return np.array([row_of.get(name, -1) for name in names], np.int64)


class LabelCodes(dict[str, int]):
    """Text of a label -> -1, 0, 1 or ``NOT_GIVEN``; each different text is looked at once.

    Args:
        missing: A text that means "not known", besides the empty one and NaN.
    """

    def __init__(self, missing: str | None = None) -> None:
        super().__init__()
        self._missing = ("", "nan") if missing is None else ("", "nan", missing.strip().lower())

    def __missing__(self, text: str) -> int:
        """Reads a text for the first time.

        Raises:
            ValueError: It is none of 0, 1, -1 and the missing ones.
        """
        stripped = text.strip().lower()
        if stripped in self._missing:
            code = NOT_GIVEN
        elif (number := float(stripped)) in (-1.0, 0.0, 1.0):
            code = int(number)
        else:
            raise ValueError(text)
        self[text] = code
        return code


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a UTF-8 text file, without a byte order mark.

    Args:
        path: The file.
        what: What it is, for messages, such as ``"attribute file"``.

    Raises:
        UserError: It cannot be read, is no text or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from None
    lines = text.split("\n")  # no other character ends a line, as editors count them
    if not text.strip():
        raise UserError(f"{what} is empty: {path}")
    return lines


def parse(
    path: Path,
    rows: Iterable[Row],
    columns: Sequence[str],
    convert: Callable[[str], float],
    typecode: str,
    expected: str,
) -> FileTable:
    """Converts the fields of all rows.

    Args:
        path: The file, for messages.
        rows: With as many cells as there are ``columns``.
        columns: Their names.
        convert: Field -> number; raises ValueError for what it does not take.
        typecode: Of the module ``array``: "b" for int8, "q" for int64, "d" for float64.
        expected: What a field should be, for messages.

    Returns:
        ``values`` is ``(I, C)``.

    Raises:
        UserError: A column that is named twice, a row of the wrong length or without a file, a field that cannot be
            converted, or a file that is named twice.
    """
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {twice[0]!r} names two columns; give each a name of its own")
    names: list[str] = []
    values = array(typecode)
    width = len(columns)
    for line, name, cells in rows:
        if len(cells) != width:
            raise UserError(
                f"{path}, line {line} ({name}): {len(cells)} values instead of {width}; correct or remove that line"
            )
        if not name:
            raise UserError(f"{path}, line {line}: there is no file name; correct or remove that line")
        names.append(name)
        try:
            values.extend(map(convert, cells))  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            raise _bad_cell(
                path, line, columns, cells, lambda cell: array(typecode, [convert(cell)]), expected
            ) from None
    if not names:
        raise UserError(f"{path} names no pictures")
    _check_unique(path, names)
    table = np.frombuffer(values, np.dtype(typecode)) if len(values) else np.zeros(0, np.dtype(typecode))
    return FileTable(path, tuple(columns), names, table.reshape(len(names), width))


def finite(text: str) -> float:
    """A finite number.

    Raises:
        ValueError: It is none.
    """
    number = float(text)
    if not abs(number) < float("inf"):
        raise ValueError(text)
    return number


def resolve_labels(
    codes: NDArray[np.int8], path: Path, negative: int | None = None, remedy: str = "write one of them only"
) -> NDArray[np.int8]:
    """Labels 1 (yes), 0 (no) and -1 (not known) from the codes of a file.

    Sets write "no" as -1 or as 0. Where a file has both, one of them means "not known", and which one only its
    author can tell.

    Args:
        codes: ``(I, A)``, of -1, 0, 1 and ``NOT_GIVEN``.
        path: The file, for messages.
        negative: What means "no", -1 or 0, the other one meaning "not known"; None for the one that occurs.
        remedy: What a user can do about a file with both.

    Raises:
        UserError: -1 and 0 occur and ``negative`` is None.
    """
    counts = [int((codes == value).sum()) for value in (-1, 0, 1)]
    if negative is None:
        if counts[0] and counts[1]:
            raise UserError(
                f"{path} holds {counts[0]} times -1, {counts[1]} times 0 and {counts[2]} times 1: one of -1 and 0 "
                f"must mean 'not known'; {remedy}"
            )
        negative = -1 if counts[0] else 0
    labels = np.full(codes.shape, -1, np.int8)
    labels[codes == 1] = 1
    labels[codes == negative] = 0
    return labels


def csv_rows(path: Path, lines: Sequence[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Header and rows, with their lines, of a table separated by commas, tabs or semicolons; quotes are honoured.

    Raises:
        UserError: The header names a column twice, or (while rows are taken) quoting is broken.
    """
    delimiter = max(_DELIMITERS, key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = [cell.strip() for cell in next(reader)]
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise UserError(f"{path}, line 1: column {twice[0]!r} occurs more than once")

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from None

    return header, rows()


def _bad_cell(
    path: Path,
    line: int,
    columns: Sequence[str],
    cells: Sequence[str],
    store: Callable[[str], object],
    expected: str,
) -> UserError:
    """Finds out which field of a row could not be stored."""

    def is_bad(cell: str) -> bool:
        try:
            store(cell)
        except (ValueError, OverflowError):
            return True
        return False

    column, cell = next((column, cell) for column, cell in zip(columns, cells) if is_bad(cell))
    return UserError(f"{path}, line {line}, column {column!r}: {cell.strip()!r} is not {expected}")


def _check_unique(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) == len(names):
        return
    twice = [name for name, count in Counter(names).items() if count > 1]
    raise UserError(f"{path} names {len(twice)} pictures more than once: {first_few(twice)}; keep one line of each")
