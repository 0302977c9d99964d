"""PlaNet's adaptive partition of the earth: small cells where many photos were taken, none where there are few.

Weyand, Kostrikov, Philbin: "PlaNet - Photo Geolocation with Convolutional Neural Networks" (2016), section 3.1: from
the six faces of the cube down, a cell is split while it holds more than t1 photos; cells with fewer than t2 are left
out. The paper has 26,263 cells with t1 = 10,000 and t2 = 50, from 91 million photos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mnvision.errors import UserError
from mnvision.geo.cells import cell_ids, children, ranges, tokens
from mnvision.geo.coordinates import check_coordinates, one_spelling
from mnvision.geo.counting import CellCounter, CellSums
from mnvision.geo.curve import MAX_LEVEL
from mnvision.geo.distance import coordinates_of

DECIMALS = 5
"""Of the positions, in degrees: about a metre."""
COARSE_LEVEL = 13
"""Finest cells unless asked otherwise: 0.8 to 1.2 km wide, so that an answer never points at a house."""
_FACES = np.array([2 * face + 1 << 60 for face in range(6)], np.uint64)

Chunk = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class PartitionSettings:
    """What decides how far cells are split.

    Attributes:
        max_photos: PlaNet's t1: a cell with more photos is split.
        min_photos: PlaNet's t2: a cell with fewer photos is left out.
        min_level: Coarser cells are split whatever they hold; 0 is a sixth of the earth.
        max_level: Cells of this level are not split further, so that many photos of one place come to an end.

    Raises:
        UserError: Values that contradict each other.
    """

    max_photos: int = 10_000
    min_photos: int = 50
    min_level: int = 0
    max_level: int = COARSE_LEVEL

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"{name}={value!r}: give a whole number")
        if self.min_photos < 1:
            raise UserError(
                f"min_photos={self.min_photos}: give 1 or more; a cell without photos has no place to answer"
            )
        if self.max_photos < self.min_photos:
            raise UserError(
                f"max_photos={self.max_photos} is below min_photos={self.min_photos}: cells would be split until they "
                "are too small to keep; give a larger max_photos"
            )
        if not 0 <= self.min_level <= self.max_level <= MAX_LEVEL:
            raise UserError(
                f"min_level={self.min_level}, max_level={self.max_level}: give levels 0 to {MAX_LEVEL}, the least first"
            )


@dataclass(frozen=True, eq=False)
class Partition:
    """K cells that do not overlap; the classes of a geolocation model.

    Attributes:
        cells: ``(K,)`` uint64 ids of S2 cells of any levels, rising.
        counts: ``(K,)`` int64, photos that the partition was built from, by cell.
        positions: ``(K, 2)`` float64 latitude and longitude in degrees, rounded to five decimals: mean of those
            photos on the sphere, which is what a prediction of the cell answers.
        settings: How it was built.
        num_photos: Photos that it was built from, those outside its cells too.
        num_dropped: Photos of cells that held fewer than ``settings.min_photos``.
        source: Where the photos came from, in words.
    """

    cells: NDArray[np.uint64]
    counts: NDArray[np.int64]
    positions: NDArray[np.float64]
    settings: PartitionSettings
    num_photos: int
    num_dropped: int
    source: str = ""

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def names(self) -> list[str]:
        """S2's tokens of the cells, ``(K,)``."""
        return tokens(self.cells)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that differ where cells, counts or positions do."""
        digest = hashlib.sha256(b"mnvision partition 1")
        whole = np.rint(self.positions * 10**DECIMALS)
        for part, kind in ((self.cells, "<u8"), (self.counts, "<i8"), (whole, "<i8")):
            digest.update(part.astype(kind).tobytes())
        return digest.hexdigest()

    def labels(self, latitudes: ArrayLike, longitudes: ArrayLike) -> NDArray[np.int64]:
        """Class of each place.

        Args:
            latitudes: ``(N,)`` degrees, -90 .. 90.
            longitudes: ``(N,)`` degrees, -180 .. 180.

        Returns:
            ``(N,)`` int64, ``0 .. K-1``, and -1 outside every cell.
        """
        places = one_spelling(np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64))
        leaves = cell_ids(*places)
        first, last = ranges(self.cells)
        found = np.searchsorted(first, leaves, side="right") - 1
        return np.where((found >= 0) & (leaves <= last[found]), found, -1)

    def save(self, path: Path | str) -> None:
        """Write an ``.npz`` file.

        Raises:
            UserError: Another suffix, or the file cannot be written.
        """
        from mnvision.geo.partition_file import save_partition

        save_partition(self, path)

    @classmethod
    def load(cls, path: Path | str) -> Partition:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: The file is missing, no partition, of a later version, or its content cannot be right.
        """
        from mnvision.geo.partition_file import load_partition

        return load_partition(path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint: tokens, counts, positions and how it was built."""
        from mnvision.geo.partition_file import about

        return about(self) | {
            "cells": self.names,
            "counts": self.counts.tolist(),
            "positions": self.positions.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Partition:
        """Inverse of :meth:`to_dict`.

        Raises:
            UserError: The data is no partition, of a later version, or cannot be right.
        """
        from mnvision.geo.partition_file import from_plain

        return from_plain(data)


def partition_photos(
    chunks: Iterable[Chunk],
    max_photos: int = 10_000,
    min_photos: int = 50,
    min_level: int = 0,
    max_level: int = COARSE_LEVEL,
    source: str = "",
) -> Partition:
    """Partition the earth by where photos were taken, in one pass over them.

    Memory grows with the number of different cells of ``max_level`` that hold photos, about 100 bytes each, and with
    the largest chunk. The result does not depend on the order of the photos or on how they are cut into chunks.

    Args:
        chunks: Pairs of latitudes and longitudes, ``(N,)`` float64 degrees each; only places that
            ``check_coordinates`` finds valid.
        max_photos: PlaNet's t1: cells with more are split.
        min_photos: PlaNet's t2: cells with fewer are left out.
        min_level: Coarser cells are split whatever they hold.
        max_level: Cells of this level are not split. The default keeps them about a kilometre wide.
        source: Where the photos come from, in words.

    Returns:
        The partition.

    Raises:
        UserError: Settings that contradict each other, places that are none, no photos, or no cell with enough.
    """
    settings = PartitionSettings(max_photos, min_photos, min_level, max_level)
    counter = CellCounter(max_level)
    for latitudes, longitudes in chunks:
        found = check_coordinates(latitudes, longitudes)
        # Null island is for the reader of a file to judge; here it is a place like others.
        wrong = sum(count for reason, count in found.counts.items() if reason != "null_island")
        if wrong:
            raise UserError(f"{wrong} of {len(latitudes)} places have no valid latitude and longitude; leave them out")
        counter.add(np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64))
    fine = counter.total()
    total = int(fine.sums[:, 0].sum())
    if not total:
        raise UserError("there are no photos with coordinates to build a partition from")
    cells = _split(fine, settings)
    if not len(cells):
        raise UserError(
            f"no cell holds min_photos={min_photos} of the {total} photos; give a smaller min_photos or more photos"
        )
    counts, positions = _means(fine, cells)
    return Partition(cells, counts, positions, settings, total, total - int(counts.sum()), source)


def _split(fine: CellSums, settings: PartitionSettings) -> NDArray[np.uint64]:
    """Cells that are kept, rising."""
    before = np.concatenate([[0], np.cumsum(fine.sums[:, 0])])
    kept: list[NDArray[np.uint64]] = []
    cells = _FACES
    for level in range(settings.max_level + 1):
        first, last = ranges(cells)
        counts = before[np.searchsorted(fine.cells, last, "right")] - before[np.searchsorted(fine.cells, first)]
        divided = (counts > settings.max_photos) | (counts > 0) & (level < settings.min_level)
        divided &= level < settings.max_level
        kept.append(cells[~divided & (counts >= settings.min_photos)])
        cells = children(cells[divided]).ravel()
    return np.sort(np.concatenate(kept))


def _means(fine: CellSums, cells: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number of photos and rounded mean position of each cell.

    Cells are smaller than half the earth, so that the directions in one never cancel.
    """
    first, last = ranges(cells)
    bounds = np.stack([np.searchsorted(fine.cells, first), np.searchsorted(fine.cells, last, "right")], axis=1).ravel()
    # reduceat also sums what lies between the cells, in every second row; the end of the array is no valid bound.
    bounds = bounds[:-1] if bounds[-1] == len(fine.cells) else bounds
    sums = np.add.reduceat(fine.sums, bounds, axis=0)[::2]
    positions = np.round(coordinates_of(sums[:, 1:].astype(np.float64)), DECIMALS)
    positions[:, 1] = np.where(positions[:, 1] == 180, -180.0, positions[:, 1])
    return sums[:, 0], positions + 0.0  # -0 becomes 0
