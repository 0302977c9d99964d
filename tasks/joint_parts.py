"""A head's share of a joint batch, and of the trunk's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mnvision.multitask import MultiTaskModel


def span(rows: Tensor | slice) -> Tensor | slice:
    """Rows that follow each other as a slice, which costs no copy; others as they are."""
    if isinstance(rows, slice) or not len(rows):
        return rows
    first = int(rows[0])
    consecutive = torch.equal(rows, torch.arange(first, first + len(rows), device=rows.device))
    return slice(first, first + len(rows)) if consecutive else rows


def take(values: Tensor, rows: Tensor | slice) -> Tensor:
    """Rows of ``(B, ...)`` values; all of them in order are the values themselves."""
    if isinstance(rows, slice):
        return values if rows == slice(0, len(values)) else values[rows]
    return values.index_select(0, rows)


def own_rates(model: MultiTaskModel, scales: Mapping[int, float]) -> dict[int, float]:
    """Part of the learning rate for the heads' own normalisations, by parameter: that of the trunk's layer."""
    trunk = [model.backbone.stem, *model.backbone.blocks]
    found: dict[int, float] = {}
    rates = [scales.get(id(next(layer.parameters())), 1.0) for layer in trunk]
    for name in model.norms if scales else ():
        backbone = model.part(name).backbone
        for rate, layer in zip(rates, (backbone.stem, *backbone.blocks)):
            found |= {id(parameter): rate for parameter in layer.parameters()}
    return found
