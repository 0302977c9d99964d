"""An epoch of training pictures from tar shards beside one from the same pictures as files in folders.

Both are ours, ``data=geo_shards`` and ``data=geo_table``: the same decoding, augmentation and batches at 224 px, each
in its own shuffled order. Files lie in folders of a thousand, as sets of millions must be kept. Then reading alone: the
bytes of every picture in the order of an epoch, nothing decoded. All from the page cache: what a disk adds depends on
the disk, and is more for files than for shards.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.duel import Contestant, Samples, contest, rate_table, ratio_table, raw
from benchmarks.pictures import write_photos
from benchmarks.report import Result, Table, finish, parser
from mnvision.data.geo_shards import GeoShardsDataModule
from mnvision.data.geo_table import GeoTableDataModule
from mnvision.data.images import EncodedImage

HERE = "benchmarks.shard_loading"
BATCH = 16
CELLS = {"max_photos": 200, "min_photos": 1}
_FOLDER, _SHARD = 1000, 500


def write_sets(root: Path, count: int) -> int:
    """The same photos as shards and as files with a table; gives their bytes."""
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-60, 70, count), rng.uniform(-180, 180, count)], axis=1)
    rows, weight = ["path,latitude,longitude"], 0
    for first in range(0, count, _FOLDER):
        folder = root / f"{first // _FOLDER:05d}"
        for number, path in enumerate(write_photos(folder, min(_FOLDER, count - first), 240, 320, first)):
            latitude, longitude = places[first + number]
            rows.append(f"{path.relative_to(root)},{latitude:.5f},{longitude:.5f}")
            weight += path.stat().st_size
    (root / "train.csv").write_text("\n".join(rows))
    for first in range(1, count + 1, _SHARD):
        with tarfile.open(root / f"train-{first // _SHARD:06d}.tar", "w") as archive:
            for row in rows[first : first + _SHARD]:
                name, latitude, longitude = row.split(",")
                archive.add(root / name, f"{name[:-4]}.jpg")
                place = json.dumps({"latitude": float(latitude), "longitude": float(longitude)}).encode()
                member = tarfile.TarInfo(f"{name[:-4]}.json")
                member.size = len(place)
                archive.addfile(member, io.BytesIO(place))
    return weight


def _module(root: str, kind: str, workers: int) -> Any:
    common: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers, "cells": CELLS, "check": False}
    if kind == "shards":
        return GeoShardsDataModule(root, val=None, val_fraction=None, **common)
    return GeoTableDataModule(root, val_fraction=None, **common)


def loading(root: str, kind: str, workers: int) -> Callable[[], int]:
    """A round over all pictures as training takes them."""
    loader = _module(root, kind, workers).train_dataloader()
    epoch = iter(range(1_000_000))

    def run() -> int:
        loader.sampler.set_epoch(next(epoch))
        return sum(len(batch["labels"]) for batch in loader)

    return run


def reading(root: str, kind: str) -> Callable[[], int]:
    """A round of reading the bytes of all pictures in the order of an epoch."""
    data = _module(root, kind, 0)
    sampler, source = data.train_dataloader().sampler, data.source("train")
    epoch = iter(range(1_000_000))

    def run() -> int:
        sampler.set_epoch(next(epoch))
        read = 0
        for position, _ in sampler:
            picture = source.picture(position)
            content = picture.data if isinstance(picture, EncodedImage) else picture.read_bytes()
            read += len(content) > 0
        return read

    return run


def contests(root: Path, rounds: int) -> dict[str, tuple[str, Samples]]:
    """Title and samples of each contest."""
    found = {}
    works: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("one process", "An epoch in one process, without workers", "loading", {"workers": 0}),
        ("one worker", "An epoch with one worker", "loading", {"workers": 1}),
        ("reading", "Reading alone, nothing decoded", "reading", {}),
    )
    for key, title, work, options in works:
        contestants = [
            Contestant(kind, f"{HERE}:{work}", {"root": str(root), "kind": kind, **options}, tuned=True, threads=1)
            for kind in ("shards", "files")
        ]
        found[key] = (title, contest(contestants, rounds))
    return found


def main() -> None:
    """Command line."""
    options = parser("shard_loading", __doc__)
    options.add_argument("--images", type=int, default=2000, help="320x240 pictures (default 2000)")
    given = options.parse_args()
    count, rounds = (64, 1) if given.quick else (given.images, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        weight = write_sets(Path(folder), count)
        start = time.perf_counter()
        _module(folder, "shards", 0).listed("train")
        indexing = time.perf_counter() - start
        found = contests(Path(folder), rounds)
    tables: list[Table] = []
    for title, samples in found.values():
        tables.append(rate_table(title, "images", samples))
        tables.append(ratio_table(f"Ratio: {title[0].lower()}{title[1:]}", samples, [("shards", "files")]))
    notes = [
        f"The index of the {count} pictures was made in {indexing:.2f} s without reading them, once for all runs.",
        "Both contestants are ours: above 1 pictures come faster from shards than from files.",
    ]
    settings = {"images": count, "mean KB": round(weight / count / 1024), "batch": BATCH, "rounds": rounds}
    measured = {key: raw(samples) for key, (_, samples) in found.items()}
    finish(Result("shard_loading", settings, tables, notes, measured), given.output)


if __name__ == "__main__":
    main()
