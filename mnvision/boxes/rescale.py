"""From pixels of the network's input to pixels of the original picture."""

from __future__ import annotations

import torch
from torch import Tensor

from mnvision.types import Detections


def to_original_pixels(detections: Detections, sizes: Tensor, resolution: tuple[int, int]) -> Detections:
    """Detections in pixels of the original pictures, which were stretched to the network's input.

    Args:
        detections: In pixels of the network's input.
        sizes: ``(B, 2)`` height and width of the original pictures.
        resolution: Height and width of the network's input.
    """
    height, width = resolution
    scale = sizes.flip(1).float() / torch.tensor([width, height], device=sizes.device)
    return {**detections, "boxes": detections["boxes"] * scale.repeat(1, 2)[:, None]}
