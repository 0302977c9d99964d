"""Maps without a mapping library: the earth's countries, and two projections between places and pixels.

Outlines: Natural Earth's ``ne_110m_admin_0_countries``, public domain, rounded to a hundredth of a degree and kept in
``countries_110m.npz``: ``points`` ``(N, 2)`` int16 latitude and longitude in hundredths, and ``ends`` of the rings.
They are good to some tens of kilometres.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mnvision.geo.distance import EARTH_RADIUS_KM, coordinates_of, unit_vectors

Floats = NDArray[np.float64]
_OUTLINES = Path(__file__).with_name("countries_110m.npz")
_PER_DEGREE = 10  # pixels of the land mask
_PIECE = 1.0  # degrees between points of a long edge, so that it bends with the projection


@lru_cache(maxsize=1)
def outlines() -> tuple[Floats, ...]:
    """Rings of countries, each ``(n, 2)`` latitude and longitude in degrees, cut at the date line."""
    with np.load(_OUTLINES, allow_pickle=False) as file:
        points, ends = file["points"].astype(np.float64) / 100, file["ends"]
    return tuple(np.split(points, ends[:-1]))


@lru_cache(maxsize=1)
def borders() -> tuple[Floats, ...]:
    """Lines to draw: the rings in pieces of at most a degree, without the cuts along the date line and the pole."""
    lines = []
    for ring in outlines():
        on_cut = (np.abs(ring[:, 1]) > 179.9) | (ring[:, 0] < -89.9)
        for part in np.split(np.arange(len(ring)), np.flatnonzero(on_cut[1:] & on_cut[:-1]) + 1):
            if len(part) > 1:
                lines.append(_in_pieces(ring[part]))
    return tuple(lines)


def _in_pieces(line: Floats) -> Floats:
    steps = np.abs(np.diff(line, axis=0)).max(axis=1)
    counts = np.maximum(np.ceil(steps / _PIECE), 1).astype(int)
    at = np.concatenate([[0.0], np.cumsum(np.repeat(1 / counts, counts))])
    places = np.arange(len(line))
    return np.stack([np.interp(at, places, line[:, axis]) for axis in range(2)], axis=1)


@lru_cache(maxsize=1)
def _land_mask() -> NDArray[np.uint8]:
    mask = np.zeros((180 * _PER_DEGREE, 360 * _PER_DEGREE), np.uint8)
    for ring in outlines():
        corners = np.stack([ring[:, 1] + 180, 90 - ring[:, 0]], axis=1) * _PER_DEGREE
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)  # one by one: together, overlaps would be holes
    return mask


def on_land(latitudes: ArrayLike, longitudes: ArrayLike) -> NDArray[np.bool_]:
    """Whether places in degrees lie on land, to a tenth of a degree."""
    mask = _land_mask()
    rows = np.clip((90 - np.asarray(latitudes)) * _PER_DEGREE, 0, mask.shape[0] - 1).astype(np.int64)
    columns = (np.asarray(longitudes) + 180) * _PER_DEGREE
    return mask[rows, columns.astype(np.int64) % mask.shape[1]] == 1


class View(ABC):
    """A map of some pixels.

    Args:
        width: Pixels.
        height: Pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    @abstractmethod
    def places(self) -> tuple[Floats, Floats]:
        """Latitude and longitude in degrees of every pixel's middle; both broadcast to ``(height, width)``."""

    @abstractmethod
    def pixels(self, latitudes: ArrayLike, longitudes: ArrayLike) -> Floats:
        """``(N, 2)`` x and y of places ``(N,)`` in degrees; what lies far outside the map may be anywhere outside."""

    def runs(self, latitudes: ArrayLike, longitudes: ArrayLike) -> list[Floats]:
        """A line of places as lines of pixels, parted where the map ends on one side and goes on at the other."""
        points = self.pixels(latitudes, longitudes)
        apart = np.abs(np.diff(points, axis=0)).max(axis=1, initial=0.0) > max(self.width, self.height) / 2
        return [part for part in np.split(points, np.flatnonzero(apart) + 1) if len(part) > 1]


class WorldView(View):
    """The whole earth, degrees as pixels; as wide as the centre's longitude and 180 degrees to both sides.

    Args:
        width: Pixels; half of it is the height.
        longitude: Of the middle, in degrees.
    """

    def __init__(self, width: int, longitude: float = 0.0) -> None:
        super().__init__(width, width // 2)
        self.longitude = longitude

    def places(self) -> tuple[Floats, Floats]:
        """See :meth:`View.places`."""
        latitudes = 90 - (np.arange(self.height) + 0.5) * (180 / self.height)
        longitudes = (np.arange(self.width) + 0.5) * (360 / self.width) - 180 + self.longitude
        wrapped = (longitudes + 180) % 360 - 180
        return np.asarray(latitudes[:, None], np.float64), np.asarray(wrapped[None], np.float64)

    def pixels(self, latitudes: ArrayLike, longitudes: ArrayLike) -> Floats:
        """See :meth:`View.pixels`."""
        around = (np.asarray(longitudes, np.float64) - self.longitude + 180) % 360
        down = 90 - np.asarray(latitudes, np.float64)
        return np.stack([around * (self.width / 360), down * (self.height / 180)], axis=-1)


class RegionView(View):
    """The surroundings of a place, with true distances and directions from it (azimuthal equidistant).

    The date line and the poles are places like others.

    Args:
        width: Pixels.
        height: Pixels.
        latitude: Of the middle, in degrees.
        longitude: Of the middle, in degrees.
        half_km: From the middle to the nearer edges.
    """

    def __init__(self, width: int, height: int, latitude: float, longitude: float, half_km: float) -> None:
        super().__init__(width, height)
        self.km_per_pixel = 2 * half_km / min(width, height)
        phi, theta = np.radians([latitude, longitude])
        east = [-np.sin(theta), np.cos(theta), 0.0]
        north = [-np.sin(phi) * np.cos(theta), -np.sin(phi) * np.sin(theta), np.cos(phi)]
        up = [np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)]
        self._axes = np.array([east, north, up])

    def places(self) -> tuple[Floats, Floats]:
        """See :meth:`View.places`."""
        x = (np.arange(self.width) + 0.5 - self.width / 2) * self.km_per_pixel
        y = (self.height / 2 - np.arange(self.height) - 0.5) * self.km_per_pixel
        x, y = np.broadcast_arrays(x[None], y[:, None])
        angle = np.hypot(x, y) / EARTH_RADIUS_KM
        along = np.sinc(angle / np.pi) / EARTH_RADIUS_KM  # sin(angle) / distance, right at 0 too
        found = coordinates_of(np.stack([x * along, y * along, np.cos(angle)], axis=-1) @ self._axes)
        return found[..., 0], found[..., 1]

    def pixels(self, latitudes: ArrayLike, longitudes: ArrayLike) -> Floats:
        """See :meth:`View.pixels`."""
        east, north, up = np.moveaxis(unit_vectors(latitudes, longitudes) @ self._axes.T, -1, 0)
        aside = np.hypot(east, north)
        km = EARTH_RADIUS_KM * np.arctan2(aside, up)
        scale = np.divide(km, aside, out=np.zeros_like(km), where=aside > 0) / self.km_per_pixel
        return np.stack([self.width / 2 + east * scale, self.height / 2 - north * scale], axis=-1)
