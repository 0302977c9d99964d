"""int8 files: calibrated on real pictures, measured on others, and deciding as their checkpoints do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.export.base import Wish
from mnvision.export.calibration import Calibration, Samples, read_samples
from mnvision.export.exporter import export
from mnvision.export.parity import drawn_pictures
from mnvision.export.runtime import open_file
from tests.builders_export import SIDE, save
from tests.builders_models import files_below
from tests.builders_tinted import COUNT, onnx_form, planes, settle, tinted, write_pictures
from tools import cli
from tools.export import calibration_of

INT8 = Wish("int8")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tinted scenes, no two alike."""
    folder = tmp_path_factory.mktemp("scenes")
    write_pictures(folder, tinted(COUNT, 96))
    return folder


@pytest.fixture(scope="module")
def classifier(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``c.ckpt``, ``c_int8.onnx`` and its report."""
    form = onnx_form()
    folder = tmp_path_factory.mktemp("classifier")
    save(folder / "c.ckpt", "classification")
    settle(folder / "c.ckpt")
    done = export(folder / "c.ckpt", form, INT8, pictures=scenes, calibration=Calibration(24, 16, report=True))
    assert done.path == folder / "c_int8.onnx"
    names = {"c.ckpt", "c_int8.onnx", "c_int8_layers.csv", "c_int8_layers.json"}
    assert files_below(folder) == names
    return folder


def test_a_classifier_decides_as_its_checkpoint_on_pictures_it_has_not_seen(classifier: Path):
    images = planes(tinted(COUNT + 24, SIDE)[COUNT:])
    tints = torch.arange(COUNT, COUNT + 24) % 3
    whole, small = mnvision.load(classifier / "c.ckpt").model, open_file(classifier / "c_int8.onnx")
    expected, found = whole.predict(images), small.predict(images)
    assert (expected.argmax(1) == tints).float().mean() >= 0.9
    assert (expected.argmax(1) == found.argmax(1)).float().mean() >= 0.95
    assert 1e-6 < (expected - found).abs().max() < 0.2  # in 8 bits indeed, and still close
    assert len(small.predict(images[:1])) == 1  # any batch


def test_all_layers_and_only_they_are_in_int8_with_one_scale_per_channel(classifier: Path):
    import onnx

    proto = onnx.load(classifier / "c_int8.onnx")
    tensors = {entry.name: entry for entry in proto.graph.initializer}
    made = {name: node for node in proto.graph.node for name in node.output}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == 28
    for layer in layers:
        weight = made[layer.input[1]]
        assert weight.op_type == "DequantizeLinear"
        values = tensors[weight.input[0]]
        assert values.data_type == onnx.TensorProto.INT8
        assert (
            len(onnx.numpy_helper.to_array(tensors[weight.input[1]])) == max(values.dims[:1]) or layer.op_type != "Conv"
        )
    assert sum(node.op_type == "Clip" for node in proto.graph.node) == 27
    read_by = {node.input[0]: node.op_type for node in proto.graph.node}
    # Between a layer and its ReLU6 nothing is rounded.
    for node in proto.graph.node:
        if node.op_type == "Conv":
            assert read_by[node.output[0]] == "Clip"


def test_the_file_says_what_it_is_and_what_was_measured(classifier: Path):
    metadata = open_file(classifier / "c_int8.onnx").session.metadata
    assert metadata.precision == "int8"
    assert metadata.quantization["pictures"] == 24
    assert metadata.quantization["float_layers"] == []
    assert "of 16 held-out pictures keep their best class" in metadata.quantization["measured"]
    summary = json.loads((classifier / "c_int8_layers.json").read_text())
    assert summary["agreement"] == pytest.approx(metadata.quantization["agreement"], abs=1e-6)
    assert summary["bytes"] == (classifier / "c_int8.onnx").stat().st_size
    whole = export(classifier / "c.ckpt", onnx_form(), Wish(), classifier / "fp32" / "c.onnx")
    assert summary["float_bytes"] == pytest.approx(whole.size, rel=0.001)  # but for what the metadata say
    with (classifier / "c_int8_layers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(summary["layers"]) == 28
    assert rows[0]["layer"] == "backbone.stem.conv"
    assert [row["kind"] for row in rows[:3]] == ["conv", "depthwise", "pointwise"]
    assert rows[-1]["kind"] == "linear"
    assert all(5 < float(row["sqnr_db"]) < 80 for row in rows)


@pytest.mark.slow
def test_layers_stay_in_float_until_no_more_decisions_change_than_allowed(
    classifier: Path, scenes: Path, tmp_path: Path, monkeypatch
):
    """The measured agreement is replaced, so that it takes three attempts; what is written is real."""
    from mnvision.export import judge
    from mnvision.export.agreement import Agreement

    shares = iter((0.90, 0.96, 0.995))
    monkeypatch.setattr(judge, "agreement", lambda *rest: Agreement(next(shares), "of them"))
    asked = Calibration(8, 8, max_drop=0.01)
    done = export(classifier / "c.ckpt", onnx_form(), INT8, tmp_path / "c.onnx", scenes, calibration=asked)
    kept = open_file(done.path).session.metadata.quantization["float_layers"]
    assert len(kept) == 2  # none, 1, 2
    import onnx

    proto = onnx.load(done.path)
    whole = {entry.name for entry in proto.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT}
    assert {f"model.{name}.weight" for name in kept} <= whole
    assert f"in float: {', '.join(kept)}" in done.lines


def test_a_file_that_decides_otherwise_is_not_kept(classifier: Path, scenes: Path, tmp_path: Path, monkeypatch):
    from mnvision.export import int8_onnx, judge
    from mnvision.export.agreement import Agreement

    monkeypatch.setattr(int8_onnx, "quantized", lambda proto, *rest, **options: proto)
    monkeypatch.setattr(judge, "agreement", lambda *rest: Agreement(0.79, "of 8 keep"))
    text = r"loses 21\.0% of the decisions \(0\.2 allowed\), so it was not kept: 79\.0 % of 8 keep; max_drop=0\.02"
    with pytest.raises(UserError, match=text):
        export(classifier / "c.ckpt", onnx_form(), INT8, tmp_path / "c.onnx", scenes, calibration=Calibration(8, 8))
    assert files_below(tmp_path) == set()


def test_a_detector_keeps_its_boxes_with_suppression_inside(scenes: Path, tmp_path: Path):
    form = onnx_form()
    save(tmp_path / "d.ckpt", "detection")
    settle(tmp_path / "d.ckpt")
    asked = Calibration(24, 16)
    done = export(tmp_path / "d.ckpt", form, Wish("int8", batch=2), pictures=scenes, calibration=asked)
    result = mnvision.load(done.path).predict(scenes / "000.png", score_threshold=0.3)
    assert len(result) > 0
    whole = mnvision.load(tmp_path / "d.ckpt").predict(scenes / "000.png", score_threshold=0.3)
    assert abs(len(result) - len(whole)) <= 0.4 * len(whole) + 1
    assert "NMS inside" in done.lines[0]


@pytest.mark.slow
def test_openvino_reads_the_same_int8(classifier: Path, scenes: Path, tmp_path: Path):
    pytest.importorskip("openvino")
    onnx_form()
    from mnvision.export.openvino import OpenVino

    asked = Calibration(24, 16)
    done = export(classifier / "c.ckpt", OpenVino(), INT8, tmp_path / "c.xml", scenes, calibration=asked)
    assert (tmp_path / "c.bin").stat().st_size < 0.35 * 4 * 220_000 + 20_000
    images = planes(tinted(16, SIDE))
    one, two = open_file(done.path).predict(images), open_file(classifier / "c_int8.onnx").predict(images)
    assert (one.argmax(1) == two.argmax(1)).float().mean() >= 0.9


@pytest.mark.slow
def test_a_whole_network_shrinks_to_less_than_a_third(tmp_path: Path):
    """Width 1 with ImageNet's 1000 classes: 4.2 million weights."""
    import onnx

    form = onnx_form()
    from mnvision.build import build_model
    from mnvision.export.graph import GraphOptions, build_graph
    from mnvision.export.int8 import quantized
    from tests.builders_export import config_of

    config = config_of("classification", 1000, {})
    config["backbone"]["alpha"] = 1.0
    torch.manual_seed(0)
    proto = form.proto(build_graph(build_model(config).eval(), GraphOptions()), Wish())
    images = drawn_pictures((SIDE, SIDE), 8).transpose(0, 3, 1, 2).copy()
    int8 = quantized(proto, images, None)
    assert proto.ByteSize() > 16e6
    assert int8.ByteSize() <= 0.30 * proto.ByteSize()
    onnx.checker.check_model(int8)


def test_samples_are_disjoint_and_the_same_every_time(scenes: Path):
    class Named:
        def __call__(self, path: Path):
            return type("Prepared", (), {"pixels": np.full((2, 2, 3), int(path.stem), np.uint8)})

    def numbers(samples: Samples) -> tuple[set[int], set[int]]:
        return set(samples.calibration[:, 0, 0, 0].tolist()), {
            int(picture.pixels[0, 0, 0]) for picture in samples.held_out
        }

    for limit, held, expected in ((8, 8, (8, 8)), (256, 256, (30, 10)), (36, 256, (30, 10)), (8, 256, (8, 32))):
        first = numbers(read_samples(scenes, Named(), Calibration(limit, held)))
        assert (len(first[0]), len(first[1])) == expected
        assert not first[0] & first[1]
        assert first == numbers(read_samples(scenes, Named(), Calibration(limit, held)))


@pytest.mark.parametrize(
    ("wish", "given", "text"),
    [
        (INT8, {}, "precision=int8 is calibrated on real pictures: give pictures=FOLDER"),
        (Wish("int8", resize=True), {}, "leave resize=true out"),
        (Wish("fp16"), {"calibration": Calibration(max_drop=0.1)}, "report and max_drop are for precision=int8"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(wish: Wish, given: dict, text: str, tmp_path: Path):
    form = onnx_form()
    with pytest.raises(UserError) as caught:
        export(tmp_path / "no.ckpt", form, wish, **given)
    assert text in str(caught.value)


def test_too_few_pictures_are_refused(tmp_path: Path, scenes: Path):
    import shutil

    for name in ("000.png", "001.png"):
        shutil.copy(scenes / name, tmp_path / name)
    with pytest.raises(UserError, match="2 pictures are too few for int8; 100 or more"):
        read_samples(tmp_path, None, Calibration())


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("calibration.limit=2", "calibration.limit=2: give a whole number of at least 8"),
        ("calibration.held_out=x", "calibration.held_out=x"),
        ("report=maybe", "report=maybe: give true or false"),
        ("latency=often", "latency=often: give true or false"),
        ("max_drop=2", "max_drop=2: give the share"),
        ("max_drop=few", "max_drop=few: give the share"),
    ],
)
def test_wrong_words_end_in_one_line(word: str, text: str):
    with pytest.raises(UserError) as caught:
        calibration_of(cli.compose_config("export", [word]))
    assert str(caught.value).startswith(text)
