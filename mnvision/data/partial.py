"""Several heads on the same pictures, of which any may lack labels of any head."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.detection_dataset import DetectionDataset
from mnvision.data.index import DataReport
from mnvision.data.joint import HeadsDataModule, named
from mnvision.data.loaders import TrainLoader, check_loader_arguments, train_loader
from mnvision.data.partial_augment import gentlest
from mnvision.data.partial_dataset import (
    NO_PICTURE,
    BoxLabels,
    HeadLabels,
    MixedSampler,
    PartialCollate,
    PartialDataset,
    PictureLabels,
)
from mnvision.data.partial_pictures import HeadFiles, SharedPictures, files_of, share_pictures
from mnvision.data.pictures import PictureSample, Split
from mnvision.data.shards import ShardSource
from mnvision.errors import UserError
from mnvision.transforms.classification import make_classification_augment
from mnvision.transforms.framing import CenterCrop, Framing, Stretch

log = logging.getLogger(__name__)

_APART = "or let every head read its own pictures: multitask.same_pictures=false"
_LEAST_ROWS = 2


class PartialLabelsDataModule(HeadsDataModule):
    """Joint batches of pictures that carry labels of several heads.

    The heads' data modules say, each in its own format, which pictures have which labels: a COCO file for some of
    them, a table of attributes for others, a list of identities. Pictures are told by their files. Each is read,
    decoded and augmented once, and is a row of every head that it has labels of; a batch has all heads in their
    shares. Unknown attributes stay unknown (-1).

    Not trained on, and counted: pictures that any head is evaluated on, and pictures without any label. Every head is
    evaluated by its own data module.

    Args:
        data: Head -> its data module, in the order of the model's heads.
        augment: What happens to a picture: True, False or a mapping of
            :class:`~mnvision.transforms.classification.ClassificationAugment` arguments, area and proportions being
            relative to the picture's; None is as gentle as the gentlest of the heads' own augmentations, see
            :func:`~mnvision.data.partial_augment.gentlest`.
        batch_size: Pictures of a batch, per process; None takes the largest of the heads'.
        num_workers: Worker processes; None takes the most of the heads'.
        seed: Seed of order and augmentation.
        together: All pictures pass through the trunk together; otherwise those of each head alone.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        augment: bool | Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        together: bool = True,
    ) -> None:
        super().__init__(data, together)
        self.batch_size = max(own.batch_size for own in self.data.values()) if batch_size is None else batch_size
        self.num_workers = max(own.num_workers for own in self.data.values()) if num_workers is None else num_workers
        check_loader_arguments(self.batch_size, self.num_workers, seed)
        self.augment = gentlest(self._own_augments()) if augment is None else make_classification_augment(augment)
        self.seed = seed
        self.resolution = self._resolution()
        for name, own in self.data.items():
            if getattr(own, "sampling", "shuffle") == "identities":
                raise UserError(
                    f"{name}.data.sampling=identities makes batches of its own pictures: set it to shuffle, {_APART}"
                )

    @cached_property
    def pictures(self) -> SharedPictures:
        """The training pictures of all heads, listed on first use.

        Raises:
            UserError: A data set is missing or malformed, its pictures are no files, or none is left.
        """
        self._framing()  # refuses heads that cannot share pictures, before these are listed
        heads = {name: self._files(name) for name in self.data}
        pictures = share_pictures(heads, [_folder(own.train_dataset(None)) for own in self.data.values()])
        log.info(pictures.report.summary())
        log.info(pictures.describe())
        if len(self.data) > 1 and ((pictures.rows >= 0).sum(axis=1) == 1).all():
            log.warning("no picture has labels of two heads: do their data sets name the same files?")
        self._check_shares(pictures)
        return pictures

    def reports(self) -> dict[str, DataReport]:
        """What was found in the splits read so far, by "head/split", and in the shared pictures."""
        shared = {"train": self.pictures.report} if "pictures" in self.__dict__ else {}
        return {**super().reports(), **shared}

    def num_images(self, split: Split) -> int:
        """Pictures in a split; those of training counted once."""
        return len(self.pictures) if split == "train" else super().num_images(split)

    @property
    def whole_steps(self) -> bool:
        """Whether every training step has pictures of every head: where every picture has labels of all."""
        return bool((self.pictures.rows >= 0).all())

    def train_dataloader(self) -> TrainLoader:
        """Augmented joint batches, shuffled."""
        heads, framing = {name: self._labels(name) for name in self.data}, self._framing()
        dataset = PartialDataset(self.pictures, heads, self.resolution, framing, self.augment, self.seed)
        sampler = MixedSampler(self.pictures.kinds(), self.seed)
        collate = PartialCollate(heads, self.together)
        return train_loader(dataset, self.batch_size, self.num_workers, collate, self.seed, sampler=sampler)

    def _files(self, name: str) -> HeadFiles:
        data = self.data[name]
        with named(name):
            train = data.train_dataset(None)
            if isinstance(getattr(train, "source", None), ShardSource):
                raise UserError(f"pictures in shards are no files that other heads could have labels of; {_APART}")
            evaluated = files_of(data.eval_dataset("val", None))
        try:
            evaluated += files_of(data.eval_dataset("test", None))
        except UserError as error:  # most sets have no test split
            log.debug("%s: %s", name, error)
        return HeadFiles(files_of(train), _known(train, data.labelled), frozenset(evaluated))

    def _labels(self, name: str) -> HeadLabels:
        data, view = self.data[name], self.data[name].teacher_view
        if view is not None and (view.outputs is not None or view.views is not None):
            raise UserError(
                f"{name}: a teacher's stored answers are to other views than those of shared pictures: let it run "
                f"({name}.teacher.cache=false), {_APART}"
            )
        size, dataset = None if view is None else view.resolution, data.train_dataset(None)
        if isinstance(dataset, DetectionDataset):
            return BoxLabels(dataset, size)
        return PictureLabels(dataset, data.collate, size)

    def _framing(self) -> Framing:
        """The one that all heads train with.

        Raises:
            UserError: They differ.
        """
        framings = {name: _plane_of(own.train_dataset(None)) for name, own in self.data.items()}
        (first, reference), *others = framings.items()
        for name, framing in others:
            if framing.to_dict() != reference.to_dict():
                laid_out = (own for own in (first, name) if not isinstance(framings[own], Stretch))
                remedy = " ".join(f"{own}.data.framing='{{resize: stretch}}'" for own in laid_out)
                raise UserError(
                    f"{first} and {name} cannot share pictures: {first} shows them by {reference.to_dict()}, {name} by "
                    f"{framing.to_dict()}; set {remedy}, {_APART}"
                )
        return reference

    def _resolution(self) -> tuple[int, int]:
        (first, size), *others = ((name, own.resolution) for name, own in self.data.items())
        for name, other in others:
            if other != size:
                raise UserError(
                    f"{first} and {name} cannot share pictures: {first} takes {size[1]} x {size[0]} pixels, {name} "
                    f"{other[1]} x {other[0]}; set backbone.resolution for all, {_APART}"
                )
        resolution: tuple[int, int] = size
        return resolution

    def _own_augments(self) -> dict[str, Any]:
        return {name: own.augment for name, own in self.data.items()}

    def _check_shares(self, pictures: SharedPictures) -> None:
        """Refuses batches in which a head would hardly ever have pictures."""
        counts = (pictures.rows >= 0).sum(axis=0)
        name, count = pictures.heads[int(counts.argmin())], int(counts.min())
        rows = self.batch_size * count / len(pictures)
        if not count:
            raise UserError(f"none of {len(pictures)} pictures has a label of {name}")
        if rows < _LEAST_ROWS:
            raise UserError(
                f"{count} of {len(pictures)} pictures have labels of {name}: {rows:.2g} of a batch of "
                f"{self.batch_size}; raise multitask.pictures.batch_size to "
                f"{-(-_LEAST_ROWS * len(pictures) // count)} or more, {_APART}"
            )


def _known(dataset: Any, labelled: bool) -> NDArray[np.bool_]:
    """Which pictures of a data set have a label; annotated pictures without objects do. All where a teacher has."""
    if not labelled or isinstance(dataset, DetectionDataset):
        return np.ones(len(dataset), np.bool_)
    views = (PictureSample(NO_PICTURE, position) for position in range(len(dataset)))
    return np.array([_has_label(dataset.labelled(view)) for view in views], np.bool_)


def _has_label(sample: Any) -> bool:
    label = sample.labels if hasattr(sample, "labels") else sample.label
    return bool(np.max(label) >= 0)


def _folder(dataset: Any) -> Path:
    folder: Path = dataset.index.image_dir if isinstance(dataset, DetectionDataset) else dataset.source.folder
    return folder


def _plane_of(dataset: Any) -> Framing:
    """How a data set lays pictures out in training; crops anywhere in a picture are crops of the whole picture."""
    framing: Framing = Stretch() if isinstance(dataset, DetectionDataset) else dataset.views.framing
    return Stretch() if isinstance(framing, CenterCrop) else framing
