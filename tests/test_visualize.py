"""Drawn detections: where pixels change, and that no input can make the drawing fail."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mnvision.errors import UserError
from mnvision.visualize import class_color, contact_sheet, draw_detections


def grey(height, width, value=128):
    return np.full((height, width, 3), value, np.uint8)


def test_a_box_is_drawn_in_its_colour_and_the_picture_is_kept():
    image = grey(200, 300)
    drawn = draw_detections(image, np.array([[100.0, 80.0, 200.0, 150.0]]), np.array([5]))
    assert (image == 128).all()
    for row, column in [(150, 150), (120, 100), (120, 200), (80, 190)]:
        assert tuple(drawn[row, column]) == class_color(5)
    assert (drawn[100:140, 110:190] == 128).all()  # inside nothing is drawn
    assert (drawn[:, 210:] == 128).all()
    assert (drawn[160:] == 128).all()
    assert (drawn[60:79, 100:110] != 128).any()  # the caption stands above


def test_a_caption_at_the_border_stays_inside():
    drawn = draw_detections(
        grey(100, 120),
        np.array([[90.0, 0.0, 119.0, 60.0]]),
        np.array([0]),
        np.array([0.9]),
        ["a rather long class name"],
    )
    color = np.array(class_color(0))
    rows, columns = np.nonzero((drawn[:25] == color).all(axis=2))
    assert columns.min() < 10  # pushed left, since it did not fit beside the box
    assert rows.min() == 0


def test_padding_and_low_scores_are_not_drawn():
    boxes = np.array([[10.0, 10, 90, 90]] * 2)
    scores, labels = np.array([0.4, 0.0]), np.array([1, -1])
    drawn = draw_detections(grey(100, 100), boxes, labels, scores, ["a", "b"], score_threshold=0.5)
    assert (drawn == 128).all()
    assert (draw_detections(grey(100, 100), boxes, labels, scores, ["a", "b"]) != 128).any()
    empty = draw_detections(grey(50, 50), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    assert (empty == 128).all()


def test_the_best_detection_lies_on_top():
    boxes = np.array([[10.0, 40, 90, 90]] * 2)
    drawn = draw_detections(grey(100, 100), boxes, np.array([0, 1]), np.array([0.9, 0.2]), ["a", "b"])
    assert tuple(drawn[90, 50]) == class_color(0)


def test_lines_grow_with_the_picture():
    def changed_columns(side):
        box = np.array([[0.25, 0.5, 0.75, 0.9]]) * side
        drawn = draw_detections(grey(side, side), box, np.array([0]))
        return np.count_nonzero((drawn[int(side * 0.7)] != 128).any(axis=1))

    assert changed_columns(100) <= 4
    assert changed_columns(2000) >= 12


@pytest.mark.parametrize("name", ["Mädchen", "猫", "кот", "🐈", "", "\n", "a\tb", "x" * 500, "\u202eabc"])
def test_any_class_name_can_be_drawn(name):
    boxes = np.array([[5.0, 5, 60, 60]])
    drawn = draw_detections(grey(64, 64), boxes, np.array([0]), np.array([0.5]), [name])
    assert (drawn != 128).any()


def test_accented_letters_have_their_own_shape():
    def draw(name):
        return draw_detections(grey(64, 64), np.array([[5.0, 30, 60, 60]]), np.array([0]), None, [name])

    assert (draw("ä") != draw("ö")).any()
    assert (draw("ж") != draw("и")).any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 80),
    npst.arrays(np.float32, (3, 4), elements=st.floats(width=32)),
    npst.arrays(np.int64, 3, elements=st.integers(-1, 200)),
)
def test_no_box_makes_it_fail(height, width, boxes, labels):
    drawn = draw_detections(grey(height, width), boxes, labels, np.ones(3), ["only one name"])
    assert drawn.shape == (height, width, 3)
    assert drawn.dtype == np.uint8


def test_colours_differ_and_stay():
    colors = [class_color(label) for label in range(90)]
    assert len(set(colors)) == 90
    near = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.pairwise(colors)]
    assert min(near) > 100
    assert class_color(0) == colors[0]


@pytest.mark.parametrize(
    "image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), grey(0, 5)]
)
def test_bad_pictures_are_refused(image):
    with pytest.raises(UserError, match=r"expected .H, W, 3. uint8"):
        draw_detections(image, np.zeros((0, 4)), np.zeros(0, np.int64))


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="2 boxes with 1 labels and 1 scores"):
        draw_detections(grey(9, 9), np.zeros((2, 4)), np.zeros(1, np.int64))


def test_contact_sheet_places_pictures():
    sheet = contact_sheet([grey(40, 80, 10), grey(80, 40, 20), grey(10, 10, 30)], columns=2, cell=40, gap=4)
    assert sheet.shape == (2 * 44 + 4, 2 * 44 + 4, 3)
    assert (sheet[14:34, 4:44] == 10).all()  # 80x40 fitted to 40x20, centred
    assert (sheet[4:44, 58:78] == 20).all()
    assert (sheet[48:88, 4:44] == 30).all()  # enlarged
    assert (sheet[48:88, 48:88] == 255).all()
    assert contact_sheet([grey(5, 5)], columns=4, cell=20, gap=0).shape == (20, 20, 3)
    assert contact_sheet([grey(1, 500)], cell=20).dtype == np.uint8


@pytest.mark.parametrize("options", [{"columns": 0}, {"cell": 0}, {"gap": -1}])
def test_bad_sheets_are_refused(options):
    with pytest.raises(UserError, match="contact sheet of 1 pictures"):
        contact_sheet([grey(5, 5)], **options)
    with pytest.raises(UserError, match="of 0 pictures"):
        contact_sheet([])
