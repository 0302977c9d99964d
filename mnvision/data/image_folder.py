"""Image folders for classification: one folder per class below ``train`` and ``val``, as in ImageNet."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mnvision.data.folder_index import FolderIndex, read_class_names, read_image_folder, split_index
from mnvision.data.images import image_size, min_decode_size, read_image
from mnvision.data.index import DataReport
from mnvision.data.loaders import (
    SampleKey,
    check_loader_arguments,
    eval_loader,
    planes,
    sample_rng,
    train_loader,
)
from mnvision.errors import UserError
from mnvision.transforms.classification import (
    CENTRAL_CROP,
    ClassificationAugment,
    center_crop_window,
    check_crop,
    make_classification_augment,
)
from mnvision.transforms.resize import as_resolution
from mnvision.transforms.windows import render
from mnvision.types import ClassificationBatch

Split = Literal["train", "val", "test"]

log = logging.getLogger(__name__)


class ClassificationSample(NamedTuple):
    """One picture ``(3, H, W)`` uint8 RGB, its label and its position in the data set."""

    image: Tensor
    label: int
    position: int


class ImageFolderDataset(Dataset[ClassificationSample]):
    """Pictures of a folder at one resolution: random crops with an augmentation, the central crop without.

    Args:
        index: Files and labels.
        resolution: Height and width of the network's input.
        augment: What happens at random; None for evaluation.
        crop: Central part shown in evaluation, see :func:`center_crop_window`.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        index: FolderIndex,
        resolution: tuple[int, int],
        augment: ClassificationAugment | None = None,
        crop: float = CENTRAL_CROP,
        seed: int = 0,
    ) -> None:
        self.index, self.resolution, self.augment, self.crop, self.seed = (
            index,
            resolution,
            augment,
            crop,
            seed,
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | SampleKey) -> ClassificationSample:
        """One sample; a plain position draws the augmentation of epoch 0.

        Raises:
            UserError: The file cannot be read.
        """
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        path = self.index.path(position)
        rng, size = sample_rng(self.seed, epoch, position), image_size(path)
        if self.augment is None:
            window = center_crop_window(size, self.resolution, self.crop)
        else:
            window = self.augment.window(rng, size)
        part = (window.y1 - window.y0, window.x1 - window.x0)
        decoded = read_image(path, min_decode_size(size, part, self.resolution))
        image, _ = render(decoded.pixels, size, window, self.resolution)
        if self.augment is not None:
            image = self.augment.distort(rng, image)
        return ClassificationSample(planes(image), int(self.index.labels[position]), position)


def collate_classification(samples: Sequence[ClassificationSample]) -> ClassificationBatch:
    """Stacks samples."""
    return {
        "images": torch.stack([sample.image for sample in samples]),
        "labels": torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        "indices": torch.tensor([sample.position for sample in samples], dtype=torch.int64),
    }


