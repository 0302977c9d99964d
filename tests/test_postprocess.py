from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms

from mnvision.boxes.coder import decode_boxes, encode_boxes
from mnvision.boxes.postprocess import SSDDecoder
from mnvision.errors import UserError
from tests.test_matcher import ssd_default_boxes

SIDE = 96
CLASSES = 4


def random_outputs(seed: int = 0, images: int = 3) -> dict:
    rng = torch.Generator().manual_seed(seed)
    count = len(ssd_default_boxes(SIDE))
    logits = torch.randn(images, count, CLASSES + 1, generator=rng) * 2
    logits[..., 0] += 3
    return {"cls_logits": logits, "box_offsets": torch.randn(images, count, 4, generator=rng)}


def slow_decode(outputs: dict, decoder: SSDDecoder, resolution: tuple[int, int]) -> list[list[tuple]]:
    """Image by image, class by class, with torchvision's nms: (score, label, box) sorted."""
    height, width = resolution
    result = []
    for logits, offsets in zip(outputs["cls_logits"].float(), outputs["box_offsets"].float()):
        scores = logits.softmax(1) if decoder.classification == "softmax" else logits.sigmoid()
        scores = scores[:, 1:]
        boxes = decode_boxes(offsets, ssd_default_boxes(SIDE))
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        cut = scores.flatten().sort(descending=True).values[: decoder.pre_nms_top_k][-1]
        found = []
        for label in range(CLASSES):
            chosen = (has_area & (scores[:, label] > decoder.score_threshold) & (scores[:, label] >= cut)).nonzero()[
                :, 0
            ]
            kept = chosen[nms(boxes[chosen], scores[chosen, label], decoder.nms_iou)][: decoder.max_per_class]
            found += [(scores[a, label].item(), label, boxes[a].tolist()) for a in kept]
        result.append(sorted(found, key=lambda row: -row[0])[: decoder.max_detections])
    return result


@pytest.mark.parametrize("resolution", [(SIDE, SIDE), (SIDE, 64)])
@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pre_nms_top_k": 50},
        {"max_per_class": 3},
        {"max_detections": 10},
        {"score_threshold": 0.3, "nms_iou": 0.3},
        {"max_detections": 2000, "pre_nms_top_k": 2000},
    ],
)
def test_equals_a_slow_loop(options, classification, resolution):
    decoder = SSDDecoder(classification, **options)
    outputs = random_outputs()
    got = decoder(outputs, ssd_default_boxes(SIDE), resolution)
    expected = slow_decode(outputs, decoder, resolution)
    assert got["boxes"].shape == (3, decoder.max_detections, 4)
    for image, rows in enumerate(expected):
        assert len(rows) > 3
        real = got["labels"][image] >= 0
        assert real.sum() == len(rows)
        assert got["labels"][image, real].tolist() == [label for _, label, _ in rows]
        torch.testing.assert_close(got["scores"][image, real], torch.tensor([score for score, _, _ in rows]))
        torch.testing.assert_close(got["boxes"][image, real], torch.tensor([box for _, _, box in rows]))


def test_finds_the_encoded_object_again():
    default_boxes = ssd_default_boxes(SIDE)
    box = torch.tensor([20.0, 30.0, 60.0, 80.0])
    logits = torch.zeros(1, len(default_boxes), CLASSES + 1)
    logits[..., 0] = 12
    logits[0, 40, 3] = 20
    detections = SSDDecoder()(
        {"cls_logits": logits, "box_offsets": encode_boxes(box, default_boxes)[None]},
        default_boxes,
        (SIDE, SIDE),
    )
    assert detections["labels"][0].tolist() == [2] + [-1] * 99
    torch.testing.assert_close(detections["boxes"][0, 0], box, rtol=1e-4, atol=1e-3)
    assert detections["scores"][0, 0] > 0.99
    assert (detections["boxes"][0, 1:] == 0).all()
    assert (detections["scores"][0, 1:] == 0).all()


@pytest.mark.parametrize("classification", ["softmax", "sigmoid"])
def test_nan_is_never_kept_and_takes_no_place(classification):
    outputs = random_outputs()
    broken = {name: value.clone() for name, value in outputs.items()}
    broken["cls_logits"][0, :20] = float("nan")
    broken["box_offsets"][1, 20:30] = float("nan")
    broken["cls_logits"][2] = float("nan")
    # What must come out: the same as if those default boxes had seen plain background.
    outputs["cls_logits"][0, :20] = torch.tensor([50.0] + [-50.0] * CLASSES)
    outputs["cls_logits"][1, 20:30] = torch.tensor([50.0] + [-50.0] * CLASSES)
    decoder = SSDDecoder(classification)
    got = decoder(broken, ssd_default_boxes(SIDE), (SIDE, SIDE))
    expected = decoder(outputs, ssd_default_boxes(SIDE), (SIDE, SIDE))
    assert all(torch.equal(got[name][:2], expected[name][:2]) for name in expected)
    assert (got["labels"][2] == -1).all()
    assert got["boxes"].isfinite().all()


@pytest.mark.parametrize("classification", ["softmax", "sigmoid"])
def test_nan_does_not_crowd_out_the_only_detection(classification):
    outputs = random_outputs(images=1)
    outputs["cls_logits"][:] = torch.tensor([12.0] + [-12.0] * CLASSES)
    outputs["cls_logits"][0, :5] = float("nan")
    outputs["cls_logits"][0, 40, 3] = 30.0
    got = SSDDecoder(classification)(outputs, ssd_default_boxes(SIDE), (SIDE, SIDE))
    assert got["labels"][0].tolist() == [2] + [-1] * 99


def test_infinite_offsets_give_boxes_within_the_picture():
    outputs = random_outputs()
    outputs["box_offsets"][:, ::3] = float("inf")
    outputs["box_offsets"][:, 1::3] = -1e30
    got = SSDDecoder()(outputs, ssd_default_boxes(SIDE), (SIDE, SIDE))
    assert ((got["boxes"] >= 0) & (got["boxes"] <= SIDE)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_computed_in_float32(dtype):
    outputs = {name: value.to(dtype) for name, value in random_outputs().items()}
    decoder = SSDDecoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = decoder(outputs, ssd_default_boxes(SIDE), (SIDE, SIDE))
    expected = decoder({k: v.float() for k, v in outputs.items()}, ssd_default_boxes(SIDE), (SIDE, SIDE))
    assert got["scores"].dtype == got["boxes"].dtype == torch.float32
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_nothing_above_the_threshold_is_all_padding():
    outputs = random_outputs()
    outputs["cls_logits"][..., 0] += 100
    got = SSDDecoder()(outputs, ssd_default_boxes(SIDE), (SIDE, SIDE))
    assert got["boxes"].shape == (3, 100, 4)
    assert (got["labels"] == -1).all()


def test_does_not_change_its_input():
    outputs = random_outputs()
    before = {name: value.clone() for name, value in outputs.items()}
    SSDDecoder("sigmoid")(outputs, ssd_default_boxes(SIDE), (SIDE, SIDE))
    assert all(torch.equal(before[name], outputs[name]) for name in before)


@pytest.mark.parametrize(
    "options",
    [
        {"classification": "argmax"},
        {"score_threshold": 1.0},
        {"score_threshold": float("nan")},
        {"nms_iou": 0.0},
        {"pre_nms_top_k": 0},
        {"max_per_class": 0},
        {"max_detections": 0},
    ],
)
def test_refuses_bad_arguments(options):
    with pytest.raises(UserError):
        SSDDecoder(**options)
