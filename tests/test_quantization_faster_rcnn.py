"""``quantize=qat`` of a Faster R-CNN: every layer of both stages is rounded, and labels alone teach it."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnvision.build import build_model
from mnvision.checkpoints import KEY, Metadata, load_model, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.export.folding import normalised_layers
from mnvision.quantization.layers import quantize, restore
from mnvision.quantization.ranges import OUTPUT
from tests.builders import make_tiny_coco
from tests.builders_faster_rcnn import faster_rcnn_config
from tests.builders_harm import compose
from tests.builders_multitask import FASTER, blotches, joint_model
from tools.quantizing import expand_quantize
from tools.run import evaluate, train

OBJECTS = ["person", "car", "kite"]
MAP, END = "backbone.blocks.10.pointwise.conv:output", "backbone.blocks.12.pointwise.conv:output"
FEW: dict[str, Any] = {"num_proposals": 12, "resolution": 96}


def build() -> Any:
    """A model in eval mode whose answers depend on the picture."""
    torch.manual_seed(0)
    model = build_model(faster_rcnn_config(**FEW))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(blotches(8, 96))
        nn.init.normal_(model.head.rpn.objectness.weight, std=0.1)
        nn.init.normal_(model.head.rpn.box.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03
    return model.eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.ckpt"
    state = {f"model.{key}": value for key, value in build().state_dict().items()}
    entry = Metadata("faster_rcnn", faster_rcnn_config(**FEW), OBJECTS, [2, 7, 90], {"resize": "stretch"})
    torch.save({"state_dict": state, KEY: entry.to_dict()}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_coco(tmp_path_factory.mktemp("data"))


def words_for(data: Path, plain: Path, *words: str, epochs: int = 1) -> list[str]:
    names = read_metadata(plain).class_names
    assert len(names) == 3
    return [
        *("quantize=qat", f"init_from={plain}", f"data.root={data}", "quantize.batches=2", "head.num_proposals=12"),
        *("loss.region_count=8", "scheduler=constant", f"trainer.max_epochs={epochs}", *words),
    ]


def measured() -> tuple[Any, Any]:
    model, ranges = quantize(build())
    ranges.measure(model, [{"images": blotches(4, 96)}], 1)
    return model, ranges


def test_every_layer_of_both_stages_has_a_range():
    plain, (model, ranges) = build(), measured()
    layers = [name for name, module in plain.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == len(normalised_layers(plain)) == 32  # 27 of the backbone, 3 of the proposals, 2 linear
    stored = ranges.to_plain()["ranges"]
    assert set(stored) == {*layers, MAP, END}
    assert stored["head.rpn.conv"] == stored[MAP]
    assert stored["backbone.blocks.11.depthwise.conv"] != stored[MAP]  # of crops, which are averages
    assert model.state_dict().keys() == plain.state_dict().keys()
    kinds = {type(module).__name__ for module in model.modules()}
    assert not kinds & {"Conv2d", "Linear", "BatchNorm2d"}


def test_it_computes_as_the_float_model_while_measured_and_rounds_afterwards():
    (model, ranges), plain, images = measured(), build(), blotches(4, 96)
    with torch.no_grad():
        expected = plain(images)
        with ranges._looking():
            found = model(images)
        rounded = model(images)
    for name in ("objectness", "anchor_offsets"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(rounded[name], expected[name], rtol=1e-3, atol=1e-4)
    again = restore(build(), ranges.to_plain())
    with torch.no_grad():
        assert all(torch.equal(one, two) for one, two in zip(again(images).values(), rounded.values(), strict=True))


def test_no_region_to_learn_from_moves_no_range():
    model, ranges = measured()
    before = ranges.bounds.clone()
    feature_map = model.features(blotches(1, 96))[0]
    after_trunk = ranges.bounds.clone()
    model.train().classify(feature_map.detach(), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    assert torch.equal(ranges.bounds, after_trunk)
    assert torch.equal(before, after_trunk)


def test_ranges_of_parts_are_averages_of_parts():
    """More regions than go through the tail at once."""
    model, ranges = quantize(build())
    images = blotches(60, 96)
    seen: list[torch.Tensor] = []
    hook = model.head.cls.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    ranges.measure(model, [{"images": images}], 1)
    hook.remove()
    assert len(seen) == 2
    expected = torch.stack([torch.stack(torch.aminmax(part)) for part in seen]).mean(0)
    torch.testing.assert_close(ranges.bounds[ranges.row("head.cls")], expected)


def test_it_is_trained_on_labels_alone_resumed_and_evaluated(
    tmp_path: Path, data: Path, plain: Path, caplog: pytest.LogCaptureFixture
):
    model, stored = load_model(plain)
    with caplog.at_level(logging.INFO, "mnvision"):
        train(compose(tmp_path / "run", "faster_rcnn_coco", *words_for(data, plain, epochs=2)))
    assert "a faster_rcnn learns from labels alone" in caplog.text
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    metadata = read_metadata(path)
    assert metadata.class_names == stored.class_names
    assert {MAP, END, "head.cls", "head.rpn.objectness"} <= set(metadata.quantization["ranges"])
    changed = load_model(path)[0].state_dict()
    assert all(not torch.equal(changed[name], value) for name, value in model.named_parameters())
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/loss" in header
    assert not any("distill" in column for column in header)

    halves = tmp_path / "halves"
    train(compose(halves, "faster_rcnn_coco", *words_for(data, plain)))
    last = halves / "checkpoints" / "last.ckpt"
    train(compose(halves, "faster_rcnn_coco", *words_for(data, plain, f"ckpt_path={last}", epochs=2)))
    one, two = read_checkpoint(path)["state_dict"], read_checkpoint(last)["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one)

    words = [f"data.root={data}", f"checkpoint={path}"]
    scores = evaluate(compose(tmp_path / "scores", "faster_rcnn_coco", *words, name="evaluate"))
    assert 0 <= scores["val/AP"] <= 1


def test_the_command_line_names_no_teacher(tmp_path: Path, plain: Path):
    words = expand_quantize(["quantize=qat", f"init_from={plain}", "task=faster_rcnn_coco"])
    assert not any(word.startswith("teacher") for word in words)


def test_a_teacher_is_refused(tmp_path: Path, data: Path, plain: Path):
    words = words_for(data, plain, "teacher=checkpoint", f"teacher.path={plain}")
    with pytest.raises(UserError, match="this task learns nothing from a teacher: leave teacher"):
        train(compose(tmp_path / "run", "faster_rcnn_coco", *words))


def test_other_classes_are_refused(tmp_path: Path, plain: Path):
    root = make_tiny_coco(tmp_path / "data", num_images=6)
    content = torch.load(plain, weights_only=True)
    content[KEY]["class_names"] = OBJECTS[::-1]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"or in another order: give the data it was trained on$"):
        train(compose(tmp_path / "run", "faster_rcnn_coco", *words_for(root, tmp_path / "other.ckpt")))


def test_among_other_heads_a_block_may_read_the_map_and_crops_of_it():
    """The blocks behind stride 16 run in the trunk, for a classifier, and on the proposals' crops."""
    model, ranges = quantize(joint_model("boxes", "classifier", boxes=FASTER))
    ranges.measure(model, [{"images": blotches(4, 96)}], 1)
    stored = ranges.to_plain()["ranges"]
    assert stored["backbone.blocks.11.depthwise.conv"] == stored["heads.boxes.rpn.conv"] == stored[MAP]
    assert all(name in stored for name in (END, "heads.classifier.fc", "heads.boxes.cls"))
    assert sum(name.endswith(OUTPUT) for name in stored) == 2
    with torch.no_grad():
        found = model(blotches(2, 96))
    assert torch.isfinite(found["boxes"]["cls_logits"]).all()


