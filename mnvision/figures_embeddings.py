"""Figures of embeddings: verification, nearest neighbours, and a map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mnvision.figures import DPI, label_text, save_figure
from mnvision.metrics.verification_scores import RocCurve, VerificationScores

_SAME, _OTHER, _LINE = "tab:blue", "tab:orange", "0.3"
# The twenty colours of matplotlib's map but for its two greys.
_COLORS = [colormaps["tab20"](place) for place in range(20) if place not in (14, 15)]

_ROW = 1.2  # height of a row of pictures with titles, in widths of a picture

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A picture and those most similar to it.

    Attributes:
        query: ``(h, w, 3)`` uint8 RGB.
        name: What to call it.
        group: Its folder, or another name of what belongs together.
        pictures: Its neighbours, the best first.
        groups: Theirs.
        similarities: Theirs, in [-1, 1].
    """

    query: Pixels
    name: str
    group: str
    pictures: Sequence[Pixels]
    groups: Sequence[str]
    similarities: Sequence[float]


def save_roc(scores: VerificationScores, path: Path | str) -> None:
    """True accepts over false accepts, the latter on a logarithmic axis down to half of one pair.

    Args:
        scores: Of a verification in which pairs were scored.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    roc = scores.roc
    assert roc is not None
    figure = Figure(figsize=(6.4, 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    least = 1 / scores.num_different
    far, tar = _steps(roc, least / 2)
    axes.plot(far, tar, color=_SAME, linewidth=1.8, label=f"AUC {scores.auc:.4f}")
    axes.axvspan(least / 2, least, color="0.92", zorder=0, label="less than one pair")
    for rate, marker in zip(scores.tar_at_far, "o^vD<>ph" * len(scores.tar_at_far)):
        label = f"TAR {rate.tar:.4f} at FAR {rate.limit:g}"
        axes.plot(rate.limit, rate.tar, marker, color=_SAME, markersize=6, label=label)
    axes.plot(scores.eer, 1 - scores.eer, "s", color=_OTHER, markersize=6, label=f"EER {scores.eer:.4f}")
    axes.set(
        xscale="log",
        xlim=(least / 2, 1),
        ylim=(-0.02, 1.02),
        xlabel=f"False accept rate ({scores.num_different} pairs of two people)",
        ylabel=f"True accept rate ({scores.num_same} pairs of one)",
        title=f"Verification: accuracy {scores.accuracy:.4f} ± {scores.standard_error:.4f}, {len(scores.folds)} folds",
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    save_figure(figure, path)


def _steps(roc: RocCurve, least: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve with each false accept rate's best point, from ``least`` on."""
    last = np.append(np.diff(roc.far) > 0, True)
    far, tar = roc.far[last], roc.tar[last]
    if len(far) > 1:  # a rate holds until the next one is reached
        far, tar = np.repeat(far, 2)[1:], np.repeat(tar, 2)[:-1]
    return np.maximum(far, least), tar


def save_similarities(scores: VerificationScores, path: Path | str) -> None:
    """Histograms of the cosines of both kinds of pairs, and the threshold between them.

    Args:
        scores: Of a verification in which pairs were scored.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    low, high = float(scores.similarities.min()), float(scores.similarities.max())
    edges = np.linspace(low - 1e-6, high + 1e-6, 61).tolist()
    for kind, color, what, count in (
        (~scores.same, _OTHER, "two people", scores.num_different),
        (scores.same, _SAME, "one person", scores.num_same),
    ):
        axes.hist(scores.similarities[kind], edges, color=color, alpha=0.6, label=f"{what} ({count} pairs)")
    threshold = f"threshold {scores.similarity:.3f}: {scores.threshold_accuracy:.3f} right"
    axes.axvline(scores.similarity, color=_LINE, linestyle="--", linewidth=1.2, label=threshold)
    axes.set(xlabel="Cosine similarity", ylabel="Pairs", title="Similarity of pairs")
    axes.grid(alpha=0.25)
    # Above the axes: wherever it lay inside, some histogram would run through it.
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    save_figure(figure, path)


def save_neighbours(rows: Sequence[Neighbours], path: Path | str) -> None:
    """A row per query: the picture, then its nearest neighbours with their similarity.

    A neighbour of the query's own group has a blue frame, others an orange one; without groups there are none.

    Args:
        rows: At least one, with a neighbour or more each.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    across = 1 + max(len(row.pictures) for row in rows)
    high = _ROW * len(rows) + 0.3
    figure = Figure(figsize=(1.5 * across, 1.5 * high), dpi=DPI)
    # One plane for all pictures: an axes for each takes seconds to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(high, 0))
    axes.axis("off")
    grouped = len({group for row in rows for group in (row.group, *row.groups)}) > 1
    title = "Query, and its nearest neighbours by cosine similarity"
    axes.text(0.05, 0.2, title + (" (blue: of the same folder)" if grouped else ""), fontsize=10)
    for number, row in enumerate(rows):
        top = 0.3 + _ROW * number
        _draw_picture(axes, (0, top), row.query, label_text(row.name, 20), None)
        for place, (picture, group, similarity) in enumerate(zip(row.pictures, row.groups, row.similarities), 1):
            color = None if not grouped else _SAME if group == row.group else _OTHER
            _draw_picture(axes, (place, top), picture, f"{similarity:.3f}", color)
    save_figure(figure, path)


def _draw_picture(axes: Axes, corner: tuple[float, float], picture: Pixels, title: str, frame: str | None) -> None:
    """A picture in a cell of one by one, below its title, with its own proportions."""
    height, width = (0.92 * side / max(picture.shape[:2]) for side in picture.shape[:2])
    left, top = corner[0] + (1 - width) / 2, corner[1] + 0.17 + (1 - height) / 2
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="antialiased")
    axes.text(corner[0] + 0.5, corner[1] + 0.17, title, fontsize=8, ha="center")
    if frame is not None:
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=frame, linewidth=3))


def save_map(points: NDArray[np.float64], share: float, groups: Sequence[str], path: Path | str) -> None:
    """Embeddings as points of a plane, coloured by group; the 18 largest groups are named, others grey.

    Args:
        points: ``(N, 2)``, from :func:`~mnvision.prediction.neighbours.principal_plane`.
        share: Of the variance, in [0, 1].
        groups: N names.
        path: The PNG to write.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(8.2, 5.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    names = np.asarray(groups)
    sizes = Counter(groups)
    largest = [name for name, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[: len(_COLORS)]]
    dot = float(np.clip(4000 / len(points), 3, 24))
    others = ~np.isin(names, largest)
    axes.scatter(points[others, 0], points[others, 1], s=dot, color="0.8", linewidths=0)
    colors, labels = list(_COLORS[: len(largest)]), [f"{label_text(name)} ({sizes[name]})" for name in largest]
    for color, name in zip(colors, largest):
        mine = names == name
        axes.scatter(points[mine, 0], points[mine, 1], s=1.5 * dot, color=color, linewidths=0)
    if others.any():
        colors.append((0.8, 0.8, 0.8, 1.0))
        labels.append(f"{len(sizes) - len(largest)} more ({int(others.sum())})")
    axes.set(
        xlabel="First principal axis",
        ylabel="Second principal axis",
        title=f"{len(points)} embeddings; this plane has {share:.0%} of their variance",
        aspect="equal",
    )
    axes.grid(alpha=0.25)
    if len(sizes) > 1:
        # Large marks, for those of many points are too small to tell their colours.
        marks = [Line2D([], [], marker="o", markersize=5, linestyle="", color=color) for color in colors]
        axes.legend(marks, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
    save_figure(figure, path)
