"""int8 for LiteRT and ExecuTorch: rounding, corrected biases, and what the files themselves hold and answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnvision.checkpoints import load_model
from mnvision.errors import UserError
from mnvision.export.base import Wish
from mnvision.export.calibration import Calibration
from mnvision.export.exporter import export
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.int8_direct import measure_noise, run_rounded
from mnvision.export.int8_insert import insert_rounding
from mnvision.export.int8_rounding import pixels_for
from mnvision.export.int8_rounding import settle as settle_rounding
from mnvision.export.int8_traced import scale_and_zero, trace
from mnvision.export.litert import VARIABLE, LiteRT
from mnvision.export.metadata import describe
from mnvision.export.runtime import open_file
from tests.builders_export import SIDE, build, executorch_form, litert_form, pictures, save
from tests.builders_models import files_below
from tests.builders_tinted import planes, settle, tinted, write_pictures

FORMS = (executorch_form, litert_form)
FEW = Calibration(limit=16, held_out=16, latency=False)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tinted scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_pictures(folder, tinted(32, 96))
    return folder


class Tiny(nn.Module):
    """Stands for an export graph: a convolution, its activation, and another convolution."""

    options = GraphOptions()

    def __init__(self, first: Tensor, bias: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first = nn.Conv2d(first.shape[1], first.shape[0], 1)
        self.second = nn.Conv2d(second.shape[1], second.shape[0], 1, bias=False)
        self.first.weight = nn.Parameter(first[..., None, None], requires_grad=False)
        self.first.bias = nn.Parameter(bias, requires_grad=False)
        self.second.weight = nn.Parameter(second[..., None, None], requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.second(nn.functional.relu6(self.first(images.float()))),)

    def example(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3, 2, 2, dtype=torch.uint8)


def tiny() -> Tiny:
    first = torch.tensor([[1.27, 0.004, 0.0], [0.0, -0.5, 0.0018]]) / 100
    return Tiny(first, torch.tensor([0.5, 3.0]), torch.tensor([[2.54, 0.009], [0.0, 1.27], [1.27, -0.005]]))


def uint8_pictures(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def test_biases_take_up_what_rounding_the_weights_shifts_layer_after_layer():
    """Against the same steps in NumPy: weights of 0.4 and 0.46 of a step become zero, 0.9 of a step one."""
    graph, images = tiny(), uint8_pictures(8, 2)
    found = settle_rounding(graph, images)
    x = images.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
    w1, b1 = graph.first.weight.double().numpy()[:, :, 0, 0], graph.first.bias.double().numpy()[:, None]
    w2 = graph.second.weight.double().numpy()[:, :, 0, 0]
    steps1, steps2 = (np.abs(w).max(1, keepdims=True) / 127 for w in (w1, w2))
    q1, q2 = np.round(w1 / steps1), np.round(w2 / steps2)
    assert q1.tolist() == [[127, 0, 0], [0, -127, 0]]
    assert q2.tolist() == [[127, 0], [0, 127], [127, 0]]
    shift1 = ((w1 - q1 * steps1) @ x).mean(1, keepdims=True)
    hidden = np.clip(w1 @ x + b1, 0, 6)
    rounded = np.clip(q1 * steps1 @ x + b1 + shift1, 0, 6)
    shift2 = (w2 @ hidden - q2 * steps2 @ rounded).mean(1)
    assert np.abs(shift1).min() > 1e-3
    assert np.abs(shift2).max() > 1e-3
    np.testing.assert_array_equal(found["first"].weight.numpy()[:, :, 0, 0], q1)
    np.testing.assert_allclose(found["first"].scales, steps1[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found["first"].bias, (b1 + shift1)[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["second"].bias, shift2, atol=1e-6)
    assert found["first"].source == (0.0, x.max())
    np.testing.assert_allclose(found["second"].source, (min(rounded.min(), 0), rounded.max()), rtol=1e-6)
    plain = settle_rounding(graph, images, correct=False)
    np.testing.assert_allclose(plain["first"].bias, b1[:, 0], atol=1e-7)
    np.testing.assert_allclose(plain["second"].bias, 0, atol=0)


def test_a_bias_fits_into_int32_where_a_channel_gives_a_constant():
    """A channel of weights near 1e-14 with a bias of 3: in steps of the weights' own the bias would be 1e16."""
    graph = tiny()
    graph.first.weight[1] = torch.tensor([1e-14, -2e-14, 0])[:, None, None]
    rounding = settle_rounding(graph, uint8_pictures(8, 2))["first"]
    step, _ = scale_and_zero(rounding.source)
    assert (rounding.bias / (step * rounding.scales)).abs().max() < 2**31
    assert rounding.weight[1].abs().max() == 0
    assert float(rounding.bias[1]) == pytest.approx(3.0)


