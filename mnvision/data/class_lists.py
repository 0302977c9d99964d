"""Pictures that files assign to classes and splits: what such a set says, and how it becomes an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.folder_index import FolderIndex
from mnvision.data.images import image_size
from mnvision.data.index import DataReport, FindingCounter, encode_file_names, first_few, missing_files, usable_boxes
from mnvision.data.pictures import Split
from mnvision.errors import UserError


@dataclass(frozen=True)
class ClassList:
    """The pictures of one split.

    Attributes:
        source: The file that names them.
        names: ``I`` file names, relative to the folder of the pictures.
        labels: ``(I,)`` int64, ``0 .. K-1``.
    """

    source: str
    names: list[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, kept: NDArray[Any]) -> ClassList:
        """Those of the pictures that ``kept``, positions or a mask, selects."""
        rows = np.arange(len(self))[kept]
        return ClassList(self.source, [self.names[row] for row in rows], self.labels[rows])

    def joined(self, other: ClassList) -> ClassList:
        """These pictures and others."""
        labels = np.concatenate([self.labels, other.labels])
        return ClassList(f"{self.source} and {Path(other.source).name}", [*self.names, *other.names], labels)


@dataclass(frozen=True)
class ClassLists:
    """All that the files of a set say.

    Attributes:
        folder: Folder of the pictures.
        class_names: K names by label.
        splits: The pictures of each split that the set has.
        found: What was wrong with the files' entries.
    """

    folder: Path
    class_names: tuple[str, ...]
    splits: Mapping[Split, ClassList]
    found: FindingCounter


def add_findings(found: FindingCounter, others: FindingCounter) -> None:
    """Counts what another counter has counted."""
    for what, finding in others.findings().items():
        found.add(what, finding.examples, finding.count)


def check_unique(lists: ClassLists) -> None:
    """Refuses pictures that a set names twice, in one split or in two.

    Raises:
        UserError: There are some.
    """
    seen: dict[str, str] = {}
    for pictures in lists.splits.values():
        twice = [name for name, count in Counter(pictures.names).items() if count > 1]
        if twice:
            raise UserError(
                f"{pictures.source} names pictures more than once: {first_few(twice)}; keep one line of each"
            )
        both = [name for name in pictures.names if name in seen]
        if both:
            raise UserError(
                f"{pictures.source} names pictures that {seen[both[0]]} names too: {first_few(both)}; a picture "
                "belongs to one split"
            )
        seen.update(dict.fromkeys(pictures.names, pictures.source))


def with_files(lists: ClassLists, pictures: ClassList, missing: str, found: FindingCounter) -> ClassList:
    """Leaves out, or refuses, pictures without a file.

    Args:
        lists: The set.
        pictures: Those of a split.
        missing: "error" or "skip".
        found: Receives what is left out.

    Raises:
        UserError: A picture is missing, or all are.
    """
    absent = missing_files(lists.folder, pictures.names)
    if absent and (missing == "error" or len(absent) == len(pictures)):
        remedy = "unpack them" if missing == "skip" else "unpack them, or leave them out with data.missing=skip"
        raise UserError(
            f"{len(absent)} of {len(pictures)} pictures that {pictures.source} names are not in {lists.folder}: "
            f"{first_few(absent)}; {remedy}"
        )
    found.add("listed pictures without a file left out", absent)
    gone = set(absent)
    kept = pictures.take(np.array([name not in gone for name in pictures.names], np.bool_))
    if not len(kept):
        raise UserError(f"{pictures.source} names no pictures")
    counts = np.bincount(kept.labels, minlength=len(lists.class_names))
    found.add("classes without pictures", [lists.class_names[label] for label in np.flatnonzero(counts == 0)])
    return kept


def make_index(
    lists: ClassLists, pictures: ClassList, found: FindingCounter, corners: NDArray[np.float64] | None
) -> FolderIndex:
    """The pictures as arrays that workers share."""
    names = encode_file_names(pictures.names)
    report = DataReport(pictures.source, len(pictures), None, found.findings())
    return FolderIndex(lists.folder, names, pictures.labels, lists.class_names, report, corners)


def checked_corners(
    folder: Path, names: Sequence[str], xyxy: NDArray[np.float64], found: FindingCounter
) -> NDArray[np.float64]:
    """Corners of the objects, within their pictures.

    Args:
        folder: Folder of the pictures.
        names: ``I`` file names below it.
        xyxy: ``(I, 4)``, a box per picture, in its pixels.
        found: Receives the boxes that were clipped.

    Returns:
        ``(I, 2, 2)`` float64, x and y of the top left and of the bottom right corner.

    Raises:
        UserError: A box is outside its picture, without area or no number; or a picture cannot be read.
    """
    sizes = np.array([image_size(folder / name) for name in names], np.int32).reshape(-1, 2)
    own = FindingCounter()
    boxes, usable = usable_boxes(xyxy, sizes, names.__getitem__, own)
    if not usable.all():
        bad = int(np.flatnonzero(~usable)[0])
        raise UserError(
            f"{folder / names[bad]} is {sizes[bad, 1]} x {sizes[bad, 0]}, its box {xyxy[bad].tolist()}, and "
            f"{int((~usable).sum())} of {len(names)} boxes are so useless; are the boxes of pictures of another size? "
            "data.boxes=false does without"
        )
    add_findings(found, own)
    return boxes.astype(np.float64).reshape(-1, 2, 2)


def classes_by_id(path: Path, ids: Sequence[int], names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes where every picture tells its class's number and name.

    Args:
        path: The file, for messages.
        ids: Number of each picture's class, from 1.
        names: Name of each picture's class.

    Returns:
        The names by label, in the order of the numbers, and the labels ``(I,)``.

    Raises:
        UserError: A number below 1, one that goes with two names, or a name with two numbers.
    """
    name_of: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for entry, (number, name) in enumerate(zip(ids, names, strict=True), start=1):
        where = f"{path}, entry {entry}: class {number}"
        if number < 1:
            raise UserError(f"{where}; classes count from 1")
        if name_of.setdefault(number, name) != name:
            raise UserError(f"{where} is {name} here and {name_of[number]} elsewhere")
        if id_of.setdefault(name, number) != number:
            raise UserError(f"{where} is {name}, which is class {id_of[name]} elsewhere")
    label_of = {number: label for label, number in enumerate(sorted(name_of))}
    return tuple(name_of[number] for number in label_of), np.array([label_of[number] for number in ids], np.int64)


def labels_of(path: Path, ids: Sequence[int], first: int, count: int) -> NDArray[np.int64]:
    """Class numbers of a file as labels from 0.

    Args:
        path: The file, for the message.
        ids: As it gives them.
        first: The number of the first class.
        count: Number of classes.

    Raises:
        UserError: A number is out of range.
    """
    labels = np.array(ids, np.int64) - first
    bad = np.flatnonzero((labels < 0) | (labels >= count))
    if len(bad):
        raise UserError(
            f"{path}, entry {int(bad[0]) + 1}: class {int(labels[bad[0]]) + first} is not in {first} .. "
            f"{first + count - 1} ({len(bad)} such entries)"
        )
    return labels
