"""How many photos lie in each small cell, and where their mean is, over any number of photos."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.geo.cells import cell_ids
from mnvision.geo.coordinates import one_spelling
from mnvision.geo.distance import unit_vectors

# Directions are summed as whole numbers: sums of floats depend on the order, and a partition would depend on how its
# file was cut into chunks. One is 3 mm on the ground, and 2^32 photos fit in 63 bits.
_UNIT = 2.0**31


class CellSums(NamedTuple):
    """Sums over the photos of M cells of one level.

    Attributes:
        cells: ``(M,)`` uint64, rising.
        sums: ``(M, 4)`` int64: number of photos, and x, y, z of their summed directions in units of ``2^-31``.
    """

    cells: NDArray[np.uint64]
    sums: NDArray[np.int64]


class CellCounter:
    """Adds up photos by cell.

    Memory grows with the number of different cells that hold photos (about 100 bytes each while they are merged) and
    with the largest chunk, not with the number of photos.

    Args:
        level: Of the cells, 0 .. 30.
    """

    def __init__(self, level: int) -> None:
        self._level = level
        self._runs: list[CellSums] = []

    def add(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> None:
        """Count photos.

        Args:
            latitudes: ``(N,)`` degrees, -90 .. 90.
            longitudes: ``(N,)`` degrees, -180 .. 180.
        """
        if not len(latitudes):
            return
        latitudes, longitudes = one_spelling(latitudes, longitudes)
        directions = np.rint(unit_vectors(latitudes, longitudes) * _UNIT).astype(np.int64)
        ones = np.ones((len(latitudes), 1), np.int64)
        self._runs.append(_summed(cell_ids(latitudes, longitudes, self._level), np.hstack([ones, directions])))
        # Each run stays more than twice as long as the next: every row is merged a few times, never once per chunk.
        while len(self._runs) > 1 and len(self._runs[-2].cells) < 2 * len(self._runs[-1].cells):
            self._merge_last()

    def total(self) -> CellSums:
        """The sums over all photos so far."""
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0] if self._runs else CellSums(np.zeros(0, np.uint64), np.zeros((0, 4), np.int64))

    def _merge_last(self) -> None:
        last, previous = self._runs.pop(), self._runs.pop()
        cells = np.concatenate([previous.cells, last.cells])
        self._runs.append(_summed(cells, np.concatenate([previous.sums, last.sums])))


def _summed(cells: NDArray[np.uint64], values: NDArray[np.int64]) -> CellSums:
    """One row per different cell."""
    order = np.argsort(cells, kind="stable")  # merges sorted runs in one pass
    cells = cells[order]
    starts = np.flatnonzero(np.concatenate([[True], cells[1:] != cells[:-1]]))
    return CellSums(cells[starts], np.add.reduceat(values[order], starts, axis=0))
