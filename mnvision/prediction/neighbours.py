"""Which embeddings lie close together, and a plane to look at them in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 8192  # rows


def nearest(
    embeddings: NDArray[np.float32], queries: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows most similar to some of them, the best first; equal ones in their order.

    Args:
        embeddings: ``(N, D)`` of length 1.
        queries: ``(Q,)`` rows to compare with all others; a row is not its own neighbour.
        count: k, neighbours per query; fewer where there are fewer rows.

    Returns:
        Rows ``(Q, k)`` and their cosines ``(Q, k)``.
    """
    similarities = embeddings[queries] @ embeddings.T
    similarities[np.arange(len(queries)), queries] = -np.inf
    rows = np.argsort(-similarities, axis=1, kind="stable")[:, : min(count, len(embeddings) - 1)]
    return rows, np.take_along_axis(similarities, rows, axis=1)


def principal_plane(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """The plane in which embeddings differ most (principal components).

    The sign of an axis is chosen so that its largest coordinate is positive, for the same figure on every machine.

    Args:
        embeddings: ``(N, D)``, N and D at least 2.

    Returns:
        Coordinates ``(N, 2)`` and the share of the variance that the plane shows.
    """
    mean = embeddings.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((embeddings.shape[1],) * 2)
    for start in range(0, len(embeddings), _CHUNK):
        centred = embeddings[start : start + _CHUNK] - mean
        covariance += centred.T @ centred
    values, axes = np.linalg.eigh(covariance)
    axes = axes[:, :-3:-1]
    points: NDArray[Any] = (embeddings - mean) @ axes
    points *= np.sign(points[np.abs(points).argmax(axis=0), [0, 1]] + 1e-300)
    total = values.sum()
    return points, float(values[-2:].sum() / total) if total > 0 else 1.0
