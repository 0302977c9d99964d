"""Accuracy against multiply-adds and against parameters: the paper's Figures 4 and 5, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mnvision.figures import DPI, label_text, save_figure
from mnvision.paper.grid import FEWEST_TO_FIT, Point, recipes, slope_text

_SHOWN = 3  # rows below ImageNet
_LONGEST_TITLE = 110
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Dot:
    """One model in the figure.

    Attributes:
        alpha: Width multiplier.
        resolution: In pixels.
        score: Top-1 in per cent.
        mult_adds: Of one picture.
        params: Learnable values.
        filled: False for figures that the paper itself does not print.
    """

    alpha: float
    resolution: int
    score: float
    mult_adds: float
    params: float
    filled: bool = True


def save_tradeoff(paper: Sequence[Dot], measured: Mapping[str, Sequence[Point]], path: Path | str) -> None:
    """The figure: a row of two panels for ImageNet, and one for each set of pictures and training measured here.

    Colours are widths, markers resolutions; the line is the least-squares fit over the logarithm of the cost.

    Args:
        paper: ImageNet's models.
        measured: Classifiers by their pictures; of those trained alike, the three groups with most models are drawn
            that have three models or more.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    groups = [
        ("; ".join(filter(None, (data, note))), alike)
        for data, points in measured.items()
        for note, alike in recipes(points).items()
        if len(alike) >= FEWEST_TO_FIT
    ]
    groups = sorted(groups, key=lambda group: -len(group[1]))[:_SHOWN]
    rows = [("ImageNet, the paper's (open: TF-slim's list)", list(paper))]
    rows += [
        (f"Measured here: {label_text(name, _LONGEST_TITLE)}", [_dot(point) for point in alike])
        for name, alike in groups
    ]
    figure = Figure(figsize=(11, 3.9 * len(rows) + 0.3), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for axes, (title, dots) in zip(grid, rows):
        _draw(axes[0], dots, "mult_adds", "Million multiply-adds", fit=True)
        _draw(axes[1], dots, "params", "Million parameters", fit=False)
        axes[0].set_title(title, fontsize=10, loc="left")
        axes[1].legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
    save_figure(figure, path)


def _dot(point: Point) -> Dot:
    alpha, resolution, _ = point.record.knobs
    return Dot(alpha, resolution, 100 * point.record.value, point.mult_adds, point.params)


def _draw(axes: Axes, dots: Sequence[Dot], cost: str, label: str, fit: bool) -> None:
    widths = sorted({dot.alpha for dot in dots}, reverse=True)
    sides = sorted({dot.resolution for dot in dots}, reverse=True)
    for dot in dots:
        color = colormaps["tab10"](widths.index(dot.alpha) % 10)
        axes.plot(
            getattr(dot, cost) / 1e6,
            dot.score,
            _MARKERS[sides.index(dot.resolution) % len(_MARKERS)],
            color=color,
            markerfacecolor=color if dot.filled else "white",
            markersize=6.5,
            linestyle="none",
        )
    if fit and len({getattr(dot, cost) for dot in dots}) >= FEWEST_TO_FIT:
        x, y = np.log2([getattr(dot, cost) / 1e6 for dot in dots]), np.array([dot.score for dot in dots])
        slope, level = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        text = f"{slope_text(slope)} points for twice the cost"
        axes.plot(2**ends, slope * ends + level, color="0.6", linewidth=1, linestyle="--", zorder=0, label=text)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    if not fit:
        for width in widths:
            axes.plot([], [], "o", color=colormaps["tab10"](widths.index(width) % 10), label=f"alpha {width}")
        for side in sides:
            marker = _MARKERS[sides.index(side) % len(_MARKERS)]
            axes.plot([], [], marker, color="0.5", linestyle="none", label=f"{side} px")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=label, ylabel="Top-1 %")
    axes.grid(alpha=0.25, which="both")
