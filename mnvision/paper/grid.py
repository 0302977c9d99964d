"""Width against resolution on one set of pictures: what the paper's Tables 6 and 7 and its Figure 4 do on ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnvision.paper.measured import Record
from mnvision.paper.sections import Costs, Entry, Footnotes, Section

CLASSIFIED = 6  # the table that classifiers of any pictures are recorded under
FEWEST_TO_FIT = 3


@dataclass(frozen=True)
class Point:
    """One classifier: its score and what it costs.

    Attributes:
        record: The score.
        mult_adds: Of one picture.
        params: Learnable values.
    """

    record: Record
    mult_adds: int
    params: int


def grid_points(records: Sequence[Record], costs: Costs) -> dict[str, list[Point]]:
    """Classifiers by the pictures they were scored on, the widest and largest first."""
    groups: dict[str, list[Point]] = {}
    for record in sorted((r for r in records if r.table == CLASSIFIED), key=lambda r: (-r.knobs[0], -r.knobs[1])):
        cost = costs(record.words)
        groups.setdefault(record.data, []).append(Point(record, cost.mult_adds, cost.params))
    return groups


def recipes(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Classifiers by how they were trained: a line through different trainings would not show the width's share."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.record.note, []).append(point)
    return groups


def log_slope(points: Sequence[Point]) -> float | None:
    """Points of per cent that twice the multiply-adds bring, by least squares over log2 of the cost.

    ``None`` below three different costs.
    """
    if len({point.mult_adds for point in points}) < FEWEST_TO_FIT:
        return None
    doublings = np.log2([point.mult_adds for point in points])
    return float(np.polyfit(doublings, [100 * point.record.value for point in points], 1)[0])


def slope_text(slope: float) -> str:
    """Points with their sign; less than half of the last digit is "+0.0", never "-0.0"."""
    return f"{round(slope, 1) + 0.0:+.1f}"


def grid_section(data: str, points: Sequence[Point]) -> Section:
    """The table of one set of pictures.

    Args:
        data: What the pictures are called.
        points: Of :func:`grid_points`.
    """
    header = ["model", "cost", "params", "top-1 %", "minutes", "seed", "how"]
    section = Section(f"Width and resolution on {data}, millions", header, [])
    footnotes = Footnotes()
    for point in points:
        record = point.record
        minutes = "-" if record.minutes is None else f"{record.minutes:g}"
        costs = (point.mult_adds / 1e6, point.params / 1e6)
        figures = [f"{costs[0]:.1f}", f"{costs[1]:.2f}", f"{100 * record.value:.1f}"]
        section.rows.append([record.name, *figures, minutes, str(record.seed), footnotes.letter(record.note)])
        for column, value in zip(("cost", "params"), costs):
            section.entries.append(Entry(0, record.name, column, "", value, "computed", "", data))
        how = "; ".join(filter(None, (data, record.note)))
        section.entries.append(Entry(0, record.name, "top-1 %", "", 100 * record.value, "measured", "", how))
    section.notes.extend(footnotes.lines())
    groups = recipes(points)
    for note, alike in groups.items():
        slope = log_slope(alike)
        if slope is not None:
            of = f" to {footnotes.letter(note)}" if len(groups) > 1 else ""
            section.notes.append(
                f"Twice the multiply-adds bring {slope_text(slope)} points{of} (least squares over log2 of the cost)."
            )
    return section
