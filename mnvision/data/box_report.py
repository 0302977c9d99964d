"""How well a head's default boxes cover a data set, and what fitted ones would cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.boxes.default_boxes import BoxSizes, feature_map_sizes, make_default_boxes, ssd_box_sizes
from mnvision.boxes.fit import best_possible_ious, fit_box_sizes, recall_by_size, search_scales
from mnvision.data.index import DetectionIndex

EXTRA_MAPS = 4


@dataclass(frozen=True)
class BoxReport:
    """Recall at IoU 0.5 by size of object, for the current and for fitted default boxes.

    Attributes:
        rows: (name, number of default boxes, recall by size) of each set of default boxes.
        counts: Objects by size.
        box_sizes: The clustered sizes, for ``SSDHead``'s ``box_sizes``.
        override: Command-line words for the best scales.
    """

    rows: tuple[tuple[str, int, dict[str, float]], ...]
    counts: dict[str, int]
    box_sizes: BoxSizes
    override: str

    def lines(self) -> list[str]:
        """A table for the terminal."""
        names = list(self.counts)
        heading = "  ".join(f"{name:>8}" for name in names)
        lines = [f"{'best possible recall at IoU 0.5':<34} {'boxes':>6}  {heading}"]
        lines.append(f"{'objects':<34} {'':>6}  " + "  ".join(f"{self.counts[name]:>8}" for name in names))
        for label, count, recall in self.rows:
            values = "  ".join(f"{recall[name]:>8.3f}" for name in names)
            lines.append(f"{label:<34} {count:>6}  {values}")
        return [*lines, f"best scales as overrides: {self.override}"]


def network_boxes(index: DetectionIndex, resolution: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Objects of an index stretched to the network's input, and their areas in the original pictures.

    Returns:
        ``(N, 4)`` xyxy in pixels of the network's input and ``(N,)`` square pixels of the pictures; crowd
        regions are left out.
    """
    per_image = np.diff(index.box_offsets)
    sizes = np.repeat(index.sizes, per_image, axis=0).astype(np.float64)[~index.crowd]
    boxes = index.boxes[~index.crowd].astype(np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return boxes * (resolution / np.tile(sizes[:, ::-1], 2)), areas


def report_boxes(
    index: DetectionIndex, head: Mapping[str, Any], in_strides: Sequence[int], resolution: int, count: int
) -> BoxReport:
    """Compare the default boxes of a head config with fitted ones on a data set.

    Args:
        index: Training annotations.
        head: Plain config of :class:`~mnvision.heads.ssd.SSDHead`.
        in_strides: Strides of the backbone's maps.
        resolution: Side of the network's input in pixels.
        count: Number of clustered sizes over all maps.

    Raises:
        UserError: The data set holds no, or too few different, objects.
    """
    sides = (resolution, resolution)
    boxes, areas = network_boxes(index, resolution)
    maps = feature_map_sizes(sides, in_strides, EXTRA_MAPS)
    reduced = head.get("reduce_lowest", True)
    scales = search_scales(boxes, maps, sides, reduce_lowest=reduced)
    fitted = fit_box_sizes(boxes, maps, sides, count)
    current = head.get("box_sizes") or ssd_box_sizes(
        len(maps), head["min_scale"], head["max_scale"], reduce_lowest=reduced
    )
    rows = []
    for name, sizes in (
        ("current", current),
        (
            f"min_scale {scales.min_scale}, max_scale {scales.max_scale}",
            ssd_box_sizes(len(maps), scales.min_scale, scales.max_scale, reduce_lowest=reduced),
        ),
        (f"{count} sizes by k-means", fitted),
    ):
        defaults = make_default_boxes(sizes, maps, sides).numpy()
        rows.append((name, len(defaults), recall_by_size(best_possible_ious(boxes, defaults), areas)))
    counts = {"all": len(areas), "small": int((areas < 32**2).sum()), "large": int((areas >= 96**2).sum())}
    counts = {**counts, "medium": counts["all"] - counts["small"] - counts["large"]}
    ordered = {name: counts[name] for name in ("all", "small", "medium", "large")}
    override = f"head.min_scale={scales.min_scale} head.max_scale={scales.max_scale}"
    return BoxReport(tuple(rows), ordered, fitted, override)
