"""Scores with their models: their file, the rows of the paper that they stand in, and the line through a grid."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mnvision.cost import Cost, LayerCost
from mnvision.errors import UserError
from mnvision.paper.grid import Point, grid_points, grid_section, log_slope
from mnvision.paper.layout import Column, Row, Table
from mnvision.paper.measured import Record, knobs, merged, read_records, write_records
from mnvision.paper.sections import table_section

WORDS = "task=classification backbone.alpha=0.5 backbone.resolution=96"


def record(words: str = WORDS, **changes: Any) -> Record:
    return Record(**({"table": 6, "words": words, "metric": "top1", "value": 0.5, "data": "dogs"} | changes))


def test_records_survive_their_file_and_newer_ones_replace_older(tmp_path: Path):
    records = [record(), record(value=0.25, note="other"), record(table=11, metric="within_1km", row="1 km")]
    write_records(records, tmp_path / "m.json")
    assert read_records(tmp_path / "m.json") == records
    again = record(value=0.75, command="later")
    assert merged(records, [again]) == [*records[1:], again]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"value": 61.8}, "value=61.8 is no fraction"),
        ({"value": True}, "is no fraction"),
        ({"table": 3}, "tables 4 to 14"),
        ({"table": "6"}, "is no whole number"),
        ({"words": "task=imagenet"}, "must be key=value with backbone.alpha"),
        ({"words": "nonsense"}, "must be key=value"),
        ({"minutes": "long"}, "minutes='long' is no number"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"data": 3}, "data=3 is no text"),
    ],
)
def test_a_wrong_record_is_named(change: dict[str, Any], text: str, tmp_path: Path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps([asdict(record()), asdict(record()) | change]))
    with pytest.raises(UserError, match="entry 1: ") as caught:
        read_records(path)
    assert text in str(caught.value)


def test_files_that_hold_no_records_are_refused(tmp_path: Path):
    path = tmp_path / "m.json"
    for content, text in (
        ("{", "is no JSON"),
        ("{}", "must hold a list"),
        ('["x"]', "is no record"),
        ("[{}]", "missing"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=text):
            read_records(path)


def cost_of(mult_adds: int) -> Cost:
    return Cost((96, 96), (LayerCost("fc", "fully connected", (1,), mult_adds, 10, 10),))


def test_scores_stand_in_the_row_of_their_knobs_or_in_one_of_their_own():
    face = "task=face_attributes backbone.alpha={} backbone.resolution={}"
    table = Table(
        *(12, "faces", (Column("mean AP %", "score"), Column("cost", "mult_adds", 1e6))),
        (Row("0.5-224", ("88.1", "149"), face.format(0.5, 224)), Row("teacher", ("86.9", "1600"))),
    )
    records = [
        record(face.format(0.5, 224), table=12, value=0.7, data="A"),
        record(face.format(0.5, 96), table=12, value=0.6, data="B"),
        record(face.format(0.5, 224), table=13),
    ]
    section = table_section(table, lambda words: cost_of(149_200_000), records)
    assert section.rows == [
        ["0.5-224", "88.1", "70.0 a", "149", "149.2", "=", ""],
        ["teacher", "86.9", "-", "1600", "-", "-", "quoted"],
        ["0.5-96, measured here", "-", "60.0 b", "-", "149.2", "-", "ours"],
    ]
    assert section.notes[1:] == ["a: top1 on A", "b: top1 on B"]


def test_a_model_that_differs_in_more_than_two_knobs_has_no_row_of_the_papers():
    plain = "task=face_embeddings backbone.alpha=1.0 backbone.resolution=128"
    table = Table(
        *(14, "faces", (Column("1e-4 %", "score"), Column("cost", "mult_adds", 1e6))),
        (Row("1.0-128", ("78.3", "185"), f"{plain} backbone.stem_stride=2"),),
    )
    records = [record(f"{plain}{more}", table=14) for more in ("", " backbone.stem_stride=1 head.dim=128")]
    section = table_section(table, lambda words: cost_of(185_000_000), records)
    assert [row[:3] for row in section.rows] == [
        *(["1.0-128", "78.3", "50.0 a"], ["1.0-128 stem_stride=1, measured here", "-", "50.0 a"]),
    ]
    both = "backbone.variant=full_conv backbone.depth_multiplier=2"
    assert knobs(f"{plain} {both}") == (1.0, 128, "depth_multiplier=2 variant=full_conv")


def test_detectors_are_told_apart():
    knobs = "backbone.alpha=0.5 backbone.resolution=300"
    tasks = ("ssd_coco", "ssdlite_coco", "faster_rcnn_coco")
    names = [record(f"task={task} {knobs}", table=13).name for task in tasks]
    assert names == ["SSD 0.5-300", "SSDLite 0.5-300", "Faster-RCNN 0.5-300"]


def test_radii_take_the_scores_of_their_distance():
    table = Table(
        *(11, "places", (Column("PlaNet %", "quoted"), Column("MobileNet %", "score"))),
        (Row("City (25 km)", ("31.7", "31.7")), Row("Street (1 km)", ("11.0", "11.4"))),
    )
    words = "task=geolocation backbone.alpha=1.0 backbone.resolution=224"
    found = [record(words, table=11, value=0.125, metric="within_25km", row="25 km")]
    section = table_section(table, lambda words: cost_of(1), found)
    assert section.rows == [
        ["City (25 km)", "31.7", "31.7", "12.5 a", ""],
        ["Street (1 km)", "11.0", "11.4", "none", ""],
    ]
    assert section.notes[1:] == ["a: 1.0-224 on dogs"]  # the rows do not name the model


def test_the_grid_fits_a_line_over_the_logarithm_of_the_cost():
    scores = {1.0: 0.50, 0.5: 0.44, 0.25: 0.38}  # a quarter of the cost takes six points, a half three
    points = [
        Point(record(f"task=classification backbone.alpha={alpha} backbone.resolution=96", value=value), cost, 1)
        for (alpha, value), cost in zip(scores.items(), (16_000_000, 4_000_000, 1_000_000))
    ]
    assert log_slope(points) == pytest.approx(3.0)
    assert log_slope(points[:2]) is None
    section = grid_section("dogs", points)
    assert [row[:4] for row in section.rows] == [
        *(["1.0-96", "16.0", "0.00", "50.0"], ["0.5-96", "4.0", "0.00", "44.0"], ["0.25-96", "1.0", "0.00", "38.0"]),
    ]
    assert "+3.0 points" in section.notes[-1]
    other = [Point(record(note="pretrained", value=0.9), 4_000_000, 1), *points]
    assert grid_section("dogs", other).notes[-1].startswith("Twice the multiply-adds bring +3.0 points to b")
    flat = grid_section("dogs", [Point(record(value=0.3), cost, 1) for cost in (1, 3, 10)])
    assert flat.notes[-1].startswith("Twice the multiply-adds bring +0.0 points (")
    groups = grid_points([point.record for point in reversed(points)], lambda words: cost_of(1))
    assert [point.record for point in groups["dogs"]] == [point.record for point in points]
