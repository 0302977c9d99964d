"""Photo-like JPEGs and COCO annotation files made from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_CLASSES, MEAN_OBJECTS = 80, 7
CATEGORIES = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]


def photo(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Noise of all scales, weighted like a photograph's spectrum; at quality 90 some 100 KB at 640 x 480."""
    image = np.zeros((height, width, 3), np.float32)
    side = 2
    while side < max(height, width):
        noise = rng.standard_normal((max(2, side * height // width), side, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 60 / side**0.45
        side *= 2
    return np.clip(image + 120, 0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int, height: int, width: int, seed: int = 0) -> list[Path]:
    """``count`` JPEGs of quality 90."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        picture = photo(np.random.default_rng((seed, i)), height, width)
        if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"cannot write {path}")
    return paths


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.float64]:
    """``(count, 4)`` xywh inside a picture, sides from 4 % to 60 % of its own."""
    sizes = (0.04 + 0.56 * rng.random((count, 2)) ** 2) * (width, height)
    corners = rng.random((count, 2)) * ((width, height) - sizes)
    return np.round(np.concatenate([corners, sizes], axis=1), 2)


def coco_dict(names: Sequence[str], height: int, width: int, seed: int = 0) -> dict[str, Any]:
    """Ground truth of pictures of one size, 1 to 13 objects each, in COCO format."""
    rng = np.random.default_rng(seed)
    images = [{"id": i + 1, "file_name": name, "height": height, "width": width} for i, name in enumerate(names)]
    counts = rng.integers(1, 2 * MEAN_OBJECTS, len(images))
    owners = np.repeat(np.arange(1, len(images) + 1), counts)
    boxes = random_boxes(rng, len(owners), height, width)
    categories = rng.integers(1, NUM_CLASSES + 1, len(owners))
    annotations = [
        {
            "id": i + 1,
            "image_id": int(owner),
            "category_id": int(category),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for i, (owner, category, box) in enumerate(zip(owners, categories, boxes))
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_coco_set(root: Path, count: int, height: int, width: int) -> Path:
    """``images/`` and ``annotations.json`` under ``root``; returns the latter."""
    paths = write_photos(root / "images", count, height, width)
    file = root / "annotations.json"
    file.write_text(json.dumps(coco_dict([path.name for path in paths], height, width)))
    return file
