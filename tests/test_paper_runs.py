"""Scores of run folders in the paper's tables, what cannot be read, and the sweeps that make such runs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mnvision.errors import UserError
from mnvision.paper.measured import Record, read_records
from mnvision.paper.runs import find_runs, read_runs
from tests.builders import make_image_folder
from tests.builders_models import CLASSIFIER, save_checkpoint, save_detector
from tools import cli
from tools.paper import expand_lists, main

WORDS = "task=classification backbone.alpha=0.5 backbone.resolution=96"


def make_run(folder: Path, alpha: float = 0.5, resolution: int = 96, top1: float = 0.4, **summary: Any) -> Path:
    """A finished classification run of three classes, as tools/train.py leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    backbone = {**CLASSIFIER["backbone"], "alpha": alpha, "resolution": resolution}
    config = {
        "seed": 3,
        "data": {"_target_": "mnvision.data.image_folder.ImageFolderDataModule", "root": "/somewhere/cats"},
        "trainer": {"max_epochs": 5},
        "backbone": {**backbone, "pretrained": None},
        "init_from": None,
        "teacher": None,
    }
    save_checkpoint(folder / "checkpoints" / "last.ckpt", {**CLASSIFIER, "backbone": backbone}, run=config)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    last = {"epoch": 4, "seconds": 30.0, "val/top1": top1}
    best = {"epoch": 2, "seconds": 30.0, "val/top1": top1 + 0.1}
    content = {"monitor": "val/top1", "mode": "max", "last": last, "best": best} | summary
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "metrics.csv").write_text("epoch,seconds,val/top1\n3,30.0,\n4,60.0,0.4\n")
    return folder


