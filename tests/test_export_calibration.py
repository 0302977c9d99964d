"""int8 on a data set: training pictures set the ranges, validation labels decide how many layers stay in float."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mnvision
from mnvision.errors import UserError
from mnvision.export.base import Format, Pixels, Quantizer, Wish
from mnvision.export.calibration import Calibration, Samples
from mnvision.export.exporter import export
from mnvision.export.int8_file import Int8Job, write_int8
from mnvision.export.judge import Judge, Judgement
from mnvision.export.layer_noise import LayerNoise
from mnvision.export.metadata import FileMetadata
from mnvision.export.runtime import open_file
from mnvision.prediction.predictor import load_predictor
from mnvision.prediction.preprocess import Preprocess
from mnvision.proof.answers import Answers
from mnvision.proof.scoring import Scoring
from tests.builders_export import FIELDS, SIDE, save
from tests.builders_models import files_below
from tests.builders_tinted import onnx_form, settle, tinted, write_pictures
from tools import cli
from tools.export import gather_data, main, samples_of_data
from tools.run import evaluate

TRAIN, VAL = 30, 24
TINTS = ["amber", "lime", "navy"]


def make_set(root: Path, names: list[str] = TINTS) -> list[str]:
    """A folder of tinted scenes by class; gives the overrides of a run on it."""
    images = tinted(TRAIN + VAL, 96)
    for label, name in enumerate(names):
        write_pictures(root / "train" / name, images[label:TRAIN:3])
        write_pictures(root / "val" / name, images[TRAIN + label :: 3])
    words = ["task=classification", "data=image_folder", f"data.root={root}", f"backbone.resolution={SIDE}"]
    return [*words, "data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``c.ckpt``, whose run had the data in ``set``."""
    folder = tmp_path_factory.mktemp("run")
    save(folder / "c.ckpt", "classification", class_names=TINTS, overrides=make_set(folder / "set"))
    settle(folder / "c.ckpt")
    return folder


def config(checkpoint: Path, *words: str) -> Any:
    return cli.compose_config("export", [f"checkpoint={cli.quoted(checkpoint)}", "format=onnx", *words])


def samples(checkpoint: Path, limit: int, held_out: int, *words: str) -> Samples:
    cfg = config(checkpoint, *gather_data(list(words)))
    return samples_of_data(cfg, load_predictor(checkpoint), Calibration(limit, held_out))


