"""Pictures with yes-or-no attributes, of which any may be unknown: what all sets of that kind share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.data.attribute_index import AttributeIndex, Listed, index_rows
from mnvision.data.attribute_splits import SPLIT_NUMBERS, split_off
from mnvision.data.images import image_size
from mnvision.data.index import first_few, missing_files
from mnvision.data.pictures import PictureDataModule, PictureDataset, PictureSample, Split, collate_views
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import framing_from_dict
from mnvision.types import AttributeBatch

log = logging.getLogger(__name__)


class AttributeSample(NamedTuple):
    """One view of a picture and its labels ``(A,)`` int8."""

    view: PictureSample
    labels: NDArray[np.int8]


class AttributeDataset(PictureDataset[AttributeIndex, AttributeSample]):
    """Pictures with attributes."""

    def labelled(self, view: PictureSample) -> AttributeSample:
        """See :class:`~mnvision.data.pictures.PictureDataset`."""
        return AttributeSample(view, self.source.labels[view.position])


def collate_attributes(samples: Sequence[AttributeSample]) -> AttributeBatch:
    """Stacks samples."""
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples]))
    return {**collate_views([sample.view for sample in samples]), "labels": labels}  # type: ignore[typeddict-item]


class AttributeDataModule(PictureDataModule[AttributeIndex]):
    """Loaders of pictures with attributes; a data set adds how its files are read.

    Args:
        root: Folder of the data set.
        framing: How pictures are laid out: ``{"resize": "box", "box": (x0, y0, x1, y1)}`` as fractions,
            ``{"resize": "center_crop", "crop_fraction": f}``, ``{"resize": "stretch"}`` and others, see
            :func:`~mnvision.transforms.framing.framing_from_dict`.
        attributes: Those to learn, in this order; None takes all.
        missing: "error" refuses labels of pictures that have no file, "skip" leaves them out, counted.
        val_fraction: Share of the training pictures to validate on, for a set without validation pictures.
        **common: See :class:`~mnvision.data.pictures.PictureDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any],
        attributes: Sequence[str] | None = None,
        missing: Literal["error", "skip"] = "error",
        val_fraction: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(root, framing_from_dict(framing), **common)
        if missing not in ("error", "skip"):
            raise UserError(f"data.missing must be error or skip, got {missing!r}")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        if isinstance(attributes, str):
            raise UserError(f"data.attributes={attributes}: write a list, data.attributes=[{attributes}]")
        if attributes is not None and (not attributes or len(set(attributes)) != len(attributes)):
            raise UserError(f"data.attributes must name at least one attribute, and none twice; got {list(attributes)}")
        self.attributes = None if attributes is None else [str(name) for name in attributes]
        self.missing, self.val_fraction = missing, val_fraction

    @abstractmethod
    def list_pictures(self, split: Split) -> Listed:
        """Reads the files that say what a split holds.

        Raises:
            UserError: A file is missing or malformed.
        """

    @property
    def class_names(self) -> list[str]:
        """The attributes by column."""
        source = next(iter(self._sources.values())) if self._sources else self.source("train")
        return list(source.attribute_names)

    @property
    def collate(self) -> Callable[..., AttributeBatch]:
        """Samples to a batch."""
        return collate_attributes

    def dataset(
        self, source: AttributeIndex, augment: ClassificationAugment | None, teacher: TeacherView | None
    ) -> AttributeDataset:
        """The data set over a split's pictures."""
        return AttributeDataset(source, self.resolution, self.framing, augment, self.seed, teacher)

    def read(self, split: Split) -> AttributeIndex:
        """Lists one split, and what the same files say of others.

        Raises:
            UserError: A file is missing or malformed, a picture is missing, or the split is empty.
        """
        if not self.root.is_dir():
            raise UserError(f"data root not found: {self.root}; set data.root")
        listed = self._with_files(self._selected(self.list_pictures(split)))
        parts = self._parts(listed, split)
        if not len(parts.get(split, ())):
            raise UserError(
                f"{listed.table.path}: no picture belongs to the {split} split; name a file or column that tells the "
                "splits, or set data.val_fraction to validate on a part of the training pictures"
            )
        for name, rows in parts.items():
            if len(rows):
                self._sources[name] = index_rows(listed, rows, name)
        if len(parts.get("train", ())):
            _warn_of_constants(self._sources["train"])
        self._check_landmarks(self._sources[split])
        return self._sources[split]

    def _selected(self, listed: Listed) -> Listed:
        """Keeps the chosen attributes, or those of a split that was listed before."""
        wanted = self.class_names if self._sources and self.attributes is None else self.attributes
        if wanted is None:
            return listed
        columns = listed.table.columns
        unknown = [name for name in wanted if name not in columns]
        if unknown:
            raise UserError(
                f"{listed.table.path} has no attribute {first_few(unknown)}; it has {', '.join(columns[:50])}"
            )
        chosen = listed.table.values[:, [columns.index(name) for name in wanted]]
        return replace(listed, table=replace(listed.table, columns=tuple(wanted), values=chosen))

    def _with_files(self, listed: Listed) -> Listed:
        """Refuses or leaves out pictures without a file."""
        table = listed.table
        absent = missing_files(listed.folder, table.file_names)
        if not absent:
            return listed
        if self.missing == "error" or len(absent) == len(table):
            raise UserError(
                f"{len(absent)} of {len(table)} pictures that {table.path} names are not in {listed.folder}: "
                f"{first_few(absent)}; correct data.images or unpack them, or leave them out with data.missing=skip"
            )
        listed.found.add("labelled pictures without a file left out", absent)
        gone = set(absent)
        kept = np.array([row for row, name in enumerate(table.file_names) if name not in gone])
        names = [table.file_names[row] for row in kept]
        return replace(
            listed,
            table=replace(table, file_names=names, values=table.values[kept]),
            splits=None if listed.splits is None else listed.splits[kept],
            groups=None if listed.groups is None else listed.groups[kept],
            points=None if listed.points is None else listed.points[kept],
        )

    def _parts(self, listed: Listed, split: Split) -> dict[Split, NDArray[np.int64]]:
        """Rows of each split."""
        every = np.arange(len(listed.table))
        if listed.splits is None:
            of_train = self.val_fraction is not None and split == "val"
            parts: dict[Split, NDArray[np.int64]] = {"train" if of_train else split: every}
        else:
            parts = {name: every[listed.splits == number] for name, number in SPLIT_NUMBERS.items()}
        if self.val_fraction is None or "train" not in parts:
            return parts
        if len(parts.get("val", ())):
            raise UserError(f"{listed.table.path} has validation pictures of its own: take out data.val_fraction")
        train = parts["train"]
        groups = None if listed.groups is None else listed.groups[train]
        held_out = split_off(len(train), self.val_fraction, self.seed, groups)
        return {**parts, "train": train[~held_out], "val": train[held_out]}

    def _check_landmarks(self, index: AttributeIndex) -> None:
        """Refuses a framing by landmarks where there are none, and landmarks of pictures of another size."""
        if not self.framing.needs_landmarks:
            return
        without = len(index) if index.points is None else int(np.isnan(index.points).any(axis=(1, 2)).sum())
        if index.points is None or without:
            raise UserError(
                f"{index.report.source}: {without} of {len(index)} pictures have no landmarks, which data.framing "
                "needs; add the landmark file or choose another data.framing"
            )
        height, width = image_size(index.path(0))
        x, y = index.points[0].max(axis=0)
        if x > width or y > height:
            raise UserError(
                f"{index.path(0)} is {width} x {height}, but has a landmark at {x:.0f}, {y:.0f}: the landmark file is "
                "of pictures of another size; choose another data.framing"
            )


def _warn_of_constants(train: AttributeIndex) -> None:
    """Names the attributes that nothing can be learned of."""
    positive, negative = train.counts()
    for what, rows in (
        ("are never true in any picture", (positive == 0) & (negative > 0)),
        ("are true in every picture", (positive > 0) & (negative == 0)),
        ("are not known in any picture", (positive == 0) & (negative == 0)),
    ):
        names = [train.attribute_names[column] for column in np.flatnonzero(rows)]
        if names:
            log.warning("%s: attributes that %s: %s", train.report.source, what, ", ".join(names))
