"""Labelled pictures as flat arrays: what a set's files say, and the part of it that one split holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.index import DataReport, FindingCounter, encode_file_names
from mnvision.data.tables import FileTable


class LabelCounts(NamedTuple):
    """How often each attribute is known to be there and known not to be; both ``(A,)`` int64."""

    positive: NDArray[np.int64]
    negative: NDArray[np.int64]


@dataclass(frozen=True)
class AttributeIndex:
    """Files and labels of one split, as arrays that workers share.

    Attributes:
        folder: Folder that the file names are relative to.
        file_names: ``(I,)`` file-system encoded bytes.
        labels: ``(I, A)`` int8: 1 yes, 0 no, -1 not known.
        attribute_names: The A attributes.
        points: ``(I, 5, 2)`` float64, landmarks in pixels of the pictures, NaN where there are none; None for a set
            without any.
        report: What was found.
    """

    folder: Path
    file_names: NDArray[np.bytes_]
    labels: NDArray[np.int8]
    attribute_names: tuple[str, ...]
    points: NDArray[np.float64] | None
    report: DataReport

    def __len__(self) -> int:
        return len(self.labels)

    def file_name(self, position: int) -> str:
        """File name of one picture, relative to ``folder``."""
        return os.fsdecode(bytes(self.file_names[position]))

    def path(self, position: int) -> Path:
        """File of one picture."""
        return self.folder / self.file_name(position)

    def landmarks(self, position: int) -> NDArray[np.float64] | None:
        """``(5, 2)`` x and y in the picture's pixels, where known."""
        if self.points is None or np.isnan(self.points[position]).any():
            return None
        return self.points[position]

    def counts(self) -> LabelCounts:
        """How often each attribute is there and is not."""
        return LabelCounts((self.labels == 1).sum(axis=0), (self.labels == 0).sum(axis=0))


@dataclass(frozen=True)
class Listed:
    """What the files of a set say, before pictures are looked for and dealt out to the splits.

    Attributes:
        folder: Folder that the file names are relative to.
        table: Labels ``(I, A)`` int8: 1, 0, -1 not known.
        splits: ``(I,)`` int8, see ``SPLIT_NUMBERS``, -1 for none; None where all belong to the split asked for.
        groups: ``(I,)`` int64; pictures of one group (a person) are not parted by ``val_fraction``. None where
            each stands for itself.
        points: Landmarks, ``(I, 5, 2)`` float64, NaN where there are none.
        found: What was skipped so far.
    """

    folder: Path
    table: FileTable
    splits: NDArray[np.int8] | None
    groups: NDArray[np.int64] | None
    points: NDArray[np.float64] | None
    found: FindingCounter


def index_rows(listed: Listed, rows: NDArray[np.int64], split: str) -> AttributeIndex:
    """The index of one split.

    Args:
        listed: Everything that is listed.
        rows: Those of the split, ``(I,)``.
        split: Its name.
    """
    table = listed.table
    report = DataReport(f"{table.path} ({split})", len(rows), None, listed.found.findings())
    points = None if listed.points is None else listed.points[rows]
    names = encode_file_names([table.file_names[row] for row in rows])
    return AttributeIndex(listed.folder, names, table.values[rows], table.columns, points, report)
