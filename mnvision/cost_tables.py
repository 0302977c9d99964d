"""Costs as aligned plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnvision.cost import Cost, LayerCost, TypeCost

COLUMNS = ("mult_adds", "weights", "params")


def layer_table(cost: Cost) -> str:
    """One line per layer, the total in the last."""
    lines = [["layer", "type", "output", "mult-adds", "weights", "params"]]
    for layer in cost.layers:
        lines.append([layer.name, layer.type, shape_text(layer), *(f"{getattr(layer, name):,}" for name in COLUMNS)])
    return aligned([*lines, ["total", "", "", *(f"{getattr(cost, name):,}" for name in COLUMNS)]], text_columns=3)


def total_table(cost: Cost, heading: str, totals: Sequence[TypeCost]) -> str:
    """One line per type or part with its share in per cent, the total in the last."""
    lines = [[heading, "layers", "mult-adds", "%", "weights", "%", "params", "%"]]
    for total in totals:
        lines.append([total.type, str(total.layers), *_shares(total, cost)])
    lines.append(["total", str(len(cost.layers)), *_shares(cost, cost)])
    return aligned(lines, text_columns=1)


def shape_text(layer: LayerCost) -> str:
    """Such as "64x112x112"."""
    return "x".join(map(str, layer.output_shape))


def _shares(part: TypeCost | Cost, whole: Cost) -> list[str]:
    cells = []
    for name in COLUMNS:
        count, of = getattr(part, name), getattr(whole, name)
        cells += [f"{count:,}", f"{100 * count / max(of, 1):.2f}"]
    return cells


def aligned(lines: list[list[str]], text_columns: int) -> str:
    """Columns of equal width, the first ones left, the numbers right; ruled under heading and above total."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:text_columns], widths)]
        cells += [cell.rjust(width) for cell, width in zip(line[text_columns:], widths[text_columns:])]
        rows.append("  ".join(cells))
    rule = "-" * len(rows[0])
    return "\n".join([rows[0], rule, *rows[1:-1], rule, rows[-1]])
