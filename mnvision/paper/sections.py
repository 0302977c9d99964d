"""The paper's tables with ours beside them, as text cells for people and as entries for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mnvision.cost import Cost
from mnvision.paper.architecture import Seen
from mnvision.paper.costs import cost_figure, wider_stem
from mnvision.paper.errata import ERRATA
from mnvision.paper.layout import COSTS, Column, Layer, Row, Table
from mnvision.paper.measured import CLASSIFIERS, Record, knobs, task_of

# Costs of the model that overrides compose.
Costs = Callable[[str], Cost]

NOTHING = "-"
SAME = "="
QUOTED = "quoted"
OURS = "ours"


@dataclass(frozen=True)
class Entry:
    """One figure of the paper beside ours.

    Attributes:
        table: Of the paper.
        row: Its row; of ours where the paper has none.
        column: Its column.
        paper: As printed; "" where it prints nothing.
        ours: In the column's unit, or text in Table 1; ``None`` where there is none.
        source: "computed", "measured", "not measured" or "quoted" (somebody else's model).
        errata: Of the row, e.g. "E7".
        data: What a measured figure was measured on, and how.
        difference: Of a computed figure from the printed one, as :func:`_difference` words it.
    """

    table: int
    row: str
    column: str
    paper: str
    ours: float | str | None
    source: str
    errata: str = ""
    data: str = ""
    difference: str = ""


@dataclass(frozen=True)
class Section:
    """One table, ready to be printed.

    Attributes:
        title: Above the table.
        header: One name per column; the first column is text, of Table 1 all are.
        rows: Cells.
        notes: Lines below the table.
        entries: The same figures for programs.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


class Footnotes:
    """Letters for what measured figures stand on, in the order of their use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def letter(self, text: str) -> str:
        """The letter of a text, a new one for a new text."""
        if text not in self.texts:
            self.texts.append(text)
        return _letters(self.texts.index(text))

    def lines(self) -> list[str]:
        """One line per letter."""
        return [f"{_letters(i)}: {text}" for i, text in enumerate(self.texts)]


def _letters(number: int) -> str:
    """Letters a to z, then aa, ab, ..."""
    return ("" if number < 26 else _letters(number // 26 - 1)) + chr(ord("a") + number % 26)


def table_section(table: Table, costs: Costs, records: Sequence[Record]) -> Section:
    """One of the paper's tables from 2 on.

    Args:
        table: As printed.
        costs: Gives the cost of a row's model.
        records: All scores measured here; those of this table are taken, in lines of their own where the paper has
            no row of their width and resolution.
    """
    kinds = [column.kind for column in table.columns]
    header = [table.of]
    for column in table.columns:
        names = {"score": [column.name, "measured"], "quoted": [column.name]}
        header += names.get(column.kind, [column.name, "ours", "diff"])
    section = Section(f"Table {table.number}. {table.title}", [*header, "note"], [])
    footnotes = Footnotes()
    of_table = [record for record in records if _belongs(record, table)] if "score" in kinds else []
    placed: set[int] = set()
    for row in table.rows:
        mine = [record for record in of_table if _answers(record, row)]
        placed.update(id(record) for record in mine)
        _add_row(section, table, row, costs, mine, footnotes)
    if table.number not in CLASSIFIERS:  # those have a table of their own
        for record in of_table:
            if id(record) not in placed and not record.row:
                blank = Row(f"{record.name}, measured here", ("",) * len(kinds), record.words)
                _add_row(section, table, blank, costs, [record], footnotes)
    if "score" in kinds:
        section.notes.append(f"measured: {table.measured_by}." if footnotes.texts else "measured: nothing yet.")
    section.notes.extend([*footnotes.lines(), *table.notes])
    ids = [*table.errata, *(name for row in table.rows for name in row.errata)]
    section.notes.extend(f"{name}: {ERRATA[name]}" for name in dict.fromkeys(ids))
    return section


def _belongs(record: Record, table: Table) -> bool:
    if table.number in CLASSIFIERS:
        return record.table in CLASSIFIERS
    return record.table == table.number


def _answers(record: Record, row: Row) -> bool:
    """Whether a score is of this very row: the same knobs, or the same radius."""
    if record.row:
        return f"({record.row})" in row.name
    if not row.words or row.ours:
        return False
    return _family(record.words) == _family(row.words) and record.knobs == knobs(row.words)


def _family(words: str) -> str:
    """The task, one name for those whose models differ in the two knobs alone."""
    task = task_of(words)
    same = {"classification": ("imagenet", "fine_grained"), "faster_rcnn_coco": ("faster_rcnn_coco_600",)}
    return next((name for name, others in same.items() if task in others), task)


def _add_row(
    section: Section, table: Table, row: Row, costs: Costs, records: Sequence[Record], footnotes: Footnotes
) -> None:
    errata = " ".join(row.errata)
    cells = [row.name]
    for column, printed in zip(table.columns, row.printed, strict=True):
        cells.append(printed or NOTHING)
        about = (table.number, row.name, column.name, printed)
        if column.kind in COSTS:
            if not row.words:
                cells += [NOTHING, NOTHING]
                section.entries.append(Entry(*about, None, QUOTED, errata))
                continue
            value = _cost(column, row, costs)
            difference = _difference(value, printed, column)
            cells += [_rounded(value, printed), difference]
            section.entries.append(Entry(*about, value, "computed", errata, difference=difference))
        elif column.kind == "score":
            quoted = row.ours or not (row.words or _is_radius(row))
            cells.append(_scores(records, footnotes) or (NOTHING if quoted else "none"))
            for record in records:
                value, data = 100 * record.value, "; ".join(filter(None, (record.data, record.note)))
                section.entries.append(Entry(*about, value, "measured", errata, data))
            if not records and not row.ours:
                section.entries.append(Entry(*about, None, QUOTED if quoted else "not measured", errata))
        else:
            section.entries.append(Entry(*about, None, QUOTED, errata))
    kind = "" if row.words or _is_radius(row) else QUOTED
    section.rows.append([*cells, " ".join(filter(None, (errata, kind, OURS if row.ours else "")))])


def _is_radius(row: Row) -> bool:
    """Rows of Table 11 are radii, which any of our models can be scored by."""
    return row.name.endswith("km)")


def _scores(records: Sequence[Record], footnotes: Footnotes) -> str:
    def mark(record: Record) -> str:
        what = record.name if record.row else record.metric  # a radius says what was measured, but not of which model
        return footnotes.letter("; ".join(filter(None, (f"{what} on {record.data}", record.note))))

    return ", ".join(f"{100 * record.value:.1f} {mark(record)}" for record in records)


def _cost(column: Column, row: Row, costs: Costs) -> float:
    value = cost_figure(costs(row.words), column.kind, row.part)
    if row.min_stem:
        alpha, resolution, _ = knobs(row.words)
        value += wider_stem(alpha, resolution, row.min_stem)[column.kind == "params"]
    return value / column.unit


def _decimals(printed: str) -> int:
    return len(printed.partition(".")[2])


def _rounded(value: float, printed: str) -> str:
    """One digit more than the paper prints, four significant ones where it prints nothing."""
    if printed:
        return f"{value:.{_decimals(printed) + 1}f}"
    return f"{value:.{max(0, 4 - len(str(int(value))))}f}"


def _difference(value: float, printed: str, column: Column) -> str:
    """SAME if ours rounds to the printed digits; else in per cent of them, for shares in points."""
    if not printed:
        return NOTHING
    if f"{value:.{_decimals(printed)}f}" == printed:
        return SAME
    if column.kind.endswith("_share"):
        return f"{value - float(printed):+.2f}"
    relative = 100 * (value / float(printed) - 1)
    if abs(relative) >= 1000:
        return f"x{value / float(printed):.0f}"
    return f"{relative:+.{1 if abs(relative) >= 0.05 else 2}f}%"


def architecture_section(layers: Sequence[Layer], seen: Sequence[Seen]) -> Section:
    """Table 1: the printed rows, and ours where they differ.

    Args:
        layers: As printed.
        seen: Of our model, one per row.
    """
    header = ["type / stride", "filter shape", "input size", "ours", "cost", "note"]
    section = Section("Table 1. MobileNet body architecture, million multiply-adds", header, [])
    for layer, own in zip(layers, seen, strict=True):
        times = f"{len(layer.names)}x " if len(layer.names) > 1 else ""
        printed = [times + layer.printed[0], *layer.printed[1:]]
        other = [b for a, b in zip(layer.printed, own.cells) if a != b]
        errata = " ".join(layer.errata)
        cost = f"{own.mult_adds / 1e6:.2f}" if own.mult_adds else NOTHING
        section.rows.append([*printed, ", ".join(other) or SAME, cost, errata])
        name = ", ".join(layer.names) or layer.printed[0]
        for column, a, b in zip(header[:3], layer.printed, own.cells):
            section.entries.append(Entry(1, name, column, a, b, "computed", errata))
        section.entries.append(Entry(1, name, "cost", "", own.mult_adds / 1e6, "computed", errata))
    total = sum(own.mult_adds for own in seen) / 1e6
    section.rows.append(["total", "", "", "", f"{total:.2f}", ""])
    section.notes.extend(f"{name}: {ERRATA[name]}" for layer in layers for name in layer.errata)
    return section
