"""Five landmarks to a template: the fit, the framing and the pixels."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnvision.errors import UserError
from mnvision.transforms.alignment import ARCFACE_POINTS, SIDE, TEMPLATES, FivePoints, five_points, similarity
from mnvision.transforms.framing import framing_from_dict, show
from mnvision.transforms.windows import MEAN_COLOUR
from tests.builders_identities import TEMPLATE, draw_face, find_dots, opencv_similarity, placed, umeyama

coordinates = arrays(np.float64, (5, 2), elements=st.floats(-500, 500).map(lambda value: round(value, 2)))


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def shown(
    picture: np.ndarray, framing: FivePoints, points: np.ndarray | None, resolution: tuple[int, int]
) -> np.ndarray:
    size = picture.shape[:2]
    plane = framing.plane(size, points)
    return show(picture, size, plane, framing.eval_window(plane.size, resolution), resolution)


class TestSimilarity:
    @given(st.floats(0.05, 20), st.floats(-180, 180), st.floats(-300, 300), st.floats(-300, 300))
    def test_a_similarity_is_found_exactly(self, scale: float, degrees: float, x: float, y: float):
        points = placed(scale, degrees, (x, y))
        matrix = similarity(points, TEMPLATE)
        np.testing.assert_allclose(apply(matrix, points), TEMPLATE, atol=1e-8)
        assert np.linalg.det(matrix[:, :2]) == pytest.approx(1 / scale**2)

    @given(coordinates, coordinates)
    def test_as_in_umeyamas_paper(self, source: np.ndarray, target: np.ndarray):
        centred = source - source.mean(0), target - target.mean(0)
        covariance = centred[1].T @ centred[0] / 5
        # Where both directions fit equally badly the best one is not defined.
        values = np.linalg.svd(covariance, compute_uv=False)
        if values[0] - values[1] < 1e-3 * values[0] + 1e-6:
            return
        expected = umeyama(source, target)
        np.testing.assert_allclose(similarity(source, target), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())

    @given(coordinates, st.floats(0.9, 1.1), st.floats(-0.1, 0.1), st.floats(-2, 2))
    def test_nothing_near_it_is_closer(self, source: np.ndarray, stretch: float, turn: float, shift: float):
        if np.ptp(source, axis=0).max() < 1:
            return
        target = TEMPLATE
        best = similarity(source, target)
        change = stretch * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        other = np.column_stack([change @ best[:, :2], best[:, 2] + shift])
        errors = [np.square(apply(matrix, source) - target).sum() for matrix in (best, other)]
        assert errors[0] <= errors[1] * (1 + 1e-9)

    def test_as_opencv_where_the_fit_is_exact(self):
        points = placed(1.7, 33, (120, 90))
        np.testing.assert_allclose(similarity(points, TEMPLATE), opencv_similarity(points, TEMPLATE), atol=1e-6)

    def test_a_face_seen_from_the_side_is_turned_but_never_mirrored(self):
        points = TEMPLATE.copy()
        points[:, 0] = SIDE - points[:, 0]
        assert np.linalg.det(similarity(points, TEMPLATE)[:, :2]) > 0

    @pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
    def test_five_points_in_one_place_are_refused(self, points: np.ndarray):
        with pytest.raises(UserError, match="cannot be aligned"):
            similarity(points, TEMPLATE)


class TestFivePoints:
    @pytest.mark.parametrize("resolution", [(112, 112), (96, 96), (160, 160)])
    def test_dots_come_to_the_templates_places(self, resolution: tuple[int, int]):
        points = placed(1.4, -25, (130, 100))
        image = shown(draw_face((200, 260), points, radius=6), FivePoints(), points, resolution)
        np.testing.assert_allclose(find_dots(image), TEMPLATE * resolution[0] / SIDE, atol=0.3)

    def test_pixels_are_those_of_one_warp(self):
        picture = np.random.default_rng(0).integers(0, 256, (150, 140, 3), np.uint8)
        points = placed(0.9, 12, (70, 80))
        matrix = umeyama(points - 0.5, TEMPLATE - 0.5)  # OpenCV counts from pixel centres
        expected = cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=MEAN_COLOUR)
        image = shown(picture, FivePoints(), points, (SIDE, SIDE))
        assert np.abs(image.astype(int) - expected).max() <= 1

    def test_margin_shows_more_around_the_same_centre(self):
        points = placed(1.0, 0, (100, 100))
        image = shown(draw_face((200, 200), points), FivePoints(margin=0.25), points, (SIDE, SIDE))
        np.testing.assert_allclose(find_dots(image), (TEMPLATE - SIDE / 2) / 1.5 + SIDE / 2, atol=0.3)

    def test_fixed_points_hold_for_any_size_of_picture(self):
        points = placed(1.2, 0, (89, 120))
        fixed = (points / (178, 218)).tolist()
        for factor in (1, 0.5):
            size = round(218 * factor), round(178 * factor)
            image = shown(draw_face(size, points * factor, 4 * factor), FivePoints(fixed), None, (SIDE, SIDE))
            np.testing.assert_allclose(find_dots(image), TEMPLATE, atol=0.3)

    def test_landmarks_go_before_fixed_points(self):
        points = placed(1.0, 0, (100, 100))
        framing = FivePoints("arcface")
        np.testing.assert_allclose(apply(framing.plane((200, 200), points).matrix, points), TEMPLATE, atol=1e-9)

    def test_pictures_aligned_already_are_left_as_they_are(self):
        picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        np.testing.assert_array_equal(shown(picture, FivePoints("arcface"), None, (SIDE, SIDE)), picture)

    def test_large_faces_are_averaged_and_not_sampled(self):
        board = np.indices((800, 800)).sum(axis=0) % 2 * 255
        picture = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
        points = placed(5.0, 20, (400, 400))
        image = shown(picture, FivePoints(), points, (SIDE, SIDE))[20:-20, 20:-20]
        assert np.abs(image.astype(float) - 127.5).max() < 12

    def test_without_landmarks_and_points(self):
        assert FivePoints().needs_landmarks
        assert not FivePoints("arcface").needs_landmarks
        with pytest.raises(UserError, match="no landmarks"):
            FivePoints().plane((100, 100))

    def test_a_checkpoints_rule_gives_the_same_plane(self):
        template = (TEMPLATES["arcface"] * 0.9).tolist()
        for framing in (FivePoints(), FivePoints("arcface", margin=0.1), FivePoints(template, template, -0.1)):
            again = framing_from_dict(framing.to_dict())
            assert isinstance(again, FivePoints)
            assert again.to_dict() == framing.to_dict()
            points = placed(2, 5, (90, 80))
            np.testing.assert_array_equal(again.plane((9, 9), points).matrix, framing.plane((9, 9), points).matrix)
        moved = FivePoints(template, margin=0.2).at("arcface")
        assert moved.to_dict() == {"resize": "five_points", "points": "arcface", "template": "arcface", "margin": 0.2}

    @pytest.mark.parametrize(
        ("rule", "text"),
        [
            ({"margin": -0.5}, "above -0.5"),
            ({"margin": "wide"}, "above -0.5"),
            ({"template": "vggface"}, "give arcface, or five pairs"),
            ({"points": [[0.1, 0.2]]}, "give five pairs"),
            ({"points": [["a", 0.2]] * 5}, "give five pairs"),
            ({"points": [list(point) for point in ARCFACE_POINTS]}, "fractions of width and height"),
            ({"points": [[0.7, 0.5], [0.3, 0.5], [0.5, 0.6], [0.4, 0.8], [0.6, 0.8]]}, "sees on the left"),
            ({"zoom": 2}, "has no zoom; known are points, template, margin"),
        ],
    )
    def test_bad_rules_are_refused(self, rule: dict, text: str):
        with pytest.raises(UserError, match=re.escape(text)):
            framing_from_dict({"resize": "five_points", **rule})


def test_the_template_is_insightfaces():
    assert five_points("arcface", "template") * SIDE == pytest.approx(np.array(ARCFACE_POINTS))
    assert TEMPLATE.mean(0) == pytest.approx((56.02616, 71.90078))
