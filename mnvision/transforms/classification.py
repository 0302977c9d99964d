"""Classification: random resized crops for training, the central crop for evaluation and prediction.

Source: TF-slim's ImageNet preprocessing (``inception_preprocessing.py``, fast mode), with which the MobileNet
authors' released models were trained: crops of 5-100 % of the area at aspect ratios 0.75-1.33, mirrored half
of the time, brightness +-32/255, saturation 0.5-1.5; evaluation on the central 87.5 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.transforms.colour import colour_matrix
from mnvision.transforms.ranges import check_options, check_pair, check_range
from mnvision.transforms.windows import Window

_TRIALS = 10


class ClassificationAugment:
    """Everything random that happens to a training picture.

    Args:
        area: Range of the crop's area relative to the picture's.
        aspect: Range of the crop's width over height, in pixels, of a square input.
        flip: Probability of mirroring left to right.
        brightness: Largest shift in grey levels, 0-255.
        saturation: Factors lie in ``1 - saturation .. 1 + saturation``, 0-1.
        extra: Further albumentations transforms that change pixels only, applied last.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        area: tuple[float, float] = (0.05, 1.0),
        aspect: tuple[float, float] = (0.75, 4 / 3),
        flip: float = 0.5,
        brightness: float = 32.0,
        saturation: float = 0.5,
        extra: Sequence[albumentations.ImageOnlyTransform] = (),
    ) -> None:
        check_pair("area", area, 0.001, 1.0)
        check_pair("aspect", aspect, 0.01, 100.0)
        check_range("flip", flip, 0, 1)
        check_range("brightness", brightness, 0, 255)
        check_range("saturation", saturation, 0, 1)
        self.area, self.aspect, self.flip = (area[0], area[1]), (aspect[0], aspect[1]), flip
        self.brightness, self.saturation = brightness, saturation
        self._extra = albumentations.Compose(list(extra)) if extra else None

    def to_dict(self) -> dict[str, Any]:
        """The options as plain data: equal where equal streams draw the same."""
        return {
            "area": [float(value) for value in self.area],
            "aspect": [float(value) for value in self.aspect],
            "flip": float(self.flip),
            "brightness": float(self.brightness),
            "saturation": float(self.saturation),
            "extra": None if self._extra is None else self._extra.to_dict(),
        }

    def window(self, rng: np.random.Generator, size: tuple[int, int]) -> Window:
        """Draws the part of a picture of height and width ``size`` that is shown.

        When none of ten draws fits into the picture, it is the largest central part of an allowed ratio.
        """
        height, width = size
        areas = rng.uniform(*self.area, _TRIALS) * height * width
        ratios = np.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1]), _TRIALS))
        widths, heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
        fits = (widths <= width) & (heights <= height)
        first = int(fits.argmax())
        place_x, place_y, mirror = rng.random(3).tolist()
        if fits[first]:
            crop_width, crop_height = float(widths[first]), float(heights[first])
            x0, y0 = place_x * (width - crop_width), place_y * (height - crop_height)
        else:
            ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
            crop_width, crop_height = min(width, height * ratio), min(height, width / ratio)
            x0, y0 = (width - crop_width) / 2, (height - crop_height) / 2
        return Window(x0, y0, x0 + crop_width, y0 + crop_height, mirror < self.flip)

    def distort(self, rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Distorts the colours of a rendered picture ``(H, W, 3)`` uint8."""
        shift, saturation = (rng.uniform(-1.0, 1.0, 2) * (self.brightness, self.saturation)).tolist()
        image = np.asarray(cv2.transform(image, colour_matrix(shift, 1.0, 1.0 + saturation, 0.0)), np.uint8)
        if self._extra is None:
            return image
        # The pipeline's own generators would be copied into every worker and repeat themselves there.
        self._extra.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return np.asarray(self._extra(image=image)["image"], np.uint8)


def make_classification_augment(value: bool | Mapping[str, Any]) -> ClassificationAugment | None:
    """The augmentation that a data module's ``augment`` argument names.

    Args:
        value: True for TF-slim's, False for none, or a mapping of :class:`ClassificationAugment` arguments.

    Raises:
        UserError: An argument is unknown or out of range.
    """
    if isinstance(value, Mapping):
        check_options(value, list(signature(ClassificationAugment).parameters))
        return ClassificationAugment(**value)
    return ClassificationAugment() if value else None
