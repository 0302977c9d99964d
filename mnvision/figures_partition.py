"""A map of a partition's cells over the outlines of countries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from mnvision.figures import DPI, save_figure
from mnvision.geo.cells import centres, edge_points, levels
from mnvision.geo.distance import coordinates_of
from mnvision.geo.partition import Partition
from mnvision.world_map import borders

_PIECES = 32  # of an edge of a face: great circles are curves on the map; small cells need fewer
_BENT = 65  # degrees of latitude
_POLE = 90 - 1e-9
_TURN = np.array([0.0, 360.0])

Outline = NDArray[np.float64]


def save_partition_map(partition: Partition, path: Path | str, density: NDArray[np.int64] | None = None) -> None:
    """Cells on a map with equal steps of degrees, coloured by their number of photos.

    Args:
        partition: The cells.
        path: The PNG to write.
        density: ``(H, W)`` photos per pixel of the whole map, rows from the south, columns from -180: where it is not
            0 the ground below the cells is grey, so that photos outside all cells show.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(15, 7.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if density is not None:
        ground = np.where(density > 0, 0.45, 1.0)
        extent = (-180.0, 180.0, -90.0, 90.0)
        axes.imshow(ground, "gray", vmin=0, vmax=1, origin="lower", extent=extent, interpolation="nearest", zorder=0)
    found = list(outlines(partition.cells))
    counts = partition.counts[[cell for cell, _ in found]]
    low, high = int(partition.counts.min()), int(partition.counts.max())
    width = float(np.clip(500 / len(partition), 0.03, 0.3))  # lines of many small cells would hide their colours
    cells = PolyCollection([outline[:, ::-1] for _, outline in found], linewidths=width, edgecolors="0.15", zorder=2)
    cells.set(array=counts, cmap="viridis", norm=LogNorm(low, max(high, low + 1)), alpha=0.75)
    axes.add_collection(cells)
    countries = [line[:, ::-1] for line in borders()]
    axes.add_collection(LineCollection(countries, colors="0.1", linewidths=0.5, alpha=0.6, zorder=3))
    axes.set(xlim=(-180, 180), ylim=(-90, 90), aspect="equal", xlabel="Longitude", ylabel="Latitude")
    axes.set_xticks(range(-180, 181, 30))
    axes.set_yticks(range(-90, 91, 30))
    axes.grid(color="0.8", linewidth=0.5, zorder=1)
    axes.set_axisbelow(True)
    outside = f", {partition.num_dropped:,} of them outside" if partition.num_dropped else ""
    axes.set_title(f"{len(partition):,} cells from {partition.num_photos:,} photos{outside}")
    bar = figure.colorbar(cells, ax=axes, fraction=0.025, pad=0.01, label="Photos in the cell")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    save_figure(figure, path)


def outlines(cells: NDArray[np.uint64]) -> Iterator[tuple[int, Outline]]:
    """Outlines of cells on a map from -180 to 180 degrees.

    A cell across the date line comes twice, once beyond either border of the map; one that holds or touches a pole
    goes along the map's upper or lower border there.

    Args:
        cells: ``(K,)`` uint64.

    Yields:
        Index of the cell, and ``(P, 2)`` latitude and longitude in degrees.
    """
    # Near the poles even short edges are bent.
    polar = np.abs(centres(cells)[:, 0]) > _BENT
    of_pieces = np.where(polar, _PIECES, np.maximum(_PIECES >> levels(cells), 2))
    for pieces in np.unique(of_pieces).tolist():
        rows = np.flatnonzero(of_pieces == pieces)
        for row, points in zip(rows.tolist(), coordinates_of(edge_points(cells[rows], pieces))):
            outline = _unrolled(points)
            west, east = outline[:, 1].min(), outline[:, 1].max()
            yield row, outline
            if west < -180:
                yield row, outline + _TURN
            if east > 180:
                yield row, outline - _TURN


def _unrolled(points: Outline) -> Outline:
    """An outline without jumps of longitude: ``(P, 2)``, its poles drawn out into lines."""
    polar = np.abs(points[:, 0]) > _POLE
    if polar.any():
        points = _drawn_out(points, int(np.argmax(polar)))
    elif abs(_turn(points)) > 180:
        # The cell goes round a pole; cut where the map is cut.
        points = np.roll(points, -int(np.argmax(np.abs(points[:, 1]))), axis=0)
        pole, turn = float(np.copysign(90, points[:, 0].mean())), _turn(points)
        ends = [[points[0, 0], points[0, 1] + turn], [pole, points[0, 1] + turn], [pole, points[0, 1]]]
        longitudes = np.unwrap(points[:, 1], period=360)
        return np.concatenate([np.stack([points[:, 0], longitudes], axis=1), ends])
    return np.stack([points[:, 0], np.unwrap(points[:, 1], period=360)], axis=1)


def _turn(points: Outline) -> float:
    """Degrees of longitude that an outline goes round, 0 or 360 in either direction."""
    steps = np.roll(points[:, 1], -1) - points[:, 1]
    return float(((steps + 180) % 360 - 180).sum())


def _drawn_out(points: Outline, corner: int) -> Outline:
    """An outline that begins and ends at the pole, which has the longitude of either neighbour."""
    rest = np.roll(points, -corner, axis=0)[1:]
    pole = float(np.copysign(90, points[corner, 0]))
    return np.concatenate([[[pole, rest[0, 1]]], rest, [[pole, rest[-1, 1]]]])
