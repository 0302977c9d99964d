"""COCO annotation files as plain records, checked field by field."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.index import first_few
from mnvision.errors import UserError

Records = list[dict[str, Any]]

_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*\[[^"{}]*\]')
"""Polygons: brackets and numbers up to the last bracket before the next key. Quotes inside JSON strings are
escaped, so a text that holds these words cannot match."""


def load_coco_json(path: Path) -> dict[str, Records]:
    """Loads the three lists of a COCO annotation file, without its polygons.

    Polygons are four fifths of COCO's files and not used here; they are cut out before parsing, which
    saves most of its time and memory.

    Returns:
        ``images``, ``annotations`` and ``categories``.

    Raises:
        UserError: The file is missing, not JSON, or lacks one of the three.
    """
    data = _parse(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a COCO annotation file: its top level is not an object")
    lists: dict[str, Records] = {}
    for key in ("images", "annotations", "categories"):
        value = data.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UserError(f"{path} is not a COCO annotation file: '{key}' is missing or not a list of objects")
        lists[key] = value
    return lists


def column(records: Records, field: str, what: str, where: str) -> list[Any]:
    """One field of all records.

    Raises:
        UserError: A record lacks it.
    """
    try:
        return [record[field] for record in records]
    except KeyError:
        row = next(row for row, record in enumerate(records) if field not in record)
        name = records[row].get("id", f"number {row + 1}")
        raise UserError(f"{where}: {what} {name} has no '{field}'") from None


def integers(values: list[Any], what: str, where: str) -> NDArray[np.int64]:
    """Ids as int64; whole floats and strings of digits are taken for the number they show.

    Raises:
        UserError: A value is not a whole number.
    """
    if all(type(value) is int for value in values):
        try:
            return np.array(values, np.int64)
        except OverflowError:
            raise UserError(f"{where}: {what} beyond 64 bits; number them anew") from None
    numbers = []
    for value in values:
        try:
            number = int(value)
            whole = number == float(value) and not isinstance(value, bool)
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise UserError(f"{where}: {what} {value!r} is not a whole number; number them anew")
        numbers.append(number)
    return np.array(numbers, np.int64)


def check_unique(ids: NDArray[np.int64], what: str, where: str) -> None:
    """Refuses repeated ids.

    Raises:
        UserError: Ids occur more than once; the text names the first few.
    """
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        repeated = unique[counts > 1].tolist()
        raise UserError(f"{where}: {what} used more than once: {first_few(repeated)}; give each its own")


def read_categories(categories: Records, where: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names of the categories, by rising id.

    Raises:
        UserError: There are none, or ids or names repeat.
    """
    if not categories:
        raise UserError(f"{where}: 'categories' is empty; list every class with an id and a name")
    ids = integers(column(categories, "id", "category", where), "category id", where)
    names = [str(name) for name in column(categories, "name", "category", where)]
    check_unique(ids, "category id", where)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{where}: class name used by several categories: {first_few(repeated)}; merge or rename them")
    order = np.argsort(ids)
    return tuple(ids[order].tolist()), tuple(names[row] for row in order)


def read_objects(
    annotations: Records, image_ids: NDArray[np.int64], category_ids: tuple[int, ...], where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Image position, label, box (xyxy, as annotated), and crowd flag of each annotation.

    Raises:
        UserError: Annotation ids repeat, an image or category id is unknown, or a box is not four numbers.
    """
    with_id = [item["id"] for item in annotations if "id" in item]
    check_unique(integers(with_id, "annotation id", where), "annotation id", where)
    owners = integers(column(annotations, "image_id", "annotation", where), "image_id", where)
    kinds = integers(column(annotations, "category_id", "annotation", where), "category_id", where)
    rows, known = _positions(owners, image_ids)
    if not known.all():
        first = int(np.argmin(known))
        raise UserError(
            f"{where}: {int((~known).sum())} annotations name an image id that is not in 'images' "
            f"({annotation_name(annotations, first)}: image id {owners[first]}); remove it or add the image"
        )
    labels, known = _positions(kinds, np.array(category_ids, np.int64))
    if not known.all():
        raise UserError(
            f"{where}: category ids {first_few(np.unique(kinds[~known]).tolist())} are not in 'categories' "
            f"({annotation_name(annotations, int(np.argmin(known)))}); add them or remove their annotations"
        )
    bad_form = f"{where}: a bbox is not a list of four numbers x, y, width, height"
    annotated = column(annotations, "bbox", "annotation", where)
    try:
        boxes = np.array(annotated, np.float64)
    except (TypeError, ValueError):
        lengths = [isinstance(box, list) and len(box) == 4 for box in annotated]
        raise UserError(f"{bad_form} ({annotation_name(annotations, int(np.argmin(lengths)))})") from None
    boxes = boxes.reshape(-1, 4) if not len(boxes) else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"{bad_form} ({annotation_name(annotations, 0)})")
    xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    crowd = np.array([bool(item.get("iscrowd", 0)) for item in annotations], np.bool_)
    return rows, labels, xyxy, crowd


def annotation_name(annotations: Records, row: int) -> str:
    """What to call an annotation in a message."""
    return f"annotation {annotations[row].get('id', f'number {row + 1}')}"


@contextmanager
def collection_paused() -> Iterator[None]:
    """No cyclic garbage collection in this block.

    While millions of records are alive, each collection walks over all of them to find nothing.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _parse(path: Path) -> Any:
    try:
        return json.loads(_SEGMENTATION.sub(b'"segmentation":0', path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"annotation file not found: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read annotation file {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _positions(wanted: NDArray[np.int64], ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position of each wanted id in ``ids``, and whether it is there at all."""
    order = np.argsort(ids)
    slots = np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)
    rows = order[slots]
    return rows, ids[rows] == wanted
