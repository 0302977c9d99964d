"""Coarser views of a partition: the ancestors of its cells, and predictions that go from coarse to fine.

Müller-Budack, Pustu-Iren, Ewerth: "Geolocation Estimation of Photos using a Hierarchical Model" (2018) multiplies the
probabilities of three partitions along the path of a cell. Here one head predicts the fine cells, and a coarser cell
has the sum of what lies in it, so that the levels cannot contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.geo.cells import levels, parents
from mnvision.geo.curve import MAX_LEVEL
from mnvision.geo.partition import Partition

if TYPE_CHECKING:
    from torch import Tensor

Probabilities = TypeVar("Probabilities", "NDArray[Any]", "Tensor")


class Hierarchy:
    """Ancestors of a partition's K cells at some levels.

    Args:
        partition: The fine cells.
        at_levels: S2 levels, rising. A fine cell that is coarser than a level stands there for itself.

    Attributes:
        cells: Per level ``(G,)`` uint64 ids of the groups, rising.
        groups: Per level ``(K,)`` int64, the group of each fine cell, ``0 .. G-1``, never falling: cells of a group
            stand side by side.

    Raises:
        UserError: Levels that are none, or do not rise.
    """

    def __init__(self, partition: Partition, at_levels: Sequence[int]) -> None:
        if list(at_levels) != sorted(set(at_levels)) or not all(0 <= level <= MAX_LEVEL for level in at_levels):
            raise UserError(f"levels of a hierarchy {list(at_levels)}: give rising levels between 0 and {MAX_LEVEL}")
        own = levels(partition.cells)
        self.levels = tuple(at_levels)
        self.cells: list[NDArray[np.uint64]] = []
        self.groups: list[NDArray[np.int64]] = []
        for level in at_levels:
            ancestors = np.where(own <= level, partition.cells, parents(partition.cells, level))
            cells, groups = np.unique(ancestors, return_inverse=True)
            self.cells.append(cells)
            self.groups.append(groups)

    def sums(self, probabilities: Probabilities, depth: int) -> Probabilities:
        """Probabilities of the groups.

        Args:
            probabilities: ``(..., K)`` of the fine cells, numpy or torch.
            depth: Index into the levels.

        Returns:
            ``(..., G)`` of the same kind.
        """
        groups, number = self.groups[depth], len(self.cells[depth])
        if isinstance(probabilities, np.ndarray):
            starts = np.searchsorted(groups, np.arange(number))
            return np.add.reduceat(probabilities, starts, axis=-1)
        import torch

        index = torch.from_numpy(groups).to(probabilities.device)
        empty = probabilities.new_zeros((*probabilities.shape[:-1], number))
        return empty.index_add(-1, index, probabilities)

    def along_best_path(self, probabilities: Probabilities) -> Probabilities:
        """Probabilities with zeros outside the best path: the likeliest coarse cell, in it the likeliest finer one.

        Args:
            probabilities: ``(..., K)`` of the fine cells, numpy or torch.

        Returns:
            ``(..., K)``: their argmax is the hierarchical prediction, which may differ from that of the input.
        """
        for depth, groups in enumerate(self.groups):
            best = self.sums(probabilities, depth).argmax(-1)
            if isinstance(probabilities, np.ndarray):
                probabilities = np.where(groups == best[..., None], probabilities, 0)
            else:
                import torch

                index = torch.from_numpy(groups).to(probabilities.device)
                probabilities = torch.where(index == best[..., None], probabilities, 0)
        return probabilities
