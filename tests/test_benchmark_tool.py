"""tools/benchmark.py from the command line to its files; its processes run, its times are not looked at."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.latency.contest import Worker
from mnvision.latency.subjects import Candidate
from tests.builders_models import save_classifier, save_detector
from tools import cli
from tools.benchmark import composed, file_names, gather_overrides, main, opened
from tools.cost import build_settled

SMALL = ["threads=1", "seconds=0.02", "rounds=2"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_words_of_the_tool_and_of_the_models_are_told_apart():
    words = ["files=[a.ckpt]", "task=ssd_coco", "backbone.alpha=0.5,1", "batch=1", "--help", "+x.y=1"]
    assert gather_overrides(words) == [
        *("files=[a.ckpt]", "batch=1", "--help"),
        "overrides=['task=ssd_coco','backbone.alpha=0.5,1','+x.y=1']",
    ]
    assert gather_overrides(["files=[a.ckpt]"]) == ["files=[a.ckpt]"]


def test_lists_of_values_are_models_that_cost_what_tools_cost_says():
    found = composed(["task=ssd_coco", "backbone.alpha=0.25,0.5", "head=ssd,ssdlite"], whole=False)
    names = [f"ssd_coco {alpha}-300 head={head}" for alpha in (0.25, 0.5) for head in ("ssd", "ssdlite")]
    assert [one.name for one in found] == names
    words = ["task=ssd_coco", "backbone.alpha=0.25", "head=ssdlite", "paths.output_dir=out"]
    model = build_settled(cli.compose_config("cost", words))
    from mnvision.build import build_model

    ours = build_model(found[1].config)
    assert measure(ours, 300).to_dict() == measure(model, 300).to_dict()
    with pytest.raises(UserError, match=r"did you mean backbone\.alpha"):
        composed(["backbone.aplha=1"], whole=False)


def test_files_are_called_by_what_tells_them_apart(tmp_path: Path):
    paths = [tmp_path / part for part in ("a/checkpoints/best.ckpt", "b/checkpoints/best.ckpt", "b/best.onnx")]
    assert file_names(paths) == ["a/best.ckpt", "b/best.ckpt", "b/best.onnx"]
    assert file_names(paths[1:]) == ["best.ckpt", "best.onnx"]
    with pytest.raises(UserError, match="named twice"):
        file_names([paths[0], paths[0]])
    with pytest.raises(UserError, match=r"best\.ckpt does not exist"):
        opened(paths[:1])


def test_files_and_composed_models_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_detector(tmp_path / "d.ckpt")
    (tmp_path / "phone.csv").write_text("device,file,batch,threads,median_ms\nPixel,d.tflite,1,4,8\n")
    words = [f"files={tmp_path / 'd.ckpt'}", "task=classification", "head.num_classes=3", "backbone.alpha=0.25"]
    words += ["backbone.resolution=64", "batch=[1,2]", "cold=0", f"import={tmp_path / 'phone.csv'}"]
    output = tmp_path / "out"
    assert run(monkeypatch, *words, *SMALL, f"output={output}") == 0
    text = capsys.readouterr().out
    assert "models of different tasks (classification, detection)" in text
    assert "composed models have random weights" in text
    assert text.splitlines()[-1] == f"benchmark: {output}"
    rows = list(csv.DictReader((output / "latency.csv").read_text().splitlines()))
    ours, imported = rows[:-1], rows[-1]
    assert {(row["file"], row["part"], row["batch"]) for row in ours} == {
        (file, part, batch)
        for file in ("d.ckpt", "classification 0.25-64")
        for part in ("whole", "model", "network")
        for batch in ("1", "2")
    }
    assert (imported["device"], imported["ratio"], imported["images_per_s"]) == ("Pixel", "", "125.0")
    data = json.loads((output / "latency.json").read_text())
    assert data["facts"]["d.ckpt"]["kind"] == "detection"
    assert all(len(block["rounds_ms"]) == 2 for block in data["blocks"])
    assert data["settings"]["1 threads"]["cores"]


def test_cold_start_and_layers_of_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_classifier(tmp_path / "c.ckpt")
    candidate = Candidate("c", file=str(tmp_path / "c.ckpt"))
    with Worker([candidate], 1, "cpu", None, cold=True) as worker:
        cold = worker.hello
    assert cold["peak_mb"] is None or cold["peak_mb"] >= cold["base_mb"] > 10
    assert cold["total_s"] == pytest.approx(cold["import_s"] + cold["load_s"] + cold["first_ms"] / 1000)
    words = [f"files={tmp_path / 'c.ckpt'}", "by=layer", "batch=1", *SMALL, f"output={tmp_path / 'out'}"]
    assert run(monkeypatch, *words) == 0
    text = capsys.readouterr().out
    assert "backbone.stem.conv" in text
    layers = json.loads((tmp_path / "out" / "latency.json").read_text())["layers"]["c.ckpt"]
    assert sum(layer["mult_adds"] for layer in layers) == 7_489_920


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "nothing to time: give files=[best.ckpt,...], task=NAME, or import=[times.csv]"),
        (["files=nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["task=imagenet", "threads=999"], "threads=999: this process may use"),
        (["task=imagenet", "batch=0"], "batch=0: give a whole number of at least 1"),
        (["task=imagenet", "seconds=0"], "seconds=0: give a number > 0"),
        (["task=imagenet", "rounds=1.5"], "rounds=1.5: give a whole number"),
        (["task=imagenet", "parts=[all]"], "parts=[all]: choose from whole, model, network"),
        (["task=imagenet", "by=block"], "by=block: choose layer or type"),
        (["task=imagenet", "cold=-1"], "cold=-1: give a whole number of starts"),
        (["task=imagenet", "picture=none.jpg"], "picture=none.jpg: cannot be read"),
        (["import=[none.csv]"], "import=none.csv: there is no such file"),
        (["task=imagnet", "cold=0"], "did you mean imagenet"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, *words, f"output={tmp_path}") == 2
    text = capsys.readouterr().err.strip()
    assert error in text
    assert "\n" not in text


def test_a_file_that_is_no_model_is_refused_by_the_process_that_opens_it(tmp_path: Path):
    (tmp_path / "x.ckpt").write_text("not a checkpoint")
    worker = Worker([Candidate("x", file=str(tmp_path / "x.ckpt"))], 1, "cpu", None)
    with pytest.raises(UserError, match=r"x\.ckpt"), worker:
        pass
