"""Random scenes of the shapes data set, drawn from a seed before any pixel is."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from mnvision.data.shapes_scene import (
    SHAPES,
    TEXTURES,
    Colour,
    Distractor,
    Paint,
    Point,
    Scene,
    SceneObject,
    SceneOptions,
)

SPLITS = ("train", "val", "test")
ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)  # width over height
PERIOD = 25  # one empty picture and one with a crowd in so many
EMPTY_AT, CROWD_AT = 7, 4


def scene_rng(seed: int, split: str, index: int, view: int = 0) -> np.random.Generator:
    """Return the generator of one picture: a function of its arguments alone, so order does not matter."""
    return np.random.default_rng([seed, SPLITS.index(split), index, view])


def detection_scene(seed: int, split: str, index: int, options: SceneOptions) -> Scene:
    """Describe picture ``index`` of a split.

    The first object is of class ``index % 12`` so that every class occurs in any split of 20 pictures or
    more; of every 25 pictures one is empty and one holds a crowd.
    """
    rng = scene_rng(seed, split, index)
    height, width = _draw_shape(rng, options.min_side, options.max_side)
    background = _background_paint(rng)
    crowd: tuple[SceneObject, ...] = ()
    objects: list[SceneObject] = []
    taken: list[tuple[Point, float]] = []
    if index % PERIOD != EMPTY_AT:
        if index % PERIOD == CROWD_AT:
            crowd, region = _draw_crowd(rng, height, width, background)
            taken.append(region)
        count = int(rng.integers(1, options.max_objects + 1))
        for number in range(count):
            shape = SHAPES[index % len(SHAPES)] if number == 0 else str(rng.choice(SHAPES))
            size = _draw_size(rng, height, width, count, options)
            place = _place(rng, height, width, size, taken)
            if place is None:
                if number > 0:
                    continue
                place = (width / 2, height / 2), size
            taken.append(place)
            objects.append(_draw_object(rng, shape, place[0], place[1], background))
    occluders = [occluder(rng, item, background) for item in objects if rng.random() < options.occluded_fraction]
    return _finish(rng, height, width, background, objects, crowd, occluders)


def class_scene(seed: int, split: str, index: int, options: SceneOptions) -> Scene:
    """Describe picture ``index`` of the classification view: one object, of class ``index % 12``."""
    rng = scene_rng(seed, split, index, view=1)
    height, width = _draw_shape(rng, options.min_side, options.max_side)
    background = _background_paint(rng)
    short = min(height, width)
    size = short * float(rng.uniform(0.4, 0.9))
    center = tuple(float(n / 2 + rng.uniform(-0.6, 0.6) * (n - size) / 2) for n in (width, height))
    item = _draw_object(rng, SHAPES[index % len(SHAPES)], (center[0], center[1]), size, background)
    occluders = [occluder(rng, item, background)] if rng.random() < options.occluded_fraction else []
    return _finish(rng, height, width, background, [item], (), occluders)


def _finish(
    rng: np.random.Generator,
    height: int,
    width: int,
    background: Paint,
    objects: list[SceneObject],
    crowd: tuple[SceneObject, ...],
    occluders: list[Distractor],
) -> Scene:
    """Add clutter and light."""
    clutter = tuple(clutter_item(rng, height, width) for _ in range(int(rng.integers(0, 9))))
    light = tuple(float(value) for value in rng.uniform(0.75, 1.15, 4))
    return Scene(
        height=height,
        width=width,
        background=background,
        clutter=clutter,
        objects=tuple(objects),
        crowd=crowd,
        occluders=tuple(occluders),
        light=(light[0], light[1], light[2], light[3]),
        blur=float(rng.uniform(0.4, 1.1)) if rng.random() < 0.4 else 0.0,
        noise=float(rng.uniform(0.0, 9.0)),
        quality=int(rng.integers(78, 96)),
        seed=int(rng.integers(2**31)),
    )


def _draw_shape(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Draw height and width of a picture, both within ``low`` and ``high``."""
    aspect = ASPECTS[int(rng.integers(len(ASPECTS)))]
    ratio = max(aspect, 1 / aspect)
    long_side = float(rng.uniform(min(low * ratio, high), high))
    short_side = max(long_side / ratio, low)
    sides = round(long_side), round(short_side)
    return (sides[1], sides[0]) if aspect >= 1 else sides


