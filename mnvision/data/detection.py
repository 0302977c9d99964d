"""What all detection data modules share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from mnvision.data.detection_dataset import DetectionDataset, collate_detection
from mnvision.data.index import DataReport, DetectionIndex, check_same_categories
from mnvision.data.loaders import check_loader_arguments, eval_loader, train_loader
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from mnvision.transforms.detection import make_augment
from mnvision.transforms.resize import as_resolution
from mnvision.types import DetectionBatch

Split = Literal["train", "val", "test"]

log = logging.getLogger(__name__)


class DetectionDataModule(pl.LightningDataModule, ABC):
    """What every detection data set shares; a data set adds how its splits are read.

    Files are read once, when a split is first asked for; the training split only when it is needed.

    Args:
        root: Folder of the data set.
        resolution: Side of the network's input in pixels, or height and width.
        batch_size: Pictures of a training batch, per process.
        num_workers: Worker processes of each loader.
        augment: True for the SSD paper's augmentation, False for none, or a mapping of
            :class:`~mnvision.transforms.detection.DetectionAugment` arguments.
        eval_batch_size: Pictures of a batch in evaluation; ``batch_size`` when None.
        seed: Seed of order and augmentation.
        reduced_decoding: Decode large JPEGs at reduced scale where the resolution allows it.

    Attributes:
        teacher_view: Set before the loaders are made, it lets a teacher take part in training; in evaluation too
            where there are no labels.
        labelled: Whether there is anything to learn from but a teacher.

    Raises:
        UserError: A value is out of range.
    """

    labelled: bool = True

    def __init__(
        self,
        root: str | Path,
        resolution: int | tuple[int, int] = 300,
        batch_size: int = 32,
        num_workers: int = 4,
        augment: bool | Mapping[str, Any] = True,
        eval_batch_size: int | None = None,
        seed: int = 0,
        reduced_decoding: bool = True,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        check_loader_arguments(batch_size, num_workers, seed)
        check_loader_arguments(eval_batch_size, num_workers, seed)
        self.root, self.resolution = Path(root).expanduser(), as_resolution(resolution)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augment, self.seed, self.reduced_decoding = make_augment(augment), seed, reduced_decoding
        self.teacher_view: TeacherView | None = None
        self._indices: dict[Split, DetectionIndex] = {}

    @abstractmethod
    def read(self, split: Split) -> DetectionIndex:
        """Reads the annotations of one split from disk."""

    @abstractmethod
    def ground_truth(self, split: Split) -> dict[str, Any]:
        """COCO-format ground truth of one split, complete, for the evaluator.

        Returns:
            ``images`` (id, width, height, file_name), ``annotations`` (id >= 1, image_id, category_id, bbox
            xywh, area, iscrowd) and ``categories`` (id, name).
        """

    def index(self, split: Split) -> DetectionIndex:
        """The annotations of one split, read on first use."""
        if split not in self._indices:
            self._indices[split] = self.read(split)
            log.info(self._indices[split].report.summary())
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Reads what a stage (fit, validate, test) needs.

        Raises:
            UserError: A split is malformed, without objects to train on, or its categories differ from the
                training split's.
        """
        splits: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
        }
        for split in splits.get(stage, ()):
            index = self.index(split)
            if split == "train" and self.labelled and index.crowd.all():
                raise UserError(f"{index.report.source} has no usable box to train on")
            if split != "train" and "train" in self._indices:
                check_same_categories(self._indices["train"], index, split)

    @property
    def class_names(self) -> list[str]:
        """Names by label, from the training split, or from the one that was read where that was not."""
        return list(self._any_index().class_names)

    @property
    def category_ids(self) -> list[int]:
        """Category ids of the annotation file by label."""
        return list(self._any_index().category_ids)

    @property
    def num_classes(self) -> int:
        """Number of classes without background."""
        return len(self._any_index().class_names)

    def reports(self) -> dict[str, DataReport]:
        """What was found, skipped and clipped in the splits read so far."""
        return {split: index.report for split, index in self._indices.items()}

    def train_dataset(self, teacher: TeacherView | None) -> DetectionDataset:
        """The augmented training pictures, with a teacher's part as asked for."""
        index, augment = self.index("train"), self.augment
        return DetectionDataset(index, self.resolution, augment, self.seed, self.reduced_decoding, teacher)

    def eval_dataset(self, split: Split, teacher: TeacherView | None) -> DetectionDataset:
        """A split's pictures without augmentation, with a teacher's part as asked for."""
        reduced = self.reduced_decoding
        return DetectionDataset(self.index(split), self.resolution, reduced_decoding=reduced, teacher=teacher)

    def train_dataloader(self) -> DataLoader[DetectionBatch]:
        """Augmented, shuffled :class:`~mnvision.types.DetectionBatch` es."""
        view = self.teacher_view
        dataset, views = self.train_dataset(view), None if view is None else view.views
        return train_loader(dataset, self.batch_size, self.num_workers, collate_detection, self.seed, views)

    @property
    def preprocess(self) -> dict[str, Any]:
        """How evaluation makes the network's input from a picture; stored in checkpoints."""
        return {"resize": "stretch"}

    def num_images(self, split: Split) -> int:
        """Pictures in a split."""
        return len(self.index(split))

    def eval_dataloader(self, split: Split) -> DataLoader[DetectionBatch]:
        """Every picture of any split once, without augmentation."""
        return self._eval_loader(split)

    def val_dataloader(self) -> DataLoader[DetectionBatch]:
        """Every validation picture once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[DetectionBatch]:
        """Every test picture once."""
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> DataLoader[DetectionBatch]:
        judged = None if self.labelled or self.teacher_view is None else self.teacher_view.for_evaluation()
        dataset = self.eval_dataset(split, judged)
        return eval_loader(dataset, self.eval_batch_size, self.num_workers, collate_detection)

    def _any_index(self) -> DetectionIndex:
        return next(iter(self._indices.values())) if self._indices else self.index("train")
