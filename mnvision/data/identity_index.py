"""Pictures of people as flat arrays: what a set's files say, and the part of it that one split holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mnvision.data.folder_index import read_image_folder
from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.index import DataReport, FindingCounter, encode_file_names, first_few, missing_files
from mnvision.data.tables import read_lines
from mnvision.errors import UserError
from mnvision.transforms.framing import Framing

UNKNOWN = -1


@dataclass(frozen=True)
class IdentityIndex:
    """Files and identities of one split, as arrays that workers share.

    Attributes:
        folder: Folder that the file names are relative to.
        file_names: ``(I,)`` file-system encoded bytes.
        labels: ``(I,)`` int64, ``0 .. K-1``; -1 where it is not known who it is.
        names: ``(K,)`` encoded names of the identities by label.
        points: ``(I, 5, 2)`` float32, landmarks in pixels of the pictures, NaN where there are none; None for a set
            without any.
        framing: How these pictures are laid out.
        report: What was found.
    """

    folder: Path
    file_names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    names: NDArray[np.bytes_]
    points: NDArray[np.float32] | None
    framing: Framing
    report: DataReport

    def __len__(self) -> int:
        return len(self.labels)

    def file_name(self, position: int) -> str:
        """File name of one picture, relative to ``folder``."""
        return os.fsdecode(bytes(self.file_names[position]))

    def file_list(self) -> list[str]:
        """File names by position."""
        return [os.fsdecode(bytes(name)) for name in self.file_names]

    def path(self, position: int) -> Path:
        """File of one picture."""
        return self.folder / self.file_name(position)

    def landmarks(self, position: int) -> NDArray[np.float64] | None:
        """``(5, 2)`` x and y in the picture's pixels, where known."""
        if self.points is None or np.isnan(self.points[position]).any():
            return None
        return self.points[position].astype(np.float64)

    def identity_names(self) -> list[str]:
        """Names of the identities by label."""
        return [os.fsdecode(bytes(name)) for name in self.names]


