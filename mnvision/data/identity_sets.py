"""Sets of people's pictures by the way they are written: folders, lists, CelebA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mnvision.data.attribute_splits import SPLIT_NUMBERS
from mnvision.data.celeba_files import find_file, find_pictures, landmark_file, read_identities, read_partition
from mnvision.data.face_layout import FixedPoints
from mnvision.data.identities import IdentityDataModule
from mnvision.data.identity_index import People, list_folders, list_from_file, with_files
from mnvision.data.index import FindingCounter
from mnvision.errors import UserError


class IdentityFoldersDataModule(IdentityDataModule):
    """One folder per identity: ``root/NAME/*.jpg``, or so in the only folder of ``root`` that has such.

    LFW is such a set, with ``pairs.txt`` beside the folder. Arguments and errors are those of
    :class:`~mnvision.data.identities.IdentityDataModule`.
    """

    def list_people(self) -> People:
        """See :meth:`~mnvision.data.identities.IdentityDataModule.list_people`."""
        return list_folders(self.root)


class IdentityListDataModule(IdentityDataModule):
    """A list of pictures and identities, as of CASIA-WebFace and MS1M.

    Args:
        root: Folder that the names of the list are relative to.
        framing: See :class:`~mnvision.data.identities.IdentityDataModule`.
        list: File of lines such as ``0000045/001.jpg<TAB>0``, below ``root`` or anywhere.
        **common: See :class:`~mnvision.data.identities.IdentityDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(self, root: str | Path, framing: Mapping[str, Any], list: str | Path, **common: Any) -> None:
        super().__init__(root, framing, **common)
        self.list = self.root / Path(list).expanduser()

    def list_people(self) -> People:
        """See :meth:`~mnvision.data.identities.IdentityDataModule.list_people`."""
        return with_files(list_from_file(self.list, self.root), self.missing)


class CelebaIdentitiesDataModule(IdentityDataModule):
    """The identities of CelebA in its official layout, whose partition parts people, or of a copy of it.

    Args:
        root: Folder of the data set.
        framing: See :class:`~mnvision.data.identities.IdentityDataModule`.
        images: Folder of the pictures, below ``root`` or anywhere; None looks for ``img_align_celeba``.
        partition: "official" trains on the training part; "none" takes all pictures, to be parted by ``val_fraction``
            or verified on another set.
        landmarks: File of landmarks; None takes the list of the set where it is there.
        points: Where the points lie where there is no such list, see
            :class:`~mnvision.data.identities.IdentityDataModule`.
        **common: See :class:`~mnvision.data.identities.IdentityDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any],
        images: str | None = None,
        partition: Literal["official", "none"] = "official",
        landmarks: str | Path | None = None,
        points: FixedPoints = None,
        **common: Any,
    ) -> None:
        folder = Path(root).expanduser()
        if partition not in ("official", "none"):
            raise UserError(f"data.partition={partition}: choose official or none")
        self.images, self.partition = images, partition
        if landmarks is None and folder.is_dir():
            landmarks = landmark_file(folder, self._pictures(folder))
        super().__init__(root, framing, landmarks=landmarks, points=points, **common)

    def list_people(self) -> People:
        """See :meth:`~mnvision.data.identities.IdentityDataModule.list_people`."""
        if not self.root.is_dir():
            raise UserError(f"data root not found: {self.root}; set data.root to CelebA's folder")
        path = find_file(self.root, "identity_CelebA")
        if path is None:
            raise UserError(f"identity_CelebA.txt (or .csv) not found in {self.root}; set data.root to CelebA's folder")
        table, found, splits = read_identities(path), FindingCounter(), None
        if self.partition == "official":
            file = find_file(self.root, "list_eval_partition")
            if file is None:
                raise UserError(
                    f"list_eval_partition.txt (or .csv) not found in {self.root}: add it, or set data.partition=none"
                )
            partition = read_partition(file)
            rows = partition.rows(table.file_names)
            splits = np.where(rows >= 0, partition.values[rows], -1).astype(np.int8)
            found.add(
                "pictures that the partition file does not name left out",
                [table.file_names[row] for row in np.flatnonzero(rows < 0)],
            )
        numbers, identities = np.unique(table.values, return_inverse=True)
        names = [str(number) for number in numbers.tolist()]
        people = People(
            str(path), self._pictures(self.root), table.file_names, identities.astype(np.int64), names, found, splits
        )
        used = people if splits is None else people.take(splits >= SPLIT_NUMBERS["train"])
        return with_files(used, self.missing)

    def _pictures(self, root: Path) -> Path:
        return find_pictures(root) if self.images is None else root / self.images
