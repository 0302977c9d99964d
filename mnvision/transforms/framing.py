"""How a picture is laid out before anything random happens to it: whole, its centre, a box, or a face set upright.

A framing gives every picture a plane. Training draws its crops in that plane, evaluation and prediction show a
fixed part of it, and the plane is drawn in one step at the network's resolution. Coordinates are continuous: the
pixel in column i covers ``i .. i + 1``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.transforms.resize import AREA_FROM
from mnvision.transforms.windows import MEAN_COLOUR, Pixels, Window, render, whole_picture

CENTRAL_CROP = 0.875

Matrix = NDArray[np.float64]
Points = NDArray[np.float64]


class Plane(NamedTuple):
    """Where a picture is shown.

    Attributes:
        size: Height and width of the plane in its own unit.
        matrix: ``(2, 3)`` float64, coordinates of the original picture -> coordinates of the plane; None where the
            plane is the picture.
    """

    size: tuple[int, int]
    matrix: Matrix | None = None


class Framing(ABC):
    """How pictures are laid out; the same in training, evaluation, prediction and exported files.

    Attributes:
        needs_landmarks: Whether pictures are laid out by landmarks.
        network: Height and width of the network's input, whose proportions decide what is shown, where pictures are
            drawn at another size (of a file that stretches them inside); None is the size that they are drawn at.
    """

    needs_landmarks: bool = False
    network: tuple[int, int] | None = None

    @abstractmethod
    def plane(self, size: tuple[int, int], landmarks: Points | None = None) -> Plane:
        """The plane of a picture of height and width ``size``.

        Args:
            size: Of the original picture, in pixels.
            landmarks: ``(5, 2)`` x and y in the picture's pixels, where they are known; of
                :class:`~mnvision.transforms.annotated_box.AnnotatedBox` the ``(2, 2)`` corners of a box.
        """

    @abstractmethod
    def eval_window(self, plane_size: tuple[int, int], resolution: tuple[int, int]) -> Window:
        """What evaluation and prediction show of a plane, in the plane's unit."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The rule as plain data, as checkpoints hold it."""


class Stretch(Framing):
    """The whole picture; its proportions are not kept."""

    def plane(self, size: tuple[int, int], landmarks: Points | None = None) -> Plane:
        """See :meth:`Framing.plane`."""
        return Plane(size)

    def eval_window(self, plane_size: tuple[int, int], resolution: tuple[int, int]) -> Window:
        """See :meth:`Framing.eval_window`."""
        return whole_picture(plane_size)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Framing.to_dict`."""
        return {"resize": "stretch"}


class CenterCrop(Framing):
    """Crops anywhere in training; in evaluation the centre with the network's proportions.

    Args:
        crop: Side of the centre relative to the largest one that fits, in (0, 1].

    Raises:
        UserError: ``crop`` is out of range.
    """

    def __init__(self, crop: float = CENTRAL_CROP) -> None:
        check_crop(crop)
        self.crop = crop

    def plane(self, size: tuple[int, int], landmarks: Points | None = None) -> Plane:
        """See :meth:`Framing.plane`."""
        return Plane(size)

    def eval_window(self, plane_size: tuple[int, int], resolution: tuple[int, int]) -> Window:
        """See :meth:`Framing.eval_window`."""
        return center_crop_window(plane_size, self.network or resolution, self.crop)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Framing.to_dict`."""
        return {"resize": "center_crop", "crop_fraction": self.crop}


class Box(Framing):
    """One box of every picture, for sets whose pictures are laid out alike; stretched to the network's input.

    Args:
        box: x0, y0, x1, y1 as fractions of width and height, within 0 and 1.

    Raises:
        UserError: The box is empty or leaves the picture.
    """

    def __init__(self, box: Sequence[float]) -> None:
        numbers = [float(value) for value in box] if len(box) == 4 else []
        if not numbers or not (0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1):
            raise UserError(f"framing box={list(box)}: give x0, y0, x1, y1 with 0 <= x0 < x1 <= 1 and so for y")
        self.box = (numbers[0], numbers[1], numbers[2], numbers[3])

    def plane(self, size: tuple[int, int], landmarks: Points | None = None) -> Plane:
        """See :meth:`Framing.plane`."""
        height, width = size
        x0, y0, x1, y1 = (round(value * side) for value, side in zip(self.box, (width, height, width, height)))
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        return Plane((y1 - y0, x1 - x0), np.array([[1.0, 0.0, -x0], [0.0, 1.0, -y0]]))

    def eval_window(self, plane_size: tuple[int, int], resolution: tuple[int, int]) -> Window:
        """See :meth:`Framing.eval_window`."""
        return whole_picture(plane_size)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Framing.to_dict`."""
        return {"resize": "box", "box": list(self.box)}


