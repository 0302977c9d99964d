"""One contestant of a duel: sets itself up, warms up, then does a round for every line it is sent."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnvision.latency.machine import busy_seconds
from mnvision.runtime import tune_allocator

Work = Callable[[], int | list[float]]


def main() -> None:
    """Answer on standard output in JSON, one line per round; libraries' own prints go to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run = prepare(json.loads(sys.argv[1]))
    run()
    answers.write("{}\n")
    for _ in sys.stdin:
        answers.write(json.dumps(measure(run)) + "\n")


def prepare(order: dict[str, Any]) -> Work:
    """Make the settings of the process, then build the work."""
    if order["tuned"]:
        tune_allocator()
    if order["threads"] is not None:
        import cv2
        import torch

        torch.set_num_threads(order["threads"])
        cv2.setNumThreads(order["threads"])
    module, function = order["target"].split(":")
    run: Work = getattr(importlib.import_module(module), function)(**order["options"])
    return run


def measure(run: Work) -> dict[str, Any]:
    """Time one round, and see how busy other processes kept the machine."""
    busy, own, cpu, start = busy_seconds(), own_seconds(), time.process_time(), time.perf_counter()
    done = run()
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"seconds": seconds, "units": done if isinstance(done, int) else len(done)}
    if not isinstance(done, int):
        # One more was done than was timed: the first call of a round is not counted.
        found |= {"times_ms": done, "cpu_ms": (time.process_time() - cpu) / (len(done) + 1) * 1000}
    if busy is None:
        return found
    foreign = ((busy_seconds() or busy) - busy - (own_seconds() - own)) / seconds
    return found | {"foreign_cores": max(round(foreign, 3), 0.0)}


def own_seconds() -> float:
    """Processor seconds of this process and of its living loader workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        # After the command's name, which may hold spaces, fields 14 and 15 are user and system time.
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            values = stat.read_text().rsplit(")", 1)[1].split()
            total += (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
