"""Three tiny data sets for three heads, and what they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnvision.data.celeba import CelebaDataModule
from mnvision.data.coco import CocoDataModule
from mnvision.data.identity_sets import IdentityFoldersDataModule
from mnvision.data.joint import JointDataModule
from tests.builders import make_tiny_coco
from tests.builders_faces import make_tiny_celeba
from tests.builders_identities import make_people

PEOPLE = dict.fromkeys(("ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal", "ida", "jon"), 3)


def make_three_sets(root: Path) -> Path:
    """10 pictures with boxes, 20 with attributes of which 16 are for training, and 30 of 10 people."""
    make_tiny_coco(root / "coco", num_images=10)
    make_tiny_celeba(root / "celeba")
    make_people(root / "people", PEOPLE)
    return root


def boxes(root: Path, **options: Any) -> CocoDataModule:
    """5 batches of 2."""
    return CocoDataModule(root / "coco", **{"resolution": 32, "batch_size": 2, "num_workers": 0, **options})


def attributes(root: Path, **options: Any) -> CelebaDataModule:
    """4 batches of 4."""
    return CelebaDataModule(root / "celeba", **{"resolution": 32, "batch_size": 4, "num_workers": 0, **options})


def people(root: Path, **options: Any) -> IdentityFoldersDataModule:
    """3 batches of 3 people with 2 pictures each, at another size; 4 people are held out."""
    fixed = {"resolution": 24, "batch_size": 6, "num_workers": 0, "val_fraction": 0.4, "num_pairs": 8}
    sampling = {"sampling": "identities", "images_per_identity": 2}
    return IdentityFoldersDataModule(root / "people", {"resize": "stretch"}, **{**fixed, **sampling, **options})


def three_heads(root: Path, num_workers: int = 0, **options: Any) -> JointDataModule:
    """Heads ssd, attributes and embedding on the three sets."""
    data = {
        "ssd": boxes(root, num_workers=num_workers),
        "attributes": attributes(root, num_workers=num_workers),
        "embedding": people(root, num_workers=num_workers),
    }
    return JointDataModule(data, **options)


def leaves(node: Any) -> Iterator[Any]:
    """Everything in nested mappings, by key, and lists, in order; keys included."""
    if isinstance(node, dict):
        for key, value in sorted(node.items()):
            yield key
            yield from leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    else:
        yield node


def same(one: Any, other: Any) -> bool:
    """Whether two batches are equal to the last bit."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return all(
        bool((a == b).all()) if hasattr(a, "shape") and a.shape == b.shape else a is b or a == b for a, b in pairs
    )