def _draw_size(rng: np.random.Generator, height: int, width: int, count: int, options: SceneOptions) -> float:
    """Draw the diameter of an object in pixels; many objects make smaller ones."""
    tiny = rng.random() < options.tiny_fraction
    low, high = (0.07, 0.16) if tiny else (0.18, min(0.65, 1.15 / math.sqrt(count)))
    return math.sqrt(height * width) * math.exp(rng.uniform(math.log(low), math.log(high)))


def _place(
    rng: np.random.Generator, height: int, width: int, size: float, taken: list[tuple[Point, float]]
) -> tuple[Point, float] | None:
    """Find a centre (and perhaps a smaller size) that does not cover what is there too much."""
    truncated = rng.random() < 0.12
    allowed = 0.55 if rng.random() < 0.2 else 0.12
    for attempt in range(24):
        if attempt and attempt % 8 == 0:
            size *= 0.75
        margin = size * (0.15 if truncated else 0.5)
        x = float(rng.uniform(min(margin, width / 2), max(width - margin, width / 2)))
        y = float(rng.uniform(min(margin, height / 2), max(height - margin, height / 2)))
        if all(_overlap((x, y), size, *other) <= allowed for other in taken):
            return (x, y), size
    return None


def _overlap(first: Point, first_size: float, second: Point, second_size: float) -> float:
    """Return the intersection of two squares over the area of the smaller."""
    reach = (first_size + second_size) / 2
    smaller = min(first_size, second_size)
    sides = [min(max(reach - abs(a - b), 0.0), smaller) for a, b in zip(first, second)]
    return sides[0] * sides[1] / smaller**2


def _draw_object(rng: np.random.Generator, shape: str, center: Point, size: float, background: Paint) -> SceneObject:
    limit = math.radians(30) if shape.startswith("arrow") else math.pi
    return SceneObject(
        shape=shape,
        center=center,
        size=size,
        stretch=float(rng.uniform(0.8, 1.25)),
        angle=float(rng.uniform(-limit, limit)),
        paint=_object_paint(rng, size, background),
        outline=max(1.0, size * float(rng.uniform(0.015, 0.04))) if rng.random() < 0.3 else 0.0,
    )


def _draw_crowd(
    rng: np.random.Generator, height: int, width: int, background: Paint
) -> tuple[tuple[SceneObject, ...], tuple[Point, float]]:
    """Return 8 to 16 small objects of one class close together, and the square they lie in."""
    side = math.sqrt(height * width) * float(rng.uniform(0.35, 0.5))
    center = tuple(float(rng.uniform(side / 2, max(n - side / 2, side / 2 + 1))) for n in (width, height))
    shape = str(rng.choice(SHAPES))
    members = []
    for _ in range(int(rng.integers(8, 17))):
        size = side * float(rng.uniform(0.16, 0.28))
        x, y = (float(c + rng.uniform(-0.5, 0.5) * (side - size)) for c in center)
        members.append(_draw_object(rng, shape, (x, y), size, background))
    return tuple(members), ((center[0], center[1]), side)


