"""Which pairs of latitude and longitude can be places of photos, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

REASONS: Mapping[str, str] = {
    "not_a_number": "without two numbers",
    "swapped": "with a latitude beyond 90 degrees that reads right with latitude and longitude exchanged",
    "latitude_out_of_range": "with a latitude beyond 90 degrees",
    "longitude_out_of_range": "with a longitude beyond 180 degrees",
    "null_island": "at latitude 0, longitude 0, which cameras write where they know no place",
}
"""Name of each reason for which a place is refused -> its description, to follow a number of rows."""


@dataclass(frozen=True)
class CoordinateCheck:
    """Which of N pairs are places.

    Attributes:
        valid: ``(N,)`` bool.
        refused: Reason, one of ``REASONS`` -> ``(N,)`` bool. A pair has one reason at most: exactly one of ``valid``
            and these masks is set.
    """

    valid: NDArray[np.bool_]
    refused: Mapping[str, NDArray[np.bool_]]

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs each reason refused, for all reasons."""
        return {reason: int(mask.sum()) for reason, mask in self.refused.items()}


def check_coordinates(latitudes: ArrayLike, longitudes: ArrayLike) -> CoordinateCheck:
    """Judge pairs of coordinates.

    Args:
        latitudes: ``(N,)`` degrees; anything, infinite and NaN too.
        longitudes: ``(N,)`` degrees. -180 and 180 are both taken, and are the same.

    Returns:
        Which pairs are places. ``swapped`` finds exchanged columns only where a longitude beyond 90 degrees stands
        as the latitude: other exchanged pairs read as places too.
    """
    latitudes, longitudes = np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64)
    numbers = np.isfinite(latitudes) & np.isfinite(longitudes)
    high, wide = np.abs(latitudes) > 90, np.abs(longitudes) > 180
    swapped = numbers & high & (np.abs(latitudes) <= 180) & (np.abs(longitudes) <= 90)
    refused = {
        "not_a_number": ~numbers,
        "swapped": swapped,
        "latitude_out_of_range": numbers & high & ~swapped,
        "longitude_out_of_range": numbers & wide & ~high,
        "null_island": (latitudes == 0) & (longitudes == 0),
    }
    return CoordinateCheck(~np.logical_or.reduce(list(refused.values())), refused)


def one_spelling(
    latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same places with one spelling each: longitude -180 for 180, and 0 at the poles, where all longitudes meet.

    Without it two spellings of one place may fall into different cells, whose border runs there.

    Args:
        latitudes: ``(N,)`` degrees, -90 .. 90.
        longitudes: ``(N,)`` degrees, -180 .. 180.

    Returns:
        Both, ``(N,)``.
    """
    turned = np.where(longitudes == 180, -180.0, longitudes)
    return latitudes, np.where(np.abs(latitudes) == 90, 0.0, turned)