def test_training_pictures_are_shown_as_in_evaluation_and_those_that_judge_are_others(folder: Path):
    found = samples(folder / "c.ckpt", 12, 9)
    rule = Preprocess(FIELDS["classification"]["preprocess"], (SIDE, SIDE))
    shown = {
        split: [rule(path).pixels for path in sorted((folder / "set" / split).rglob("*.png"))]
        for split in ("train", "val")
    }

    def places(pixels: Any, split: str) -> set[int]:
        return {number for number, other in enumerate(shown[split]) if np.array_equal(pixels, other)}

    drawn = [places(picture.transpose(1, 2, 0), "train") for picture in found.calibration]
    assert len(drawn) == 12
    assert all(len(place) == 1 for place in drawn)
    assert len(set().union(*drawn)) == 12
    judging = [places(picture.pixels, "val") for picture in found.held_out]
    assert [len(place) for place in judging] == [1] * 9
    assert found.scoring is not None
    # Of three classes with eight pictures each, in their order.
    assert [next(iter(place)) // 8 for place in judging] == found.scoring.labels.tolist()  # type: ignore[attr-defined]
    assert (found.source, found.folder) == ("training pictures", str(folder / "set" / "train"))
    again = samples(folder / "c.ckpt", 12, 9)
    assert np.array_equal(found.calibration, again.calibration)


def test_the_file_says_what_it_costs_by_the_tasks_own_metric(folder: Path, tmp_path: Path, capsys, monkeypatch):
    onnx_form()
    words = [f"checkpoint={folder / 'c.ckpt'}", "format=onnx", "precision=int8", f"output={tmp_path}/", "report=true"]
    monkeypatch.setattr("sys.argv", ["tools/export.py", *words, "latency=false"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"calibrated on 30 training pictures of {folder / 'set' / 'train'}; 100 or more are advised"
    assert lines[2] == f"measured on 24 validation pictures of {folder / 'set' / 'val'}"
    metadata = open_file(tmp_path / "c_int8.onnx").session.metadata
    assert metadata.quantization["pictures"] == 30
    assert metadata.quantization["source"] == "training pictures of train"
    metric = metadata.quantization["metric"]
    assert metric["name"] == "top1"
    for file, name in ((folder / "c.ckpt", "float"), (tmp_path / "c_int8.onnx", "int8")):
        given = [
            *stored_words(folder),
            f"checkpoint={cli.quoted(file)}",
            f"paths.output_dir={cli.quoted(tmp_path / name)}",
        ]
        assert metric[name] == pytest.approx(evaluate(cli.compose_config("evaluate", given), given)["val/top1"])
    with (tmp_path / "c_int8_layers.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 28
    assert lines[4].split()[:3] == ["top1", f"{metric['float']:.4f}", f"{metric['int8']:.4f}"]


def stored_words(folder: Path) -> list[str]:
    return list(mnvision.load(folder / "c.ckpt").metadata.overrides)


def test_pictures_of_other_classes_calibrate_and_decisions_are_compared(folder: Path, tmp_path: Path):
    make_set(tmp_path / "other", ["blue", "green", "red"])
    found = samples(folder / "c.ckpt", 8, 8, f"data.root={tmp_path / 'other'}")
    assert found.scoring is None
    assert found.why_unscored.startswith("the data's classes (blue, green, red")
    judged = Judge(load_predictor(folder / "c.ckpt"), found)
    assert judged.metric is None


def test_where_the_metric_is_not_defined_decisions_are_compared(folder: Path):
    class Undefined(Scoring):
        metric = "mAP"

        def scores(self, answers: Answers, rows: Any = None) -> dict[str, float]:
            return {}

    found = replace(samples(folder / "c.ckpt", 8, 8), scoring=Undefined(8))
    judge = Judge(load_predictor(folder / "c.ckpt"), found)
    assert (judge.metric, judge.samples.scoring) == (None, None)
    assert judge.samples.why_unscored == "the metric is not defined on so few pictures"


@pytest.mark.parametrize(
    ("overrides", "given", "text"),
    [
        ([], [], "and those of the checkpoint's own run cannot be used (it does not say what it was trained on)"),
        (
            ["task=classification", "data.root=gone"],
            [],
            "and those of the checkpoint's own run cannot be used (data root not found: gone",
        ),
        (
            ["task=classification"],
            ["data.root=gone"],
            "and the data named here cannot be used (data root not found: gone",
        ),
        (["task=classification"], ["data=nowhere"], "data=nowhere: there is no such choice"),
        (["task=classification"], ["data.root=x", "pictures=y"], "data.root=x: data are for precision=int8 without pi"),
        (["task=classification"], ["data.root=x", "precision=fp16"], "data.root=x: data are for precision=int8"),
    ],
)
def test_without_data_one_line_says_what_to_give(
    overrides: list[str], given: list[str], text: str, tmp_path: Path, capsys, monkeypatch
):
    onnx_form()
    save(tmp_path / "c.ckpt", "classification", overrides=overrides)
    words = [f"checkpoint={tmp_path / 'c.ckpt'}", "format=onnx", "precision=int8", *given]
    monkeypatch.setattr("sys.argv", ["tools/export.py", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line
    assert files_below(tmp_path) == {"c.ckpt"}


class Drawn(Quantizer):
    """Writes nothing that could be run, and knows its layers' noise."""

    layers = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

    def __init__(self) -> None:
        self.kept: list[list[str]] = []

    def write(self, images: Pixels, kept: Collection[str], metadata: FileMetadata, target: Path) -> list[Path]:
        self.kept.append(list(kept))
        return self.rewrite(metadata, target)

    def rewrite(self, metadata: FileMetadata, target: Path) -> list[Path]:
        target.write_text(metadata.to_text())
        return [target]

    def write_float(self, metadata: FileMetadata, target: Path) -> list[Path]:
        target.write_text(metadata.to_text() * 4)
        return [target]

    def noise(self, images: Pixels) -> list[LayerNoise]:
        gains = {"fourth": 3.0, "second": 2.0, "seventh": 1.5, "first": 1.0}
        return [LayerNoise(name, "conv", 20.0, gains.get(name, 0.0)) for name in self.layers]


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], max_drop: float | None) -> Any:
    """What is made where the attempts score so, one after the other, after 0.90; and what stayed in float."""
    monkeypatch.setattr("mnvision.export.int8_file.file_model", lambda session: session)
    given, quantizer = iter(scores), Drawn()
    blank = np.zeros((8, 3, 4, 4), np.uint8)
    about = Samples(blank, [SimpleNamespace(pixels=np.zeros((4, 4, 3), np.uint8))] * 9, "pictures", "p", "others")  # type: ignore[list-item]
    judge: Any = lambda file: Judgement(None, "AP", 0.90, next(given))  # noqa: E731
    judge.samples, judge.reference = about, SimpleNamespace(kind="detection")
    form: Any = SimpleNamespace(open=lambda path: path)
    metadata = FileMetadata("detection", [], {}, {}, {})
    job = Int8Job(form, quantizer, metadata, tmp_path / "d.onnx")
    return write_int8(job, judge, Calibration(8, 8, max_drop=max_drop)), quantizer.kept


def test_layers_stay_in_float_until_the_metric_is_within_max_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, kept = written(tmp_path, monkeypatch, [0.80, 0.87, 0.888, 0.891], 0.01)
    # None, then the 1, 2 and 4 layers whose float helps most, in the network's order.
    assert kept == [[], ["fourth"], ["second", "fourth"], ["first", "second", "fourth", "seventh"]]
    assert made.kept == kept[-1]
    metadata = FileMetadata.from_text((tmp_path / "d.onnx").read_text(), tmp_path)
    assert metadata.quantization == {
        "pictures": 8,
        "source": "pictures of p",
        "float_layers": kept[-1],
        "measured": "AP 0.9000 became 0.8910",
        "metric": {"name": "AP", "float": 0.9, "int8": 0.891},
    }
    assert made.compared.sizes[0] > 2 * made.compared.sizes[1]


def test_what_loses_too_much_is_refused_with_the_best_that_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"loses 0\.0300 of AP \(0\.01 allowed\).*AP 0\.9000 became 0\.8700; half of"):
        written(tmp_path, monkeypatch, [0.80, 0.87, 0.86, 0.85], 0.01)
    with pytest.raises(UserError, match=r"loses 0\.1000 of AP \(0\.05 allowed\)"):
        written(tmp_path, monkeypatch, [0.80], None)
    made, kept = written(tmp_path / "third", monkeypatch, [0.86], None) if (tmp_path / "third").mkdir() is None else 0
    assert (made.kept, kept) == ([], [[]])


def test_a_format_without_int8_is_refused(folder: Path, tmp_path: Path):
    from mnvision.export.pt2 import Pt2

    form: Format = Pt2()
    with pytest.raises(UserError, match="format=pt2 holds fp32, not precision=int8"):
        export(folder / "c.ckpt", form, Wish("int8"), tmp_path / "c.pt2", folder / "set")
