"""What predictors give for the place where a photo was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mnvision.prediction.cell_table import CellTable
from mnvision.prediction.results import ImageResult, Pixels, Shown, picture_fields, picture_title

_PRINTED = 3  # cells in one line


@dataclass(frozen=True)
class Place:
    """One cell that a photo may have been taken in.

    Attributes:
        label: ``0 .. K-1``.
        name: The cell's S2 token.
        probability: In [0, 1].
        latitude: In degrees, of the mean position of the cell's training photos.
        longitude: Likewise.
        radius_km: From there to the cell's farthest corner: if the cell is right, the photo is no farther away.
    """

    label: int
    name: str
    probability: float
    latitude: float
    longitude: float
    radius_km: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the attributes' names; written to a metre or so, which says nothing of how right it is."""
        return {
            "label": self.label,
            "name": self.name,
            "probability": round(self.probability, 6),
            "latitude": round(self.latitude, 5),
            "longitude": round(self.longitude, 5),
            "radius_km": round(self.radius_km, 1),
        }

    def __str__(self) -> str:
        return f"{position_text(self.latitude, self.longitude)} +- {self.radius_km:,.0f} km ({self.probability:.3f})"


@dataclass(frozen=True, eq=False)
class ImageLocation(ImageResult):
    """Where a photo was taken: one answer, and how probable each cell is.

    Attributes:
        probabilities: ``(K,)`` float32, sum 1.
        cell: The answered cell: the most probable one, or the one that the decoder walked down to.
        cells: All cells, shared by all results of a model.
    """

    printed: ClassVar[bool] = True

    probabilities: NDArray[np.float32]
    cell: int
    cells: CellTable

    @property
    def latitude(self) -> float:
        """Of the answer, in degrees."""
        return float(self.cells.positions[self.cell, 0])

    @property
    def longitude(self) -> float:
        """Of the answer, in degrees."""
        return float(self.cells.positions[self.cell, 1])

    @property
    def probability(self) -> float:
        """Of the answered cell, in [0, 1]."""
        return float(self.probabilities[self.cell])

    def top(self, k: int = 5) -> list[Place]:
        """The answer, then the most probable of the other cells; ``k`` in all, fewer where there are fewer."""
        order = np.argsort(-self.probabilities, kind="stable")[: k + 1].tolist()
        chosen = [self.cell, *(label for label in order if label != self.cell)][:k]
        return [self._place(label) for label in chosen]

    def _place(self, label: int) -> Place:
        latitude, longitude = self.cells.positions[label].tolist()
        probability, radius = float(self.probabilities[label]), float(self.cells.radii_km[label])
        return Place(label, self.cells.names[label], probability, latitude, longitude, radius)

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Plain data: path, size (height, width), the answered coordinates and ``k`` cells."""
        places = [place.to_dict() for place in self.top(k)]
        answer = {key: places[0][key] for key in ("latitude", "longitude", "radius_km", "probability")}
        return {**picture_fields(self.path, self.size), **answer, "cells": places}

    @staticmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """See :meth:`ImageResult.columns`."""
        return ("rank", "label", "cell", "probability", "latitude", "longitude", "radius_km")

    def rows(self, shown: Shown) -> list[list[Any]]:
        """One row per cell of :meth:`top`; rank 1 is the answer."""
        return [[rank, *place.to_dict().values()] for rank, place in enumerate(self.top(shown.topk), 1)]

    def record(self, shown: Shown) -> dict[str, Any]:
        """See :meth:`to_dict`."""
        return self.to_dict(shown.topk)

    def found(self) -> list[str]:
        """The answered cell."""
        return [f"cell {self.cells.names[self.cell]}"]

    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """The photo with two maps of the cells' probabilities beside it: of the earth, and of the answer's region."""
        from mnvision.visualize_geo import draw_location_panel  # loads matplotlib, as in results.py

        return draw_location_panel(pixels, self)

    def draw_beside(self, pixels: Pixels, shown: Shown, title: str) -> Pixels:
        """See :meth:`draw`; maps need no title."""
        return self.draw(pixels, shown)

    def note(self, shown: Shown) -> list[str]:
        """The answered coordinates."""
        return [position_text(self.latitude, self.longitude)]

    def __str__(self) -> str:
        return f"{picture_title(self.path, self.size)}: {', '.join(map(str, self.top(_PRINTED)))}"


def position_text(latitude: float, longitude: float) -> str:
    """Coordinates as people write them, to a hundredth of a degree, about a kilometre: ``48.86 N 2.35 E``."""
    return f"{abs(latitude):.2f} {'N' if latitude >= 0 else 'S'} {abs(longitude):.2f} {'E' if longitude >= 0 else 'W'}"
