"""The numbers that int8 can hold: how weights and activations are rounded, in training as in the exported file.

Weights have one scale per output channel, or one per layer, and lie at -127 to 127; activations have one scale and zero
per tensor and lie at 0 to 255 (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, sections 2.1 and 3.1). Gradients
pass the rounding unchanged (straight-through, section 2.4); those of activations beyond the range are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_LIMIT = 127
ACTIVATION_LIMIT = 255
SMALLEST_STEP = 1e-6
"""Of channels that hold next to nothing: a bias of 6 at a step of 0.02 * 1e-6 still fits into the file's 32 bits."""


def weight_scales(weight: Tensor, per_channel: bool = True) -> Tensor:
    """Scale of every output channel.

    Args:
        weight: ``(C, ...)`` float32, batch normalisation folded in.
        per_channel: A scale for each; else all channels have that of the layer.

    Returns:
        ``(C,)`` float32: the largest magnitude lands on 127.
    """
    largest = weight.detach().flatten(1).abs().amax(dim=1)
    if not per_channel:
        largest = largest.amax().repeat(len(weight))
    return (largest / WEIGHT_LIMIT).clamp(min=SMALLEST_STEP)


def rounded_weight(weight: Tensor, per_channel: bool = True) -> Tensor:
    """Weights ``(C, ...)`` at the values that int8 can hold, in float32; the gradient passes as it is."""
    scales = weight_scales(weight, per_channel)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT)


def weight_numbers(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """What a file stores for weights ``(C, ...)``: int8 of that shape, and scales ``(C,)`` float32.

    Their product is :func:`rounded_weight`, bit for bit.
    """
    scales = weight_scales(weight, per_channel)
    rounded = rounded_weight(weight.detach(), per_channel)
    return (rounded / scales.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scales


def activation_grid(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero of the 256 values that stand for a range.

    Zero is one of the values, for padding has to be exact, and both ends lie within them: a range of -1 to 1 has a step
    of 1/127.

    Args:
        bounds: ``(..., 2)`` float32: lowest and highest value.

    Returns:
        Scales ``(...)`` float32 and zeros ``(...)`` int32 in 0 to 255.
    """
    low, high = bounds[..., 0].clamp(max=0), bounds[..., 1].clamp(min=0)
    step = ((high - low) / ACTIVATION_LIMIT).clamp(min=SMALLEST_STEP)
    # Whichever neighbour of the exact place widens the range less; an end that is not 0 keeps a value of its own.
    places = torch.stack([(-low / step).floor(), (-low / step).ceil()])
    places = places.maximum((low < 0).float()).minimum(ACTIVATION_LIMIT - (high > 0).float())
    above, below = high / (ACTIVATION_LIMIT - places).clamp(min=1), -low / places.clamp(min=1)
    found, which = above.maximum(below).min(dim=0)
    return found.clamp(min=SMALLEST_STEP), places.gather(0, which[None])[0].to(torch.int32)


def rounded_activation(values: Tensor, bounds: Tensor) -> Tensor:
    """Values at what 8 bits can hold of a range; beyond it they are cut off, and have no gradient.

    Args:
        values: Float32 of any shape.
        bounds: ``(2,)`` float32, see :func:`activation_grid`.
    """
    scale, zero = activation_grid(bounds)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, ACTIVATION_LIMIT)
