"""Files of a plain folder, a part of them held out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnvision.data.folder_index import list_images
from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.index import DataReport, FindingCounter, encode_file_names
from mnvision.errors import UserError


@dataclass(frozen=True)
class UnlabelledIndex:
    """Files of one split.

    Attributes:
        folder: Folder that the file names are relative to.
        file_names: ``(I,)`` file-system encoded bytes.
        report: What was found.
    """

    folder: Path
    file_names: NDArray[np.bytes_]
    report: DataReport

    def __len__(self) -> int:
        return len(self.file_names)

    def path(self, position: int) -> Path:
        """Path of one picture."""
        return self.folder / os.fsdecode(bytes(self.file_names[position]))

    def landmarks(self, position: int) -> None:
        """Plain folders have none."""


def read_unlabelled(root: Path, split: str, val_fraction: float, seed: int) -> UnlabelledIndex:
    """Lists all pictures below a folder but for those of the other split; hidden files are left out.

    Args:
        root: The folder.
        split: "train" or "val".
        val_fraction: Share to validate on, between 0 and 1.
        seed: Seed of the split.

    Raises:
        UserError: The folder is missing or holds fewer than two pictures, or there is no such split.
    """
    if split not in ("train", "val"):
        raise UserError(f"pictures without labels have no {split} split, only train and val")
    if not root.is_dir():
        raise UserError(f"data root not found: {root}; set data.root to a folder of pictures")
    names, others = list_images(root, ".")
    if len(names) < 2:
        raise UserError(
            f"{root} holds {len(names)} images, two are the least (one to validate on; known endings: "
            f"{' '.join(IMAGE_SUFFIXES)})"
        )
    found = FindingCounter()
    found.add("files that are no images skipped", others)
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    rows = np.sort(order[:count] if split == "val" else order[count:])
    report = DataReport(f"{root} ({split} part, no labels)", len(rows), None, found.findings())
    return UnlabelledIndex(root, encode_file_names(names)[rows], report)
