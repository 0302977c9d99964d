"""int8 layers at the end of a network: linear ones that nothing rounds behind, and maps that are put side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnvision.export.appended import append_text, appended_text
from mnvision.export.base import Wish
from mnvision.export.executorch import ExecuTorch
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.int8_direct import run_rounded
from mnvision.export.int8_insert import insert_rounding
from mnvision.export.int8_ranges import stored_roundings
from mnvision.export.int8_rounding import settle
from mnvision.export.int8_traced import trace
from mnvision.quantization.layers import quantize, restore
from tests.builders_export import SIDE, build, pictures
from tests.builders_ssd_tflite import SSDFile


class Pooled(nn.Module):
    """Stands for an export graph: a convolution, a pool and a linear layer."""

    options = GraphOptions()

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)
        self.requires_grad_(False)
        self.conv.weight /= 50

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.fc(nn.functional.hardtanh(self.conv(images.float()), 0.0, 6.0).mean((2, 3))),)

    def example(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3, 4, 4, dtype=torch.uint8)


def noise(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["face_attributes", "face_embeddings", "detection"])
def test_linear_layers_at_the_end_are_open_and_no_others(kind: str):
    model = build(kind)
    roundings = settle(build_graph(model, GraphOptions()), pictures(4, SIDE))
    opened = {title for title, rounding in roundings.items() if rounding.open}
    assert opened == {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(roundings[title].source is None for title in opened)
    assert bool(opened) == (kind != "detection")


def test_predictors_of_all_maps_share_the_widest_range():
    """Against the maps' own ranges, seen by hooks; rounded weights shift them a little."""
    model = build("detection")
    images, seen = pictures(6, SIDE), {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, result, name=name: seen.update({name: (float(result.min()), float(result.max()))})
        )
        for name, module in model.named_modules()
        if name.endswith((".cls", ".box"))
    ]
    model(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    roundings = settle(build_graph(model, GraphOptions()), images)
    for kind in ("cls", "box"):
        names = [name for name in seen if name.endswith(f".{kind}")]
        assert len(names) == 3
        assert len({seen[name] for name in names}) == 3
        assert len({roundings[name].result for name in names}) == 1
        widest = min(seen[name][0] for name in names), max(seen[name][1] for name in names)
        assert roundings[names[0]].result == pytest.approx(widest, rel=0.1)


def test_an_open_layer_of_litert_computes_in_float_with_int8_weights():
    graph, images = Pooled(), noise(8)
    roundings = settle(graph, images.numpy())
    fc = roundings["fc"]
    module = insert_rounding(trace(graph, 8), roundings, stored=False)
    pooled = run_rounded(trace(graph, 8), roundings, images)["conv"].mean((2, 3))
    steps = graph.fc.weight.abs().amax(1) / 127
    weight = (graph.fc.weight / steps[:, None]).round() * steps[:, None]
    torch.testing.assert_close(fc.values(), weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(module(images)[0], pooled @ weight.T + fc.bias, rtol=1e-5, atol=1e-5)
    assert len(module(images)[0].unique()) == module(images)[0].numel()


def test_an_open_layer_of_executorch_rounds_each_row_to_its_own_range():
    graph, images = Pooled(), noise(8)
    images[1] //= 20
    roundings = settle(graph, images.numpy())
    fc = roundings["fc"]
    found = insert_rounding(trace(graph, 8), roundings, stored=True)(images)[0]
    pooled = run_rounded(trace(graph, 8), roundings, images)["conv"].mean((2, 3))
    exact = pooled @ fc.values().T + fc.bias
    half = pooled.amax(1) / 255 / 2
    allowed = half[:, None] * fc.values().abs().sum(1)
    assert ((found - exact).abs() <= 1.01 * allowed + 1e-5).all()
    assert (found - exact).abs().max() > 1e-5
    alone = insert_rounding(trace(graph, 1), roundings, stored=True)
    for row in range(3):
        torch.testing.assert_close(alone(images[row : row + 1])[0], found[row : row + 1], rtol=1e-5, atol=1e-5)


def test_an_open_layer_that_is_kept_stays_in_float():
    graph, images = Pooled(), noise(8)
    roundings = settle(graph, images.numpy(), kept=["fc"])
    assert set(roundings) == {"conv"}
    module = insert_rounding(trace(graph, 8), roundings, stored=True)
    pooled = run_rounded(trace(graph, 8), roundings, images)["conv"].mean((2, 3))
    torch.testing.assert_close(module(images)[0], graph.fc(pooled), rtol=1e-5, atol=1e-5)


def test_tflite_files_lose_what_they_say_twice_and_answer_the_same(tmp_path: Path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from mnvision.export.litert_slim import slim

    path = tmp_path / "ssd.tflite"
    SSDFile().write(path)
    content = path.read_bytes()
    smaller = slim(content)
    assert len(smaller) < len(content)
    assert slim(smaller) == smaller
    answers = []
    for model in (content, smaller):
        reader = interpreter.Interpreter(model_content=model)
        reader.allocate_tensors()
        entry = reader.get_input_details()[0]
        generator = np.random.default_rng(0)
        reader.set_tensor(entry["index"], generator.uniform(-1, 1, entry["shape"]).astype(entry["dtype"]))
        reader.invoke()
        answers.append([reader.get_tensor(output["index"]) for output in reader.get_output_details()])
        names = [output["name"] for output in reader.get_output_details()]
    assert names == [output["name"] for output in reader.get_output_details()]
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("kind", "weights"), [("classification", "tensor"), ("face_embeddings", "channel")])
def test_a_fine_tuned_network_is_rounded_as_in_its_training(kind: str, weights: str):
    """Against the network of the training itself, but for its last layer, whose input that one rounds, too."""
    shown = torch.from_numpy(pictures(8, SIDE))
    model, ranges = quantize(build(kind), weights=weights)
    ranges.measure(model, [{"images": shown}], 1)
    stored = ranges.to_plain()
    graph = build_graph(build(kind), GraphOptions())
    roundings = stored_roundings(trace(graph, 8), stored)
    found = insert_rounding(trace(graph, 8), roundings, stored=False)(shown)[0]
    with torch.no_grad():
        tuned, plain = restore(build(kind), stored), build(kind)
        expected, whole = (other.decoder(other(shown)) for other in (tuned.eval(), plain))
    assert (found - expected).abs().mean() < 0.3 * (whole - expected).abs().mean()
    assert set(stored_roundings(trace(graph, 1), stored, kept=["head.fc"])) == set(roundings) - {"head.fc"}


def test_only_detectors_are_calibrated_anew_after_fine_tuning():
    for kind, known in (("classification", True), ("detection", False)):
        model, ranges = quantize(build(kind))
        ranges.measure(model, [{"images": torch.from_numpy(pictures(4, SIDE))}], 1)
        graph = build_graph(build(kind), GraphOptions())
        found = ExecuTorch().trained_quantizer(graph, Wish("int8", batch=1), ranges.to_plain())
        assert (found is not None) == known


def test_metadata_behind_a_file_are_whole_or_known_as_damaged(tmp_path: Path):
    path, text = tmp_path / "m.pte", "{" + "0123456789" * 50 + "}"
    path.write_bytes(b"model")
    append_text(path, text)
    content = path.read_bytes()
    assert len(content) < 400
    damaged = {content[:end] for end in range(5, len(content))}
    for place in range(5, len(content)):
        for flipped in (0x01, 0x80, 0xFF):
            changed = bytearray(content)
            changed[place] ^= flipped
            damaged.add(bytes(changed))
    for other in damaged:
        path.write_bytes(other)
        assert appended_text(path) in (text, "", None)
    start = content.index(b"mnvision.json") + len(b"mnvision.json")
    path.write_bytes(content[:start] + b"\xff" * 6 + content[start + 6 :])
    assert appended_text(path) == ""
    path.write_bytes(content[:-1])
    assert appended_text(path) == ""