def occluder(rng: np.random.Generator, item: SceneObject, background: Paint) -> Distractor:
    """Return a bar across an object or a blob over its edge, never covering most of it."""
    paint = _object_paint(rng, item.size, background)
    turn, (x, y) = float(rng.uniform(0, 2 * math.pi)), item.center
    if rng.random() < 0.5:
        away = item.size * float(rng.uniform(0.0, 0.35))
        x, y = x + away * math.cos(turn), y + away * math.sin(turn)
        half = item.size * float(rng.uniform(0.6, 1.1))
        dx, dy = -math.sin(turn) * half, math.cos(turn) * half
        return Distractor(((x - dx, y - dy), (x + dx, y + dy)), item.size * float(rng.uniform(0.1, 0.22)), paint)
    away = item.size * float(rng.uniform(0.35, 0.55))
    return Distractor(_blob(rng, (x + away * math.cos(turn), y + away * math.sin(turn)), item.size * 0.3), 0.0, paint)


def clutter_item(rng: np.random.Generator, height: int, width: int) -> Distractor:
    """Return an open stroke, a jagged blob or a thin bar anywhere in the picture."""
    side = math.sqrt(height * width)
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    paint = _paint(rng, _colour(rng), _colour(rng), side * 0.1)
    kind = int(rng.integers(3))
    if kind == 0:
        return Distractor(_blob(rng, (x, y), side * float(rng.uniform(0.02, 0.07))), 0.0, paint)
    count, step = (2, side * 0.35) if kind == 1 else (int(rng.integers(3, 6)), side * 0.12)
    heading, points = float(rng.uniform(0, 2 * math.pi)), [(x, y)]
    length = step * float(rng.uniform(0.5, 1.0))
    for _ in range(count - 1):
        x, y = x + length * math.cos(heading), y + length * math.sin(heading)
        points.append((x, y))
        heading += float(rng.uniform(-1.0, 1.0))
    thickness = length * float(rng.uniform(0.06, 0.2)) if kind == 1 else float(rng.uniform(1.0, 5.0))
    return Distractor(tuple(points), max(thickness, 1.0), paint)


def _blob(rng: np.random.Generator, center: Point, radius: float) -> tuple[Point, ...]:
    count = int(rng.integers(7, 11))
    angles = 2 * math.pi * (np.arange(count) + rng.uniform(-0.35, 0.35, count)) / count
    radii = radius * rng.uniform(0.35, 1.0, count)
    return tuple(
        (float(center[0] + r * math.cos(a)), float(center[1] + r * math.sin(a))) for a, r in zip(angles, radii)
    )


def _colour(rng: np.random.Generator) -> Colour:
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.0, 1.0), rng.uniform(0.1, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(float(hue), float(saturation), float(value))
    return 255 * red, 255 * green, 255 * blue


def _paint(rng: np.random.Generator, first: Colour, second: Colour, size: float) -> Paint:
    texture = str(rng.choice(TEXTURES, p=(0.3, 0.2, 0.18, 0.12, 0.2)))
    period = max(4.0, size * float(rng.uniform(0.12, 0.35)))
    return Paint(texture, first, second, period, float(rng.uniform(0, math.pi)), int(rng.integers(2**31)))


def _background_paint(rng: np.random.Generator) -> Paint:
    """Return a background whose two colours are not far apart, so that objects can stand out from both."""
    first, other, mix = _colour(rng), _colour(rng), float(rng.uniform(0.15, 0.5))
    second = tuple(a + mix * (b - a) for a, b in zip(first, other))
    return _paint(rng, first, (second[0], second[1], second[2]), 160.0)


def _object_paint(rng: np.random.Generator, size: float, background: Paint) -> Paint:
    """Return a paint whose colours both differ from the background's (best of several draws)."""
    colours = sorted((_colour(rng) for _ in range(6)), key=lambda c: paint_distance(c, background), reverse=True)
    picks = [colour for colour in colours if paint_distance(colour, background) > 90] or colours[:1]
    first, second = (picks[int(rng.integers(len(picks)))] for _ in range(2))
    return _paint(rng, first, second, size)


def paint_distance(colour: Colour, paint: Paint) -> float:
    """Return how far a colour is from the nearer one of a paint's, in grey levels."""
    return min(math.dist(colour, paint.first), math.dist(colour, paint.second))
