"""S2 cells in batches: the ids of Google's s2geometry, for whole arrays of coordinates.

The earth is projected onto the six faces of a cube; each face is cut into quarters 30 times over, and the cells of all
levels are numbered along a Hilbert curve. An id holds the face in its three highest bits, then two bits per level, then
a one bit; zeros fill the rest (S2's developer guide, "S2CellId Numbering"). Cells of any levels that do not overlap
therefore sort along the curve, and a cell's descendants are a range of ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mnvision.errors import UserError
from mnvision.geo.curve import MAX_LEVEL, columns_and_rows, positions_on_curve
from mnvision.geo.distance import coordinates_of

Ids = NDArray[np.uint64]
_Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_BLOCK = 1 << 15  # points at once: what is computed in between stays in the processor's cache
_SIDE = 1 << MAX_LEVEL  # smallest cells along the edge of a face
# Distance from a cell's edge, in widths of the smallest cells, below which the last bit of a sine may matter. Sines of
# numpy may be off by a few units in the last place, 1e-6 of such a width.
_CLOSE = 2.0**-16


def cell_ids(latitudes: ArrayLike, longitudes: ArrayLike, level: int = MAX_LEVEL) -> Ids:
    """Ids of the cells that hold the given points, as ``S2CellId(S2LatLng.FromDegrees(...)).parent(level)``.

    Args:
        latitudes: ``(N,)`` degrees, -90 .. 90.
        longitudes: ``(N,)`` degrees, -180 .. 180.
        level: 0 (faces of the cube) .. 30 (about a centimetre).

    Returns:
        ``(N,)`` uint64.
    """
    points = np.broadcast_arrays(np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64))
    shape = points[0].shape
    latitudes, longitudes = (np.ravel(values) for values in points)
    ids = np.empty(len(latitudes), np.uint64)
    for start in range(0, len(ids), _BLOCK):
        block = slice(start, start + _BLOCK)
        ids[block] = _leaves(latitudes[block], longitudes[block])
    return parents(ids.reshape(shape), level)


def parents(ids: Ids, level: int) -> Ids:
    """Ancestors at a level not above the cells' own; a cell that is coarser already comes back changed and is no cell.

    Args:
        ids: ``(N,)`` uint64, each of at least this level.
        level: 0 .. 30.

    Returns:
        ``(N,)`` uint64.

    Raises:
        UserError: There is no such level.
    """
    lowest = np.uint64(_lowest_bit(level))
    keep = ~(lowest - np.uint64(1)) ^ lowest
    return np.asarray(ids, np.uint64) & keep | lowest


def children(ids: Ids) -> Ids:
    """The four quarters of each cell, ``(N, 4)`` uint64 in the order of the curve; the cells are not of level 30."""
    ids = np.asarray(ids, np.uint64)
    quarter = lowest_bits(ids) >> np.uint64(2)
    steps = np.array([0, 2, 4, 6], np.uint64)
    first = ids - np.uint64(3) * quarter
    return np.asarray(first[:, None] + steps * quarter[:, None])


def levels(ids: Ids) -> NDArray[np.int64]:
    """Levels of cells, ``(N,)`` int64, 0 .. 30."""
    # The logarithm of a power of two is exact.
    return MAX_LEVEL - (np.log2(lowest_bits(ids).astype(np.float64)).astype(np.int64) >> 1)


def lowest_bits(ids: Ids) -> Ids:
    """The bit of each id that marks its level, ``(N,)`` uint64."""
    ids = np.asarray(ids, np.uint64)
    return ids & (~ids + np.uint64(1))


def ranges(ids: Ids) -> tuple[Ids, Ids]:
    """Lowest and highest id of the smallest cells in each cell, ``(N,)`` uint64 each, both included."""
    ids = np.asarray(ids, np.uint64)
    half = lowest_bits(ids) - np.uint64(1)
    return ids - half, ids + half


def are_cells(ids: Ids) -> NDArray[np.bool_]:
    """Whether each number is the id of a cell, ``(N,)`` bool: one of six faces, and the level's bit in its place."""
    ids = np.asarray(ids, np.uint64)
    in_place = lowest_bits(ids) & np.uint64(0x1555555555555555)
    return (ids >> np.uint64(61) < 6) & (in_place != 0)


def tokens(ids: Ids) -> list[str]:
    """S2's short names of cells: the id in hexadecimal without the zeros at its end."""
    return [f"{number:016x}".rstrip("0") for number in np.asarray(ids, np.uint64).tolist()]


def from_tokens(names: Sequence[str]) -> Ids:
    """Ids of cells, ``(N,)`` uint64, from their short names.

    Raises:
        UserError: A name is not that of a cell.
    """
    numbers = np.fromiter(map(_number, names), np.uint64, len(names))
    wrong = np.flatnonzero(~are_cells(numbers))
    if len(wrong):
        raise UserError(f"{names[wrong[0]]!r} is not the token of an S2 cell; tokens look like 47a1cbd595")
    return numbers


def centres(ids: Ids) -> NDArray[np.float64]:
    """Centres of cells.

    Args:
        ids: ``(N,)`` uint64.

    Returns:
        ``(N, 2)`` latitude and longitude in degrees.
    """
    faces, columns, rows, sizes = _squares(ids)
    half = sizes / 2
    return coordinates_of(_points(faces, _to_plane((columns + half) / _SIDE), _to_plane((rows + half) / _SIDE)))


