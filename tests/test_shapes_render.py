"""Scenes and rendering of the shapes data set: boxes and areas are exact, classes have no give-away."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mnvision.data.shapes_draw import detection_scene
from mnvision.data.shapes_render import contours_of, render_scene
from mnvision.data.shapes_scene import SHAPES, Distractor, Paint, Scene, SceneObject, SceneOptions
from mnvision.errors import UserError

SMALL = SceneOptions(min_side=96, max_side=160)


def flat(*colour: float) -> Paint:
    return Paint("flat", (colour[0], colour[1], colour[2]), (0.0, 255.0, 0.0), 10.0, 0.0, 0)


def plain_scene(objects: tuple[SceneObject, ...], **changes: object) -> Scene:
    fields = {
        "height": 120,
        "width": 160,
        "background": flat(0, 0, 0),
        "clutter": (),
        "objects": objects,
        "crowd": (),
        "occluders": (),
        "light": (1.0, 1.0, 1.0, 1.0),
        "blur": 0.0,
        "noise": 0.0,
        "quality": 95,
        "seed": 0,
    }
    return Scene(**{**fields, **changes})


def plain_object(shape: str = "square", center: tuple[float, float] = (80.0, 60.0), **changes: object) -> SceneObject:
    fields = {"size": 70.0, "stretch": 1.0, "angle": 0.0, "paint": flat(255, 255, 255)}
    return SceneObject(shape, center, **{**fields, **changes})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_box_and_area_are_those_of_the_bright_pixels(shape: str, angle: float) -> None:
    rendered = render_scene(plain_scene((plain_object(shape, angle=angle, stretch=1.2),)))
    ys, xs = np.nonzero(rendered.image[..., 0] >= 128)
    (instance,) = rendered.instances
    assert instance.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert instance.area == len(xs)
    assert instance.visible == 1.0


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("disc", math.pi),
        ("ring", math.pi * (1 - 0.55**2)),
        ("square", 2.0),
        ("notched_square", 2.0 * (1 - 0.4 * 0.5)),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("holed_triangle", 3 * math.sqrt(3) / 4 - math.pi * 0.3**2),
        ("star5", 10 * 0.5 * 0.42 * math.sin(math.pi / 5)),
        ("star6", 12 * 0.5 * 0.5 * math.sin(math.pi / 6)),
        ("half_disc", math.pi * 0.92**2 / 2),
    ],
)
def test_area_is_the_geometric_one(shape: str, area: float) -> None:
    (instance,) = render_scene(plain_scene((plain_object(shape, size=100.0, angle=0.3),))).instances
    assert instance.area == pytest.approx(area * 50**2, rel=0.02)


def test_square_lies_where_it_was_put() -> None:
    side = 70 / math.sqrt(2)
    (instance,) = render_scene(plain_scene((plain_object(angle=math.pi / 4),))).instances
    expected = (80 - side / 2, 60 - side / 2, 80 + side / 2, 60 + side / 2)
    np.testing.assert_allclose(instance.box, expected, atol=0.75)


def test_angle_turns_clockwise_and_arrow_up_points_up() -> None:
    (up,) = render_scene(plain_scene((plain_object("arrow_up"),))).instances
    head = up.mask.sum(1)[up.box[1] : up.box[3]].argmax() / (up.box[3] - up.box[1])
    assert head == pytest.approx(0.8 / 1.9, abs=0.03)  # the widest row lies above the middle
    (right,) = render_scene(plain_scene((plain_object("arrow_up", angle=math.pi / 2),))).instances
    head = right.mask.sum(0)[right.box[0] : right.box[2]].argmax() / (right.box[2] - right.box[0])
    assert head == pytest.approx(1 - 0.8 / 1.9, abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_stay_in_their_circle_and_mirror_to_themselves(shape: str) -> None:
    assert np.hypot(*np.concatenate(contours_of(shape)).T).max() <= 1.01
    (instance,) = render_scene(plain_scene((plain_object(shape),))).instances
    mask = instance.mask[:, instance.box[0] : instance.box[2]]
    assert (mask != mask[:, ::-1]).mean() < 0.01


def test_truncated_object_has_the_box_of_what_is_inside() -> None:
    (instance,) = render_scene(plain_scene((plain_object("disc", (0.0, 60.0)),))).instances
    assert instance.box == pytest.approx((0, 25, 35, 95), abs=1)
    assert instance.visible == pytest.approx(0.5, abs=0.02)


def test_hidden_object_is_not_annotated_and_partly_hidden_one_shrinks() -> None:
    below, above = plain_object("disc", size=40.0), plain_object("square", size=90.0, paint=flat(200, 0, 0))
    assert [i.shape for i in render_scene(plain_scene((above, below))).instances] == ["square"]
    bar = Distractor(((40.0, 60.0), (130.0, 60.0)), 20.0, flat(0, 0, 255))
    whole = render_scene(plain_scene((below,))).instances[0]
    cut = render_scene(plain_scene((below,), occluders=(bar,))).instances[0]
    assert 0.3 < cut.visible < 0.5
    assert cut.area == (whole.mask & cut.mask).sum() < whole.area
    assert not cut.mask[60].any()


def test_barely_visible_object_is_not_annotated() -> None:
    for x, expected in ((-13.0, 1), (-16.0, 0)):  # 27 % and 22 % of a disc of radius 35 are inside
        rendered = render_scene(plain_scene((plain_object("disc", (x, 60.0)),)))
        assert len(rendered.instances) == expected


def test_crowd_is_one_region_over_its_members() -> None:
    members = tuple(plain_object("ring", (40.0 + 25 * i, 60.0), size=20.0) for i in range(4))
    (crowd,) = render_scene(plain_scene((), crowd=members)).instances
    assert crowd.crowd
    assert crowd.shape == "ring"
    assert crowd.box == pytest.approx((30, 50, 125, 70), abs=1)
    assert crowd.area == sum(render_scene(plain_scene((m,))).instances[0].area for m in members)


def test_masks_never_share_a_pixel() -> None:
    for index in range(12):
        rendered = render_scene(detection_scene(1, "train", index, SMALL))
        assert sum((i.mask.astype(int) for i in rendered.instances), np.zeros(1)).max() <= 1


def test_class_does_not_follow_colour_texture_or_size() -> None:
    by_class: dict[str, list[SceneObject]] = {}
    for index in range(300):
        for item in detection_scene(0, "train", index, SceneOptions()).objects:
            by_class.setdefault(item.shape, []).append(item)
    sizes = {shape: np.mean([item.size for item in items]) for shape, items in by_class.items()}
    assert max(sizes.values()) < 1.3 * min(sizes.values())
    for items in by_class.values():
        assert len({item.paint.texture for item in items}) == 5
        assert np.std([item.paint.first for item in items], axis=0).min() > 40


@pytest.mark.parametrize(
    "changes",
    [
        {"min_side": 10},
        {"min_side": 500},
        {"max_objects": 0},
        {"tiny_fraction": 1.5},
        {"occluded_fraction": -0.1},
    ],
)
def test_bad_options_are_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        SceneOptions(**changes)


def test_pictures_stay_within_the_asked_sides() -> None:
    for index in range(200):
        scene = detection_scene(0, "val", index, SceneOptions())
        assert 240 <= min(scene.height, scene.width) <= max(scene.height, scene.width) <= 480
