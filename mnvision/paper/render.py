"""Sections as plain text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import fields

from mnvision.paper.errata import ERRATA
from mnvision.paper.sections import Entry, Section

WIDTH = 110
_NUMBER = re.compile(r"|-|=|none|[-+x]?\d+(\.\d+)?%?")
LEGEND = (
    "Costs are of our own composed models. cost: multiply-adds. diff: = is ours rounded to the printed digits, else "
    "the difference relative to the print. quoted: somebody else's model, the paper's figure only. ours: a row the "
    "paper does not have. none: not measured here."
)


def terminal(sections: Sequence[Section]) -> str:
    """Aligned text, at most 110 columns wide where no single cell is too long for it."""
    return "\n\n".join([*(_text_table(section) for section in sections), _wrapped(LEGEND)])


def _text_table(section: Section) -> str:
    cells = [section.header, *section.rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = [all(_NUMBER.fullmatch(row[i]) for row in section.rows) for i in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(row, widths, right)
        ).rstrip()
        for row in cells
    ]
    ruler = "-" * max(map(len, lines))
    return "\n".join([section.title, ruler, lines[0], ruler, *lines[1:], ruler, *map(_wrapped, section.notes)])


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent="    "))


def markdown(sections: Sequence[Section], figure: str | None = None) -> str:
    """A document: every section as a table under its title.

    Args:
        sections: In the order of the document.
        figure: Path of the picture, relative to the document.
    """
    parts = [
        "# The paper's tables, recomputed",
        "MobileNets, [arXiv:1704.04861](https://arxiv.org/abs/1704.04861). Written by `python tools/paper.py "
        "output=docs`; change `docs/measured.json` or the models, not this file.",
        LEGEND,
    ]
    if figure:
        parts += [
            "## Figures 4 and 5: accuracy against cost",
            f"![Accuracy against cost]({figure})",
            f"- E8: {ERRATA['E8']}",
        ]
    for section in sections:
        parts += [f"## {section.title}", _markdown_table(section)]
        parts += ["\n".join(f"- {note}" for note in section.notes)] if section.notes else []
    return "\n\n".join(parts) + "\n"


def _markdown_table(section: Section) -> str:
    right = [all(_NUMBER.fullmatch(row[i]) for row in section.rows) for i in range(len(section.header))]
    ruler = ["---:" if flush else "---" for flush in right]
    lines = [section.header, ruler, *([cell.replace("|", "\\|") for cell in row] for row in section.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_csv(sections: Sequence[Section]) -> str:
    """One line per figure under a heading with the names of :class:`~mnvision.paper.sections.Entry`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Entry)]
    writer.writerow(names)
    for entry in (entry for section in sections for entry in section.entries):
        ours = f"{entry.ours:.6g}" if isinstance(entry.ours, float) else entry.ours
        writer.writerow([ours if name == "ours" else getattr(entry, name) for name in names])
    return text.getvalue()
