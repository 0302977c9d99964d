"""Files known by their content, what a fill says of itself, and the tool that fills ahead."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from mnvision.errors import UserError
from mnvision.teachers import cache_files
from mnvision.teachers.cache_files import file_digests, relative_names
from mnvision.teachers.cache_progress import FillProgress, gigabytes
from tests.builders_harm import compose, line_of
from tests.builders_models import save_classifier
from tests.builders_teachers import make_photos
from tools.cache_teacher import fill_cache
from tools.run import train


def test_content_decides_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = cache_files._digest
    monkeypatch.setattr(cache_files, "_digest", lambda path: read.append(path.name) or digest(path))
    names, index = ["a", "b", "a"], tmp_path / "index.json"
    for name in "ab":
        (tmp_path / name).write_text(name)
    first = file_digests(tmp_path, names, index)
    assert first[0] == first[2] != first[1]
    assert sorted(read) == ["a", "b"]
    assert file_digests(tmp_path, names, index) == first
    assert len(read) == 2
    os.utime(tmp_path / "a", (1, 1))
    assert file_digests(tmp_path, names, index) == first
    assert read[2:] == ["a"]
    (tmp_path / "b").write_text("c")  # of the same size
    os.utime(tmp_path / "b", (2, 2))
    assert file_digests(tmp_path, names, index)[1] != first[1]
    assert file_digests(tmp_path, ["b"], tmp_path / "other.json")[0] == file_digests(tmp_path, names, index)[1]


def test_a_broken_index_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    for text in ("{", "[]", ""):
        (tmp_path / "index.json").write_text(text)
        assert len(file_digests(tmp_path, ["a"], tmp_path / "index.json")) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image file not found: .*absent\.jpg"):
        file_digests(tmp_path, ["absent.jpg"], tmp_path / "index.json")


def test_names_do_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    found = relative_names(tmp_path / "x" / "..", [tmp_path / "deep" / "a.jpg", Path("/elsewhere/b.jpg")])
    assert found == ["deep/a.jpg", "/elsewhere/b.jpg"]


def test_the_time_left_and_the_size_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr("mnvision.teachers.cache_progress.time.monotonic", lambda: now)
    with FillProgress(1_000_000, 2000) as progress:
        now += 4
        progress.advance(200)
        assert not caplog.messages
        for _ in range(3):
            now += 36
            progress.advance(1800)
    assert caplog.messages == [
        "teacher cache: 2000 of 1000000 views, 50.0 images/s, about 5 h 33 min left, 2.0 GB in the end",
        "teacher cache: 5600 of 1000000 views, 50.0 images/s, about 5 h 31 min left, 2.0 GB in the end",
        "teacher cache: 5600 of 1000000 views in 2 min, 50.0 images/s",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (1200, "1.2 KB"), (3_000_000, "3.0 MB"), (1.9e12, "1900.0 GB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert gigabytes(count) == text


def test_the_tool_fills_what_training_finds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    photos, teacher = make_photos(tmp_path / "photos", 5), tmp_path / "teacher.ckpt"
    save_classifier(teacher)
    words = [
        *("data=unlabelled", f"data.root={photos}", "distill.labels=0", "scheduler=constant", "trainer.max_epochs=1"),
        *(
            "teacher=checkpoint",
            f"teacher.path={teacher}",
            f"teacher.cache_dir={tmp_path / 'cache'}",
            "teacher.views=2",
        ),
    ]
    folders = fill_cache(compose(tmp_path / "ahead", "classification", *words))
    assert sorted(folders) == sorted(path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert len(folders) == 2
    assert "teacher cache: new" in caplog.text
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.glob("chunk_*")}
    caplog.clear()
    train(compose(tmp_path / "run", "classification", *words, "teacher.cache=true"))
    assert "to compute" not in caplog.text
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.glob("chunk_*")} == before
    assert len(list((tmp_path / "cache").iterdir())) == 3  # and the index of files


def test_the_tool_needs_a_teacher_that_runs_and_fits(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 5)
    line = line_of(fill_cache, compose(tmp_path, "classification", "data=unlabelled", f"data.root={photos}"))
    assert line == "no teacher given: tools/cache_teacher.py needs teacher=NAME, such as teacher=checkpoint"
