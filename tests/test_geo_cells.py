"""S2 cells beside Google's library, and distances beside high-precision arithmetic."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import s2geometry as s2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnvision.errors import UserError
from mnvision.geo import cells
from mnvision.geo.coordinates import REASONS, check_coordinates, one_spelling
from mnvision.geo.curve import columns_and_rows, positions_on_curve
from mnvision.geo.distance import EARTH_RADIUS_KM, great_circle_km, mean_position, unit_vectors

# Faces meet at 45 degrees, three of them at this latitude.
CORNER = math.degrees(math.atan(math.sqrt(0.5)))
LATITUDES = st.floats(-90, 90) | st.integers(-90, 90).map(float) | st.sampled_from([CORNER, -CORNER, 5e-324, -1e-300])
LONGITUDES = st.floats(-180, 180) | st.integers(-180, 180).map(float)
POINTS = st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=30)


def google(latitude: float, longitude: float, level: int = 30) -> s2.S2CellId:
    return s2.S2CellId(s2.S2LatLng.FromDegrees(float(latitude), float(longitude))).parent(level)


def google_ids(points: np.ndarray, level: int = 30) -> np.ndarray:
    return np.array([google(*point, level).id() for point in points.tolist()], np.uint64)


def directions(coordinates: np.ndarray) -> np.ndarray:
    return unit_vectors(coordinates[..., 0], coordinates[..., 1])


def random_points(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([np.degrees(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(-180, 180, count)])


def random_cells(count: int, seed: int) -> tuple[np.ndarray, list[s2.S2CellId]]:
    levels = np.random.default_rng(seed).integers(0, 31, count)
    theirs = [google(*point, level) for point, level in zip(random_points(count, seed).tolist(), levels.tolist())]
    return np.array([cell.id() for cell in theirs], np.uint64), theirs


@given(POINTS, st.integers(0, 30))
@example([(90.0, 0.0), (-90.0, 0.0), (0.0, 180.0), (0.0, -180.0), (CORNER, 45.0), (-CORNER, -135.0)], 30)
@example([(0.0, 0.0), (-0.0, -0.0), (45.0, 0.0), (0.0, 45.0), (0.0, -45.0), (90.0, 77.7)], 30)
@settings(deadline=None, max_examples=150)
def test_ids_are_googles(points: list[tuple[float, float]], level: int):
    array = np.array(points)
    ids = cells.cell_ids(array[:, 0], array[:, 1], level)
    assert ids.dtype == np.uint64
    assert ids.tolist() == google_ids(array, level).tolist()
    assert (cells.levels(ids) == level).all()


def test_many_ids_are_googles_in_several_blocks():
    points = random_points(40_000, 0)
    points[:15_000] = np.round(points[:15_000], 2)
    points[15_000:25_000, 1] = 90  # an edge of cells of every level
    np.testing.assert_array_equal(cells.cell_ids(points[:, 0], points[:, 1]), google_ids(points))


def points_on_edges(count: int) -> list[float]:
    """Longitudes on the equator whose place on the face is a whole number of smallest cells to the last bit."""
    found = []
    for column in np.random.default_rng(0).integers(1, 2**30, count).tolist():
        place = column / 2**30
        plane = (4 * place * place - 1) / 3 if place >= 0.5 else (1 - 4 * (1 - place) ** 2) / 3
        near = math.degrees(math.atan(plane))
        for longitude in (near, math.nextafter(near, 90), math.nextafter(near, -90)):
            turn = longitude * (math.pi / 180)
            at = math.sin(turn) / math.cos(turn)
            square = 0.5 * math.sqrt(1 + 3 * at) if at >= 0 else 1 - 0.5 * math.sqrt(1 - 3 * at)
            found += [longitude] if square * 2**30 == column else []
    return found


def test_points_on_an_edge_go_where_google_puts_them():
    points = np.array([[0.0, longitude] for longitude in points_on_edges(2000)])
    assert len(points) > 500
    np.testing.assert_array_equal(cells.cell_ids(points[:, 0], points[:, 1]), google_ids(points))
    corners = cells.vertices(random_cells(3000, 1)[0]).reshape(-1, 2)
    np.testing.assert_array_equal(cells.cell_ids(corners[:, 0], corners[:, 1]), google_ids(corners))


def test_shapes_and_parents():
    points = random_points(60, 2).reshape(3, 20, 2)
    leaves = cells.cell_ids(points[..., 0], points[..., 1])
    assert leaves.shape == (3, 20)
    assert cells.cell_ids([], []).shape == (0,)
    for level in range(31):
        expected = google_ids(points.reshape(-1, 2), level).reshape(3, 20)
        np.testing.assert_array_equal(cells.parents(leaves, level), expected)
    for level in (-1, 31):
        with pytest.raises(UserError, match="levels 0"):
            cells.parents(leaves, level)


def test_family_names_and_ranges_are_googles():
    ids, theirs = random_cells(1000, 3)
    assert cells.levels(ids).tolist() == [cell.level() for cell in theirs]
    assert cells.tokens(ids) == [cell.ToToken() for cell in theirs]
    np.testing.assert_array_equal(cells.from_tokens(cells.tokens(ids)), ids)
    first, last = cells.ranges(ids)
    assert first.tolist() == [cell.range_min().id() for cell in theirs]
    assert last.tolist() == [cell.range_max().id() for cell in theirs]
    split = cells.levels(ids) < 30
    expected = [[cell.child(k).id() for k in range(4)] for cell in theirs if not cell.is_leaf()]
    assert cells.children(ids[split]).tolist() == expected


def test_centres_and_vertices_are_googles():
    ids, theirs = random_cells(1000, 4)
    latlngs = [cell.ToLatLng() for cell in theirs]
    centres = np.array([[p.lat().degrees(), p.lng().degrees()] for p in latlngs])
    # Directions, since -180 and 180 are one longitude.
    np.testing.assert_allclose(directions(cells.centres(ids)), directions(centres), atol=1e-15)
    corners = [[s2.S2LatLng(s2.S2Cell(cell).GetVertex(k)) for k in range(4)] for cell in theirs]
    expected = np.array([[[p.lat().degrees(), p.lng().degrees()] for p in four] for four in corners])
    assert cells.vertices(ids).shape == (1000, 4, 2)
    np.testing.assert_allclose(directions(cells.vertices(ids)), directions(expected), atol=1e-15)


def test_a_centre_lies_in_its_cell():
    ids = random_cells(1000, 5)[0]
    centres = cells.centres(ids)
    leaves = cells.cell_ids(centres[:, 0], centres[:, 1])
    first, last = cells.ranges(ids)
    assert ((first <= leaves) & (leaves <= last)).all()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
@settings(deadline=None)
def test_which_numbers_are_cells(numbers: list[int]):
    expected = [s2.S2CellId(number).is_valid() for number in numbers]
    assert cells.are_cells(np.array(numbers, np.uint64)).tolist() == expected


@pytest.mark.parametrize("name", ["", "X", "zz", "47A1", "47a1cbd5951234567", "c", "0", "46", "-1"])
def test_a_wrong_token_is_named(name: str):
    with pytest.raises(UserError, match=f"'{name}' is not the token"):
        cells.from_tokens(["47a1", name])


def test_the_curve_goes_from_neighbour_to_neighbour():
    for face in range(6):
        positions = np.arange(4**8, dtype=np.uint64) << np.uint64(44)
        faces = np.full(len(positions), face)
        columns, rows = columns_and_rows(positions, faces)
        steps = np.abs(np.diff(columns >> 22)) + np.abs(np.diff(rows >> 22))
        assert (steps == 1).all()
        np.testing.assert_array_equal(positions_on_curve(columns, rows, faces), positions)


def exact_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Distance with fifty digits."""
    with mpmath.workdps(50):
        vectors = []
        for latitude, longitude in (a, b):
            phi, theta = mpmath.radians(mpmath.mpf(latitude)), mpmath.radians(mpmath.mpf(longitude))
            around = mpmath.cos(phi)
            vectors.append((around * mpmath.cos(theta), around * mpmath.sin(theta), mpmath.sin(phi)))
        (x, y, z), (u, v, w) = vectors
        across = mpmath.sqrt((y * w - z * v) ** 2 + (z * u - x * w) ** 2 + (x * v - y * u) ** 2)
        return float(EARTH_RADIUS_KM * mpmath.atan2(across, x * u + y * v + z * w))


