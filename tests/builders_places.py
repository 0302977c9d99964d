"""A tiny set of photos whose colour says where they were taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# Colour -> the middle of where such photos are taken; the third lies on the date line.
CITIES = {(220, 40, 40): (48.9, 2.3), (40, 200, 40): (-1.3, 36.8), (40, 40, 220): (-17.0, 180.0)}
# Makes a cell of each of them, and two of the one on the date line.
CELLS = "data.cells={max_photos: 20, min_photos: 2, min_level: 3}"
NOWHERE = (-60.0, -140.0)
"""In none of these cells."""


def make_places(root: Path, train: int = 8, val: int = 4, seed: int = 0, outside: bool = True) -> Path:
    """``train.csv`` and ``val.csv`` of photos per city, within half a degree of it; the latter have one of nowhere.

    Photos beside the date line have longitudes of either sign.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        rows = ["image,lat,lon"]
        (root / split).mkdir(parents=True)
        for number in range(count * len(CITIES)):
            color, (latitude, longitude) = list(CITIES.items())[number % len(CITIES)]
            north, east = rng.uniform(-0.5, 0.5, 2)
            rows.append(_photo(root, f"{split}/{number}.jpg", color, latitude + north, longitude + east, rng))
        if split == "val" and outside:
            rows.append(_photo(root, f"{split}/nowhere.jpg", (128, 128, 128), *NOWHERE, rng))
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def _photo(
    root: Path, name: str, color: tuple[int, int, int], latitude: float, longitude: float, rng: np.random.Generator
) -> str:
    noise = rng.integers(-30, 30, (40, 56, 3))
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(root / name, quality=95)
    wrapped = (longitude + 180) % 360 - 180
    return f"{name},{latitude:.6f},{wrapped:.6f}"
