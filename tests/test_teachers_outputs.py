"""Outputs that another program computed, as teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnvision.errors import UserError
from mnvision.teachers.outputs import OutputsTeacher
from tests.test_teachers import pictures

LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
FILES = np.array(["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/ö.jpg"])
BOXES = {
    "boxes": np.tile(np.array([0.1, 0.2, 0.5, 0.9], np.float32), (2, 5, 1)),
    "scores": np.full((2, 5), 0.5, np.float32),
    "labels": np.zeros((2, 5), np.int64),
}


def test_outputs_are_found_by_the_pictures_names(tmp_path: Path):
    np.savez(tmp_path / "out.npz", logits=LOGITS, files=FILES)
    teacher = OutputsTeacher(tmp_path / "out.npz")
    assert (teacher.spec.kind, teacher.spec.outputs) == ("classification", {"logits": (3,)})
    assert (teacher.spec.resolution, teacher.spec.parameters) == ((0, 0), 0)
    reader = teacher.outputs_for(["b/ö.jpg", "a/1.jpg"])
    for view in (0, 7):
        found = reader.read(view, 0)["logits"]
        assert found.dtype == np.float16
        assert np.array_equal(found, LOGITS[3].astype(np.float16))
    assert np.array_equal(reader.read(0, 1)["logits"], LOGITS[0].astype(np.float16))


def test_names_stored_as_bytes_are_names_too(tmp_path: Path):
    np.savez(tmp_path / "out.npz", logits=LOGITS, files=np.char.encode(FILES, "utf-8"))
    reader = OutputsTeacher(tmp_path / "out.npz").outputs_for(["b/ö.jpg"])
    assert np.array_equal(reader.read(0, 0)["logits"], LOGITS[3].astype(np.float16))


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_one_array_has_its_rows_in_the_datas_order(suffix: str, tmp_path: Path):
    path = tmp_path / f"out{suffix}"
    if suffix == ".npy":
        np.save(path, LOGITS)
    else:
        torch.save(torch.from_numpy(LOGITS).bfloat16(), path)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    teacher = OutputsTeacher(path, output="attribute_logits")
    assert teacher.spec.kind == "face_attributes"
    assert teacher.spec.class_names == ("a", "b", "c")
    row = teacher.outputs_for(["w", "x", "y", "z"]).read(0, 2)["attribute_logits"]
    assert np.allclose(row, LOGITS[2], atol=0.02)
    with pytest.raises(UserError, match=r"4 rows for 3 pictures: one row per picture"):
        teacher.outputs_for(["w", "x", "y"])


def test_embeddings_are_read_at_length_one(tmp_path: Path):
    np.save(tmp_path / "out.npy", 100 * LOGITS)
    teacher = OutputsTeacher(tmp_path / "out.npy", output="embedding")
    row = teacher.outputs_for(["w", "x", "y", "z"]).read(0, 1)["embedding"]
    assert np.allclose(row, LOGITS[1] / np.linalg.norm(LOGITS[1]), atol=1e-3)


def test_detections_come_in_three_arrays(tmp_path: Path):
    np.savez(tmp_path / "out.npz", **BOXES, files=FILES[:2])
    (tmp_path / "labels.txt").write_text("cat\n")
    teacher = OutputsTeacher(tmp_path / "out.npz")
    assert teacher.spec.kind == "detection"
    assert teacher.spec.outputs == {"boxes": (5, 4), "scores": (5,), "labels": (5,)}
    assert teacher.outputs_for(["a/2.jpg"]).read(0, 0)["boxes"].shape == (5, 4)
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(UserError, match=r"give teacher\.class_names"):
        OutputsTeacher(tmp_path / "out.npz")


def test_pictures_without_outputs_are_named(tmp_path: Path):
    np.savez(tmp_path / "out.npz", logits=LOGITS, files=FILES)
    names = ["a/1.jpg", *[f"c/{number}.jpg" for number in range(5)]]
    with pytest.raises(UserError, match=r"no outputs for 5 of 6 pictures: c/0\.jpg, c/1\.jpg, c/2\.jpg and 2 more"):
        OutputsTeacher(tmp_path / "out.npz").outputs_for(names)


def test_it_cannot_be_run(tmp_path: Path):
    np.save(tmp_path / "out.npy", LOGITS)
    with pytest.raises(UserError, match="holds outputs and cannot be run"):
        OutputsTeacher(tmp_path / "out.npy")(pictures(1, 8))


def test_the_fingerprint_is_the_files(tmp_path: Path):
    np.save(tmp_path / "a.npy", LOGITS)
    np.save(tmp_path / "b.npy", LOGITS)
    np.save(tmp_path / "c.npy", LOGITS + 1)
    a, b, c = (OutputsTeacher(tmp_path / f"{name}.npy").fingerprint() for name in "abc")
    assert a == b
    assert a != c


def with_value(value: float) -> dict[str, Any]:
    changed = LOGITS.copy()
    changed[2, 1] = value
    return {"logits": changed, "files": FILES}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"files": FILES}, "holds no arrays; beside 'files' one of logits"),
        ({"scores": LOGITS, "files": FILES}, "holds scores; beside 'files' one of"),
        ({"logits": LOGITS, "embedding": LOGITS}, "holds logits, embedding;"),
        ({"logits": LOGITS, "files": FILES[:3]}, r"logits \(4, 3\) and 3 names in 'files': one row per picture"),
        ({"logits": LOGITS, "files": FILES[[0, 0, 1, 2]]}, r"'files' names a/1\.jpg 2 times"),
        ({"logits": LOGITS, "files": np.arange(4)}, "'files' must be one axis of strings, not int64"),
        ({"logits": LOGITS[:, 0], "files": FILES}, r"logits \(4,\): one row per picture of logits \(1 axes\)"),
        ({"logits": LOGITS[:0], "files": FILES[:0]}, "one row per picture"),
        ({"logits": FILES}, "logits (4,)"),
        ({"logits": FILES[:, None]}, "logits is <U7, numbers are needed"),
        (with_value(np.nan), "logits of row 2 holds a value that is no number or beyond 65504"),
        (with_value(1e6), "logits of row 2 holds a value that is no number or beyond 65504"),
        ({"embedding": LOGITS * 0}, "embedding of row 0 holds a value that .* nothing but zeros"),
        (BOXES | {"scores": BOXES["scores"][:, :3]}, r"boxes \(N, D, 4\), scores \(N, D\) and labels"),
        (BOXES | {"boxes": BOXES["boxes"] * 300}, r"boxes of row 0 holds a value that is no fraction"),
    ],
)
def test_files_that_do_not_fit_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path):
    np.savez(tmp_path / "out.npz", **arrays)
    (tmp_path / "names.txt").write_text("cat\n")
    names = str(tmp_path / "names.txt") if "boxes" in arrays else None
    with pytest.raises(UserError, match=words if "\\" in words else words.replace("(", r"\(").replace(")", r"\)")):
        OutputsTeacher(tmp_path / "out.npz", class_names=names)


@pytest.mark.parametrize("name", ["out.npz", "out.npy", "out.pt"])
def test_damaged_files_end_in_one_line(name: str, tmp_path: Path):
    path = tmp_path / name
    with pytest.raises(UserError, match=r"does not exist; give an \.npz"):
        OutputsTeacher(path)
    for content in (b"PK\x03\x04 and no more", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as arrays") as caught:
            OutputsTeacher(path)
        assert "\n" not in str(caught.value)
        assert "allow_pickle" not in str(caught.value) or name == "out.npy"


def test_pickles_and_foreign_files_are_refused(tmp_path: Path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read as arrays"):
        OutputsTeacher(tmp_path / "objects.npy")
    torch.save({"logits": torch.zeros(2)}, tmp_path / "dict.pt")
    with pytest.raises(UserError, match="holds a dict; one tensor is needed"):
        OutputsTeacher(tmp_path / "dict.pt")
    (tmp_path / "out.csv").write_text("1")
    with pytest.raises(UserError, match=r"outputs are \.npz, \.npy or \.pt"):
        OutputsTeacher(tmp_path / "out.csv")
    np.save(tmp_path / "out.npy", LOGITS)
    with pytest.raises(UserError, match=r"teacher\.output='boxes': choose one of logits"):
        OutputsTeacher(tmp_path / "out.npy", output="boxes")
