"""Pictures of one class each, and image folders: one folder per class below ``train`` and ``val``, as in ImageNet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from mnvision.data.folder_index import FolderIndex, read_class_names, read_image_folder, split_index
from mnvision.data.pictures import PictureDataModule, PictureDataset, PictureSample, Split, collate_views
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import CENTRAL_CROP, CenterCrop
from mnvision.types import ClassificationBatch

IMAGENET_CLASSES = 1000


def imagenet_note(reason: str) -> str:
    """What to say beside scores on pictures that ImageNet holds too."""
    return (
        f"{reason}: weights or a teacher trained on ImageNet may have been trained on the pictures scored here, so "
        "their score may be too high"
    )


class ClassificationSample(NamedTuple):
    """One view of a picture and its label."""

    view: PictureSample
    label: int


class LabelledSample(Protocol):
    """What samples with one label have in common."""

    @property
    def view(self) -> PictureSample:
        """The picture."""
        ...

    @property
    def label(self) -> int:
        """Its class."""
        ...


class ImageFolderDataset(PictureDataset[FolderIndex, ClassificationSample]):
    """Pictures of a folder: random crops with an augmentation, the central crop without."""

    def labelled(self, view: PictureSample) -> ClassificationSample:
        """See :class:`~mnvision.data.pictures.PictureDataset`."""
        return ClassificationSample(view, int(self.source.labels[view.position]))


def collate_classification(samples: Sequence[LabelledSample]) -> ClassificationBatch:
    """Stacks samples."""
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    return {**collate_views([sample.view for sample in samples]), "labels": labels}  # type: ignore[typeddict-item]


class ClassificationDataModule(PictureDataModule[FolderIndex]):
    """Pictures of one class each. Arguments and errors as :class:`~mnvision.data.pictures.PictureDataModule`."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def collate(self) -> Callable[..., ClassificationBatch]:
        """Samples to a batch."""
        return collate_classification

    def dataset(
        self, source: FolderIndex, augment: ClassificationAugment | None, teacher: TeacherView | None
    ) -> ImageFolderDataset:
        """The data set over a split's pictures."""
        return ImageFolderDataset(source, self.resolution, self.framing, augment, self.seed, teacher)


class ImageFolderDataModule(ClassificationDataModule):
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
        super().__init__(root, CenterCrop(crop), resolution, batch_size, num_workers, augment, eval_batch_size, seed)
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        self.dirs: dict[Split, str | None] = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.val_fraction, self.class_names_file = val_fraction, class_names_file

    @property
    def class_names(self) -> list[str]:
        """Readable names by label, from the training split, or from the one that was read where that was not."""
        folders = self._any_source().class_folders
        return (
            list(folders) if self.class_names_file is None else read_class_names(Path(self.class_names_file), folders)
        )

    def notes(self, split: Split) -> list[str]:
        """Names a doubt about subsets of ImageNet, see :meth:`~mnvision.data.pictures.PictureDataModule.notes`."""
        folders = self._any_source().class_folders
        if len(folders) >= IMAGENET_CLASSES or not all(re.fullmatch(r"n\d{8}", name) for name in folders):
            return []
        return [imagenet_note("the classes' WordNet ids suggest that these pictures are taken from ImageNet")]

    def read(self, split: Split) -> FolderIndex:
        """Lists one split.

        Raises:
            UserError: The folder is missing or malformed, or holds classes that the training folder has not.
        """
        if not self.root.is_dir():
            raise UserError(
                f"data root not found: {self.root}; set data.root; expected "
                f"{self.dirs['train']}/<class>/*.jpg and {self.dirs['val']}/<class>/*.jpg "
                "below it (or data.val_fraction to split one folder)"
            )
        if split == "test" or (split == "val" and self.val_fraction is None):
            name = self.dirs[split]
            if name is None:
                raise UserError(f"no {split} split: give data.{split}_dir")
            # A set to evaluate on needs no training folder, and need not wait until that is listed.
            train = self._sources.get("train")
            return read_image_folder(self.root / name, None if train is None else train.class_folders)
        self._sources.clear()  # their labels may be other ones
        index = read_image_folder(self.root / str(self.dirs["train"]))
        if self.val_fraction is None:
            return index
        self._sources["train"], self._sources["val"] = split_index(index, self.val_fraction, self.seed)
        return self._sources[split]

    def _any_source(self) -> FolderIndex:
        return next(iter(self._sources.values())) if self._sources else self.source("train")
