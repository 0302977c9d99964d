"""A plain folder of pictures without labels: a teacher's answers are all there is to learn from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnvision.build import locate
from mnvision.data.detection import DetectionDataModule
from mnvision.data.images import image_size
from mnvision.data.index import DetectionIndex
from mnvision.data.pictures import PictureDataModule, PictureDataset, PictureSample, Split, collate_views
from mnvision.data.teacher_view import TeacherView
from mnvision.data.unlabelled_index import UnlabelledIndex, read_unlabelled
from mnvision.errors import UserError
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import framing_from_dict

NO_LABEL = -1

# Kind of model -> how its pictures are laid out, and what happens to them, where nobody says. Half of a face has other
# attributes than the whole.
_CENTRAL = {"resize": "center_crop", "crop_fraction": 0.875}
_FRAMINGS = {"classification": _CENTRAL, "geolocation": _CENTRAL}
_FACE_AUGMENT = {"area": (0.7, 1.0), "aspect": (0.85, 1.18), "flip": 0.5, "brightness": 24.0, "saturation": 0.3}
_SIZE_READERS = 8


class UnlabelledDataset(PictureDataset[UnlabelledIndex, PictureSample]):
    """Pictures, and nothing known of them."""

    def labelled(self, view: PictureSample) -> PictureSample:
        """See :class:`~mnvision.data.pictures.PictureDataset`."""
        return view


def collate_unlabelled(samples: Sequence[PictureSample], columns: int | None) -> dict[str, Any]:
    """Stacks samples; every label is -1.

    Args:
        samples: Of one batch, B of them.
        columns: None for labels ``(B,)`` int64, else their number for labels ``(B, columns)`` int8.
    """
    if columns is None:
        labels = torch.full((len(samples),), NO_LABEL, dtype=torch.int64)
    else:
        labels = torch.full((len(samples), columns), NO_LABEL, dtype=torch.int8)
    return {**collate_views(samples), "labels": labels}


class _TaughtClasses:
    """Classes or attributes that a teacher brings."""

    labelled = False
    root: Path
    _class_names: list[str] | None = None

    def adopt(self, class_names: Sequence[str]) -> None:
        """Take the teacher's classes or attributes, by label, for those of the data."""
        self._class_names = list(class_names)

    @property
    def class_names(self) -> list[str]:
        """The teacher's names by label; none for embeddings.

        Raises:
            UserError: There is no teacher.
        """
        if self._class_names is None:
            raise UserError(
                f"the pictures in {self.root} have no labels: give a teacher whose classes are learned, e.g. "
                "teacher=checkpoint teacher.path=best.ckpt"
            )
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes or attributes, without background."""
        return len(self.class_names)


class UnlabelledDataModule(_TaughtClasses, PictureDataModule[UnlabelledIndex]):
    """Batches without labels for models of classes, attributes and embeddings.

    Args:
        root: Folder of the pictures, with any folders inside.
        kind: Of the model that learns: "classification", "face_attributes", "face_embeddings" or "geolocation".
        val_fraction: Share to validate on, between 0 and 1.
        framing: How pictures are laid out, see :func:`~mnvision.transforms.framing.framing_from_dict`; None is the
            central 7/8 for classification and geolocation, and the whole picture for faces.
        augment: True for the usual augmentation of such pictures, False for none, or a mapping of
            :class:`~mnvision.transforms.classification.ClassificationAugment` arguments.
        **common: See :class:`~mnvision.data.pictures.PictureDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        kind: str,
        val_fraction: float = 0.1,
        framing: Mapping[str, Any] | None = None,
        augment: bool | Mapping[str, Any] = True,
        **common: Any,
    ) -> None:
        usual: bool | Mapping[str, Any] = True if kind in _FRAMINGS else _FACE_AUGMENT
        augment = usual if augment is True else augment
        framing = _FRAMINGS.get(kind, {"resize": "stretch"}) if framing is None else framing
        super().__init__(root, framing_from_dict(framing), augment=augment, **common)
        check_val_fraction(val_fraction)
        self.kind, self.val_fraction = kind, val_fraction
        self._class_names = [] if kind == "face_embeddings" else None

    @property
    def collate(self) -> Callable[..., dict[str, Any]]:
        """Samples to a batch."""
        columns = len(self.class_names) if self.kind == "face_attributes" else None
        return functools.partial(collate_unlabelled, columns=columns)

    def dataset(
        self, source: UnlabelledIndex, augment: ClassificationAugment | None, teacher: TeacherView | None
    ) -> UnlabelledDataset:
        """The data set over a split's pictures."""
        return UnlabelledDataset(source, self.resolution, self.framing, augment, self.seed, teacher)

    def read(self, split: Split) -> UnlabelledIndex:
        """Lists the folder; see :func:`read_unlabelled`."""
        return read_unlabelled(self.root, split, self.val_fraction, self.seed)


class UnlabelledDetectionDataModule(_TaughtClasses, DetectionDataModule):
    """Batches without boxes for detectors.

    Args:
        root: Folder of the pictures, with any folders inside.
        val_fraction: Share to validate on, between 0 and 1.
        **common: See :class:`~mnvision.data.detection.DetectionDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(self, root: str | Path, val_fraction: float = 0.1, **common: Any) -> None:
        super().__init__(root, **common)
        check_val_fraction(val_fraction)
        self.val_fraction = val_fraction

    @property
    def category_ids(self) -> list[int]:
        """Counted from 1."""
        return list(range(1, len(self.class_names) + 1))

    def read(self, split: Split) -> DetectionIndex:
        """Lists the folder, and reads the sizes of its pictures.

        Raises:
            UserError: As :func:`read_unlabelled`, or a file is no picture.
        """
        files = read_unlabelled(self.root, split, self.val_fraction, self.seed)
        with ThreadPoolExecutor(_SIZE_READERS) as pool:
            sizes = list(pool.map(image_size, (files.path(position) for position in range(len(files)))))
        return DetectionIndex(
            image_dir=files.folder,
            file_names=files.file_names,
            image_ids=np.arange(1, len(files) + 1),
            sizes=np.array(sizes, np.int32),
            box_offsets=np.zeros(len(files) + 1, np.int64),
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            crowd=np.zeros(0, np.bool_),
            class_names=(),
            category_ids=(),
            report=files.report,
        )

    def ground_truth(self, split: Split) -> dict[str, Any]:
        """See :class:`~mnvision.data.detection.DetectionDataModule`; without a single object."""
        index = self.index(split)
        images = [
            {"id": int(key), "width": int(width), "height": int(height), "file_name": index.file_name(row)}
            for row, (key, (height, width)) in enumerate(zip(index.image_ids, index.sizes))
        ]
        categories = [{"id": key, "name": name} for key, name in zip(self.category_ids, self.class_names)]
        return {"images": images, "annotations": [], "categories": categories}


def unlabelled_data(root: str | Path, model: str, **arguments: Any) -> Any:
    """The data module of a plain folder for whatever learns from it.

    Args:
        root: Folder of the pictures.
        model: Dotted path of the model that learns, e.g. ``mnvision.models.Detector``.
        **arguments: Of :class:`UnlabelledDataModule` or :class:`UnlabelledDetectionDataModule`.

    Raises:
        UserError: A value is out of range, or does not go with that kind of model.
    """
    kind = str(getattr(locate(model), "kind", ""))
    if kind != "detection":
        return UnlabelledDataModule(root, kind, **arguments)
    if arguments.pop("framing", None) is not None:
        raise UserError("data.framing: a detector is shown whole pictures; leave it out")
    return UnlabelledDetectionDataModule(root, **arguments)


def check_val_fraction(value: float) -> None:
    """Refuses a share outside 0 and 1.

    Raises:
        UserError: It is outside, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"data.val_fraction must lie between 0 and 1, got {value}")
