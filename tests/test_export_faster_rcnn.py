"""The form of Faster R-CNN that is exported: beside torchvision's parts, and beside the model."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.pt2 import keep_in_rounds
from mnvision.export.regions import (
    DecodeRegions,
    StaticRegions,
    calibrated_pictures,
    crop_statically,
    pictures_at_once,
)
from mnvision.export.suppression import keep_greedily
from tests.builders_faster_rcnn import faster_rcnn_config, grey_last, same_detections, spread_config, spread_faster_rcnn
from tests.builders_multitask import FASTER, joint_model
from tests.test_faster_rcnn_parts import random_boxes, small_head, torchvision_rpn

RULES = [keep_greedily, keep_in_rounds]


@pytest.mark.parametrize(("height", "width", "size"), [(19, 19, 14), (5, 9, 7), (1, 1, 3)])
def test_crops_are_those_of_roi_align(height: int, width: int, size: int):
    resolution = (height * 16, width * 16)
    maps = torch.randn(3, 5, height, width)
    boxes = random_boxes(60, min(resolution))
    boxes[0] = torch.tensor([0.0, 0.0, resolution[1], resolution[0]])
    boxes[1] = torch.tensor([3.0, 4.0, 3.0, 4.0])
    boxes[2] = 0
    image = torch.arange(3).repeat_interleave(20)
    rois = torch.cat([image[:, None].float(), boxes], dim=1)
    expected = roi_align(maps, rois, size, 1 / 16, 2, aligned=True)
    got = crop_statically(maps, boxes.reshape(3, 20, 4), resolution, size)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert crop_statically(maps.half(), boxes.reshape(3, 20, 4), resolution, size).dtype == torch.float16


@pytest.mark.parametrize("keep", RULES)
@pytest.mark.parametrize(("pre_nms_top_k", "num_proposals"), [(2000, 300), (50, 300), (2000, 10)])
def test_proposals_are_those_of_torchvision(keep, pre_nms_top_k: int, num_proposals: int):
    head = small_head(pre_nms_top_k=pre_nms_top_k, num_proposals=num_proposals)
    for layer in (head.rpn.objectness, head.rpn.box):
        torch.nn.init.normal_(layer.weight, std=2.0)
    maps = torch.randn(3, head.rpn.conv.in_channels, 4, 4)
    holder = type("Holder", (), {"head": head})
    sizes = ImageList(torch.zeros(3, 3, *head.resolution), [head.resolution] * 3)
    with torch.no_grad():
        expected, _ = torchvision_rpn(head)(sizes, {"0": maps})
        got, scores = StaticRegions(holder, keep)._proposals(*head.rpn(maps))
    assert got.shape == (3, head.num_proposals, 4)
    for image, boxes in enumerate(expected):
        count = int((scores[image] > 0).sum())
        assert count == len(boxes)
        torch.testing.assert_close(got[image, :count], boxes, rtol=1e-4, atol=1e-3)
        assert not got[image, count:].any()


@pytest.mark.parametrize("keep", RULES)
@pytest.mark.parametrize(("nms_iou", "padded"), [(0.7, False), (0.02, True)])
def test_the_graph_answers_as_the_model_does(keep, nms_iou: float, padded: bool):
    model = spread_faster_rcnn(num_proposals=30, nms_iou=nms_iou)
    graph, images = build_graph(model, GraphOptions(keep=keep)), grey_last(5)
    assert bool((model(images)["proposal_scores"] == 0).any()) is padded
    boxes, scores, classes, count = graph(images)
    expected = model.predict(images)
    same_detections({"boxes": boxes, "scores": scores, "labels": classes}, expected)
    assert count.tolist() == (expected["labels"] >= 0).sum(1).tolist()
    raw = build_graph(model, GraphOptions(proposals=keep))(images)
    assert [tuple(value.shape) for value in raw] == [(5, 30, 3, 4), (5, 30, 3)]


def test_boxes_are_those_of_a_picture_of_any_size():
    model, images = spread_faster_rcnn(), grey_last(3)
    plain = build_graph(model, GraphOptions(keep=keep_greedily))(images)
    graph = build_graph(model, GraphOptions(keep=keep_greedily, resize=True))
    for mine, other in zip(graph(images), plain):
        torch.testing.assert_close(mine, other)
    # Every pixel four times below itself is the same picture to the network, but for the antialiasing.
    tall = graph(images.repeat_interleave(4, dim=2))
    torch.testing.assert_close(tall[1][:, 0], plain[1][:, 0], atol=0.02, rtol=0)
    assert tall[0][..., 3].max() > 3 * 96
    assert tall[0][..., 2].max() <= 96


def test_padding_scores_nothing_whatever_the_classifier_says_of_it():
    outputs = {
        "proposals": torch.tensor([[[0.0, 0, 40, 40], [0, 0, 0, 0]]]),
        "proposal_scores": torch.tensor([[0.5, 0.0]]),
        "cls_logits": torch.tensor([[[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]]]),
        "box_offsets": torch.zeros(1, 2, 2, 4),
    }
    boxes, scores = DecodeRegions((30, 50))(outputs)
    assert boxes[0, 0].tolist() == [[0, 0, 40, 30]] * 2
    assert scores[0, 0, 0] > 0.99
    assert not scores[0, 1].any()


def test_anchors_that_are_all_but_certain_keep_the_order_of_the_best():
    """Their scores are 1 exactly; a runtime that orders equal scores otherwise must not choose other boxes."""
    model = spread_faster_rcnn()
    model.head.rpn.objectness.bias += 200
    seen = []

    def spy(boxes, scores, *rest):
        seen.append(scores)
        return keep_greedily(boxes, scores, *rest)

    build_graph(model, GraphOptions(keep=spy))(grey_last(2))
    (ranks, _) = seen
    assert all(len(set(row[row > 0].tolist())) == int((row > 0).sum()) for row in ranks)
    assert (ranks.diff(dim=1)[ranks[:, 1:] > 0] < 0).all()


def test_a_head_beside_others_answers_as_in_its_model():
    model = joint_model("attributes", "boxes", boxes=FASTER)
    graph, images = build_graph(model, GraphOptions(keep=keep_in_rounds)), grey_last(3)
    found, expected = dict(zip(graph.names, graph(images))), model.predict(images)
    torch.testing.assert_close(found["attributes_probabilities"], expected["attributes"], atol=1e-5, rtol=1e-4)
    boxes = {name: found[f"boxes_{key}"] for name, key in (("boxes", "boxes"), ("scores", "scores"))}
    same_detections({**boxes, "labels": found["boxes_classes"]}, expected["boxes"], 1e-4, 0.02)


def test_memory_is_bounded_where_any_number_of_pictures_could_go_in():
    assert pictures_at_once(faster_rcnn_config()) == 5  # of the default, 300 proposals
    assert pictures_at_once(faster_rcnn_config(num_proposals=700)) == 2
    assert pictures_at_once(faster_rcnn_config(num_proposals=4000)) == 1
    assert pictures_at_once({"heads": {"a": spread_config()}}) == 5
    assert pictures_at_once({"_target_": "mnvision.models.Detector", "head": {}}) > 10**6
    # Crops of 14 x 14 cells: of 300 proposals and 128 channels 30 MB, of which 66 make 2 GB.
    assert calibrated_pictures(spread_faster_rcnn(num_proposals=300, crop_size=14)) == int(
        5 * 2e9 / (300 * 128 * 196 * 4)
    )