def framing_from_dict(rule: Mapping[str, Any]) -> Framing:
    """The framing that a checkpoint holds.

    Raises:
        UserError: An unknown rule, or a value out of range.
    """
    resize = rule.get("resize")
    if resize == "stretch":
        return Stretch()
    if resize == "center_crop":
        crop = rule.get("crop_fraction")
        if not isinstance(crop, int | float) or not 0 < crop <= 1:
            raise UserError(f"preprocess.crop_fraction={crop!r}: a number in (0, 1] is needed")
        return CenterCrop(crop)
    if resize == "box":
        return Box(rule.get("box", ()))
    if resize == "five_points":
        from mnvision.transforms.alignment import FivePoints  # itself a framing, so it cannot be imported above

        return FivePoints.from_dict(rule)
    if resize == "annotated_box":
        from mnvision.transforms.annotated_box import AnnotatedBox

        return AnnotatedBox()
    known = "stretch, center_crop, box, annotated_box and five_points"
    raise UserError(f"preprocess.resize={resize!r}: this version knows {known}")


def shown_part(plane: Plane, window: Window) -> tuple[float, float]:
    """Height and width of a window in pixels of the original picture, from which a decoder's scale is chosen."""
    scale = 1.0 if plane.matrix is None else _scale(plane.matrix)
    return (window.y1 - window.y0) / scale, (window.x1 - window.x0) / scale


def show(pixels: Pixels, size: tuple[int, int], plane: Plane, window: Window, resolution: tuple[int, int]) -> Pixels:
    """Draws a window of a picture's plane.

    Args:
        pixels: ``(h, w, 3)`` uint8, possibly decoded at reduced scale.
        size: Height and width of the original picture.
        plane: From :meth:`Framing.plane`.
        window: In the plane's unit.
        resolution: Height and width of the result.

    Returns:
        ``(H, W, 3)`` uint8; what lies beyond the picture has the mean colour.
    """
    matrix = plane.matrix
    if matrix is None:
        return render(pixels, size, window, resolution)[0]
    if matrix[0, 1] == 0 == matrix[1, 0]:
        x0, x1 = ((x - matrix[0, 2]) / matrix[0, 0] for x in (window.x0, window.x1))
        y0, y1 = ((y - matrix[1, 2]) / matrix[1, 1] for y in (window.y0, window.y1))
        return render(pixels, size, Window(x0, y0, x1, y1, window.flip), resolution)[0]
    return _warp(pixels, _to_output(matrix, window, resolution) @ _to_original(pixels, size), resolution)


def _warp(pixels: Pixels, matrix: Matrix, resolution: tuple[int, int]) -> Pixels:
    """Draws a picture through a ``(3, 3)`` map of its coordinates to those of the result."""
    shrink = 1 / _scale(matrix)
    if shrink >= AREA_FROM:  # interpolation alone would skip pixels
        height, width = pixels.shape[:2]
        reduced = (max(round(width / shrink), 1), max(round(height / shrink), 1))
        matrix = matrix @ np.diag([width / reduced[0], height / reduced[1], 1.0])
        pixels = np.asarray(cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA), np.uint8)
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])  # OpenCV counts from pixel centres
    centred = np.linalg.inv(half) @ matrix @ half
    return np.asarray(
        cv2.warpAffine(
            pixels,
            centred[:2],
            resolution[::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=MEAN_COLOUR,
        ),
        np.uint8,
    )


def _to_output(matrix: Matrix, window: Window, resolution: tuple[int, int]) -> Matrix:
    """``(3, 3)``: original picture -> pixels of the result."""
    height, width = resolution
    scale_x, scale_y = width / (window.x1 - window.x0), height / (window.y1 - window.y0)
    to_window = np.array([[scale_x, 0.0, -window.x0 * scale_x], [0.0, scale_y, -window.y0 * scale_y], [0, 0, 1.0]])
    mirror = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) if window.flip else np.eye(3)
    return np.asarray(mirror @ to_window @ np.vstack([matrix, [0.0, 0.0, 1.0]]))


def _to_original(pixels: Pixels, size: tuple[int, int]) -> Matrix:
    """``(3, 3)``: coordinates of the decoded picture -> the original's."""
    return np.diag([size[1] / pixels.shape[1], size[0] / pixels.shape[0], 1.0])


def _scale(matrix: Matrix) -> float:
    return math.sqrt(abs(float(np.linalg.det(matrix[:2, :2]))))


def center_crop_window(size: tuple[int, int], resolution: tuple[int, int], crop: float = CENTRAL_CROP) -> Window:
    """The central part of a picture that evaluation and prediction show.

    The largest central part with the resolution's proportions is shrunk to ``crop`` of its sides: the same as
    resizing the short side to ``side / crop`` and cutting out the middle. (TF-slim itself takes ``crop`` of
    both sides and stretches.)

    Args:
        size: Height and width of the picture.
        resolution: Height and width of the network's input.
        crop: Side of the part relative to the largest one, in (0, 1].

    Raises:
        UserError: ``crop`` is out of range.
    """
    check_crop(crop)
    height, width = size
    scale = crop * min(height / resolution[0], width / resolution[1])
    x0, y0 = (width - scale * resolution[1]) / 2, (height - scale * resolution[0]) / 2
    return Window(x0, y0, width - x0, height - y0)


def check_crop(crop: float) -> None:
    """Refuses a central crop outside (0, 1].

    Raises:
        UserError: It is outside.
    """
    if not 0 < crop <= 1:
        raise UserError(f"crop must lie in (0, 1], got {crop}")
