"""Colour distortion as one matrix per picture.

Source: SSD's Caffe release (brightness +-32, contrast and saturation 0.5-1.5, hue +-18 degrees, each with
probability one half).
"""

from __future__ import annotations

import math
from typing import Any

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.transforms.ranges import check_range

_LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601 weights of red, green and blue in brightness."""
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class PhotometricDistort(albumentations.ImageOnlyTransform):
    """Brightness, contrast, saturation and hue, each with probability one half, in one pass over the pixels.

    All four are linear in RGB (hue as a rotation about the grey axis of YIQ), so they are multiplied to one
    3 x 4 matrix. Clipping happens once, at the end.

    Args:
        brightness: Largest shift in grey levels, 0-255.
        contrast: Largest relative change: factors lie in ``1 - contrast .. 1 + contrast``, 0-1.
        saturation: Likewise.
        hue: Largest rotation in degrees, 0-180.
        p: Probability that anything happens at all.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 18.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        check_range("brightness", brightness, 0, 255)
        check_range("contrast", contrast, 0, 1)
        check_range("saturation", saturation, 0, 1)
        check_range("hue", hue, 0, 180)
        self.limits = np.array([brightness, contrast, saturation, hue])

    def get_params(self) -> dict[str, Any]:
        """Draws the colour matrix ``(3, 4)``."""
        applied = self.random_generator.random(4) < 0.5
        draws = self.random_generator.uniform(-1.0, 1.0, 4) * self.limits * applied
        shift, contrast, saturation, hue = draws.tolist()
        return {"matrix": colour_matrix(shift, 1.0 + contrast, 1.0 + saturation, hue)}

    def apply(self, img: NDArray[np.uint8], matrix: NDArray[np.float64], **_: Any) -> NDArray[np.uint8]:
        """Distorts ``(H, W, 3)`` uint8 RGB."""
        return np.asarray(cv2.transform(img, matrix), np.uint8)


def colour_matrix(shift: float, contrast: float, saturation: float, hue_deg: float) -> NDArray[np.float64]:
    """``(3, 4)`` matrix that turns ``(r, g, b, 1)`` into the distorted colour.

    Args:
        shift: Added to each channel, in grey levels, after the factors.
        contrast: Factor on all channels.
        saturation: Factor on the distance from grey of the same brightness.
        hue_deg: Rotation of the colour about the grey axis.
    """
    matrix = saturation * np.eye(3) + (1.0 - saturation) * _LUMA[None, :]
    if hue_deg:
        cos, sin = math.cos(math.radians(hue_deg)), math.sin(math.radians(hue_deg))
        turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
        matrix = matrix @ np.linalg.solve(_RGB_TO_YIQ, turn @ _RGB_TO_YIQ)
    return np.concatenate([contrast * matrix, np.full((3, 1), shift)], axis=1)
