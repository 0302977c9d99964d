"""The embedded default data: generated sets in COCO's format, as image folders, and in CelebA's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnvision.data.celeba import CelebaDataModule
from mnvision.data.coco import CocoDataModule
from mnvision.data.image_folder import ImageFolderDataModule
from mnvision.data.shapes_scene import SceneOptions
from mnvision.data.shapes_write import (
    GeneratedSet,
    generate,
    shapes_classes_job,
    shapes_job,
    shapes_portraits_job,
)


def write_shapes(
    root: str | Path,
    num_train: int = 2000,
    num_val: int = 400,
    seed: int = 0,
    options: SceneOptions | None = None,
    processes: int | None = None,
) -> Path:
    """Write the detection set in the official layout of COCO 2017, unless the cache holds it.

    The folder has ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json``; 12 classes
    whose category ids have gaps, boxes and areas of the visible masks (which are there as RLE), crowd
    regions, pictures without objects.

    Args:
        root: Cache folder; the data set becomes a folder in it, named by version and parameters.
        num_train: Training pictures. Fewer pictures are the first ones of a larger set.
        num_val: Validation pictures.
        seed: Of all pictures; not negative.
        options: Size, number and difficulty of what is drawn.
        processes: Generating processes, None for one per usable core; has no influence on the result.

    Returns:
        The data set's folder.

    Raises:
        UserError: A value is out of range or the cache cannot be written.
    """
    return generate(root, shapes_job(num_train, num_val, seed, options), processes)


def write_shapes_classes(
    root: str | Path,
    num_train: int = 2400,
    num_val: int = 480,
    seed: int = 0,
    options: SceneOptions | None = None,
    processes: int | None = None,
) -> Path:
    """Write the classification view, ``{train,val}/<class>/*.jpg`` with one object each, unless it is cached.

    Arguments, return value and errors are those of :func:`write_shapes`; all classes are equally frequent.
    """
    return generate(root, shapes_classes_job(num_train, num_val, seed, options), processes)


def write_shapes_portraits(
    root: str | Path,
    num_train: int = 1809,
    num_val: int = 351,
    seed: int = 0,
    options: SceneOptions | None = None,
    processes: int | None = None,
) -> Path:
    """Write the portraits view in CelebA's official layout, unless it is cached.

    Every picture shows one object of an identity (8 to 10 pictures each, no identity in two splits) with the
    attributes of :data:`~mnvision.data.shapes_portraits.ATTRIBUTES`. The folder has ``img_align_celeba/``,
    ``list_attr_celeba.txt``, ``list_eval_partition.txt``, ``identity_CelebA.txt``, ``list_landmarks_align_celeba.txt``,
    ``pairs.txt`` and, for the training and validation pictures, COCO's ``annotations/instances_{train,val}2017.json``.

    Arguments, return value and errors are those of :func:`write_shapes`; there are ``num_val`` test pictures too.
    """
    return generate(root, shapes_portraits_job(num_train, num_val, seed, options), processes)


class ShapesDataModule(GeneratedSet, CocoDataModule):
    """The generated detection set; ``prepare_data`` writes it once, then it is read as any COCO-format set.

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
        self, root: str | Path, num_train: int = 2000, num_val: int = 400, data_seed: int = 0, **common: Any
    ) -> None:
        folder = self.place(root, shapes_job(num_train, num_val, data_seed))
        super().__init__(folder, **common)


class ShapesClassificationDataModule(GeneratedSet, ImageFolderDataModule):
    """The generated classification set; ``prepare_data`` writes it once, then it is read as any image folder.

    Args:
        root: Cache folder that the data set becomes a folder in.
        num_train: Training pictures.
        num_val: Validation pictures.
        data_seed: Seed of the pictures (``seed`` is that of order and augmentation).
        **common: See :class:`~mnvision.data.image_folder.ImageFolderDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self, root: str | Path, num_train: int = 2400, num_val: int = 480, data_seed: int = 0, **common: Any
    ) -> None:
        folder = self.place(root, shapes_classes_job(num_train, num_val, data_seed))
        super().__init__(folder, **common)


class ShapesAttributesDataModule(GeneratedSet, CelebaDataModule):
    """The generated portraits with their attributes; ``prepare_data`` writes them once, then they are read as CelebA.

    Args:
        root: Cache folder that the data set becomes a folder in.
        framing: See :class:`~mnvision.data.attributes.AttributeDataModule`; None shows whole pictures.
        num_train: Training pictures.
        num_val: Validation pictures, and as many test pictures.
        data_seed: Seed of the pictures (``seed`` is that of order and augmentation).
        **common: See :class:`~mnvision.data.attributes.AttributeDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any] | None = None,
        num_train: int = 1809,
        num_val: int = 351,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        folder = self.place(root, shapes_portraits_job(num_train, num_val, data_seed))
        framing = {"resize": "stretch"} if framing is None else framing
        super().__init__(folder, framing, **common)
