from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from mnvision.boxes.coder import decode_boxes, encode_boxes

position = st.floats(-300, 600, width=32)
side = st.floats(0.5, 600, width=32)
default_side = st.floats(2, 600, width=32)


def xyxy(x: float, y: float, width: float, height: float) -> torch.Tensor:
    return torch.tensor([[x, y, x + width, y + height]])


def random_boxes(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    low, size = torch.rand(count, 2, generator=rng) * 200, torch.rand(count, 2, generator=rng) * 90 + 5
    return torch.cat([low, low + size], dim=1)


def test_hand_worked_offsets():
    # Default box 20 x 10 centred at (50, 50); the object is twice as wide, its centre 5 px to the right.
    got = encode_boxes(torch.tensor([[35.0, 45.0, 75.0, 55.0]]), torch.tensor([[40.0, 45.0, 60.0, 55.0]]))
    torch.testing.assert_close(got, torch.tensor([[2.5, 0.0, math.log(2) / 0.2, 0.0]]))


def test_agrees_with_torchvision():
    boxes, default_boxes = random_boxes(50, 0), random_boxes(50, 1)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    offsets = encode_boxes(boxes, default_boxes)
    assert offsets.std() > 1
    torch.testing.assert_close(offsets, coder.encode_single(boxes, default_boxes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        decode_boxes(offsets / 4, default_boxes),
        coder.decode_single(offsets / 4, default_boxes),
        rtol=1e-4,
        atol=1e-3,
    )


@settings(deadline=None)
@given(position, position, side, side, position, position, default_side, default_side)
def test_decode_inverts_encode(x, y, w, h, dx, dy, dw, dh):
    box, default_box = xyxy(x, y, w, h), xyxy(dx, dy, dw, dh)
    # The tolerance is that of float32 centres and sides at coordinates of a thousand pixels.
    torch.testing.assert_close(decode_boxes(encode_boxes(box, default_box), default_box), box, rtol=1e-4, atol=2e-2)


def test_broadcasts_over_a_batch():
    default_boxes = random_boxes(5, 0)
    boxes = torch.stack([random_boxes(5, 1), random_boxes(5, 2)])
    batched = encode_boxes(boxes, default_boxes)
    assert batched.shape == (2, 5, 4)
    torch.testing.assert_close(batched[1], encode_boxes(boxes[1], default_boxes))


def test_zero_size_objects_and_huge_offsets_stay_finite():
    default_boxes = random_boxes(3, 0)
    points = torch.full((3, 4), 7.0)
    assert encode_boxes(points, default_boxes).isfinite().all()
    for value in (1e4, -1e4, 1e30, float("inf"), -float("inf")):
        offsets = torch.full((3, 4), value, requires_grad=True)
        boxes = decode_boxes(offsets, default_boxes)
        boxes.sum().backward()
        assert boxes.isfinite().all()
        assert offsets.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32(dtype):
    default_boxes = random_boxes(20, 0)
    offsets = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = decode_boxes(offsets, default_boxes)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, decode_boxes(offsets.float(), default_boxes))
