"""What all data sets of whole pictures share: one crop of one picture, for the student and for its teacher."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mnvision.data.decoding import SampleDecoder
from mnvision.data.images import ImageSource
from mnvision.data.index import DataReport
from mnvision.data.loaders import (
    SampleKey,
    check_loader_arguments,
    eval_loader,
    planes,
    train_loader,
)
from mnvision.data.picture_views import PictureViews, View
from mnvision.data.teacher_view import TeacherView, teacher_fields
from mnvision.transforms.classification import ClassificationAugment, make_classification_augment
from mnvision.transforms.framing import Framing
from mnvision.transforms.resize import as_resolution

Split = Literal["train", "val", "test"]

log = logging.getLogger(__name__)


class PictureSource(Protocol):
    """Where the pictures of one split lie; data sets add what is known of them."""

    @property
    def report(self) -> DataReport:
        """What was found while the split was listed."""
        ...

    def __len__(self) -> int: ...

    def path(self, position: int) -> Path:
        """File of one picture."""
        ...

    def landmarks(self, position: int) -> NDArray[np.float64] | None:
        """``(5, 2)`` x and y in the original picture's pixels, where known; or what else the framing goes by."""
        ...


Source = TypeVar("Source", bound=PictureSource)
Sample = TypeVar("Sample")


class PictureSample(NamedTuple):
    """One view of one picture.

    Attributes:
        image: ``(3, H, W)`` uint8 RGB.
        position: Of the picture in its data set.
        teacher_image: ``(3, h, w)`` uint8 RGB, the same view for a teacher that runs now.
        teacher_outputs: Its stored answers by name, float16.
    """

    image: Tensor
    position: int
    teacher_image: Tensor | None = None
    teacher_outputs: Mapping[str, NDArray[np.float16]] | None = None


class PictureDataset(Dataset[Sample], Generic[Source, Sample]):
    """Pictures at one resolution: random views with an augmentation, the framing's fixed view without.

    Args:
        source: The pictures.
        resolution: Height and width of the network's input.
        framing: How pictures are laid out.
        augment: What happens at random; None for evaluation.
        seed: Seed of the augmentation.
        teacher: How a teacher takes part, if one does.
    """

    def __init__(
        self,
        source: Source,
        resolution: tuple[int, int],
        framing: Framing,
        augment: ClassificationAugment | None = None,
        seed: int = 0,
        teacher: TeacherView | None = None,
    ) -> None:
        self.source, self.resolution, self.teacher = source, resolution, teacher
        self.views = PictureViews(resolution, framing, augment, seed)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """One sample; a plain position draws the augmentation of epoch 0.

        Raises:
            UserError: The file cannot be read.
        """
        return self.labelled(self.view(key))

    @abstractmethod
    def labelled(self, view: PictureSample) -> Sample:
        """A view of a picture with what is known of the picture."""

    def view(self, key: int | SampleKey) -> PictureSample:
        """The picture part of a sample."""
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        view, teacher, decoder = self._view(position, epoch), self.teacher, SampleDecoder()
        if teacher is None or teacher.outputs is not None:
            outputs = None if teacher is None or teacher.outputs is None else teacher.outputs.read(epoch, position)
            return PictureSample(planes(self.views.draw(view, decoder)), position, None, outputs)
        # Of a copy, so that the teacher's picture gets the very same distortion and takes no draw from the student's.
        copied = view._replace(rng=deepcopy(view.rng))
        image = self.views.draw(view, decoder)
        shown = self.views.draw_for_teacher(copied, teacher.resolution, decoder)
        return PictureSample(planes(image), position, planes(shown))

    def path(self, position: int) -> Path:
        """File of one picture."""
        return self.source.path(position)

    def picture(self, position: int) -> ImageSource:
        """What a picture is decoded from."""
        return self.source.path(position)

    def teacher_picture(self, key: int | SampleKey) -> Tensor:
        """``(3, h, w)`` uint8 RGB, what a teacher sees of a sample; needs a teacher view."""
        assert self.teacher is not None
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        view = self._view(position, epoch)
        return planes(self.views.draw_for_teacher(view, self.teacher.resolution, SampleDecoder()))

    def recipe(self) -> dict[str, Any]:
        """All that decides, beside the files' contents, what a teacher sees, as plain data."""
        return {**self.views.recipe(), "landmarks": self._landmarks_digest()}

    def _view(self, position: int, epoch: int) -> View:
        return self.views.view(self.picture(position), self.source.landmarks(position), position, epoch)

    def _landmarks_digest(self) -> str | None:
        """Of all landmarks; None where there are none."""
        digest, known = hashlib.blake2b(digest_size=16), False
        for position in range(len(self.source)):
            points = self.source.landmarks(position)
            known |= points is not None
            digest.update(b"-" if points is None else np.ascontiguousarray(points, np.float64).tobytes())
        return digest.hexdigest() if known else None


