"""Batches of several heads as one: those that a step takes, and the pictures of one size put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mnvision.data.joint_schedule import Drawn, JointSchedule
from mnvision.data.loaders import TrainLoader, TrainSampler
from mnvision.errors import UserError
from mnvision.types import JointBatch, JointGroup, JointPart

EPOCHS_APART = 1 << 24
"""Head number n counts its own epochs from n times this: sets of the same pictures and seed, such as those of the
boxes and the attributes of one folder, would otherwise show the very same pictures in a step."""


class Epoch:
    """What Lightning tells the epoch to, as to a sampler; the heads' own samplers count their own ones."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; Lightning calls it before every one."""
        self.epoch = epoch


class HeadBatches:
    """The batches of one head, its own epochs following each other without end.

    Args:
        name: Of the head, for messages.
        loader: With a sampler that can begin anywhere in an epoch.
        first_epoch: Number of the first own epoch.

    Raises:
        UserError: The loader has no such sampler.
    """

    def __init__(self, name: str, loader: Any, first_epoch: int = 0) -> None:
        if not isinstance(loader, TrainLoader) or not isinstance(loader.sampler, TrainSampler):
            raise UserError(f"the training data of {name} cannot be entered anywhere, which joint training needs")
        self.loader, self.sampler, self.first_epoch = loader, loader.sampler, first_epoch
        self._batches: Iterator[Any] = iter(())
        self._next: int | None = None

    def __len__(self) -> int:
        """Batches of an own epoch."""
        return len(self.loader)

    def take(self, number: int) -> dict[str, Any]:
        """Batch ``number``, counted through all own epochs; one after another costs nothing extra."""
        epoch, first = divmod(number, len(self))
        if number != self._next or first == 0:
            self.sampler.set_epoch(self.first_epoch + epoch)
            self.loader.load_state_dict({**self.loader.state_dict(), "batches": first})
            self._batches = iter(self.loader)
        self._next = number + 1
        batch: dict[str, Any] = next(self._batches)
        return batch


class JointLoader:
    """Joint batches; their place in the run decides what they hold, and goes into checkpoints.

    Lightning tells :attr:`sampler` the epoch, stores ``state_dict`` and hands it back. What a step holds depends on
    its number alone, counted through all epochs: a run that is resumed, or takes only a part of every epoch, gets what
    it would have got anyway.

    Args:
        loaders: Head -> its own loader, in the order of the model's heads.
        schedule: Which of them a step takes.
        together: Put batches of one size together; otherwise each has a group of its own.
        repeat: Give the batches of epoch 0 in every epoch, to overfit them.
    """

    def __init__(
        self, loaders: Mapping[str, Any], schedule: JointSchedule, together: bool = True, repeat: bool = False
    ) -> None:
        self.heads = {
            name: HeadBatches(name, loader, number * EPOCHS_APART)
            for number, (name, loader) in enumerate(loaders.items())
        }
        self.schedule, self.together, self.repeat = schedule, together, repeat
        self.sampler = Epoch()
        self._taken = 0
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.schedule)

    def __iter__(self) -> Iterator[JointBatch]:
        # A generator, because Lightning announces the epoch after iter().
        self._taken = self._first_step()
        start = (0 if self.repeat else self.sampler.epoch * len(self)) + self._taken
        for step, drawn in zip(range(self._taken, len(self)), self.schedule.steps(start)):
            batch = self._step(drawn)
            self._taken = step + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and what it depends on."""
        return {"batches": self._taken, **self._place()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a place, if it lies in the epoch that is iterated next."""
        self._resumed = dict(state)

    def _step(self, drawn: Sequence[Drawn]) -> JointBatch:
        names = [self.schedule.heads[item.head] for item in drawn]
        return join([(name, self.heads[name].take(item.batch)) for name, item in zip(names, drawn)], self.together)

    def _place(self) -> dict[str, Any]:
        processes = {head.sampler.world_size for head in self.heads.values()}
        place: dict[str, Any] = {"epoch": self.sampler.epoch, "processes": max(processes)}
        for name, weight, head in zip(self.heads, self.schedule.weights, self.heads.values()):
            place[f"{name}.samples"] = head.sampler.length
            place[f"{name}.batch_size"] = int(head.loader.batch_size or 1)
            place[f"{name}.share"] = weight
        return {**place, "batches_per_step": self.schedule.batches_per_step}

    def _first_step(self) -> int:
        resumed, place, self._resumed = self._resumed, self._place(), None
        if resumed is None or resumed.get("epoch") != place["epoch"]:
            return 0
        keys = dict.fromkeys([*place, *resumed])
        changed = [
            f"{key} {resumed.get(key)} -> {place.get(key)}"
            for key in keys
            if key != "batches" and resumed.get(key) != place.get(key)
        ]
        if changed and resumed["batches"]:
            raise UserError(
                f"the checkpoint is from the middle of an epoch and the data are not the same ({', '.join(changed)}): "
                "repeat the settings of its run, or take a checkpoint from the end of an epoch"
            )
        taken = int(resumed["batches"])
        return taken if 0 < taken < len(self) else 0


def join(batches: Sequence[tuple[str, Mapping[str, Any]]], together: bool) -> JointBatch:
    """Makes one batch of the heads' own ones.

    Args:
        batches: Name of a head and its batch, with ``images`` ``(b, 3, H, W)``.
        together: One group for all of one size; otherwise one for each batch.
    """
    groups: dict[Any, list[tuple[str, Mapping[str, Any]]]] = {}
    for place, (name, batch) in enumerate(batches):
        groups.setdefault(tuple(batch["images"].shape[2:]) if together else place, []).append((name, batch))
    return {"groups": [_group(members) for members in groups.values()]}


def _group(members: Sequence[tuple[str, Mapping[str, Any]]]) -> JointGroup:
    parts: list[JointPart] = []
    first = 0
    for name, batch in members:
        end = first + len(batch["images"])
        own = {key: value for key, value in batch.items() if key != "images"}
        parts.append({"head": name, "rows": torch.arange(first, end), "batch": own})
        first = end
    return {"images": _concatenated([batch["images"] for _, batch in members]), "parts": parts}


def _concatenated(images: Sequence[Tensor]) -> Tensor:
    """All pictures as one tensor, in pinned memory where the batches are, so that it is copied to a GPU as fast."""
    if len(images) == 1:
        return images[0]
    shape = (sum(len(batch) for batch in images), *images[0].shape[1:])
    return torch.cat(list(images), out=torch.empty(shape, dtype=images[0].dtype, pin_memory=images[0].is_pinned()))