class ImageFolderDataModule(pl.LightningDataModule):
    """Classification from folders: ``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``.

    ImageNet in its usual layout (``train/n01440764/...``, ``val/n01440764/...``) is such a set.

    Args:
        root: Folder of the data set.
        resolution: Side of the network's input in pixels, or height and width.
        batch_size: Pictures of a training batch, per process.
        num_workers: Worker processes of each loader.
        augment: True for TF-slim's augmentation, False for none, or a mapping of
            :class:`~mnvision.transforms.classification.ClassificationAugment` arguments.
        eval_batch_size: Pictures of a batch in evaluation; ``batch_size`` when None.
        seed: Seed of order, augmentation and split.
        train_dir: Folder of the training images below ``root``; ``.`` for ``root`` itself.
        val_dir: Folder of the validation images; not used with ``val_fraction``.
        test_dir: Folder of the test images; None where there is no test split.
        val_fraction: Share of the training folder to validate on, for a set without a validation folder.
        class_names_file: Text file with a folder name and a readable name on each line, such as ImageNet's
            ``LOC_synset_mapping.txt``; None takes the folder names.
        crop: Central part shown in evaluation, in (0, 1].

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int | tuple[int, int] = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        augment: bool | Mapping[str, Any] = True,
        eval_batch_size: int | None = None,
        seed: int = 0,
        train_dir: str = "train",
        val_dir: str = "val",
        test_dir: str | None = None,
        val_fraction: float | None = None,
        class_names_file: str | Path | None = None,
        crop: float = CENTRAL_CROP,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        check_loader_arguments(batch_size, num_workers, seed)
        check_loader_arguments(eval_batch_size, num_workers, seed)
        check_crop(crop)
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        self.root, self.resolution = Path(root).expanduser(), as_resolution(resolution)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augment, self.seed, self.crop = make_classification_augment(augment), seed, crop
        self.dirs: dict[Split, str | None] = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.val_fraction, self.class_names_file = val_fraction, class_names_file
        self._indices: dict[Split, FolderIndex] = {}

    def index(self, split: Split) -> FolderIndex:
        """Files and labels of one split, listed on first use.

        Raises:
            UserError: The folder is missing or malformed, or holds classes that the training folder has not.
        """
        if split not in self._indices:
            self._read(split)
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Lists what a stage (fit, validate, test) needs."""
        splits: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
        }
        for split in splits.get(stage, ()):
            self.index(split)

    @property
    def class_names(self) -> list[str]:
        """Readable names by label, from the training split, or from the one that was read where that was not."""
        folders = self._any_index().class_folders
        return (
            list(folders) if self.class_names_file is None else read_class_names(Path(self.class_names_file), folders)
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._any_index().class_folders)

    def reports(self) -> dict[str, DataReport]:
        """What was found in the splits read so far."""
        return {split: index.report for split, index in self._indices.items()}

    def train_dataloader(self) -> DataLoader[ClassificationBatch]:
        """Augmented, shuffled :class:`~mnvision.types.ClassificationBatch` es."""
        dataset = ImageFolderDataset(self.index("train"), self.resolution, self.augment, self.crop, self.seed)
        return train_loader(dataset, self.batch_size, self.num_workers, collate_classification, self.seed)

    @property
    def preprocess(self) -> dict[str, Any]:
        """How evaluation makes the network's input from a picture; stored in checkpoints."""
        return {"resize": "center_crop", "crop_fraction": self.crop}

    def num_images(self, split: Split) -> int:
        """Pictures in a split."""
        return len(self.index(split))

    def eval_dataloader(self, split: Split) -> DataLoader[ClassificationBatch]:
        """Every picture of any split once, without augmentation."""
        return self._eval_loader(split)

    def val_dataloader(self) -> DataLoader[ClassificationBatch]:
        """Every validation picture once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[ClassificationBatch]:
        """Every test picture once."""
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> DataLoader[ClassificationBatch]:
        dataset = ImageFolderDataset(self.index(split), self.resolution, crop=self.crop)
        return eval_loader(dataset, self.eval_batch_size, self.num_workers, collate_classification)

    def _read(self, split: Split) -> None:
        if not self.root.is_dir():
            raise UserError(
                f"data root not found: {self.root}; set data.root; expected "
                f"{self.dirs['train']}/<class>/*.jpg and {self.dirs['val']}/<class>/*.jpg "
                "below it (or data.val_fraction to split one folder)"
            )
        if split != "train" and not (split == "val" and self.val_fraction is not None):
            name = self.dirs[split]
            if name is None:
                raise UserError(f"no {split} split: give data.{split}_dir")
            # A set to evaluate on needs no training folder, and need not wait until that is listed.
            train = self._indices.get("train")
            known = None if train is None else train.class_folders
            self._keep(split, read_image_folder(self.root / name, known))
            return
        self._indices.clear()  # their labels may be other ones
        index = read_image_folder(self.root / str(self.dirs["train"]))
        if self.val_fraction is None:
            self._keep("train", index)
        else:
            train, val = split_index(index, self.val_fraction, self.seed)
            self._keep("train", train)
            self._keep("val", val)

    def _any_index(self) -> FolderIndex:
        return next(iter(self._indices.values())) if self._indices else self.index("train")

    def _keep(self, split: Split, index: FolderIndex) -> None:
        self._indices[split] = index
        log.info(index.report.summary())
