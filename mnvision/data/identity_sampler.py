"""Batches of P identities with K pictures of each, as losses on pairs and triplets need them.

Source: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification" (2017), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mnvision.data.loaders import SampleKey, TrainSampler, sample_rng
from mnvision.errors import UserError

# More than a run has epochs: the second showing of a picture within an epoch is drawn as in that epoch plus this.
_SHOWINGS_APART = 1 << 20


class IdentitySampler(TrainSampler):
    """P identities times K pictures, batch after batch.

    In every epoch the identities are dealt out to the processes anew, none to two of them. Each process goes through
    its own in random order, over and over, so that all are equally frequent, and through the pictures of each; a
    batch never has an identity twice. An epoch has as many batches as the pictures would fill. A picture that is shown
    again in the same epoch, as happens where an identity has fewer than K, is augmented in another way.

    Everything is drawn from (seed, epoch); a process draws the same whatever the other ones do.

    Args:
        labels: ``(I,)`` int64, identity of each picture; pictures below 0 are not shown.
        identities: P.
        images: K, at least 2.
        seed: Seed of the run.
        rank: Number of this process; None asks ``torch.distributed``.
        world_size: Number of processes; likewise.
        views: Augment as in the epochs ``0 .. views - 1``, over and over; None draws anew in every epoch.

    Raises:
        UserError: A value is out of range, or there are fewer than P identities for each process.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        identities: int,
        images: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        views: int | None = None,
    ) -> None:
        super().__init__(int((labels >= 0).sum()), seed, rank, world_size, views)
        if identities < 1 or images < 2:
            raise UserError(
                f"batches of {identities} identities with {images} pictures each: give at least 1 and 2 "
                "(data.identities_per_batch, data.images_per_identity)"
            )
        self.identities, self.images = identities, images
        order = np.argsort(labels, kind="stable")
        self._order = order[np.searchsorted(labels[order], 0) :]
        self._starts = np.flatnonzero(np.diff(labels[self._order], prepend=-1))
        self._ends = np.append(self._starts[1:], len(self._order))
        share = len(self._starts) // self.world_size
        if share < identities:
            raise UserError(
                f"{len(self._starts)} identities are too few for batches of {identities} in each of {self.world_size} "
                "processes: lower data.identities_per_batch (or data.batch_size)"
            )

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, the same in every process."""
        return max(len(self._order) // (self.identities * self.images * self.world_size), 1)

    def __len__(self) -> int:
        return self.num_batches * self.identities * self.images

    def __iter__(self) -> Iterator[SampleKey]:
        start, self.start = self.start, 0
        return islice(self._keys(self.epoch), start, None)

    def _keys(self, epoch: int) -> Iterator[SampleKey]:
        """All that this process shows in an epoch."""
        dealt = sample_rng(self.seed, epoch, -1).permutation(len(self._starts))
        rng = np.random.default_rng((self.seed, epoch, 0, 1 + self.rank))
        own = dealt[self.rank :: self.world_size]
        shown: dict[int, int] = {}
        orders: dict[int, NDArray[np.int64]] = {}
        waiting: list[int] = []
        for _ in range(self.num_batches):
            if len(waiting) < self.identities:
                held = set(waiting)
                waiting += [row for row in rng.permutation(own).tolist() if row not in held]
            batch, waiting = waiting[: self.identities], waiting[self.identities :]
            for row in batch:
                if row not in orders:
                    orders[row] = rng.permutation(self._order[self._starts[row] : self._ends[row]])
                start = shown.get(row, 0)
                shown[row] = start + self.images
                for place in range(start, start + self.images):
                    again, which = divmod(place, len(orders[row]))
                    yield SampleKey(int(orders[row][which]), self._view(epoch, again))

    def _view(self, epoch: int, again: int) -> int:
        """The epoch whose augmentation is drawn when a picture is shown for the ``again``-th time after the first."""
        return epoch + again * _SHOWINGS_APART if self.views is None else (epoch + again) % self.views
