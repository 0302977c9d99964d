"""Scenes of the portraits view: one object per picture, of an identity, with attributes that are facts of the scene.

An identity is a design: shape, proportions, colours, texture and outline. A picture of it adds place, size, turn,
background, clutter, light, and perhaps something in front of it or a blur. Attributes are of both kinds, as those of
faces are: some stay with the identity (a hole is in it, as sex is in CelebA), others come and go (it is turned, as
one smiles). Five landmarks turn and move with the object, in the proportions of a face.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mnvision.data.shapes_draw import SPLITS, clutter_item, occluder, paint_distance, scene_rng
from mnvision.data.shapes_render import Rendered, object_contours
from mnvision.data.shapes_scene import Colour, Paint, Point, Scene, SceneObject, SceneOptions

ATTRIBUTES = (
    "striped",
    "checkered",
    "outlined",
    "warm_colour",
    "elongated",
    "has_hole",
    "has_corners",
    "dark_background",
    "large",
    "turned",
    "occluded",
    "cluttered",
    "blurry",
)
"""The first seven belong to the identity, the others to the picture."""

SHAPES = ("square", "disc", "star5", "ring", "triangle", "notched_square", "star6", "holed_triangle")
ROUND, HOLED = ("disc", "ring"), ("ring", "holed_triangle")

LANDMARKS = np.array([(-0.443, -0.503), (0.443, -0.503), (0.0, 0.0), (-0.363, 0.515), (0.363, 0.515)])
"""Eye, eye, nose, corner and corner of the mouth in the object's frame, whose unit is its longer half axis. They have
the proportions of the 112 x 112 face template (insightface, ``face_align.py``), made symmetric: a unit is 40 pixels."""

PICTURES_OF = (8, 9, 10)
"""Pictures of an identity; identity i of a split has the i-th, over and over."""

_IDENTITY_VIEW, _PICTURE_VIEW = 2, 3  # random streams of their own, see scene_rng
_ELONGATED, _LARGE, _TURNED = 1.5, 0.66, math.radians(15)
_SHOWN = 0.95


@dataclass(frozen=True)
class Design:
    """An identity.

    Attributes:
        shape: A name of ``SHAPES``.
        stretch: Width over height of the unturned shape.
        texture: flat, gradient, stripes or checker.
        first: Main colour.
        second: Colour of texture and outline, of the same hue.
        period: Of the texture, relative to the object's size.
        angle: Of the texture, in radians, in the object's frame.
        outline: Width relative to the object's size, 0 for none.
    """

    shape: str
    stretch: float
    texture: str
    first: Colour
    second: Colour
    period: float
    angle: float
    outline: float


def identity_of(split: str, index: int) -> int:
    """Number of the identity that picture ``index`` of a split shows, from 1; no two splits share one."""
    cycle = sum(PICTURES_OF)
    rounds, rest = divmod(index, cycle)
    within = int(np.searchsorted(np.cumsum(PICTURES_OF), rest, side="right"))
    return (len(PICTURES_OF) * rounds + within) * len(SPLITS) + SPLITS.index(split) + 1


def design_of(seed: int, identity: int) -> Design:
    """What an identity looks like, whichever picture it is in."""
    rng = scene_rng(seed, SPLITS[(identity - 1) % len(SPLITS)], (identity - 1) // len(SPLITS), _IDENTITY_VIEW)
    hue = float(rng.uniform(-0.07, 0.14) if rng.random() < 0.45 else rng.uniform(0.36, 0.75)) % 1.0
    saturation, value = float(rng.uniform(0.6, 1.0)), float(rng.uniform(0.65, 1.0))
    darker = rng.random() < 0.5
    second = _rgb(hue, saturation, 0.38 * value) if darker else _rgb(hue, 0.15 * saturation, 1.0)
    elongated = rng.random() < 0.3
    stretch = float(rng.uniform(1.75, 2.1) if elongated else rng.uniform(0.95, 1.05))
    texture = str(rng.choice(("stripes", "checker", "gradient", "flat"), p=(0.3, 0.17, 0.08, 0.45)))
    return Design(
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        stretch=1 / stretch if rng.random() < 0.5 else stretch,
        texture=texture,
        first=_rgb(hue, saturation, value),
        second=second,
        period=float(rng.uniform(0.5, 0.7) if texture == "checker" else rng.uniform(0.3, 0.42)),
        angle=float(rng.uniform(0, math.pi)),
        outline=float(rng.uniform(0.055, 0.075)) if rng.random() < 0.35 else 0.0,
    )


def portrait_scene(seed: int, split: str, index: int, options: SceneOptions) -> Scene:
    """Describe picture ``index`` of a split: the object of its identity, all of it inside a square picture."""
    design = design_of(seed, identity_of(split, index))
    rng = scene_rng(seed, split, index, _PICTURE_VIEW)
    side = int(rng.integers(options.min_side, options.max_side + 1))
    extent = side * float(rng.uniform(0.72, 0.86) if rng.random() < 0.5 else rng.uniform(0.44, 0.6))
    turn = math.radians(float(rng.uniform(25, 40) if rng.random() < 0.4 else rng.uniform(0, 6)))
    paint = Paint(design.texture, design.first, design.second, design.period, design.angle, int(rng.integers(2**31)))
    item = SceneObject(design.shape, (0.0, 0.0), 1.0, design.stretch, -turn if rng.random() < 0.5 else turn, paint)
    size = extent / _extent(item)
    paint = replace(paint, period=size * design.period, angle=design.angle + item.angle)
    item = replace(item, size=size, outline=size * design.outline, paint=paint)
    item = replace(item, center=_place(rng, side, item))
    background = _background(rng, paint)
    count = int(rng.integers(6, 11)) if rng.random() < 0.3 else int(rng.integers(0, 2))
    light = rng.uniform(0.75, 1.15, 4).tolist()
    return Scene(
        height=side,
        width=side,
        background=background,
        clutter=tuple(clutter_item(rng, side, side) for _ in range(count)),
        objects=(item,),
        crowd=(),
        occluders=(occluder(rng, item, background),) if rng.random() < options.occluded_fraction else (),
        light=(light[0], light[1], light[2], light[3]),
        blur=float(rng.uniform(2.0, 2.8) if rng.random() < 0.05 else rng.uniform(0.0, 0.5)),
        noise=float(rng.uniform(0.0, 6.0)),
        quality=int(rng.integers(85, 96)),
        seed=int(rng.integers(2**31)),
    )


def attributes_of(scene: Scene, rendered: Rendered) -> tuple[bool, ...]:
    """Which of ``ATTRIBUTES`` a picture has, read from its description and, for "occluded", from its masks."""
    item = scene.objects[0]
    elongated = max(item.stretch, 1 / item.stretch) > _ELONGATED
    red, _, blue = item.paint.first
    light = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (scene.background.first, scene.background.second)]
    visible = rendered.instances[0].visible if rendered.instances else 0.0
    facts = {
        "striped": item.paint.texture == "stripes",
        "checkered": item.paint.texture == "checker",
        "outlined": item.outline > 0,
        "warm_colour": red > blue,
        "elongated": elongated,
        "has_hole": item.shape in HOLED,
        "has_corners": item.shape not in ROUND,
        "dark_background": sum(light) / 2 < 105,
        "large": _extent(item) > _LARGE * scene.width,
        # A disc shows no turn; nothing does, by less than a few degrees.
        "turned": abs(item.angle) > _TURNED and (elongated or item.shape not in ROUND),
        "occluded": visible < _SHOWN,
        "cluttered": len(scene.clutter) > 3,
        "blurry": scene.blur > 1.0,
    }
    return tuple(facts[name] for name in ATTRIBUTES)


def landmarks_of(scene: Scene) -> NDArray[np.float64]:
    """Landmarks ``(5, 2)`` of the object, x and y in the picture's pixels."""
    return _landmarks(scene.objects[0])


