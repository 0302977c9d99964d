"""Photos with positions in tar shards, in WebDataset's layout: sets that are too large to be unpacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from mnvision.data.geo import GeoDataModule, check_fraction
from mnvision.data.geo_index import check_share
from mnvision.data.index import DataReport, FindingCounter
from mnvision.data.loaders import train_loader
from mnvision.data.pictures import Split
from mnvision.data.shard_files import add_findings, indexed_shards, shard_paths
from mnvision.data.shard_index import IndexedShard, IndexOptions
from mnvision.data.shard_places import PlaceKeys
from mnvision.data.shards import ShardSampler, ShardSource
from mnvision.errors import UserError


class GeoShardsDataModule(GeoDataModule[ShardSource]):
    """Photos in tar files: ``KEY.jpg`` with ``KEY.json`` (or ``KEY.txt``: two numbers) beside it.

    Each shard is read once, before the first run, to know what lies where; ``check`` is part of that. Shards of
    ``val`` and ``test`` are not trained on, also where ``train`` names them.

    Args:
        root: Folder that patterns are relative to.
        train: Shards to train on: a pattern with braces (``a-{000000..000099}.tar``), a glob pattern, or a folder.
        val: Shards to validate on; None holds out a part of the training shards.
        test: Shards to test on; None where there are none.
        val_fraction: Share of the training shards to validate on where ``val`` is None; whole shards. None
            holds out nothing.
        keys: Names of the fields ``latitude`` and ``longitude`` of the JSON objects; dots lead into inner objects. None
            looks for the usual names.
        index_dir: Folder for the indices; None keeps each beside its shard.
        shuffle_buffer: Pictures that are shuffled together, at least, see :class:`~mnvision.data.shards.ShardSampler`.
        **common: See :class:`~mnvision.data.geo.GeoDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        train: str = "train-*.tar",
        val: str | None = "val-*.tar",
        test: str | None = None,
        val_fraction: float | None = 0.01,
        keys: Mapping[str, str | None] | None = None,
        index_dir: str | Path | None = None,
        shuffle_buffer: int = 50_000,
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        if isinstance(shuffle_buffer, bool) or not isinstance(shuffle_buffer, int) or shuffle_buffer < 1:
            raise UserError(f"data.shuffle_buffer must be a whole number >= 1, got {shuffle_buffer!r}")
        self.patterns: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.val_fraction, self.shuffle_buffer = check_fraction(val_fraction), shuffle_buffer
        self.index_dir = None if index_dir is None else Path(index_dir).expanduser()
        self.options = IndexOptions(PlaceKeys(**dict(keys or {})), self.check)

    def read(self, split: Split) -> ShardSource:
        """Reads the indices of one split's shards, and makes those that are missing.

        Raises:
            UserError: Shards are missing, or too few of their pictures can be used.
        """
        pattern = self.patterns[split]
        if split != "train" and pattern is not None:
            return self._shards(pattern)
        if split == "test" or (split == "val" and self.val_fraction is None):
            raise UserError(f"no {split} split: give data.{split}, a pattern of shards")
        whole = self._shards(str(self.patterns["train"]), ("val", "test"))
        if self.patterns["val"] is not None or self.val_fraction is None:
            return whole
        number = len(whole.shards)
        if number < 2:
            raise UserError(f"{whole.report.source} is one shard, which cannot be parted: give data.val, other shards")
        order = np.random.default_rng(self.seed).permutation(number)
        count = min(max(round(self.val_fraction * number), 1), number - 1)
        self._sources["train"] = whole.take(sorted(order[count:].tolist()), f"{number - count} shards to train on")
        self._sources["val"] = whole.take(sorted(order[:count].tolist()), f"{count} shards held out")
        return self._sources[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented batches, shuffled as :class:`~mnvision.data.shards.ShardSampler` does."""
        view, counts = self.teacher_view, self.source("train").counts
        views = None if view is None else view.views
        sampler = ShardSampler(counts, self.shuffle_buffer, self.seed, views=views)
        dataset = self.train_dataset(view)
        return train_loader(dataset, self.batch_size, self.num_workers, self.collate, self.seed, views, sampler)

    def _shards(self, pattern: str, others: Sequence[Split] = ()) -> ShardSource:
        """The shards that a pattern names, but for those of other splits."""
        paths, found = shard_paths(self.root, pattern), FindingCounter()
        if not paths:
            raise UserError(f"{self.root / pattern} holds no *.tar")
        for split in others:
            paths = self._without(split, paths, found)
        shards = indexed_shards(paths, self.index_dir, self.options, self.num_workers)
        return ShardSource(shards, self._report(str(self.root / pattern), shards, found))

    def _without(self, split: Split, paths: list[Path], found: FindingCounter) -> list[Path]:
        """Training shards but for those of a split."""
        pattern = self.patterns[split]
        own = set() if pattern is None else {path.resolve() for path in shard_paths(self.root, pattern)}
        others = {path for path in paths if path.resolve() in own}
        found.add(f"training shards that are also {split} shards left out", sorted(others))
        if len(others) == len(paths):
            raise UserError(f"data.train names no shards but those of data.{split}={pattern}")
        return [path for path in paths if path not in others]

    def _report(self, source: str, shards: list[IndexedShard], found: FindingCounter) -> DataReport:
        add_findings(found, shards)
        rows = sum(shard.rows for shard in shards)
        faulty = sum(shard.entries - shard.rows for shard in shards)
        remedy = "name the fields with data.keys='{latitude: ..., longitude: ...}', or fetch the shards again"
        check_share(source, rows, faulty, self.max_faulty, found, remedy)
        return DataReport(source, rows, None, found.findings())
