"""Where to look in a picture: zoom-out, crop and flip as one window, drawn before the picture is decoded.

All three only choose a rectangle of the picture's plane (reaching beyond its edges where it was zoomed
out). Drawn first and rendered once, they cost one resize at the network's resolution, and the decoder can be
told how few pixels are needed.

Source: SSD, https://arxiv.org/abs/1512.02325, section 2.2 ("Data augmentation") and 3.6; numbers that the
paper leaves open are those of the authors' Caffe release (sides 0.3-1, at most 50 trials, mean colour
123, 117, 104).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.transforms.resize import resize_image

MEAN_COLOUR = (123, 117, 104)
CROP_TRIALS = 50

Pixels = NDArray[np.uint8]


class Window(NamedTuple):
    """A rectangle of the picture's plane, in pixels of the original picture.

    Attributes:
        x0: Left edge; below 0 where the window reaches beyond the picture, and so on.
        y0: Upper edge.
        x1: Right edge.
        y1: Lower edge.
        flip: Whether the window is mirrored left to right.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    flip: bool = False


class Placement(NamedTuple):
    """What rendering did: ``x_out = x * scale_x + shift_x``, mirrored in ``resolution`` where flipped."""

    scale_x: float
    shift_x: float
    scale_y: float
    shift_y: float
    flip: bool
    resolution: tuple[int, int]


def whole_picture(size: tuple[int, int]) -> Window:
    """The window that shows a picture of height and width ``size`` as it is."""
    return Window(0.0, 0.0, float(size[1]), float(size[0]))


def zoom_out(rng: np.random.Generator, window: Window, max_ratio: float) -> Window:
    """Enlarges a window by 1 to ``max_ratio`` on both axes, with the old one anywhere inside it."""
    ratio = rng.uniform(1.0, max_ratio)
    width, height = window.x1 - window.x0, window.y1 - window.y0
    left, top = rng.random(2) * (ratio - 1.0)
    x0, y0 = window.x0 - left * width, window.y0 - top * height
    return Window(x0, y0, x0 + ratio * width, y0 + ratio * height, window.flip)


