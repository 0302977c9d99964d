"""Pictures to be placed on the earth: what all such data sets share.

Labels are the cells of a partition (``mnvision/geo/partition.py``), from a file or made from the training pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.data.geo_index import GeoSource
from mnvision.data.image_folder import collate_classification
from mnvision.data.images import ImageSource
from mnvision.data.index import DataReport
from mnvision.data.pictures import PictureDataModule, PictureDataset, PictureSample, Split
from mnvision.data.teacher_view import TeacherView
from mnvision.data.unlabelled import check_val_fraction
from mnvision.errors import UserError
from mnvision.geo.partition import Partition, PartitionSettings, partition_photos
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import CENTRAL_CROP, CenterCrop
from mnvision.types import GeolocationBatch

Source = TypeVar("Source", bound=GeoSource)

log = logging.getLogger(__name__)

# Cells made without being asked how: so many of the training pictures may share one. A few hundred cells.
_SHARE = 100
_LEAST, _MOST = 20, 10_000

RANDOM_PART = (
    "validated on a random part of the training pictures: pictures of one place or photographer may be in both parts, "
    "so the score may be too high"
)
"""What to say beside such a score."""


class GeoSample(NamedTuple):
    """One view of a picture, its cell, and ``(2,)`` float64 latitude and longitude in degrees."""

    view: PictureSample
    label: int
    place: NDArray[np.float64]


class GeoDataset(PictureDataset[Source, GeoSample]):
    """Pictures with their places: random crops with an augmentation, the central crop without."""

    def labelled(self, view: PictureSample) -> GeoSample:
        """See :class:`~mnvision.data.pictures.PictureDataset`."""
        return GeoSample(view, self.source.label(view.position), self.source.place(view.position))

    def picture(self, position: int) -> ImageSource:
        """See :class:`~mnvision.data.pictures.PictureDataset`."""
        return self.source.picture(position)

    def name(self, position: int) -> str:
        """What results call a picture."""
        return self.source.name(position)


def collate_geo(samples: Sequence[GeoSample]) -> GeolocationBatch:
    """Stacks samples."""
    places = torch.from_numpy(np.stack([sample.place for sample in samples]))
    return {**collate_classification(samples), "coordinates": places}


class GeoDataModule(PictureDataModule[Source]):
    """Loaders over pictures with places; a data set adds how its splits are read.

    Args:
        root: Folder of the data set.
        partition: File of a partition; None makes one from the training pictures.
        cells: How it is made, see :class:`~mnvision.geo.partition.PartitionSettings`. Left out or None,
            ``max_photos`` is a hundredth of the training pictures (20 to 10,000) and ``min_photos`` a tenth of that.
        max_faulty: Largest share of a split's entries that may be unusable, 0 .. 1.
        check: Read every picture once before the first step, without decoding it, to find unreadable ones.
        crop: Central part shown in evaluation, in (0, 1].
        **common: See :class:`~mnvision.data.pictures.PictureDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        partition: str | Path | None = None,
        cells: Mapping[str, int | None] | None = None,
        max_faulty: float = 0.1,
        check: bool = True,
        crop: float = CENTRAL_CROP,
        **common: Any,
    ) -> None:
        super().__init__(root, CenterCrop(crop), **common)
        if isinstance(max_faulty, bool) or not isinstance(max_faulty, int | float) or not 0 <= max_faulty <= 1:
            raise UserError(f"data.max_faulty must lie between 0 and 1, got {max_faulty}")
        self.partition_file = None if partition is None else Path(partition).expanduser()
        self.cells = {name: value for name, value in dict(cells or {}).items() if value is not None}
        unknown = sorted(self.cells.keys() - vars(PartitionSettings()).keys())
        if unknown:
            raise UserError(f"data.cells has no {unknown[0]}; there are {', '.join(vars(PartitionSettings()))}")
        for name, value in self.cells.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"data.cells.{name}={value!r}: give a whole number")
        self.max_faulty, self.check = float(max_faulty), check
        self._partition: Partition | None = None
        self._labelled: dict[Split, Source] = {}

    @property
    def partition(self) -> Partition:
        """The cells, read or made on first use.

        Raises:
            UserError: The file is no partition, the settings contradict each other, or no cell has enough pictures.
        """
        if self._partition is None:
            self._partition = self._make_partition()
        return self._partition

    def use_partition(self, partition: Partition) -> None:
        """Label by other cells from now on, such as those of a checkpoint; loaders made before keep the old ones."""
        self._partition = partition
        self._labelled.clear()

    @property
    def class_names(self) -> list[str]:
        """S2 tokens of the cells, by label."""
        return self.partition.names

    @property
    def num_classes(self) -> int:
        """Number of cells."""
        return len(self.partition)

    @property
    def collate(self) -> Callable[..., GeolocationBatch]:
        """Samples to a batch."""
        return collate_geo

    def dataset(
        self, source: Source, augment: ClassificationAugment | None, teacher: TeacherView | None
    ) -> GeoDataset[Source]:
        """The data set over a split's pictures."""
        return GeoDataset(source, self.resolution, self.framing, augment, self.seed, teacher)

    def listed(self, split: Split) -> Source:
        """All usable pictures of one split, without labels.

        Raises:
            UserError: The data set is missing or malformed.
        """
        return super().source(split)

    def source(self, split: Split) -> Source:
        """The pictures of one split with the cells as labels; of training, those inside a cell.

        Raises:
            UserError: The data set is missing or malformed, or no partition can be made.
        """
        if split not in self._labelled:
            listed = self.listed(split)
            labelled = listed.labelled(self.partition, split == "train")
            self._labelled[split] = labelled
            for what in labelled.report.findings.keys() - listed.report.findings.keys():
                log.info("%s: %d %s", listed.report.source, labelled.report.findings[what].count, what)
        return self._labelled[split]

    def setup(self, stage: str) -> None:
        """Lists what a stage (fit, validate, test) needs; labels are made when they are asked for."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in splits.get(stage, ()):
            self.listed(split)

    def reports(self) -> dict[str, DataReport]:
        """What was found in the splits read so far."""
        labelled: dict[str, DataReport] = {split: source.report for split, source in self._labelled.items()}
        return {**super().reports(), **labelled}

    def notes(self, split: Split) -> list[str]:
        """How many pictures lie outside every cell, see :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        report = self.source(split).report
        return [f"{item.count} {what}" for what, item in report.findings.items() if "outside every cell" in what]

    def _make_partition(self) -> Partition:
        if self.partition_file is not None:
            return Partition.load(self.partition_file)
        train = self.listed("train")
        most = self.cells.get("max_photos", min(max(len(train) // _SHARE, _LEAST), _MOST))
        settings = {"max_photos": most, "min_photos": max(most // 10, 1), **self.cells}
        try:
            made = partition_photos(train.places(), **settings, source=train.report.source)
        except UserError as error:
            raise UserError(
                f"data.partition=null makes cells from {train.report.source}: {error} (data.cells)"
            ) from None
        log.info("made %d cells from %d training pictures (%s)", len(made), made.num_photos, settings)
        return made


def check_fraction(val_fraction: float | None) -> float | None:
    """A share to validate on, or None.

    Raises:
        UserError: It is outside 0 and 1.
    """
    if val_fraction is not None:
        check_val_fraction(val_fraction)
    return val_fraction
