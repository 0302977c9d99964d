"""What all data sets of whole pictures share: one crop of one picture, for the student and for its teacher."""

from __future__ import annotations

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
from mnvision.data.teacher_view import TeacherView
from mnvision.transforms.classification import ClassificationAugment, make_classification_augment
from mnvision.transforms.framing import Framing, Plane, show, shown_part
from mnvision.transforms.resize import as_resolution
from mnvision.transforms.windows import Pixels, Window

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
        """``(5, 2)`` x and y in the original picture's pixels, where known."""
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
        self.source, self.resolution, self.framing = source, resolution, framing
        self.augment, self.seed, self.teacher = augment, seed, teacher

    def __len__(self) -> int:
        return len(self.source)

    @abstractmethod
    def __getitem__(self, key: int | SampleKey) -> Sample:
        """One sample; a plain position draws the augmentation of epoch 0.

        Raises:
            UserError: The file cannot be read.
        """

    def view(self, key: int | SampleKey) -> PictureSample:
        """The picture part of a sample."""
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        path = self.source.path(position)
        rng, size = sample_rng(self.seed, epoch, position), image_size(path)
        plane = self.framing.plane(size, self.source.landmarks(position))
        window = None if self.augment is None else self.augment.window(rng, plane.size)
        # A copy, so that the teacher's picture gets the very same distortion and takes no draw from the student's.
        teachers_rng = deepcopy(rng)
        image = self._draw(path, size, plane, window, self.resolution, rng)
        teacher = self.teacher
        if teacher is None:
            return PictureSample(planes(image), position)
        if teacher.outputs is not None:
            return PictureSample(planes(image), position, None, teacher.outputs.read(epoch, position))
        shown = self._draw(path, size, plane, window, teacher.resolution, teachers_rng)
        return PictureSample(planes(image), position, planes(shown))

    def _draw(
        self,
        path: Path,
        size: tuple[int, int],
        plane: Plane,
        window: Window | None,
        resolution: tuple[int, int],
        rng: np.random.Generator,
    ) -> Pixels:
        """One view at one resolution; what it shows does not depend on any other resolution."""
        window = self.framing.eval_window(plane.size, resolution) if window is None else window
        decoded = read_image(path, min_decode_size(size, shown_part(plane, window), resolution))
        image = show(decoded.pixels, size, plane, window, resolution)
        return image if self.augment is None else self.augment.distort(rng, image)


def collate_views(views: Sequence[PictureSample]) -> dict[str, Any]:
    """The fields of a batch that come from its pictures: images, indices and what a teacher adds."""
    batch: dict[str, Any] = {
        "images": torch.stack([view.image for view in views]),
        "indices": torch.tensor([view.position for view in views], dtype=torch.int64),
    }
    teacher_images = [view.teacher_image for view in views if view.teacher_image is not None]
    if teacher_images:
        batch["teacher_images"] = torch.stack(teacher_images)
    outputs = [view.teacher_outputs for view in views if view.teacher_outputs is not None]
    if outputs:
        batch["teacher_outputs"] = {
            name: torch.from_numpy(np.stack([output[name] for output in outputs])) for name in outputs[0]
        }
    return batch


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
        teacher_view: Set before the loaders are made, it lets a teacher take part in training.
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

    def eval_dataloader(self, split: Split) -> DataLoader[Any]:
        """Every picture of any split once, without augmentation."""
        dataset = self.dataset(self.source(split), None, None)
        return eval_loader(dataset, self.eval_batch_size, self.num_workers, self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation picture once."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test picture once."""
        return self.eval_dataloader("test")
