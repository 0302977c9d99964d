"""Figures of a run, written as PNG without a display and without matplotlib's global state."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.metrics.coco_scores import CocoScores

DPI = 120
_NAMED_CURVES = 10
_NUMBERED_CELLS = 25
_LONGEST_NAME = 22
_BACKGROUND = "background"


def save_pr_curves(scores: CocoScores, path: Path | str) -> None:
    """Precision over recall at IoU 0.5: a line per class, and their mean.

    With more than ten classes only the five best and the five worst are named; the others are thin and grey.

    Args:
        scores: Of a COCO evaluation. Classes without annotations are left out.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    names, curves = list(scores.per_class), scores.precision_curves
    defined = [index for index in range(len(names)) if curves[0, index] >= 0]
    areas = {index: float(curves[:, index].mean()) for index in defined}
    ranking = sorted(defined, key=lambda index: -areas[index])
    named = ranking
    if len(ranking) > _NAMED_CURVES:
        named = ranking[: _NAMED_CURVES // 2] + ranking[-(_NAMED_CURVES // 2) :]
    figure, axes = _figure(8.5, 5)
    recall = np.linspace(0, 1, len(curves))
    for index in set(ranking).difference(named):
        axes.plot(recall, curves[:, index], color="0.82", linewidth=0.7, zorder=1)
    for place, index in enumerate(named):
        label = f"{label_text(names[index])}  {areas[index]:.3f}"
        axes.plot(recall, curves[:, index], color=colormaps["tab10"](place % 10), linewidth=1.4, label=label)
    if defined:
        label = f"mean of {len(defined)}  {np.mean(list(areas.values())):.3f}"
        axes.plot(recall, curves[:, defined].mean(axis=1), color="black", linewidth=2.6, label=label)
        title = "AP50" if len(named) == len(ranking) else "AP50 (5 best, 5 worst)"
        axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    axes.set(
        xlabel="Recall",
        ylabel="Precision",
        title="Precision and recall at IoU 0.5",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def save_confusion_matrix(
    matrix: NDArray[np.int64], class_names: Sequence[str], path: Path | str, title: str = "Confusion matrix"
) -> None:
    """Confusion matrix, each cell coloured by its share of the true class.

    Up to 25 rows the counts are written into the cells.

    Args:
        matrix: ``(K, K)`` int64, row true class, column predicted class; ``(K + 1, K + 1)`` for a detector,
            whose last row and column are background.
        class_names: The K names.
        path: The PNG to write.
        title: Above the figure.

    Raises:
        UserError: The matrix does not fit the names, or the file cannot be written.
    """
    names = [label_text(name) for name in class_names]
    if matrix.shape == (len(names) + 1, len(names) + 1):
        names.append(_BACKGROUND)
    if matrix.shape != (len(names), len(names)):
        raise UserError(f"confusion matrix of shape {matrix.shape} does not fit {len(names)} class names")
    size = float(np.clip(0.18 * len(names), 3.2, 24))
    figure, axes = _figure(size + 3.0, size + 2.2)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    font = 9 if len(names) <= _NUMBERED_CELLS else 7
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.set(xlabel="Predicted", ylabel="True", title=label_text(title, 80))
    if len(names) <= _NUMBERED_CELLS:
        _write_counts(axes, matrix, shares)
    else:
        axes.set_xticks(np.arange(len(names)) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names)) - 0.5, minor=True)
        axes.grid(which="minor", color="0.9", linewidth=0.3)
        axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="Share of the true class")
    save_figure(figure, path)


def _write_counts(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    longest = max(len(str(matrix.max())), 2)
    cell = max(3.2 / len(matrix), 0.18) * 72  # points
    font = float(np.clip(1.5 * cell / longest, 3.5, 11))
    for row, column in np.argwhere(matrix > 0):
        color = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=font)


def save_training_curves(metrics_csv: Path | str, path: Path | str) -> None:
    """Curves over the epochs of a run: losses, validation scores, learning rate.

    Columns ``train/x`` and ``val/x`` share a panel called x; ``lr`` has its own on a logarithmic axis.

    Args:
        metrics_csv: ``metrics.csv`` of a run folder: a column ``epoch`` and one column per number; cells may
            be empty.
        path: The PNG to write.

    Raises:
        UserError: The table is missing, holds no epoch, or has a cell that is no number; or the PNG cannot be
            written.
    """
    columns = _read_columns(Path(metrics_csv))
    epochs = columns.pop("epoch")
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, values in columns.items():
        stage, slash, metric = name.rpartition("/")
        if slash or name == "lr":
            panels.setdefault(metric, {})[stage or "lr"] = values
    if not panels:
        raise UserError(f"{metrics_csv} has no columns such as train/loss; nothing to draw")
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.0 + 3.9 * across, 2.9 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (metric, curves) in zip(grid, panels.items()):
        _draw_panel(axes, metric, epochs, curves)
    for axes in grid[len(panels) :]:
        axes.remove()
    save_figure(figure, path)


def _draw_panel(
    axes: Axes, metric: str, epochs: NDArray[np.float64], curves: Mapping[str, NDArray[np.float64]]
) -> None:
    colors = {"train": "tab:blue", "val": "tab:orange"}
    for stage, values in curves.items():
        known = np.isfinite(values)
        # A marker for every epoch of a short run; a single epoch would be invisible without one.
        marker = "o" if known.sum() <= 30 else None
        axes.plot(
            epochs[known],
            values[known],
            label=label_text(stage),
            color=colors.get(stage),
            marker=marker,
            markersize=3,
        )
    if metric == "lr" and all((values[np.isfinite(values)] > 0).all() for values in curves.values()):
        axes.set_yscale("log")
    axes.set_title(label_text(metric, 40), fontsize=10)
    axes.set_xlabel("Epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if metric != "lr":
        axes.legend(frameon=False, fontsize=8)


def _read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a CSV as float64; empty cells are NaN."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not rows or "epoch" not in rows[0]:
        raise UserError(f"{path} has no epochs; train for at least one epoch first")
    columns = {}
    for name in rows[0]:
        try:
            columns[name] = np.array([float(row[name]) if row[name] else np.nan for row in rows])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, column {name!r}: {error}") from error
    return columns


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as a PNG, whole or not at all, without a display.

    Raises:
        UserError: The file cannot be written.
    """
    FigureCanvasAgg(figure)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Code points that matplotlib's default font can draw."""
    return frozenset(get_font(findfont("sans\\-serif")).get_charmap())


def label_text(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name that matplotlib draws as it stands: no formulas, no unknown characters, not too long."""
    drawable = "".join(character if ord(character) in _characters() else "?" for character in name)
    if len(drawable) > longest:
        drawable = drawable[: longest - 1] + "…"
    # matplotlib hides labels that begin with an underscore and reads $...$ as a formula.
    return ("\u2009" if drawable.startswith("_") else "") + drawable.replace("$", r"\$")
