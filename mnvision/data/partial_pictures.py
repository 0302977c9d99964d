"""Which pictures several heads' data sets share, and which labels each of them carries."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.index import MAX_EXAMPLES, DataReport, FindingCounter, encode_file_names
from mnvision.errors import UserError


@dataclass(frozen=True)
class HeadFiles:
    """What one head knows of files.

    Attributes:
        train: Files of its training pictures, by position.
        labelled: ``(len(train),)`` bool, those whose labels are known.
        evaluated: Files that it is validated or tested on.
    """

    train: Sequence[str]
    labelled: NDArray[np.bool_]
    evaluated: frozenset[str]


@dataclass(frozen=True)
class SharedPictures:
    """P pictures, each once, as arrays that workers share.

    Attributes:
        heads: H names.
        paths: ``(P,)`` file-system encoded bytes.
        rows: ``(P, H)`` int64, position of a picture in each head's own data set; -1 where it has no label of it.
        report: What was left out.
    """

    heads: tuple[str, ...]
    paths: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    report: DataReport

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, position: int) -> str:
        """File of one picture."""
        return os.fsdecode(bytes(self.paths[position]))

    def kinds(self) -> NDArray[np.int64]:
        """``(P,)``, equal where pictures carry labels of the same heads."""
        return np.asarray(np.unique(self.rows >= 0, axis=0, return_inverse=True)[1], np.int64).reshape(-1)

    def describe(self) -> str:
        """Such as "120 pictures with ssd and attributes, 40 with attributes"."""
        kinds, first, counts = np.unique(self.kinds(), return_index=True, return_counts=True)
        names = [
            " and ".join(head for head, row in zip(self.heads, self.rows[place]) if row >= 0)
            for place in first.tolist()
        ]
        parts = [f"{counts[kind]} with {names[kind]}" for kind in np.argsort(-counts, kind="stable")]
        return f"{len(self)} pictures: {', '.join(parts)}" if len(kinds) else "no pictures"


def files_of(dataset: Any) -> list[str]:
    """Files of a data set by position; links in their folders are followed, so that each file has one name."""
    folders: dict[str, str] = {}
    files = []
    for position in range(len(dataset)):
        folder, name = os.path.split(dataset.path(position))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        files.append(f"{folders[folder]}{os.sep}{name}")
    return files


def share_pictures(heads: Mapping[str, HeadFiles], folders: Iterable[Path]) -> SharedPictures:
    """Puts the training pictures of several heads together.

    Left out, and counted: pictures that any head is evaluated on, since the trunk would have seen them; second rows
    of one file; pictures in ``folders`` that no head has a label of.

    Args:
        heads: By name.
        folders: Where pictures without labels may lie.

    Raises:
        UserError: No picture is left.
    """
    found, rows = FindingCounter(), dict[str, list[int]]()
    evaluated = frozenset[str]().union(*(files.evaluated for files in heads.values()))
    held_out: Counter[str] = Counter()
    for number, (name, files) in enumerate(heads.items()):
        again = []
        for position in np.flatnonzero(files.labelled).tolist():
            file = files.train[position]
            if file in evaluated:
                held_out[file] += 1
                continue
            row = rows.setdefault(file, [-1] * len(heads))
            if row[number] >= 0:
                again.append(file)
            else:
                row[number] = position
        found.add(f"further rows of {name} for one file left out", again)
    found.add("training pictures that a head is evaluated on left out", list(held_out))
    bare = _unlabelled(folders, rows.keys() | evaluated)
    found.add("pictures without any label left out", bare[:MAX_EXAMPLES], len(bare))
    if not rows:
        raise UserError(f"no picture is left to train {', '.join(heads)} on: a head is evaluated on each of them")
    report = DataReport(f"pictures of {', '.join(heads)}", len(rows), None, found.findings())
    names = sorted(rows)  # the order must not depend on that of the heads
    return SharedPictures(tuple(heads), encode_file_names(names), np.array([rows[name] for name in names]), report)


def _unlabelled(folders: Iterable[Path], known: set[str]) -> list[str]:
    """Pictures in some folders that are not among the known ones, sorted."""
    found = set()
    for folder in {os.path.realpath(folder) for folder in folders}:
        for parent, children, files in os.walk(folder):
            children[:] = [name for name in children if not name.startswith(".")]
            for name in files:
                path = f"{parent}{os.sep}{name}"
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") and path not in known:
                    found.add(path)
    return sorted(found)
