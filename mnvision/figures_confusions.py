"""Figure of the classes that are taken for each other, with pictures of the mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mnvision.figures import DPI, label_text, save_figure
from mnvision.metrics.confused_pairs import ConfusedPair, Mistakes

Pixels = NDArray[np.uint8]
_ROWS = 6
_PER_WAY = 3
_CELL = 1.5  # inches


def save_confused_pairs(pairs: Sequence[ConfusedPair], picture: Callable[[int], Pixels], path: Path | str) -> None:
    """A row per pair of classes: pictures of the one that were called the other, and the reverse.

    Args:
        pairs: The first six are drawn; there is at least one.
        picture: Position of a sample -> what the network saw, ``(H, W, 3)`` uint8 RGB.
        path: The PNG to write.

    Raises:
        UserError: A picture cannot be read, or the file cannot be written.
    """
    shown = pairs[:_ROWS]
    figure = Figure(figsize=(2 * _PER_WAY * _CELL + 0.4, len(shown) * (_CELL + 0.4)), dpi=DPI, layout="constrained")
    rows = np.asarray(figure.subfigures(len(shown), 2, squeeze=False))
    for (left, right), pair in zip(rows, shown):
        for part, mistakes in ((left, pair.forth), (right, pair.back)):
            _draw(part, mistakes, picture)
    save_figure(figure, path)


def _draw(part: Figure, mistakes: Mistakes, picture: Callable[[int], Pixels]) -> None:
    """Up to three pictures below a line that says what they are."""
    true, predicted = label_text(mistakes.true, 18), label_text(mistakes.predicted, 18)
    part.suptitle(f"{mistakes.count} of {mistakes.total} {true} called {predicted}", fontsize=8)
    cells = np.asarray(part.subplots(1, _PER_WAY, squeeze=False)).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, position in zip(cells, mistakes.examples):
        axes.imshow(picture(position), interpolation="nearest")
