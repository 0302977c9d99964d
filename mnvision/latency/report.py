"""Tables of times: for a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mnvision.files import whole_file
from mnvision.latency.contest import Block, Key
from mnvision.latency.layers import LayerTime
from mnvision.latency.summary import COLUMNS, ColdRow, Row

BUSY = 0.1
"""Cores busy elsewhere above which single times are not to be trusted."""
_SHOWN_CALLS = 200


@dataclass
class Report:
    """Everything that one run of ``tools/benchmark.py`` found.

    Attributes:
        machine: See :func:`~mnvision.latency.machine.describe_machine`.
        rows: Measured and imported.
        cold: Cold starts.
        layers: By candidate, where asked for.
        facts: By candidate, see :class:`~mnvision.latency.contest.Timings`.
        notes: What a reader should know.
        settings: How it was measured.
    """

    machine: dict[str, Any]
    rows: list[Row]
    cold: list[ColdRow] = field(default_factory=list)
    layers: dict[str, list[LayerTime]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent; "-" for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{float(f'{value:.{digits}g}'):.6f}".rstrip("0").rstrip(".")
    return text or "0"


def model_cells(facts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A heading and a line per candidate: what it is and what one picture costs."""
    lines = [["model", "task", "runtime", "pixels", "mult-adds", "params", "file MB"]]
    for name, fact in facts.items():
        pixels = "x".join(map(str, fact["resolution"]))
        costs = [f"{fact['mult_adds']:,}", f"{fact['params']:,}", number(fact["file_mb"])]
        lines.append([name, fact["kind"], fact["runtime"], pixels, *costs])
    return lines


def time_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A heading and a line per row, best read beside :class:`~mnvision.latency.summary.Row`."""
    several = len({row.device for row in rows}) > 1
    heading = ["runtime", "part", "batch", "threads", "median ms", "p10", "p90", "CPU ms", "images/s"]
    lines = [["times", *(["device"] if several else []), *heading, "ratio (range)", "CPU ratio", "busy elsewhere"]]
    for row in rows:
        ratio = "-" if row.ratio is None else number(row.ratio)
        if row.ratio is not None and row.ratio_low is not None and row.ratio_high != row.ratio_low:
            ratio += f" ({number(row.ratio_low)}-{number(row.ratio_high)})"
        median = number(row.median_ms, 4) if row.median_ms is not None else f"mean {number(row.mean_ms, 4)}"
        threads = "-" if row.threads is None else str(row.threads)
        spread = [number(row.p10_ms), number(row.p90_ms), number(row.cpu_ms), number(row.images_per_s)]
        cells = [row.runtime or "-", row.part, str(row.batch), threads, median, *spread, ratio]
        device = [row.device] if several else []
        lines.append([row.file, *device, *cells, number(row.cpu_ratio), number(row.foreign_cores, 2)])
    return lines


def cold_cells(rows: Sequence[ColdRow]) -> list[list[str]]:
    """A heading and a line per candidate."""
    lines = [
        [
            "cold start",
            "threads",
            "imports s",
            "load s",
            "first answer ms",
            "in all s",
            "MB before",
            "MB peak",
            "file MB",
        ]
    ]
    for row in rows:
        seconds = [number(value) for value in (row.import_s, row.load_s, row.first_ms, row.total_s)]
        sizes = [number(value) for value in (row.base_mb, row.peak_mb, row.file_mb)]
        lines.append([row.file, str(row.threads), *seconds, *sizes])
    return lines


def layer_cells(rows: Sequence[LayerTime], heading: str) -> list[list[str]]:
    """A heading, a line per layer and the total; the rate tells which layers use the processor badly."""
    lines = [[heading, "type", "output", "ms", "%", "mult-adds", "params", "G mult-adds/s"]]
    for row in rows:
        rate = number(row.mult_adds / row.ms / 1e6) if row.ms > 0 and row.mult_adds else "-"
        cells = [f"{row.ms:.3f}", f"{100 * row.share:.1f}", f"{row.mult_adds:,}", f"{row.params:,}", rate]
        lines.append([row.name, row.type, row.output, *cells])
    ms, adds = sum(row.ms for row in rows), sum(row.mult_adds for row in rows)
    share = 100 * sum(row.share for row in rows)
    rate = number(adds / ms / 1e6) if ms > 0 else "-"
    params = f"{sum(row.params for row in rows):,}"
    return [*lines, ["total", "", "", f"{ms:.3f}", f"{share:.1f}", f"{adds:,}", params, rate]]


def tables(report: Report) -> list[list[list[str]]]:
    """All tables of a report, as cells."""
    found = [model_cells(report.facts)] if report.facts else []
    found += [time_cells(report.rows)] if report.rows else []
    found += [cold_cells(report.cold)] if report.cold else []
    return found + [layer_cells(rows, name) for name, rows in report.layers.items()]


def aligned(lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Columns of equal width, the first ones to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        cells = [cell.ljust(w) if i < text_columns else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        rows.append("  ".join(cells).rstrip())
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same cells as a Markdown table."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]]) + "\n"


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """The machine in two or three lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}",
        f"instruction sets: {' '.join(machine['flags']) or 'not known'}",
        f"Python {machine['python']}, {versions}",
    ]
    if machine.get("device"):
        lines.append(f"device: {machine['device']}")
    return lines


def busy_note(rows: Sequence[Row], cores: int) -> str | None:
    """A warning if other processes took part of the machine's cores while it was timed."""
    known = [row.foreign_cores for row in rows if row.foreign_cores is not None]
    if not known or max(known) <= BUSY:
        return None
    advice = "trust the ratios, not the times"
    if max(known) > cores - 0.5:  # nothing is left over: short calls slip between the others, long ones do not
        advice = "neither times nor ratios hold; CPU ms and CPU ratio of one thread do, about"
    return f"other processes kept up to {max(known):.2f} of {cores} cores busy: {advice}"


def write_report(report: Report, blocks: Mapping[Key, Sequence[Block]], folder: Path) -> None:
    """Write ``latency.csv``, ``latency.json`` and ``latency.md`` into ``folder``.

    The JSON holds the median of every block, and up to 200 single times of each row.

    Raises:
        UserError: A file cannot be written.
    """
    with whole_file(folder / "latency.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row.to_dict() for row in report.rows)
    data = {
        "machine": report.machine,
        "settings": report.settings,
        "notes": report.notes,
        "rows": [row.to_dict() for row in report.rows],
        "cold": [row.to_dict() for row in report.cold],
        "layers": {name: [asdict(row) for row in rows] for name, rows in report.layers.items()},
        "facts": report.facts,
        "blocks": [asdict(key) | _raw(found) for key, found in blocks.items()],
    }
    with whole_file(folder / "latency.json") as path:
        path.write_text(json.dumps(data, indent=1) + "\n")
    parts = ["\n".join(f"- {line}" for line in machine_lines(report.machine)) + "\n"]
    parts += [markdown(cells) for cells in tables(report)]
    parts.append("".join(f"- {note}\n" for note in report.notes))
    with whole_file(folder / "latency.md") as path:
        path.write_text("\n".join(parts))


def _raw(blocks: Sequence[Block]) -> dict[str, Any]:
    times = [ms for block in blocks for ms in block.times_ms]
    step = max(len(times) // _SHOWN_CALLS, 1)
    return {
        "rounds_ms": [round(statistics.median(block.times_ms), 4) for block in blocks],
        "cpu_ms": [round(block.cpu_ms, 4) for block in blocks],
        "foreign_cores": [block.foreign_cores for block in blocks],
        "times_ms": [round(ms, 4) for ms in times[::step]],
    }
