"""Crops, and names of folders for them."""

from __future__ import annotations

import numpy as np

from mnvision.prediction.pictures import crop, folder_name
from tests.builders_models import picture


def test_crop_covers_the_box_and_stays_inside():
    pixels = picture(height=20, width=30)
    np.testing.assert_array_equal(crop(pixels, (2.2, 3.9, 7.1, 8.0)), pixels[3:8, 2:8])
    np.testing.assert_array_equal(crop(pixels, (-5.0, -5.0, 99.0, 99.0)), pixels)
    assert crop(pixels, (30.0, 20.0, 30.0, 20.0)).shape == (1, 1, 3)


def test_class_names_cannot_leave_the_folder():
    assert folder_name("../..") == "_____"
    assert folder_name("traffic light") == "traffic light"
    assert folder_name("") == "_"