def collate_views(views: Sequence[PictureSample]) -> dict[str, Any]:
    """The fields of a batch that come from its pictures: images, indices and what a teacher adds."""
    return {
        "images": torch.stack([view.image for view in views]),
        "indices": torch.tensor([view.position for view in views], dtype=torch.int64),
        **teacher_fields(views),
    }


class PictureDataModule(pl.LightningDataModule, ABC, Generic[Source]):
    """Loaders over pictures; a data set adds how its splits are read and what a sample is.

    Args:
        root: Folder of the data set.
        framing: How pictures are laid out.
        resolution: Side of the network's input in pixels, or height and width.
        batch_size: Pictures of a training batch, per process.
        num_workers: Worker processes of each loader.
        augment: True for TF-slim's augmentation, False for none, or a mapping of
            :class:`~mnvision.transforms.classification.ClassificationAugment` arguments.
        eval_batch_size: Pictures of a batch in evaluation; ``batch_size`` when None.
        seed: Seed of order and augmentation.

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
        framing: Framing,
        resolution: int | tuple[int, int] = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        augment: bool | Mapping[str, Any] = True,
        eval_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        check_loader_arguments(batch_size, num_workers, seed)
        check_loader_arguments(eval_batch_size, num_workers, seed)
        self.root, self.framing, self.resolution = Path(root).expanduser(), framing, as_resolution(resolution)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augment, self.seed = make_classification_augment(augment), seed
        self.teacher_view: TeacherView | None = None
        self._sources: dict[Split, Source] = {}

    @abstractmethod
    def read(self, split: Split) -> Source:
        """Lists the pictures of one split; it may put others into ``_sources`` on the way."""

    @abstractmethod
    def dataset(
        self, source: Source, augment: ClassificationAugment | None, teacher: TeacherView | None
    ) -> PictureDataset[Source, Any]:
        """The data set over a split's pictures."""

    @property
    @abstractmethod
    def collate(self) -> Callable[..., Any]:
        """Samples to a batch."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names by label."""

    def source(self, split: Split) -> Source:
        """The pictures of one split, listed on first use.

        Raises:
            UserError: The data set is missing or malformed.
        """
        if split not in self._sources:
            self._sources[split] = self.read(split)
            log.info(self._sources[split].report.summary())
        return self._sources[split]

    def setup(self, stage: str) -> None:
        """Lists what a stage (fit, validate, test) needs."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in splits.get(stage, ()):
            self.source(split)

    @property
    def preprocess(self) -> dict[str, Any]:
        """How evaluation makes the network's input from a picture; stored in checkpoints."""
        return self.framing.to_dict()

    def reports(self) -> dict[str, DataReport]:
        """What was found in the splits read so far."""
        return {split: source.report for split, source in self._sources.items()}

    def notes(self, split: Split) -> list[str]:
        """What a reader of a split's scores should know; printed beside them."""
        return []

    def num_images(self, split: Split) -> int:
        """Pictures in a split."""
        return len(self.source(split))

    def train_dataset(self, teacher: TeacherView | None) -> PictureDataset[Source, Any]:
        """The augmented training pictures, with a teacher's part as asked for."""
        return self.dataset(self.source("train"), self.augment, teacher)

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented, shuffled batches."""
        view = self.teacher_view
        dataset, views = self.train_dataset(view), None if view is None else view.views
        return train_loader(dataset, self.batch_size, self.num_workers, self.collate, self.seed, views)

    def eval_dataset(self, split: Split, teacher: TeacherView | None) -> PictureDataset[Source, Any]:
        """A split's pictures without augmentation, with a teacher's part as asked for."""
        return self.dataset(self.source(split), None, teacher)

    def eval_dataloader(self, split: Split) -> DataLoader[Any]:
        """Every picture of any split once, without augmentation."""
        judged = None if self.labelled or self.teacher_view is None else self.teacher_view.for_evaluation()
        dataset = self.eval_dataset(split, judged)
        return eval_loader(dataset, self.eval_batch_size, self.num_workers, self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation picture once."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test picture once."""
        return self.eval_dataloader("test")