def _landmarks(item: SceneObject) -> NDArray[np.float64]:
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    radius = item.size / 2 * math.sqrt(max(item.stretch, 1 / item.stretch))
    return np.asarray(LANDMARKS * radius @ np.array([[cos, sin], [-sin, cos]]) + np.array(item.center))


def _extent(item: SceneObject) -> float:
    """Return the longer side of the box around an object."""
    return float(np.ptp(np.concatenate(object_contours(item)), axis=0).max())


def _place(rng: np.random.Generator, side: int, item: SceneObject) -> Point:
    """Return a centre with which all of an object at the origin, and its landmarks, lie inside a square picture."""
    points = np.concatenate([*object_contours(item), _landmarks(item)])
    low, high = -points.min(axis=0), side - points.max(axis=0)
    x, y = (low + rng.random(2) * (high - low)).tolist()
    return x, y


def _background(rng: np.random.Generator, paint: Paint) -> Paint:
    """Return a dark or a light background, the best of several draws for the object on it."""
    dark, texture = rng.random() < 0.4, str(rng.choice(("flat", "gradient", "noise")))

    def colour() -> Colour:
        saturation, value = (0.8, (0.05, 0.3)) if dark else (0.3, (0.75, 1.0))
        return _rgb(float(rng.random()), float(rng.uniform(0, saturation)), float(rng.uniform(*value)))

    draws = [
        Paint(texture, colour(), colour(), float(rng.uniform(20, 60)), float(rng.uniform(0, math.pi)), int(seed))
        for seed in rng.integers(2**31, size=6)
    ]
    return max(draws, key=lambda draw: paint_distance(paint.first, draw))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue
