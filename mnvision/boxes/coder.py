"""Box offsets relative to default boxes.

Source: SSD, https://arxiv.org/abs/1512.02325, section 2.2, equation 2. The variances (0.1, 0.2) are not in
the paper; they come from the authors' Caffe release and equal the TensorFlow Object Detection API's
``faster_rcnn_box_coder`` scales 10, 10, 5, 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VARIANCES = (0.1, 0.2)
MIN_SIZE_PX = 1e-2
"""Sides below a hundredth of a pixel are taken as that: the logarithm of a zero-size box stays finite."""
MAX_LOG_SCALE = math.log(1000.0)
MAX_SHIFT = 1000.0
"""Decoded boxes are at most 1000 times the default box, and at most 1000 default boxes away from it."""


def encode_boxes(boxes: Tensor, default_boxes: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """Offsets that move each default box onto its matched box.

    Args:
        boxes: Matched ground truth, ``(..., 4)``, xyxy in pixels.
        default_boxes: ``(..., 4)``, xyxy in pixels, broadcast against ``boxes``; sides > 0.
        variances: Divisors of the centre offsets and of the size offsets.

    Returns:
        ``(..., 4)`` float32: dx, dy, dw, dh. Finite for finite boxes, also of zero size.
    """
    center, size = _center_size(boxes.float())
    default_center, default_size = _center_size(default_boxes.float())
    shift = (center - default_center) / (default_size * variances[0])
    scale = (size.clamp(min=MIN_SIZE_PX) / default_size).log() / variances[1]
    return torch.cat([shift, scale], dim=-1)


def decode_boxes(offsets: Tensor, default_boxes: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """Inverse of :func:`encode_boxes`, finite for any offsets that are not NaN.

    Args:
        offsets: ``(..., 4)``: dx, dy, dw, dh; any float type.
        default_boxes: ``(..., 4)``, xyxy in pixels, broadcast against ``offsets``.
        variances: As in :func:`encode_boxes`.

    Returns:
        ``(..., 4)`` float32, xyxy in pixels, not clipped. NaN offsets give NaN boxes.
    """
    shift, scale = offsets.float().split(2, dim=-1)
    default_center, default_size = _center_size(default_boxes.float())
    center = default_center + (shift * variances[0]).clamp(-MAX_SHIFT, MAX_SHIFT) * default_size
    half = (scale * variances[1]).clamp(max=MAX_LOG_SCALE).exp() * default_size / 2
    return torch.cat([center - half, center + half], dim=-1)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.split(2, dim=-1)
    return (low + high) / 2, high - low
