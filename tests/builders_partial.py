"""A folder of pictures of which some have boxes, some attributes, some identities, and some nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mnvision.data.attribute_csv import AttributeCsvDataModule
from mnvision.data.coco import CocoDataModule
from mnvision.data.identity_sets import IdentityListDataModule
from mnvision.data.partial import PartialLabelsDataModule

BOXES = [*range(8), 20, 21]
"""Numbers of the pictures with boxes: eight to train on, two to validate on."""
ATTRIBUTES = {4: "1,0", 5: "0,1", 6: ",1", 7: "1,", 8: "0,0", 9: "1,1", 10: ",", 11: "0,", 22: "1,1", 23: "0,0"}
"""Fields bright and wide; the pictures from 20 on are for validation, number 10 has nothing known."""
LEAK = 21
"""Has attributes to train on, though boxes are validated on it."""
PEOPLE = {2: "ann", 3: "ann", 6: "ann", 7: "bob", 9: "bob", 11: "bob", 24: "cid", 25: "cid", 26: "dan", 27: "dan"}
PAIRS = "p24.png p25.png 1\np26.png p27.png 1\np24.png p26.png 0\np25.png p27.png 0\n"
COUNT = 28
ROWS = {0: "b", 1: "b", 2: "bp", 3: "bp", 4: "ab", 5: "ab", 6: "abp", 7: "abp", 8: "a", 9: "ap", 11: "ap"}
"""What is to be trained on, by hand: a picture's boxes (b), attributes (a) and person (p)."""
BARE = (10, 12, 13, 14, 15, 16, 17, 18, 19)


def place_of(number: int) -> tuple[int, int, int, int]:
    """Box of the one bright rectangle of a picture, x, y, width and height."""
    return 10 + number % 5 * 3, 8 + number % 4 * 4, 24 + number % 3 * 4, 20 + number % 2 * 6


def make_partial(root: Path, size: tuple[int, int] = (60, 80)) -> Path:
    """``pictures/pNN.png``, ``{train,val}.json``, ``attributes.csv``, ``people.txt`` and ``pairs.txt``.

    Every picture is dark, in a shade of its own, with one bright rectangle. ``size`` is height and width.
    """
    (root / "pictures").mkdir(parents=True)
    for number in range(COUNT):
        image = np.full((*size, 3), (number, 3 * number, 40), np.uint8)
        x, y, width, height = place_of(number)
        image[y : y + height, x : x + width] = (220, 200, 210)
        cv2.imwrite(str(root / "pictures" / f"p{number:02d}.png"), image)
    for split, numbers in (("train", BOXES[:8]), ("val", BOXES[8:])):
        (root / f"{split}.json").write_text(json.dumps(_coco(numbers, size)))
    rows = [f"p{n:02d}.png,{'train' if n < 20 else 'val'},{fields}" for n, fields in ATTRIBUTES.items()]
    rows.append(f"p{LEAK}.png,train,1,1")
    (root / "attributes.csv").write_text("\n".join(["file,split,bright,wide", *rows]) + "\n")
    people = [f"p{number:02d}.png\t{name}" for number, name in PEOPLE.items()]
    (root / "pictures" / "people.txt").write_text("\n".join(people) + "\n")
    (root / "pictures" / "pairs.txt").write_text(PAIRS)
    return root


def _coco(numbers: list[int], size: tuple[int, int]) -> dict[str, Any]:
    images = [{"id": 100 + n, "file_name": f"p{n:02d}.png", "height": size[0], "width": size[1]} for n in numbers]
    annotations = [
        {"id": n + 1, "image_id": 100 + n, "category_id": 5, "bbox": list(place_of(n)), "iscrowd": 0} for n in numbers
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "plate"}]}


def partial_heads(root: Path, **options: Any) -> dict[str, Any]:
    """Data modules of the three heads; options of one head alone begin with its name, as in ``ssd_augment``."""
    common = {"resolution": 48, "batch_size": 6, "num_workers": 0}
    own: dict[str, dict[str, Any]] = {
        name: {key.removeprefix(f"{name}_"): value for key, value in options.items() if key.startswith(f"{name}_")}
        for name in ("ssd", "attributes", "embedding")
    }
    whole = {"resize": "stretch"}
    files = {"train_images": "pictures", "val_images": "pictures"}
    lists = {"train_annotations": "train.json", "val_annotations": "val.json"}
    table = {"labels": "attributes.csv", "images": "pictures", "columns": {"split": "split"}, "framing": whole}
    people = {"list": "people.txt", "pairs": "pairs.txt", "framing": whole, "overlap": "exclude"}
    return {
        "ssd": CocoDataModule(root, **{**common, **files, **lists, **own["ssd"]}),
        "attributes": AttributeCsvDataModule(root, **{**common, **table, **own["attributes"]}),
        "embedding": IdentityListDataModule(root / "pictures", **{**common, **people, **own["embedding"]}),
    }


def partial_module(root: Path, **options: Any) -> PartialLabelsDataModule:
    """The heads of :func:`partial_heads` on one set of pictures; options without a head's name are for all of them."""
    shared = {"augment", "batch_size", "num_workers", "seed", "together"} & set(options)
    own = {key: value for key, value in options.items() if key not in shared}
    return PartialLabelsDataModule(partial_heads(root, **own), **{key: options[key] for key in shared})
