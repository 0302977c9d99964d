"""Annotations of a detection data set as flat arrays, and the account of what was wrong in the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """How often one kind of flaw occurred.

    Attributes:
        count: Number of occurrences.
        examples: The first few, in words (annotation ids, file names).
    """

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What one split holds and what was skipped or changed while it was read.

    Attributes:
        source: The file or folder that was read.
        num_images: Images of the split.
        num_boxes: Usable objects, without crowd regions; None for sets without boxes.
        findings: Flaw in words -> how often; only those that occurred.
    """

    source: str
    num_images: int
    num_boxes: int | None
    findings: Mapping[str, Finding] = field(default_factory=dict)

    def summary(self) -> str:
        """The report in one line."""
        boxes = "" if self.num_boxes is None else f", {self.num_boxes} boxes"
        text = f"{self.source}: {self.num_images} images{boxes}"
        for what, finding in self.findings.items():
            more = ", ..." if finding.count > len(finding.examples) else ""
            text += f"; {finding.count} {what} ({', '.join(finding.examples)}{more})"
        return text


class ImageObjects(TypedDict):
    """Objects of one picture.

    Attributes:
        boxes: ``(N, 4)`` float32, xyxy in pixels of the original picture.
        labels: ``(N,)`` int64, ``0 .. K-1``.
        crowd: ``(N,)`` bool.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class DetectionIndex:
    """One split: I images with N boxes in a handful of arrays.

    Arrays and not lists of objects, because a forked worker that touches a Python object copies its memory
    page: lists of dicts grow to a full copy in every worker, arrays stay shared.

    Attributes:
        image_dir: Folder that the file names are relative to.
        file_names: ``(I,)`` file-system encoded bytes (numpy ``S``).
        image_ids: ``(I,)`` int64, the data set's own ids.
        sizes: ``(I, 2)`` int32, height and width.
        box_offsets: ``(I + 1,)`` int64; image i has rows ``box_offsets[i] : box_offsets[i + 1]``.
        boxes: ``(N, 4)`` float32, xyxy in pixels of the original picture, inside it and of positive area.
        labels: ``(N,)`` int64, ``0 .. K-1``.
        crowd: ``(N,)`` bool, regions that are neither object nor background.
        class_names: Label -> name.
        category_ids: Label -> category id in the annotation file.
        report: What was skipped, clipped and counted.
    """

    image_dir: Path
    file_names: NDArray[np.bytes_]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    box_offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    report: DataReport

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, position: int) -> str:
        """File name of one image, relative to ``image_dir``."""
        return os.fsdecode(bytes(self.file_names[position]))

    def path(self, position: int) -> Path:
        """Path of one image."""
        return self.image_dir / self.file_name(position)

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of one image."""
        height, width = self.sizes[position]
        return int(height), int(width)

    def objects(self, position: int) -> ImageObjects:
        """Objects of one image; views, not copies."""
        rows = slice(int(self.box_offsets[position]), int(self.box_offsets[position + 1]))
        return {"boxes": self.boxes[rows], "labels": self.labels[rows], "crowd": self.crowd[rows]}


class FindingCounter:
    """Collects flaws while a split is read."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, what: str, examples: Sequence[object], count: int | None = None) -> None:
        """Counts occurrences of a flaw.

        Args:
            what: The flaw in words, such as ``"boxes of zero area skipped"``.
            examples: The occurrences, or the first few of them.
            count: Their number where ``examples`` is not all of them.
        """
        count = len(examples) if count is None else count
        if count:
            self._counts[what] = self._counts.get(what, 0) + count
            kept = self._examples.setdefault(what, [])
            kept += [str(example) for example in examples[: MAX_EXAMPLES - len(kept)]]

    def findings(self) -> dict[str, Finding]:
        """Flaw in words -> count and examples, in the order of first occurrence."""
        return {what: Finding(count, tuple(self._examples[what])) for what, count in self._counts.items()}


def usable_boxes(
    xyxy: NDArray[np.float64], sizes: NDArray[np.int32], name: Callable[[int], str], found: FindingCounter
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clips boxes to their pictures and finds the unusable ones.

    Args:
        xyxy: ``(N, 4)`` in pixels, may hold anything.
        sizes: ``(N, 2)`` height and width of each box's picture.
        name: Row -> what to call that box in the report.
        found: Receives the counts.

    Returns:
        The clipped boxes ``(N, 4)`` and which of them are usable ``(N,)``.
    """
    finite = np.asarray(np.isfinite(xyxy).all(axis=1))
    xyxy = np.where(finite[:, None], xyxy, 0.0)
    has_area = np.asarray((xyxy[:, 2:] > xyxy[:, :2]).all(axis=1))
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    clipped = np.clip(xyxy, 0.0, limits).astype(np.float32)
    inside = np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    usable = finite & has_area & inside
    # Writers round to two decimals: what is cut off by less than that is not worth a line.
    cut = usable & (np.abs(clipped - xyxy) > 0.0101).any(axis=1)
    for what, rows in (
        ("boxes with NaN or infinite coordinates skipped", ~finite),
        ("boxes of zero area skipped", finite & ~has_area),
        ("boxes outside their image skipped", finite & has_area & ~inside),
        ("boxes clipped to their image", cut),
    ):
        hits = np.flatnonzero(rows)
        found.add(what, [name(row) for row in hits[:MAX_EXAMPLES].tolist()], len(hits))
    return clipped, usable


def check_same_categories(train: DetectionIndex, other: DetectionIndex, split: str) -> None:
    """Refuses a split whose categories are not those of the training split.

    Both are sorted by category id, so a different order in the files does not matter.

    Raises:
        UserError: Ids or names differ; the text names them.
    """
    expected = dict(zip(train.category_ids, train.class_names))
    got = dict(zip(other.category_ids, other.class_names))
    if expected == got:
        return
    differing = sorted(key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))
    shown = ", ".join(f"{key}: {expected.get(key, '-')} / {got.get(key, '-')}" for key in differing[:8])
    more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
    raise UserError(
        f"categories of train and {split} differ (id: train / {split}): {shown}{more}; "
        f"make the categories of {other.report.source} those of {train.report.source}"
    )


def encode_file_names(names: Sequence[str]) -> NDArray[np.bytes_]:
    """File names as one array of bytes."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def missing_files(image_dir: Path, names: Sequence[str]) -> list[str]:
    """Names of files that do not exist, by listing each folder once instead of asking for every file."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(os.path.dirname(name), []).append(name)
    missing: set[str] = set()
    for folder, members in by_folder.items():
        try:
            present = set(os.listdir(image_dir / folder))
        except OSError:
            present = set()
        missing.update(name for name in members if os.path.basename(name) not in present)
    return [name for name in names if name in missing]


def first_few(values: Sequence[object], limit: int = MAX_EXAMPLES) -> str:
    """The first values as text, with an ellipsis where there are more."""
    return ", ".join(str(value) for value in values[:limit]) + (", ..." if len(values) > limit else "")