@dataclass(frozen=True)
class People:
    """What the files of a set say, or a part of it.

    Attributes:
        source: File or folder that was read, for messages.
        folder: Folder that the file names are relative to.
        file_names: I different names.
        identities: ``(I,)`` int64, rows of ``names``; -1 where it is not known who it is.
        names: The identities' names; a part of a set keeps all of them.
        found: What was skipped so far.
        splits: ``(I,)`` int8: 0 training, 1 validation, 2 test; None for a set that has none of its own.
    """

    source: str
    folder: Path
    file_names: list[str]
    identities: NDArray[np.int64]
    names: list[str]
    found: FindingCounter
    splits: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.file_names)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> People:
        """Some of the pictures, by position or flag."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows, np.int64)
        return replace(
            self,
            found=deepcopy(self.found),
            file_names=[self.file_names[row] for row in rows.tolist()],
            identities=self.identities[rows],
            splits=None if self.splits is None else self.splits[rows],
        )

    def present(self) -> set[str]:
        """Names of the identities that occur."""
        return {self.names[row] for row in np.unique(self.identities[self.identities >= 0]).tolist()}

    def index(self, points: NDArray[np.float32] | None, framing: Framing, part: str) -> IdentityIndex:
        """The arrays of a split, identities numbered anew in the order of ``names``."""
        known = np.unique(self.identities[self.identities >= 0])
        number = np.full(len(self.names) + 1, UNKNOWN, np.int64)
        number[known] = np.arange(len(known))
        names = encode_file_names([self.names[row] for row in known.tolist()])
        report = DataReport(f"{self.source} ({part})", len(self), None, self.found.findings())
        files = encode_file_names(self.file_names)
        return IdentityIndex(self.folder, files, number[self.identities], names, points, framing, report)


def list_folders(root: Path) -> People:
    """Lists pictures in folders by identity: ``NAME/*.jpg`` in ``root``, or in the one folder of it that has such.

    Raises:
        UserError: There are none.
    """
    folder = _folder_of_folders(root)
    index = read_image_folder(folder)
    found = FindingCounter()
    for what, finding in index.report.findings.items():
        found.add(what, finding.examples, finding.count)
    names = [os.fsdecode(bytes(name)) for name in index.file_names]
    return People(str(folder), folder, names, index.labels, list(index.class_folders), found)


def list_from_file(path: Path, folder: Path) -> People:
    """Reads a list of a picture and its identity on each line, as those of CASIA-WebFace and MS1M.

    Fields are separated by tabs, commas or blanks: ``path label``, ``number label path`` or ``number path label``; a
    label is a number or a name. ``path`` is the field that ends like a picture.

    Args:
        path: The list.
        folder: Folder that its names are relative to.

    Raises:
        UserError: The file is missing or malformed, or a picture has two identities; the text names the line.
    """
    label_of: dict[str, str] = {}
    again: list[str] = []
    for number, line in enumerate(read_lines(path, "list of identities"), 1):
        if not line.strip():
            continue
        name, label = _fields(line, path, number)
        if name in label_of:
            again.append(name)
            if label_of[name] != label:
                raise UserError(
                    f"{path}, line {number}: {name} is {label} here and {label_of[name]} in an earlier line"
                )
        label_of[name] = label
    found = FindingCounter()
    found.add("pictures named more than once, taken once", again)
    names = _sorted_names(set(label_of.values()))
    row = {name: position for position, name in enumerate(names)}
    identities = np.array([row[label] for label in label_of.values()], np.int64)
    return People(str(path), folder, list(label_of), identities, names, found)


def with_files(people: People, missing: Literal["error", "skip"]) -> People:
    """Refuses or leaves out pictures without a file.

    Raises:
        UserError: Some are missing, and they are not to be skipped, or all are.
    """
    absent = missing_files(people.folder, people.file_names)
    if not absent:
        return people
    if missing == "error" or len(absent) == len(people):
        raise UserError(
            f"{len(absent)} of {len(people)} pictures that {people.source} names are not in {people.folder}: "
            f"{first_few(absent)}; correct data.root or unpack them, or leave them out with data.missing=skip"
        )
    people.found.add("pictures without a file left out", absent)
    gone = set(absent)
    return people.take(np.array([name not in gone for name in people.file_names]))


def with_enough_pictures(people: People, least: int) -> People:
    """Leaves out identities with fewer than ``least`` pictures, counted.

    Raises:
        UserError: None is left.
    """
    counts = np.bincount(people.identities[people.identities >= 0], minlength=len(people.names))
    few = np.flatnonzero((counts > 0) & (counts < least))
    if not len(few):
        return people
    people.found.add(
        f"identities with fewer than {least} pictures left out", [people.names[row] for row in few[:5]], len(few)
    )
    kept = people.take(~np.isin(people.identities, few))
    if not len(kept):
        raise UserError(f"{people.source}: no identity has {least} pictures; lower data.min_images")
    return kept


def _folder_of_folders(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"data root not found: {root}; set data.root; expected NAME/*.jpg below it")
    candidates = [root, *sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))]
    fitting = [folder for folder in candidates if _holds_identities(folder)]
    if not fitting:
        raise UserError(f"{root} has no folders with pictures; expected one folder per identity: NAME/*.jpg")
    if fitting[0] != root and len(fitting) > 1:
        raise UserError(
            f"{root}: several folders hold identities ({first_few([f.name for f in fitting])}); set data.root to one"
        )
    return fitting[0]


def _holds_identities(folder: Path) -> bool:
    """Whether a folder in this one holds a picture itself."""
    with os.scandir(folder) as items:
        folders = [item.path for item in items if item.is_dir() and not item.name.startswith(".")]
    return any(name.lower().endswith(IMAGE_SUFFIXES) for path in folders for name in os.listdir(path))


def _fields(line: str, path: Path, number: int) -> tuple[str, str]:
    """File name and label of a line."""
    stripped = line.strip()
    mark = next((mark for mark in "\t," if mark in stripped), None)
    cells = [cell.strip() for cell in stripped.split(mark)]
    if mark is None and len(cells) > 3:  # blanks in the file's name
        cells = [" ".join(cells[:-1]), cells[-1]]
    pictures = [cell for cell in cells if cell.lower().endswith(IMAGE_SUFFIXES)]
    labels = [cell for cell in cells if cell not in pictures]
    if len(pictures) != 1 or not labels or len(cells) > 3 or not labels[-1]:
        raise UserError(
            f"{path}, line {number}: {stripped[:120]!r} is not a picture and its identity, such as 'a.jpg 7'"
        )
    return pictures[0].replace("\\", "/"), _label(labels[-1])


def _label(text: str) -> str:
    """Whole numbers as such, as MXNet's lists have 7.000000."""
    whole = text.split(".")
    return str(int(whole[0])) if len(whole) == 2 and whole[0].isdigit() and not whole[1].strip("0") else text


def _sorted_names(names: Sequence[str] | set[str]) -> list[str]:
    """Numbers by value, before other names."""
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
