"""Photo geolocation as classification over cells of the Earth (PlaNet), scored by distance; paper, section 4.4."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import Metadata
from mnvision.data.index import first_few
from mnvision.errors import UserError
from mnvision.geo.partition import Partition
from mnvision.losses.distance_smoothing import DistanceSmoothedCrossEntropy
from mnvision.metrics.geolocation import GeolocationEvaluator, GeolocationScores
from mnvision.models import Geolocator
from mnvision.prediction.cell_table import PARTITION, stored_partition
from mnvision.types import GeolocationBatch
from tasks.base import VisionTask
from tasks.distillation import Distillation

log = logging.getLogger("mnvision")


class GeolocationTask(VisionTask):
    """Trains and evaluates a :class:`~mnvision.models.Geolocator`.

    The cells go into ``metadata.calibration["partition"]`` before the first step, and with it into every checkpoint,
    so that a checkpoint alone gives coordinates. Photos are always judged by the model's own cells, whatever those of
    the evaluated data are.

    Args:
        model: Backbone, classifier over cells and their decoder.
        metadata: Stored in every checkpoint; its class names are the cells' tokens.
        loss: Called with logits ``(B, K)`` and labels ``(B,)``;
            :class:`~mnvision.losses.distance_smoothing.DistanceSmoothedCrossEntropy` with the coordinates besides.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: See :class:`~tasks.base.VisionTask`.
        distillation: See :class:`~tasks.base.VisionTask`.
    """

    model: Geolocator

    def __init__(
        self,
        model: Geolocator,
        metadata: Metadata,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile, distillation)
        self.loss = loss
        self.partition: Partition | None = None
        self.evaluator: GeolocationEvaluator | None = None
        self.scores: GeolocationScores | None = None
        self._notes: list[str] = []
        self._dataset: Any = None

    def prepare_evaluation(self, data: Any, split: str) -> None:
        """Take the model's own cells; a teacher without any takes those of the data, if they are the same by name.

        Raises:
            UserError: The model's cells are not known, or are not those of the data.
        """
        own = stored_partition(self.metadata) or _taught(getattr(self.model, "teacher", None))
        if own is None:
            own = _by_name(data.partition, self.metadata.class_names)
        data.use_partition(own)
        self._adopt(own)
        self._notes, self._dataset = data.notes(split), data.eval_dataset(split, None)

    def on_fit_start(self) -> None:
        """Store the cells with the model: those of the data, or the teacher's where these have no labels.

        Raises:
            UserError: The data have no coordinates, and the teacher does not say where its cells lie.
        """
        super().on_fit_start()
        partition = self.data.partition if self.labelled else self._taught_cells()
        self.metadata.calibration[PARTITION] = partition.to_dict()
        self._adopt(partition)

    def _taught_cells(self) -> Partition:
        assert self.distillation is not None
        partition = _taught(self.distillation.teacher)
        if partition is None:
            raise UserError(
                f"{self.distillation.teacher.spec.name} does not say where its cells lie, and the data have no "
                "coordinates: give a geolocation checkpoint as teacher, or data with coordinates"
            )
        return partition

    def _adopt(self, partition: Partition) -> None:
        self.partition = partition
        self.model.decoder.fit_to(partition)
        if isinstance(self.loss, DistanceSmoothedCrossEntropy):
            self.loss.fit_to(partition.positions)

    def label_losses(self, raw: Tensor, batch: GeolocationBatch) -> dict[str, Tensor]:
        """Cross-entropy of logits."""
        places = (batch["coordinates"],) if isinstance(self.loss, DistanceSmoothedCrossEntropy) else ()
        return {"loss": self.loss(raw.float(), batch["labels"], *places)}

    def on_validation_epoch_start(self) -> None:
        """Forget the previous epoch's predictions."""
        assert self.partition is not None
        self.evaluator = GeolocationEvaluator(self.partition.positions)

    def validation_step(self, batch: GeolocationBatch, batch_idx: int) -> None:
        """Collect where photos are placed; without labels compare with the teacher."""
        model: Any = self.evaluation_model
        if not self.labelled:
            logits, maps = self.answers(batch, model)
            return self.compare_with_teacher(logits, batch, maps)
        assert self.evaluator is not None
        assert self.partition is not None
        logits, coordinates = model(self.pixels(batch)).float(), batch["coordinates"]
        latitudes, longitudes = coordinates.cpu().numpy().T
        labels = torch.from_numpy(self.partition.labels(latitudes, longitudes)).to(logits.device)
        decoder = self.model.decoder  # without weights, hence the average's too; it knows the cells
        self.evaluator.update(logits, decoder.choose(decoder(logits)), labels, coordinates, batch["indices"])

    def on_validation_epoch_end(self) -> None:
        """All scores, the same in every process."""
        if not self.labelled:
            return
        assert self.evaluator is not None
        self.evaluator.gather()
        self.scores = self.evaluator.compute()
        self.log_dict({f"val/{name}": value for name, value in self.scores.scalars().items()})

    def take_up(self, stored: Metadata) -> None:
        """Refuse to go on with other cells.

        Raises:
            UserError: They are others.
        """
        super().take_up(stored)
        if stored.class_names != self.metadata.class_names:
            raise UserError(
                f"ckpt_path: trained on the {len(stored.class_names)} cells {first_few(stored.class_names)}, but the "
                f"data have {first_few(self.metadata.class_names)}: give the same data.partition"
            )

    def write_report(self, folder: Path) -> list[str]:
        """Scores, a row per photo and figures of the last evaluation.

        Returns:
            Lines for the terminal.
        """
        from tasks.reports_geo import geolocation_report

        assert self.scores is not None
        assert self.partition is not None
        return geolocation_report(folder, self.scores, self.partition.names, self._notes, self._name)

    def _name(self, index: int) -> str:
        return "" if self._dataset is None else str(self._dataset.name(index))


def _taught(teacher: Any) -> Partition | None:
    """The cells of a teacher that is a checkpoint of geolocation."""
    calibration = {} if teacher is None else teacher.spec.calibration or {}
    return Partition.from_dict(calibration[PARTITION]) if PARTITION in calibration else None


def _by_name(partition: Partition, names: list[str]) -> Partition:
    """The partition of the data, once its cells are known to be those that a model names.

    Raises:
        UserError: They are others, or in another order.
    """
    if partition.names == names:
        return partition
    raise UserError(
        f"the model does not say where its {len(names)} cells ({first_few(names)}) lie, and the data have "
        f"{len(partition)} others ({first_few(partition.names)}): give data.partition=FILE with those it was trained on"
    )
