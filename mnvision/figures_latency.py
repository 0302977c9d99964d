"""Figure of a choice: what every width and resolution costs and gives, what fits, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from mnvision.figures import DPI, label_text, save_figure
from mnvision.latency.choice import COSTS, Budget, Choice, Point, frontier

# Where a label may stand, in points from its mark: near before far, right before left.
_PLACES = (
    *((10, -3, "left"), (-10, -3, "right"), (0, 10, "center"), (0, -17, "center")),
    *((9, 7, "left"), (-9, 7, "right"), (9, -13, "left"), (-9, -13, "right")),
    *(
        (16, 14, "left"),
        (-16, 14, "right"),
        (16, -20, "left"),
        (-16, -20, "right"),
        (0, 22, "center"),
        (0, -28, "center"),
    ),
)
_FAR = 4.0
_WORDS = {
    "latency_ms": "Latency, ms",
    "madds": "Million multiply-adds",
    "params": "Million parameters",
    "file_mb": "MB",
}


def save_choice(
    points: Sequence[Point], budget: Budget, choice: Choice, main: str, title: str, score: str, path: Path | str
) -> None:
    """Score (multiply-adds where none is known) over cost: widths in colours, the frontier as a line.

    Full marks fit the budget, empty ones do not; a ring is what was chosen. Points of unknown score are left out.

    Args:
        points: All that were considered.
        budget: The limit on ``main`` is drawn.
        choice: Says by what the points are ranked.
        main: Key of the budget along the x axis, e.g. "latency_ms".
        title: Above the figure.
        score: What the y axis shows.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    scale = COSTS[main][2]
    y_scale = 1e6 if choice.ranking == "mult_adds" else 1.0
    shown = [point for point in points if point.score(choice.ranking) is not None]
    xs = [point.cost(main) / scale for point in shown]
    ys = [(point.score(choice.ranking) or 0.0) / y_scale for point in shown]
    figure = Figure(figsize=(9, 6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _draw_frontier(axes, xs, ys)
    widths = sorted({point.alpha for point in shown}, reverse=True)
    for point, x, y in zip(shown, xs, ys, strict=True):
        color = colormaps["tab10"](widths.index(point.alpha) % 10)
        face = color if budget.fits(point) else "white"
        axes.plot(x, y, "o", color=color, markerfacecolor=face, markersize=7, zorder=3)
        if choice.best is not None and point == choice.best:
            axes.plot(x, y, "o", color="black", markerfacecolor="none", markersize=15, markeredgewidth=1.8, zorder=4)
    for place, width in enumerate(widths):
        axes.plot([], [], "o", color=colormaps["tab10"](place % 10), label=f"alpha {width:g}")
    limits = [budget.limits[main] / scale] if main in budget.limits else []
    for limit in limits:
        axes.axvline(limit, color="0.35", linestyle="--", linewidth=1.2, label=f"budget {limit:g}", zorder=1)
    axes.plot([], [], "o", color="0.4", markerfacecolor="white", label="over the budget")
    if choice.best is not None:
        name = f"chosen: {choice.best.name}"
        axes.plot([], [], "o", color="black", markerfacecolor="none", markersize=11, markeredgewidth=1.8, label=name)
    # A budget far off would press all points together.
    near = [limit for limit in limits if min(xs) / _FAR <= limit <= max(xs) * _FAR]
    _style(axes, main, score, title, [*xs, *near])
    _label(figure, axes, [point.name for point in shown], xs, ys)
    save_figure(figure, path)


def _draw_frontier(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    best = sorted((x, y) for x, y, on in zip(xs, ys, frontier(xs, list(ys)), strict=True) if on)
    if len(best) > 1:
        axes.plot(*zip(*best, strict=True), color="0.55", linewidth=1.4, zorder=2, label="frontier")


def _style(axes: Axes, main: str, score: str, title: str, xs: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(xs) / 1.18, max(xs) * 1.18)
    axes.margins(y=0.08)
    axes.set(xlabel=_WORDS[main], ylabel=score, title=label_text(title, 100))
    axes.grid(alpha=0.25, which="both")
    # Cheap and good lies at the upper left, so that corner stays free for points.
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _label(figure: Figure, axes: Axes, texts: Sequence[str], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Put a text beside every mark where it covers no other text or mark."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    marks = [axes.transData.transform((x, y)) for x, y in zip(xs, ys, strict=True)]
    radius = 6 * DPI / 72
    taken: list[Bbox] = [Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in marks]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent(renderer))
    for text, x, y in zip(texts, xs, ys, strict=True):
        chosen: Annotation | None = None
        for right, up, side in _PLACES:
            found = axes.annotate(
                *(text, (x, y)),
                xytext=(right, up),
                textcoords="offset points",
                ha=side,
                fontsize=8,
                zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )
            box = found.get_window_extent(renderer)
            if chosen is None or not any(box.overlaps(other) for other in taken):
                if chosen is not None:
                    chosen.remove()
                chosen = found
                if not any(box.overlaps(other) for other in taken):
                    break
            else:
                found.remove()
        assert chosen is not None
        taken.append(chosen.get_window_extent(renderer))
