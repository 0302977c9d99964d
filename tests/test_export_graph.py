"""What is exported, before any format: folding, decoding, suppression, metadata, and the comparison itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.checkpoints import load_model
from mnvision.errors import UserError
from mnvision.export.folding import folded
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.metadata import FileMetadata, describe, weights_digest
from mnvision.export.parity import LIMITS, compare
from mnvision.export.pt2 import keep_in_rounds
from mnvision.export.suppression import NmsSettings, Suppress, keep_greedily
from mnvision.types import Detections
from tests.builders_export import CONFIGS, FIELDS, SIDE, build, pictures, save

KINDS = list(CONFIGS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_model_answers_alike_and_has_no_batch_norm_left(kind: str):
    model = build(kind)
    images = torch.from_numpy(pictures(3, SIDE))
    flat = folded(model)
    assert not [m for m in flat.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]  # the model itself is untouched
    for mine, other in zip(_tensors(flat.predict(images)), _tensors(model.predict(images))):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-5)


def test_a_batch_norm_in_front_of_its_layer_is_refused():
    with pytest.raises(UserError, match=r"batch normalisation 0\.bn follows no layer"):
        folded(nn.Sequential(nn.ModuleDict({"bn": nn.BatchNorm2d(3)}), ConvBNAct(3, 4, 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_graph_answers_as_the_model_does(kind: str, layout: str):
    model, images = build(kind), torch.from_numpy(pictures(3, SIDE))
    graph = build_graph(model, GraphOptions(layout, keep_greedily))
    pixels = images.permute(0, 2, 3, 1) if layout == "nhwc" else images
    found = dict(zip(graph.names, graph(pixels)))
    expected = model.predict(images)
    if kind != "detection":
        torch.testing.assert_close(next(iter(found.values())), expected, atol=1e-5, rtol=1e-4)
        return
    for name, other in (("boxes", "boxes"), ("scores", "scores"), ("classes", "labels")):
        torch.testing.assert_close(found[name], expected[other], atol=1e-3, rtol=1e-4)
    assert found["count"].tolist() == (expected["labels"] >= 0).sum(1).tolist()


def test_a_resizing_graph_gives_boxes_of_the_picture_and_does_nothing_at_the_networks_size():
    model, images = build("detection"), torch.from_numpy(pictures(2, SIDE))
    plain = build_graph(model, GraphOptions(keep=keep_greedily))
    graph = build_graph(model, GraphOptions(keep=keep_greedily, resize=True))
    for mine, other in zip(graph(images), plain(images)):
        torch.testing.assert_close(mine, other)
    # A picture whose pixels are doubled upwards only is the same picture to the network, with boxes twice as high.
    tall = images.repeat_interleave(8, dim=2)
    boxes, scores, *_ = graph(tall)
    torch.testing.assert_close(scores, plain(images)[1], atol=0.02, rtol=0)
    assert boxes[..., 3].max() > 6 * SIDE
    assert boxes[..., 2].max() <= SIDE


def random_candidates(seed: int, count: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(2, count, 2, generator=generator) * 30], dim=2)
    boxes[:, ::11, 2] = boxes[:, ::11, 0]  # some have no area
    return boxes, torch.rand(2, count, 4, generator=generator) ** 3


@pytest.mark.parametrize("keep", [keep_greedily, keep_in_rounds])
@pytest.mark.parametrize("per_class", [3, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.9999999])
def test_suppression_is_that_of_torchvision(keep, per_class: int, threshold: float):
    boxes, scores = random_candidates(1)
    settings = NmsSettings(threshold, 0.4, 300, per_class, 40)
    found = Suppress(settings, keep)(boxes, scores)
    for image in range(2):
        expected = _by_torchvision(boxes[image], scores[image], settings)
        count = int(found[3][image])
        assert count == len(expected)
        got = [(round(float(s), 6), int(c)) for s, c in zip(found[1][image, :count], found[2][image, :count])]
        assert got == [(round(float(s), 6), c) for s, c, _ in expected]
        for row, (_, _, box) in enumerate(expected):
            assert torch.equal(found[0][image, row], box)
        assert not found[0][image, count:].any()
        assert (found[2][image, count:] == -1).all()


def _by_torchvision(boxes: torch.Tensor, scores: torch.Tensor, settings: NmsSettings) -> list:
    """Top candidates over all classes, then class by class with torchvision's own suppression."""
    flat = scores.flatten()
    order = flat.argsort(descending=True)[: settings.pre_nms_top_k]
    order = order[flat[order] > settings.score_threshold]
    rows = [(float(flat[i]), int(i) % scores.shape[1], boxes[int(i) // scores.shape[1]]) for i in order]
    rows = [row for row in rows if (row[2][2:] > row[2][:2]).all()]
    kept = []
    for label in range(scores.shape[1]):
        mine = [row for row in rows if row[1] == label]
        if mine:
            stacked, values = torch.stack([row[2] for row in mine]), torch.tensor([row[0] for row in mine])
            index = torchvision.ops.nms(stacked, values, settings.nms_iou)[: settings.max_per_class]
            kept += [mine[i] for i in index.tolist()]
    return sorted(kept, key=lambda row: -row[0])[: settings.max_detections]


def test_fewer_default_boxes_than_detections_are_filled_up():
    boxes, scores = random_candidates(2, count=2)
    found = Suppress(NmsSettings(0.0, 0.5, 1000, 100, 30), keep_greedily)(boxes, scores)
    assert found[0].shape == (2, 30, 4)
    assert found[2].shape == (2, 30)
    assert (found[2][:, 8:] == -1).all()


def file_metadata(tmp_path: Path, kind: str = "face_attributes") -> FileMetadata:
    save(tmp_path / "a.ckpt", kind, run={"seed": 3, "paths": {"output_dir": "/home/me/runs/faces/2026-01-31"}})
    model, metadata = load_model(tmp_path / "a.ckpt")
    graph = build_graph(model, GraphOptions())
    return describe(metadata, graph, None, "fp32", tmp_path / "a.ckpt", model)


def test_metadata_survive_as_text_and_name_no_folder_of_the_users(tmp_path: Path):
    metadata = file_metadata(tmp_path)
    text = metadata.to_text()
    assert FileMetadata.from_text(text, tmp_path) == metadata
    back = metadata.as_checkpoint()
    stored = load_model(tmp_path / "a.ckpt")[1]
    for name in ("kind", "model", "class_names", "preprocess", "calibration", "overrides"):
        assert getattr(back, name) == getattr(stored, name)
    assert metadata.training["run"] == "faces/2026-01-31"
    assert "/home/me" not in text
    assert metadata.class_names == FIELDS["face_attributes"]["class_names"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda _: None, "holds no 'mnvision' metadata"),
        (lambda _: "{", "no JSON object"),
        (lambda text: text.replace("Smiling", "Frowning"), "changed after the export"),
        (lambda text: json.dumps({**json.loads(text), "format_version": 99}), "newer than"),
    ],
)
def test_metadata_stripped_or_altered_are_refused_in_one_line(change, text: str, tmp_path: Path):
    with pytest.raises(UserError, match=text) as caught:
        FileMetadata.from_text(change(file_metadata(tmp_path).to_text()), tmp_path / "a.onnx")
    assert "a.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_digest_changes_with_any_weight():
    weights = build("classification").state_dict()
    before = weights_digest(weights)
    weights["head.fc.bias"] = weights["head.fc.bias"].clone()
    weights["head.fc.bias"][1] += 1e-6
    assert weights_digest(weights) != before


def detections(rows: list[tuple[float, float, int]], size: int = 4) -> Detections:
    """One image; rows are (left edge, score, label) of boxes of side 10."""
    boxes, scores, labels = torch.zeros(1, size, 4), torch.zeros(1, size), torch.full((1, size), -1)
    for i, (left, score, label) in enumerate(rows):
        boxes[0, i], scores[0, i], labels[0, i] = torch.tensor([left, 0, left + 10, 10]), score, label
    return {"boxes": boxes, "scores": scores, "labels": labels}


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        ([(5.0, 0.9, 1), (40.0, 0.5, 0)], True),
        ([(5.00001, 0.90001, 1), (40.0, 0.5, 0)], True),
        ([(5.0, 0.9, 1), (41.0, 0.5, 0)], False),  # a box elsewhere
        ([(5.0, 0.9, 1), (40.0, 0.6, 0)], False),  # another score
        ([(5.0, 0.9, 1), (40.0, 0.5, 2)], False),  # another class
        ([(5.0, 0.9, 1)], False),  # one missing
        ([(5.0, 0.9, 1), (40.0, 0.5, 0), (70.0, 0.4, 0)], False),  # one too many
        ([(5.0, 0.9, 1), (40.0, 0.5, 0), (70.0, 0.10005, 0)], True),  # at the threshold either way is right
        ([], False),
    ],
)
def test_detections_are_compared_one_by_one(found: list, fits: bool):
    limits = LIMITS["fp32"]
    difference = compare(detections([(5.0, 0.9, 1), (40.0, 0.5, 0)]), detections(found), limits, 100, threshold=0.1)
    assert difference.fits(limits, 100) is fits


def test_no_detections_on_both_sides_are_alike_and_nan_is_not():
    limits = LIMITS["fp32"]
    assert compare(detections([]), detections([]), limits, 100).fits(limits, 100)
    rows = torch.tensor([[0.2, 0.8]])
    assert not compare(rows, torch.tensor([[0.2, float("nan")]]), limits, 100).fits(limits, 100)


def _tensors(answer) -> list[torch.Tensor]:
    return list(answer.values()) if isinstance(answer, dict) else [answer]


def test_pictures_of_the_builder_differ():
    assert len({image.tobytes() for image in pictures(4, SIDE)}) == 4
    assert np.ptp(pictures(1, SIDE)) > 100
