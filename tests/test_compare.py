"""Checkpoints beside each other: scores as tools/evaluate.py gives them, costs, and what cannot be compared."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from mnvision.errors import UserError
from tests.builders import make_image_folder
from tests.builders_models import save_classifier, save_detector
from tools.compare import main, markdown, require_one_kind, short_names

COLOURS = ["red", "blue", "green"]


def run_with(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["tools/compare.py", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_scores_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images = make_image_folder(tmp_path / "data", per_class=4)
    run = {"monitor": {"metric": "val/top1"}}
    given = ["task=classification", f"data.root={images}", "data.num_workers=0", "backbone.resolution=96"]
    for name in ("one", "two"):
        save_classifier(tmp_path / f"{name}.ckpt", class_names=COLOURS, run=run, overrides=given)
    paths = f"checkpoints=[{tmp_path / 'one.ckpt'},{tmp_path / 'two.ckpt'}]"
    output = tmp_path / "out"
    words = [paths, f"output={output}", "backbone.resolution=64", "trainer.accelerator=cpu"]
    assert run_with(monkeypatch, *words) == 0
    rows = list(csv.DictReader((output / "comparison.csv").read_text().splitlines()))
    assert [row["checkpoint"] for row in rows] == ["one", "two"]
    assert {row["resolution"] for row in rows} == {"64"}
    assert rows[0]["top1 (val)"] == rows[1]["top1 (val)"]
    assert rows[1]["difference"] == "+0.0000"
    assert rows[1]["share"] == "100.0%"
    assert (output / "two" / "metrics.json").is_file()
    capsys.readouterr()
    assert run_with(monkeypatch, *words, "metric=mAP") == 2
    assert "was not scored by mAP: give metric=, one of " in capsys.readouterr().err
    assert run_with(monkeypatch, *words, "data.rot=x") == 2
    assert "there is no config key 'data.rot'; did you mean data.root" in capsys.readouterr().err
    assert run_with(monkeypatch, f"checkpoints={tmp_path / 'one.ckpt'}") == 2
    assert "write a list, checkpoints=[" in capsys.readouterr().err


def test_other_tasks_and_missing_files_are_refused_before_anything_is_measured(tmp_path: Path):
    save_classifier(tmp_path / "c.ckpt")
    save_detector(tmp_path / "d.ckpt")
    paths = [str(tmp_path / name) for name in ("c.ckpt", "d.ckpt", "none.ckpt")]
    require_one_kind([paths[0], paths[0]])
    with pytest.raises(UserError, match=r"c\.ckpt is a classification model, .*d\.ckpt one of detection"):
        require_one_kind(paths[:2])
    with pytest.raises(UserError, match=r"none\.ckpt does not exist"):
        require_one_kind(paths[::2])


def test_names_tell_checkpoints_apart():
    assert short_names(["runs/a/checkpoints/best.ckpt", "b.ckpt"]) == ["a", "b"]
    assert short_names(["x/a/checkpoints/best.ckpt", "y/a/checkpoints/best.ckpt"]) == ["x_a_best", "y_a_best"]
    with pytest.raises(UserError, match="named twice"):
        short_names(["a.ckpt", "a.ckpt"])


def test_a_table_is_markdown():
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"
