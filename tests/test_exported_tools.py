"""Exported files where tools/compare.py and tools/verify.py take checkpoints."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from mnvision.export.base import Wish
from mnvision.export.exporter import export
from mnvision.export.pt2 import Pt2
from tests.builders import make_image_folder
from tests.builders_embeddings import make_people, pair_lines
from tests.builders_export import SIDE, save
from tools import compare, verify
from tools.compare import short_names

COLOURS = ["red", "blue", "green"]


def code_of(main) -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_file_is_compared_with_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    images = make_image_folder(tmp_path / "data", per_class=4)
    words = ["task=classification", f"data.root={images}", "data.num_workers=0", f"backbone.resolution={SIDE}"]
    run = {"monitor": {"metric": "val/top1"}}
    save(tmp_path / "c.ckpt", "classification", class_names=COLOURS, run=run, overrides=words)
    export(tmp_path / "c.ckpt", Pt2(), Wish())
    given = f"checkpoints=[{tmp_path / 'c.ckpt'},{tmp_path / 'c.pt2'}]"
    monkeypatch.setattr(sys, "argv", ["compare.py", given, f"output={tmp_path / 'out'}", "trainer.accelerator=cpu"])
    assert code_of(compare.main) == 0
    one, two = csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines())
    assert (one.pop("checkpoint"), two.pop("checkpoint")) == ("c", "c.pt2")
    assert one == two  # score, knobs and cost
    assert two["alpha"] == "0.25"
    capsys.readouterr()
    given = f"checkpoints=[{tmp_path / 'c.ckpt'},{tmp_path / 'none.onnx'}]"
    monkeypatch.setattr(sys, "argv", ["compare.py", given])
    assert code_of(compare.main) == 2
    assert "none.onnx does not exist" in capsys.readouterr().err


def test_names_tell_files_of_one_checkpoint_apart():
    files = ["runs/a/checkpoints/best.ckpt", "runs/a/checkpoints/best.onnx", "runs/a/checkpoints/best_int8.onnx"]
    assert short_names(files) == ["a", "a_best.onnx", "a_best_int8.onnx"]
    assert short_names(["x/b.onnx", "y/b.onnx"]) == ["x_b.onnx", "y_b.onnx"]


def test_a_file_verifies_as_its_checkpoint_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    save(tmp_path / "e.ckpt", "face_embeddings")
    export(tmp_path / "e.ckpt", Pt2(), Wish())
    names = make_people(tmp_path / "faces")
    (tmp_path / "pairs.txt").write_text("\n".join(pair_lines(names)) + "\n")
    monkeypatch.chdir(tmp_path)
    printed = {}
    for file in ("e.ckpt", "e.pt2"):
        for words in ([f"faces/{names[0]}", f"faces/{names[1]}"], ["pairs=pairs.txt", "root=faces"]):
            monkeypatch.setattr(sys, "argv", ["verify.py", f"checkpoint={file}", "device=cpu", *words])
            assert code_of(verify.main) == 0
            printed.setdefault(file, []).append(capsys.readouterr().out)
    assert printed["e.pt2"] == printed["e.ckpt"]
    assert "cosine similarity" in printed["e.pt2"][0]
    words = ["checkpoint=e.pt2", "pairs=pairs.txt", "root=faces", "save=new.ckpt"]
    monkeypatch.setattr(sys, "argv", ["verify.py", *words])
    assert code_of(verify.main) == 2
    assert "save=new.ckpt: an exported file is finished; calibrate its checkpoint" in capsys.readouterr().err
