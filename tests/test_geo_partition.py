"""The adaptive partition beside a slow one written with Google's library; files; the hierarchy."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s2geometry as s2
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.errors import UserError
from mnvision.geo.cells import cell_ids, levels, parents, ranges
from mnvision.geo.hierarchy import Hierarchy
from mnvision.geo.partition import Partition, PartitionSettings, partition_photos


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Photos around some towns of very different sizes, at the date line and the poles too."""
    rng = np.random.default_rng(seed)
    towns = np.column_stack([rng.uniform(-80, 80, 40), rng.uniform(-180, 180, 40)])
    towns[:4] = [[-17, 179.9], [89.9, 0], [-89.9, 120], [0, 45]]
    chosen = rng.choice(40, count, p=np.arange(40, 0, -1) / 820)
    points = towns[chosen] + rng.normal(0, 1, (count, 2)) * rng.choice([0.01, 0.3, 3], (count, 1))
    return np.column_stack([np.clip(points[:, 0], -90, 90), (points[:, 1] + 180) % 360 - 180])


def slowly(points: np.ndarray, max_photos: int, min_photos: int, min_level: int, max_level: int) -> dict[int, list]:
    """PlaNet's rule word by word: id -> the cell's photos."""
    kept = {}

    def split(cell: s2.S2CellId, photos: list[tuple[s2.S2CellId, list[float]]]) -> None:
        divide = len(photos) > max_photos or cell.level() < min_level
        if divide and cell.level() < max_level:
            for k in range(4):
                child = cell.child(k)
                split(child, [photo for photo in photos if child.contains(photo[0])])
        elif len(photos) >= min_photos:
            kept[cell.id()] = [point for _, point in photos]

    leaves = [(s2.S2CellId(s2.S2LatLng.FromDegrees(*point)), point) for point in points.tolist()]
    for face in range(6):
        start = s2.S2CellId.FromFacePosLevel(face, 0, 0)
        split(start, [photo for photo in leaves if start.contains(photo[0])])
    return kept


def google_mean(points: list[list[float]]) -> tuple[float, float]:
    vectors = [s2.S2LatLng.FromDegrees(*point).ToPoint() for point in points]
    x, y, z = (math.fsum(getattr(v, axis)() for v in vectors) for axis in "xyz")
    return math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x))


@pytest.mark.parametrize(
    ("max_photos", "min_photos", "min_level", "max_level"),
    [(30, 5, 0, 13), (10, 10, 0, 30), (15, 3, 3, 9), (10_000, 1, 0, 13), (1, 1, 0, 4), (20, 2, 5, 5)],
)
def test_cells_are_those_of_the_rule(max_photos: int, min_photos: int, min_level: int, max_level: int):
    points = clustered(800)
    expected = slowly(points, max_photos, min_photos, min_level, max_level)
    found = partition_photos([(points[:, 0], points[:, 1])], max_photos, min_photos, min_level, max_level)
    assert found.cells.tolist() == sorted(expected)
    assert found.counts.tolist() == [len(expected[cell]) for cell in sorted(expected)]
    assert (found.num_photos, found.num_dropped) == (800, 800 - sum(map(len, expected.values())))
    means = np.array([google_mean(expected[cell]) for cell in sorted(expected)])
    apart = np.abs(found.positions - means)
    apart[:, 1] = np.minimum(apart[:, 1], 360 - apart[:, 1]) * np.cos(np.radians(means[:, 0]))
    assert apart.max() < 6e-6  # rounded to five decimals
    assert found.labels(points[:, 0], points[:, 1]).tolist() == [
        next((i for i, cell in enumerate(found.cells.tolist()) if s2.S2CellId(cell).contains(leaf)), -1)
        for leaf in (s2.S2CellId(s2.S2LatLng.FromDegrees(*point)) for point in points.tolist())
    ]


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2000), max_size=12))
@settings(deadline=None, max_examples=25)
def test_order_and_chunks_do_not_matter(seed: int, cuts: list[int]):
    points = clustered(2000, 1)
    whole = partition_photos([(points[:, 0], points[:, 1])], 60, 4)
    mixed = np.random.default_rng(seed).permutation(points)
    parts = np.split(mixed, sorted(cuts))
    other = partition_photos([(part[:, 0], part[:, 1]) for part in parts], 60, 4)
    assert other.fingerprint == whole.fingerprint
    assert other.num_dropped == whole.num_dropped


def test_many_photos_of_one_place_end_at_the_finest_level():
    place = np.full(500, 48.8584), np.full(500, 2.2945)
    found = partition_photos([place], 10, 1, max_level=13)
    assert levels(found.cells).tolist() == [13]
    assert found.positions.tolist() == [[48.8584, 2.2945]]
    finest = partition_photos([place], 10, 1, max_level=30)
    assert levels(finest.cells).tolist() == [30]


