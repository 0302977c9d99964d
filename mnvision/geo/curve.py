"""S2's Hilbert curve: from column and row of the cells on a cube face to the position along the curve, and back.

The curve visits the four quarters of a square in the order (0, 0), (0, 1), (1, 1), (1, 0) of (column, row); inside the
first quarter columns and rows change places, inside the last one they do too and are mirrored (S2's developer guide,
"S2Cell Hierarchy"). Five levels are looked up at once, so that 30 levels take six steps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_LEVEL = 30
SWAPPED = 1
"""Bit of an orientation: columns and rows change places."""
_MIRRORED = 2
_STEP = 5
_SIZE = 1 << _STEP
_QUARTERS = np.array([0, 1, 3, 2])  # 2 * column + row, in the order of the curve
_TURNS = np.array([SWAPPED, 0, 0, SWAPPED | _MIRRORED])


def positions_on_curve(
    columns: NDArray[np.int64], rows: NDArray[np.int64], faces: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Position of each smallest cell along its face's curve.

    Args:
        columns: ``(N,)`` int64, ``0 .. 2^30 - 1``.
        rows: ``(N,)``, likewise.
        faces: ``(N,)``, ``0 .. 5``; odd faces begin with columns and rows exchanged.

    Returns:
        ``(N,)`` uint64 below ``2^60``.
    """
    table = _tables()[0]
    orientations = faces & SWAPPED
    positions = np.zeros(columns.shape, np.int64)
    for shift in range(MAX_LEVEL - _STEP, -1, -_STEP):
        keys = orientations << (2 * _STEP) | (columns >> shift & (_SIZE - 1)) << _STEP | (rows >> shift & (_SIZE - 1))
        found = table[keys]
        positions = positions << (2 * _STEP) | found >> 2
        orientations = found & 3
    return positions.view(np.uint64)


def columns_and_rows(
    positions: NDArray[np.uint64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inverse of :func:`positions_on_curve`: columns and rows, ``(N,)`` int64 each."""
    table = _tables()[1]
    along = positions.view(np.int64)
    orientations = faces & SWAPPED
    columns, rows = np.zeros((2, *along.shape), np.int64)
    mask = (1 << 2 * _STEP) - 1
    for shift in range(2 * (MAX_LEVEL - _STEP), -1, -2 * _STEP):
        found = table[orientations << (2 * _STEP) | along >> shift & mask]
        columns = columns << _STEP | found >> (_STEP + 2)
        rows = rows << _STEP | found >> 2 & (_SIZE - 1)
        orientations = found & 3
    return columns, rows


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lookups of five levels.

    Keys hold the orientation above ten bits; values hold the orientation inside the cell that was reached in their
    two lowest bits.
    """
    starts, columns, rows = (part.ravel() for part in np.mgrid[:4, :_SIZE, :_SIZE])
    orders = np.stack([_order(orientation) for orientation in range(4)])
    ranks = np.argsort(orders, axis=1)
    orientations, positions = starts, np.zeros_like(starts)
    for shift in range(_STEP - 1, -1, -1):
        quarters = (columns >> shift & 1) << 1 | (rows >> shift & 1)
        turn = ranks[orientations, quarters]
        positions = positions << 2 | turn
        orientations = orientations ^ _TURNS[turn]
    forward = positions << 2 | orientations
    backward = np.empty_like(forward)
    backward[starts << (2 * _STEP) | positions] = columns << (_STEP + 2) | rows << 2 | orientations
    return forward, backward


def _order(orientation: int) -> NDArray[np.int64]:
    """Quarters in the order in which the curve of this orientation visits them."""
    order = _QUARTERS
    if orientation & SWAPPED:
        order = (order & 1) << 1 | order >> 1
    return 3 - order if orientation & _MIRRORED else order
