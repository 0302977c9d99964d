"""Pictures whose place is known, as arrays that workers share, and the account of those that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mnvision.data.images import ImageSource, check_image
from mnvision.data.index import MAX_EXAMPLES, DataReport, FindingCounter
from mnvision.data.pictures import PictureSource
from mnvision.errors import UserError
from mnvision.geo.coordinates import REASONS, check_coordinates
from mnvision.geo.partition import Chunk, Partition

OUTSIDE = -1
"""Label of a picture that lies in no cell of the partition."""

_READERS = 8
_AT_ONCE = 4096  # files handed to the readers together


class GeoSource(PictureSource, Protocol):
    """Pictures of one split with their places, wherever they are stored."""

    def picture(self, position: int) -> ImageSource:
        """What the picture is decoded from."""
        ...

    def name(self, position: int) -> str:
        """What messages and results call a picture."""
        ...

    def label(self, position: int) -> int:
        """Its cell, ``0 .. K-1``, or ``OUTSIDE``; of a source that was labelled."""
        ...

    def place(self, position: int) -> NDArray[np.float64]:
        """``(2,)`` latitude and longitude in degrees."""
        ...

    def places(self) -> Iterator[Chunk]:
        """Latitudes and longitudes of all pictures, ``(N,)`` each, in pieces."""
        ...

    def labelled(self, partition: Partition, training: bool) -> Self:
        """The same pictures with the cells of a partition as labels.

        Args:
            partition: The cells.
            training: Leave pictures outside every cell out; otherwise they are kept, with the label ``OUTSIDE``. Both
                are counted in the report.

        Raises:
            UserError: All training pictures lie outside.
        """
        ...


@dataclass(frozen=True)
class GeoIndex:
    """Files of one split and where they were taken.

    Attributes:
        folder: Folder that the file names are relative to.
        file_names: ``(I,)`` file-system encoded bytes.
        coordinates: ``(I, 2)`` float64, latitude and longitude in degrees.
        report: What was found.
        labels: ``(I,)`` int64; None before a partition is known.
    """

    folder: Path
    file_names: NDArray[np.bytes_]
    coordinates: NDArray[np.float64]
    report: DataReport
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.file_names)

    def path(self, position: int) -> Path:
        """Path of one picture."""
        return self.folder / self.name(position)

    def picture(self, position: int) -> Path:
        """See :class:`GeoSource`."""
        return self.path(position)

    def name(self, position: int) -> str:
        """File name of one picture, relative to ``folder``."""
        return os.fsdecode(bytes(self.file_names[position]))

    def landmarks(self, position: int) -> None:
        """Photos of places have none."""

    def label(self, position: int) -> int:
        """See :class:`GeoSource`."""
        assert self.labels is not None
        return int(self.labels[position])

    def place(self, position: int) -> NDArray[np.float64]:
        """See :class:`GeoSource`."""
        place: NDArray[np.float64] = self.coordinates[position]
        return place

    def places(self) -> Iterator[Chunk]:
        """See :class:`GeoSource`."""
        yield self.coordinates[:, 0], self.coordinates[:, 1]

    def labelled(self, partition: Partition, training: bool) -> GeoIndex:
        """See :class:`GeoSource`."""
        labels = partition.labels(self.coordinates[:, 0], self.coordinates[:, 1])
        outside = np.flatnonzero(labels == OUTSIDE)
        examples = [self.name(row) for row in outside[:MAX_EXAMPLES].tolist()]
        report = with_outside(self.report, partition, examples, len(outside), training)
        whole = replace(self, labels=labels, report=report)
        return whole.take(np.flatnonzero(labels != OUTSIDE)) if training else whole

    def take(self, rows: NDArray[np.int64], part: str | None = None) -> GeoIndex:
        """Some of the pictures, called ``part`` in the report."""
        source = self.report.source if part is None else f"{self.report.source} ({part})"
        report = DataReport(source, len(rows), None, self.report.findings)
        labels = None if self.labels is None else self.labels[rows]
        return GeoIndex(self.folder, self.file_names[rows], self.coordinates[rows], report, labels)

    def split(self, val_fraction: float, seed: int) -> tuple[GeoIndex, GeoIndex]:
        """A training and a validation part, drawn picture by picture.

        Raises:
            UserError: There are fewer than two pictures.
        """
        if len(self) < 2:
            raise UserError(f"{self.report.source} holds {len(self)} usable pictures: too few to validate on some")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(round(val_fraction * len(self)), 1), len(self) - 1)
        held_out, others = np.sort(order[:count]), np.sort(order[count:])
        return self.take(others, "training part"), self.take(held_out, "validation part")


def with_outside(
    report: DataReport, partition: Partition, examples: Sequence[str], count: int, training: bool
) -> DataReport:
    """A report that also tells of pictures outside every cell.

    Args:
        report: Of the split.
        partition: The cells.
        examples: Names of the first pictures outside.
        count: Number of pictures outside.
        training: Whether they are left out, or scored by distance alone.

    Raises:
        UserError: All training pictures lie outside.
    """
    if training and count == report.num_images:
        raise UserError(
            f"{report.source}: all {count} pictures lie outside the {len(partition)} cells of the partition "
            f"({partition.source}); is it one of other data?"
        )
    what = "outside every cell left out of training" if training else "outside every cell, scored by distance alone"
    found = FindingCounter()
    found.add(f"pictures {what}", examples, count)
    kept = report.num_images - (count if training else 0)
    return DataReport(report.source, kept, report.num_boxes, {**report.findings, **found.findings()})


def usable_places(
    latitudes: NDArray[np.float64], longitudes: NDArray[np.float64], name: Callable[[int], str], found: FindingCounter
) -> NDArray[np.bool_]:
    """Which of N places can be used; those that cannot are counted by name.

    Args:
        latitudes: ``(N,)`` degrees, anything.
        longitudes: ``(N,)`` degrees, anything.
        name: Position -> what to call the entry in the report.
        found: Receives the counts.
    """
    checked = check_coordinates(latitudes, longitudes)
    for reason, mask in checked.refused.items():
        hits = np.flatnonzero(mask)
        named = [f"{name(hit)}: {latitudes[hit]:g}, {longitudes[hit]:g}" for hit in hits[:MAX_EXAMPLES].tolist()]
        found.add(f"pictures {REASONS[reason]} left out", named, len(hits))
    return checked.valid


def unreadable(index: GeoIndex, name: Callable[[int], str], found: FindingCounter) -> NDArray[np.bool_]:
    """Which pictures cannot be read ``(I,)``, found by reading all files without decoding them.

    Args:
        index: The pictures.
        name: Position -> what to call the picture in the report.
        found: Receives the counts.
    """

    def reason(position: int) -> str | None:
        try:
            check_image(index.path(position))
        except UserError as error:
            return str(error)
        return None

    bad = np.zeros(len(index), np.bool_)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(index), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(index)))
            for position, why in zip(part, pool.map(reason, part)):
                if why is not None:
                    bad[position] = True
                    found.add("unreadable pictures left out", [f"{name(position)}: {why}"])
    return bad


def check_share(source: str, kept: int, faulty: int, max_faulty: float, found: FindingCounter, remedy: str) -> None:
    """Refuses a set of which too little can be used.

    Args:
        source: The file or folder.
        kept: Entries that can be used.
        faulty: Entries that cannot.
        max_faulty: Largest share of entries that may be unusable, 0 .. 1.
        found: What was wrong.
        remedy: What a user can do.

    Raises:
        UserError: Nothing can be used, or the share is too large.
    """
    if kept and faulty <= max_faulty * (kept + faulty):
        return
    report = DataReport(source, kept, None, found.findings())
    allowed = "" if not kept else f", more than data.max_faulty={max_faulty:g} allows"
    raise UserError(f"{faulty} of {kept + faulty} entries cannot be used{allowed}: {report.summary()}; {remedy}")
