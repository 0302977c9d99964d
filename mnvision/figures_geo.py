"""Figures of a geolocation evaluation: how errors are distributed, and a map of truth and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from mnvision.figures import DPI, save_figure
from mnvision.geo.distance import coordinates_of, mean_position, unit_vectors
from mnvision.world_map import borders, outlines

Floats = NDArray[np.float64]

_NEAREST_KM = 0.1  # where the logarithmic axis begins
_MOST_LINES = 400  # photos on a map; more are one blot
_MARGIN = 0.08  # around the photos, of their extent
_LEAST_DEGREES = 1.0  # of a map's sides
_STEPS = 181  # points of a great circle
_WIDTH = 11.0  # inches
_HALF_EARTH = 90.0  # degrees to both sides beyond which a map shows the whole earth
_SEA, _LAND = "#e0e9f2", "#faf9f5"


def save_error_distribution(
    km: Floats,
    within: Mapping[int, float],
    median_km: float,
    path: Path | str,
    title: str = "How far from the truth photos were placed",
) -> None:
    """Share of photos placed within each distance of the truth, the radii of the paper's Table 11 marked.

    Args:
        km: ``(N,)`` distances.
        within: Radius in km -> share in [0, 1].
        median_km: Marked too.
        path: The PNG to write.
        title: Above the figure.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(8, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    ordered = np.sort(np.maximum(km, _NEAREST_KM))
    share = np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    axes.step([_NEAREST_KM, *ordered, 21_000], [0.0, *share, 1.0], where="post", color="tab:blue", linewidth=2)
    for radius, value in within.items():
        axes.axvline(radius, color="0.6", linewidth=0.8, linestyle="--")
        axes.plot([radius], [value], "o", color="tab:blue", markersize=5)
        axes.annotate(
            f"{100 * value:.1f}%", (radius, value), (-4, 5), textcoords="offset points", ha="right", fontsize=9
        )
    if median_km >= 0:
        marked = max(median_km, _NEAREST_KM)
        axes.plot([marked], [0.5], "D", color="tab:orange", markersize=6, label=f"median {median_km:,.0f} km", zorder=3)
        axes.legend(frameon=False, loc="upper left")
    axes.set_xscale("log")
    axes.set_xticks([_NEAREST_KM, *within, 20_000], ["0.1", *(f"{radius:,}" for radius in within), "20,000"])
    axes.minorticks_off()
    axes.set(xlim=(_NEAREST_KM, 21_000), ylim=(0, 1.03), ylabel="Share of photos", title=title)
    axes.set_xlabel("Distance from the truth at most (km)")
    axes.grid(axis="y", alpha=0.25)
    save_figure(figure, path)


def save_location_map(truth: Floats, predicted: Floats, km: Floats, path: Path | str, seed: int = 0) -> None:
    """Photos where they were taken and where they were placed, joined along great circles.

    The map shows as much of the earth as they cover, centred on them: the date line may lie in its middle.

    Args:
        truth: ``(N, 2)`` latitude and longitude in degrees.
        predicted: ``(N, 2)``, likewise.
        km: ``(N,)`` distances; lines are coloured by them.
        path: The PNG to write.
        seed: Draws the photos that are shown where there are too many.

    Raises:
        UserError: The file cannot be written.
    """
    shown = np.arange(len(km))
    if len(km) > _MOST_LINES:
        shown = np.sort(np.random.default_rng(seed).permutation(len(km))[:_MOST_LINES])
    both = np.concatenate([truth[shown], predicted[shown]])
    middle = _middle(both)
    up, across = _extent(both, middle)
    height = float(np.clip(_WIDTH * (up[1] - up[0]) / (across[1] - across[0]), 3.0, 9.0))
    figure = Figure(figsize=(_WIDTH, height + 0.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _draw_earth(axes, middle)
    joined = LineCollection([_around(_great_circle(truth[row], predicted[row]), middle) for row in shown], zorder=2)
    joined.set(array=np.log10(np.maximum(km[shown], 1.0)), cmap="RdYlGn_r", clim=(0, 4.3), linewidth=0.9, alpha=0.7)
    axes.add_collection(joined)
    for places, marker, color, label in ((truth, "o", "#1f4fa3", "taken here"), (predicted, "x", "0.1", "placed here")):
        longitudes = _wrapped(places[shown, 1] - middle)
        axes.plot(longitudes, places[shown, 0], marker, color=color, markersize=4, label=label, zorder=3)
    bar = figure.colorbar(joined, ax=axes, fraction=0.025, pad=0.01, label="Error (km)")
    bar.set_ticks([0, 1, 2, 3, 4], labels=["1", "10", "100", "1,000", "10,000"])
    axes.set(xlim=across, ylim=up)
    # Ticks say degrees although the map is centred elsewhere.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _degrees(float((x + middle + 180) % 360 - 180), "EW")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _degrees(float(y), "NS")))
    axes.tick_params(labelsize=8)
    axes.legend(loc="lower left", fontsize=9, framealpha=0.9)
    some = "" if len(shown) == len(km) else f"{len(shown)} of "
    axes.set_title(f"{some}{len(km):,} photos: where they were taken and where they were placed", fontsize=11)
    save_figure(figure, path)


def _draw_earth(axes: Axes, middle: float) -> None:
    axes.set_facecolor(_SEA)
    land = [ring[:, ::-1] - (middle + shift, 0) for ring in outlines() for shift in (-360, 0, 360)]
    axes.add_collection(PolyCollection(land, facecolors=_LAND, linewidths=0, zorder=0))
    axes.add_collection(
        LineCollection([_around(line, middle) for line in borders()], colors="0.65", linewidths=0.5, zorder=1)
    )


def _degrees(value: float, names: str) -> str:
    return f"{abs(value):g}°{'' if abs(value) in (0, 180) else names[value < 0]}"


def _middle(places: Floats) -> float:
    """Longitude to centre the map on: 0 for places all around the earth, else that of their mean."""
    if not len(places):
        return 0.0
    longitude = round(mean_position(places[:, 0], places[:, 1])[1])
    return float(longitude) if np.abs(_wrapped(places[:, 1] - longitude)).max() < _HALF_EARTH else 0.0


def _extent(places: Floats, middle: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of latitude, and of longitude counted from ``middle``."""
    longitudes = _wrapped(places[:, 1] - middle)
    if not len(places) or np.ptp(longitudes) > 2 * _HALF_EARTH:
        return (-90.0, 90.0), (-180.0, 180.0)
    sides = []
    for values, limit in ((places[:, 0], 90.0), (longitudes, 180.0)):
        margin = max(_MARGIN * float(np.ptp(values)), _LEAST_DEGREES / 2)
        sides.append((max(float(values.min()) - margin, -limit), min(float(values.max()) + margin, limit)))
    return sides[0], sides[1]


def _wrapped(longitudes: Floats) -> Floats:
    return (longitudes + 180) % 360 - 180


def _great_circle(start: Floats, end: Floats) -> Floats:
    """Places ``(n, 2)`` along the shortest way between two; the longitudes go on beyond 180 degrees."""
    first, last = unit_vectors(*start), unit_vectors(*end)
    angle = np.arctan2(np.linalg.norm(np.cross(first, last)), first @ last)
    if angle < 1e-9 or angle > np.pi - 1e-6:  # the same place, or opposite ones, which every way joins
        return np.stack([start, end])
    at = np.linspace(0, 1, _STEPS)[:, None]
    return coordinates_of((np.sin((1 - at) * angle) * first + np.sin(at * angle) * last) / np.sin(angle))


def _around(line: Floats, middle: float) -> Floats:
    """A line ``(n, 2)`` of latitudes and longitudes as x and y of a map, with gaps where it leaves at one side."""
    x = _wrapped(line[:, 1] - middle)
    breaks = np.flatnonzero(np.abs(np.diff(x)) > 180) + 1
    points = np.stack([x, line[:, 0]], axis=1)
    return np.insert(points, breaks, np.nan, axis=0)