def test_both_spellings_of_the_date_line_and_of_a_pole_are_one_place():
    latitudes, longitudes = np.array([10.0, 10.0, 90.0, 90.0]), np.array([180.0, -180.0, 20.0, -110.0])
    found = partition_photos([(latitudes, longitudes)], 1, 1, max_level=20)
    assert sorted(found.counts.tolist()) == [2, 2]
    labels = found.labels(latitudes, longitudes)
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert found.positions[labels[0]].tolist() == [10.0, -180.0]


def test_places_outside_every_cell_have_no_label():
    found = partition_photos([(np.full(9, 50.0), np.full(9, 10.0))], 1, 1, max_level=13)
    assert found.labels([50.0, 50.1, -50.0, 90.0, -90.0, 0.0], [10.0, 10.0, 10.0, 0.0, 0.0, -179.0]).tolist() == [
        0,
        *[-1] * 5,
    ]
    assert found.labels([], []).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_photos": 10, "min_photos": 20}, "max_photos=10 is below min_photos=20"),
        ({"min_photos": 0}, "min_photos=0: give 1 or more"),
        ({"max_photos": 10.5}, "max_photos=10.5: give a whole number"),
        ({"min_level": 5, "max_level": 4}, "the least first"),
        ({"max_level": 31}, "give levels 0 to 30"),
        ({"min_photos": 11}, "no cell holds min_photos=11 of the 10 photos"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        partition_photos([(np.zeros(10) + 5, np.zeros(10) + 5)], **options)


def test_no_photos_and_no_places_are_refused():
    with pytest.raises(UserError, match="no photos with coordinates"):
        partition_photos([(np.zeros(0), np.zeros(0))])
    with pytest.raises(UserError, match="2 of 3 places have no valid"):
        partition_photos([(np.array([91.0, math.nan, 3.0]), np.array([0.0, 0.0, 0.0]))])


@pytest.fixture(scope="module")
def partition() -> Partition:
    points = clustered(3000)
    return partition_photos([(points[:, 0], points[:, 1])], 100, 5, source="towns")


def same(one: Partition, other: Partition) -> bool:
    arrays = all(np.array_equal(getattr(one, n), getattr(other, n)) for n in ("cells", "counts", "positions"))
    rest = [(p.settings, p.num_photos, p.num_dropped, p.source, p.fingerprint) for p in (one, other)]
    return arrays and rest[0] == rest[1]


def test_files_and_plain_data_hold_everything(partition: Partition, tmp_path: Path):
    partition.save(tmp_path / "new" / "cells.npz")
    assert same(Partition.load(tmp_path / "new" / "cells.npz"), partition)
    data = partition.to_dict()
    assert data["cells"] == partition.names
    assert same(Partition.from_dict(json.loads(json.dumps(data))), partition)
    torch.save(data, tmp_path / "data.pt")
    assert same(Partition.from_dict(torch.load(tmp_path / "data.pt", weights_only=True)), partition)
    assert partition.settings == PartitionSettings(100, 5)
    with pytest.raises(UserError, match=r"as \.npz"):
        partition.save(tmp_path / "cells.csv")


def test_the_fingerprint_tells_partitions_apart(partition: Partition):
    data = partition.to_dict()
    seen = {partition.fingerprint}
    moved = [[round(data["positions"][0][0] + 1e-5, 5), data["positions"][0][1]], *data["positions"][1:]]
    counted = [data["counts"][0] + 1, *data["counts"][1:]]
    changes = [
        {"positions": moved},
        {"counts": counted, "num_photos": data["num_photos"] + 1},
        {"cells": data["cells"][1:], "counts": data["counts"][1:], "positions": data["positions"][1:]}
        | {"num_dropped": data["num_dropped"] + data["counts"][0]},
    ]
    seen |= {Partition.from_dict(data | change).fingerprint for change in changes}
    assert len(seen) == 4
    assert Partition.from_dict(data | {"source": "elsewhere"}).fingerprint == partition.fingerprint


def broken(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What can be wrong with plain data, by a part of the message."""
    return {
        "is missing": {key: value for key, value in data.items() if key != "counts"},
        "make one with": data | {"format": "else"},
        "has version 2": data | {"version": 2},
        "not the token": data | {"cells": ["xyz", *data["cells"][1:]]},
        "not in order": data | {"cells": data["cells"][::-1]},
        "wrong shapes": data | {"counts": data["counts"][1:]},
        "do not add up": data | {"num_photos": 1},
        "fewer photos than": data | {"counts": [1, *data["counts"][1:]]},
        "outside its cell": data | {"positions": data["positions"][::-1]},
        "no cells": data | {"cells": [], "counts": [], "positions": np.zeros((0, 2)).tolist()},
        "not rounded": data | {"positions": (np.array(data["positions"]) + 1e-7).tolist()},
        "level that was not asked": data | {"settings": data["settings"] | {"min_level": 9}},
        "says wrongly": data | {"settings": {"max_photos": 3}} | {"num_photos": "many"},
        "give a whole number": data | {"settings": data["settings"] | {"max_photos": "many"}},
    }


def test_wrong_data_is_refused_in_one_line(partition: Partition):
    for message, data in broken(partition.to_dict()).items():
        with pytest.raises(UserError, match=message) as caught:
            Partition.from_dict(data)
        assert "\n" not in str(caught.value)


def test_overlapping_cells_are_refused(partition: Partition):
    data = partition.to_dict()
    parent = s2.S2CellId.FromToken(data["cells"][0]).parent().ToToken()
    with pytest.raises(UserError, match="overlap"):
        Partition.from_dict(data | {"cells": sorted([parent, *data["cells"][1:]])})


def test_files_that_are_no_partition_are_refused(partition: Partition, tmp_path: Path):
    partition.save(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("latitude,longitude")
    np.savez(tmp_path / "other.npz", cells=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", about=np.array({}, object), cells=[], counts=[], positions=[])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("half.npz", "flipped.npz", "empty.npz", "text.npz", "other.npz", "pickled.npz", "array.npy"):
        with pytest.raises(UserError, match="is no partition, or damaged"):
            Partition.load(tmp_path / name)
    with pytest.raises(UserError, match="is a folder"):
        Partition.load(tmp_path)
    with pytest.raises(UserError, match="partition not found"):
        Partition.load(tmp_path / "none.npz")


def test_a_hierarchy_groups_cells_by_their_ancestors(partition: Partition):
    hierarchy = Hierarchy(partition, (0, 2, 5))
    for level, cells, groups in zip((0, 2, 5), hierarchy.cells, hierarchy.groups):
        assert (np.diff(groups) >= 0).all()
        first, last = ranges(cells[groups])
        assert ((first <= partition.cells) & (partition.cells <= last)).all()
        fine = levels(partition.cells) >= level
        np.testing.assert_array_equal(cells[groups][fine], parents(partition.cells[fine], level))
        np.testing.assert_array_equal(cells[groups][~fine], partition.cells[~fine])
    for wrong in ((3, 2), (2, 2), (-1, 2), (2, 31)):
        with pytest.raises(UserError, match="rising levels"):
            Hierarchy(partition, wrong)


def test_probabilities_add_up_and_the_best_path_goes_down(partition: Partition):
    hierarchy = Hierarchy(partition, (1, 4))
    chances = np.random.default_rng(0).dirichlet(np.ones(len(partition)), 64)
    groups = hierarchy.groups[1]
    expected = np.stack([chances[:, groups == group].sum(1) for group in range(groups.max() + 1)], axis=1)
    np.testing.assert_allclose(hierarchy.sums(chances, 1), expected, rtol=1e-12)
    tensors = torch.from_numpy(chances)
    np.testing.assert_allclose(hierarchy.sums(tensors, 1).numpy(), expected, rtol=1e-12)
    best = hierarchy.along_best_path(chances)
    assert torch.equal(hierarchy.along_best_path(tensors), torch.from_numpy(best))
    for row, kept in zip(chances, best):
        allowed = np.ones(len(row), bool)
        for groups in hierarchy.groups:
            totals = Counter()
            for group, value in zip(groups[allowed].tolist(), row[allowed].tolist()):
                totals[group] += value
            allowed &= groups == max(totals, key=totals.__getitem__)
        np.testing.assert_array_equal(kept, np.where(allowed, row, 0))
    assert (best.argmax(1) != chances.argmax(1)).any()


def test_labels_agree_with_the_ranges_of_the_cells(partition: Partition):
    rng = np.random.default_rng(0)
    latitudes, longitudes = rng.uniform(-90, 90, 200_000), rng.uniform(-180, 180, 200_000)
    found = partition.labels(latitudes, longitudes)
    leaves = cell_ids(latitudes, longitudes)
    first, last = ranges(partition.cells)
    inside = found >= 0
    assert 0.1 < inside.mean() < 0.999
    assert ((first[found[inside]] <= leaves[inside]) & (leaves[inside] <= last[found[inside]])).all()
    for low, high in zip(first, last):
        assert not ((low <= leaves[~inside]) & (leaves[~inside] <= high)).any()
