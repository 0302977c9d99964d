"""A teacher of a few numbers, and data for it to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mnvision.teachers.base import Teacher


class TinyTeacher(Teacher):
    """Mean colours of a picture's quarters through a fixed matrix; counts the pictures that it was shown."""

    def __init__(self, side: int = 20, classes: int = 5, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(12, classes)
        generator = torch.Generator().manual_seed(seed)
        self.layer.weight.data = torch.randn(classes, 12, generator=generator) * scale
        self.layer.bias.data = torch.zeros(classes)
        self.options: dict[str, Any] = {"side": side}
        self.seen = 0
        self._settle("teacher tiny", "classification", (side, side), class_names=None)
        self.seen = 0

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += len(images)
        quarters = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return {"logits": self.layer(quarters), "features_4": quarters.reshape(-1, 3, 2, 2)}


def make_photos(root: Path, count: int = 8, size: tuple[int, int] = (90, 120), seed: int = 0) -> Path:
    """Noisy JPEGs large enough to be decoded at reduced scale for small inputs, one in a folder of its own."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        folder = root / ("deep/er" if i == 1 else "")
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=92)
    return root
