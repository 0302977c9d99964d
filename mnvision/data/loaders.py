"""Samplers and loaders: every sample has its own random stream, and every process its own share.

A training sampler hands out keys of position and epoch. The data set seeds the augmentation of a sample from
(seed, epoch, position), so that what is drawn depends neither on the number of workers nor on that of
processes, is never repeated by another worker, changes with the epoch also in persistent workers, and is the
same when the run is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
import torch.distributed as dist
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

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation; Lightning calls it before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        order = sample_rng(self.seed, epoch, -1).permutation(self.length)
        order = np.resize(order, len(self) * self.world_size)
        view = epoch if self.views is None else epoch % self.views
        for position in order[self.rank :: self.world_size]:
            yield SampleKey(int(position), view)

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
) -> DataLoader[Any]:
    """Shuffled batches of one size; the last, smaller one is left out unless it is the only one."""
    sampler = TrainSampler(_length(dataset), seed, views=views)
    return DataLoader(
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
