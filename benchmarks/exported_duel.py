"""Exported files beside timm in eager mode, timm's own ONNX export, and Ultralytics' nano models, in one run.

All models have random weights: how long a network takes does not depend on them, how long suppression takes does, and
a note says what that means here. Ultralytics needs an environment of its own: ``make env-ultralytics``; without it its
rows are left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.duel import ROOT, Contestant, Samples, contest, raw
from benchmarks.exported_files import (
    PARTS,
    PRECISIONS,
    candidates,
    megabytes,
    mult_adds,
    our_files,
    parts_of,
    timm_file,
    ultralytics_files,
)
from benchmarks.report import Result, Table, finish, parser, spread
from benchmarks.ultralytics_side import CLASSIFIERS, DETECTOR
from mnvision.latency.contest import Block
from mnvision.latency.summary import cpu_ratio, percentile, round_ratios
from mnvision.runtime import usable_cores

SIDES = (224, 320)
HERE, THEIRS = "benchmarks.exported_sides", "benchmarks.ultralytics_side"
EAGER = "timm, eager"
TIMM_ONNX = "timm, its ONNX export"
ENVIRONMENT = ROOT / ".venv-ultralytics" / "bin" / "python"


@dataclass(frozen=True)
class Files:
    """Everything that is timed; ``ultralytics`` is empty without their environment."""

    classifier: dict[str, Path]
    ssd: dict[str, Path]
    parts: dict[str, dict[str, Path]]
    timm: Path
    ultralytics: dict[str, Path]
    config: Mapping[str, Any]


def contestants(files: Files, threads: int, seconds: float, python: Path | None) -> dict[str, list[Contestant]]:
    """By table: classifiers, parts of the detector, detectors from a picture to results."""
    common = {"threads": threads, "seconds": seconds}

    def make(name: str, target: str, module: str = HERE, **options: Any) -> Contestant:
        other = str(python) if module == THEIRS else None
        return Contestant(name, f"{module}:{target}", {**common, **options}, tuned=True, python=other)

    def opened(name: str, path: Path) -> Contestant:
        return make(name, "openvino_file" if path.suffix == ".xml" else "onnx_file", path=str(path))

    classifiers = [
        make(EAGER, "timm_eager", side=SIDES[0], channels_last=False),
        make(f"{EAGER}, channels_last", "timm_eager", side=SIDES[0], channels_last=True),
        make("ours, eager", "our_eager", side=SIDES[0], config=dict(files.config)),
        opened(TIMM_ONNX, files.timm),
        *(opened(name, path) for name, path in files.classifier.items()),
        *(opened(ultralytics(name), files.ultralytics[name]) for name in CLASSIFIERS if name in files.ultralytics),
    ]
    parts = [
        opened(part_name(precision, part), path)
        for precision, found in files.parts.items()
        for part, path in found.items()
    ]
    detectors = [make(name, "whole", path=str(path), side=SIDES[1]) for name, path in files.ssd.items()]
    if DETECTOR in files.ultralytics:
        path = str(files.ultralytics[DETECTOR].resolve())
        detectors.append(make(ultralytics(DETECTOR), "whole", THEIRS, path=path, side=SIDES[1]))
        parts.append(opened(f"{ultralytics(DETECTOR)}, network", Path(path)))
    return {"classifiers": classifiers, "parts": parts, "detectors": detectors}


def ultralytics(name: str) -> str:
    """Row of one of their models."""
    return f"Ultralytics {name}, its ONNX export"


def part_name(precision: str, part: str) -> str:
    """Row of the detector up to a part."""
    return f"ours, onnx {precision}, to {part}"


def blocks_of(samples: Samples) -> dict[str, list[Block]]:
    """The rounds as :mod:`mnvision.latency.summary` takes them."""
    return {
        name: [Block(tuple(one.times_ms), one.cpu_ms, one.foreign_cores) for one in found]
        for name, found in samples.items()
    }


def times_table(title: str, blocks: Mapping[str, Sequence[Block]], paths: Mapping[str, Path]) -> Table:
    """Median and spread over all calls, and what the file holds."""
    rows = []
    for name, found in blocks.items():
        calls = [ms for block in found for ms in block.times_ms]
        busy = [block.foreign_cores for block in found if block.foreign_cores is not None]
        path = paths.get(name)
        work = None if path is None else mult_adds(path)
        rows.append(
            [
                name,
                *(f"{percentile(calls, percent):.2f}" for percent in (50, 10, 90)),
                f"{statistics.median(block.cpu_ms for block in found):.2f}",
                "-" if path is None else f"{megabytes(path):.2f}",
                "-" if not work else f"{work:.0f}",
                f"{statistics.median(busy):.2f}" if busy else "?",
            ]
        )
    columns = ["one picture", "median ms", "p10", "p90", "CPU ms", "MB", "M multiply-adds", "cores busy elsewhere"]
    return Table(title, columns, rows)


def ratio_rows(title: str, blocks: Mapping[str, Sequence[Block]], peers: Sequence[str]) -> Table:
    """How many times faster each of ours is than each peer, by time and by processor time."""
    rows = []
    for peer in peers:
        if peer not in blocks:
            continue
        for name in (name for name in blocks if name.startswith("ours")):
            if "eager" in name and "eager" not in peer:
                continue  # what eager mode costs is said once
            by_cpu = cpu_ratio(blocks[peer], blocks[name])
            spent = "?" if by_cpu is None else f"{by_cpu:.2f}"
            rows.append([f"{name} / {peer}", spread(round_ratios(blocks[peer], blocks[name])), spent])
    return Table(title, ["ours / peer", "times as fast", "by processor time"], rows)


def split_table(title: str, blocks: Mapping[str, Sequence[Block]]) -> Table:
    """What each part of the detector adds, round by round."""
    rows = []
    for precision in PRECISIONS:
        found = [blocks[part_name(precision, part)] for part in PARTS]
        middles = [[statistics.median(block.times_ms) for block in one] for one in found]
        spent = [statistics.median(block.cpu_ms for block in one) for one in found]
        before, before_cpu = [0.0] * len(middles[0]), 0.0
        for part, times, cpu in zip(PARTS, middles, spent, strict=True):
            added = [time - last for time, last in zip(times, before, strict=True)]
            rows.append([f"onnx {precision}: {part}", spread(added), f"{cpu - before_cpu:.2f}"])
            before, before_cpu = times, cpu
    return Table(title, ["part", "added ms", "CPU ms"], rows)


def measure(files: Files, threads: int, given: argparse.Namespace, python: Path | None) -> tuple[list[Table], Samples]:
    """All tables of one thread count."""
    groups = contestants(files, threads, given.seconds, python)
    found = {group: contest(members, given.rounds) for group, members in groups.items()}
    blocks = {group: blocks_of(samples) for group, samples in found.items()}
    where = f"{threads} thread{'s' * (threads > 1)}"
    named = {ultralytics(name): path for name, path in files.ultralytics.items()}
    network = {f"{name}, network": path for name, path in named.items()}
    peers = [EAGER, f"{EAGER}, channels_last", TIMM_ONNX, *map(ultralytics, CLASSIFIERS)]
    tables = [
        times_table(
            f"Classifiers, {SIDES[0]} px, {where}",
            blocks["classifiers"],
            {**files.classifier, TIMM_ONNX: files.timm, **named},
        ),
        ratio_rows(f"Classifiers: ratios, {where}", blocks["classifiers"], peers),
        times_table(f"SSD up to its parts, {SIDES[1]} px, {where}", blocks["parts"], network),
        split_table(f"SSD: what each part adds, {where}", blocks["parts"]),
        times_table(
            f"Detectors, picture to results, {SIDES[1]} px, {where}", blocks["detectors"], {**files.ssd, **named}
        ),
        ratio_rows(f"Detectors: ratios, {where}", blocks["detectors"], [ultralytics(DETECTOR)]),
    ]
    return [table for table in tables if table.rows], {
        f"{where}: {n}": s for part in found.values() for n, s in part.items()
    }


def prepare(folder: Path, python: Path | None) -> tuple[Files, str]:
    """All files, and the versions of Ultralytics' environment."""
    folder.mkdir(parents=True, exist_ok=True)
    classifier, ssd = candidates(*SIDES)
    theirs, versions = ultralytics_files(python, folder, SIDES)
    our_ssd = our_files(ssd, folder)
    files = Files(
        our_files(classifier, folder),
        our_ssd,
        {precision: parts_of(ssd, precision, folder) for precision in PRECISIONS},
        timm_file(folder, SIDES[0]),
        theirs,
        classifier.config or {},
    )
    return files, versions


