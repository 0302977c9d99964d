"""ImageNet top-1 of the sixteen MobileNets, as the paper's Figures 4 and 5 show them."""

from __future__ import annotations

from mnvision.paper.layout import Table
from mnvision.paper.measured import knobs
from mnvision.paper.printed import SLIM_2017, TABLES

SOURCE = "ImageNet top-1: Tables 6 and 7 of the paper, TF-slim's list (2017) for the others"
_TABLES = (6, 7)


def published_accuracy() -> dict[tuple[float, int], float]:
    """``(alpha, resolution)`` -> top-1 in [0, 1], of networks trained by the paper's authors on 1000 classes."""
    found = {(alpha, resolution): percent / 100 for alpha, resolution, percent in SLIM_2017}
    for table in TABLES:
        if table.number in _TABLES:
            found |= _of(table)
    return found


def _of(table: Table) -> dict[tuple[float, int], float]:
    column = [column.kind for column in table.columns].index("score")
    return {knobs(row.words)[:2]: float(row.printed[column]) / 100 for row in table.rows if row.words}
