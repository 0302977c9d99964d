"""CelebA's annotation files for generated portraits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.data.celeba_files import LANDMARK_COLUMNS, PARTITIONS
from mnvision.data.shapes_portraits import ATTRIBUTES

Record = dict[str, Any]


def write_celeba_files(folder: Path, records: Sequence[Record]) -> None:
    """Write attributes, partition, identities, landmarks and pairs, in the layout and with the padding of CelebA.

    ``pairs.txt`` is no file of CelebA: on each line two pictures and 1 (same identity) or 0, as many of each; both
    pictures are of the validation or both of the test split.

    Args:
        folder: Where to write.
        records: Those of all pictures, see :func:`~mnvision.data.shapes_worker.write_share`.

    Raises:
        OSError: A file cannot be written.
    """

    def write(name: str, head: str, fields: Callable[[Record], str]) -> None:
        lines = "".join(f"{record['image']['file_name']} {fields(record)}\n" for record in records)
        (folder / name).write_text(head + lines, encoding="utf-8")

    def attributes(record: Record) -> str:
        return " ".join(f"{1 if value else -1:2d}" for value in record["attributes"])

    def landmarks(record: Record) -> str:
        return " ".join(f"{round(value):4d}" for point in record["landmarks"] for value in point)

    count = f"{len(records)}\n"
    write("list_attr_celeba.txt", count + " ".join(ATTRIBUTES) + " \n", attributes)
    write("list_landmarks_align_celeba.txt", count + " ".join(LANDMARK_COLUMNS) + " \n", landmarks)
    write("list_eval_partition.txt", "", lambda record: str(PARTITIONS[record["split"]]))
    write("identity_CelebA.txt", "", lambda record: str(record["identity"]))
    pairs = [pair for split in ("val", "test") for pair in pairs_of([r for r in records if r["split"] == split])]
    text = "".join(f"{first} {second} {same}\n" for first, second, same in pairs)
    (folder / "pairs.txt").write_text(text, encoding="utf-8")


def pairs_of(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    """Pairs of pictures for verification: file names, and 1 for the same identity, 0 for different ones.

    Each picture is paired with the next one of its identity, and for each of these pairs its first picture with one
    of somebody else, drawn with a seed of its own.
    """
    rng = np.random.default_rng(len(records))
    names = [record["image"]["file_name"] for record in records]
    identities = np.array([record["identity"] for record in records])
    pairs: list[tuple[str, str, int]] = []
    for first in range(len(records)):
        same = np.flatnonzero(identities == identities[first])
        later = same[same > first]
        others = np.flatnonzero(identities != identities[first])
        if len(later) and len(others):
            pairs.append((names[first], names[later[0]], 1))
            pairs.append((names[first], names[int(rng.choice(others))], 0))
    return pairs
