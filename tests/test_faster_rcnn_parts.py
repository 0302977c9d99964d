"""The parts of Faster R-CNN against torchvision's own, and against hand-made cases."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, roi_align

from mnvision.boxes.crops import crop_map
from mnvision.boxes.matcher import BACKGROUND, IGNORED, match_default_boxes
from mnvision.boxes.postprocess import RegionDecoder
from mnvision.errors import UserError
from mnvision.heads.faster_rcnn import FasterRCNNHead
from tests.test_matcher import random_targets

SIDE = 64
CHANNELS = 16
CLASSES = 3


def small_head(**options) -> FasterRCNNHead:
    torch.manual_seed(0)
    arguments = {"num_classes": CLASSES, "resolution": SIDE, "alpha": CHANNELS / 512, **options}
    return FasterRCNNHead([CHANNELS], [16], region_channels=8, **arguments)


def random_boxes(count: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=rng) * side
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


@pytest.mark.parametrize(("height", "width", "samples", "size"), [(19, 19, 2, 14), (5, 9, 1, 7), (1, 1, 2, 3)])
def test_crops_and_their_gradient_are_those_of_roi_align(height: int, width: int, samples: int, size: int):
    resolution = (height * 16, width * 16)
    maps = torch.randn(3, 5, height, width, requires_grad=True)
    boxes = random_boxes(40, min(resolution))
    boxes[0] = torch.tensor([0.0, 0.0, resolution[1], resolution[0]])
    boxes[1] = torch.tensor([3.0, 4.0, 3.0, 4.0])
    image = torch.arange(40) % 3
    rois = torch.cat([image[:, None].float(), boxes], dim=1)
    expected = roi_align(maps, rois, size, 1 / 16, samples, aligned=True)
    got = crop_map(maps, image, boxes, resolution, size, samples)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(expected)
    (mine,) = torch.autograd.grad((got * weights).sum(), maps)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), maps)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_no_boxes_give_no_crops():
    maps = torch.randn(2, 5, 4, 4)
    got = crop_map(maps, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (64, 64), 7)
    assert got.shape == (0, 5, 7, 7)


class _GivenAnchors(torch.nn.Module):
    def __init__(self, anchors: torch.Tensor) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, images: ImageList, features: list) -> list:
        return [self.anchors] * len(images.tensors)


def torchvision_rpn(head: FasterRCNNHead) -> RegionProposalNetwork:
    """torchvision's network with our weights and our anchors, its coder's scales set to ours."""
    num_anchors = head.rpn.objectness.out_channels
    theirs = RPNHead(CHANNELS, num_anchors)
    theirs.conv[0][0].load_state_dict(head.rpn.conv.state_dict())
    theirs.cls_logits.load_state_dict(head.rpn.objectness.state_dict())
    theirs.bbox_pred.load_state_dict(head.rpn.box.state_dict())
    tops = {"training": head.pre_nms_top_k, "testing": head.pre_nms_top_k}
    kept = {"training": head.num_proposals, "testing": head.num_proposals}
    rpn = RegionProposalNetwork(_GivenAnchors(head.anchors), theirs, 0.7, 0.3, 256, 0.5, tops, kept, head.nms_iou)
    rpn.box_coder.weights = (10.0, 10.0, 5.0, 5.0)
    return rpn.eval()


@pytest.mark.parametrize(("pre_nms_top_k", "num_proposals"), [(2000, 300), (50, 300), (2000, 10)])
def test_proposals_are_those_of_torchvision(pre_nms_top_k: int, num_proposals: int):
    head = small_head(pre_nms_top_k=pre_nms_top_k, num_proposals=num_proposals)
    for layer in (head.rpn.objectness, head.rpn.box):
        torch.nn.init.normal_(layer.weight, std=2.0)
    maps = torch.randn(3, CHANNELS, 4, 4)
    rpn = torchvision_rpn(head)
    images = ImageList(torch.zeros(3, 3, SIDE, SIDE), [(SIDE, SIDE)] * 3)
    with torch.no_grad():
        expected, _ = rpn(images, {"0": maps})
        got = head.propose(maps)
    for image, boxes in enumerate(expected):
        count = int((got["proposal_scores"][image] > 0).sum())
        assert count == len(boxes)
        torch.testing.assert_close(got["proposals"][image, :count], boxes, rtol=1e-4, atol=1e-3)
        assert not got["proposals"][image, count:].any()
    assert (got["proposal_scores"].diff(dim=1) <= 0).all()


def test_anchors_of_one_size_are_where_torchvision_puts_them_half_a_cell_further():
    """torchvision centres anchors on the corners of cells, rounded to whole pixels; here on their centres."""
    head = small_head(anchor_scales=[0.5, 1.0], aspect_ratios=[1.0])
    generator = AnchorGenerator(((32, 64),), ((1.0,),))
    images = ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)])
    (expected,) = generator(images, [torch.zeros(1, CHANNELS, 4, 4)])
    torch.testing.assert_close(head.anchors, expected + 8.0)


def test_a_broken_network_proposes_nothing_and_does_not_fail():
    head = small_head()
    torch.nn.init.constant_(head.rpn.conv.bias, float("nan"))
    got = head.propose(torch.randn(2, CHANNELS, 4, 4))
    assert not got["proposals"].any()
    assert not got["proposal_scores"].any()


def test_detections_are_those_of_torchvision():
    torch.manual_seed(1)
    count = 40
    proposals = torch.stack([random_boxes(count, seed=seed) for seed in range(2)])
    logits, offsets = torch.randn(2, count, CLASSES + 1) * 2, torch.randn(2, count, CLASSES, 4)
    outputs = {
        "objectness": torch.zeros(2, 0),
        "anchor_offsets": torch.zeros(2, 0, 4),
        "proposals": proposals,
        "proposal_scores": torch.ones(2, count),
        "cls_logits": logits,
        "box_offsets": offsets,
    }
    got = RegionDecoder(score_threshold=0.05, nms_iou=0.5, max_detections=30)(outputs, (SIDE, SIDE))
    heads = RoIHeads(None, None, None, 0.5, 0.5, 64, 0.25, None, 0.05, 0.5, 30)
    with_background = torch.cat([torch.zeros(2, count, 1, 4), offsets], dim=2)
    boxes, scores, labels = heads.postprocess_detections(
        logits.flatten(0, 1), with_background.flatten(0, 1).flatten(1), list(proposals), [(SIDE, SIDE)] * 2
    )
    for image in range(2):
        torch.testing.assert_close(got["scores"][image, : len(scores[image])], scores[image])
        torch.testing.assert_close(got["boxes"][image, : len(scores[image])], boxes[image], rtol=1e-4, atol=1e-3)
        assert torch.equal(got["labels"][image, : len(scores[image])] + 1, labels[image])
    outputs["proposal_scores"] = torch.zeros(2, count)
    nothing = RegionDecoder()(outputs, (SIDE, SIDE))
    assert not nothing["scores"].any()
    assert (nothing["labels"] == -1).all()


def test_anchors_match_as_in_torchvision_but_for_forced_ones():
    head = small_head()
    targets = random_targets(0, images=20, side=SIDE, crowds=False)
    matched = match_default_boxes(targets, head.anchors, 0.7, background_threshold=0.3)
    free = match_default_boxes(targets, head.anchors, 0.7, background_threshold=0.3, force=False)
    seen = set()
    for image, labels in enumerate(targets["labels"]):
        real = labels >= 0
        if not real.any():
            continue
        expected = Matcher(0.7, 0.3)(box_iou(targets["boxes"][image][real], head.anchors))
        position = real.nonzero().squeeze(1)
        expected = torch.where(expected >= 0, position[expected.clamp(min=0)], expected)
        assert torch.equal(free[image], expected)
        assert set(matched[image][matched[image] >= 0].tolist()) == set(position.tolist())
        seen |= set(expected.tolist())
    assert {BACKGROUND, IGNORED} < seen


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_proposals": 0}, "num_proposals of the Faster R-CNN head must be a whole number >= 1, got 0"),
        ({"crop_size": 1.5}, "crop_size"),
        ({"nms_iou": 0.0}, "nms_iou of the Faster R-CNN head must lie in"),
        ({"anchor_scales": []}, "anchor_scales"),
        ({"aspect_ratios": [1.0, -1.0]}, "aspect_ratios"),
    ],
)
def test_wrong_settings_of_the_head(options: dict, text: str):
    with pytest.raises(UserError, match=text):
        small_head(**options)


def test_one_map_of_the_right_size_is_needed():
    with pytest.raises(UserError, match=r"takes one feature map, the backbone gives 2: set backbone.out_strides"):
        FasterRCNNHead([8, 16], [16, 32], 8, CLASSES, SIDE)
    with pytest.raises(UserError, match=r"for 64 x 64 px needs a feature map of \(4, 4\), got \(5, 4\)"):
        small_head().propose(torch.zeros(1, CHANNELS, 5, 4))
