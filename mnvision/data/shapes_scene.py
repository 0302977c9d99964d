"""Scene descriptions of the embedded shapes data set.

A :class:`Scene` says everything about one picture: size, background, clutter, objects with shape, place,
size, angle and paint, occluders, light. ``shapes_draw.py`` draws it from a seed and ``shapes_render.py`` only
follows it, so other views of the same pictures (attributes, identities) can be read from the description.

Six pairs of classes differ only in a detail: disc/ring, square/notched square, triangle/holed triangle,
stars of five and six points, half disc/crescent, arrow up/down. All stay the same class when mirrored left to
right; only the arrows keep their direction (within 30 degrees), all others turn freely. Colour, texture, size
and place are drawn independently of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

from mnvision.errors import UserError

SHAPES = (
    "disc",
    "ring",
    "square",
    "notched_square",
    "triangle",
    "holed_triangle",
    "star5",
    "star6",
    "half_disc",
    "crescent",
    "arrow_up",
    "arrow_down",
)
CATEGORY_IDS = (1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
TEXTURES = ("flat", "gradient", "stripes", "checker", "noise")

Colour = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class SceneOptions:
    """What a user may change of the scenes; the defaults are the published data set.

    Attributes:
        min_side: Shortest side of a picture in pixels.
        max_side: Longest side of a picture in pixels.
        max_objects: Objects of a picture are 1 to this many (crowds come on top).
        tiny_fraction: Share of objects drawn tiny, in [0, 1].
        occluded_fraction: Share of objects with something laid across them, in [0, 1].
    """

    min_side: int = 240
    max_side: int = 480
    max_objects: int = 6
    tiny_fraction: float = 0.1
    occluded_fraction: float = 0.15

    def __post_init__(self) -> None:
        if not 64 <= self.min_side <= self.max_side <= 4096:
            raise UserError(
                f"shapes: min_side {self.min_side} and max_side {self.max_side} must satisfy "
                "64 <= min_side <= max_side <= 4096"
            )
        if not 1 <= self.max_objects <= 20:
            raise UserError(f"shapes: max_objects must be 1 to 20, got {self.max_objects}")
        for name in ("tiny_fraction", "occluded_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"shapes: {name} must be within 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Paint:
    """Two colours (RGB in [0, 255]) mixed by a texture of a period in pixels and an angle in radians."""

    texture: str
    first: Colour
    second: Colour
    period: float
    angle: float
    seed: int


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
        shape: A name of ``SHAPES``.
        center: x and y of the circumscribed circle's centre in pixels of the picture.
        size: Diameter of that circle in pixels before ``stretch``.
        stretch: Width over height of the unturned shape, its area kept.
        angle: Clockwise turn in radians.
        paint: Fill.
        outline: Width in pixels of a line of ``paint.second`` along the inner edge; 0 for none.
    """

    shape: str
    center: Point
    size: float
    stretch: float
    angle: float
    paint: Paint
    outline: float = 0.0


@dataclass(frozen=True)
class Distractor:
    """Something that is no class: an open stroke of ``width`` pixels, or a filled polygon when that is 0."""

    points: tuple[Point, ...]
    width: float
    paint: Paint


@dataclass(frozen=True)
class Scene:
    """One picture; layers are laid in the order background, clutter, crowd, objects (last first), occluders.

    Attributes:
        height: In pixels.
        width: In pixels.
        background: Its paint.
        clutter: Distractors below every object.
        objects: The first one lies on top.
        crowd: Many small objects of one class, annotated as one ``iscrowd`` region; often empty.
        occluders: Distractors above every object.
        light: Brightness factors at the left, right, top and bottom edge.
        blur: Sigma of a Gaussian blur in pixels, 0 for none.
        noise: Sigma of Gaussian noise in grey levels.
        quality: JPEG quality.
        seed: Of the noise.
    """

    height: int
    width: int
    background: Paint
    clutter: tuple[Distractor, ...]
    objects: tuple[SceneObject, ...]
    crowd: tuple[SceneObject, ...]
    occluders: tuple[Distractor, ...]
    light: tuple[float, float, float, float]
    blur: float
    noise: float
    quality: int
    seed: int
