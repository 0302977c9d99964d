"""The generated portraits as a detection set: the very pictures that attributes and identities are learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnvision.data.coco import CocoDataModule
from mnvision.data.shapes_worker import PORTRAIT_FOLDER
from mnvision.data.shapes_write import GeneratedSet, shapes_portraits_job


class ShapesPortraitsDataModule(GeneratedSet, CocoDataModule):
    """The generated portraits with boxes; ``prepare_data`` writes them once, then they are read as any COCO-format set.

    Args:
        root: Cache folder that the data set becomes a folder in.
        num_train: Training pictures.
        num_val: Validation pictures.
        data_seed: Seed of the pictures (``seed`` is that of order and augmentation).
        **common: See :class:`~mnvision.data.detection.DetectionDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self, root: str | Path, num_train: int = 1809, num_val: int = 351, data_seed: int = 0, **common: Any
    ) -> None:
        folder = self.place(root, shapes_portraits_job(num_train, num_val, data_seed))
        super().__init__(folder, train_images=PORTRAIT_FOLDER, val_images=PORTRAIT_FOLDER, **common)
