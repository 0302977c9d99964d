"""The generated portraits as a detection set: the very pictures that attributes and identities are learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnvision.data.coco import CocoDataModule
from mnvision.data.shapes_worker import PORTRAIT_FOLDER
from mnvision.data.shapes_write import generate, shapes_folder, shapes_portraits_job


class ShapesPortraitsDataModule(CocoDataModule):
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
        self.job, self.cache = shapes_portraits_job(num_train, num_val, data_seed), Path(root).expanduser()
        folder, pictures = shapes_folder(self.cache, self.job), PORTRAIT_FOLDER
        super().__init__(folder, train_images=pictures, val_images=pictures, **common)

    def prepare_data(self) -> None:
        """Generates the pictures unless they are cached; Lightning calls it in one process of a node.

        Raises:
            UserError: The cache cannot be written.
        """
        generate(self.cache, self.job)
