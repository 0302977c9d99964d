"""Photos whose positions stand in a table: CSV, TSV or Parquet, such as the lists of MP-16 and YFCC100M."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.data.geo import RANDOM_PART, GeoDataModule, check_fraction
from mnvision.data.geo_index import GeoIndex, check_share, unreadable
from mnvision.data.geo_rows import PlaceRows, read_rows
from mnvision.data.index import DataReport, FindingCounter, encode_file_names, missing_files
from mnvision.data.pictures import Split
from mnvision.errors import UserError

_SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class GeoTableDataModule(GeoDataModule[GeoIndex]):
    """Pictures and positions in a table. Rows that cannot be used are counted and named, up to ``max_faulty`` of them.

    Pictures of the validation and test tables are not trained on.

    Args:
        root: Folder of the data set.
        table: Table of the training pictures, or of all, below ``root`` or absolute: CSV with commas, tabs or
            semicolons (gzip too), or Parquet.
        val_table: Table of the validation pictures.
        test_table: Table of the test pictures.
        images: Folder that the file names are relative to, below ``root``.
        columns: ``image``, ``latitude``, ``longitude`` and ``split``, see
            :func:`~mnvision.data.geo_rows.read_rows`. The split says train, val or test in each row.
        file_name: What becomes of the text in the column of pictures, such as ``"{}.jpg"`` where it is an id.
        val_fraction: Share of the training pictures to validate on where no table and no column says which, drawn
            picture by picture; None holds out nothing.
        **common: See :class:`~mnvision.data.geo.GeoDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        table: str = "train.csv",
        val_table: str | None = None,
        test_table: str | None = None,
        images: str = ".",
        columns: Mapping[str, Any] | None = None,
        file_name: str = "{}",
        val_fraction: float | None = 0.05,
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        self.tables: dict[Split, str | None] = {"train": table, "val": val_table, "test": test_table}
        self.images, self.columns, self.file_name = images, dict(columns or {}), file_name
        self.val_fraction = check_fraction(val_fraction)
        if self.columns.get("split") is not None and (val_table or test_table):
            raise UserError("data.columns.split and tables of validation or test pictures: two ways to part; keep one")
        self._rows: tuple[PlaceRows, FindingCounter] | None = None

    def notes(self, split: Split) -> list[str]:
        """See :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        drawn = split == "val" and self.tables["val"] is None and self.columns.get("split") is None
        return [*super().notes(split), *([RANDOM_PART] if drawn else [])]

    def read(self, split: Split) -> GeoIndex:
        """Lists one split.

        Raises:
            UserError: A table is missing or malformed, or too few of its rows can be used.
        """
        if self.columns.get("split") is not None:
            return self._part(split)
        own = self.tables[split]
        if split != "train" and own is not None:
            return self._index(*self._read(own), split)
        if split == "test" or (split == "val" and self.val_fraction is None):
            raise UserError(f"no {split} split: give data.{split}_table, or data.columns.split")
        index = self._index(*self._without_others(*self._read(str(self.tables["train"]))), "train")
        if self.tables["val"] is not None or self.val_fraction is None:
            return index
        self._sources["train"], self._sources["val"] = index.split(self.val_fraction, self.seed)
        return self._sources[split]

    def _read(self, name: str) -> tuple[PlaceRows, FindingCounter]:
        if not self.root.is_dir():
            raise UserError(f"data root not found: {self.root}; set data.root (and data.table)")
        found, path = FindingCounter(), self.root / Path(name).expanduser()
        rows = read_rows(path, self.columns, self.file_name, found)
        self._check_share(rows.path, len(rows), found)
        return rows, found

    def _part(self, split: Split) -> GeoIndex:
        """The rows of one split of a table that has a column of splits."""
        if self._rows is None:
            self._rows = self._read(str(self.tables["train"]))
        rows, every = self._rows
        assert rows.splits is not None
        known = [text for texts in _SPLIT_NAMES.values() for text in texts]
        found = FindingCounter()
        for what, finding in every.findings().items():
            found.add(what, finding.examples, finding.count)
        stray = ~np.isin(rows.splits, known)
        rows.leave_out(stray, "rows whose split is none of train, val and test left out", found)
        part = rows.take(np.isin(rows.splits, _SPLIT_NAMES[split]))
        if not len(part):
            texts = sorted(set(rows.splits.tolist()))[:8]
            raise UserError(f"{rows.path}: no row belongs to the {split} split; the column of splits says {texts}")
        return self._index(part, found, split)

    def _without_others(self, rows: PlaceRows, found: FindingCounter) -> tuple[PlaceRows, FindingCounter]:
        """Training rows but for the pictures of the other tables."""
        for split in ("val", "test"):
            name = self.tables[split]
            if name is not None:
                doubled = np.isin(rows.file_names, self._read(name)[0].file_names)
                rows = rows.leave_out(doubled, f"training pictures that are also {split} pictures left out", found)
        return rows, found

    def _index(self, rows: PlaceRows, found: FindingCounter, split: Split) -> GeoIndex:
        folder, listed, flaws = self.root / self.images, len(rows), FindingCounter()
        names = [name.decode(errors="surrogateescape") for name in rows.file_names.tolist()]
        gone = np.isin(rows.file_names, encode_file_names(missing_files(folder, names) or ["\0"]))
        rows = rows.leave_out(gone, f"pictures without a file in {folder} left out", flaws)
        source = f"{rows.path} ({split})" if rows.splits is not None else str(rows.path)
        index = GeoIndex(folder, rows.file_names, rows.coordinates, DataReport(source, len(rows), None))
        if self.check:
            index = index.take(np.flatnonzero(~unreadable(index, rows.describe, flaws)))
        self._check_share(rows.path, len(index), flaws, listed)
        report = DataReport(source, len(index), None, {**found.findings(), **flaws.findings()})
        return GeoIndex(folder, index.file_names, index.coordinates, report)

    def _check_share(self, path: Path, kept: int, found: FindingCounter, listed: int | None = None) -> None:
        counted = sum(finding.count for finding in found.findings().values())
        remedy = "correct the table, set data.root and data.images, or allow more with data.max_faulty"
        check_share(str(path), kept, counted if listed is None else listed - kept, self.max_faulty, found, remedy)
