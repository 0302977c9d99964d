"""From blocks of timed calls to rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from mnvision.latency.contest import Block, Key


@dataclass(frozen=True)
class Row:
    """One line of the table, measured here or imported; the CSV's columns are these names.

    Attributes:
        device: The machine.
        file: The candidate.
        runtime: What computed, "" where unknown.
        part: "whole", "model" or "network", see :mod:`mnvision.latency.subjects`.
        batch: Pictures at once.
        threads: None where unknown.
        median_ms: Of a call, over all rounds; None where a tool gives only a mean.
        p10_ms: A tenth of the calls took less.
        p90_ms: A tenth of the calls took more.
        mean_ms: Of a call.
        cpu_ms: Processor time of a call, over all its threads, median over the blocks. With one thread it is what the
            call takes while nobody else computes; more threads also spin in it.
        cpu_ratio: As ``ratio``, of processor times.
        images_per_s: Pictures per second, by the median (else the mean).
        ratio: How many times faster than the first candidate: the median of the ratios within the rounds. None for
            imported rows, which were not interleaved with anything.
        ratio_low: The lowest of the rounds.
        ratio_high: The highest.
        calls: How many were timed.
        foreign_cores: Cores that other processes kept busy, median over the blocks; None where unknown.
        source: The file that an imported row comes from, "" for rows measured here.
    """

    device: str
    file: str
    runtime: str
    part: str
    batch: int
    threads: int | None
    median_ms: float | None
    p10_ms: float | None = None
    p90_ms: float | None = None
    mean_ms: float | None = None
    cpu_ms: float | None = None
    images_per_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    cpu_ratio: float | None = None
    calls: int | None = None
    foreign_cores: float | None = None
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, numbers rounded to what was measured."""
        return {key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(self).items()}


COLUMNS = tuple(field.name for field in fields(Row))


def percentile(values: Sequence[float], percent: float) -> float:
    """Of values in any order, by linear interpolation between the two nearest."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def round_ratios(reference: Sequence[Block], other: Sequence[Block]) -> list[float]:
    """How many times faster ``other`` was, round by round, by the medians of the blocks.

    Raises:
        ValueError: They have not the same number of rounds.
    """
    return [
        statistics.median(first.times_ms) / statistics.median(second.times_ms)
        for first, second in zip(reference, other, strict=True)
    ]


def cpu_ratio(reference: Sequence[Block], other: Sequence[Block]) -> float | None:
    """Median over the rounds of how many times less processor time ``other`` took; None where none was counted."""
    pairs = [(a.cpu_ms, b.cpu_ms) for a, b in zip(reference, other, strict=True)]
    if any(a <= 0 or b <= 0 for a, b in pairs):
        return None
    return statistics.median(a / b for a, b in pairs)


def make_rows(blocks: Mapping[Key, Sequence[Block]], facts: Mapping[str, Mapping[str, Any]], device: str) -> list[Row]:
    """A row per key; ratios are to the first candidate that has the same part, batch and threads."""
    first: dict[tuple[str, int, int], Sequence[Block]] = {}
    rows = []
    for key, found in blocks.items():
        reference = first.setdefault((key.part, key.batch, key.threads), found)
        times = [ms for block in found for ms in block.times_ms]
        ratios = round_ratios(reference, found)
        median = percentile(times, 50)
        known = [block.foreign_cores for block in found if block.foreign_cores is not None]
        rows.append(
            Row(
                device=device,
                file=key.name,
                runtime=str(facts.get(key.name, {}).get("runtime", "")),
                part=key.part,
                batch=key.batch,
                threads=key.threads,
                median_ms=median,
                p10_ms=percentile(times, 10),
                p90_ms=percentile(times, 90),
                mean_ms=statistics.fmean(times),
                cpu_ms=statistics.median(block.cpu_ms for block in found),
                images_per_s=key.batch / median * 1000,
                ratio=statistics.median(ratios),
                ratio_low=min(ratios),
                ratio_high=max(ratios),
                cpu_ratio=cpu_ratio(reference, found),
                calls=len(times),
                foreign_cores=statistics.median(known) if known else None,
            )
        )
    return rows


@dataclass(frozen=True)
class ColdRow:
    """Cold start of one candidate: medians over fresh processes; see ``worker.cold_start`` for the steps."""

    device: str
    file: str
    threads: int
    import_s: float
    load_s: float
    first_ms: float
    total_s: float
    base_mb: float | None
    peak_mb: float | None
    file_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, numbers rounded to what was measured."""
        return {key: round(v, 3) if isinstance(v, float) else v for key, v in asdict(self).items()}


def make_cold_rows(
    found: Mapping[str, Sequence[Mapping[str, float | None]]],
    facts: Mapping[str, Mapping[str, Any]],
    device: str,
    threads: int,
) -> list[ColdRow]:
    """A row per candidate that was started at least once."""
    rows = []
    for name, starts in found.items():
        if not starts:
            continue
        middle = {
            key: None if starts[0][key] is None else statistics.median(float(start[key] or 0) for start in starts)
            for key in ("import_s", "load_s", "first_ms", "total_s", "base_mb", "peak_mb")
        }
        rows.append(ColdRow(device, name, threads, file_mb=facts.get(name, {}).get("file_mb"), **middle))  # type: ignore[arg-type]
    return rows
