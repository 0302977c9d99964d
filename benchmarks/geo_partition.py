"""S2 cells of arrays beside s2geometry point by point, and a partition of millions of photos from a CSV.

The run fails unless both give the same ids. The table is synthetic: photos around towns whose sizes fall off as
1 / rank and some anywhere, with six decimals. It is partitioned with PlaNet's numbers (10,000 and 50) in a process of
its own, once with a fifth of the rows: memory must grow with the cells that hold photos, not with the rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import s2geometry as s2
from numpy.typing import NDArray

from benchmarks.duel import ROOT, interleave, rate_table, ratio_table, raw
from benchmarks.report import Result, Table, finish, parser
from mnvision.geo.cells import cell_ids

ROWS, POINTS, TOWNS = 5_000_000, 200_000, 20_000
_AT_ONCE = 500_000


def photos(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Places ``(count, 2)``: nine in ten around towns, about ten kilometres wide, the others anywhere."""
    rng = np.random.default_rng(seed)
    towns = np.random.default_rng(0).uniform((-55, -180), (70, 180), (TOWNS, 2))
    weights = 1 / np.arange(1, TOWNS + 1)
    points = towns[rng.choice(TOWNS, count, p=weights / weights.sum())] + rng.normal(0, 0.1, (count, 2))
    anywhere = rng.random(count) < 0.1
    points[anywhere] = rng.uniform((-60, -180), (75, 180), (int(anywhere.sum()), 2))
    points[:, 1] = (points[:, 1] + 180) % 360 - 180
    return points


def write_table(path: Path, rows: int) -> None:
    """A CSV with an id, a latitude and a longitude per row."""
    with path.open("w") as file:
        file.write("id,latitude,longitude\n")
        for start in range(0, rows, _AT_ONCE):
            points = photos(min(_AT_ONCE, rows - start), start)
            lines = [f"{start + i},{lat:.6f},{lon:.6f}\n" for i, (lat, lon) in enumerate(points.tolist())]
            file.writelines(lines)


def contestants(points: NDArray[np.float64]) -> dict[str, Callable[[], int]]:
    """Ids of all points, on both sides."""
    pairs = points.tolist()

    def ours() -> int:
        return len(cell_ids(points[:, 0], points[:, 1]))

    def peer() -> int:
        return len(google_ids(pairs))

    return {"ours": ours, "s2geometry": peer}


def google_ids(pairs: list[list[float]]) -> list[int]:
    """Ids point by point, the only way that s2geometry offers from Python."""
    return [s2.S2CellId(s2.S2LatLng.FromDegrees(latitude, longitude)).id() for latitude, longitude in pairs]


def resident(key: str) -> float:
    """Resident memory of this process in MiB, now (VmRSS) or at its peak (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def measure(path: Path) -> None:
    """In a fresh process: partition a table, and print what it took as JSON."""
    from mnvision.geo.partition import PartitionSettings
    from mnvision.geo.partition_tables import partition_tables

    before = resident("VmRSS")
    start, worked = time.perf_counter(), time.process_time()
    partition, report = partition_tables([path], PartitionSettings())
    found = {"rows": report.num_rows, "seconds": time.perf_counter() - start, "cpu": time.process_time() - worked}
    print(
        json.dumps(
            found
            | {"before": before, "peak": resident("VmHWM")}
            | {"cells": len(partition), "dropped": partition.num_dropped}
        )
    )


def partitioned(path: Path) -> dict[str, Any]:
    """What ``measure`` prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.geo_partition", "--measure", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Command line."""
    options = parser("geo_partition", __doc__, rounds=7)
    options.add_argument("--rows", type=int, default=ROWS, help=f"of the table (default {ROWS:,})")
    options.add_argument("--points", type=int, default=POINTS, help=f"for the ids (default {POINTS:,})")
    options.add_argument("--measure", type=Path, help="for its own use: what to partition in this process")
    given = options.parse_args()
    if given.measure:
        measure(given.measure)
        return
    rows, rounds, count = (50_000, 1, 2_000) if given.quick else (given.rows, given.rounds, given.points)
    points = photos(count)
    if cell_ids(points[:, 0], points[:, 1]).tolist() != google_ids(points.tolist()):
        raise SystemExit("our ids are not those of s2geometry")
    tasks = contestants(points)
    interleave(tasks, 1)  # warm-up
    samples = interleave(tasks, rounds)
    tables = [rate_table("Ids of cells", "points", samples), ratio_table("Ratio", samples, [("ours", "s2geometry")])]
    readings = []
    if Path("/proc/self/status").exists():
        with tempfile.TemporaryDirectory() as folder:
            for part in (rows // 5, rows):
                write_table(Path(folder) / "photos.csv", part)
                readings.append(partitioned(Path(folder) / "photos.csv"))
        tables.append(_table(readings))
    notes = [
        "Both compute cells of level 30 in one thread, and gave the same ids before the rounds.",
        "Seconds are from the CSV to the finished partition, CPU seconds those in which the process worked.",
        "MiB are resident memory before and at its peak.",
    ]
    settings = {"points": count, "rounds": rounds, "rows": rows}
    finish(Result("geo_partition", settings, tables, notes, raw(samples) | {"partitions": readings}), given.output)


def _table(readings: list[dict[str, Any]]) -> Table:
    columns = ["rows", "seconds", "CPU seconds", "MiB before", "MiB at peak", "cells", "dropped photos"]
    rows = [
        [
            f"{found['rows']:,}",
            f"{found['seconds']:.1f}",
            f"{found['cpu']:.1f}",
            f"{found['before']:.0f}",
            f"{found['peak']:.0f}",
            f"{found['cells']:,}",
            f"{found['dropped']:,}",
        ]
        for found in readings
    ]
    return Table("Partition of a CSV", columns, rows)


if __name__ == "__main__":
    main()
