"""The cells of a checkpoint: where they lie, how far they reach, and which of them a place is in."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.geo import cells
from mnvision.geo.distance import great_circle_km
from mnvision.geo.partition import Partition
from mnvision.world_map import WorldView

PARTITION = "partition"
"""Where the calibration of a checkpoint's metadata holds the cells, as ``Partition.to_dict`` gives them."""

WORLD = 720
"""Columns of the map of the whole earth: half a degree each."""


class CellTable:
    """What all answers of one model share.

    Args:
        partition: The model's cells.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.names: tuple[str, ...] = tuple(partition.names)
        self.positions: NDArray[np.float64] = partition.positions

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def radii_km(self) -> NDArray[np.float64]:
        """``(K,)``: from a cell's position to the farthest of its corners; a photo in the cell is no farther away."""
        corners = cells.vertices(self.partition.cells)
        latitudes, longitudes = self.positions[:, :1], self.positions[:, 1:]
        km: NDArray[np.float64] = great_circle_km(latitudes, longitudes, corners[..., 0], corners[..., 1])
        return km.max(axis=1)

    @cached_property
    def world(self) -> NDArray[np.int64]:
        """The cell of each point of a map of :data:`WORLD` columns, -1 for none; see :class:`WorldView`."""
        return self.labels_at(*WorldView(WORLD).places())

    def labels_at(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.int64]:
        """The cell of every place, -1 for none; degrees of any shapes that broadcast."""
        latitudes, longitudes = np.broadcast_arrays(latitudes, longitudes)
        return self.partition.labels(latitudes.ravel(), longitudes.ravel()).reshape(latitudes.shape)


def stored_partition(metadata: Metadata) -> Partition | None:
    """The cells of a checkpoint; None where it holds none.

    Raises:
        UserError: They are damaged, or not those that its outputs are named after.
    """
    stored = metadata.calibration.get(PARTITION)
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise UserError(f"calibration.{PARTITION} is a {type(stored).__name__}, not a partition")
    partition = Partition.from_dict(stored)
    if list(partition.names) != list(metadata.class_names):
        raise UserError(
            f"calibration.{PARTITION} holds {len(partition)} cells that are not the model's {len(metadata.class_names)}"
        )
    return partition