def test_a_layer_used_twice_is_refused():
    class Twice(Tiny):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (self.first(self.first(images.float()).repeat(1, 2, 1, 1)[:, :3]),)

    one = tiny()
    with pytest.raises(UserError, match="layer first is used more than once"):
        trace(Twice(one.first.weight[..., 0, 0], one.first.bias, one.second.weight[..., 0, 0]), 1)


@pytest.mark.parametrize("kind", ["classification", "face_attributes", "face_embeddings", "detection"])
def test_every_layer_with_weights_is_found_with_its_activation(kind: str):
    model = build(kind)
    layers = trace(build_graph(model, GraphOptions()), 1).layers
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sorted(layer.title for layer in layers) == sorted(expected)
    fused = [layer for layer in layers if layer.end is not layer.node]
    clipped = sum(isinstance(module, nn.ReLU6) for module in model.modules())
    assert len(fused) == clipped > 10
    assert all(layer.end.target == torch.ops.aten.hardtanh.default for layer in fused)
    depthwise = sum(m.groups > 1 for m in model.modules() if isinstance(m, nn.Conv2d))
    assert sum(layer.kind == "depthwise" for layer in layers) == depthwise


@pytest.mark.parametrize("stored", [True, False])
def test_inserted_roundings_compute_what_was_settled(stored: bool):
    """Both forms of the graph against layers that are rounded one by one by torch's own fake quantisation."""
    graph, images = tiny(), uint8_pictures(4, 2)
    roundings = settle_rounding(graph, images)
    module = insert_rounding(trace(graph, 4), roundings, stored)
    x = torch.from_numpy(images).float()
    for title, activation in (("first", nn.functional.relu6), ("second", nn.Identity())):
        rounding = roundings[title]
        if title == "first":
            x = fake(x, rounding.source)
        zeros = torch.zeros(len(rounding.scales), dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(rounding.values(), rounding.scales, zeros, 0, -127, 127)
        x = fake(activation(nn.functional.conv2d(x, weight, rounding.bias)), rounding.result)
    torch.testing.assert_close(module(torch.from_numpy(images))[0], x, rtol=1e-6, atol=1e-6)
    simulated = run_rounded(trace(graph, 4), roundings, torch.from_numpy(images))
    torch.testing.assert_close(simulated["second"], x, rtol=1e-6, atol=1e-6)


def fake(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    scale, zero = scale_and_zero(bounds)
    assert scale * (-128 - zero) <= low + 1e-6
    assert scale * (127 - zero) >= high - 1e-6
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, -128, 127)


def test_layers_that_are_kept_stay_in_float_and_noise_is_nothing_without_rounding():
    graph = build_graph(build("classification"), GraphOptions())
    images = pictures(8, SIDE)
    titles = [layer.title for layer in trace(graph, 1).layers]
    assert settle_rounding(graph, images, kept=titles) == {}
    kept = titles[3:5]
    roundings = settle_rounding(graph, images, kept)
    assert set(roundings) == set(titles) - set(kept)
    module = insert_rounding(trace(graph, 1), roundings, stored=True)
    floats = [node for node in module.graph.nodes if str(node.target).endswith(".weight")]
    assert sorted(str(node.target) for node in floats) == sorted(f"model.{title}.weight" for title in kept)
    assert {row.sqnr_db for row in measure_noise(graph, {}, images)} == {150.0}
    rows = measure_noise(graph, roundings, images)
    assert [row.layer for row in rows] == titles
    assert all(row.sqnr_db < 150 for row in rows)
    assert all((row.gain_db == 0) == (row.layer in kept) for row in rows)


@pytest.fixture(scope="module", params=FORMS)
def shipped(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An int8 classifier of three tints: its format, its file, and the checkpoint's model."""
    form = request.param()
    folder = tmp_path_factory.mktemp(form.name)
    save(folder / "c.ckpt", "classification")
    settle(folder / "c.ckpt")
    done = export(folder / "c.ckpt", form, Wish("int8", batch=1), pictures=scenes, calibration=FEW)
    assert files_below(folder) == {"c.ckpt", f"c_int8{form.suffix}"}
    return form, done, load_model(folder / "c.ckpt")[0].eval()


@pytest.mark.slow
def test_files_answer_as_rounded_torch_does_and_decide_as_the_checkpoint(shipped: Any):
    _, done, model = shipped
    images = planes(tinted(24, SIDE))
    found = open_file(done.path).predict(images)
    with torch.inference_mode():
        assert (found.argmax(1) == model.predict(images).argmax(1)).float().mean() >= 0.95
    assert done.size < 0.4 * 4 * sum(value.numel() for value in model.parameters())
    again = open_file(done.path)
    torch.testing.assert_close(again.predict(images[:3]), found[:3], rtol=0, atol=0)
    assert open_file(done.path).session.metadata.quantization["pictures"] == 16


@pytest.mark.slow
def test_litert_files_hold_one_scale_per_channel_and_no_float_layer(shipped: Any):
    form, done, model = shipped
    if form.name != "litert":
        pytest.skip("read back with LiteRT's interpreter")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    reader = Interpreter(
        model_path=str(done.path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    reader.allocate_tensors()
    tensors = {entry["index"]: entry for entry in reader.get_tensor_details()}
    counts: Counter[str] = Counter()
    scales, read_back = [], {}
    for operation in reader._get_ops_details():
        name = operation["op_name"]
        counts[name] += 1
        if name == "DEQUANTIZE":
            read_back[operation["outputs"][0]] = tensors[operation["inputs"][0]]
        if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        source, weight, bias = (tensors[index] for index in operation["inputs"])
        types = [entry["dtype"] for entry in (source, weight, bias, tensors[operation["outputs"][0]])]
        if name == "FULLY_CONNECTED":  # nothing is behind it: its weights are stored in int8, and read back once
            weight = read_back[weight["index"]]
            assert (types, weight["dtype"]) == ([np.float32] * 4, np.int8)
        else:
            assert types == [np.int8, np.int8, np.int32, np.int8]
        scales.append(np.sort(weight["quantization_parameters"]["scales"]))
    layers = trace(build_graph(model, GraphOptions()), 1)
    assert sum(counts[name] for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")) == len(layers.layers)
    assert not {"RELU6", "RELU", "MINIMUM", "MAXIMUM", "RELU_N1_TO_1"} & set(counts)
    for layer, found in zip(layers.layers, scales, strict=True):
        weight = layers.module.get_parameter(layer.weight)
        np.testing.assert_allclose(found, np.sort(weight.flatten(1).abs().amax(1) / 127), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", FORMS)
def test_detectors_answer_as_rounded_torch_does_and_keep_their_default_boxes_in_float(make: Any, tmp_path: Path):
    """What an int8 file cannot change: every default box is there, and its edges lie in the picture."""
    form, images = make(), planes(tinted(24, SIDE))
    save(tmp_path / "d.ckpt", "detection")
    settle(tmp_path / "d.ckpt")
    model, metadata = load_model(tmp_path / "d.ckpt")
    graph, wish = build_graph(model, GraphOptions(form.layout)), Wish("int8", batch=1, nms=False)
    about = describe(metadata, graph, 1, "int8", tmp_path / "d.ckpt", model)
    files = form.quantizer(graph, wish).write(images[2:].numpy(), (), about, tmp_path / f"d{form.suffix}")
    file = open_file(files[-1])
    assert file.session.metadata.nms is False
    found = file.outputs(images[:2])
    assert found["boxes"].shape[1] == found["scores"].shape[1] == len(build("detection").head.default_boxes)
    assert found["boxes"].equal(found["boxes"].clamp(0, SIDE))
    assert found["boxes"].unique().numel() > 256
    module = insert_rounding(trace(graph, 2), settle_rounding(graph, images[2:].numpy()), stored=True)
    shown = pixels_for(graph, images[:2].numpy())
    rounded, exact = (dict(zip(graph.names, function(shown))) for function in (module, graph))
    for name in ("boxes", "scores"):
        noise = (exact[name] - rounded[name]).abs().mean()
        assert (rounded[name] - found[name]).abs().mean() < noise, name
    strong = rounded["scores"] > rounded["scores"].quantile(0.98)
    torch.testing.assert_close(found["scores"][strong], rounded["scores"][strong], rtol=0, atol=0.1)


@pytest.mark.parametrize("make", FORMS)
def test_what_cannot_be_calibrated_leaves_nothing(make: Any, tmp_path: Path):
    form = make()
    save(tmp_path / "c.ckpt", "classification")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.jpg").write_bytes(b"no picture")
    before = files_below(tmp_path)
    for given, text in (
        ({}, "precision=int8 is calibrated on real pictures: give pictures=FOLDER"),
        ({"pictures": tmp_path / "nowhere"}, "nowhere"),
        ({"pictures": folder}, r"\d\.jpg"),
    ):
        with pytest.raises(UserError, match=text):
            export(tmp_path / "c.ckpt", form, Wish("int8", batch=1), calibration=FEW, **given)
    with pytest.raises(UserError, match="cannot write"):
        export(tmp_path / "c.ckpt", form, Wish("int8", batch=1), folder / "0.jpg" / f"x{form.suffix}", pictures=folder)
    assert files_below(tmp_path) == before


def test_the_converter_is_looked_for_in_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv(VARIABLE, str(python))
    assert LiteRT().converter == python
    assert LiteRT("elsewhere/python").converter == Path.cwd() / "elsewhere" / "python"
    monkeypatch.delenv(VARIABLE)
    assert LiteRT().converter.parts[-3:] == (".venv-litert", "bin", "python")
