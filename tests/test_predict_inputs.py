"""Which pictures a file, a folder or a pattern means."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnvision.errors import UserError
from mnvision.prediction.inputs import find_pictures, is_video

NAMES = ["a.png", "b.jpg", "sub/a.png", "sub/a.jpg"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def test_what_is_found_by_folder_file_and_pattern(photos: Path):
    assert find_pictures(photos).names == tuple(sorted(NAMES))
    assert find_pictures(photos, recursive=False).names == ("a.png", "b.jpg")
    assert find_pictures(photos / "b.jpg") == find_pictures(str(photos / "[b].jpg"))
    assert find_pictures(photos / "**" / "a.*").names == ("a.png", "sub/a.jpg", "sub/a.png")
    (photos / "notes.txt").touch()
    (photos / ".hidden.jpg").touch()
    assert find_pictures(photos / "*").left_out == 1
    assert find_pictures(photos).names == tuple(sorted(NAMES))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("none", "no such file"),
        ("empty", "no pictures"),
        ("*.xyz", "matches 0 files"),
        ("*.mp4", "one by one"),
    ],
)
def test_input_without_pictures_is_refused(tmp_path: Path, source: str, expected: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=expected):
        find_pictures(tmp_path / source)
    assert is_video(tmp_path / "a.mp4")
    assert not is_video(tmp_path / "b.mp4")
