"""Tiny data sets in their genuine layouts, with the awkward cases built in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "car"}, {"id": 2, "name": "person"}, {"id": 90, "name": "kite"}]
COLOURS = {7: (255, 0, 0), 2: (0, 255, 0), 90: (0, 0, 255)}


def make_tiny_coco(
    root: Path,
    num_images: int = 6,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """COCO 2017's layout; every object is a rectangle of its category's colour on black.

    Category ids have gaps and stand out of order, image ids start at 100; the first image also holds a crowd
    region, the last one nothing. ``size`` is height and width; ``change`` may alter the training file.
    """
    (root / "annotations").mkdir(parents=True)
    for number, split in enumerate(("train2017", "val2017")):
        data = _coco_split(root / split, num_images, size, np.random.default_rng(seed + number))
        if change is not None and split == "train2017":
            change(data)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return root


def _coco_split(folder: Path, num_images: int, size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    folder.mkdir()
    height, width = size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(num_images):
        pixels = np.zeros((height, width, 3), np.uint8)
        images.append({"id": 100 + i, "file_name": f"{i:012d}.jpg", "width": width, "height": height})
        for k in range(0 if i == num_images - 1 else 1 + i % 3):
            category = CATEGORIES[(i + k) % 3]["id"]
            w, h = (int(v) for v in rng.integers(width // 5, width // 3, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = COLOURS[category]
            annotations.append(_annotation(len(annotations) + 1, 100 + i, category, [x, y, w, h]))
        Image.fromarray(pixels).save(folder / f"{i:012d}.jpg", quality=95, subsampling=0)
    annotations.append(_annotation(1000, 100, 2, [0, 0, width // 2, height // 4], iscrowd=1))
    return {"images": images, "annotations": annotations, "categories": [dict(item) for item in CATEGORIES]}


def _annotation(key: int, image_id: int, category: int, bbox: list[float], iscrowd: int = 0) -> dict[str, Any]:
    x, y, w, h = bbox
    outline: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if iscrowd:
        outline = {"counts": [0, 5], "size": [4, 4]}
    return {
        "segmentation": outline,
        "id": key,
        "image_id": image_id,
        "category_id": category,
        "iscrowd": iscrowd,
        "bbox": bbox,
        "area": float(w * h),
    }


def make_tiny_voc(root: Path, num_images: int = 6, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Pascal VOC's layout; the second object of every image is difficult, the last image holds nothing."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    rng, (height, width) = np.random.default_rng(seed), size
    stems = [f"2007_{i:06d}" for i in range(num_images)]
    for i, stem in enumerate(stems):
        pixels = np.zeros((height, width, 3), np.uint8)
        objects = ""
        for k in range(0 if i == num_images - 1 else 2):
            w, h = (int(v) for v in rng.integers(8, 20, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = (255, 0, 0)
            objects += voc_object(("dog", "cat")[k], (x + 1, y + 1, x + w, y + h), difficult=k)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.jpg", quality=95)
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, size, objects))
    lists = {"train": stems, "val": stems[: num_images // 2], "test": stems[num_images // 2 :]}
    for name, members in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(members) + "\n\n")
    return root


def voc_object(name: str, box: tuple[float, float, float, float], difficult: int = 0) -> str:
    """One ``<object>``; corners as VOC counts them, from 1 and inclusive."""
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def voc_xml(stem: str, size: tuple[int, int], objects: str) -> str:
    """A whole annotation file."""
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{stem}.jpg</filename>{sides}{objects}</annotation>"


def make_image_folder(
    root: Path,
    per_class: int = 6,
    size: tuple[int, int] = (40, 56),
    splits: tuple[str, ...] = ("train", "val"),
) -> Path:
    """One folder per class; class ``blue`` is blue, one file has an upper-case ending, one is no image."""
    for split in splits:
        for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("green", (0, 255, 0))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = np.full((*size, 3), colour, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'JPG' if i == 0 else 'jpg'}", "JPEG", quality=95)
        (root / split / "red" / "notes.txt").write_text("not an image")
        (root / split / ".hidden").mkdir()
    return root
