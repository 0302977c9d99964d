"""Pictures and places in tar shards, read one by one where their indices say.

Nothing of a set is held in memory but the number of pictures of each shard, and the records of the shards that were
read last: 91 million photos in 9,100 shards are some megabytes. The order of an epoch belongs to (seed, epoch): the
shards are shuffled, then the pictures of as many consecutive shards as hold ``buffer`` of them. It is the same for any
number of workers, is dealt out to the processes like that of other sets, and can be entered anywhere.

The ``webdataset`` package streams shards instead: whole shards go to workers, so that what is seen depends on their
number, and to resume in the middle of an epoch is left to its users (its issues 177 and 271).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.geo_index import OUTSIDE, with_outside
from mnvision.data.images import EncodedImage
from mnvision.data.index import MAX_EXAMPLES, DataReport
from mnvision.data.loaders import TrainSampler, sample_rng
from mnvision.data.shard_index import IndexedShard, member_name
from mnvision.errors import UserError
from mnvision.geo.partition import Chunk, Partition

OPEN_SHARDS = 256
"""Shards whose files and records a process keeps open, and the most that are shuffled together."""


class _MemberName(NamedTuple):
    """A picture by its place; it is looked up in the shard where its name is shown."""

    shard: Path
    header: int
    offset: int

    def __str__(self) -> str:
        try:
            with open(self.shard, "rb") as file:
                head = os.pread(file.fileno(), self.offset - self.header, self.header)
        except OSError:
            head = b""
        return f"{self.shard.name}/{member_name(head)}"


class _OpenShard:
    """A shard's file, its records, and, once there is a partition, their labels."""

    def __init__(self, shard: IndexedShard, partition: Partition | None, training: bool) -> None:
        self.path, self.records = shard.path, shard.records()
        self.labels: NDArray[np.int64] | None = None
        if partition is not None:
            labels = partition.labels(self.records["latitude"], self.records["longitude"])
            inside = labels != OUTSIDE if training else np.ones(len(labels), np.bool_)
            self.records, self.labels = self.records[inside], labels[inside]
        try:
            self.file = os.open(shard.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read shard {shard.path}: {error.strerror or error}") from None

    def name(self, row: int) -> _MemberName:
        """Name of a picture."""
        return _MemberName(self.path, int(self.records["header"][row]), int(self.records["offset"][row]))

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class ShardSource:
    """Pictures of one split, see :class:`~mnvision.data.geo_index.GeoSource`.

    Positions count through the shards in order; of training pictures with a partition, through those inside a cell.

    Args:
        shards: With their indices.
        report: What was found.
        partition: Whose cells are the labels; None before one is known.
        training: Leave pictures outside every cell out.
        counts: ``(S,)`` pictures of each shard; None for all that its index has.
    """

    def __init__(
        self,
        shards: Sequence[IndexedShard],
        report: DataReport,
        partition: Partition | None = None,
        training: bool = False,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        self.shards, self.report, self.partition, self.training = tuple(shards), report, partition, training
        self.counts = np.array([shard.rows for shard in shards], np.int64) if counts is None else counts
        self._ends = np.cumsum(self.counts)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files do not travel to spawned workers

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def path(self, position: int) -> Path:
        """Refused: pictures in shards have no files.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a teacher's stored answers belong to files, and pictures in shards are none: use a teacher that runs "
            "(teacher.cache=false), or unpack the shards"
        )

    def landmarks(self, position: int) -> None:
        """Photos of places have none."""

    def picture(self, position: int) -> EncodedImage:
        """See :class:`~mnvision.data.geo_index.GeoSource`.

        Raises:
            UserError: The shard is gone or was cut off.
        """
        opened, row = self._find(position)
        size, name = int(opened.records["size"][row]), opened.name(row)
        data = os.pread(opened.file, size, name.offset)
        if len(data) < size:
            raise UserError(f"shard {name.shard} was cut off since the run began: fetch it again and start again")
        return EncodedImage(name, data)

    def name(self, position: int) -> str:
        """See :class:`~mnvision.data.geo_index.GeoSource`: ``photos-000003.tar/cat.jpg``."""
        opened, row = self._find(position)
        return str(opened.name(row))

    def label(self, position: int) -> int:
        """See :class:`~mnvision.data.geo_index.GeoSource`."""
        opened, row = self._find(position)
        assert opened.labels is not None
        return int(opened.labels[row])

    def place(self, position: int) -> NDArray[np.float64]:
        """See :class:`~mnvision.data.geo_index.GeoSource`."""
        opened, row = self._find(position)
        return np.array([opened.records["latitude"][row], opened.records["longitude"][row]])

    def places(self) -> Iterator[Chunk]:
        """See :class:`~mnvision.data.geo_index.GeoSource`."""
        for shard in self.shards:
            records = shard.records()
            yield records["latitude"], records["longitude"]

    def labelled(self, partition: Partition, training: bool) -> ShardSource:
        """See :class:`~mnvision.data.geo_index.GeoSource`."""
        counts, examples, outside = self.counts.copy(), list[str](), 0
        for number, (latitudes, longitudes) in enumerate(self.places()):
            rows = np.flatnonzero(partition.labels(latitudes, longitudes) == OUTSIDE)
            outside += len(rows)
            counts[number] -= len(rows) if training else 0
            first = int(self._ends[number] - self.counts[number])
            examples += [self.name(first + row) for row in rows[: MAX_EXAMPLES - len(examples)].tolist()]
        report = with_outside(self.report, partition, examples, outside, training)
        return ShardSource(self.shards, report, partition, training, counts)

    def take(self, numbers: Sequence[int], part: str) -> ShardSource:
        """Some of the shards, called ``part`` in the report."""
        shards = [self.shards[number] for number in numbers]
        count = sum(shard.rows for shard in shards)
        report = replace(self.report, source=f"{self.report.source} ({part})", num_images=count)
        return ShardSource(shards, report)

    def _find(self, position: int) -> tuple[_OpenShard, int]:
        """The shard of a picture, and its row there."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = int(np.searchsorted(self._ends, position, "right"))
        opened = self._open.get(number)
        if opened is None:
            opened = _OpenShard(self.shards[number], self.partition, self.training)
            self._open[number] = opened
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return opened, position - int(self._ends[number] - self.counts[number])


class ShardSampler(TrainSampler):
    """The order of :class:`~mnvision.data.loaders.TrainSampler` for more pictures than can be put in order at once.

    Args:
        counts: ``(S,)`` int64, pictures of each shard.
        buffer: Pictures that are shuffled together, at least: as many whole shards as hold them, but no more than
            ``OPEN_SHARDS``.
        seed: Seed of the run.
        rank: See :class:`~mnvision.data.loaders.TrainSampler`.
        world_size: See :class:`~mnvision.data.loaders.TrainSampler`.
        views: See :class:`~mnvision.data.loaders.TrainSampler`.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        buffer: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        views: int | None = None,
    ) -> None:
        super().__init__(int(counts.sum()), seed, rank, world_size, views)
        self.counts, self.buffer = counts, buffer

    def positions(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        """See :meth:`~mnvision.data.loaders.TrainSampler.positions`; the pieces are what is shuffled together."""
        wanted, begin = len(self) * self.world_size, 0
        first = start * self.world_size + self.rank
        windows = self._windows(epoch)
        # The first pictures are dealt again where the number does not divide.
        while begin < wanted:
            for number, window in enumerate(windows):
                end = begin + int(self.counts[window].sum())
                if first < min(end, wanted):
                    share = self._order(epoch, number, window)[first - begin : wanted - begin : self.world_size]
                    yield share
                    first += len(share) * self.world_size
                begin = end

    def _windows(self, epoch: int) -> list[NDArray[np.int64]]:
        """Shards that are shuffled together, in the order of the epoch."""
        order = sample_rng(self.seed, epoch, -1).permutation(len(self.counts))
        bounds, held = [0], 0
        for place, count in enumerate(self.counts[order].tolist(), start=1):
            held += count
            if held >= self.buffer or place - bounds[-1] == OPEN_SHARDS:
                bounds.append(place)
                held = 0
        if bounds[-1] < len(order):
            bounds.append(len(order))
        return [order[start:end] for start, end in pairwise(bounds)]

    def _order(self, epoch: int, number: int, window: NDArray[np.int64]) -> NDArray[np.int64]:
        """All pictures of some shards, shuffled."""
        ends = np.cumsum(self.counts)
        pictures = np.concatenate([np.arange(ends[shard] - self.counts[shard], ends[shard]) for shard in window])
        # Four numbers: apart from the streams of samples and of the order of shards, which have three.
        order: NDArray[np.int64] = np.random.default_rng((self.seed, epoch, 0, number + 1)).permutation(pictures)
        return order
