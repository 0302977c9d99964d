"""Samplers and loaders: every sample has its own random stream, and every process its own share.

A training sampler hands out keys of position and epoch. The data set seeds the augmentation of a sample from
(seed, epoch, position), so that what is drawn depends neither on the number of workers nor on that of
processes, is never repeated by another worker, changes with the epoch also in persistent workers, and is the
same when the run is. A checkpoint holds how many batches of the epoch were taken, so that a run which is resumed in
the middle of an epoch goes on with the next one, without reading the earlier ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from mnvision.errors import UserError


class SampleKey(NamedTuple):
    """What a training data set is indexed with.

    Attributes:
        position: Position of the sample, ``0 .. len - 1``.
        epoch: Epoch for which its augmentation is drawn.
    """

    position: int
    epoch: int


class TrainSampler(Sampler[SampleKey]):
    """A new order in every epoch, dealt out to the processes.

    The order depends on seed and epoch only. Each of ``world_size`` processes gets every ``world_size``-th
    sample; the first ones are dealt again where the number does not divide, so that all have as many batches.

    Args:
        length: Number of samples in the data set.
        seed: Seed of the run.
        rank: Number of this process; None asks ``torch.distributed``.
        world_size: Number of processes; likewise.
        views: Augment as in the epochs ``0 .. views - 1``, over and over; None draws anew in every epoch. The order
            is always that of the epoch.

    Attributes:
        start: Samples of this process's share to leave out, in the next iteration only.

    Raises:
        UserError: ``views`` is below 1.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        views: int | None = None,
    ) -> None:
        check_views(views)
        self.length, self.seed, self.epoch, self.views = length, seed, 0, views
        self.rank, self.world_size = process(rank, world_size)
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation; Lightning calls it before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleKey]:
        start, self.start = self.start, 0
        view = self.epoch if self.views is None else self.epoch % self.views
        for positions in self.positions(self.epoch, start):
            for position in positions.tolist():
                yield SampleKey(position, view)

    def positions(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        """This process's share of an epoch from its sample ``start`` on, in pieces of any size."""
        order = sample_rng(self.seed, epoch, -1).permutation(self.length)
        order = np.resize(order, len(self) * self.world_size)
        yield order[self.rank :: self.world_size][start:]

    def __len__(self) -> int:
        return -(-self.length // self.world_size)


class EvalSampler(Sampler[int]):
    """Positions in order, each given to exactly one process: nothing is repeated to even out the shares.

    Args:
        length: Number of samples in the data set.
        rank: Number of this process; None asks ``torch.distributed`` when the loader is used, since a loader may be
            made before the processes are joined.
        world_size: Number of processes; likewise.
    """

    def __init__(self, length: int, rank: int | None = None, world_size: int | None = None) -> None:
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions())

    def __len__(self) -> int:
        return len(self._positions())

    def _positions(self) -> range:
        rank, world_size = process(self.rank, self.world_size)
        return range(rank, self.length, world_size)


class TrainLoader(DataLoader[Any]):
    """Batches whose place in the epoch goes into checkpoints: Lightning stores ``state_dict`` and hands it back."""

    _taken = 0
    _resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that the order is drawn when the first batch is: Lightning announces the epoch after iter().
        sampler = self.sampler
        self._taken = self._first_batch()
        if isinstance(sampler, TrainSampler):
            sampler.start = self._taken * int(self.batch_size or 1)
        for batch in super().__iter__():
            self._taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The place in the epoch, and what it depends on."""
        return {"batches": self._taken, **self._place()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a place, if it lies in the epoch that is iterated next."""
        self._resumed = dict(state)

    def _place(self) -> dict[str, int]:
        sampler = self.sampler
        if not isinstance(sampler, TrainSampler):  # Lightning's, where it overfits a few batches
            return {}
        size, processes = int(self.batch_size or 1), sampler.world_size
        return {"epoch": sampler.epoch, "batch_size": size, "processes": processes, "samples": sampler.length}

    def _first_batch(self) -> int:
        resumed, place, self._resumed = self._resumed, self._place(), None
        if resumed is None or not place or resumed.get("epoch") != place["epoch"]:
            return 0
        if not 0 < resumed["batches"] < len(self):
            return 0
        changed = [f"{key} {resumed.get(key)} -> {value}" for key, value in place.items() if resumed.get(key) != value]
        if changed:
            raise UserError(
                f"the checkpoint is from the middle of an epoch and the data are not the same ({', '.join(changed)}): "
                "repeat the settings of its run, or take a checkpoint from the end of an epoch"
            )
        return resumed["batches"]


def sample_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random stream of one sample in one epoch; position -1 is that of the order itself."""
    return np.random.default_rng((seed, epoch, position + 1))


def train_loader(
    dataset: Dataset[Any],
    batch_size: int,
    num_workers: int,
    collate: Callable[..., Any],
    seed: int = 0,
    views: int | None = None,
    sampler: TrainSampler | None = None,
) -> TrainLoader:
    """Shuffled batches of one size; the last, smaller one is left out unless it is the only one.

    Args:
        dataset: Indexed by what the sampler gives.
        batch_size: Samples of a batch.
        num_workers: Worker processes.
        collate: Samples to a batch.
        seed: Seed of the order.
        views: See :class:`TrainSampler`.
        sampler: Another order than that of a :class:`TrainSampler` over the whole data set.
    """
    sampler = TrainSampler(_length(dataset), seed, views=views) if sampler is None else sampler
    return TrainLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=len(sampler) >= batch_size,
        **_common(num_workers, collate, seed),
    )


def eval_loader(
    dataset: Dataset[Any], batch_size: int, num_workers: int, collate: Callable[..., Any]
) -> DataLoader[Any]:
    """Every sample once over all processes, in order."""
    return ordered_loader(dataset, EvalSampler(_length(dataset)), batch_size, num_workers, collate)


def ordered_loader(
    dataset: Dataset[Any], sampler: Sampler[Any], batch_size: int, num_workers: int, collate: Callable[..., Any]
) -> DataLoader[Any]:
    """What a sampler names, in its order; the last batch may be smaller."""
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **_common(num_workers, collate, 0))


def check_loader_arguments(batch_size: int, num_workers: int, seed: int) -> None:
    """Refuses impossible loader settings.

    Raises:
        UserError: A batch size below 1, or a negative number of workers or seed.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_views(views: int | None) -> None:
    """Refuses a number of replayed views below 1; None, for new ones in every epoch, is fine.

    Raises:
        UserError: It is below 1, or no whole number.
    """
    if views is not None and (isinstance(views, bool) or not isinstance(views, int) or views < 1):
        raise UserError(f"teacher.views={views}: give a whole number >= 1, or null (uncached) for ever new ones")


def planes(image: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """``(H, W, 3)`` uint8 array -> ``(3, H, W)`` tensor of its own memory."""
    return torch.from_numpy(np.stack(cv2.split(image)))


def _common(num_workers: int, collate: Callable[..., Any], seed: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _start_worker,
        # A generator of the loader's own: its workers' seeds do not depend on, or disturb, the global stream.
        "generator": torch.Generator().manual_seed(seed),
    }


def _start_worker(worker_id: int) -> None:
    """One thread per worker: OpenCV would otherwise start as many as there are cores in each."""
    cv2.setNumThreads(0)


def process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Number of this process and of all; None asks ``torch.distributed``."""
    running = dist.is_available() and dist.is_initialized()
    rank = (dist.get_rank() if running else 0) if rank is None else rank
    world_size = (dist.get_world_size() if running else 1) if world_size is None else world_size
    return rank, world_size


def _length(dataset: Dataset[Any]) -> int:
    length = len(cast("Sized", dataset))
    if length == 0:
        raise UserError("the data set is empty")
    return length
