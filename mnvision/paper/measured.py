"""Scores measured here, each with the model, the data and the command behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.errors import UserError
from mnvision.files import whole_file

# Tables whose rows are classifiers: a score of theirs can stand in any of them.
CLASSIFIERS = (4, 5, 6, 7, 8, 9)
_NUMBERS = ("table", "seed")
# Table 13 holds several kinds of detectors.
_DETECTORS = {
    "ssd_coco": "SSD",
    "ssdlite_coco": "SSDLite",
    "faster_rcnn_coco": "Faster-RCNN",
    "faster_rcnn_coco_600": "Faster-RCNN",
}


@dataclass(frozen=True)
class Record:
    """One score.

    Attributes:
        table: Of the paper, 4 to 14. Classifiers of any pictures belong to 6.
        words: Overrides that compose the model, with backbone.alpha, backbone.resolution and head.num_classes where
            the head has one: its cost is computed from them.
        metric: As the tools call it, e.g. "top1".
        value: A fraction, 0 to 1.
        data: The pictures it was measured on.
        note: What else a reader must know; "" for nothing.
        command: What trained it, in short; or the run folder's name.
        seed: Of the training.
        minutes: Of the training; ``None`` if not known.
        row: The row of its table it answers where that is no model, e.g. a radius of Table 11; else "".
    """

    table: int
    words: str
    metric: str
    value: float
    data: str
    note: str = ""
    command: str = ""
    seed: int = 0
    minutes: float | None = None
    row: str = ""

    @property
    def knobs(self) -> tuple[float, int, str]:
        """What a row of the paper is found by, see :func:`knobs`."""
        return knobs(self.words)

    @property
    def name(self) -> str:
        """The model in the paper's way, e.g. "0.5-96" or "SSD 1.0-300"."""
        alpha, resolution, others = self.knobs
        return " ".join(filter(None, (_DETECTORS.get(task_of(self.words)), f"{alpha}-{resolution}", others)))


def knobs(words: str) -> tuple[float, int, str]:
    """Width multiplier, resolution and what else of the backbone is not the default, e.g. "stem_stride=1".

    Args:
        words: Overrides that name the first two.
    """
    values = dict(word.split("=", 1) for word in words.split())
    alpha, resolution = float(values.pop("backbone.alpha")), int(values.pop("backbone.resolution"))
    defaults = signature(MobileNetV1).parameters
    backbone = {key.removeprefix("backbone."): value for key, value in values.items() if key.startswith("backbone.")}
    others = [f"{k}={v}" for k, v in backbone.items() if k not in defaults or v != str(defaults[k].default)]
    return alpha, resolution, " ".join(sorted(others))


def task_of(words: str) -> str:
    """The task that ``words`` name, "" without one."""
    return next((word.removeprefix("task=") for word in words.split() if word.startswith("task=")), "")


def read_records(path: Path | str) -> list[Record]:
    """Records of a JSON file, a list of objects with the keys of :class:`Record`.

    Raises:
        UserError: The file is missing or broken, or an entry lacks a key, has an unknown one or a wrong value.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give measured=FILE") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} must hold a list of records")
    return [_record(entry, f"{path}, entry {number}") for number, entry in enumerate(entries)]


def _record(entry: Any, where: str) -> Record:
    known = {field.name: field for field in fields(Record)}
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: {entry!r} is no record")
    if unknown := sorted(set(entry) - set(known)):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; a record has {', '.join(known)}")
    if missing := [name for name in list(known)[:5] if name not in entry]:
        raise UserError(f"{where}: {missing[0]} is missing")
    for name, value in entry.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "value" and not (number and 0 <= value <= 1):
            raise UserError(f"{where}: value={value!r} is no fraction from 0 to 1")
        if name in _NUMBERS and type(value) is not int:
            raise UserError(f"{where}: {name}={value!r} is no whole number")
        if name == "minutes" and not (value is None or number):
            raise UserError(f"{where}: minutes={value!r} is no number")
        if name not in ("value", "minutes", *_NUMBERS) and not isinstance(value, str):
            raise UserError(f"{where}: {name}={value!r} is no text")
    record = Record(**entry)
    try:
        knobs(record.words)
    except (ValueError, KeyError):
        raise UserError(
            f"{where}: words={record.words!r} must be key=value with backbone.alpha and backbone.resolution"
        ) from None
    if not 4 <= record.table <= 14:
        raise UserError(f"{where}: table={record.table}: scores stand in the paper's tables 4 to 14")
    return record


def write_records(records: Sequence[Record], path: Path | str) -> None:
    """The JSON file that :func:`read_records` reads.

    Raises:
        UserError: The file cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n", encoding="utf-8")


def merged(old: Iterable[Record], new: Sequence[Record]) -> list[Record]:
    """``old`` without what ``new`` measures again (same table, model, data, note, seed and row), then ``new``."""

    def key(record: Record) -> tuple[Any, ...]:
        return (record.table, record.words, record.metric, record.data, record.note, record.seed, record.row)

    again = {key(record) for record in new}
    return [*(record for record in old if key(record) not in again), *new]
