"""Several heads' data sets as one, each with its own batches, transforms and teacher."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from mnvision.data.index import DataReport
from mnvision.data.joint_loader import JointLoader
from mnvision.data.joint_schedule import Draw, JointSchedule
from mnvision.data.pictures import Split
from mnvision.errors import UserError

log = logging.getLogger(__name__)


class HeadsDataModule(pl.LightningDataModule, ABC):
    """The data modules of several heads; what is trained on is up to the classes below.

    Every head is evaluated by its own loader, with its own data, transforms and batch size.

    Args:
        data: Head -> its data module, in the order of the model's heads.
        together: Pictures of one size pass through the trunk together; otherwise each head's alone.

    Attributes:
        data: The data modules by head.
        labelled: Whether any head has labels to learn from.
        class_names: Empty: every head has its own.
        preprocess: Empty, likewise.

    Raises:
        UserError: There are no heads.
    """

    def __init__(self, data: Mapping[str, Any], together: bool = True) -> None:
        super().__init__()
        if not data:
            raise UserError("joint training needs the data of at least one head")
        self.data, self.together = dict(data), together
        self.class_names: list[str] = []
        self.preprocess: dict[str, Any] = {}

    @property
    def labelled(self) -> bool:
        """Whether any head has labels to learn from."""
        return any(data.labelled for data in self.data.values())

    def prepare_data(self) -> None:
        """Has every head's data prepared."""
        for data in self.data.values():
            data.prepare_data()

    def setup(self, stage: str) -> None:
        """Reads what a stage (fit, validate, test) needs.

        Raises:
            UserError: A data set is missing or malformed.
        """
        for name, data in self.data.items():
            with named(name):
                data.setup(stage)

    def reports(self) -> dict[str, DataReport]:
        """What was found in the splits read so far, by "head/split"."""
        return {
            f"{name}/{split}": report for name, data in self.data.items() for split, report in data.reports().items()
        }

    def notes(self, split: Split) -> list[str]:
        """What a reader of a split's scores should know; each begins with the head's name."""
        own = {name: getattr(data, "notes", None) for name, data in self.data.items()}
        return [f"{name}: {note}" for name, notes in own.items() if notes for note in notes(split)]

    def num_images(self, split: Split) -> int:
        """Pictures in a split, of all heads together."""
        return sum(data.num_images(split) for data in self.data.values())

    def eval_dataloaders(self, split: Split) -> list[Any]:
        """The heads' own loaders of a split, in their order."""
        return [data.eval_dataloader(split) for data in self.data.values()]

    def val_dataloader(self) -> list[Any]:
        """The heads' own validation loaders, in their order."""
        return self.eval_dataloaders("val")

    def test_dataloader(self) -> list[Any]:
        """The heads' own test loaders, in their order."""
        return self.eval_dataloaders("test")

    @property
    @abstractmethod
    def whole_steps(self) -> bool:
        """Whether every training step has pictures of every head."""


class JointDataModule(HeadsDataModule):
    """Joint batches from a data set of each head.

    A step takes whole batches, as each head's own loader gives them: with its batch size, order, augmentation,
    workers, sampler and teacher. Which heads' batches it takes is fixed, see
    :class:`~mnvision.data.joint_schedule.JointSchedule`. A set that ends within an epoch begins its own next one, with
    a new order and new augmentation.

    Args:
        data: Head -> its data module, in the order of the model's heads.
        draw: "round_robin", "proportional" or "square_root", see the schedule.
        batches_per_step: Batches of a step; None takes as many as there are heads.
        together: Pictures of one size pass through the trunk together; otherwise every batch alone, as heads with
            batch normalisations of their own need it.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        draw: Draw = "round_robin",
        batches_per_step: int | None = None,
        together: bool = True,
    ) -> None:
        super().__init__(data, together)
        JointSchedule(dict.fromkeys(self.data, 1), draw, batches_per_step)  # refuses what it cannot do
        self.draw, self.batches_per_step = draw, batches_per_step

    @property
    def whole_steps(self) -> bool:
        """Whether every training step has pictures of every head."""
        per_step = len(self.data) if self.batches_per_step is None else self.batches_per_step
        return self.draw == "round_robin" and per_step >= len(self.data)

    def train_dataloader(self) -> JointLoader:
        """Joint batches; how often an epoch shows each head's data is logged."""
        loaders = {}
        for name, data in self.data.items():
            with named(name):
                loaders[name] = data.train_dataloader()
        sizes = {name: len(loader) for name, loader in loaders.items()}
        schedule = JointSchedule(sizes, self.draw, self.batches_per_step)
        log.info(
            "%d steps of %d batches in an epoch; %s passes per epoch",
            len(schedule),
            schedule.batches_per_step,
            ", ".join(f"{name}: {passes:.3g}" for name, passes in schedule.passes().items()),
        )
        return JointLoader(loaders, schedule, self.together, self._repeats)

    @property
    def _repeats(self) -> bool:
        """Whether Lightning is asked to overfit a few batches: then they must be the same in every epoch."""
        return getattr(self.trainer, "overfit_batches", 0) > 0


@contextmanager
def named(head: str) -> Iterator[None]:
    """Puts a head's name before a refusal: whose ``data.root`` is meant would not be clear else."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{head}: {error}") from None
