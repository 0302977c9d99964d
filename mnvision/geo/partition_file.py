"""Partitions as files and as plain data, and the check of what is read."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.geo.cells import are_cells, centres, from_tokens, levels, ranges, vertices
from mnvision.geo.distance import great_circle_km
from mnvision.geo.partition import DECIMALS, Partition, PartitionSettings

VERSION = 1
_FORMAT = "mnvision.partition"
_ROUNDING_KM = 0.01  # positions are rounded and summed in steps of millimetres; far below any cell's size that matters


def about(partition: Partition) -> dict[str, Any]:
    """All but the arrays, as plain data."""
    return {
        "format": _FORMAT,
        "version": VERSION,
        "settings": asdict(partition.settings),
        "num_photos": partition.num_photos,
        "num_dropped": partition.num_dropped,
        "source": partition.source,
    }


def save_partition(partition: Partition, path: Path | str) -> None:
    """See :meth:`Partition.save`."""
    if Path(path).suffix != ".npz":
        raise UserError(f"{path}: a partition is written as .npz; give a name such as cells.npz")
    words = json.dumps(about(partition))
    with whole_file(path) as partial:
        np.savez_compressed(
            partial,
            about=np.array(words),
            cells=partition.cells,
            counts=partition.counts,
            positions=partition.positions,
        )


def load_partition(path: Path | str) -> Partition:
    """See :meth:`Partition.load`."""
    try:
        # numpy leaves a file that it opened itself open when it turns out to be damaged.
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("about", "cells", "counts", "positions")}
        words = json.loads(str(arrays.pop("about")))
    except FileNotFoundError:
        raise UserError(f"partition not found: {path}; make one with tools/partition.py") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the .npz file of a partition") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path} is no partition, or damaged; make one with tools/partition.py") from None
    try:
        return _checked(words, **arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_plain(data: Mapping[str, Any]) -> Partition:
    """See :meth:`Partition.from_dict`."""
    try:
        cells = from_tokens(list(data["cells"]))
        counts = np.array(data["counts"], np.int64)
        positions = np.array(data["positions"], np.float64).reshape(-1, 2)
    except (KeyError, TypeError, OverflowError) as error:
        raise UserError(f"this is no partition: {error} is missing or of a wrong type") from None
    except ValueError as error:
        raise UserError(f"this is no partition: {error}") from None
    return _checked(data, cells, counts, positions)


def _checked(
    words: Any, cells: NDArray[np.uint64], counts: NDArray[np.int64], positions: NDArray[np.float64]
) -> Partition:
    """A partition whose content can be right.

    Raises:
        UserError: It cannot be.
    """
    if not isinstance(words, Mapping) or words.get("format") != _FORMAT:
        raise UserError("this is no partition; make one with tools/partition.py")
    if words.get("version") != VERSION:
        raise UserError(f"the partition has version {words.get('version')}, this mnvision reads {VERSION}; update it")
    try:
        settings = PartitionSettings(**words["settings"])
        rest = (int(words["num_photos"]), int(words["num_dropped"]), str(words["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the partition says wrongly how it was built: {error}") from None
    partition = Partition(cells, counts, positions, settings, *rest)
    if problem := _flaw(partition):
        raise UserError(f"the partition is damaged: {problem}; make it again with tools/partition.py")
    for part in (cells, counts, positions):
        part.setflags(write=False)
    return partition


def _flaw(partition: Partition) -> str | None:
    """What cannot be right, in words."""
    cells, counts, positions = partition.cells, partition.counts, partition.positions
    size = cells.size
    typed = cells.dtype == np.uint64 and counts.dtype == np.int64 and positions.dtype == np.float64
    if not typed or (cells.ndim, counts.shape, positions.shape) != (1, (size,), (size, 2)):
        return "its arrays have the wrong shapes or types"
    if not size:
        return "it has no cells"
    if not are_cells(cells).all():
        return "some of its ids are no S2 cells"
    first, last = ranges(cells)
    if (first[1:] <= last[:-1]).any():
        return "its cells overlap or are not in order"
    return _flaw_of_numbers(partition)


def _flaw_of_numbers(partition: Partition) -> str | None:
    settings, counts, positions = partition.settings, partition.counts, partition.positions
    if (counts < settings.min_photos).any():
        return "a cell has fewer photos than were asked for"
    found = levels(partition.cells)
    if (found < settings.min_level).any() or (found > settings.max_level).any():
        return "a cell has a level that was not asked for"
    if int(counts.sum()) + partition.num_dropped != partition.num_photos or partition.num_dropped < 0:
        return "its photos do not add up"
    middle = centres(partition.cells)
    corners = vertices(partition.cells)
    radius = great_circle_km(corners[..., 0], corners[..., 1], middle[:, :1], middle[:, 1:]).max(axis=1)
    away = great_circle_km(positions[:, 0], positions[:, 1], middle[:, 0], middle[:, 1])
    if not (away <= radius + _ROUNDING_KM).all() or (np.abs(positions) > (90, 180)).any():
        return "a position lies outside its cell"
    if (np.round(positions, DECIMALS) != positions).any():
        return f"its positions are not rounded to {DECIMALS} decimals"
    return None
