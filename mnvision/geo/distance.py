"""Distances and means on the sphere."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0088
"""Mean radius R1 of the earth, (2a + b) / 3 of the WGS 84 ellipsoid."""


def great_circle_km(
    latitudes_a: ArrayLike, longitudes_a: ArrayLike, latitudes_b: ArrayLike, longitudes_b: ArrayLike
) -> NDArray[np.float64]:
    """Distance of points along the surface of a sphere with the earth's mean radius.

    The haversine is ``sin^2`` of half the angle; its complement ``cos^2`` is summed from parts that are not negative
    either, so that neither close nor opposite points lose digits, as they do with the arc cosine or arc sine alone.

    Args:
        latitudes_a: Degrees, of any shape; the four broadcast.
        longitudes_a: Degrees; the same place may be written as -180 and as 180.
        latitudes_b: Degrees.
        longitudes_b: Degrees.

    Returns:
        Kilometres, 0 .. 20015.1; NaN where a coordinate is NaN.
    """
    phi_a, phi_b = (np.radians(np.asarray(values, np.float64)) for values in (latitudes_a, latitudes_b))
    half_turn = np.radians(np.asarray(longitudes_a, np.float64) - np.asarray(longitudes_b, np.float64)) / 2
    both = np.maximum(np.cos(phi_a) * np.cos(phi_b), 0)
    near = np.sin((phi_a - phi_b) / 2) ** 2 + both * np.sin(half_turn) ** 2
    far = np.sin((phi_a + phi_b) / 2) ** 2 + both * np.cos(half_turn) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arctan2(np.sqrt(near), np.sqrt(far)))


def unit_vectors(latitudes: ArrayLike, longitudes: ArrayLike) -> NDArray[np.float64]:
    """Directions of points from the earth's centre.

    Args:
        latitudes: ``(...)`` degrees.
        longitudes: ``(...)`` degrees.

    Returns:
        ``(..., 3)``: x towards 0 N 0 E, y towards 0 N 90 E, z to the north pole.
    """
    phi = np.radians(np.asarray(latitudes, np.float64))
    theta = np.radians(np.asarray(longitudes, np.float64))
    around = np.cos(phi)
    return np.stack(np.broadcast_arrays(around * np.cos(theta), around * np.sin(theta), np.sin(phi)), axis=-1)


def coordinates_of(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Latitude and longitude ``(..., 2)`` in degrees of directions ``(..., 3)`` of any length but zero."""
    x, y, z = (vectors[..., axis] for axis in range(3))
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=-1))


def mean_position(latitudes: ArrayLike, longitudes: ArrayLike) -> tuple[float, float]:
    """Mean of points on the sphere: where the sum of their directions points.

    The mean of degrees would put two photos on either side of the date line into the Atlantic.

    Args:
        latitudes: ``(N,)`` degrees, N at least 1.
        longitudes: ``(N,)`` degrees.

    Returns:
        Latitude and longitude in degrees; meaningless where the directions cancel, as for opposite points.
    """
    latitude, longitude = coordinates_of(unit_vectors(latitudes, longitudes).reshape(-1, 3).sum(axis=0)).tolist()
    return latitude, longitude
