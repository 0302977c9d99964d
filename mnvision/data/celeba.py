"""CelebA: faces with 40 attributes, a partition, identities and landmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.attribute_index import Listed
from mnvision.data.attribute_splits import splits_of
from mnvision.data.attributes import AttributeDataModule
from mnvision.data.celeba_files import (
    UNALIGNED,
    find_file,
    find_pictures,
    landmark_file,
    read_attributes,
    read_identities,
    read_landmarks,
    read_partition,
)
from mnvision.data.index import FindingCounter
from mnvision.data.pictures import Split
from mnvision.errors import UserError

FACE_BOX = (0.0, 20 / 218, 1.0, 198 / 218)
"""The central square of an aligned picture, 178 of 218 rows: hair and chin are in it, and a face stays as wide as it
is; the whole picture made square would widen it by a fifth."""


class CelebaDataModule(AttributeDataModule):
    """CelebA in its official layout, or a copy of it at any size.

    ``list_attr_celeba``, ``list_eval_partition`` and, if there are any, ``identity_CelebA`` and the landmarks are
    looked for in ``root`` and its folders ``Anno`` and ``Eval``, as ``.txt`` or ``.csv``.

    Args:
        root: Folder of the data set.
        framing: See :class:`~mnvision.data.attributes.AttributeDataModule`; None shows :data:`FACE_BOX` of
            the aligned pictures.
        images: Folder of the pictures, below ``root`` or anywhere; None looks for ``img_align_celeba``.
        **common: See :class:`~mnvision.data.attributes.AttributeDataModule`. Where identities are known,
            ``val_fraction`` puts nobody into both parts.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any] | None = None,
        images: str | None = None,
        **common: Any,
    ) -> None:
        if framing is None and images is not None and Path(images).name == UNALIGNED:
            raise UserError(
                f"data.images={images}: these pictures are not aligned; set data.framing, such as "
                "data.framing='{resize: five_points}'"
            )
        super().__init__(root, {"resize": "box", "box": FACE_BOX} if framing is None else framing, **common)
        self.images = images

    def list_pictures(self, split: Split) -> Listed:
        """See :meth:`~mnvision.data.attributes.AttributeDataModule.list_pictures`."""
        path = find_file(self.root, "list_attr_celeba")
        if path is None:
            raise UserError(f"list_attr_celeba.txt (or .csv) not found in {self.root}; set data.root")
        folder = find_pictures(self.root) if self.images is None else self.root / self.images
        table, found = read_attributes(path), FindingCounter()
        partition = find_file(self.root, "list_eval_partition")
        if partition is None and self.val_fraction is None:
            raise UserError(
                f"list_eval_partition.txt (or .csv) not found in {self.root}: add it, or set data.val_fraction to "
                "validate on a part of all pictures"
            )
        if partition is None:
            splits = np.zeros(len(table), np.int8)
        else:
            splits = splits_of(table.file_names, read_partition(partition), found)
        identities = find_file(self.root, "identity_CelebA")
        groups = None if identities is None else self._people(table.file_names, identities)
        landmarks = landmark_file(self.root, folder)
        points = None if landmarks is None else _points(table.file_names, landmarks)
        return Listed(folder, table, splits, groups, points, found)

    @staticmethod
    def _people(names: list[str], path: Path) -> NDArray[np.int64]:
        """Identity of each picture; those that the file does not name are each somebody else."""
        table = read_identities(path)
        rows = table.rows(names)
        strangers = table.values.max() + 1 + np.arange(len(names))
        return np.asarray(np.where(rows >= 0, table.values[rows], strangers), np.int64)


def _points(names: list[str], path: Path) -> NDArray[np.float64]:
    table = read_landmarks(path)
    rows = table.rows(names)
    points = table.values[rows]
    points[rows < 0] = np.nan
    return np.asarray(points, np.float64)
