from __future__ import annotations

import numpy as np
import pytest

from mnvision.errors import UserError
from mnvision.transforms.classification import (
    ClassificationAugment,
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
