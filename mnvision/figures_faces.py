"""Figures of face attributes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnvision.figures import DPI, label_text, save_figure
from mnvision.metrics.attribute_scores import AttributeMetrics, AttributeRow
from mnvision.metrics.binary import Reliability


def save_reliability(curve: Reliability, path: Path | str) -> None:
    """Reliability diagram: how often the answer is yes where a probability is given, and how often that is.

    Args:
        curve: Of all attributes together.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(5.4, 6.2), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = curve.counts > 0
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.plot(curve.predicted[filled], curve.observed[filled], color="tab:blue", marker="o", markersize=5)
    upper.set(ylabel="Share of yes", ylim=(-0.02, 1.02), xlim=(0, 1))
    title = "Reliability, all attributes"
    if filled.any():
        title += f"\nECE {curve.ece:.3f}, Brier score {curve.brier:.3f}"
    upper.set_title(title)
    upper.legend(frameon=False, loc="upper left", fontsize=9)
    edges = np.linspace(0, 1, len(curve.counts) + 1)
    lower.bar(edges[:-1], curve.counts / max(curve.counts.sum(), 1), np.diff(edges), align="edge", edgecolor="white")
    lower.set(xlabel="Predicted probability", ylabel="Share of labels")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    save_figure(figure, path)


def save_attribute_bars(scores: AttributeMetrics, path: Path | str) -> None:
    """Average precision per attribute, best first, each with the share of positives: what a random order scores.

    Attributes without an average precision come last and without a bar; dead ones are marked.

    Args:
        scores: Of an evaluation.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    rows = dict(sorted(scores.per_attribute.items(), key=lambda item: -item[1].ap))
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _draw_bars(axes, rows, scores)
    if scores.mean_ap >= 0:
        axes.axvline(
            scores.mean_ap, color="tab:blue", linestyle="--", linewidth=1, zorder=0, label=f"mean {scores.mean_ap:.3f}"
        )
    axes.set(xlabel="Average precision", xlim=(0, 1.06), title="Average precision per attribute")
    axes.set_xticks(np.linspace(0, 1, 6))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    axes.grid(alpha=0.25, axis="x")
    save_figure(figure, path)


def _draw_bars(axes: Axes, rows: Mapping[str, AttributeRow], scores: AttributeMetrics) -> None:
    places = np.arange(len(rows))
    values = np.array([max(row.ap, 0.0) for row in rows.values()])
    chance = np.array([row.positives / row.n if row.n else np.nan for row in rows.values()])
    colors = ["#e29a94" if name in scores.dead else "#86b3d8" for name in rows]
    axes.barh(places, values, 0.7, color=colors)
    axes.plot(chance, places, linestyle="none", marker="|", markersize=9, color="black", label="share of positives")
    names = [label_text(name) + (" (dead)" if name in scores.dead else "") for name in rows]
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for place, (name, row) in enumerate(rows.items()):
        text = f"{row.ap:.3f}" if row.ap >= 0 else scores.unscored.get(name, "")
        axes.text(values[place] + 0.008, place, text, va="center", fontsize=7)
