"""Files and labels of a classification set, and how an image folder, one folder per class, is listed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.index import DataReport, FindingCounter, encode_file_names, first_few
from mnvision.errors import UserError


@dataclass(frozen=True)
class FolderIndex:
    """Files and labels of one split, as arrays that workers share.

    Attributes:
        folder: Folder that the file names are relative to.
        file_names: ``(I,)`` file-system encoded bytes.
        labels: ``(I,)`` int64, ``0 .. K-1``.
        class_folders: Label -> folder name, sorted; of a listed set the class's name.
        report: What was found.
        corners: ``(I, 2, 2)`` float64, x and y of the top left and bottom right corner of the object in pixels of the
            picture, where pictures are shown by it.
    """

    folder: Path
    file_names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    class_folders: tuple[str, ...]
    report: DataReport
    corners: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, position: int) -> Path:
        """Path of one image."""
        return self.folder / os.fsdecode(bytes(self.file_names[position]))

    def landmarks(self, position: int) -> NDArray[np.float64] | None:
        """Corners of the object ``(2, 2)``; None where it is not known."""
        return None if self.corners is None else self.corners[position]

    def take(self, positions: NDArray[np.int64], part: str) -> FolderIndex:
        """Some of the images as an index of their own, called ``part`` in the report."""
        report = DataReport(f"{self.report.source} ({part})", len(positions), None, self.report.findings)
        corners = None if self.corners is None else self.corners[positions]
        names, labels = self.file_names[positions], self.labels[positions]
        return FolderIndex(self.folder, names, labels, self.class_folders, report, corners)


def read_image_folder(folder: Path, class_folders: Sequence[str] | None = None) -> FolderIndex:
    """Lists the images of one split; folders inside a class folder belong to it, hidden files are left out.

    Args:
        folder: Holds one folder per class.
        class_folders: The classes by label; None takes the sorted folder names.

    Raises:
        UserError: The folder is missing, holds no class folders or no images, or has a class that is not
            among ``class_folders``.
    """
    if not folder.is_dir():
        raise UserError(f"image folder not found: {folder}; expected one folder per class, such as {folder}/cat")
    present = sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))
    if not present:
        raise UserError(f"{folder} has no class folders; expected one folder per class, such as {folder}/cat")
    unknown = sorted(set(present) - set(class_folders)) if class_folders is not None else []
    if unknown:
        raise UserError(
            f"{folder} has classes that the training folder does not have: {first_few(unknown)}; "
            "remove or rename these folders"
        )
    classes = tuple(class_folders if class_folders is not None else present)
    names: list[str] = []
    labels: list[int] = []
    found = FindingCounter()
    for label, name in enumerate(classes):
        images, others = list_images(folder, name)
        names += images
        labels += [label] * len(images)
        found.add("files that are no images skipped", others)
        found.add("classes without images", [] if images else [name])
    if not names:
        raise UserError(f"{folder} holds no images (known endings: {' '.join(IMAGE_SUFFIXES)})")
    report = DataReport(str(folder), len(names), None, found.findings())
    return FolderIndex(folder, encode_file_names(names), np.array(labels, np.int64), classes, report)


def split_index(index: FolderIndex, val_fraction: float, seed: int) -> tuple[FolderIndex, FolderIndex]:
    """Splits every class at random; each class with two images or more is in both parts.

    Returns:
        The training and the validation part.
    """
    rng, val_parts = np.random.default_rng(seed), []
    for label in range(len(index.class_folders)):
        members = rng.permutation(np.flatnonzero(index.labels == label))
        count = min(max(round(val_fraction * len(members)), 1), len(members) - 1) if len(members) > 1 else 0
        val_parts.append(members[:count])
    val = np.sort(np.concatenate(val_parts))
    if not len(val):
        raise UserError(f"{index.report.source}: no class has two images, so nothing can be split off to validate on")
    train = np.setdiff1d(np.arange(len(index)), val)
    return index.take(train, "training part"), index.take(val, "validation part")


def list_images(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Images below one class folder, sorted, and the other files; relative to ``folder``."""
    images: list[str] = []
    others: list[str] = []
    for parent, folders, files in os.walk(folder / name, followlinks=True):
        folders[:] = [item for item in folders if not item.startswith(".")]
        for file in files:
            if not file.startswith("."):
                path = os.path.relpath(os.path.join(parent, file), folder)
                (images if file.lower().endswith(IMAGE_SUFFIXES) else others).append(path)
    return sorted(images), sorted(others)


def read_class_names(path: Path, folders: Sequence[str]) -> list[str]:
    """Readable names of class folders; a name that several classes share gets its folder appended.

    Args:
        path: Text file with a folder name and a readable name on each line.
        folders: The class folders by label.

    Raises:
        UserError: The file cannot be read or lacks a folder.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read class names file {path}: {error}") from None
    pairs = [line.replace("\t", " ").strip().split(" ", 1) for line in lines if line.strip()]
    names = {pair[0].rstrip(",:"): pair[1].strip() for pair in pairs if len(pair) == 2}
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise UserError(f"{path} has no name for class folders {first_few(missing)}; add lines 'folder name'")
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    return [f"{names[folder]} ({folder})" if names[folder] in shared else names[folder] for folder in folders]
