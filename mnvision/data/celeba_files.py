"""CelebA's annotation files: attributes, partition, identities and landmarks, as text or as CSV.

Source: Liu et al., "Deep Learning Face Attributes in the Wild" (ICCV 2015), and the files of the release: a count
on the first line of some, column names on the next, fields padded with blanks. Kaggle's release has the same
content as CSV. Pictures may lie beside the files or in the folders of the release (``Img``, ``Anno``, ``Eval``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.tables import FileTable, LabelCodes, Row, csv_rows, finite, parse, read_lines, resolve_labels
from mnvision.errors import UserError

PARTITIONS = {"train": 0, "val": 1, "test": 2}
"""Split -> its number in the partition file."""

LANDMARK_COLUMNS = tuple(
    f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"
)

UNALIGNED = "img_celeba"
"""Folder of the pictures as they were taken."""

_FOLDERS = ("", "Anno", "Eval")
_NO_IS = "write -1 for 'no' and leave out what is not known (CSV)"


def find_file(root: Path, *stems: str) -> Path | None:
    """The first file of one of these names, ``.txt`` or ``.csv``, in a set's folder; None where there is none."""
    candidates = (
        root / folder / f"{stem}{suffix}" for stem in stems for folder in _FOLDERS for suffix in (".txt", ".csv")
    )
    return next((path for path in candidates if path.is_file()), None)


def find_pictures(root: Path, name: str = "img_align_celeba") -> Path:
    """The folder of the pictures, where the release or a copy of it has them.

    Raises:
        UserError: There is none.
    """
    for folder in (root / name / name, root / name, root / "Img" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"folder of pictures not found: {root / name}; unpack {name}.zip there or set data.images")


def landmark_file(root: Path, pictures: Path) -> Path | None:
    """The landmarks of a folder of pictures: those of the aligned ones, or of the pictures as they were taken."""
    return find_file(root, "list_landmarks_celeba" if pictures.name == UNALIGNED else "list_landmarks_align_celeba")


def read_attributes(path: str | Path) -> FileTable:
    """Reads ``list_attr_celeba``.

    Returns:
        ``values`` ``(I, A)`` int8: 1 yes, 0 no (-1 in the file), -1 where the file is empty; ``columns`` are the
        attributes.

    Raises:
        UserError: The file is missing or malformed; the text names line and column.
    """
    path = Path(path)
    columns, rows = _open(path, "attribute file", None)
    table = parse(path, rows, columns, LabelCodes().__getitem__, "b", "1 or -1")
    return FileTable(path, table.columns, table.file_names, resolve_labels(table.values, path, remedy=_NO_IS))


def read_partition(path: str | Path) -> FileTable:
    """Reads ``list_eval_partition``.

    Returns:
        ``values`` ``(I,)`` int8, see :data:`PARTITIONS`.

    Raises:
        UserError: The file is missing or malformed; the text names the line.
    """
    numbers = {str(number): number for number in PARTITIONS.values()}

    def convert(text: str) -> int:
        number = numbers.get(text.strip())
        if number is None:
            raise ValueError(text)
        return number

    table = _parse_one(Path(path), "partition file", "partition", convert, "b", "0 (train), 1 (val) or 2 (test)")
    return table


def read_identities(path: str | Path) -> FileTable:
    """Reads ``identity_CelebA``.

    Returns:
        ``values`` ``(I,)`` int64, the identities' own numbers.

    Raises:
        UserError: The file is missing or malformed; the text names the line.
    """
    return _parse_one(Path(path), "identity file", "identity", int, "q", "a whole number")


def read_landmarks(path: str | Path) -> FileTable:
    """Reads ``list_landmarks_align_celeba`` or ``list_landmarks_celeba``.

    Returns:
        ``values`` ``(I, 5, 2)`` float64: x and y, in pixels of the picture the file belongs to, of the eye, the eye,
        the nose, the mouth's corner and the other one, left ones first (as the viewer sees them).

    Raises:
        UserError: The file is missing or malformed; the text names line and column.
    """
    path = Path(path)
    columns, rows = _open(path, "landmark file", LANDMARK_COLUMNS)
    table = parse(path, rows, columns, finite, "d", "a number")
    return FileTable(path, table.columns, table.file_names, table.values.reshape(-1, 5, 2))


def _parse_one(path: Path, what: str, column: str, convert: object, typecode: str, expected: str) -> FileTable:
    columns, rows = _open(path, what, (column,))
    table = parse(path, rows, columns, convert, typecode, expected)  # type: ignore[arg-type]
    return FileTable(path, table.columns, table.file_names, table.values[:, 0])


def _open(path: Path, what: str, columns: Sequence[str] | None) -> tuple[Sequence[str], Iterator[Row]]:
    """Columns (those of the file where ``columns`` is None) and rows of a file."""
    lines = read_lines(path, what)
    if path.suffix.lower() == ".csv":
        header, cells = csv_rows(path, lines)
        if columns is not None and len(header) != len(columns) + 1:
            raise UserError(f"{path}, line 1: {len(header)} columns instead of {len(columns) + 1} ({what})")
        return header[1:], (Row(line, row[0].strip(), row[1:]) for line, row in cells)
    count, start = _count_line(lines)
    header = lines[start].split() if start < len(lines) else []
    if _is_header(header):
        start += 1
        first = next((line.split() for line in lines[start:] if line.strip()), [])
        header = header[1:] if len(header) == len(first) else header  # some copies name the column of the names
    elif columns is None:
        raise UserError(f"{path}, line {start + 1}: the names of the attributes are missing; add them as one line")
    else:
        header = list(columns)
    if columns is not None and len(header) != len(columns):
        raise UserError(f"{path}, line {start}: {len(header)} columns instead of {len(columns)} ({what})")
    rows = _text_rows(lines, start)
    return header, rows if count is None else _counted(path, rows, count)


def _count_line(lines: Sequence[str]) -> tuple[int | None, int]:
    """The count on the first line, None where there is none, and the number of the line after it."""
    first = lines[0].split()
    return (int(first[0]), 1) if len(first) == 1 and first[0].isdigit() else (None, 0)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether these are names of columns: a row of data starts with a picture, and a number follows."""
    return bool(cells) and not cells[0].lower().endswith(IMAGE_SUFFIXES) and not _is_number(cells[-1])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text_rows(lines: Sequence[str], start: int) -> Iterator[Row]:
    for number in range(start, len(lines)):
        cells = lines[number].split()
        if cells:
            yield Row(number + 1, cells[0], cells[1:])


def _counted(path: Path, rows: Iterator[Row], count: int) -> Iterator[Row]:
    """Passes rows on, and refuses a file that has not as many as its first line says."""
    seen = 0
    for row in rows:
        seen += 1
        yield row
    if seen != count:
        raise UserError(
            f"{path}, line 1 announces {count} pictures, but {seen} follow; fetch the file again or correct its count"
        )
