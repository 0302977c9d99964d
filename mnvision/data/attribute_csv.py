"""Attributes in a table: any CSV with a column of file names, and LFW's table of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.attribute_index import Listed
from mnvision.data.attribute_splits import SPLIT_WORDS, splits_of
from mnvision.data.attributes import AttributeDataModule
from mnvision.data.celeba_files import read_partition
from mnvision.data.index import FindingCounter
from mnvision.data.pictures import Split
from mnvision.data.tables import NOT_GIVEN, FileTable, LabelCodes, Row, csv_rows, parse, read_lines, resolve_labels
from mnvision.errors import UserError
from mnvision.transforms.framing import CENTRAL_CROP

LFW_BOX = (0.14, 0.14, 0.86, 0.86)
"""The central 180 of LFW's 250 pixels: head, hair and collar; the rest is background."""

_LABELS = {"-1", "0", "1", "-1.0", "0.0", "1.0"}
_NO_IS = "say which one means 'no' with data.negative=-1 or data.negative=0"


class CsvColumns(NamedTuple):
    """Columns of a CSV that are no attributes; None for those it does not have, the first one for files."""

    file: str | None = None
    split: str | None = None
    group: str | None = None


class AttributeCsv(NamedTuple):
    """A CSV of attributes.

    Attributes:
        table: Labels ``(I, A)`` int8: 1 yes, 0 no, -1 not known.
        splits: ``(I,)`` int8, -1 where the column is empty; None without a split column.
        groups: ``(I,)`` int64, equal where the column is; None without a group column.
    """

    table: FileTable
    splits: NDArray[np.int8] | None
    groups: NDArray[np.int64] | None


def read_attribute_csv(
    path: str | Path,
    attributes: Sequence[str] | None = None,
    columns: CsvColumns | None = None,
    negative: int | None = None,
    missing_value: str | None = None,
) -> AttributeCsv:
    """Reads a table, separated by commas, tabs or semicolons, with a header and a row per picture.

    Args:
        path: The file.
        attributes: Columns to read; None reads all that ``columns`` does not name.
        columns: What the other columns are.
        negative: -1 or 0, what means "no" where a file holds both; the other one then means "not known".
        missing_value: A text that means "not known", besides an empty field and NaN.

    Raises:
        UserError: The file is missing or malformed; the text names line and column.
    """
    path, columns = Path(path), columns or CsvColumns()
    header, cells = csv_rows(path, read_lines(path, "attribute file"))
    file = header[0] if columns.file is None else columns.file
    others = [name for name in (file, columns.split, columns.group) if name is not None]
    names = [name for name in header if name not in others] if attributes is None else list(attributes)
    for name in (*others, *names):
        if name not in header:
            raise UserError(f"{path}, line 1: no column {name!r}; there are {', '.join(header[:50])}")
    if not names:
        raise UserError(f"{path}, line 1: there is no column of an attribute beside {', '.join(others)}")
    if "" in names:
        raise UserError(f"{path}, line 1: column {header.index('') + 1} has no name; give it one")
    if set(names) <= _LABELS:
        raise UserError(f"{path}, line 1: {', '.join(header[:5])} is a row of labels; put the columns' names above it")
    wanted = [name in names for name in header]
    in_order = [name for name in header if name in names]
    split_texts: list[tuple[int, str]] = []
    group_texts: list[str] = []

    def rows() -> Iterator[Row]:
        at = {name: header.index(name) for name in others}
        for line, row in cells:
            if len(row) != len(header):
                raise UserError(f"{path}, line {line}: {len(row)} fields instead of {len(header)}; correct that line")
            if columns.split is not None:
                split_texts.append((line, row[at[columns.split]].strip()))
            if columns.group is not None:
                group_texts.append(row[at[columns.group]].strip())
            yield Row(line, row[at[file]].strip(), list(compress(row, wanted)))

    codes = LabelCodes(missing_value)
    known = "1, 0, -1 or empty" + ("" if missing_value is None else f" or {missing_value!r}")
    hint = "" if attributes is not None else " (data.attributes=[...] chooses columns)"
    table = parse(path, rows(), in_order, codes.__getitem__, "b", known + hint)
    labels = resolve_labels(table.values, path, negative, _NO_IS)
    return AttributeCsv(
        FileTable(path, table.columns, table.file_names, labels),
        None if columns.split is None else _split_numbers(path, columns.split, split_texts),
        None if columns.group is None else np.unique(group_texts, return_inverse=True)[1].astype(np.int64),
    )


