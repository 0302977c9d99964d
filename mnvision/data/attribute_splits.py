"""Which labelled picture belongs to which split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnvision.data.celeba_files import PARTITIONS
from mnvision.data.index import FindingCounter
from mnvision.data.pictures import Split
from mnvision.data.tables import FileTable
from mnvision.errors import UserError

SPLIT_NUMBERS: dict[Split, int] = {"train": PARTITIONS["train"], "val": PARTITIONS["val"], "test": PARTITIONS["test"]}
"""Split -> its number, as in CelebA's partition file."""

SPLIT_WORDS = {"train": 0, "training": 0, "0": 0, "val": 1, "valid": 1, "validation": 1, "1": 1, "test": 2, "2": 2}
"""What a column of splits may say."""


def splits_of(names: Sequence[str], partition: FileTable, found: FindingCounter) -> NDArray[np.int8]:
    """Split of each picture after a partition file.

    Args:
        names: The ``I`` labelled pictures.
        partition: Values ``(P,)`` int8, see :data:`SPLIT_NUMBERS`.
        found: Receives the pictures that only one of the two files names.

    Returns:
        ``(I,)`` int8; -1 for pictures that the partition does not name.
    """
    rows = partition.rows(names)
    found.add(
        "labelled pictures that the partition file does not name left out",
        [names[row] for row in np.flatnonzero(rows < 0).tolist()],
    )
    unused = np.setdiff1d(np.arange(len(partition)), rows)
    found.add(
        "pictures of the partition file without labels left out", [partition.file_names[row] for row in unused.tolist()]
    )
    return np.where(rows >= 0, partition.values[rows], -1).astype(np.int8)


def split_off(length: int, fraction: float, seed: int, groups: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """Chooses groups of pictures at random until they are a share of all.

    Args:
        length: Number of pictures ``I``.
        fraction: Share to choose, in (0, 1).
        seed: Of the choice.
        groups: ``(I,)``; pictures of one group stay together. None where each stands for itself.

    Returns:
        ``(I,)``, the chosen ones: at least one group, and not all.

    Raises:
        UserError: There are fewer than two groups.
    """
    inverse = np.arange(length) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(inverse)
    if len(sizes) < 2:
        raise UserError("data.val_fraction: there is nothing to split, as all pictures belong together")
    order = np.random.default_rng(seed).permutation(len(sizes))
    count = int(np.searchsorted(np.cumsum(sizes[order]), fraction * length)) + 1
    chosen = np.zeros(len(sizes), np.bool_)
    chosen[order[: min(count, len(sizes) - 1)]] = True
    return np.asarray(chosen[inverse])
