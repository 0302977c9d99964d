"""Scores of run folders: what was trained, on which pictures, and how well it did."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.checkpoints import Metadata, read_metadata
from mnvision.errors import UserError
from mnvision.paper.measured import Record

Epoch = Literal["last", "best"]
# The score of each kind of model: the table it belongs to, the metric, and the task that composes it.
KINDS: dict[str, tuple[int, str, str]] = {
    "classification": (6, "top1", "classification"),
    "face_attributes": (12, "mAP", "face_attributes"),
    "detection": (13, "AP", "ssd_coco"),
    "faster_rcnn": (13, "AP", "faster_rcnn_coco"),
    "face_embeddings": (14, "accuracy", "face_embeddings"),
    "geolocation": (11, "", "geolocation"),
}
RADII_KM = (1, 25, 200, 750, 2500)
_DOGS = "StanfordDogsDataModule"
# Keys of the head that change its size or cost.
_HEAD_KEYS = ("num_classes", "dim", "pooling", "batch_norm", "reduce_lowest")
_BACKBONE_KEYS = ("variant", "depth_multiplier", "output_stride", "stem_stride")


@dataclass(frozen=True)
class Run:
    """The records of one run folder, and its model as its checkpoint describes it."""

    folder: Path
    records: tuple[Record, ...]
    model: dict[str, Any]


def find_runs(folder: Path | str) -> list[Path]:
    """Run folders in ``folder``, itself included, in the order of their names.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"runs={folder}: there is no such folder; give a run or a sweep of tools/train.py")
    found = sorted(path.parent for path in folder.rglob("config.yaml") if path.parent.name != ".hydra")
    if not found:
        raise UserError(f"runs={folder} holds no run: no folder in it has a config.yaml as tools/train.py writes it")
    return found


def read_runs(folder: Path | str, data: str | None = None, epoch: Epoch = "last") -> tuple[list[Run], list[str]]:
    """Records of all runs in a folder.

    Args:
        folder: A run, or a folder of runs such as a sweep.
        data: What the pictures are called; ``None`` takes the name of the data's folder.
        epoch: Whose scores: the last, or the best, which the run chose on the very pictures that are scored.

    Returns:
        The runs, and one line for each folder that was left out.

    Raises:
        UserError: No folder, no run, or none that could be used.
    """
    if epoch not in ("last", "best"):
        raise UserError(f"epoch={epoch}: choose last or best")
    runs, left_out = [], []
    for path in find_runs(folder):
        try:
            runs.append(read_run(path, data, epoch))
        except UserError as error:
            left_out.append(f"left out: {error}")
    if not runs:
        raise UserError(f"runs={folder} holds no score; {left_out[0]}")
    return runs, left_out


def read_run(folder: Path, data: str | None = None, epoch: Epoch = "last") -> Run:
    """One run folder; arguments as :func:`read_runs`.

    Raises:
        UserError: It has no scores yet, no checkpoint, or none of the scores that the paper's tables hold.
    """
    summary = _summary(folder)
    checkpoints = [folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    checkpoint = next((path for path in checkpoints if path.is_file()), None)
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint, which names its classes")
    metadata = read_metadata(checkpoint)
    if metadata.kind not in KINDS:
        raise UserError(f"{folder}: no table of the paper scores a {metadata.kind} model")
    table, metric, _ = KINDS[metadata.kind]
    if str(metadata.run["data"]["_target_"]).endswith(_DOGS):
        table = 10
    metrics = {f"within_{radius}km": f"{radius} km" for radius in RADII_KM} if not metric else {metric: ""}
    chosen: Epoch = epoch
    if epoch == "last" and f"val/{next(iter(metrics))}" not in summary["last"]:
        chosen = "best"  # the last epoch was not validated
    row = summary[chosen] or {}
    if missing := [name for name in metrics if not _is_score(row.get(f"val/{name}"))]:
        raise UserError(f"{folder} was not scored by {missing[0]}")
    common: dict[str, Any] = {
        "table": table,
        "words": model_words(metadata),
        "data": data or _data_name(metadata),
        "note": _note(metadata, summary, chosen),
        "command": folder.name,
        "seed": int(metadata.run["seed"]),
        "minutes": _minutes(folder),
    }
    records = [Record(metric=name, value=float(row[f"val/{name}"]), row=of, **common) for name, of in metrics.items()]
    return Run(folder, tuple(records), metadata.model)


def _is_score(value: Any) -> bool:
    """Whether it is a fraction; nothing and NaN are none."""
    return isinstance(value, int | float) and 0 <= value <= 1


def model_words(metadata: Metadata) -> str:
    """Overrides that compose a model of the same cost without data.

    Only what differs from the classes' own defaults is named, beside the two knobs.
    """
    backbone, head = metadata.model["backbone"], metadata.model["head"]
    task = KINDS[metadata.kind][2]
    if head.get("lite"):
        task = "ssdlite_coco"
    words = [f"task={task}", f"backbone.alpha={backbone['alpha']}", f"backbone.resolution={backbone['resolution']}"]
    defaults = signature(MobileNetV1).parameters
    for key in _BACKBONE_KEYS:
        value = backbone.get(key, defaults[key].default)
        # The task of embeddings has a stride of its own.
        if value != defaults[key].default or (key == "stem_stride" and metadata.kind == "face_embeddings"):
            words.append(f"backbone.{key}={value}")
    words += [f"head.{key}={_literal(head[key])}" for key in _HEAD_KEYS if key in head]
    return " ".join(words)


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder} has no metrics.json: no epoch of it has ended") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    last, best = (summary.get("last"), summary.get("best")) if isinstance(summary, dict) else (None, None)
    if not isinstance(last, Mapping) or not isinstance(last.get("epoch"), int) or not isinstance(best or {}, Mapping):
        raise UserError(f"{path} is not as tools/train.py writes it: it lacks the last or the best epoch")
    return summary


def _data_name(metadata: Metadata) -> str:
    name = Path(str(metadata.run["data"].get("root", ""))).name or "unnamed pictures"
    of = {"classification": "classes", "geolocation": "cells"}.get(metadata.kind)
    return f"{name}, {len(metadata.class_names)} {of}" if of else name


def _note(metadata: Metadata, summary: Mapping[str, Any], chosen: str) -> str:
    run = metadata.run
    epochs, planned = int(summary["last"]["epoch"]) + 1, run["trainer"]["max_epochs"]
    parts = [f"{epochs} epoch{'s' * (epochs != 1)}" if epochs == planned else f"{epochs} of {planned} epochs"]
    start = run["backbone"].get("pretrained") or run.get("init_from")
    parts.append(f"from {Path(str(start)).name}" if start else "from scratch")
    if run.get("teacher"):
        parts.append("with a teacher")
    if chosen == "best":
        parts.append("score of the best epoch")
    return ", ".join(parts)


def _minutes(folder: Path) -> float | None:
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return round(sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60, 1)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no usable column seconds: {error}") from None