def read_lfw_attributes(path: str | Path) -> AttributeCsv:
    """Reads ``lfw_attributes.txt``: tab-separated person, number of the picture, and a score per attribute.

    Source: Kumar et al., "Attribute and Simile Classifiers for Face Verification" (ICCV 2009): the sign of a score
    says whether a face has the attribute. A score of exactly zero or NaN says nothing.

    Returns:
        Labels by the names of LFW's pictures, ``First_Last/First_Last_0001.jpg``; each person is a group.

    Raises:
        UserError: The file is missing or malformed; the text names line and column.
    """
    path = Path(path)
    lines = read_lines(path, "attribute file")
    start = next((number for number, line in enumerate(lines) if "\t" in line), len(lines))
    header = [cell.strip() for cell in lines[start].lstrip("#").strip().split("\t")] if start < len(lines) else []
    if header[:2] != ["person", "imagenum"] or len(header) < 3:
        raise UserError(
            f"{path}, line {min(start, len(lines) - 1) + 1}: expected tab-separated columns person, imagenum and the "
            "attributes; is this lfw_attributes.txt?"
        )
    people: list[str] = []

    def rows() -> Iterator[Row]:
        for number in range(start + 1, len(lines)):
            cells = lines[number].split("\t")
            if len(cells) == 1 and not cells[0].strip():
                continue
            if len(cells) < 2 or not cells[1].strip().isdigit():
                raise UserError(f"{path}, line {number + 1}: no number of a picture after the person's name")
            person = cells[0].strip().replace(" ", "_")
            people.append(person)
            yield Row(number + 1, f"{person}/{person}_{int(cells[1]):04d}.jpg", cells[2:])

    table = parse(path, rows(), header[2:], _sign, "b", "a score")
    labels = resolve_labels(table.values, path, -1)
    groups = np.unique(people, return_inverse=True)[1].astype(np.int64)
    return AttributeCsv(FileTable(path, table.columns, table.file_names, labels), None, groups)