@given(LATITUDES, LONGITUDES, LATITUDES, LONGITUDES)
@example(90.0, 10.0, 90.0, -120.0)
@example(12.0, 34.0, -12.0, -146.0)
@example(12.0, 34.0, -12.000001, -146.000001)
@example(48.85, 2.35, 48.8500001, 2.3500001)
@example(0.0, 180.0, 0.0, -180.0)
@settings(deadline=None, max_examples=100)
def test_distances_are_exact_to_a_micrometre(la: float, lo: float, lb: float, lp: float):
    assert float(great_circle_km(la, lo, lb, lp)) == pytest.approx(exact_km((la, lo), (lb, lp)), rel=1e-13, abs=1e-9)


def test_distances_broadcast_and_have_known_values():
    points = np.array([[90.0, 0.0], [0.0, 90.0], [0.0, -180.0], [0.0, 0.0]])
    quarter = math.pi / 2 * 6371.0088
    found = great_circle_km(0, 0, points[:, 0], points[:, 1])
    np.testing.assert_allclose(found, [quarter, quarter, 2 * quarter, 0], rtol=1e-15)
    assert great_circle_km(points[:, None, 0], points[:, None, 1], points[:, 0], points[:, 1]).shape == (4, 4)
    assert math.isnan(great_circle_km(math.nan, 0, 0, 0))


