"""A partition from tables of photos, with the account of what was read and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnvision.data.index import Finding, FindingCounter, first_few
from mnvision.errors import UserError
from mnvision.geo.cells import levels
from mnvision.geo.coordinate_columns import CoordinateColumns
from mnvision.geo.coordinate_files import read_places
from mnvision.geo.coordinates import REASONS
from mnvision.geo.partition import Chunk, Partition, PartitionSettings, partition_photos

DENSITY_STEP = 0.5
"""Degrees of a pixel of the density."""
MAX_SWAPPED = 0.1
"""Share of rows with exchanged coordinates above which the columns themselves must be exchanged."""
_SWAPPED = f"rows {REASONS['swapped']}"


@dataclass(frozen=True, eq=False)
class TableReport:
    """What tables held, and where.

    Attributes:
        num_files: Tables that were read.
        num_rows: Their rows, refused ones too; blank lines do not count.
        findings: Why rows were refused -> how many and the first few.
        density: ``(360, 720)`` int64, photos per half degree of latitude (from -90) and longitude (from -180).
    """

    num_files: int
    num_rows: int
    findings: Mapping[str, Finding]
    density: NDArray[np.int64]

    def lines(self) -> list[str]:
        """In words: rows read, and a line per reason for which some were refused."""
        refused = sum(finding.count for finding in self.findings.values())
        files = "1 table" if self.num_files == 1 else f"{self.num_files} tables"
        text = [f"{self.num_rows:,} rows of {files}: {self.num_rows - refused:,} places, {refused:,} refused"]
        return text + [_line(what, finding) for what, finding in self.findings.items()]


def partition_tables(
    paths: Sequence[Path],
    settings: PartitionSettings,
    columns: CoordinateColumns | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[Partition, TableReport]:
    """Partition the earth by the photos of tables, in bounded memory.

    Args:
        paths: CSV or Parquet.
        settings: Of the partition.
        columns: Which columns to read, the same for all tables.
        progress: Called now and then with the number of places so far.

    Returns:
        The partition, and what was read.

    Raises:
        UserError: A table cannot be read, its columns seem exchanged, no row holds a place, or no cell holds enough of
            them.
    """
    reading = _Reading(paths, columns, progress)
    source = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    partition = partition_photos(reading.chunks(), **asdict(settings), source=source)
    return partition, reading.report()


def describe(partition: Partition) -> list[str]:
    """A partition in words: cells by level, photos per cell, and what was dropped."""
    counts = np.bincount(levels(partition.cells))
    by_level = ", ".join(f"{level}: {count}" for level, count in enumerate(counts.tolist()) if count)
    middle = int(np.median(partition.counts))
    share = partition.num_dropped / partition.num_photos
    settings = partition.settings
    return [
        f"{len(partition):,} cells (level: cells) {by_level}",
        f"photos per cell: {partition.counts.min():,} to {partition.counts.max():,}, median {middle:,}",
        f"dropped: {partition.num_dropped:,} photos ({share:.1%}) in cells with fewer than {settings.min_photos}",
        f"fingerprint: {partition.fingerprint[:16]}",
        *_crowded(partition),
    ]


def _crowded(partition: Partition) -> list[str]:
    """A line where the finest level stopped the splitting."""
    settings = partition.settings
    stopped = int((partition.counts > settings.max_photos).sum())
    if not stopped:
        return []
    text = f"{stopped:,} cells hold more than {settings.max_photos:,} photos: max_level={settings.max_level} is reached"
    return [text]


@dataclass
class _Reading:
    """Reads tables while the partition is built, and keeps the account."""

    paths: Sequence[Path]
    columns: CoordinateColumns | None
    progress: Callable[[int], None]
    found: FindingCounter = field(default_factory=FindingCounter)
    places: int = 0
    density: NDArray[np.int64] = field(default_factory=lambda: _density(np.zeros(0), np.zeros(0)))

    def chunks(self) -> Iterator[Chunk]:
        for path in self.paths:
            for chunk in read_places(path, self.columns, self.found):
                yield chunk.latitudes, chunk.longitudes
                self.density += _density(chunk.latitudes, chunk.longitudes)
                self.places += len(chunk)
                self.progress(self.places)
        self._refuse(self.report())

    def report(self) -> TableReport:
        findings = self.found.findings()
        rows = self.places + sum(finding.count for finding in findings.values())
        return TableReport(len(self.paths), rows, findings, self.density)

    def _refuse(self, report: TableReport) -> None:
        """Raises an error where there are no places, or the columns are exchanged."""
        if not report.num_rows:
            raise UserError(f"no rows below the header of {first_few([str(path) for path in self.paths])}")
        swapped = report.findings.get(_SWAPPED)
        # Of exchanged columns other rows read as places too, and would end up far from where they belong.
        if swapped is not None and swapped.count > MAX_SWAPPED * report.num_rows:
            raise UserError(
                f"{swapped.count:,} of {report.num_rows:,} rows have a latitude beyond 90 degrees "
                f"({first_few(swapped.examples)}): are the columns exchanged? Give columns.latitude=NAME "
                "columns.longitude=NAME, or correct the rows"
            )
        if not self.places:
            what = "; ".join(_line(what, finding) for what, finding in report.findings.items())
            raise UserError(f"no row holds a place: {what}")


def _density(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    shape = int(180 / DENSITY_STEP), int(360 / DENSITY_STEP)
    rows = np.clip((latitudes + 90) / DENSITY_STEP, 0, shape[0] - 1).astype(np.int64)
    across = ((longitudes + 180) / DENSITY_STEP).astype(np.int64) % shape[1]
    return np.bincount(rows * shape[1] + across, minlength=shape[0] * shape[1]).reshape(shape)


def _line(what: str, finding: Finding) -> str:
    more = ", ..." if finding.count > len(finding.examples) else ""
    return f"{finding.count:,} {what} ({', '.join(finding.examples)}{more})"
