"""Random but repeatable choice of the boxes that a two-stage detector learns from.

Source: Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.3. The random numbers are a function of (seed,
epoch, picture) and of the box's position, so a resumed run, or one with other batches or devices, makes the same
choice; there is no generator whose state would have to be kept. The function is the finaliser of SplitMix64 (Steele,
Lea, Flood 2014) on a counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of SplitMix64 as signed 64-bit numbers; torch's products wrap around as they must.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)
FLOAT_BITS = 24


def random_streams(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """One stream of random numbers per picture: ``(B,)`` int64 for ``(B,)`` int64 ids of the data set's own."""
    start = torch.tensor([seed, epoch], dtype=torch.int64, device=ids.device)
    seeded = _mixed(start[0] * STEP)
    return _mixed(_mixed(seeded + start[1] * STEP) + ids * STEP)


def uniform(streams: Tensor, count: int) -> Tensor:
    """``(B, count)`` float32 in [0, 1), the first ``count`` numbers of ``(B,)`` streams."""
    position = torch.arange(1, count + 1, device=streams.device)
    bits = _shifted(_mixed(streams[:, None] + position * STEP), 64 - FLOAT_BITS)
    return bits.float() / (1 << FLOAT_BITS)


def sample_balanced(
    positive: Tensor, negative: Tensor, streams: Tensor, count: int, positive_share: float
) -> tuple[Tensor, Tensor]:
    """Choose at random ``count`` boxes of each image, at most ``positive_share`` of them positive.

    Negatives fill what positives leave; an image with too few of both gives fewer.

    Args:
        positive: ``(B, N)`` bool.
        negative: ``(B, N)`` bool; what is neither is never chosen.
        streams: ``(B,)`` from :func:`random_streams`.
        count: Boxes per image.
        positive_share: In [0, 1].

    Returns:
        Image and box of each choice, two ``(R,)`` int64: first all positives, then all negatives.
    """
    noise = uniform(streams, positive.shape[1])
    num_positive = positive.sum(dim=1).clamp(max=int(count * positive_share))
    num_negative = torch.minimum(negative.sum(dim=1), count - num_positive)
    chosen = [_lowest(noise, positive, num_positive), _lowest(noise, negative, num_negative)]
    image, index = zip(*chosen)
    return torch.cat(image), torch.cat(index)


def _lowest(noise: Tensor, allowed: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Image and position of the ``wanted`` lowest numbers among those allowed."""
    order = noise.masked_fill(~allowed, 1.0).topk(int(wanted.max()), dim=1, largest=False).indices
    image, rank = (torch.arange(order.shape[1], device=order.device) < wanted[:, None]).nonzero(as_tuple=True)
    return image, order[image, rank]


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right without carrying the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
