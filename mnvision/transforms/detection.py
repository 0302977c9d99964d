"""Detection augmentation: which window of the picture is shown, and how its colours are distorted.

Source: SSD, https://arxiv.org/abs/1512.02325, section 2.2, and the authors' Caffe release for the numbers
(probability 0.5 for zoom-out up to 4 times, brightness +-32, contrast and saturation 0.5-1.5, hue +-18
degrees; crops: one of seven options keeps the picture, the others ask for an IoU of 0 to 0.9).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import albumentations
import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.transforms import windows
from mnvision.transforms.colour import PhotometricDistort
from mnvision.transforms.ranges import check_options, check_pair, check_range
from mnvision.transforms.windows import Window


class DetectionAugment:
    """Everything random that happens to a training picture.

    Args:
        flip: Probability of mirroring left to right.
        zoom_out: Probability of showing the picture smaller on a canvas of the mean colour.
        max_zoom_out: Largest side of that canvas relative to the picture, >= 1.
        crop: Probability of cropping. The paper draws among seven options of which one keeps the picture.
        crop_min_ious: IoU with some object that a crop must have, one of these is drawn for each picture.
        crop_scale: Range of a crop's side relative to the picture's.
        crop_aspect: Range of a crop's width over height, relative to the picture's.
        brightness: See :class:`PhotometricDistort`, as the next three.
        contrast: Likewise.
        saturation: Likewise.
        hue: Likewise.
        mosaic: Probability of showing four pictures in one. Not in the paper.
        min_size: Objects with a side below this, in pixels of the network's input, are left out.
        extra: Further albumentations transforms that change pixels only, applied last.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        flip: float = 0.5,
        zoom_out: float = 0.5,
        max_zoom_out: float = 4.0,
        crop: float = 6 / 7,
        crop_min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_aspect: tuple[float, float] = (0.5, 2.0),
        brightness: float = 32.0,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 18.0,
        mosaic: float = 0.0,
        min_size: float = 1.0,
        extra: Sequence[albumentations.ImageOnlyTransform] = (),
    ) -> None:
        for name, value in (("flip", flip), ("zoom_out", zoom_out), ("crop", crop), ("mosaic", mosaic)):
            check_range(name, value, 0, 1)
        check_range("max_zoom_out", max_zoom_out, 1, 100)
        check_range("min_size", min_size, 0, 1000)
        check_pair("crop_scale", crop_scale, 0.01, 1.0)
        check_pair("crop_aspect", crop_aspect, 0.01, 100.0)
        if crop_aspect[0] > 1 or crop_aspect[1] < 1:
            raise UserError(f"augment.crop_aspect must contain 1, got {list(crop_aspect)}")
        if not crop_min_ious:
            raise UserError("augment.crop_min_ious is empty; set augment.crop=0 for no cropping")
        for value in crop_min_ious:
            check_range("crop_min_ious", value, 0, 1)
        self.flip, self.zoom_out, self.max_zoom_out = flip, zoom_out, max_zoom_out
        self.crop, self.crop_min_ious = crop, tuple(crop_min_ious)
        self.crop_scale, self.crop_aspect = (crop_scale[0], crop_scale[1]), (crop_aspect[0], crop_aspect[1])
        self.mosaic, self.min_size = mosaic, min_size
        self.colour = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.extra = tuple(extra)
        self._pixels = albumentations.Compose([PhotometricDistort(brightness, contrast, saturation, hue), *extra])

    def to_dict(self) -> dict[str, Any]:
        """The options as plain data: equal where equal streams draw the same."""
        return {
            "flip": float(self.flip),
            "zoom_out": float(self.zoom_out),
            "max_zoom_out": float(self.max_zoom_out),
            "crop": float(self.crop),
            "crop_min_ious": [float(value) for value in self.crop_min_ious],
            "crop_scale": [float(value) for value in self.crop_scale],
            "crop_aspect": [float(value) for value in self.crop_aspect],
            **{name: float(value) for name, value in self.colour.items()},
            "mosaic": float(self.mosaic),
            "min_size": float(self.min_size),
            "extra": [transform.to_dict() for transform in self.extra],
        }

    def window(self, rng: np.random.Generator, size: tuple[int, int], boxes: NDArray[np.float32]) -> Window:
        """Draws what is shown of a picture.

        Args:
            rng: Source of randomness.
            size: Height and width of the picture.
            boxes: Its objects without crowd regions, ``(N, 4)`` xyxy in its pixels.
        """
        window = windows.whole_picture(size)
        if rng.random() < self.zoom_out:
            window = windows.zoom_out(rng, window, self.max_zoom_out)
        if rng.random() < self.crop:
            window = windows.crop_by_iou(rng, window, boxes, self.crop_min_ious, self.crop_scale, self.crop_aspect)
        return window._replace(flip=bool(rng.random() < self.flip))

    def distort(self, rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Distorts the colours of a rendered picture ``(H, W, 3)`` uint8.

        The pipeline draws from ``rng`` and not from generators of its own: those would be copied into every
        worker and repeat themselves there.
        """
        self._pixels.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return np.asarray(self._pixels(image=image)["image"], np.uint8)


def make_augment(value: bool | Mapping[str, Any]) -> DetectionAugment | None:
    """The augmentation that a data module's ``augment`` argument names.

    Args:
        value: True for the paper's, False for none, or a mapping of :class:`DetectionAugment` arguments.

    Raises:
        UserError: An argument is unknown or out of range.
    """
    if isinstance(value, Mapping):
        check_options(value, list(signature(DetectionAugment).parameters))
        return DetectionAugment(**value)
    return DetectionAugment() if value else None
