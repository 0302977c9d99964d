"""Default boxes: the fixed boxes that an SSD head classifies and moves.

Source: SSD, https://arxiv.org/abs/1512.02325, section 2.2, in the form of the TensorFlow Object Detection API
(``anchor_generators/multiple_grid_anchor_generator.py``): centres at half a cell, a reduced lowest map, one
extra square box per cell between two scales. Sizes are fractions of the input's shorter side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mnvision.errors import UserError

BoxSizes = list[list[tuple[float, float]]]
"""Per feature map, the (width, height) of its default boxes as fractions of the input's shorter side."""


def ssd_box_sizes(
    num_maps: int,
    min_scale: float = 0.2,
    max_scale: float = 0.95,
    aspect_ratios: Sequence[float] = (1.0, 2.0, 1 / 2, 3.0, 1 / 3),
    reduce_lowest: bool = True,
) -> BoxSizes:
    """Sizes of the default boxes by the SSD rule (paper equation 4, with TF's 1.0 after the last scale).

    Each map has one box per aspect ratio at its scale, then a square one at the geometric mean of its scale
    and the next. The lowest map, if reduced, has (scale 0.1, ratio 1), (min_scale, 2), (min_scale, 1/2).

    Args:
        num_maps: Number of feature maps, at least 1.
        min_scale: Scale of the finest map, in (0, 1].
        max_scale: Scale of the coarsest map, in [min_scale, 1].
        aspect_ratios: Width / height of the boxes, each positive.
        reduce_lowest: Three boxes on the finest map, as in the paper's "4 boxes" maps and TF.

    Returns:
        One list of (width, height) per map, finest map first.

    Raises:
        UserError: A value outside its range.
    """
    if num_maps < 1:
        raise UserError(f"default boxes need at least one feature map, got {num_maps}")
    if not 0 < min_scale <= max_scale <= 1:
        raise UserError(f"scales must satisfy 0 < min_scale <= max_scale <= 1, got {min_scale} and {max_scale}")
    if not aspect_ratios or any(not (math.isfinite(ratio) and ratio > 0) for ratio in aspect_ratios):
        raise UserError(f"aspect_ratios must be positive numbers, at least one, got {list(aspect_ratios)}")
    step = (max_scale - min_scale) / max(num_maps - 1, 1)
    scales = [min_scale + step * index for index in range(num_maps)] + [1.0]
    sizes = []
    for index, (scale, following) in enumerate(pairwise(scales)):
        pairs = [(scale, ratio) for ratio in aspect_ratios] + [(math.sqrt(scale * following), 1.0)]
        if index == 0 and reduce_lowest:
            pairs = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        sizes.append([(s * math.sqrt(ratio), s / math.sqrt(ratio)) for s, ratio in pairs])
    return sizes


def checked_box_sizes(box_sizes: Sequence[Sequence[Sequence[float]]], num_maps: int) -> BoxSizes:
    """Explicit sizes (for example fitted ones, or read from a config file) as plain tuples.

    Args:
        box_sizes: Per map a list of (width, height), fractions of the input's shorter side, each in (0, 4].
        num_maps: Number of feature maps; every map needs at least one box.

    Raises:
        UserError: A wrong number of maps, an empty map, or a size that is not two numbers in (0, 4].
    """
    if len(box_sizes) != num_maps:
        raise UserError(f"box_sizes has {len(box_sizes)} maps but the head has {num_maps}: give one list per map")
    for index, sizes in enumerate(box_sizes):
        if not sizes:
            raise UserError(f"box_sizes[{index}] is empty: every feature map needs at least one default box")
        for size in sizes:
            if len(size) != 2 or not all(0 < side <= 4 for side in size):
                raise UserError(f"box_sizes[{index}] holds {list(size)}: give (width, height) as fractions in (0, 4]")
    return [[(float(width), float(height)) for width, height in sizes] for sizes in box_sizes]


def feature_map_sizes(resolution: tuple[int, int], strides: Sequence[int], num_extra: int) -> list[tuple[int, int]]:
    """Height and width of each feature map of an SSD: every stride and every extra layer rounds up.

    Args:
        resolution: Height and width of the network's input in pixels.
        strides: Strides of the maps that the backbone gives.
        num_extra: Number of extra layers, each halving the map before it (a 1 x 1 map stays 1 x 1).
    """
    sizes = [(-(-resolution[0] // stride), -(-resolution[1] // stride)) for stride in strides]
    for _ in range(num_extra):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def make_default_boxes(
    box_sizes: BoxSizes, map_sizes: Sequence[tuple[int, int]], resolution: tuple[int, int]
) -> Tensor:
    """All default boxes of a network input, not clipped to it.

    Order: map, then row, then column, then box; the order in which an SSD head gives its outputs.

    Args:
        box_sizes: Per map the (width, height) of its boxes, fractions of the input's shorter side.
        map_sizes: Per map its (height, width) in cells. Cell centres lie at (index + 1/2) / cells of the
            side.
        resolution: Height and width of the network's input in pixels.

    Returns:
        ``(A, 4)`` float32, xyxy in pixels of the network's input.
    """
    height, width = resolution
    shorter = min(height, width)
    boxes = []
    for sizes, (rows, columns) in zip(box_sizes, map_sizes, strict=True):
        # float64 until the end: corners then differ from exact arithmetic by one rounding only.
        center_y = (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows
        center_x = (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns
        grid_y, grid_x = torch.meshgrid(center_y, center_x, indexing="ij")
        centers = torch.stack([grid_x, grid_y], dim=-1)[:, :, None]
        halves = torch.tensor(sizes, dtype=torch.float64) * shorter / 2
        boxes.append(torch.cat([centers - halves, centers + halves], dim=-1).reshape(-1, 4))
    return torch.cat(boxes).float()
