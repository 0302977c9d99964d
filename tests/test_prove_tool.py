"""The command line of proofs: files that answer alike pass, tampered ones do not, and wrong ones are refused."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnvision.checkpoints import KEY
from mnvision.errors import UserError
from mnvision.export.base import Wish
from mnvision.export.exporter import export
from mnvision.export.pt2 import Pt2, Pt2Session
from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_export import SIDE, save
from tests.builders_faces import make_tiny_celeba
from tests.builders_identities import make_lfw
from tools import cli
from tools.evaluate import expand_checkpoint
from tools.prove import gather_overrides, main
from tools.run import build_data, evaluate

SETS: dict[str, tuple[str, str, Any, str]] = {
    "classification": ("classification", "image_folder", make_image_folder, "top1"),
    "face_attributes": ("face_attributes", "celeba", make_tiny_celeba, "mAP"),
    "face_embeddings": ("face_embeddings", "lfw", make_lfw, "accuracy"),
    "detection": ("ssd_coco", "coco", make_tiny_coco, "AP"),
}

SPLITS = {"face_embeddings": "test"}


def words_for(kind: str, folder: Path) -> list[str]:
    task, data, make, _ = SETS[kind]
    make(folder / "data")
    landmarks = [f"data.landmarks={folder / 'data' / 'landmarks.csv'}"] if kind == "face_embeddings" else []
    return [
        *(f"task={task}", f"data={data}", f"data.root={folder / 'data'}", f"backbone.resolution={SIDE}", *landmarks),
        *("data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"),
    ]


def save_with_data(folder: Path, kind: str, split: str = "val") -> None:
    """A checkpoint ``a.ckpt`` whose run had data below ``folder``."""
    words = words_for(kind, folder)
    stage = "test" if split == "test" else "validate"
    data = build_data(cli.compose_config("evaluate", [*words, "paths.output_dir=out"]), stage)
    names = [] if kind == "face_embeddings" else list(data.class_names)
    fields: dict[str, Any] = {"overrides": words, "preprocess": data.preprocess, "class_names": names}
    if kind == "detection":
        fields["category_ids"] = list(data.category_ids)
    if kind == "face_attributes":
        fields["calibration"] = {"thresholds": [0.5] * len(names)}
    save(folder / "a.ckpt", kind, classes=len(names) or None, **fields)


def run_with(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["tools/prove.py", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def prove(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str, files: str = "a.pt2") -> int:
    paths = ",".join(str(folder / name) for name in files.split(","))
    return run_with(monkeypatch, f"checkpoint={folder / 'a.ckpt'}", f"files=[{paths}]", "latency=false", *words)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> a folder with ``a.ckpt``, its data and ``a.pt2``, made once."""

    @functools.cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        save_with_data(folder, kind, SPLITS.get(kind, "val"))
        export(folder / "a.ckpt", Pt2(), Wish(nms=kind == "detection"))
        return folder

    return make


