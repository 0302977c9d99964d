"""Rounds of several contestants in turn, A B C A B C ..., so that a busy moment hits all of them alike.

Each contestant is a process of its own (``worker.py``): the allocator's thresholds and the number of threads
are settings of a whole process. Only one works at a time; the others wait for their turn. A ratio is formed
within each round and the median over the rounds is what counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Table, spread

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.3  # seconds; threads of the last contestant's pools stop spinning before the next one starts


@dataclass(frozen=True)
class Sample:
    """One round of one contestant.

    Attributes:
        seconds: Its duration.
        units: What was done in it, e.g. images.
        foreign_cores: Cores that other processes kept busy meanwhile, None where the system does not tell.
        times_ms: Of each unit, where the work tells them.
        cpu_ms: Processor time per unit, likewise.
    """

    seconds: float
    units: int
    foreign_cores: float | None = None
    times_ms: Sequence[float] = ()
    cpu_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


@dataclass(frozen=True)
class Contestant:
    """A process that repeats one piece of work on request.

    Attributes:
        name: Row of the table.
        target: ``module:function``; called once with ``options``, gives a callable that does one round and
            returns the number of units done, or how many milliseconds each of them took.
        options: Keyword arguments, plain data.
        tuned: Set the allocator as mnvision's tools do, else leave the process as the system made it.
        threads: Threads of torch and OpenCV; None leaves their defaults.
        python: Interpreter of another environment; None is this one.
    """

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = False
    threads: int | None = None
    python: str | None = None


Samples = dict[str, list[Sample]]


def contest(contestants: Sequence[Contestant], rounds: int) -> Samples:
    """Start every contestant, let each warm up, then measure ``rounds`` rounds.

    Raises:
        RuntimeError: A contestant's process failed; its own error went to the terminal.
    """
    samples: Samples = {contestant.name: [] for contestant in contestants}
    with contextlib.ExitStack() as stack:
        running = [(c.name, stack.enter_context(_process(c))) for c in contestants]
        for _ in range(rounds):
            for name, process in running:
                time.sleep(PAUSE)
                samples[name].append(_ask(name, process))
    return samples


def interleave(tasks: Mapping[str, Callable[[], int]], rounds: int) -> Samples:
    """As :func:`contest` for work that may share this process."""
    samples: Samples = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            units = task()
            samples[name].append(Sample(time.perf_counter() - start, units))
    return samples


def ratios(samples: Mapping[str, Sequence[Sample]], ours: str, peer: str) -> list[float]:
    """How many times faster ``ours`` was than ``peer``, round by round."""
    return [mine.rate / theirs.rate for mine, theirs in zip(samples[ours], samples[peer], strict=True)]


def rate_table(title: str, unit: str, samples: Mapping[str, Sequence[Sample]]) -> Table:
    """Units per second of every contestant: median and range over the rounds."""
    rows = [[name, spread([sample.rate for sample in found], 1), _busy(found)] for name, found in samples.items()]
    return Table(title, ["contestant", f"{unit}/s", "cores busy elsewhere"], rows)


def ratio_table(title: str, samples: Mapping[str, Sequence[Sample]], pairs: Sequence[tuple[str, str]]) -> Table:
    """Speed of the first of each pair relative to the second: median and range over the rounds."""
    rows = [[f"{ours} / {peer}", spread(ratios(samples, ours, peer))] for ours, peer in pairs]
    return Table(title, ["ours / peer", "ratio"], rows)


def raw(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[dict[str, Any]]]:
    """Samples as plain data for the JSON file."""
    return {name: [_told(sample) for sample in found] for name, found in samples.items()}


def _told(sample: Sample) -> dict[str, Any]:
    untold = () if sample.times_ms else ("times_ms", "cpu_ms")
    return {key: value for key, value in vars(sample).items() if key not in untold}


def _busy(samples: Sequence[Sample]) -> str:
    known = [sample.foreign_cores for sample in samples if sample.foreign_cores is not None]
    return f"{statistics.median(known):.2f}" if known else "?"


@contextlib.contextmanager
def _process(contestant: Contestant) -> Iterator[subprocess.Popen[str]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
    if contestant.threads is not None:
        environment["OMP_NUM_THREADS"] = str(contestant.threads)
    order: dict[str, Any] = {"target": contestant.target, "options": dict(contestant.options)}
    order |= {"tuned": contestant.tuned, "threads": contestant.threads}
    command = [contestant.python or sys.executable, "-m", "benchmarks.worker", json.dumps(order)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert process.stdin is not None
    try:
        _answer(contestant.name, process)
        yield process
    finally:
        # A worker that already failed has closed its end.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _ask(name: str, process: subprocess.Popen[str]) -> Sample:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return Sample(**_answer(name, process))


def _answer(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of {name!r} ended with exit code {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer
