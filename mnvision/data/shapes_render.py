"""Rendering of the shapes data set: a scene description in, a picture and exact masks out.

Every layer is drawn four times too large, averaged down, and blended by coverage; a pixel belongs to the last
layer that covers at least half of it. Masks, boxes and areas come from that same map, so they are exact.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.data.shapes_scene import Distractor, Paint, Point, Scene, SceneObject

SUPERSAMPLE = 4
MIN_VISIBLE = 0.25
MIN_PIXELS = 16

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Instance:
    """One annotated object or crowd.

    Attributes:
        shape: Its class.
        mask: ``(H, W)`` bool, the visible pixels.
        box: Extent of the mask: x0, y0, x1, y1 in pixels, x1 and y1 one past the last pixel.
        area: Visible pixels.
        visible: Share of the whole object (parts outside the picture included) that is visible, in (0, 1].
        crowd: Whether it is a region of many objects.
    """

    shape: str
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    area: int
    visible: float
    crowd: bool


@dataclass(frozen=True)
class Rendered:
    """A picture, ``(H, W, 3)`` uint8 RGB, and its annotated instances (topmost object first)."""

    image: NDArray[np.uint8]
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class _Patch:
    """Coverage in [0, 1] of a rectangle with upper left pixel (x, y), which may lie outside the picture."""

    x: int
    y: int
    coverage: Floats


def render_scene(scene: Scene) -> Rendered:
    """Draw a scene.

    Boxes are the extent of what is visible, as annotators of COCO draw them. An object of which less than
    ``MIN_VISIBLE`` or fewer than ``MIN_PIXELS`` pixels can be seen is drawn but not annotated.
    """
    canvas = _texture(scene.background, scene.height, scene.width, (0.0, 0.0))
    owner = np.zeros((scene.height, scene.width), np.int32)
    for item in scene.clutter:
        _lay(canvas, owner, 0, distractor_patch(item), item.paint, item.points[0])
    crowd_total = sum(_lay_object(canvas, owner, 1, member) for member in scene.crowd)
    totals = {}
    for number in reversed(range(len(scene.objects))):
        totals[number] = _lay_object(canvas, owner, number + 2, scene.objects[number])
    for item in scene.occluders:
        _lay(canvas, owner, 0, distractor_patch(item), item.paint, item.points[0])
    found = [
        _instance(owner == number + 2, item.shape, totals[number], False) for number, item in enumerate(scene.objects)
    ]
    if scene.crowd:
        found.append(_instance(owner == 1, scene.crowd[0].shape, crowd_total, True))
    return Rendered(_expose(canvas, scene), tuple(instance for instance in found if instance is not None))


def object_patch(item: SceneObject) -> _Patch:
    """Return the coverage of an object, whole even where it leaves the picture."""
    return _coverage(object_contours(item), 0.0)


def object_contours(item: SceneObject) -> list[NDArray[np.float64]]:
    """Return the contours ``(P, 2)`` of an object, x and y in the picture's pixels."""
    root = math.sqrt(item.stretch)
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    scale = np.array([root, 1 / root]) * item.size / 2
    return [(contour * scale) @ turn + np.array(item.center) for contour in contours_of(item.shape)]


def distractor_patch(item: Distractor) -> _Patch:
    """Return the coverage of a distractor."""
    return _coverage([np.array(item.points)], item.width)


@functools.cache
def contours_of(shape: str) -> tuple[NDArray[np.float64], ...]:
    """Return the contours ``(P, 2)`` of a shape inside the unit circle, x right and y down, filled even-odd.

    Raises:
        KeyError: The name is not one of ``SHAPES``.
    """
    square = _regular(4)
    triangle = _regular(3)
    notch = np.array([(0.2, 0.5), (0.2, 0.0), (-0.2, 0.0), (-0.2, 0.5)]) * math.sqrt(2)
    corners = np.array([(-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5), (0.5, 0.5)]) * math.sqrt(2)
    arrow = np.array([(0, -1), (0.7, -0.2), (0.27, -0.2), (0.27, 0.9), (-0.27, 0.9), (-0.27, -0.2), (-0.7, -0.2)])
    contours = {
        "disc": [_circle(1.0)],
        "ring": [_circle(1.0), _circle(0.55)],
        "square": [square],
        "notched_square": [np.concatenate([corners, notch])],
        "triangle": [triangle],
        "holed_triangle": [triangle, _circle(0.3)],
        "star5": [_star(5, 0.42)],
        "star6": [_star(6, 0.5)],
        "half_disc": [_arc(0.92, 0.0, math.pi) - np.array([0.0, 0.39])],
        "crescent": [_crescent()],
        "arrow_up": [arrow],
        "arrow_down": [-arrow],
    }
    return tuple(contours[shape])


def _arc(radius: float, start: float, stop: float, center: Point = (0.0, 0.0)) -> NDArray[np.float64]:
    angles = np.linspace(start, stop, 48)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) + np.array(center)


def _circle(radius: float) -> NDArray[np.float64]:
    return np.concatenate([_arc(radius, 0.0, math.pi), _arc(radius, math.pi, 2 * math.pi)])


def _regular(count: int) -> NDArray[np.float64]:
    angles = 2 * math.pi * np.arange(count) / count - math.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> NDArray[np.float64]:
    return _regular(2 * points) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def _crescent(radius: float = 0.8, away: float = 0.5) -> NDArray[np.float64]:
    """Return the unit disc without a smaller disc whose centre lies ``away`` below."""
    height = (1 - radius**2 + away**2) / (2 * away)
    outer = math.asin(height)
    inner = math.asin((height - away) / radius)
    bite = _arc(radius, -math.pi - inner, inner, (0.0, away))
    return np.concatenate([_arc(1.0, outer, -math.pi - outer), bite])


def _coverage(contours: list[NDArray[np.float64]], width: float) -> _Patch:
    """Draw contours (filled even-odd; as open strokes if ``width`` > 0) into a patch just large enough."""
    points = np.concatenate(contours)
    x, y = (int(value) for value in np.floor(points.min(0) - width / 2 - 1))
    right, bottom = (int(value) for value in np.ceil(points.max(0) + width / 2 + 1))
    large = np.zeros(((bottom - y) * SUPERSAMPLE, (right - x) * SUPERSAMPLE), np.uint8)
    # A pixel's centre has whole coordinates for OpenCV; here its upper left corner has.
    scaled = [np.rint((c - (x, y)) * SUPERSAMPLE - 0.5).astype(np.int32) for c in contours]
    if width > 0:
        cv2.polylines(large, scaled, False, 255, max(1, round(width * SUPERSAMPLE)))
    else:
        cv2.fillPoly(large, scaled, 255)
    small = cv2.resize(large, (right - x, bottom - y), interpolation=cv2.INTER_AREA)
    return _Patch(x, y, np.asarray(small / 255, np.float32))


def _lay_object(canvas: Floats, owner: NDArray[np.int32], number: int, item: SceneObject) -> int:
    """Draw an object and return the pixels of its whole mask, inside the picture or not."""
    patch = object_patch(item)
    _lay(canvas, owner, number, patch, item.paint, item.center, item.outline)
    return int((patch.coverage >= 0.5).sum())


def _lay(
    canvas: Floats,
    owner: NDArray[np.int32],
    number: int,
    patch: _Patch,
    paint: Paint,
    anchor: Point,
    outline: float = 0.0,
) -> None:
    """Blend a painted patch into the canvas and claim its pixels."""
    height, width = owner.shape
    left, top = max(patch.x, 0), max(patch.y, 0)
    right = min(patch.x + patch.coverage.shape[1], width)
    bottom = min(patch.y + patch.coverage.shape[0], height)
    if left >= right or top >= bottom:
        return
    inside = slice(top - patch.y, bottom - patch.y), slice(left - patch.x, right - patch.x)
    window = slice(top, bottom), slice(left, right)
    coverage = patch.coverage[inside]
    colours = _texture(paint, bottom - top, right - left, (left - anchor[0], top - anchor[1]))
    if outline > 0:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * math.ceil(outline) + 1,) * 2)
        core = cv2.erode(patch.coverage, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)[inside]
        colours[core < 0.5] = paint.second
    canvas[window] += coverage[..., None] * (colours - canvas[window])
    owner[window][coverage >= 0.5] = number


def _texture(paint: Paint, height: int, width: int, offset: Point) -> Floats:
    """Paint a rectangle whose upper left pixel lies at ``offset`` from the texture's origin."""
    field = _field(paint, height, width, offset)
    first, second = np.asarray(paint.first, np.float32), np.asarray(paint.second, np.float32)
    return field[..., None] * (second - first) + first


def _field(paint: Paint, height: int, width: int, offset: Point) -> Floats:
    """Return the mixing weight in [0, 1] of the second colour, ``(height, width)``."""
    if paint.texture == "flat":
        return np.zeros((height, width), np.float32)
    if paint.texture == "noise":
        cells = (math.ceil(height / paint.period * 2) + 2, math.ceil(width / paint.period * 2) + 2)
        coarse = np.random.default_rng(paint.seed).random(cells, np.float32)
        return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    xs = np.arange(width, dtype=np.float32) + np.float32(offset[0])
    ys = np.arange(height, dtype=np.float32)[:, None] + np.float32(offset[1])
    cos, sin = np.float32(math.cos(paint.angle)), np.float32(math.sin(paint.angle))
    along = cos * xs + sin * ys
    if paint.texture == "gradient":
        low, high = float(along.min()), float(along.max())
        return np.asarray((along - low) / max(high - low, 1.0), np.float32)
    wave = np.sin(along * np.float32(2 * math.pi / paint.period))
    if paint.texture == "checker":
        wave = wave * np.sin((cos * ys - sin * xs) * np.float32(2 * math.pi / paint.period)) * 2
    return np.clip(wave * 2 + 0.5, 0, 1)  # steep, but not a jagged step


def _instance(mask: NDArray[np.bool_], shape: str, total: int, crowd: bool) -> Instance | None:
    """Measure what is visible of an object of ``total`` pixels, or return None for too little."""
    area = int(mask.sum())
    if area < MIN_PIXELS or area < MIN_VISIBLE * total:
        return None
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return Instance(shape, mask, box, area, area / total, crowd)


def _expose(canvas: Floats, scene: Scene) -> NDArray[np.uint8]:
    """Apply light, blur and noise, and round to bytes."""
    left, right, top, bottom = scene.light
    across = np.linspace(left, right, scene.width, dtype=np.float32)
    down = np.linspace(top, bottom, scene.height, dtype=np.float32)[:, None]
    canvas *= (across * down)[..., None]
    if scene.blur > 0:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), scene.blur), np.float32)
    grain = np.random.default_rng(scene.seed).standard_normal((scene.height, scene.width), np.float32)
    canvas += (grain * np.float32(scene.noise))[..., None]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
