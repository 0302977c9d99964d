"""tools/embed.py: files of embeddings, neighbours and the map."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from mnvision.errors import UserError
from mnvision.figures_embeddings import Neighbours, save_map, save_neighbours, save_roc, save_similarities
from mnvision.metrics.verification import verify
from mnvision.prediction.embedding_files import load_embedder
from mnvision.prediction.embedding_tables import open_table
from mnvision.prediction.neighbours import nearest, principal_plane
from tests.builders_embeddings import ALIGNED, DIM, make_people, save_embedder
from tests.builders_models import files_below, picture, save_classifier
from tests.builders_tools import refusal
from tests.test_verify_tool import LANDMARK_HEADER, row
from tools.embed import main
from tools.predict import main as predict_main

parquet = pytest.importorskip("pyarrow.parquet")
FIGURES = {"figures/neighbours.png", "figures/map.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and pictures of people; not to be written to."""
    folder = tmp_path_factory.mktemp("embed")
    save_embedder(folder / "plain.ckpt")
    save_embedder(folder / "mirrored.ckpt", calibration={"similarity": 0.5, "mirror": True})
    save_embedder(folder / "aligned.ckpt", preprocess=ALIGNED)
    save_classifier(folder / "classifier.ckpt")
    make_people(folder / "faces")
    return folder


@pytest.fixture
def run_tool(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*words: str, checkpoint: str = "plain", tool: Any = main) -> None:
        start = [f"checkpoint={folder / checkpoint}.ckpt", f"output={tmp_path / 'out'}", "device=cpu"]
        monkeypatch.setattr(sys, "argv", ["embed.py", *start, *words])
        tool()

    return run


def read_parquet(path: Path) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    table = parquet.read_table(path)
    rows = np.array(table["embedding"].to_pylist(), np.float32)
    return table["path"].to_pylist(), rows, json.loads(table.schema.metadata[b"mnvision"])


def test_folder_becomes_parquet_and_figures(run_tool, folder: Path, tmp_path: Path, capsys):
    run_tool(f"input={folder / 'faces'}", "batch_size=5")
    out = tmp_path / "out"
    assert files_below(out) == {"embeddings.parquet", *FIGURES}
    names, rows, about = read_parquet(out / "embeddings.parquet")
    assert names == sorted(f"P{p}/P{p}_{n:04d}.png" for p in range(4) for n in (1, 2, 3))
    predictor = load_embedder(folder / "plain.ckpt")
    np.testing.assert_allclose(rows, predictor.embed([folder / "faces" / name for name in names]), atol=1e-5)
    assert about["checkpoint"] == predictor.identity
    assert (about["dim"], about["mirror"], about["landmarks"]) == (DIM, False, None)
    schema = parquet.read_schema(out / "embeddings.parquet")
    assert str(schema.field("embedding").type) == f"fixed_size_list<element: float>[{DIM}]"
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("12 pictures in ")
    assert predictor.identity in first
    assert last == f"results: {out}/ (embeddings.parquet, figures/)"
    for name in FIGURES:
        assert cv2.imread(str(out / name)).std() > 10


def test_npz_holds_the_same(run_tool, folder: Path, tmp_path: Path):
    run_tool(f"input={folder / 'faces'}", "format=npz", "figures=false", checkpoint="mirrored")
    assert files_below(tmp_path / "out") == {"embeddings.npz"}
    predictor = load_embedder(folder / "mirrored.ckpt")
    with np.load(tmp_path / "out" / "embeddings.npz", allow_pickle=False) as arrays:
        assert arrays["embeddings"].dtype == np.float32
        expected = predictor.embed([folder / "faces" / name for name in arrays["paths"].tolist()], mirror=True)
        np.testing.assert_allclose(arrays["embeddings"], expected, atol=1e-5)
        about = json.loads(str(arrays["mnvision"]))
    assert about["mirror"] is True
    assert about["checkpoint"] == predictor.identity


def test_unreadable_pictures_are_named_and_counted(run_tool, tmp_path: Path, capsys):
    names = make_people(tmp_path / "faces", people=2)
    (tmp_path / "faces" / names[1]).write_text("no picture")
    run_tool(f"input={tmp_path / 'faces'}", "figures=false")
    assert read_parquet(tmp_path / "out" / "embeddings.parquet")[0] == [name for name in names if name != names[1]]
    printed = capsys.readouterr().out
    assert f"skipped: not an image, or of an unknown format: {tmp_path / 'faces' / names[1]}" in printed
    assert "5 pictures in" in printed
    assert "; 1 skipped" in printed