@pytest.mark.parametrize("with_classifier", [False, True])
def test_every_layer_of_the_file_has_the_ranges_and_weights_of_training(with_classifier: bool):
    """Among others a classifier, whose trunk runs the blocks that a proposal's crop runs through, too."""
    pytest.importorskip("onnxscript")
    import onnx

    from mnvision.export.base import INT8, Wish
    from mnvision.export.graph import GraphOptions, build_graph
    from mnvision.export.int8 import layers_of
    from mnvision.export.onnx import Onnx
    from mnvision.export.rounded_graph import with_ranges

    model = joint_model("boxes", "classifier", boxes=FASTER) if with_classifier else build()
    rounded, ranges = quantize(deepcopy(model))
    ranges.measure(rounded, [{"images": blotches(4, 96)}], 1)
    form = Onnx()
    graph = build_graph(model, GraphOptions(keep=form.keep, proposals=form.keep))
    proto = form.proto(graph, Wish(precision=INT8))
    int8 = with_ranges(proto, ranges.to_plain())
    onnx.checker.check_model(int8)
    nodes, made = {node.name: node for node in int8.graph.node}, {one.output[0]: one for one in int8.graph.node}
    layers = layers_of(proto)
    assert {layer.title for layer in layers} == {*ranges.names, *ranges.shared} - {MAP, END}
    for layer in layers:
        inputs = nodes[layer.node].input
        assert [made[name].op_type for name in inputs[:2]] == ["DequantizeLinear"] * 2
    rounded_maps = [node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounded_maps) == len(set(rounded_maps))
