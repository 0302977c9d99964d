"""Folders of photos that hold their own GPS positions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.data.exif_gps import read_gps
from mnvision.data.folder_index import list_images
from mnvision.data.geo import RANDOM_PART, GeoDataModule, check_fraction
from mnvision.data.geo_index import GeoIndex, check_share, unreadable, usable_places
from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.index import DataReport, FindingCounter, encode_file_names
from mnvision.data.pictures import Split
from mnvision.errors import UserError


class GeoExifDataModule(GeoDataModule[GeoIndex]):
    """Photos below folders, placed by the GPS part of their Exif data; photos without one are left out, counted.

    Photos in the folders of validation and test are not trained on, also where these lie in the training folder.

    Args:
        root: Folder of the data set.
        train_dir: Folder of the training photos below ``root``, with any folders inside.
        val_dir: Folder of the validation photos; None holds out a part of the training photos.
        test_dir: Folder of the test photos; None where there are none.
        val_fraction: Share of the training photos to validate on where there is no ``val_dir``, drawn photo by photo;
            None holds out nothing.
        max_faulty: See :class:`~mnvision.data.geo.GeoDataModule`; photos without a position count.
        **common: See :class:`~mnvision.data.geo.GeoDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        train_dir: str = ".",
        val_dir: str | None = None,
        test_dir: str | None = None,
        val_fraction: float | None = 0.1,
        max_faulty: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(root, max_faulty=max_faulty, **common)
        self.dirs: dict[Split, str | None] = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.val_fraction = check_fraction(val_fraction)

    def notes(self, split: Split) -> list[str]:
        """See :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        return [*super().notes(split), *([] if self.dirs["val"] or split != "val" else [RANDOM_PART])]

    def read(self, split: Split) -> GeoIndex:
        """Lists one split.

        Raises:
            UserError: A folder is missing, or holds no photo with a position.
        """
        own = self.dirs[split]
        if split != "train" and own is not None:
            return self._folder(own)
        if split == "test" or (split == "val" and self.val_fraction is None):
            raise UserError(f"no {split} split: give data.{split}_dir")
        whole = self._folder(str(self.dirs["train"]), ("val", "test"))
        if self.dirs["val"] is not None or self.val_fraction is None:
            return whole
        self._sources["train"], self._sources["val"] = whole.split(self.val_fraction, self.seed)
        return self._sources[split]

    def _folder(self, name: str, others: Sequence[Split] = ()) -> GeoIndex:
        """The photos of one folder, but for those in the folders of other splits."""
        folder = self.root / name
        if not folder.is_dir():
            raise UserError(f"folder of photos not found: {folder}; set data.root (and data.train_dir, data.val_dir)")
        names, strays = list_images(folder, ".")
        if not names:
            raise UserError(f"{folder} holds no pictures (known endings: {' '.join(IMAGE_SUFFIXES)})")
        found = FindingCounter()
        found.add("files that are no images skipped", strays)
        for split in others:
            names = self._without(split, folder, names, found)
        positions = list(read_gps([folder / name for name in names]))
        for name, position in zip(names, positions):
            if position.flaw is not None:
                found.add(f"photos {position.flaw}", [name])
        known = np.array([position.flaw is None for position in positions], np.bool_)
        coordinates = np.array([position[:2] for position in positions], np.float64).reshape(-1, 2)
        file_names = [os.path.normpath(name) for name in names]
        index = GeoIndex(folder, encode_file_names(file_names), coordinates, DataReport(str(folder), 0, None))
        index = index.take(np.flatnonzero(known))
        places = index.coordinates
        index = index.take(np.flatnonzero(usable_places(places[:, 0], places[:, 1], index.name, found)))
        if self.check:
            index = index.take(np.flatnonzero(~unreadable(index, index.name, found)))
        remedy = "give photos with GPS positions, or a table of positions (data=geo_table)"
        check_share(str(folder), len(index), len(names) - len(index), self.max_faulty, found, remedy)
        report = DataReport(str(folder), len(index), None, found.findings())
        return GeoIndex(folder, index.file_names, index.coordinates, report)

    def _without(self, split: Split, folder: Path, names: list[str], found: FindingCounter) -> list[str]:
        """Names of photos but for those in a split's own folder, which may lie inside ``folder``."""
        own = self.dirs[split]
        if own is None:
            return names
        inside = os.path.join(os.path.abspath(self.root / own), "")
        others = {name for name in names if os.path.abspath(folder / name).startswith(inside)}
        found.add(f"training pictures that are also {split} pictures left out", sorted(others))
        if len(others) == len(names):
            raise UserError(f"{folder} holds no pictures to train on but those of data.{split}_dir={own}")
        return [name for name in names if name not in others]