def test_pictures_without_landmarks_are_named_and_counted(run_tool, folder: Path, tmp_path: Path, capsys, caplog):
    caplog.set_level(logging.WARNING, "mnvision")
    names = sorted(make_people(tmp_path / "faces"))
    lines = [LANDMARK_HEADER, *(row(name) for name in names[1:]), row(names[2], 3.0)]
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    run_tool(
        f"input={tmp_path / 'faces'}", f"landmarks={tmp_path / 'points.csv'}", "figures=false", checkpoint="aligned"
    )
    assert not caplog.records
    found, rows, about = read_parquet(tmp_path / "out" / "embeddings.parquet")
    assert found == names[1:]
    assert about["landmarks"] == str(tmp_path / "points.csv")
    points = np.array([float(value) for value in row(names[1]).split(",")[1:]], np.float32).reshape(5, 2)
    points = points.astype(np.float64)  # kept as float32, of which an untrained network sees the rounding
    predictor = load_embedder(folder / "aligned.ckpt")
    np.testing.assert_allclose(rows[0], predictor.embed([tmp_path / "faces" / names[1]], [points])[0], atol=1e-5)
    printed = capsys.readouterr().out
    assert f"skipped: {names[0]} has no landmarks in" in printed
    assert f"1 pictures with several faces: the largest near the centre taken ({names[2]})" in printed


def test_names_that_are_no_utf8(run_tool, tmp_path: Path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "in" / name).write_bytes(cv2.imencode(".png", picture())[1].tobytes())
    for file_format in ("parquet", "npz"):
        run_tool(f"input={tmp_path / 'in'}", f"format={file_format}")
    assert read_parquet(tmp_path / "out" / "embeddings.parquet")[0] == ["caf\\udce9.png"]
    assert files_below(tmp_path / "out") == {"embeddings.parquet", "embeddings.npz"}  # nothing to draw of one


def test_results_of_an_earlier_run_are_no_input(run_tool, tmp_path: Path):
    make_people(tmp_path / "out", people=2)
    for _ in range(2):
        with pytest.raises(SystemExit):
            run_tool(f"input={tmp_path / 'out'}")
    assert not (tmp_path / "out" / "embeddings.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=null"], "no input given"),
        (["input=nowhere"], "there is no such file or folder"),
        (["format=csv"], "format=csv: choose one of parquet, npz"),
        (["batch_size=0"], "batch_size must be"),
        (["mirror=often"], "mirror='often'"),
        (["landmarks=none.csv"], "this checkpoint does not align faces"),
        (["lanmarks=none.csv"], "did you mean landmarks"),
    ],
)
def test_bad_words_end_in_one_line(run_tool, folder: Path, tmp_path: Path, capsys, words, message):
    assert message in refusal(capsys, run_tool, f"input={folder / 'faces'}", *words)
    assert files_below(tmp_path) == set()


def test_bad_files_end_in_one_line(run_tool, folder: Path, tmp_path: Path, capsys):
    pictures = f"input={folder / 'faces'}"
    assert "classification checkpoint" in refusal(capsys, run_tool, pictures, checkpoint="classifier")
    assert "none.csv" in refusal(capsys, run_tool, pictures, "landmarks=none.csv", checkpoint="aligned")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("no picture")
    assert "none of 1 pictures could be embedded" in refusal(capsys, run_tool, f"input={tmp_path / 'bad'}")
    assert files_below(tmp_path) == {"bad/a.jpg"}
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    assert "cannot write" in refusal(capsys, run_tool, pictures)


def test_without_pyarrow_there_is_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(UserError, match=r"pip install 'mnvision\[parquet\]', or choose npz"),
        open_table("parquet", tmp_path, 2, {}),
    ):
        pass
    with open_table("npz", tmp_path, 2, {}) as add:
        add(["a"], np.eye(1, 2, dtype=np.float32))
    assert files_below(tmp_path) == {"embeddings.npz"}


