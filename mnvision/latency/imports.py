"""Times that were measured elsewhere, put into the same table.

Four layouts: a CSV with a heading, a JSON list of objects, the ``latency.json`` or ``latency.csv`` of this tool on
another machine, and the printed output of a runtime's own tool (see :mod:`mnvision.latency.logs`). Columns and keys
are those of :class:`~mnvision.latency.summary.Row`; ``file``, ``batch`` and one of ``median_ms`` and ``mean_ms`` are
needed, ``device`` is the file's name where it is missing, and ``part`` is then ``model``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.latency.logs import read_litert_json, read_log
from mnvision.latency.subjects import MODEL, PARTS
from mnvision.latency.summary import COLUMNS, Row

_TEXT = ("device", "file", "runtime", "part", "source")
_WHOLE = ("batch", "threads", "calls")
_NEEDED = ("file", "batch")
_MEASURED = ("ratio", "ratio_low", "ratio_high")  # against candidates of another table


def read_times(path: str | Path) -> list[Row]:
    """The rows of one file.

    Raises:
        UserError: Missing, unreadable, of no known layout, without rows, or with a value that cannot be.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"import={path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"import={path}: cannot be read as text ({error})") from None
    if path.suffix.lower() == ".csv":
        rows = _read_csv(text, path)
    elif path.suffix.lower() == ".json":
        rows = _read_json(text, path)
    else:
        row = read_log(text, path.stem, path.stem)
        if row is None:
            raise UserError(
                f"import={path}: holds no times that are known; give a .csv or .json in the layout of docs/latency.md, "
                "or the whole output of benchmark_model, onnxruntime_perf_test, benchmark_app or executor_runner"
            )
        rows = [row]
    if not rows:
        raise UserError(f"import={path}: holds no rows")
    return [replace(row, source=str(path)) for row in rows]


def _read_csv(text: str, path: Path) -> list[Row]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    reader = csv.DictReader(lines)
    names = list(reader.fieldnames or [])
    _check_names(names, f"import={path}")
    rows = []
    for number, values in enumerate(reader, start=1):
        where = f"import={path}, row {number}"
        if None in values or None in values.values():
            raise UserError(f"{where}: has not as many cells as the heading, {len(names)}")
        rows.append(_row({key: value.strip() or None for key, value in values.items()}, path.stem, where))
    return rows


def _read_json(text: str, path: Path) -> list[Row]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"import={path}: not JSON ({error})") from None
    if isinstance(data, dict) and "latency" in data:
        try:
            return [read_litert_json(data, path.stem)]
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"import={path}: not what litert-benchmark writes ({error!r})") from None
    found = data.get("rows") if isinstance(data, dict) else data
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"import={path}: give a list of objects, or an object with a list of them under 'rows'")
    rows = []
    for number, values in enumerate(found, start=1):
        where = f"import={path}, row {number}"
        _check_names(list(values), where)
        rows.append(_row(values, path.stem, where))
    return rows


def _check_names(names: list[str], where: str) -> None:
    for name in names:
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COLUMNS)}"
            raise UserError(f"{where}: there is no column {name!r}; {hint}")
    missing = [name for name in _NEEDED if name not in names]
    if missing or not {"median_ms", "mean_ms"} & set(names):
        raise UserError(f"{where}: needs {', '.join(_NEEDED)} and median_ms (or mean_ms)")


def _row(values: Mapping[str, Any], device: str, where: str) -> Row:
    known = {name: _value(name, value, where) for name, value in values.items() if value is not None}
    missing = [name for name in _NEEDED if name not in known]
    if missing or not {"median_ms", "mean_ms"} & set(known):
        raise UserError(f"{where}: {' and '.join(missing) or 'median_ms'} is empty")
    part = known.get("part", MODEL)
    if part not in PARTS:
        raise UserError(f"{where}: part {part!r} is none of {', '.join(PARTS)}")
    defaults = {"device": device, "runtime": "", "part": MODEL, "threads": None, "median_ms": None}
    for name in _MEASURED:
        known.pop(name, None)
    row = Row(**(defaults | known))
    middle = row.median_ms if row.median_ms is not None else row.mean_ms
    assert middle is not None
    return replace(row, images_per_s=row.batch / middle * 1000)


def _value(name: str, value: Any, where: str) -> Any:
    if name in _TEXT:
        return str(value)
    try:
        found = float(value)
        if isinstance(value, bool) or not math.isfinite(found):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"{where}: {name} is {value!r}, no number") from None
    if found < 0 or (found == 0 and name in ("batch", "threads", "median_ms", "mean_ms")):
        raise UserError(f"{where}: {name} is {value}; it must be above 0")
    if name in _WHOLE:
        if found != int(found):
            raise UserError(f"{where}: {name} is {value}, no whole number")
        return int(found)
    return found
