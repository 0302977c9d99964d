"""A tiny checkpoint of face embeddings, and pictures of people who look alike only to themselves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tests.builders_models import CLASSIFIER, SIDE, picture, save_checkpoint

DIM = 16
ALIGNED = {"resize": "five_points", "points": None, "template": "arcface", "margin": 0.0}
EMBEDDER: dict[str, Any] = {
    **CLASSIFIER,
    "_target_": "mnvision.models.Embedder",
    "head": {"_target_": "mnvision.heads.embedding.EmbeddingHead", "resolution": SIDE, "dim": DIM},
    "decoder": {"_target_": "mnvision.heads.embedding.UnitLength"},
}


def save_embedder(path: Path, **metadata: Any) -> torch.nn.Module:
    """See :func:`~tests.builders_models.save_checkpoint`; pictures are stretched unless ``preprocess`` is given."""
    fields = {"kind": "face_embeddings", "class_names": [], "preprocess": {"resize": "stretch"}}
    return save_checkpoint(path, EMBEDDER, **(fields | metadata))


def make_people(root: Path, people: int = 4, each: int = 3) -> list[str]:
    """``P0/P0_0001.png ...``: of each person the same blotches with a little of others. Names relative to ``root``."""
    names = []
    for person, number in itertools.product(range(people), range(each)):
        mixed = 0.98 * picture(person, 90, 80) + 0.02 * picture(100 * person + number + 10, 90, 80)
        name = f"P{person}/P{person}_{number + 1:04d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), mixed.astype(np.uint8)[..., ::-1])
        names.append(name)
    return names


def pair_lines(names: list[str]) -> list[str]:
    """``a b 1`` and ``a b 0`` by turns, as many of one kind as of the other."""
    couples = list(itertools.combinations(names, 2))
    same = [couple for couple in couples if couple[0].split("/")[0] == couple[1].split("/")[0]]
    other = [couple for couple in couples if couple not in same]
    chosen = other[:: len(other) // len(same)]
    return [line for (a, b), (c, d) in zip(same, chosen) for line in (f"{a} {b} 1", f"{c} {d} 0")]