def crop_by_iou(
    rng: np.random.Generator,
    window: Window,
    boxes: NDArray[np.float32],
    min_ious: Sequence[float],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> Window:
    """Draws a part of a window that shows at least one object well enough.

    Args:
        rng: Source of randomness.
        window: The rectangle to crop.
        boxes: Objects, ``(N, 4)`` xyxy in the picture's pixels; with none, any part will do.
        min_ious: One of these is drawn: some object whose centre is in the part must overlap it by that IoU.
        scale: Range of the part's side relative to the window's (geometric mean of both axes).
        aspect: Range of width over height, relative to the window's.

    Returns:
        The part; the window itself when no trial fits.
    """
    min_iou = min_ious[int(rng.integers(len(min_ious)))]
    sides = rng.uniform(*scale, CROP_TRIALS)
    low, high = np.maximum(aspect[0], sides**2), np.minimum(aspect[1], sides**-2.0)
    root = np.sqrt(rng.uniform(low, high))
    extent = np.array([window.x1 - window.x0, window.y1 - window.y0])
    part = np.stack([sides * root, sides / root], axis=1) * extent
    corner = np.array([window.x0, window.y0]) + rng.random((CROP_TRIALS, 2)) * (extent - part)
    parts = np.concatenate([corner, corner + part], axis=1)
    fits = _shows_an_object(parts, boxes, min_iou) if len(boxes) else np.ones(CROP_TRIALS, np.bool_)
    first = int(fits.argmax())
    if not fits[first]:
        return window
    x0, y0, x1, y1 = parts[first].tolist()
    return Window(x0, y0, x1, y1, window.flip)


def render(
    image: Pixels, size: tuple[int, int], window: Window, resolution: tuple[int, int]
) -> tuple[Pixels, Placement]:
    """Draws a window of a picture at a resolution; what lies beyond the picture gets the mean colour.

    Args:
        image: ``(h, w, 3)`` uint8, possibly decoded at reduced scale.
        size: Height and width of the original picture, whose pixels the window counts.
        window: What to show.
        resolution: Height and width of the result.

    Returns:
        ``(H, W, 3)`` uint8, and how boxes follow.
    """
    source_x, target_x = _axis(window.x0, window.x1, size[1], image.shape[1], resolution[1])
    source_y, target_y = _axis(window.y0, window.y1, size[0], image.shape[0], resolution[0])
    inner = (target_y[1] - target_y[0], target_x[1] - target_x[0])
    pixels = resize_image(image[source_y[0] : source_y[1], source_x[0] : source_x[1]], inner)
    if inner != resolution:
        canvas = np.empty((*resolution, 3), np.uint8)
        canvas[:] = MEAN_COLOUR
        canvas[target_y[0] : target_y[1], target_x[0] : target_x[1]] = pixels
        pixels = canvas
    if window.flip:
        pixels = np.asarray(cv2.flip(pixels, 1), np.uint8)
    scale_x = inner[1] / (source_x[1] - source_x[0])
    scale_y = inner[0] / (source_y[1] - source_y[0])
    placement = Placement(
        scale_x * image.shape[1] / size[1],
        target_x[0] - source_x[0] * scale_x,
        scale_y * image.shape[0] / size[0],
        target_y[0] - source_y[0] * scale_y,
        window.flip,
        resolution,
    )
    return pixels, placement


def place_boxes(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Moves boxes ``(N, 4)`` xyxy from the original picture into a rendered one, clipped to it."""
    height, width = placement.resolution
    placed = np.empty_like(boxes)
    placed[:, 0::2] = np.clip(boxes[:, 0::2] * placement.scale_x + placement.shift_x, 0, width)
    placed[:, 1::2] = np.clip(boxes[:, 1::2] * placement.scale_y + placement.shift_y, 0, height)
    if placement.flip:
        placed[:, 0::2] = width - placed[:, 2::-2]
    return placed


def centres_inside(boxes: NDArray[np.float32], window: Window) -> NDArray[np.bool_]:
    """Which boxes ``(N, 4)`` have their centre in the window: the objects that a crop keeps."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return np.asarray((x > window.x0) & (x < window.x1) & (y > window.y0) & (y < window.y1))


def _shows_an_object(parts: NDArray[np.float64], boxes: NDArray[np.float32], min_iou: float) -> NDArray[np.bool_]:
    """Which parts ``(T, 4)`` hold the centre of a box ``(N, 4)`` that they overlap by ``min_iou``."""
    corners, boxes = parts[:, None, :], boxes.astype(np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > corners[..., :2]) & (centres < corners[..., 2:])).all(axis=2)
    overlap = np.minimum(corners[..., 2:], boxes[:, 2:]) - np.maximum(corners[..., :2], boxes[:, :2])
    intersection = overlap.clip(min=0).prod(axis=2)
    area_boxes = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    area_parts = (parts[:, 2:] - parts[:, :2]).prod(axis=1)[:, None]
    iou = intersection / (area_parts + area_boxes - intersection)
    return np.asarray((inside & (iou >= min_iou)).any(axis=1))


def _axis(start: float, end: float, original: int, decoded: int, out: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whole pixels of the decoded picture and of the result that show each other, along one axis.

    An edge of the window inside the picture is rounded to a pixel of the picture and fills the result to its
    edge; one outside leaves a margin of whole pixels in the result.
    """
    start, end = start * decoded / original, end * decoded / original
    scale = out / (end - start)
    source_start = min(max(round(start), 0), decoded - 1)
    source_end = max(min(round(end), decoded), source_start + 1)
    target_start = 0 if start >= 0 else min(round(-start * scale), out - 1)
    target_end = out if end <= decoded else max(round((decoded - start) * scale), target_start + 1)
    return (source_start, source_end), (target_start, min(target_end, out))