def run_with(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["tools/paper.py", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_run_says_what_was_trained_on_what_and_how_well(tmp_path: Path):
    make_run(tmp_path / "a")
    (run,), left_out = read_runs(tmp_path)
    assert not left_out
    assert run.records == (
        Record(
            *(6, f"{WORDS} head.num_classes=3", "top1", 0.4, "cats, 3 classes", "5 epochs, from scratch", "a"),
            *(3, 1.5),
        ),
    )
    (best,), _ = read_runs(tmp_path / "a", data="my cats", epoch="best")
    assert (best.records[0].value, best.records[0].data) == (0.5, "my cats")
    assert "best epoch" in best.records[0].note


def test_a_stopped_run_and_one_whose_last_epoch_was_not_scored_say_so(tmp_path: Path):
    make_run(tmp_path / "a", last={"epoch": 1, "seconds": 1.0}, best={"epoch": 0, "val/top1": 0.2})
    (run,), _ = read_runs(tmp_path)
    assert run.records[0].value == 0.2
    assert run.records[0].note == "2 of 5 epochs, from scratch, score of the best epoch"


def test_what_cannot_be_used_is_named_and_the_rest_is_read(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", last={"epoch": 1, "val/loss": 1.0}, best=None)
    (make_run(tmp_path / "c") / "checkpoints" / "last.ckpt").unlink()
    (make_run(tmp_path / "d") / "metrics.json").write_text("{")
    (make_run(tmp_path / "e") / "metrics.json").unlink()
    make_run(tmp_path / "f", last={"val/top1": 0.5})
    make_run(tmp_path / "g", top1=float("nan"), best=None)
    (tmp_path / "a" / ".hydra").mkdir()
    (tmp_path / "a" / ".hydra" / "config.yaml").write_text("{}")
    runs, left_out = read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["a"]
    reasons = (
        *("was not scored by top1", "has no checkpoint", "is no JSON", "no epoch of it has ended"),
        *("is not as tools/train.py writes it", "was not scored by top1"),
    )
    assert len(left_out) == len(reasons)
    assert all(reason in line and "\n" not in line for reason, line in zip(reasons, left_out))


def test_folders_without_runs_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such folder"):
        find_runs(tmp_path / "none")
    with pytest.raises(UserError, match="holds no run"):
        find_runs(tmp_path)
    make_run(tmp_path / "b", last={"epoch": 1}, best=None)
    with pytest.raises(UserError, match=r"holds no score; left out: .* was not scored by top1"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match="epoch=first: choose last or best"):
        read_runs(tmp_path, epoch="first")  # type: ignore[arg-type]


def test_the_command_puts_a_sweep_beside_the_paper_and_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sweep, kept = tmp_path / "sweep", tmp_path / "measured.json"
    kept.write_text("[]")
    for alpha, resolution, top1 in ((1.0, 224, 0.6), (0.5, 224, 0.5), (0.5, 128, 0.4)):
        make_run(sweep / f"{alpha}_{resolution}", alpha, resolution, top1)
    assert run_with(monkeypatch, f"runs={sweep}", "format=csv", f"measured={kept}", "keep=true") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == f"paper: {sweep}"
    rows = list(csv.DictReader((sweep / "paper.csv").read_text().splitlines()))
    measured = [
        (row["table"], row["row"], row["paper"], float(row["ours"])) for row in rows if row["source"] == "measured"
    ]
    assert measured == [
        *(("6", "1.0 MobileNet-224", "70.6", 60.0), ("6", "0.5 MobileNet-224", "63.7", 50.0)),
        *(("7", "1.0 MobileNet-224", "70.6", 60.0), ("0", "1.0-224", "", 60.0)),
        *(("0", "0.5-224", "", 50.0), ("0", "0.5-128", "", 40.0)),
    ]
    # The body's cost and a classifier of three classes.
    costs = [float(row["ours"]) for row in rows if row["table"] == "0" and row["column"] == "cost"]
    assert costs == pytest.approx([567.716352 + 0.003072, 148.985088 + 0.001536, 48.648192 + 0.001536], rel=1e-5)
    assert (sweep / "paper.png").stat().st_size > 20_000
    assert len(read_records(kept)) == 3
    assert run_with(monkeypatch, f"runs={sweep}", "tables=[4]", f"measured={kept}", "keep=true") == 0
    assert len(read_records(kept)) == 3
    assert "Table 4" in capsys.readouterr().out


def test_a_run_whose_model_no_overrides_compose_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    make_run(tmp_path / "a")
    words = f"{WORDS} head.num_classes=4"  # one class more than the checkpoint's
    monkeypatch.setattr("mnvision.paper.runs.model_words", lambda metadata: words)
    assert run_with(monkeypatch, f"runs={tmp_path}") == 2
    error = capsys.readouterr().err.strip()
    assert "holds no score; left out: " in error
    assert "its settings have no place in these tables" in error


def test_the_commands_wrong_words_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_detector(tmp_path / "d.ckpt")
    wrong = {
        "tables=[4,15]": "the paper has tables 1 to 14",
        "tables=four": "the paper has tables 1 to 14",
        "format=html": "choose terminal, markdown, csv",
        "keep=true": "give runs=FOLDER",
        f"runs={tmp_path}": "holds no run",
        "measured=nowhere.json": "cannot read nowhere.json",
        "run=x": "no config key 'run'; did you mean runs",
        "tables=[]": "the paper has tables 1 to 14",
        "keep=yes": "choose true or false",
    }
    for word, text in wrong.items():
        assert run_with(monkeypatch, word) == 2
        error = capsys.readouterr().err.strip()
        assert text in error
        assert "\n" not in error


def test_commas_are_no_sweeps():
    words = expand_lists(
        ["tables=4,6", "tables=[4,6]", "data_name=dogs, ten of it's kind", "data_name='x, y'", "tables=4"]
    )
    assert words == [
        *("tables=[4,6]", "tables=[4,6]", r"data_name='dogs, ten of it\'s kind'", "data_name='x, y'", "tables=4"),
    ]


@pytest.mark.parametrize("task", ["paper_width", "paper_resolution"])
def test_the_sweeps_compose_for_one_run_too(task: str):
    cfg = cli.compose_config("config", [f"task={task}", "backbone.alpha=0.5", "paths.output_dir=out"])
    assert (cfg.backbone.alpha, cfg.data._target_) == (0.5, "mnvision.data.image_folder.ImageFolderDataModule")


@pytest.mark.slow
def test_one_command_trains_a_grid_and_a_run_of_it_can_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tools.evaluate import main as evaluate
    from tools.train import main as train

    images = make_image_folder(tmp_path / "data", per_class=4)
    monkeypatch.setenv("MNVISION_RUNS", str(tmp_path / "runs"))
    common = ["data.num_workers=0", "trainer.accelerator=cpu", "logger=none", "trainer.max_epochs=1"]
    grid = ["backbone.alpha=0.5,0.25", "backbone.resolution=64,32"]
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "task=paper_width", f"data.root={images}", *grid, *common])
    train()
    (sweep,) = (tmp_path / "runs" / "paper_width").iterdir()
    assert {path.name[:-2] for path in sweep.iterdir() if path.is_dir()} == {
        *("alpha0.5_64px", "alpha0.5_32px", "alpha0.25_64px", "alpha0.25_32px"),
    }
    runs, left_out = read_runs(sweep)
    assert (len(runs), left_out) == (4, [])
    checkpoint = sweep / "alpha0.25_32px_3" / "checkpoints" / "last.ckpt"
    report = tmp_path / "report"
    monkeypatch.setattr(sys, "argv", ["tools/evaluate.py", f"checkpoint={checkpoint}", f"hydra.run.dir={report}"])
    evaluate()
    assert (report / "metrics.json").is_file()
