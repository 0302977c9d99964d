"""Tables of results: printed as Markdown, and written as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mnvision.files import whole_file
from mnvision.latency.machine import processor
from mnvision.runtime import usable_cores


@dataclass(frozen=True)
class Table:
    """One table of text cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table with padded columns, as GitHub renders it; numbers are aligned to the right.

        Raises:
            ValueError: A row has not as many cells as there are columns.
        """
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: every row needs {len(self.columns)} cells")
        cells = [list(self.columns), *(list(row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        widths = [max(width, 3) for width in widths]
        ruler = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [_line(cells[0], widths), "| " + " | ".join(ruler) + " |"]
        lines += [_line(row, widths) for row in cells[1:]]
        return f"**{self.title}**\n\n" + "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        name: The module's name; also that of the files.
        settings: What it was run with.
        tables: The findings.
        notes: Sentences a reader needs to judge them.
        samples: Raw measurements, for the JSON file only.
        machine: Where it ran.
    """

    name: str
    settings: dict[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    samples: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=lambda: describe_machine())

    def markdown(self) -> str:
        """Everything but the raw samples."""
        where = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        parts = [f"## {self.name}", where, f"Settings: {settings}"]
        parts += [table.markdown() for table in self.tables]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts) + "\n"


def finish(result: Result, output: Path | None) -> None:
    """Print a result, and write ``NAME.md`` and ``NAME.json`` into ``output`` if that is given."""
    text = result.markdown()
    print(text)
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    with whole_file(output / f"{result.name}.md") as path:
        path.write_text(text)
    with whole_file(output / f"{result.name}.json") as path:
        path.write_text(json.dumps(asdict(result), indent=1) + "\n")


def parser(module: str, description: str | None, rounds: int = 7) -> argparse.ArgumentParser:
    """The options that all benchmarks share.

    Args:
        module: Name of the module, without the package.
        description: Its docstring.
        rounds: Default of ``--rounds``.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--rounds", type=_positive, default=rounds, help=f"interleaved rounds (default {rounds})")
    found.add_argument("--quick", action="store_true", help="tiny settings: shows that it runs, measures nothing")
    found.add_argument("--output", type=Path, metavar="DIR", help="also write DIR/NAME.md and DIR/NAME.json")
    return found


def describe_machine() -> dict[str, str]:
    """Processor, cores and versions of what is measured."""
    import torch
    import torchvision

    return {
        "processor": processor(),
        "cores": str(len(usable_cores())),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range, e.g. ``1.52 (1.48-1.60)``."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return value


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
    return "| " + " | ".join(cells) + " |"