@pytest.mark.parametrize(
    "kind", ["classification", "face_attributes", "face_embeddings", pytest.param("detection", marks=pytest.mark.slow)]
)
def test_a_file_of_any_task_is_proven_by_the_score_that_evaluation_gives(
    kind: str, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, split, metric = exported(kind), SPLITS.get(kind, "val"), SETS[kind][3]
    assert prove(monkeypatch, folder, f"split={split}", f"output={tmp_path}") == 0
    found = json.loads((tmp_path / "prove.json").read_text())
    assert (found["passed"], found["metric"], found["kind"]) == (True, metric, kind)
    given = [f"checkpoint={folder / 'a.ckpt'}", f"split={split}", f"paths.output_dir={tmp_path / 'out'}"]
    words = expand_checkpoint(given)
    scores = evaluate(cli.compose_config("evaluate", words), words)
    assert found["checkpoint"]["score"] == pytest.approx(scores[f"val/{metric}"], abs=1e-6)
    (file,) = found["files"]
    assert file["score"] == pytest.approx(found["checkpoint"]["score"], abs=1e-6)
    assert file["differences"]["flipped"] == 0
    assert 0 <= file["differences"]["largest"] < 1e-4
    if kind == "face_attributes":  # two pictures: most resamples lack a positive or a negative one
        assert file["interval_95"] is None
    else:
        assert file["interval_95"]["low"] == pytest.approx(0, abs=1e-6)
    assert "every file passes" in (tmp_path / "prove.md").read_text()


@pytest.mark.slow
def test_a_detector_without_suppression_inside_is_proven_too(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = exported("detection")
    export(folder / "a.ckpt", Pt2(), Wish(nms=False), folder / "raw.pt2")
    assert prove(monkeypatch, folder, f"output={tmp_path}", files="a.pt2,raw.pt2") == 0
    inside, outside = json.loads((tmp_path / "prove.json").read_text())["files"]
    assert outside["score"] == pytest.approx(inside["score"], abs=1e-6)
    assert outside["differences"]["flipped"] == 0
    assert outside["differences"]["decisions"] == inside["differences"]["decisions"] > 0


def test_changed_weights_fail_with_a_picture_of_the_worst(
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mnvision.export.onnx import Onnx

    folder = exported("classification")
    path = export(folder / "a.ckpt", Onnx(), Wish()).path
    whole = onnx.load(path)
    largest = max(whole.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(largest)
    largest.CopyFrom(onnx.numpy_helper.from_array(-values, largest.name))
    onnx.save(whole, folder / "tampered.onnx")
    for tensor in [tensor for tensor in whole.graph.initializer if len(tensor.dims) > 1]:
        nothing = np.full_like(onnx.numpy_helper.to_array(tensor), np.nan)
        tensor.CopyFrom(onnx.numpy_helper.from_array(nothing, tensor.name))
    onnx.save(whole, folder / "nan.onnx")
    files = "a.onnx,tampered.onnx,nan.onnx"
    assert prove(monkeypatch, folder, "limit=9", f"output={tmp_path}", files=files) == 1
    found = json.loads((tmp_path / "prove.json").read_text())
    assert [file["passed"] for file in found["files"]] == [True, False, False]
    assert any("cannot be scored" in line for line in found["files"][2]["failures"])
    assert found["files"][2]["differences"]["largest"] is None
    assert found["data"]["pictures"] == 9
    assert any("largest difference" in line for line in found["files"][1]["failures"])
    assert (tmp_path / found["files"][1]["figure"]).stat().st_size > 10_000
    assert "tampered.onnx fails: " in capsys.readouterr().out
    wide = ("tolerance.output=1", "tolerance.flips=1", "tolerance.metric=1", "worst=0")
    assert prove(monkeypatch, folder, *wide, f"output={tmp_path}", files="tampered.onnx") == 0


def test_a_file_that_is_not_whole_fails_beside_the_others(
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = exported("classification")
    (folder / "cut.pt2").write_bytes((folder / "a.pt2").read_bytes()[:-2000])
    (folder / "text.tflite").write_text("no model")
    shutil.copy(folder / "a.pt2", folder / "tired.pt2")
    run = Pt2Session.run

    def failing(self: Pt2Session, images: Any) -> Any:
        if self.path.name == "tired.pt2":
            raise UserError("tired.pt2: torch failed on (9, 3, 64, 64)")
        return run(self, images)

    monkeypatch.setattr(Pt2Session, "run", failing)
    files = "cut.pt2,a.pt2,text.tflite,tired.pt2"
    assert prove(monkeypatch, folder, "limit=9", f"output={tmp_path}", files=files) == 1
    found = {file["name"]: file for file in json.loads((tmp_path / "prove.json").read_text())["files"]}
    assert list(found) == files.split(",")
    assert [file["passed"] for file in found.values()] == [False, True, False, False]
    assert found["a.pt2"]["differences"]["largest"] < 1e-4
    for name in ("cut.pt2", "text.tflite", "tired.pt2"):
        assert (found[name]["differences"], found[name]["score"], found[name]["figure"]) == (None, None, None)
    assert found["cut.pt2"]["failures"][0].startswith("it cannot be opened: ")
    assert "holds no 'mnvision' metadata" in found["text.tflite"]["failures"][0]
    assert found["tired.pt2"]["failures"] == ["tired.pt2: torch failed on (9, 3, 64, 64)"]
    assert "tired.pt2 fails: tired.pt2: torch failed" in capsys.readouterr().out
    assert prove(monkeypatch, folder, files="cut.pt2") == 2  # nothing was measured
    assert "it cannot be opened" in capsys.readouterr().err


def test_what_a_file_says_of_itself_is_compared_too(
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = exported("face_attributes")
    content = torch.load(folder / "a.ckpt", weights_only=True)
    content[KEY]["calibration"]["thresholds"][0] = 0.6
    content["state_dict"] = {name: value + 0.5 * value for name, value in content["state_dict"].items()}
    torch.save(content, folder / "b.ckpt")
    words = (f"checkpoint={folder / 'b.ckpt'}", "worst=0", f"output={tmp_path}")
    assert prove(monkeypatch, folder, *words) == 1
    printed = capsys.readouterr().out
    assert "a.pt2 fails: its calibration is not the checkpoint's" in printed
    assert "a.pt2 fails: it was exported from other weights than the checkpoint's" in printed
    assert not list(tmp_path.glob("*.png"))


def test_wrong_commands_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_with_data(tmp_path, "classification")
    shutil.copy(tmp_path / "a.ckpt", tmp_path / "a.pt2")
    checkpoint = f"checkpoint={tmp_path / 'a.ckpt'}"
    for words, text in (
        ([], "give checkpoint=FILE and files=[best.onnx,...]"),
        ([checkpoint, f"files=[{tmp_path / 'a.ckpt'}]"], "not a file of tools/export.py, whose names end in .onnx"),
        ([checkpoint, f"files=[{tmp_path / 'none.onnx'}]"], "none.onnx does not exist"),
        ([checkpoint, f"files=[{tmp_path / 'a.pt2'}]"], "a.pt2"),
        ([checkpoint, "files=[a.pt2]", "limit=0"], "limit=0: give a whole number of at least 1"),
        ([checkpoint, "files=[a.pt2]", "split=all"], "split=all: choose train, val or test"),
        ([checkpoint, "files=[a.pt2]", "backbone.alpha=1"], "backbone.alpha=1: a proof is of the model"),
        ([checkpoint, "files=[a.pt2]", "latency=maybe"], "latency=maybe: give true or false"),
    ):
        assert run_with(monkeypatch, *words) == 2, words
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: "), lines
        assert text in lines[-1]
    assert not (tmp_path / "prove.json").exists()


def test_files_of_another_task_are_refused(
    exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = exported("classification")
    shutil.copy(exported("face_embeddings") / "a.pt2", folder / "b.pt2")
    assert prove(monkeypatch, folder, files="b.pt2") == 2
    assert "b.pt2 is a face_embeddings file, the checkpoint a classification model" in capsys.readouterr().err


def test_words_for_the_data_are_gathered():
    words = gather_overrides(["checkpoint=a=b.ckpt", "files=[x.onnx]", "data.root=/p", "tolerance.flips=0", "-h"])
    assert words == [
        "checkpoint='a=b.ckpt'",
        "files=[x.onnx]",
        "tolerance.flips=0",
        "-h",
        r"overrides=['data.root=/p']",
    ]
