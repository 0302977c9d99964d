"""How one table of the paper is written down, so that ours can be computed beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["score", "quoted", "mult_adds", "params", "weights", "mult_adds_share", "weights_share"]
COSTS: tuple[Kind, ...] = ("mult_adds", "params", "weights", "mult_adds_share", "weights_share")


@dataclass(frozen=True)
class Column:
    """One column of figures.

    Attributes:
        name: Its heading.
        kind: What ours is: "score" is measured, "quoted" is the paper's alone, the others are costs. "weights" are
            kernel values without batch normalisation and biases; shares are per cent of the whole model.
        unit: What one unit of the column stands for, 1e6 for millions.
    """

    name: str
    kind: Kind
    unit: float = 1.0


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: As printed, or what it is where the paper has no such row.
        printed: One cell per column, digit for digit; "" where the paper prints nothing.
        words: Overrides that compose our model of it; "" for other people's models, whose figures are quoted.
        part: A type of layer, or the beginning of layers' names, that the costs are of; "" is the whole model.
        errata: Keys of :data:`~mnvision.paper.errata.ERRATA` that the row needs.
        min_stem: The stem counts as if it had at least this many channels (erratum E7).
    """

    name: str
    printed: tuple[str, ...]
    words: str = ""
    part: str = ""
    errata: tuple[str, ...] = ()
    min_stem: int = 0

    @property
    def ours(self) -> bool:
        """Whether the row is one of our models that the paper does not have."""
        return bool(self.words) and not any(self.printed)


@dataclass(frozen=True)
class Table:
    """One table, or a part of one that has columns of its own.

    Attributes:
        number: As in the paper.
        title: What it shows, and the units of its columns.
        columns: Of figures; the row's name stands before them.
        rows: In the paper's order, then those of ours that explain it.
        errata: Of the whole table.
        measured_by: The score of ours that stands in its place, and what differs.
        of: What a row is, the heading of the first column.
        notes: What else explains differences.
    """

    number: int
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    errata: tuple[str, ...] = ()
    measured_by: str = ""
    of: str = "model"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One row of Table 1: type with stride, filter and input as printed, and our layers that it stands for.

    Attributes:
        printed: The three cells.
        names: Our modules in order; several where the paper prints "5x"; () where ours is no module.
        errata: As in :class:`Row`.
    """

    printed: tuple[str, str, str]
    names: tuple[str, ...]
    errata: tuple[str, ...] = ()
