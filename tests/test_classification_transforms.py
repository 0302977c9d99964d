from __future__ import annotations

import numpy as np
import pytest

from mnvision.errors import UserError
from mnvision.transforms.classification import (
    ClassificationAugment,
    center_crop_resize,
    center_crop_window,
    make_classification_augment,
)


def test_crops_stay_inside_and_cover_the_asked_area_and_aspect():
    rng, augment = np.random.default_rng(0), ClassificationAugment()
    areas, aspects, flips = [], [], []
    for _ in range(500):
        x0, y0, x1, y1, flip = augment.window(rng, (400, 500))
        assert min(x0, y0) >= -1e-9
        assert x1 <= 500 + 1e-9
        assert y1 <= 400 + 1e-9
        areas.append((x1 - x0) * (y1 - y0) / 200_000)
        aspects.append((x1 - x0) / (y1 - y0))
        flips.append(flip)
    assert 0.05 - 1e-9 <= min(areas) < 0.1
    assert 0.9 < max(areas) <= 1.0
    assert min(aspects) == pytest.approx(0.75, abs=0.02)
    assert max(aspects) == pytest.approx(4 / 3, abs=0.03)
    assert 190 < sum(flips) < 310


def test_picture_too_long_for_any_crop_shows_its_middle():
    window = ClassificationAugment(area=(0.9, 1.0)).window(np.random.default_rng(0), (100, 1000))
    assert window[:4] == pytest.approx((500 - 200 / 3, 0, 500 + 200 / 3, 100))


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
    np.testing.assert_array_equal(center_crop_resize(image, (224, 224)), image[16:240, 48:272])


def test_distortion_follows_the_stream():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    augment = ClassificationAugment()
    seen = [augment.distort(np.random.default_rng(seed), image).tobytes() for seed in (0, 1, 0)]
    assert seen[0] == seen[2] != seen[1]
    off = ClassificationAugment(brightness=0, saturation=0)
    np.testing.assert_array_equal(off.distort(np.random.default_rng(0), image), image)


@pytest.mark.parametrize("options", [{"area": (0, 1)}, {"aspect": (2, 1)}, {"flip": 2}, {"rotate": 30}])
def test_bad_options_are_refused_by_name(options: dict):
    with pytest.raises(UserError, match=next(iter(options))):
        make_classification_augment(options)


def test_bad_crop_is_refused():
    with pytest.raises(UserError, match="crop"):
        center_crop_window((100, 100), (50, 50), 0.0)
