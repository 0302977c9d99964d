"""Files of landmarks: which columns are which, and which of several faces is meant."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnvision.data.index import FindingCounter
from mnvision.data.landmarks import landmarks_of, main_face, read_landmark_table, usable
from mnvision.errors import UserError
from tests.builders_identities import COLUMNS, TEMPLATE, make_people, placed, write_landmarks

HEAD = f"file,{','.join(COLUMNS)}"
ROW = ",".join(f"{value}" for value in TEMPLATE.ravel())


def write(folder: Path, text: str, name: str = "points.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        COLUMNS,
        [f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"],
        [
            f"{point}_{axis}"
            for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
            for axis in "xy"
        ],
        [f"P{point}{axis}" for point in range(1, 6) for axis in "XY"],
    ],
)
def test_columns_by_name(tmp_path: Path, columns: list[str]):
    table = read_landmark_table(write(tmp_path, f"score,image_id,{','.join(columns)}\n0.9,a/b.jpg,{ROW}\n"))
    assert table.find("a/b.jpg") == [0]
    np.testing.assert_allclose(table.points[0], TEMPLATE, rtol=1e-6)
    shuffled = [columns[i] for i in (9, 0, 3, 2, 1, 8, 4, 7, 6, 5)]
    values = [f"{TEMPLATE.ravel()[columns.index(column)]}" for column in shuffled]
    again = write(tmp_path, f"file;{';'.join(shuffled)}\nb.png;{';'.join(values)}\n")
    np.testing.assert_allclose(read_landmark_table(again).points[0], TEMPLATE, rtol=1e-6)


def test_names_with_and_without_an_ending(tmp_path: Path):
    table = read_landmark_table(write(tmp_path, f"NAME_ID,{','.join(COLUMNS)}\nn1/0001_01,{ROW}\n./x\\y.JPG,{ROW}\n"))
    assert table.find("n1/0001_01.jpg") == [0]
    assert table.find("x/y.png") == [1]
    assert table.find("other.jpg") == ()


def test_lists_as_celebas(tmp_path: Path):
    numbers = " ".join(str(round(value)) for value in TEMPLATE.ravel())
    header = " ".join(f"{point}_{axis}" for point in ("a", "b", "c", "d", "e") for axis in "xy")
    for head in ("", f"1\n{header}\n"):
        table = read_landmark_table(write(tmp_path, f"{head}000001.jpg {numbers}\n", "list.txt"))
        np.testing.assert_array_equal(table.points[0], TEMPLATE.round())


def test_rows_without_a_face(tmp_path: Path):
    table = read_landmark_table(write(tmp_path, f"file,{','.join(COLUMNS)}\na.jpg,{ROW}\nb.jpg{',' * 10}\n"))
    assert table.find("b.jpg") == []
    assert len(table.points) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"picture,{','.join(COLUMNS[:-1])}\n", "line 1: give a column file and ten coordinates"),
        (f"{HEAD}\na.jpg,{ROW},1\n", "line 2: 12 fields instead of 11"),
        (f"{HEAD}\na.jpg,{ROW}\nb.jpg,{ROW.replace('51.6963', 'left')}\n", "line 3, column 'leye_y': 'left'"),
        (f"{HEAD}\na.jpg,{ROW.replace('51.6963', 'inf')}\n", "column 'leye_y': 'inf' is not a number"),
        (f"{HEAD}\na.jpg{',' * 10}\n", "holds no face"),
        ("", "landmark file is empty"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        read_landmark_table(write(tmp_path, text))


def test_of_several_faces_the_large_one_in_the_middle_counts(tmp_path: Path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg")
    small, middle, edge = placed(0.3, 0, (100, 50)), placed(0.6, 0, (105, 50)), placed(0.65, 0, (180, 80))
    assert main_face(np.stack([small, middle, edge]), (100, 200)) == 1
    assert main_face(np.stack([small, placed(2.0, 0, (120, 50))]), (100, 200)) == 1
    rows = "".join(f"a.jpg,{','.join(map(str, points.ravel()))}\n" for points in (small, middle, edge))
    table, found = read_landmark_table(write(tmp_path, f"file,{','.join(COLUMNS)}\n{rows}")), FindingCounter()
    points = landmarks_of(table, tmp_path, ["a.jpg"], found)
    np.testing.assert_allclose(points[0], middle, rtol=1e-5)
    assert found.findings()["pictures with several faces: the largest near the centre taken"].count == 1


def test_pictures_without_a_row_are_not_a_number(tmp_path: Path):
    landmarks = make_people(tmp_path, {"A": 2})
    names = list(landmarks)
    table = read_landmark_table(write_landmarks(tmp_path / "points.csv", {names[0]: landmarks[names[0]]}))
    points = landmarks_of(table, tmp_path, names, FindingCounter())
    np.testing.assert_allclose(points[0], landmarks[names[0]], atol=1e-3)
    assert np.isnan(points[1]).all()
    assert usable(points).tolist() == [True, False]
    assert usable(np.ones((1, 5, 2), np.float32)).tolist() == [False]


def test_files_of_other_pictures_are_refused(tmp_path: Path):
    landmarks = make_people(tmp_path, {"A": 3})
    names, found = list(landmarks), FindingCounter()

    def read(points: dict[str, np.ndarray]) -> None:
        landmarks_of(read_landmark_table(write_landmarks(tmp_path / "points.csv", points)), tmp_path, names, found)

    with pytest.raises(UserError, match="has landmarks of none of the 3 pictures; it names other/x, they are A/A_0001"):
        read({"other/x.jpg": TEMPLATE})
    with pytest.raises(UserError, match=r"in 3 of 3 faces the left eye lies right of the other one.*exchange"):
        read({name: points[[1, 0, 2, 4, 3]] for name, points in landmarks.items()})
    with pytest.raises(UserError, match=r"lie outside their pictures.*another size"):
        read({name: points * 4 for name, points in landmarks.items()})


def test_every_face_of_the_real_file(shared_data: Path):
    root = shared_data / "lfw"
    if not (root / "mtcnn_landmarks.csv").is_file():
        pytest.skip("no landmarks of LFW there")
    table = read_landmark_table(root / "mtcnn_landmarks.csv")
    assert len(table.rows) == 7701
    assert [name for name, rows in table.rows.items() if not rows] == ["Marilyn_Monroe/Marilyn_Monroe_0001"]
    assert usable(table.points).all()
    left, right = table.points[:, 0, 0], table.points[:, 1, 0]
    assert (left < right).mean() > 0.99
