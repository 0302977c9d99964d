"""A process that loads candidates, and times a block of calls for every line that it is sent.

It reads JSON lines from standard input and answers each with one: first the order (see :func:`main`), then requests
``{"subject", "part", "batch", "seconds", "do"}``. Libraries' own prints go to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from mnvision.errors import UserError
from mnvision.latency.machine import busy_seconds, peak_memory_mb, pin
from mnvision.runtime import tune_allocator, tune_threads

_WARM_UP_CALLS = 3
_WARM_UP_SECONDS = 0.3


def main() -> None:
    """Serve until standard input ends.

    The order: ``candidates`` (plain data of each), ``threads``, ``device``, ``picture`` (a path or null), ``cold``
    (time the start itself, and stop) and ``started`` (seconds since the epoch at which the process was asked for).
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    logging.getLogger("mnvision").setLevel(logging.ERROR)
    tuned = {"spinning": tune_threads(), "allocator": tune_allocator()}
    cores = pin(order["threads"])
    try:
        if order["cold"]:
            answers.write(json.dumps(cold_start(order)) + "\n")
            return
        subjects = _open(order)
        facts = [subject.facts() for subject in subjects]
        answers.write(json.dumps({"facts": facts, "cores": cores, "tuned": tuned}) + "\n")
    except UserError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return
    calls: dict[tuple[int, str, int], Callable[[], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _serve(request, subjects, calls)
        except UserError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")


def _open(order: dict[str, Any]) -> list[Any]:
    import cv2
    import torch

    from mnvision.latency.subjects import Candidate, Subject, make_picture

    torch.set_num_threads(order["threads"])
    cv2.setNumThreads(order["threads"])
    picture = make_picture(order["picture"])
    return [Subject(Candidate(**data), order["device"], picture) for data in order["candidates"]]


def _serve(
    request: dict[str, Any], subjects: list[Any], calls: dict[tuple[int, str, int], Callable[[], Any]]
) -> dict[str, Any]:
    subject, part, batch = subjects[request["subject"]], request["part"], request["batch"]
    if request["do"] == "layers":
        from mnvision.latency.layers import time_layers

        return time_layers(subject, batch, request["seconds"])
    key = (request["subject"], part, batch)
    if key not in calls:
        calls[key] = subject.call(part, batch)
    if request["do"] == "warm":
        return {"calls": warm_up(calls[key])}
    return time_block(calls[key], request["seconds"], cuda=subject.device.type == "cuda" and part != "whole")


def warm_up(call: Callable[[], Any]) -> int:
    """Call until caches, arenas and kernels are as they will stay; returns the number of calls."""
    done, start = 0, time.perf_counter()
    while done < _WARM_UP_CALLS or time.perf_counter() - start < _WARM_UP_SECONDS:
        call()
        done += 1
    return done


def time_block(call: Callable[[], Any], seconds: float, cuda: bool = False) -> dict[str, Any]:
    """Time every call of a short block, and see how busy other processes kept the machine.

    The first call is not counted: another candidate has just had the caches.

    Args:
        call: Answers once.
        seconds: How long to go on; at least one call is timed.
        cuda: Time the device with CUDA's events, not the host. A whole predictor gives results on the host and is
            timed there.

    Returns:
        ``times_ms`` of the calls, ``cpu_ms`` of this process per call (what a call of one thread takes when nobody
        else computes), and ``foreign_cores`` that others kept busy (None outside Linux).
    """
    call()
    clock = _event_clock() if cuda else _host_clock
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    times: list[float] = []
    while not times or time.perf_counter() - start < seconds:
        times.append(clock(call))
    passed, used = time.perf_counter() - start, time.process_time() - own
    foreign = None
    if busy is not None:
        others = ((busy_seconds() or busy) - busy - used) / passed
        foreign = min(max(round(others, 3), 0.0), float(os.cpu_count() or 1))  # the system counts in steps of 10 ms
    return {"times_ms": times, "cpu_ms": used / len(times) * 1000, "foreign_cores": foreign}


def _host_clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def _event_clock() -> Callable[[Callable[[], Any]], float]:
    import torch

    torch.cuda.synchronize()

    def clock(call: Callable[[], Any]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return clock


def cold_start(order: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the request for this process to the first answer, in steps, and the memory that took.

    Returns:
        ``import_s`` until the libraries are there, ``load_s`` of the file, ``first_ms`` of the first answer (of the
        whole predictor where there is one), ``total_s``, ``base_mb`` resident before the file was loaded and
        ``peak_mb`` after the first answer.
    """
    from mnvision.latency.subjects import MODEL, WHOLE

    imported = time.time()
    base = peak_memory_mb()
    (subject,) = _open(order)
    loaded = time.time()
    subject.call(WHOLE if WHOLE in subject.parts else MODEL, order["batch"])()
    answered = time.time()
    return {
        "import_s": imported - order["started"],
        "load_s": loaded - imported,
        "first_ms": (answered - loaded) * 1000,
        "total_s": answered - order["started"],
        "base_mb": base,
        "peak_mb": peak_memory_mb(),
    }


if __name__ == "__main__":
    main()
