from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from mnvision.boxes.default_boxes import feature_map_sizes, make_default_boxes, ssd_box_sizes
from mnvision.boxes.matcher import BACKGROUND, IGNORED, match_default_boxes


def ssd_default_boxes(resolution: int) -> torch.Tensor:
    return make_default_boxes(ssd_box_sizes(6), feature_map_sizes((resolution,) * 2, (16, 32), 4), (resolution,) * 2)


def random_targets(seed: int, images: int = 4, objects: int = 8, crowds: bool = True, side: int = 96) -> dict:
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(images, objects, 2, generator=rng) * side * 0.8
    high = (low + torch.rand(images, objects, 2, generator=rng) ** 2 * side * 0.7 + 2).clamp(max=side)
    labels = torch.randint(0, 5, (images, objects), generator=rng)
    counts = torch.randint(0, objects + 1, (images, 1), generator=rng)
    padding = torch.arange(objects) >= counts
    crowd = (torch.rand(images, objects, generator=rng) < 0.2) & ~padding & crowds
    boxes = torch.cat([low, high], dim=2).masked_fill(padding[..., None], 0.0)
    return {"boxes": boxes, "labels": labels.masked_fill(padding, -1), "crowd": crowd}


def slow_match(targets: dict, default_boxes: torch.Tensor) -> torch.Tensor:
    """The docstring's three rules, pair by pair."""
    result = torch.full((len(targets["boxes"]), len(default_boxes)), BACKGROUND)
    areas = (default_boxes[:, 2:] - default_boxes[:, :2]).prod(dim=1)
    for image, (boxes, labels, crowd) in enumerate(zip(*(targets[k] for k in ("boxes", "labels", "crowd")))):
        iou = box_iou(boxes, default_boxes).nan_to_num()
        objects = [n for n in range(len(boxes)) if labels[n] >= 0 and not crowd[n]]
        for a in range(len(default_boxes)):
            for n in range(len(boxes)):
                low = torch.maximum(boxes[n, :2], default_boxes[a, :2])
                inside = (torch.minimum(boxes[n, 2:], default_boxes[a, 2:]) - low).clamp(min=0).prod() / areas[a]
                if crowd[n] and inside > 0.5:
                    result[image, a] = IGNORED
            if objects:
                best = max(objects, key=lambda n: iou[n, a].item())
                if iou[best, a] >= 0.5:
                    result[image, a] = best
        pairs = [(-iou[n, a].item(), n, a) for n in objects for a in range(len(default_boxes)) if iou[n, a] > 0]
        done_objects, done_defaults = set(), set()
        for _, n, a in sorted(pairs):
            if n not in done_objects and a not in done_defaults:
                result[image, a] = n
                done_objects.add(n)
                done_defaults.add(a)
    return result


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop(seed):
    default_boxes = ssd_default_boxes(96)[::2]
    targets = random_targets(seed, images=8)
    expected = slow_match(targets, default_boxes)
    assert {BACKGROUND, IGNORED, 0} <= set(expected.unique().tolist())
    assert torch.equal(match_default_boxes(targets, default_boxes), expected)


def test_equals_torchvision_where_no_two_objects_claim_the_same_box():
    default_boxes = ssd_default_boxes(300)
    compared = 0
    for seed in range(10):
        targets = random_targets(seed, images=2, objects=6, crowds=False, side=300)
        got = match_default_boxes(targets, default_boxes)
        for boxes, labels, matched in zip(targets["boxes"], targets["labels"], got):
            iou = box_iou(boxes[labels >= 0], default_boxes)
            claims = iou.argmax(dim=1) if len(iou) else torch.zeros(0)
            if len(iou) == 0 or len(claims.unique()) < len(claims):
                continue
            assert torch.equal(matched, SSDMatcher(0.5)(iou))
            compared += 1
    assert compared >= 8


def test_every_object_gets_a_default_box_even_when_all_claim_the_same():
    default_boxes = ssd_default_boxes(96)
    boxes = torch.tensor([[10.0, 10.0, 40.0, 50.0]]).repeat(30, 1)[None]
    targets = {"boxes": boxes, "labels": torch.zeros(1, 30).long(), "crowd": torch.zeros(1, 30).bool()}
    matched = match_default_boxes(targets, default_boxes)
    assert set(matched[matched >= 0].tolist()) == set(range(30))
    # Equal claims go to the lower object: it holds the best default box.
    assert matched[0, box_iou(boxes[0, :1], default_boxes).argmax()] == 0
    assert torch.equal(matched, match_default_boxes(targets, default_boxes))


def test_hand_worked_forced_match_and_conflict():
    default_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]])
    # Both objects like default box 0 best (IoU 0.6 and 0.4); the second one falls back on box 1 (IoU < 0.5).
    boxes = torch.tensor([[[0.0, 0, 10, 6], [6, 0, 21, 10]]])
    targets = {"boxes": boxes, "labels": torch.tensor([[0, 1]]), "crowd": torch.zeros(1, 2).bool()}
    assert match_default_boxes(targets, default_boxes).tolist() == [[0, 1, BACKGROUND]]


def test_hand_worked_crowd():
    default_boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [5, 0, 15, 10], [8, 0, 18, 10], [50, 50, 60, 60]])
    # The crowd covers 100, 100, 50 (not more than half), 20 and 0 % of them. In the first image an object is
    # at the same place: it takes the first by force and the second by its IoU of 0.9, crowd or not.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]], [[0, 0, 10, 10], [0, 0, 0, 0]]])
    crowd = torch.tensor([[True, False], [True, False]])
    targets = {"boxes": boxes, "labels": torch.tensor([[3, 3], [3, -1]]), "crowd": crowd}
    got = match_default_boxes(targets, default_boxes)
    assert got.tolist() == [[1, 1, -1, -1, -1], [IGNORED, IGNORED, -1, -1, -1]]


@pytest.mark.parametrize("objects", [0, 3])
def test_images_without_objects_are_background(objects):
    targets = {
        "boxes": torch.zeros(2, objects, 4),
        "labels": torch.full((2, objects), -1),
        "crowd": torch.zeros(2, objects).bool(),
    }
    assert (match_default_boxes(targets, ssd_default_boxes(96)) == BACKGROUND).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_properties_on_random_images(seed, objects):
    default_boxes = ssd_default_boxes(96)
    targets = random_targets(seed, images=2, objects=objects)
    before = {name: value.clone() for name, value in targets.items()}
    matched = match_default_boxes(targets, default_boxes)
    assert all(torch.equal(before[name], targets[name]) for name in before)
    for image in range(2):
        real = (targets["labels"][image] >= 0) & ~targets["crowd"][image]
        found = matched[image][matched[image] >= 0].unique()
        assert torch.equal(found, real.nonzero().squeeze(1))
    # Padding changes nothing.
    padded = {
        "boxes": torch.cat([targets["boxes"], torch.zeros(2, 3, 4)], dim=1),
        "labels": torch.cat([targets["labels"], torch.full((2, 3), -1)], dim=1),
        "crowd": torch.cat([targets["crowd"], torch.zeros(2, 3).bool()], dim=1),
    }
    assert torch.equal(match_default_boxes(padded, default_boxes), matched)


def test_float32_under_autocast():
    targets, default_boxes = random_targets(5), ssd_default_boxes(96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = match_default_boxes(targets, default_boxes)
    assert torch.equal(got, match_default_boxes(targets, default_boxes))
