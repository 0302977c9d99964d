"""Classification sets whose files say which picture has which class and belongs to which split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mnvision.data.class_lists import (
    ClassList,
    ClassLists,
    add_findings,
    check_unique,
    checked_corners,
    make_index,
    with_files,
)
from mnvision.data.folder_index import FolderIndex, split_index
from mnvision.data.image_folder import ClassificationDataModule
from mnvision.data.index import FindingCounter
from mnvision.data.pictures import Split
from mnvision.errors import UserError
from mnvision.transforms.annotated_box import AnnotatedBox
from mnvision.transforms.framing import CENTRAL_CROP, CenterCrop, Framing


class ListedDataModule(ClassificationDataModule):
    """Loaders of such a set; a data set adds how its files are read.

    Args:
        root: Folder of the data set.
        val_fraction: Share of the official training (and validation) pictures to validate on; None validates on the
            official validation pictures, and on the test pictures of a set that has none.
        missing: "error" refuses listed pictures that have no file, "skip" leaves them out, counted.
        crop: Central part shown in evaluation, in (0, 1].
        framing: How pictures are laid out; None shows the central part.
        **common: See :class:`~mnvision.data.pictures.PictureDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    errata: ClassVar[tuple[str, ...]] = ()
    """What is known to be wrong with scores on this set."""

    def __init__(
        self,
        root: str | Path,
        val_fraction: float | None = 0.1,
        missing: Literal["error", "skip"] = "error",
        crop: float = CENTRAL_CROP,
        framing: Framing | None = None,
        **common: Any,
    ) -> None:
        super().__init__(root, CenterCrop(crop) if framing is None else framing, **common)
        if missing not in ("error", "skip"):
            raise UserError(f"data.missing must be error or skip, got {missing!r}")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1, or be null; got {val_fraction}")
        self.val_fraction, self.missing = val_fraction, missing

    @abstractmethod
    def read_lists(self) -> ClassLists:
        """Reads the files that name pictures and classes.

        Raises:
            UserError: A file is missing or malformed.
        """

    def corners(self, names: Sequence[str], found: FindingCounter) -> NDArray[np.float64] | None:
        """Corners of the objects in pictures ``(I, 2, 2)``, where these are shown by them."""
        return None

    def check_lists(self, lists: ClassLists) -> ClassLists:
        """Looks for pictures that are named twice; what is returned is used.

        Raises:
            UserError: There are some.
        """
        check_unique(lists)
        return lists

    @cached_property
    def lists(self) -> ClassLists:
        """What the set's files say, read on first use.

        Raises:
            UserError: The folder or a file is missing or malformed.
        """
        if not self.root.is_dir():
            raise UserError(f"data root not found: {self.root}; set data.root")
        return self.check_lists(self.read_lists())

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return list(self.lists.class_names)

    def notes(self, split: Split) -> list[str]:
        """Known errata, and that the test pictures chose the checkpoint where they did."""
        chosen = "val" not in self.lists.splits and self.val_fraction is None
        by_test = ["validated on the test pictures: the score of a checkpoint that was chosen by it is no test score"]
        return [*self.errata, *(by_test if chosen and split != "train" else [])]

    def read(self, split: Split) -> FolderIndex:
        """Lists one split.

        Raises:
            UserError: A file is missing or malformed, or the set has no such split.
        """
        splits = self.lists.splits
        if split == "test":
            if "test" not in splits:
                raise UserError(f"{self.root} has no test split")
            return self._index(splits["test"])
        train, val = splits["train"], splits.get("val")
        if self.val_fraction is None:
            held_out = splits.get("test") if val is None else val
            if held_out is None and split == "val":
                raise UserError(f"{self.root} has no validation split: give data.val_fraction, such as 0.1")
            return self._index(train if split == "train" or held_out is None else held_out)
        index = self._index(train if val is None else train.joined(val))
        self._sources["train"], self._sources["val"] = split_index(index, self.val_fraction, self.seed)
        return self._sources[split]

    def _index(self, pictures: ClassList) -> FolderIndex:
        found = FindingCounter()
        add_findings(found, self.lists.found)
        kept = with_files(self.lists, pictures, self.missing, found)
        return make_index(self.lists, kept, found, self.corners(kept.names, found))


class BoxedDataModule(ListedDataModule):
    """A listed set that also says where in its pictures the object is.

    Args:
        root: Folder of the data set.
        boxes: Show the square around the object instead of the picture.
        **common: See :class:`ListedDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(self, root: str | Path, boxes: bool = False, **common: Any) -> None:
        super().__init__(root, framing=AnnotatedBox() if boxes else None, **common)
        self.boxes = boxes

    @abstractmethod
    def read_boxes(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Boxes of pictures, ``(I, 4)`` xyxy in their pixels.

        Raises:
            UserError: A box is not given, or is malformed.
        """

    def corners(self, names: Sequence[str], found: FindingCounter) -> NDArray[np.float64] | None:
        """See :meth:`ListedDataModule.corners`."""
        return checked_corners(self.lists.folder, names, self.read_boxes(names), found) if self.boxes else None

    def notes(self, split: Split) -> list[str]:
        """See :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        boxed = ["shown by annotated boxes, which pictures to predict do not have"] if self.boxes else []
        return [*super().notes(split), *boxed]
