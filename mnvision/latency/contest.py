"""Candidates in turn, A B C A B C ..., each in a process of its own, so that a busy moment hits all of them alike.

The processes of one thread count are alive together and work one at a time; the ratio of two candidates is formed
within each round, and its median over the rounds is what counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mnvision.errors import UserError
from mnvision.latency.layers import LayerTime
from mnvision.latency.subjects import PARTS, Candidate

PAUSE = 0.02  # seconds; waiting threads of the last process's pools fall asleep before the next one starts
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Key:
    """What a row of the table is about; ``name`` is the candidate's."""

    name: str
    part: str
    batch: int
    threads: int


@dataclass(frozen=True)
class Block:
    """The calls of one candidate in one round.

    Attributes:
        times_ms: Of each call.
        cpu_ms: Processor time per call, of all threads of its process.
        foreign_cores: Cores that other processes kept busy; None outside Linux.
    """

    times_ms: tuple[float, ...]
    cpu_ms: float = 0.0
    foreign_cores: float | None = None


@dataclass(frozen=True)
class Plan:
    """What to time, and how.

    Attributes:
        candidates: At least one, with different names.
        parts: Of :data:`~mnvision.latency.subjects.PARTS`; those that a candidate lacks are left out.
        batches: Pictures at once.
        threads: Each count is a process of its own, kept on that many cores.
        seconds: Of measured calls per row, over all rounds.
        rounds: Blocks per row.
        device: "cpu", "cuda", ... or "auto".
        picture: File for the whole predictor; None is noise of 480 x 640.
        together: All candidates in one process: little memory for many small models of one runtime.
    """

    candidates: Sequence[Candidate]
    parts: Sequence[str] = PARTS
    batches: Sequence[int] = (1,)
    threads: Sequence[int] = (1,)
    seconds: float = 2.0
    rounds: int = 10
    device: str = "cpu"
    picture: str | None = None
    together: bool = False


@dataclass
class Timings:
    """What was measured.

    Attributes:
        blocks: One per round.
        facts: What each candidate says of itself: kind, runtime, resolution, parts, file_mb, mult_adds, params.
        notes: What was left out, and why.
        settings: Of the processes: cores, allocator and spinning.
    """

    blocks: dict[Key, list[Block]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def contest(plan: Plan, report: Callable[[str], None] = lambda _: None) -> Timings:
    """Time everything that the plan asks for.

    Args:
        plan: What to time.
        report: Is told how far it is.

    Raises:
        UserError: A candidate cannot be loaded, or its process ended.
    """
    found = Timings()
    for threads in plan.threads:
        with contextlib.ExitStack() as stack:
            places: dict[str, tuple[Worker, int]] = {}
            groups = [list(plan.candidates)] if plan.together else [[one] for one in plan.candidates]
            for group in groups:
                worker = stack.enter_context(Worker(group, threads, plan.device, plan.picture))
                found.settings[f"{threads} threads"] = {"cores": worker.hello["cores"], **worker.hello["tuned"]}
                for place, (candidate, facts) in enumerate(zip(group, worker.hello["facts"], strict=True)):
                    places[candidate.name], found.facts[candidate.name] = (worker, place), facts
            _time(plan, threads, places, found, report)
    return found


def _time(
    plan: Plan,
    threads: int,
    places: dict[str, tuple[Worker, int]],
    found: Timings,
    report: Callable[[str], None],
) -> None:
    """All rounds of one thread count; what a candidate cannot do is left out and noted."""
    keys: list[Key] = []
    for part in plan.parts:
        for batch in plan.batches:
            for name, (worker, place) in places.items():
                if part not in found.facts[name]["parts"]:
                    continue
                answer = worker.ask("warm", place, part, batch)
                if "error" in answer:
                    note = f"{name}, {part}, batch {batch}: {answer['error']}"
                    found.notes += [note] if note not in found.notes else []
                    continue
                keys.append(Key(name, part, batch, threads))
    for round_number in range(plan.rounds):
        report(f"{threads} thread{'s' * (threads > 1)}: round {round_number + 1} of {plan.rounds}")
        for key in keys:
            worker, place = places[key.name]
            time.sleep(PAUSE)
            answer = worker.ask("time", place, key.part, key.batch, plan.seconds / plan.rounds)
            if "error" in answer:
                raise UserError(f"{key.name}: {answer['error']}")
            block = Block(tuple(answer["times_ms"]), answer["cpu_ms"], answer["foreign_cores"])
            found.blocks.setdefault(key, []).append(block)


def layer_times(candidate: Candidate, batch: int, threads: int, seconds: float, device: str) -> list[LayerTime]:
    """Time per layer, see :mod:`mnvision.latency.layers`, in a process of its own.

    Raises:
        UserError: The candidate cannot be loaded, or is no torch model.
    """
    with Worker([candidate], threads, device, None) as worker:
        answer = worker.ask("layers", 0, "model", batch, seconds)
    if "error" in answer:
        raise UserError(answer["error"])
    return [LayerTime(**layer) for layer in answer["layers"]]


def cold_starts(
    plan: Plan, times: int, report: Callable[[str], None] = lambda _: None
) -> dict[str, list[dict[str, float | None]]]:
    """Start a process that answers once, ``times`` times for every candidate in turn; see ``worker.cold_start``.

    One start before the counted ones brings the files into the system's cache. The plan's first batch and last thread
    count apply.

    Raises:
        UserError: A candidate cannot be loaded, or its process ended.
    """
    found: dict[str, list[dict[str, float | None]]] = {candidate.name: [] for candidate in plan.candidates}
    for number in range(times + 1 if times else 0):
        report(f"cold start {number} of {times}" if number else "cold start, not counted")
        for candidate in plan.candidates:
            cold = Worker([candidate], plan.threads[-1], plan.device, plan.picture, cold=True, batch=plan.batches[0])
            with cold as worker:
                if number:
                    found[candidate.name].append(worker.hello)
    return found


class Worker(contextlib.AbstractContextManager["Worker"]):
    """A process of ``mnvision.latency.worker``; everything that it prints is kept for its last words.

    Attributes:
        hello: Its first answer.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        threads: int,
        device: str,
        picture: str | None,
        cold: bool = False,
        batch: int = 1,
    ) -> None:
        self.names = ", ".join(candidate.name for candidate in candidates[:3])
        self.order = {
            "candidates": [candidate.to_dict() for candidate in candidates],
            "threads": threads,
            "device": device,
            "picture": picture,
            "cold": cold,
            "batch": batch,
        }
        self.hello: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        environment = os.environ | {"OMP_NUM_THREADS": str(self.order["threads"]), "NO_ALBUMENTATIONS_UPDATE": "1"}
        paths = [str(_PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._log: IO[bytes] = tempfile.TemporaryFile()
        started = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mnvision.latency.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.hello = self._exchange(self.order | {"started": started})
        except BaseException:
            self._end()
            raise
        if "error" in self.hello:
            self._end()
            raise UserError(self.hello["error"])
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, what: str, subject: int, part: str, batch: int, seconds: float = 0.0) -> dict[str, Any]:
        """Send one request: "warm", "time" or "layers"; an answer may hold ``error``."""
        return self._exchange({"do": what, "subject": subject, "part": part, "batch": batch, "seconds": seconds})

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            reason = "was killed; is there enough memory?" if code == -9 else f"ended with exit code {code}"
            raise UserError(f"the process that times {self.names} {reason}{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that is written over; nothing where standard error is no terminal."""
    shown = sys.stderr.isatty()

    def report(text: str) -> None:
        if shown:
            print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if shown:
            print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)
