"""From one logit per cell of the Earth to probabilities, and to the one cell that is answered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.geo.cells import levels
from mnvision.geo.hierarchy import Hierarchy
from mnvision.geo.partition import Partition


class CellScores(nn.Module):
    """Decoder of a geolocator: logits to probabilities that sum to one, and the choice of one cell.

    The choice is the most probable cell or, with ``hierarchical``, the end of a walk from the faces of the cube down
    to a cell, always into the part of the earth whose cells are more probable together: many small cells of one
    country then beat a single larger one elsewhere. See :class:`~mnvision.geo.hierarchy.Hierarchy` for the source.

    Args:
        hierarchical: Walk down. It needs to be told the cells once, see :meth:`fit_to`.

    Raises:
        UserError: ``hierarchical`` is neither true nor false.
    """

    def __init__(self, hierarchical: bool = False) -> None:
        super().__init__()
        if not isinstance(hierarchical, bool):
            raise UserError(f"decoder.hierarchical={hierarchical!r}: give true or false")
        self.hierarchical = hierarchical
        self._hierarchy: Hierarchy | None = None

    def fit_to(self, partition: Partition) -> None:
        """Take the cells that the logits stand for, once before anything is chosen."""
        if self.hierarchical:
            self._hierarchy = Hierarchy(partition, range(int(levels(partition.cells).max())))

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, K)`` float32 from logits ``(B, K)``."""
        return torch.softmax(logits.float(), dim=1)

    def choose(self, probabilities: Tensor) -> Tensor:
        """The answered cell ``(B,)`` int64 from probabilities ``(B, K)``; of equals the first.

        Raises:
            UserError: ``hierarchical``, and the cells are not known.
        """
        if self.hierarchical:
            if self._hierarchy is None:
                raise UserError("decoder.hierarchical=true needs to know the cells: call fit_to with their partition")
            probabilities = self._hierarchy.along_best_path(probabilities)
        return probabilities.argmax(dim=1)
