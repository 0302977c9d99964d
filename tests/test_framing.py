"""Framings: what of a picture is shown, and that drawing it in one step is what doing it in several would give."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from mnvision.errors import UserError
from mnvision.transforms.framing import (
    Box,
    CenterCrop,
    Framing,
    Plane,
    Stretch,
    center_crop_window,
    framing_from_dict,
    show,
    shown_part,
)
from mnvision.transforms.windows import MEAN_COLOUR, Window


def drawn(image: np.ndarray, framing: Framing, resolution: tuple[int, int]) -> np.ndarray:
    size = image.shape[:2]
    plane = framing.plane(size)
    return show(image, size, plane, framing.eval_window(plane.size, resolution), resolution)


def smooth_picture(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, (x + y) * 1.5], axis=2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "resolution", "crop", "expected"),
    [
        ((256, 256), (224, 224), 0.875, (16, 16, 240, 240)),
        ((256, 512), (224, 224), 0.875, (144, 16, 368, 240)),
        ((200, 100), (50, 100), 1.0, (0, 75, 100, 125)),
    ],
)
def test_central_crop_by_hand(size, resolution, crop, expected):
    assert center_crop_window(size, resolution, crop)[:4] == pytest.approx(expected)


def test_central_crop_pixel_for_pixel():
    image = np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8)
    shown = drawn(image, CenterCrop(), (224, 224))
    np.testing.assert_array_equal(shown, image[16:240, 48:272])


def test_a_box_is_cut_out():
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    shown = drawn(image, Box((0.25, 0.5, 0.75, 1.0)), (20, 40))
    np.testing.assert_array_equal(shown, image[20:40, 20:60])


@pytest.mark.parametrize("flip", [False, True])
def test_a_turned_plane_of_no_turn_is_the_crop(flip: bool):
    image = smooth_picture()
    window = Window(10, 5, 50, 45, flip)
    straight = show(image, (60, 80), Plane((60, 80)), window, (40, 40))
    almost = Plane((60, 80), np.array([[1.0, 1e-12, 0.0], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(show(image, (60, 80), almost, window, (40, 40)).astype(int), straight, atol=1)


def test_a_quarter_turn_is_numpys():
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    plane = Plane((50, 30), np.array([[0.0, -1.0, 30.0], [1.0, 0.0, 0.0]]))  # x' = 30 - y, y' = x
    turned = show(image, (30, 50), plane, Window(0, 0, 30, 50), (50, 30))
    np.testing.assert_array_equal(turned, np.rot90(image, -1))


def test_decoding_at_half_scale_shows_the_same_part():
    image = smooth_picture(120, 160)
    half = cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA)
    angle = math.radians(20)
    cos, sin = math.cos(angle) * 0.5, math.sin(angle) * 0.5
    plane = Plane((40, 40), np.array([[cos, -sin, 5.0], [sin, cos, -20.0]]))
    window = Window(2, 2, 38, 38)
    whole = show(image, (120, 160), plane, window, (36, 36)).astype(int)
    reduced = show(half, (120, 160), plane, window, (36, 36)).astype(int)
    assert np.abs(whole - reduced)[4:-4, 4:-4].mean() < 2
    assert shown_part(plane, window) == pytest.approx((72, 72))


def test_large_turned_pictures_are_averaged_and_not_subsampled():
    image = np.zeros((400, 400, 3), np.uint8)
    image[:, ::2] = 255  # one column in two: a subsampled picture would be all black or all white somewhere
    plane = Plane((50, 50), np.array([[0.125, 1e-9, 0.0], [0.0, 0.125, 0.0]]))
    shown = show(image, (400, 400), plane, Window(0, 0, 50, 50), (50, 50))
    assert np.abs(shown[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_what_lies_beyond_a_turned_picture_has_the_mean_colour():
    image = np.zeros((20, 20, 3), np.uint8)
    plane = Plane((20, 20), np.array([[1.0, 1e-9, 30.0], [0.0, 1.0, 30.0]]))
    shown = show(image, (20, 20), plane, Window(0, 0, 20, 20), (20, 20))
    assert (shown == np.array(MEAN_COLOUR)).all()


@pytest.mark.parametrize("framing", [Stretch(), CenterCrop(0.8), Box((0.1, 0.2, 0.9, 1.0))])
def test_checkpoints_hold_the_framing(framing: Framing):
    again = framing_from_dict(framing.to_dict())
    assert type(again) is type(framing)
    assert again.to_dict() == framing.to_dict()


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"resize": "tile"}, "tile"),
        ({}, "None"),
        ({"resize": "center_crop"}, "crop_fraction"),
        ({"resize": "center_crop", "crop_fraction": 0.0}, "crop"),
        ({"resize": "box", "box": [0.5, 0, 0.5, 1]}, "box"),
        ({"resize": "box"}, "box"),
    ],
)
def test_bad_rules_are_refused(rule: dict, word: str):
    with pytest.raises(UserError, match=word):
        framing_from_dict(rule)
