"""Output of the runtimes' own benchmark tools, read back.

The layouts are those that the tools print, seen in their output or source: LiteRT's ``benchmark_model`` (and, before
it, TensorFlow Lite's) and ``litert-benchmark --result_json``, ONNX Runtime's ``onnxruntime_perf_test``, OpenVINO's
``benchmark_app`` and ExecuTorch's ``executor_runner``. All of them time the model alone, pixels to numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from mnvision.latency.subjects import MODEL
from mnvision.latency.summary import Row

_NUMBER = r"([-+\d.eE]+)"
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def read_log(text: str, device: str, file: str) -> Row | None:
    """The one measurement that a log holds, or None if it is of no known tool.

    Args:
        text: What the tool printed, also through ``adb logcat``.
        device: Name of the machine, which no log tells.
        file: Name of the model where the log does not tell it either.
    """
    blank = Row(device, file, "", MODEL, 1, None, None)
    for parse in _PARSERS:
        row = parse(text, blank)
        if row is not None:
            middle = row.median_ms if row.median_ms is not None else row.mean_ms
            return replace(row, images_per_s=row.batch / middle * 1000) if middle else row
    return None


def _litert(text: str, blank: Row) -> Row | None:
    """``Inference timings in us: ...``, and the statistics of the last (the measured) run of calls before it."""
    summary = re.search(rf"Inference timings in us: .*?Inference \(avg\): {_NUMBER}", text)
    if summary is None:
        return None
    runs = re.findall(r"count=(\d+) first=.*", text)
    lines = re.findall(r"count=\d+ first=.*", text)
    last = lines[-1] if lines else ""
    median = re.search(rf"\bmedian={_NUMBER}", last)  # absent in older builds
    threads = re.findall(r"(?:Num threads|#threads used for CPU inference): \[(-?\d+)\]", text)
    graph = re.search(r"\bGraph: \[(.+?)\]", text)
    return replace(
        blank,
        file=_name(graph) or blank.file,
        runtime="litert",
        threads=int(threads[-1]) if threads and int(threads[-1]) > 0 else None,
        median_ms=float(median[1]) / 1000 if median else None,
        mean_ms=float(summary[1]) / 1000,
        calls=int(runs[-1]) if runs else None,
    )


def _onnxruntime(text: str, blank: Row) -> Row | None:
    """``P50 Latency: 0.06 s`` (older: ``is 0.06 sec``), or the mean alone where no statistics were asked for."""
    mean = re.search(rf"Average inference time cost(?: total)?:\s*{_NUMBER} ms", text)
    if mean is None:
        return None
    places = {p: re.search(rf"\bP{p} Latency(?: is|:)\s*{_NUMBER}\s*s", text) for p in (50, 90)}
    threads = re.search(r"Setting intra_op_num_threads to (\d+)", text)
    calls = re.search(r"Total inference requests:\s*(\d+)", text)
    return replace(
        blank,
        runtime="onnxruntime",
        threads=int(threads[1]) if threads and int(threads[1]) > 0 else None,
        median_ms=float(places[50][1]) * 1000 if places[50] else None,
        p90_ms=float(places[90][1]) * 1000 if places[90] else None,
        mean_ms=float(mean[1]),
        calls=int(calls[1]) if calls else None,
    )


def _openvino(text: str, blank: Row) -> Row | None:
    """``Median: 48.89 us`` under ``Latency:``; the unit follows the number."""
    if not re.search(r"\[Step \d+/\d+\]", text):
        return None
    values: dict[str, float] = {}
    for name in ("Median", "Average"):
        if found := re.search(rf"\b{name}:\s+{_NUMBER} (us|ms|s)\b", text):
            values[name] = float(found[1]) * _UNITS[found[2]]
    if "Median" not in values:
        return None
    threads = re.search(r"INFERENCE_NUM_THREADS: (\d+)", text)
    calls = re.search(r"Count:\s+(\d+) iterations", text)
    batch = re.search(r"Model batch size: (\d+)", text)
    return replace(
        blank,
        runtime="openvino",
        batch=int(batch[1]) if batch else 1,
        threads=int(threads[1]) if threads and int(threads[1]) > 0 else None,
        median_ms=values["Median"],
        mean_ms=values.get("Average"),
        calls=int(calls[1]) if calls else None,
    )


def _executorch(text: str, blank: Row) -> Row | None:
    """``Model executed successfully 50 time(s) in 612.3 ms.``: all calls together, so a mean."""
    found = re.search(rf"Model executed successfully (\d+) time\(s\) in {_NUMBER} ms", text)
    if found is None or int(found[1]) == 0:
        return None
    threads = re.search(r"Resetting threadpool with num threads = (\d+)", text)
    model = re.search(r"Model file (\S+\.pte) is loaded", text)
    return replace(
        blank,
        file=_name(model) or blank.file,
        runtime="executorch",
        threads=int(threads[1]) if threads else None,
        mean_ms=float(found[2]) / int(found[1]),
        calls=int(found[1]),
    )


_PARSERS: tuple[Callable[[str, Row], Row | None], ...] = (_litert, _onnxruntime, _openvino, _executorch)


def read_litert_json(data: Mapping[str, Any], device: str) -> Row:
    """What ``litert-benchmark --result_json=FILE`` writes.

    Raises:
        KeyError, TypeError, ValueError: It is not that.
    """
    latency = data["latency"]
    return Row(
        device=device,
        file=PurePosixPath(str(data["model"])).name,
        runtime="litert",
        part=MODEL,
        batch=1,
        threads=int(data["num_threads"]) if data.get("num_threads") else None,
        median_ms=float(latency["median_ms"]),
        mean_ms=float(latency["avg_ms"]),
        images_per_s=1000 / float(latency["median_ms"]),
        calls=int(latency["num_runs"]),
    )


def _name(found: re.Match[str] | None) -> str | None:
    return PurePosixPath(found[1]).name if found else None
