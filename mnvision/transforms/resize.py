"""The one resize of training, evaluation and prediction, so that all three see the same pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError

AREA_FROM = 2.0
"""From this shrink factor on (geometric mean of both axes) pixels are averaged instead of interpolated: plain
bilinear would skip some, and averaging costs several times more below it without a visible gain."""


def resize_image(image: NDArray[np.uint8], resolution: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretches a picture to a resolution, as TF's ``fixed_shape_resizer`` does; proportions are not kept.

    Args:
        image: ``(h, w, 3)`` uint8.
        resolution: Height and width to reach, in pixels.

    Returns:
        ``(H, W, 3)`` uint8; the input itself when it has that size already.
    """
    height, width = image.shape[:2]
    if (height, width) == resolution:
        return image
    shrink = (height * width / (resolution[0] * resolution[1])) ** 0.5
    interpolation = cv2.INTER_AREA if shrink >= AREA_FROM else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, resolution[::-1], interpolation=interpolation), np.uint8)


def as_resolution(value: int | tuple[int, int] | list[int], name: str = "resolution") -> tuple[int, int]:
    """Height and width from one side or a pair.

    Raises:
        UserError: A side is not a whole number of at least 1.
    """
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise UserError(f"{name} must be a whole number of pixels >= 1, or a pair (height, width), got {value!r}")
    return sides[0], sides[1]
