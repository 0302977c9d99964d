"""Cross-entropy over cells of the Earth that forgives a near miss more than a far one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.geo.distance import EARTH_RADIUS_KM, unit_vectors
from mnvision.losses.distillation import checked_number


class DistanceSmoothedCrossEntropy(nn.Module):
    """Softmax cross-entropy towards the cells around a photo instead of its own alone.

    With ``d_k`` the distance from the photo to the position of cell k and ``d`` that to its own cell's, cell k has the
    weight ``exp(-max(d_k - d, 0) / tau)``, and the weights of all cells are divided by their sum. Plain cross-entropy
    punishes the neighbouring town as hard as another continent, though the score is a distance.

    Source: the haversine smoothing of PIGEON (Haas et al., https://arxiv.org/abs/2307.05845), whose tau is 75 km. Ours
    differs twice: no cell weighs more than the photo's own, and the weights sum to one, so that a photo among many
    small cells counts as much as one in the open sea.

    Args:
        tau: In km, above 0. It helps where cells are about as small; towards 0 it is plain cross-entropy.

    Raises:
        UserError: ``tau`` is not above 0.
    """

    directions: Tensor

    def __init__(self, tau: float = 75.0) -> None:
        super().__init__()
        self.tau = checked_number("loss.tau", tau, above=0)
        self.register_buffer("directions", torch.empty(0, 3, dtype=torch.float64), persistent=False)

    def fit_to(self, positions: NDArray[np.float64]) -> None:
        """Take the cells' positions, ``(K, 2)`` latitude and longitude in degrees, once before training."""
        self.directions = torch.from_numpy(unit_vectors(positions[:, 0], positions[:, 1])).to(self.directions.device)

    def targets(self, labels: Tensor, coordinates: Tensor) -> Tensor:
        """What is learned: ``(B, K)`` float32 whose rows sum to one. Arguments as of :meth:`forward`."""
        # In float64 the angle of two unit vectors is right to a metre, although the cosine is flat near 0.
        cosines = _directions(coordinates.double()) @ self.directions.T
        km = EARTH_RADIUS_KM * cosines.clamp_(-1.0, 1.0).acos_()
        farther = km.sub_(km.gather(1, labels[:, None])).clamp_(min=0.0)
        return torch.softmax(farther.div_(-self.tau).float(), dim=1)

    def forward(self, logits: Tensor, labels: Tensor, coordinates: Tensor) -> Tensor:
        """The loss of a batch, a float32 scalar; its least value is the entropy of the targets, not zero.

        Args:
            logits: ``(B, K)``, any float type.
            labels: ``(B,)`` int64, ``0 .. K-1``.
            coordinates: ``(B, 2)`` float64, latitude and longitude of the photos in degrees.

        Raises:
            UserError: The number of cells is not that of the positions given.
        """
        if logits.shape[1] != len(self.directions):
            raise UserError(
                f"{logits.shape[1]} logits for {len(self.directions)} positions of cells: call fit_to first"
            )
        return F.cross_entropy(logits.float(), self.targets(labels, coordinates))


def _directions(positions: Tensor) -> Tensor:
    """Unit vectors ``(N, 3)`` float64 of positions ``(N, 2)`` in degrees."""
    latitudes, longitudes = positions.double().deg2rad().unbind(dim=1)
    return torch.stack([latitudes.cos() * longitudes.cos(), latitudes.cos() * longitudes.sin(), latitudes.sin()], dim=1)
