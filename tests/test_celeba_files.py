from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mnvision.data.celeba_files import (
    LANDMARK_COLUMNS,
    find_file,
    find_pictures,
    landmark_file,
    read_attributes,
    read_identities,
    read_landmarks,
    read_partition,
)
from mnvision.errors import UserError
from tests.builders_faces import ATTRIBUTES, FACE, celeba_labels, make_tiny_celeba

COUNTED = "2\nA B \n000001.jpg -1  1\n000002.jpg  1 -1\n"


@pytest.mark.parametrize("csv", [False, True])
def test_official_and_kaggle_files_say_the_same(tmp_path: Path, csv: bool):
    root, suffix = make_tiny_celeba(tmp_path, csv=csv), ".csv" if csv else ".txt"
    attributes = read_attributes(root / f"list_attr_celeba{suffix}")
    assert attributes.columns == ATTRIBUTES
    assert attributes.file_names == [f"{i + 1:06d}.jpg" for i in range(20)]
    assert attributes.values.dtype == np.int8
    assert (attributes.values == (celeba_labels(20) > 0)).all()
    assert read_partition(root / f"list_eval_partition{suffix}").values.tolist() == ([0] * 8 + [1, 2]) * 2
    assert read_identities(root / f"identity_CelebA{suffix}").values.tolist() == [100 + i // 2 for i in range(20)]
    landmarks = read_landmarks(root / f"list_landmarks_align_celeba{suffix}")
    assert landmarks.values.shape == (20, 5, 2)
    assert (landmarks.values[4] == FACE + 1).all()
    assert landmarks.columns[:3] == ("lefteye_x", "lefteye_y", "righteye_x") == LANDMARK_COLUMNS[:3]


@pytest.mark.parametrize(
    "text",
    [
        COUNTED,
        "\ufeff" + COUNTED,
        COUNTED.replace("\n", "\r\n"),
        COUNTED[2:],
        COUNTED + "\n\n",
        COUNTED.replace("A B ", "image_id A B"),
        COUNTED.replace("-1", "0"),
    ],
    ids=["official", "byte order mark", "crlf", "no count", "blank lines", "named first column", "0 for no"],
)
def test_quirks_of_copies_are_read(tmp_path: Path, text: str):
    path = tmp_path / "list_attr_celeba.txt"
    path.write_bytes(text.encode())
    table = read_attributes(path)
    assert table.columns == ("A", "B")
    assert table.file_names == ["000001.jpg", "000002.jpg"]
    assert table.values.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "attribute file is empty"),
        ("3\nA B\n1.jpg 1 1\n2.jpg 1 1\n", "line 1 announces 3 pictures, but 2 follow"),
        ("2\nA B\n1.jpg 1 1\n2.jpg 1\n", r"line 4 \(2.jpg\): 1 values instead of 2"),
        ("2\nA B\n1.jpg 1 1\n2.jpg 1 x\n", "line 4, column 'B': 'x' is not 1 or -1"),
        ("2\nA B\n1.jpg 1 1\n2.jpg 2 1\n", "line 4, column 'A': '2' is not 1 or -1"),
        ("2\nA B\n1.jpg 1 1\n1.jpg 1 1\n", "names 1 pictures more than once: 1.jpg"),
        ("2\nA A\n1.jpg 1 1\n2.jpg 1 1\n", "'A' names two columns"),
        ("1.jpg 1 1\n", "line 1: the names of the attributes are missing"),
        ("1.jpg 1 x\n2.jpg 1 1\n", "line 1: the names of the attributes are missing"),
        ("A B\n", "names no pictures"),
        ("2\nA B\n1.jpg -1 0\n2.jpg 1 0\n", "holds 1 times -1, 2 times 0 and 1 times 1"),
    ],
)
def test_malformed_attributes_are_refused_with_their_place(tmp_path: Path, text: str, message: str):
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_attributes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_malformed_other_files_are_refused_with_their_place(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("1.jpg 0\n2.jpg 3\n")
    with pytest.raises(UserError, match=r"line 2, column 'partition': '3' is not 0 \(train\)"):
        read_partition(path)
    path.write_text("1.jpg x\n2.jpg 3\n")
    with pytest.raises(UserError, match="line 1, column 'identity': 'x' is not a whole number"):
        read_identities(path)
    path.write_text(f"1.jpg {2**70}\n")
    with pytest.raises(UserError, match="line 1, column 'identity'"):
        read_identities(path)
    path.write_text("1\n" + " ".join(LANDMARK_COLUMNS) + "\n1.jpg 1 2 3 4 5 6 7 nan 9 10\n")
    with pytest.raises(UserError, match="line 3, column 'leftmouth_y': 'nan' is not a number"):
        read_landmarks(path)
    path.write_text("1\na b c\n1.jpg 1 2 3\n")
    with pytest.raises(UserError, match="3 columns instead of 10"):
        read_landmarks(path)
    with pytest.raises(UserError, match="landmark file not found"):
        read_landmarks(tmp_path / "nowhere.txt")
    path.write_bytes(b"1.jpg \xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_partition(path)


def test_files_are_found_where_releases_have_them(tmp_path: Path):
    (tmp_path / "Anno").mkdir()
    (tmp_path / "Anno" / "list_attr_celeba.txt").write_text(COUNTED)
    assert find_file(tmp_path, "list_attr_celeba") == tmp_path / "Anno" / "list_attr_celeba.txt"
    assert find_file(tmp_path, "list_eval_partition") is None
    with pytest.raises(UserError, match="img_align_celeba"):
        find_pictures(tmp_path)
    for folder in ("Img/img_align_celeba", "img_align_celeba", "img_align_celeba/img_align_celeba"):
        (tmp_path / folder).mkdir(parents=True)
        assert find_pictures(tmp_path) == tmp_path / folder
    for name in ("list_landmarks_align_celeba", "list_landmarks_celeba"):
        (tmp_path / "Anno" / f"{name}.txt").write_text("")
    assert landmark_file(tmp_path, tmp_path / "img_align_celeba") == tmp_path / "Anno/list_landmarks_align_celeba.txt"
    assert landmark_file(tmp_path, tmp_path / "img_celeba") == tmp_path / "Anno/list_landmarks_celeba.txt"


def test_rows_follow_the_names_asked_for(tmp_path: Path):
    table = read_identities(make_tiny_celeba(tmp_path) / "identity_CelebA.txt")
    assert table.rows(["000003.jpg", "none.jpg", "000001.jpg"]).tolist() == [2, -1, 0]
    assert table.rows(list(table.file_names)).tolist() == list(range(20))


def test_reading_is_fast(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [f"{i:06d}.jpg " + " ".join(f"{v:2d}" for v in r) for i, r in enumerate(rng.choice((-1, 1), (10_000, 40)))]
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text("10000\n" + " ".join(f"a{i}" for i in range(40)) + "\n" + "\n".join(rows))
    start = time.process_time()
    table = read_attributes(path)
    assert time.process_time() - start < 1.0  # a twentieth of CelebA; 0.05 s where this was written
    assert table.values.shape == (10_000, 40)
    assert table.values.nbytes == 400_000


def test_real_files(shared_data: Path):
    root = shared_data / "celeba"
    table = read_attributes(root / "list_attr_celeba.txt")
    assert table.values.shape == (6000, 40)
    assert set(np.unique(table.values)) == {0, 1}
    male, beard = (table.values[:, table.columns.index(name)] for name in ("Male", "No_Beard"))
    assert 0.35 < male.mean() < 0.5  # 41.7 % in all of CelebA
    assert beard[male == 0].mean() > 0.99
    assert np.bincount(read_partition(root / "list_eval_partition.txt").values).tolist() == [4800, 600, 600]
    assert len(read_identities(root / "identity_CelebA.txt")) == 6000
