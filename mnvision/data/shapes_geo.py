"""The embedded default for geolocation: generated photos of made-up places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnvision.data.geo_table import GeoTableDataModule
from mnvision.data.pictures import Split
from mnvision.data.shapes_write import GeneratedSet, shapes_places_job


class ShapesGeoDataModule(GeneratedSet, GeoTableDataModule):
    """The generated photos; ``prepare_data`` writes them once, then they are read as any table of positions.

    Args:
        root: Cache folder that the data set becomes a folder in.
        num_train: Training pictures.
        num_val: Validation pictures.
        data_seed: Seed of the pictures (``seed`` is that of order and augmentation).
        **common: See :class:`~mnvision.data.geo.GeoDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self, root: str | Path, num_train: int = 1500, num_val: int = 300, data_seed: int = 0, **common: Any
    ) -> None:
        folder = self.place(root, shapes_places_job(num_train, num_val, data_seed))
        super().__init__(folder, table="train.csv", val_table="val.csv", **common)

    def notes(self, split: Split) -> list[str]:
        """See :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        return [*super().notes(split), "generated pictures: the score says nothing about photos"]
