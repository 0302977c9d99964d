from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, distance_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from mnvision.boxes.coder import decode_boxes, encode_boxes
from mnvision.boxes.matcher import match_default_boxes
from mnvision.errors import UserError
from mnvision.losses.multibox import MultiBoxLoss
from tests.test_matcher import random_targets, ssd_default_boxes

CLASSES = 5


def random_outputs(default_boxes: torch.Tensor, images: int = 4, seed: int = 0) -> dict:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(default_boxes), CLASSES + 1, generator=rng) * 2
    offsets = torch.randn(images, len(default_boxes), 4, generator=rng) * 0.5
    return {"cls_logits": logits.requires_grad_(), "box_offsets": offsets.requires_grad_()}


def slow_loss(
    outputs: dict, targets: dict, default_boxes: torch.Tensor, classification: str, localization: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image by image, default box by default box, with ratio 3, floor 3, alpha 0.75, gamma 2."""
    matched = match_default_boxes(targets, default_boxes)
    cls, box, positives = [], [], 0
    for b in range(len(matched)):
        found, negatives = 0, []
        for a, n in enumerate(matched[b].tolist()):
            logits, offsets = outputs["cls_logits"][b, a], outputs["box_offsets"][b, a]
            label = int(targets["labels"][b, n]) if n >= 0 else -1
            one_hot = torch.zeros(CLASSES)
            if n >= 0:
                one_hot[label] = 1
                found += 1
                truth = targets["boxes"][b, n]
                if localization == "smooth_l1":
                    box.append(F.smooth_l1_loss(offsets, encode_boxes(truth, default_boxes[a]), reduction="sum"))
                else:
                    loss = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss}[localization]
                    box.append(loss(decode_boxes(offsets, default_boxes[a]), truth))
            if n == -2:
                continue
            if classification == "softmax":
                value = F.cross_entropy(logits, torch.tensor(label + 1))
            elif classification == "sigmoid":
                value = F.binary_cross_entropy_with_logits(logits[1:], one_hot, reduction="sum")
            else:
                value = sigmoid_focal_loss(logits[1:], one_hot, alpha=0.75, gamma=2, reduction="sum")
            if n >= 0 or classification == "focal":
                cls.append(value)
            else:
                negatives.append(value)
        cls += sorted(negatives, key=lambda v: -v.item())[: max(3 * found, 3)]
        positives += found
    zero = torch.zeros(())
    return sum(cls, zero) / max(positives, 1), sum(box, zero) / max(positives, 1)


@pytest.mark.parametrize("localization", ["smooth_l1", "giou", "diou"])
@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
def test_equals_a_slow_loop_with_its_gradients(classification, localization):
    default_boxes = ssd_default_boxes(64)
    outputs, targets = random_outputs(default_boxes), random_targets(0, side=64)
    assert targets["crowd"].any()
    assert (targets["labels"] >= 0).any(dim=1).all()
    result = MultiBoxLoss(classification, localization, box_weight=2.0)(outputs, targets, default_boxes)
    result["loss"].backward()
    copies = {name: value.detach().clone().requires_grad_() for name, value in outputs.items()}
    cls, box = slow_loss(copies, targets, default_boxes, classification, localization)
    (cls + 2 * box).backward()
    torch.testing.assert_close(result["loss_cls"], cls)
    torch.testing.assert_close(result["loss_box"], box)
    torch.testing.assert_close(result["loss"], cls + 2 * box)
    for name in outputs:
        assert outputs[name].grad.abs().sum() > 0
        torch.testing.assert_close(outputs[name].grad, copies[name].grad, rtol=1e-4, atol=1e-6)


def test_equals_torchvision():
    default_boxes = ssd_default_boxes(300)
    outputs = random_outputs(default_boxes, images=2)
    # One object per image: torchvision resolves conflicts in another way.
    boxes = torch.tensor([[[20.0, 30, 140, 250]], [[100, 100, 180, 160]]])
    labels = torch.tensor([[1], [4]])
    targets = {"boxes": boxes, "labels": labels, "crowd": torch.zeros(2, 1).bool()}
    peer = SSD.__new__(SSD)
    torch.nn.Module.__init__(peer)
    peer.box_coder, peer.neg_to_pos_ratio = BoxCoder((10.0, 10.0, 5.0, 5.0)), 3.0
    expected = peer.compute_loss(
        [{"boxes": b, "labels": n + 1} for b, n in zip(boxes, labels)],
        {"bbox_regression": outputs["box_offsets"], "cls_logits": outputs["cls_logits"]},
        [default_boxes] * 2,
        [SSDMatcher(0.5)(box_iou(b, default_boxes)) for b in boxes],
    )
    got = MultiBoxLoss(min_negatives=0)(outputs, targets, default_boxes)
    torch.testing.assert_close(got["loss_cls"], expected["classification"])
    torch.testing.assert_close(got["loss_box"], expected["bbox_regression"])


@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
@pytest.mark.parametrize("objects", [0, 2])
def test_images_without_objects_train_the_background(classification, objects):
    default_boxes = ssd_default_boxes(64)
    outputs = random_outputs(default_boxes, images=2)
    targets = {
        "boxes": torch.zeros(2, objects, 4),
        "labels": torch.full((2, objects), -1),
        "crowd": torch.zeros(2, objects).bool(),
    }
    result = MultiBoxLoss(classification)(outputs, targets, default_boxes)
    result["loss"].backward()
    assert result["loss_box"] == 0
    assert result["loss_cls"] > 0
    rows = outputs["cls_logits"].grad.abs().sum(dim=2) > 0
    assert rows.sum(dim=1).tolist() == ([len(default_boxes)] * 2 if classification == "focal" else [3, 3])
    assert (outputs["box_offsets"].grad == 0).all()


@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
def test_an_image_that_is_one_crowd_trains_nothing(classification):
    # A crowd far beyond the picture covers every default box, also those that reach over its edge.
    default_boxes = ssd_default_boxes(64)
    outputs = random_outputs(default_boxes, images=1)
    targets = {
        "boxes": torch.tensor([[[-200.0, -200, 300, 300]]]),
        "labels": torch.tensor([[0]]),
        "crowd": torch.tensor([[True]]),
    }
    result = MultiBoxLoss(classification)(outputs, targets, default_boxes)
    result["loss"].backward()
    assert result["loss"] == 0
    assert (outputs["cls_logits"].grad == 0).all()


@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
def test_computes_in_float32_under_autocast(classification):
    default_boxes = ssd_default_boxes(64)
    targets = random_targets(0, side=64)
    outputs = {k: v.detach().bfloat16() for k, v in random_outputs(default_boxes).items()}
    loss = MultiBoxLoss(classification, "giou")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(outputs, targets, default_boxes)
    expected = loss({k: v.float() for k, v in outputs.items()}, targets, default_boxes)
    for name in ("loss", "loss_cls", "loss_box"):
        assert got[name].dtype == torch.float32
        # The order of a sum may depend on the strides; bfloat16 arithmetic would be off by 1e-2.
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("localization", ["smooth_l1", "giou", "diou"])
@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
def test_gradients_stay_finite_for_extreme_outputs(classification, localization):
    default_boxes = ssd_default_boxes(64)
    for value in (300.0, -300.0):
        outputs = random_outputs(default_boxes)
        outputs = {k: (v.detach() * value).requires_grad_() for k, v in outputs.items()}
        gamma = 0.5 if classification == "focal" else 2.0
        loss = MultiBoxLoss(classification, localization, focal_gamma=gamma)
        result = loss(outputs, random_targets(0, side=64), default_boxes)
        result["loss"].backward()
        assert result["loss"].isfinite()
        assert all(v.grad.isfinite().all() for v in outputs.values())


def test_zero_size_objects_do_no_harm():
    default_boxes = ssd_default_boxes(64)
    targets = random_targets(0, side=64, crowds=False)
    point = torch.tensor([5.0, 5.0, 5.0, 5.0])
    widened = {
        "boxes": torch.cat([targets["boxes"], point.expand(4, 1, 4)], dim=1),
        "labels": torch.cat([targets["labels"], torch.zeros(4, 1).long()], dim=1),
        "crowd": torch.cat([targets["crowd"], torch.zeros(4, 1).bool()], dim=1),
    }
    outputs = random_outputs(default_boxes)
    loss = MultiBoxLoss()
    assert loss(outputs, widened, default_boxes)["loss"] == loss(outputs, targets, default_boxes)["loss"]


def test_one_gradient_step_lowers_the_loss():
    default_boxes = ssd_default_boxes(64)
    outputs, targets = random_outputs(default_boxes), random_targets(1, side=64)
    for classification in ("softmax", "sigmoid", "focal"):
        loss = MultiBoxLoss(classification, "diou")
        before = loss(outputs, targets, default_boxes)["loss"]
        grads = torch.autograd.grad(before, list(outputs.values()))
        moved = {k: v.detach() - 1.0 * g for (k, v), g in zip(outputs.items(), grads)}
        after = loss(moved, targets, default_boxes)["loss"]
        assert after < before


@pytest.mark.parametrize(
    "options",
    [
        {"classification": "hinge"},
        {"localization": "l2"},
        {"neg_pos_ratio": -1},
        {"min_negatives": -1},
        {"box_weight": math.inf},
        {"focal_alpha": 0.0},
        {"focal_gamma": math.nan},
        {"iou_threshold": 0.0},
    ],
)
def test_refuses_bad_arguments(options):
    with pytest.raises(UserError):
        MultiBoxLoss(**options)


def test_refuses_labels_and_outputs_that_do_not_fit():
    default_boxes = ssd_default_boxes(64)
    outputs, targets = random_outputs(default_boxes), random_targets(0, side=64)
    with pytest.raises(UserError, match="default boxes"):
        MultiBoxLoss()(outputs, targets, default_boxes[1:])
    targets["labels"][0, 0] = CLASSES
    with pytest.raises(UserError, match="label 5"):
        MultiBoxLoss()(outputs, targets, default_boxes)