def test_the_mean_is_on_the_sphere():
    assert mean_position([10.0, 10.0], [179.0, -179.0]) == pytest.approx((10.0015, 180.0), abs=1e-3)
    assert mean_position([80.0, 80.0, 80.0, 80.0], [0.0, 90.0, 180.0, -90.0])[0] == pytest.approx(90)


def test_coordinates_are_refused_by_reason():
    nan, inf = math.nan, math.inf
    pairs = {
        "not_a_number": [(nan, 0.0), (0.0, nan), (inf, 0.0), (10.0, -inf)],
        "swapped": [(120.0, 45.0), (-180.0, -90.0), (90.0000001, 90.0)],
        "latitude_out_of_range": [(91.0, 91.0), (200.0, 10.0), (-95.0, -170.0)],
        "longitude_out_of_range": [(10.0, 180.1), (-90.0, -360.0)],
        "null_island": [(0.0, 0.0), (-0.0, 0.0)],
    }
    good = [(90.0, 180.0), (-90.0, -180.0), (0.0, 1e-9), (45.0, 120.0)]
    rows = [*good, *(pair for some in pairs.values() for pair in some)]
    found = check_coordinates(*zip(*rows))
    assert list(found.refused) == list(pairs) == list(REASONS)
    assert found.counts == {reason: len(some) for reason, some in pairs.items()}
    assert found.valid.tolist() == [True] * 4 + [False] * (len(rows) - 4)
    start = 4
    for reason, some in pairs.items():
        assert found.refused[reason][start : start + len(some)].all()
        start += len(some)


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30))
def test_each_pair_is_valid_or_has_one_reason(pairs: list[tuple[float, float]]):
    array = np.array(pairs).reshape(-1, 2)
    found = check_coordinates(array[:, 0], array[:, 1])
    assert (found.valid + np.sum(list(found.refused.values()), axis=0) == 1).all()
    assert np.isfinite(array[found.valid]).all()


def test_one_place_has_one_spelling():
    latitudes, longitudes = np.array([10.0, 90.0, -90.0, 90.0, 5.0]), np.array([180.0, 33.0, 180.0, -7.0, -180.0])
    spelled = one_spelling(latitudes, longitudes)
    assert spelled[0].tolist() == latitudes.tolist()
    assert spelled[1].tolist() == [-180.0, 0.0, 0.0, 0.0, -180.0]
