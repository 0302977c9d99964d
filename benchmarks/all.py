"""Run every benchmark, each in a process of its own, and print its tables.

On a busy machine the ratios still hold roughly, single numbers do not: the tables say how many cores were busy
elsewhere. Options of single benchmarks: ``python -m benchmarks.NAME --help``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.duel import ROOT

NAMES = (
    "coco_evaluation",
    "mining",
    "geo_partition",
    "data_loading",
    "shard_loading",
    "ssd_step",
    "classification_step",
    "startup",
    "memory",
    "teacher_cache",
    "exported_duel",
    "cuda_step",
)


def command(name: str, quick: bool, output: Path | None) -> list[str]:
    """Command line of one benchmark."""
    words = [sys.executable, "-m", f"benchmarks.{name}"]
    words += ["--quick"] if quick else []
    return words + (["--output", str(output.resolve())] if output is not None else [])


def main() -> None:
    """Command line; the exit code is 1 if a benchmark failed."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--quick", action="store_true", help="tiny settings: shows that all of them run")
    options.add_argument("--output", type=Path, metavar="DIR", help="also write DIR/NAME.md and DIR/NAME.json")
    options.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="some of them")
    given = options.parse_args()
    failed = []
    for name in given.only:
        if subprocess.run(command(name, given.quick, given.output), cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
        print(flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
