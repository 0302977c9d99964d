"""Large sets gathered from the web: a CSV of files and labels, of which some are wrong, missing or doubled.

The MobileNets paper pretrains on such a set before it fine-tunes on Stanford Dogs (section 4.3, after Krause et al.,
https://arxiv.org/abs/1511.06789). Losses for wrong labels are in ``mnvision/losses/noise_robust.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mnvision.data.class_lists import ClassList, ClassLists
from mnvision.data.index import FindingCounter, first_few
from mnvision.data.listed import ListedDataModule
from mnvision.data.pictures import Split
from mnvision.data.tables import csv_rows, read_lines
from mnvision.errors import UserError


class NoisyCsvColumns(NamedTuple):
    """Names of the columns of files and of labels."""

    path: str = "path"
    label: str = "label"


class NoisyCsvDataModule(ListedDataModule):
    """Pictures and class names in a table, whose flaws are counted and not refused.

    Pictures that two rows label differently are left out, since nothing says which of them is right; pictures of the
    validation and test files are not trained on.

    Args:
        root: Folder of the data set.
        labels: Table of the training pictures, below ``root`` or absolute.
        val_labels: Table of the validation pictures, whose labels had better be right; without it ``val_fraction`` of
            the training pictures, whose labels are as noisy as the others.
        test_labels: Table of the test pictures.
        images: Folder that the file names are relative to, below ``root``.
        columns: Names of the columns, see :class:`NoisyCsvColumns`.
        val_fraction: See :class:`~mnvision.data.listed.ListedDataModule`.
        missing: See :class:`~mnvision.data.listed.ListedDataModule`.
        **common: See :class:`~mnvision.data.listed.ListedDataModule`.

    Raises:
        UserError: A value is out of range, or two ways to validate are given.
    """

    def __init__(
        self,
        root: str | Path,
        labels: str = "train.csv",
        val_labels: str | None = None,
        test_labels: str | None = None,
        images: str = ".",
        columns: Mapping[str, str] | None = None,
        val_fraction: float | None = 0.02,
        missing: Literal["error", "skip"] = "skip",
        **common: Any,
    ) -> None:
        fraction = None if val_labels is not None else val_fraction
        super().__init__(root, val_fraction=fraction, missing=missing, **common)
        self.files: dict[Split, str | None] = {"train": labels, "val": val_labels, "test": test_labels}
        self.images, self.columns = images, NoisyCsvColumns(**dict(columns or {}))

    def notes(self, split: Split) -> list[str]:
        """See :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        noisy = self.files["val"] is None and split != "test"
        return [*super().notes(split), *(["scored against labels as noisy as those of training"] if noisy else [])]

    def read_lists(self) -> ClassLists:
        """See :meth:`~mnvision.data.listed.ListedDataModule.read_lists`."""
        found = FindingCounter()
        tables = {split: self._read(self.root / name, found) for split, name in self.files.items() if name is not None}
        class_names = tuple(sorted(set(tables["train"].values())))
        label_of = {name: label for label, name in enumerate(class_names)}
        splits: dict[Split, ClassList] = {}
        for split, table in tables.items():
            path = self.root / str(self.files[split])
            unknown = sorted(set(table.values()) - label_of.keys())
            if unknown:
                raise UserError(f"{path} has classes that {self.files['train']} does not have: {first_few(unknown)}")
            labels = np.array([label_of[name] for name in table.values()], np.int64)
            splits[split] = ClassList(str(path), list(table), labels)
        return ClassLists(self.root / self.images, class_names, splits, found)

    def check_lists(self, lists: ClassLists) -> ClassLists:
        """Takes pictures to be scored out of training, and says how many."""
        train, held_out = lists.splits["train"], set[str]()
        for split in ("val", "test"):
            if split in lists.splits:
                held_out.update(lists.splits[split].names)
        doubled = np.array([name in held_out for name in train.names], np.bool_)
        lists.found.add(
            "training pictures that are also validation or test pictures left out",
            [name for name, is_doubled in zip(train.names, doubled) if is_doubled],
        )
        return replace(lists, splits={**lists.splits, "train": train.take(~doubled)})

    def _read(self, path: Path, found: FindingCounter) -> dict[str, str]:
        """File name -> class name, of the rows that can be used."""
        header, rows = csv_rows(path, read_lines(path, "table of labels"))
        for column in self.columns:
            if column not in header:
                raise UserError(
                    f"{path}, line 1: no column {column!r}; there are {', '.join(header[:20])}; name the columns with "
                    "data.columns='{path: ..., label: ...}'"
                )
        at = [header.index(column) for column in self.columns]
        table: dict[str, str] = {}
        disputed: set[str] = set()
        for line, row in rows:
            if len(row) != len(header):
                raise UserError(f"{path}, line {line}: {len(row)} fields instead of {len(header)}; correct that line")
            name, label = (row[place].strip() for place in at)
            if not name:
                raise UserError(f"{path}, line {line}: the row names no file")
            if not label:
                found.add("rows without a label left out", [name])
            elif name not in table:
                table[name] = label
            elif table[name] == label:
                found.add("rows that repeat another one left out", [name])
            else:
                disputed.add(name)
        found.add("pictures with several labels left out", sorted(disputed))
        table = {name: label for name, label in table.items() if name not in disputed}
        if not table:
            raise UserError(f"{path} names no picture with a label")
        return table
