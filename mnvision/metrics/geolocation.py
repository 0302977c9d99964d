"""How far from the truth photos are placed: PlaNet's measure (MobileNet paper, section 4.4 and Table 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.geo.distance import great_circle_km
from mnvision.metrics.processes import from_all_processes

RADII_KM = (1, 25, 200, 750, 2500)
"""Street, city, region, country and continent, as Table 11 names them."""

OUTSIDE = -1
"""Label of a photo that lies in none of the partition's cells."""

_TOP = 5
# Columns of a collected row; indices and cells are exact in float64.
_INDEX, _LABEL, _CELL, _IN_TOP, _LATITUDE, _LONGITUDE, _PROBABILITY, _LOSS = range(8)


@dataclass(frozen=True)
class LocatedPhotos:
    """Every photo of an evaluation, by rising position in its data set.

    Attributes:
        indices: ``(N,)`` int64, position in the data set.
        truth: ``(N, 2)`` float64, latitude and longitude in degrees.
        predicted: ``(N, 2)`` float64, the position of the answered cell.
        km: ``(N,)`` float64, great-circle distance between the two.
        cells: ``(N,)`` int64, the answered cell.
        labels: ``(N,)`` int64, the cell that the truth lies in, -1 for none.
        probabilities: ``(N,)`` float64, of the answered cell.
    """

    indices: NDArray[np.int64]
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]
    km: NDArray[np.float64]
    cells: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class GeolocationScores:
    """Result of a geolocation evaluation. Shares lie in [0, 1]; -1 means there was nothing to count.

    Attributes:
        within: Radius in km -> share of photos placed at most that far from the truth.
        median_km: Middle of the distances; the mean of both middle ones for an even number of photos.
        mean_km: Their mean, which a few photos on the wrong continent decide.
        top1: Share of the photos inside the partition whose cell is right.
        top5: Share of them whose cell is among the five most probable; None for five cells or fewer.
        loss: Mean cross-entropy of them.
        num_samples: Photos counted.
        num_outside: Those in none of the partition's cells, scored by distance alone.
        num_repeated: Photos left out because they had been given before.
        photos: Every photo.
    """

    within: dict[int, float]
    median_km: float
    mean_km: float
    top1: float
    top5: float | None
    loss: float
    num_samples: int
    num_outside: int
    num_repeated: int
    photos: LocatedPhotos = field(repr=False, compare=False)

    def scalars(self) -> dict[str, float]:
        """The scores by name, ``within_25km`` and so on; those that are not defined left out."""
        known = self.num_samples > self.num_outside
        return {
            **{f"within_{radius}km": share for radius, share in self.within.items()},
            "median_km": self.median_km,
            "mean_km": self.mean_km,
            **({"top1": self.top1, "loss": self.loss} if known else {}),
            **({"top5": self.top5} if known and self.top5 is not None else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single photos, ready for JSON."""
        counts = {name: getattr(self, name) for name in ("num_samples", "num_outside", "num_repeated")}
        return {**self.scalars(), **counts}

    def table(self) -> str:
        """A few lines of text."""
        names = ("street", "city", "region", "country", "continent")
        lines = [
            f"Within {radius:>5,} km ({name}){'':<{9 - len(name)}} {share:>7.3f}"
            for (radius, share), name in zip(self.within.items(), names)
        ]
        lines += [
            f"Median error              {self.median_km:>7,.0f} km",
            f"Mean error                {self.mean_km:>7,.0f} km",
        ]
        if self.num_samples > self.num_outside:
            lines.append(f"Cell top-1                {self.top1:>7.3f}")
            lines += [] if self.top5 is None else [f"Cell top-5                {self.top5:>7.3f}"]
        counts = f"{self.num_samples} photos"
        if self.num_outside:
            counts += f", {self.num_outside} of them outside every cell"
        if self.num_repeated:
            counts += f", {self.num_repeated} repeated photos left out"
        return "\n".join([*lines, counts])


class GeolocationEvaluator:
    """Collects where photos were placed, each once, in memory that does not grow with the number of cells.

    A photo is known by its position in the data set. One given again is left out and counted in
    ``GeolocationScores.num_repeated``, since distributed samplers repeat samples to fill the last batch.

    Args:
        positions: ``(K, 2)`` latitude and longitude in degrees that an answer of each cell stands for.

    Raises:
        UserError: No cells.
    """

    def __init__(self, positions: NDArray[np.float64] | Sequence[Sequence[float]]) -> None:
        self.positions = np.asarray(positions, np.float64).reshape(-1, 2)
        if not len(self.positions):
            raise UserError("no cells given; geolocation needs at least one cell")
        self.reset()

    def reset(self) -> None:
        """Forget all photos."""
        self._parts: list[NDArray[np.float64]] = []
        self._repeated = 0

    def update(self, logits: Tensor, cells: Tensor, labels: Tensor, coordinates: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Equal logits rank in the order of the cells, so that a constant output is not credited with every answer.

        Args:
            logits: ``(B, K)``.
            cells: ``(B,)`` int64, the cell that was answered.
            labels: ``(B,)`` int64, the cell of the truth, ``0 .. K-1``, or -1 for none.
            coordinates: ``(B, 2)`` float64, latitude and longitude of the truth in degrees.
            indices: ``(B,)`` int64, position of each photo in its data set.

        Raises:
            UserError: Shapes do not fit, a cell is out of range, a coordinate is none, or a logit is NaN.
        """
        self._check(logits, cells, labels, coordinates, indices)
        log_p = F.log_softmax(logits.detach().float(), dim=1)
        known = labels >= 0
        safe = labels.clamp(min=0)[:, None]
        own = log_p.gather(1, safe)
        earlier = torch.arange(log_p.shape[1], device=log_p.device) < safe
        rank = ((log_p > own) | ((log_p == own) & earlier)).sum(dim=1)
        columns = [
            *(indices, labels, cells, known & (rank < _TOP), coordinates[:, 0], coordinates[:, 1]),
            *(log_p.gather(1, cells[:, None])[:, 0].exp(), torch.where(known, -own[:, 0], 0.0)),
        ]
        rows = torch.stack([column.double() for column in columns], dim=1)
        self._parts.append(rows.cpu().numpy())

    def _check(self, logits: Tensor, cells: Tensor, labels: Tensor, coordinates: Tensor, indices: Tensor) -> None:
        count = len(self.positions)
        if logits.ndim != 2 or logits.shape[1] != count:
            raise UserError(f"logits have shape {tuple(logits.shape)}; expected (B, {count}), one per cell")
        batch = logits.shape[:1]
        if any(part.shape != batch for part in (cells, labels, indices)) or coordinates.shape != (*batch, 2):
            raise UserError(
                f"{len(logits)} logit rows, {len(cells)} cells, {len(labels)} labels, {len(indices)} indices, "
                f"coordinates {tuple(coordinates.shape)}; give one of each per photo"
            )
        # NaN makes the row's own maximum NaN, which costs less than a second pass over all logits.
        wrong = (
            torch.isnan(logits.amax(dim=1)) | (labels < OUTSIDE) | (labels >= count) | (cells < 0) | (cells >= count)
        )
        wrong |= ~((coordinates[:, 0].abs() <= 90) & (coordinates[:, 1].abs() <= 360))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            latitude, longitude = coordinates[row].tolist()
            raise UserError(
                f"sample {int(indices[row])}: cell {int(cells[row])} and label {int(labels[row])} of {count}, latitude "
                f"{latitude:g}, longitude {longitude:g}: one is out of range, or its logits contain NaN"
            )

    def gather(self) -> None:
        """Exchange photos, so that every process holds all of them. Does nothing in a single process."""
        theirs = from_all_processes(lambda: (self._unique(), self._repeated))
        if theirs is None:
            return
        self.reset()
        for rows, repeated in theirs:
            self._parts.append(rows)
            self._repeated += repeated

    def _unique(self) -> NDArray[np.float64]:
        """All photos by rising index, each once; what is left out is counted."""
        rows = np.concatenate([np.empty((0, 8)), *self._parts])
        _, first = np.unique(rows[:, _INDEX], return_index=True)
        self._repeated += len(rows) - len(first)
        self._parts = [rows[first]]
        return self._parts[0]

    def compute(self) -> GeolocationScores:
        """Score what was collected."""
        rows = self._unique()
        truth, cells, labels = rows[:, [_LATITUDE, _LONGITUDE]], rows[:, _CELL].astype(np.int64), rows[:, _LABEL]
        predicted = self.positions[cells]
        km = great_circle_km(truth[:, 0], truth[:, 1], predicted[:, 0], predicted[:, 1])
        inside = labels >= 0
        return GeolocationScores(
            within={radius: _mean(km <= radius) for radius in RADII_KM},
            median_km=float(np.median(km)) if len(km) else -1.0,
            mean_km=_mean(km),
            top1=_mean((labels == cells)[inside]),
            top5=None if len(self.positions) <= _TOP else _mean(rows[inside, _IN_TOP]),
            loss=_mean(rows[inside, _LOSS]),
            num_samples=len(rows),
            num_outside=int((~inside).sum()),
            num_repeated=self._repeated,
            photos=LocatedPhotos(
                *(rows[:, _INDEX].astype(np.int64), truth, predicted, km, cells, labels.astype(np.int64)),
                rows[:, _PROBABILITY],
            ),
        )


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else -1.0