def vertices(ids: Ids) -> NDArray[np.float64]:
    """Corners of cells, counterclockwise as seen from outside; edges between them are great circles.

    Args:
        ids: ``(N,)`` uint64.

    Returns:
        ``(N, 4, 2)`` latitude and longitude in degrees, in the order of ``S2Cell.GetVertex``.
    """
    return coordinates_of(edge_points(ids, 1))


def edge_points(ids: Ids, pieces: int) -> NDArray[np.float64]:
    """Points along the edges of cells, counterclockwise.

    Args:
        ids: ``(N,)`` uint64.
        pieces: Into which each edge is cut; 1 gives the corners.

    Returns:
        ``(N, 4 * pieces, 3)`` directions, not of unit length: x towards 0 N 0 E, y towards 0 N 90 E, z to the north.
    """
    faces, columns, rows, sizes = _squares(ids)
    along = np.arange(pieces) / pieces
    low, high = np.zeros(pieces), np.ones(pieces)
    right = np.concatenate([along, high, 1 - along, low])
    up = np.concatenate([low, along, high, 1 - along])
    columns, rows, sizes, faces = (part[:, None] for part in (columns, rows, sizes, faces))
    faces = np.broadcast_to(faces, (len(columns), 4 * pieces))
    return _points(faces, _to_plane((columns + right * sizes) / _SIDE), _to_plane((rows + up * sizes) / _SIDE))


def _lowest_bit(level: int) -> int:
    if not 0 <= level <= MAX_LEVEL:
        raise UserError(f"level {level}: S2 cells have levels 0 (a sixth of the earth) to {MAX_LEVEL}")
    return 1 << 2 * (MAX_LEVEL - level)


def _number(name: str) -> int:
    """Of a token; 0 for what cannot be one."""
    if not 1 <= len(name) <= 16 or not set(name) <= set("0123456789abcdef"):
        return 0
    return int(name.ljust(16, "0"), 16)


def _leaves(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> Ids:
    """Cells of level 30; points on an edge go where the C library's sines put them, as with s2geometry."""
    faces, columns, rows = _on_faces(latitudes, longitudes, np.sin, np.cos)
    close = np.flatnonzero(_near_edges(columns) | _near_edges(rows))
    if len(close):
        again = _on_faces(latitudes[close], longitudes[close], _each(math.sin), _each(math.cos))
        faces[close], columns[close], rows[close] = again
    positions = positions_on_curve(_whole(columns), _whole(rows), faces)
    return faces.view(np.uint64) << np.uint64(61) | positions << np.uint64(1) | np.uint64(1)


def _each(function: Callable[[float], float]) -> _Function:
    """A function of the C library for arrays."""

    def apply(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: Iterable[float] = map(function, values.tolist())
        return np.fromiter(found, np.float64, len(values))

    return apply


def _near_edges(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(places - np.rint(places)) < _CLOSE)


def _whole(places: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.floor(places), 0, _SIDE - 1).astype(np.int64)


def _on_faces(
    latitudes: NDArray[np.float64], longitudes: NDArray[np.float64], sine: _Function, cosine: _Function
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Face of each point, and its place on it in widths of the smallest cells, ``0 .. 2^30``.

    Every operation but sine and cosine is exact to the last bit under IEEE 754, so their order matters.
    """
    phi, theta = latitudes * (math.pi / 180), longitudes * (math.pi / 180)
    around = cosine(phi)
    x, y, z = cosine(theta) * around, sine(theta) * around, sine(phi)
    wide, deep, tall = np.abs(x), np.abs(y), np.abs(z)
    # Where two are equally large the later axis wins.
    axis = np.where(wide > deep, np.where(wide > tall, 0, 2), np.where(deep > tall, 1, 2))
    main, right, up = np.choose(axis, [x, y, z]), np.choose(axis, [y, -x, -x]), np.choose(axis, [z, z, -y])
    behind = main < 0
    # On the faces behind, the axes change places: the curve goes on from face to face.
    right, up = np.where(behind, up, right), np.where(behind, right, up)
    faces = axis + 3 * behind
    return faces, _SIDE * _to_square(right / main), _SIDE * _to_square(up / main)


def _to_square(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the cube, -1 .. 1, to S2's quadratic coordinate 0 .. 1 that makes cells more alike in area."""
    root = 0.5 * np.sqrt(1 + 3 * np.abs(plane))
    return np.where(plane >= 0, root, 1 - root)


def _to_plane(square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`_to_square`."""
    upper = np.maximum(square, 1 - square)
    return np.copysign((4 * upper * upper - 1) / 3, square - 0.5)


def _squares(ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Face, first column, first row and width of cells, in smallest cells."""
    first, _ = ranges(ids)
    faces = (first >> np.uint64(61)).astype(np.int64)
    columns, rows = columns_and_rows(first >> np.uint64(1) & np.uint64((1 << 60) - 1), faces)
    sizes = np.int64(1) << (MAX_LEVEL - levels(ids))
    return faces, columns & -sizes, rows & -sizes, sizes


def _points(faces: NDArray[np.int64], right: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions ``(..., 3)`` of places on the cube's faces, each -1 .. 1."""
    one = np.ones_like(right)
    x = np.choose(faces, [one, -right, -right, -one, up, up])
    y = np.choose(faces, [right, one, -up, -up, -one, right])
    z = np.choose(faces, [up, up, one, -right, -right, -one])
    return np.stack([x, y, z], axis=-1)
