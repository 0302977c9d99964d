"""Pictures on which a file and its checkpoint differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mnvision.data.images import read_image
from mnvision.figures import DPI, label_text, save_figure
from mnvision.prediction.predictor import SCORE_THRESHOLD, Predictor
from mnvision.prediction.results import Shown
from mnvision.proof.answers import lowest_threshold, prepare

Pixels = NDArray[np.uint8]
_WIDTH, _HEIGHT = 3.0, 2.5  # inches


@dataclass(frozen=True)
class Case:
    """One picture.

    Attributes:
        title: What differs.
        original: ``(h, w, 3)`` uint8 RGB.
        expected: The checkpoint's answer, drawn.
        found: The file's.
    """

    title: str
    original: Pixels
    expected: Pixels
    found: Pixels


def make_case(
    predictors: tuple[Predictor[Any], Predictor[Any]], dataset: Any, position: int, threshold: float | None, title: str
) -> Case:
    """One picture of a data set, asked about and drawn once more.

    Args:
        predictors: The checkpoint's and the file's.
        dataset: See :func:`~mnvision.proof.answers.gather`.
        position: Of the picture.
        threshold: Score from which on a detector's boxes are drawn.
        title: What differs.
    """
    source = dataset.picture(position) if hasattr(dataset, "picture") else dataset.path(position)
    pixels = read_image(source).pixels
    drawn = [
        predictor.predict_prepared([prepare(predictor, dataset, position)], threshold)[0].draw(pixels, Shown())
        for predictor in predictors
    ]
    return Case(title, pixels, drawn[0], drawn[1])


def shown_threshold(predictors: Sequence[Predictor[Any]]) -> float | None:
    """The score from which on detections are shown by all of them; None for other tasks."""
    lowest = [lowest_threshold(predictor) for predictor in predictors]
    known = [value for value in lowest if value is not None]
    return max([SCORE_THRESHOLD, *known]) if known else None


def save_worst(cases: Sequence[Case], names: tuple[str, str], path: Path) -> None:
    """A row per picture: as it is, with the checkpoint's answer, with the file's.

    Args:
        cases: At least one.
        names: Of the checkpoint and of the file.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(3 * _WIDTH, len(cases) * _HEIGHT), dpi=DPI, layout="constrained")
    rows = np.asarray(figure.subplots(len(cases), 3, squeeze=False))
    for axes, case in zip(rows, cases, strict=True):
        titles = (label_text(case.title, 48), *(label_text(name, 32) for name in names))
        for cell, pixels, title in zip(axes, (case.original, case.expected, case.found), titles, strict=True):
            cell.imshow(pixels)
            cell.set_title(title, fontsize=8)
            cell.axis("off")
    save_figure(figure, path)