class AttributeCsvDataModule(AttributeDataModule):
    """Pictures with attributes in a CSV file, or in one for each split.

    Args:
        root: Folder of the data set.
        framing: See :class:`~mnvision.data.attributes.AttributeDataModule`; None shows the central 7/8.
        labels: The CSV file below ``root`` (of the training pictures, if there are more of them).
        val_labels: That of the validation pictures, if it is a file of its own.
        test_labels: That of the test pictures, if it is a file of its own.
        images: Folder that the file names are relative to, below ``root``.
        columns: ``file``, ``split`` and ``group`` -> name of that column, see :class:`CsvColumns`.
        partition: File with a picture and 0 (train), 1 (val) or 2 (test) on each line, in place of a split column.
        negative: -1 or 0, what means "no" where a file holds both; the other one then means "not known".
        missing_value: A text that means "not known", besides an empty field and NaN.
        **common: See :class:`~mnvision.data.attributes.AttributeDataModule`.

    Raises:
        UserError: A value is out of range, or two ways to split are given.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any] | None = None,
        labels: str = "labels.csv",
        val_labels: str | None = None,
        test_labels: str | None = None,
        images: str = ".",
        columns: Mapping[str, str | None] | None = None,
        partition: str | None = None,
        negative: int | None = None,
        missing_value: str | int | None = None,
        **common: Any,
    ) -> None:
        central = {"resize": "center_crop", "crop_fraction": CENTRAL_CROP}
        super().__init__(root, central if framing is None else framing, **common)
        unknown = sorted(set(columns or {}) - set(CsvColumns._fields))
        if unknown:
            raise UserError(f"data.columns: unknown {unknown[0]!r}; known are {', '.join(CsvColumns._fields)}")
        if negative not in (None, -1, 0):
            raise UserError(f"data.negative must be -1 or 0, got {negative!r}")
        self.columns = CsvColumns(**dict(columns or {}))
        ways = {
            "data.val_labels or data.test_labels": val_labels or test_labels,
            "data.columns.split": self.columns.split,
            "data.partition": partition,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1 or (val_labels is not None and self.val_fraction is not None):
            raise UserError(f"two ways to split are given ({', '.join([*given, 'data.val_fraction'])}); keep one")
        self.files: dict[Split, str | None] = {"train": labels, "val": val_labels, "test": test_labels}
        self.separate = val_labels is not None or test_labels is not None
        self.images, self.partition, self.negative = images, partition, negative
        self.missing_value = None if missing_value is None else str(missing_value)

    def list_pictures(self, split: Split) -> Listed:
        """See :meth:`~mnvision.data.attributes.AttributeDataModule.list_pictures`."""
        name = self.files["train"]
        if self.separate and not (split == "val" and self.val_fraction is not None):
            name = self.files[split]
        if name is None:
            raise UserError(f"no {split} split: give data.{split}_labels")
        read = read_attribute_csv(self.root / name, self.attributes, self.columns, self.negative, self.missing_value)
        found, names, splits = FindingCounter(), read.table.file_names, read.splits
        if self.partition is not None:
            splits = splits_of(names, read_partition(self.root / self.partition), found)
        elif splits is not None:
            found.add("pictures with an empty split left out", list(compress(names, splits < 0)))
        elif not self.separate:
            splits = np.zeros(len(names), np.int8)
        for other, source in self._sources.items():
            seen = {source.file_name(position) for position in range(len(source))}
            if other != split and self.separate:
                found.add(f"pictures that are also in {other}", [item for item in names if item in seen])
        return Listed(self.root / self.images, read.table, splits, read.groups, None, found)


class LfwAttributesDataModule(AttributeDataModule):
    """Labeled Faces in the Wild with the attributes of ``lfw_attributes.txt``.

    Args:
        root: Folder of the data set.
        framing: See :class:`~mnvision.data.attributes.AttributeDataModule`; None shows :data:`LFW_BOX`.
        labels: The table below ``root``.
        images: Folder of one folder per person, below ``root``.
        partition: File with a picture and 0 (train), 1 (val) or 2 (test) on each line; LFW itself has none for
            attributes, and ``val_fraction`` puts nobody into both parts.
        **common: See :class:`~mnvision.data.attributes.AttributeDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any] | None = None,
        labels: str = "lfw_attributes.txt",
        images: str = "lfw-deepfunneled",
        partition: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(root, {"resize": "box", "box": LFW_BOX} if framing is None else framing, **common)
        self.labels, self.images, self.partition = labels, images, partition

    def list_pictures(self, split: Split) -> Listed:
        """See :meth:`~mnvision.data.attributes.AttributeDataModule.list_pictures`."""
        read, found = read_lfw_attributes(self.root / self.labels), FindingCounter()
        if self.partition is None:
            splits = np.zeros(len(read.table), np.int8)
        else:
            splits = splits_of(read.table.file_names, read_partition(self.root / self.partition), found)
        return Listed(self.root / self.images, read.table, splits, read.groups, None, found)


def _sign(text: str) -> int:
    """-1 or 1, the sign of a score; ``NOT_GIVEN`` for zero and NaN.

    Raises:
        ValueError: It is no number.
    """
    score = float(text)
    return NOT_GIVEN if score != score or score == 0 else (1 if score > 0 else -1)


def _split_numbers(path: Path, column: str, texts: Sequence[tuple[int, str]]) -> NDArray[np.int8]:
    """Numbers of the splits that a column names; -1 where it is empty."""
    for line, text in texts:
        if text and text.lower() not in SPLIT_WORDS:
            raise UserError(f"{path}, line {line}, column {column!r}: {text!r} is not train, val or test")
    return np.array([SPLIT_WORDS.get(text.lower(), -1) for _, text in texts], np.int8)