@pytest.mark.parametrize("file_format", ["parquet", "npz"])
def test_a_table_appears_whole_or_not_at_all(tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch):
    rows = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)

    def interrupted() -> None:
        with open_table(file_format, tmp_path, 3, {}) as add:
            add(list("abcdefghij"), rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files_below(tmp_path) == set()
    monkeypatch.setattr("mnvision.prediction.embedding_tables._GROUP", 4)
    with open_table(file_format, tmp_path, 3, {"a": 1}) as add:
        for start in range(0, 10, 3):
            add(list("abcdefghij")[start : start + 3], rows[start : start + 3])
    if file_format == "parquet":
        assert parquet.ParquetFile(tmp_path / "embeddings.parquet").num_row_groups == 2
        names, found, about = read_parquet(tmp_path / "embeddings.parquet")
        assert (names, about) == (list("abcdefghij"), {"a": 1})
        np.testing.assert_array_equal(found, rows)


def test_predict_writes_embeddings_and_points_to_this_tool(run_tool, folder: Path, tmp_path: Path, capsys):
    words = (f"input={folder / 'faces/P0'}", "save_images=false")
    run_tool(*words, tool=predict_main)
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    expected = load_embedder(folder / "plain.ckpt").embed([folder / "faces/P0" / r["path"] for r in records])
    np.testing.assert_allclose([record["embedding"] for record in records], expected, atol=1e-6)
    assert "tools/embed.py writes embeddings as Parquet" in capsys.readouterr().out
    run_tool(*words, "format=csv", tool=predict_main)
    first = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1]
    np.testing.assert_allclose([float(v) for v in first.split(",")[-1].split()], expected[0], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40), k=st.integers(1, 8))
def test_nearest_are_those_of_scikit_learn(seed: int, count: int, k: int):
    rows = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = np.arange(0, count, 2)
    found, similarities = nearest(rows, queries, k)
    k = min(k, count - 1)
    distances, expected = NearestNeighbors(n_neighbors=k + 1).fit(rows.astype(float)).kneighbors(rows[queries])
    assert found.shape == (len(queries), k)
    np.testing.assert_array_equal(found, expected[:, 1:])
    np.testing.assert_allclose(similarities, 1 - distances[:, 1:] ** 2 / 2, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(3, 60))
def test_plane_is_that_of_principal_components(seed: int, count: int):
    rows = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    points, share = principal_plane(rows)
    reference = PCA(2).fit(rows.astype(float))
    expected = reference.transform(rows.astype(float))
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-3)
    assert share == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-5)
    assert (points[np.abs(points).argmax(axis=0), [0, 1]] > 0).all()


def test_a_plane_of_one_point():
    points, share = principal_plane(np.ones((4, 3), np.float32))
    np.testing.assert_allclose(points, 0, atol=1e-6)
    assert share == 1


def test_figures_of_odd_names_and_many_groups(tmp_path: Path):
    rng = np.random.default_rng(0)
    groups = [f"$x_{i % 25}^" if i % 2 else "_日本" for i in range(90)]
    save_map(rng.normal(size=(90, 2)), 0.4, groups, tmp_path / "map.png")
    one = Neighbours(picture(0), "$a$.jpg", ".", [picture(1), picture(2)], [".", "."], [0.9, -0.1])
    other = Neighbours(picture(3, 50, 200), "_b.jpg", ".", [picture(4)], ["."], [1.0])
    save_neighbours([one, other], tmp_path / "neighbours.png")
    assert {path.name for path in tmp_path.iterdir()} == {"map.png", "neighbours.png"}


@pytest.mark.parametrize("angle", [0.0, 1.5])
def test_verification_figures_of_perfect_and_of_useless_embeddings(tmp_path: Path, angle: float):
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [np.cos(angle), np.sin(angle)], [np.cos(angle), np.sin(angle)]])
    pairs, same = np.array([[0, 1], [0, 2], [2, 3], [1, 3]]), np.array([True, False, True, False])
    scores = verify(rows, pairs, same, np.array([0, 0, 1, 1]), rates=[1.0])
    save_roc(scores, tmp_path / "roc.png")
    save_similarities(scores, tmp_path / "similarities.png")
    assert cv2.imread(str(tmp_path / "roc.png")).std() > 10
    assert cv2.imread(str(tmp_path / "similarities.png")).std() > 10