def notes_on(python: Path | None) -> list[str]:
    """What a reader needs to judge the tables."""
    absent = (
        f"Ultralytics was left out: no environment at {ENVIRONMENT} (make env-ultralytics, or --ultralytics PYTHON)."
    )
    present = (
        "Ultralytics' nano models are other networks: compare multiply-adds. Their ONNX files run in our onnxruntime, "
        "but for the detector from picture to results, which is their own predictor in their environment. With random "
        "weights it finds nothing above its threshold of 0.25, so its suppression is as cheap as can be; ours takes "
        "all that its own threshold of 0.01 lets through."
    )
    return [
        "timm's eager module gets normalised floats and gives logits; ours take uint8 pixels and give probabilities.",
        "All processes have the tuned allocator, and as many cores as threads. With one thread, CPU ms is what a call "
        "takes while nobody else computes.",
        "MB is the file, with the graph. The parts are one graph, cut; suppression is the file that is shipped.",
        present if python else absent,
    ]


def main() -> None:
    """Command line."""
    options = parser("exported_duel", __doc__)
    options.add_argument("--seconds", type=float, default=0.25, help="of calls per round and row (default 0.25)")
    options.add_argument("--threads", type=int, nargs="+", metavar="N", help="default: 1, and all cores")
    options.add_argument("--files", type=Path, metavar="DIR", help="keep the exported files here, and take those there")
    options.add_argument("--ultralytics", type=Path, metavar="PYTHON", help=f"its interpreter (default {ENVIRONMENT})")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.threads = 1, 0.01, [1]
    python = given.ultralytics or (ENVIRONMENT if ENVIRONMENT.is_file() else None)
    if python is not None and not python.is_file():
        options.error(f"--ultralytics {python}: there is no such interpreter")
    counts = given.threads or sorted({1, len(usable_cores())})
    with tempfile.TemporaryDirectory() as temporary:
        files, versions = prepare((given.files or Path(temporary)).resolve(), python)
        tables: list[Table] = []
        samples: dict[str, Any] = {}
        for threads in counts:
            found, measured = measure(files, threads, given, python)
            tables += found
            samples |= raw(measured)
    settings = {
        "rounds": given.rounds,
        "seconds per round": given.seconds,
        **_versions(),
        "Ultralytics": versions or "absent",
    }
    finish(Result("exported_duel", settings, tables, notes_on(python), samples), given.output)


def _versions() -> dict[str, str]:
    import onnxruntime
    import openvino
    import timm

    return {"timm": timm.__version__, "onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__}


if __name__ == "__main__":
    main()
