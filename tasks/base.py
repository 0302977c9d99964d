"""What every task shares: optimizer, schedule, memory layout, and what goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import KEY, Metadata
from mnvision.errors import UserError
from mnvision.optim import FineTuning, parameter_groups, scale_rates
from tasks.distillation import Distillation
from tasks.resuming import check_resumable, go_on, place_in_epoch

if TYPE_CHECKING:
    from tasks.sharded_centres import ShardedCentres


class VisionTask(pl.LightningModule):
    """A model, how it learns, and its metadata.

    Args:
        model: One of ``mnvision.models``; trained and shipped.
        metadata: Stored in every checkpoint.
        optimizer: Called with parameter groups.
        scheduler: Called with the optimizer, ``total_steps`` and ``steps_per_epoch``; ``None`` keeps the rate.
        channels_last: Memory layout of images and weights; faster on CPUs and on tensor cores.
        compile: Compile the model with ``torch.compile`` for training.
        distillation: How it learns from a teacher, if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        metadata: Metadata,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model: nn.Module = model.to(memory_format=self.memory_format)
        self.metadata = metadata
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._compile = compile
        self.distillation = distillation
        # Where it is one of several tasks on one trunk: the task that trains them all, and its name there. In a tuple,
        # lest it become a part of its own part.
        self._joint: tuple[VisionTask, str] | None = None
        self._data: Any = None
        self.centres: ShardedCentres | None = None
        self._scales: dict[int, float] = {}
        self._frozen: tuple[nn.Module, ...] = ()
        self._seed = 0
        self._place: Mapping[str, Any] | None = None
        # In a tuple, lest Lightning take the averaged weights for a second set of parameters to train and save.
        self._evaluated: tuple[nn.Module] = (self.model,)

    def join(self, owner: VisionTask, name: str, data: Any = None) -> None:
        """Become one of several tasks on one trunk, which another task trains, evaluates and saves.

        The model's weights are the owner's from now on; what else is trained, such as class centres, remains here. What
        is logged goes to the owner under the head's name: ``val/AP`` becomes ``val/ssd/AP``.

        Args:
            owner: Holds the model with all heads.
            name: Of this head.
            data: Its data module; None where the task only evaluates.
        """
        self._joint, self._data = (owner, name), data
        self.__dict__["model"] = self._modules.pop("model")

    @property
    def owner(self) -> VisionTask:
        """The task whose parameters are trained and saved: itself, unless it is one of several."""
        return self if self._joint is None else self._joint[0]

    @property
    def state_prefix(self) -> str:
        """What the names of its own parameters begin with in the owner's state dict."""
        return "" if self._joint is None else f"tasks.{self._joint[1]}."

    @property
    def data(self) -> Any:
        """Its data module."""
        return self.trainer.datamodule if self._data is None else self._data  # type: ignore[attr-defined]

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; one of several tasks logs under its head's name."""
        if self._joint is None:
            super().log(name, value, *args, **kwargs)
        else:
            owner, head = self._joint
            owner.log(joint_name(name, head), value, *args, **{**kwargs, "add_dataloader_idx": False})

    @property
    def evaluation_model(self) -> nn.Module:
        """The weights that metrics are measured on: the average where one is kept."""
        return self._evaluated[0]

    def evaluate_with(self, model: nn.Module) -> None:
        """Measure metrics on ``model`` from now on."""
        self._evaluated = (model,)

    def fine_tune(self, settings: FineTuning) -> None:
        """Freeze parts of the backbone and set the learning rates of the others, before the fit begins.

        Raises:
            UserError: The backbone has fewer blocks than are to be frozen.
        """
        backbone: Any = self.model.backbone
        self._scales, self._frozen = settings.scales(backbone), tuple(settings.frozen(backbone))
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; frozen parts stay in evaluation mode, so their statistics do not move."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def on_train_start(self) -> None:
        """Put frozen parts into evaluation mode; not before, lest Lightning warn of what is meant."""
        for part in self._frozen:
            part.eval()
        self._seed = torch.initial_seed()
        go_on(self.trainer.train_dataloader, self._place)
        self._place = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout, and all else that a step draws, by its place in the run, so that resuming repeats it."""
        place = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer is built on."""
        return parameter_groups(self, self._scales)

    def pixels(self, batch: Any) -> Tensor:
        """The batch's images in the task's memory layout."""
        return batch["images"].contiguous(memory_format=self.memory_format)

    @property
    def labelled(self) -> bool:
        """Whether the data of this fit have labels to score against."""
        if self._data is None and self._trainer is None:
            return True
        return getattr(self.data, "labelled", True)

    @property
    def label_share(self) -> float:
        """Share of the labels' loss in training; 0 where they need not be looked at."""
        return 1.0 if self.distillation is None else self.distillation.labels

    @property
    def gives_maps(self) -> bool:
        """Whether a teacher's feature maps are regressed."""
        return self.distillation is not None and self.distillation.feature_targets is not None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, and what a teacher adds."""
        raw, maps = self.answers(batch)
        return self.learn(raw, batch, maps)

    def learn(self, raw: Any, batch: Any, maps: dict[int, Tensor] | None = None) -> Tensor:
        """Log the losses of a training batch whose raw outputs are known.

        Args:
            raw: The model's raw outputs.
            batch: As the loader gives it.
            maps: The backbone's maps by stride, where a teacher's maps are regressed.

        Returns:
            The loss to learn from.
        """
        return self.learned(self.label_losses(raw, batch) if self.label_share > 0 else None, raw, batch, maps)

    def label_losses(self, raw: Any, batch: Any) -> dict[str, Tensor]:
        """``loss``, and parts of it to log, of raw outputs and the batch's labels."""
        raise NotImplementedError

    def trained_outputs(self, maps: Sequence[Tensor], batch: Any) -> Any:
        """What :meth:`learn` takes, of the backbone's maps for the batch's images."""
        model: Any = self.model
        return model.answer(maps)

    def answers(self, batch: Any, model: Any = None) -> tuple[Any, dict[int, Tensor] | None]:
        """Raw outputs of a batch, and the backbone's maps by stride where a teacher's maps are regressed.

        Args:
            batch: With ``images``.
            model: The trained model, or another one of its kind.
        """
        model = self.model if model is None else model
        if not self.gives_maps:
            return model(self.pixels(batch)), None
        maps = model.features(self.pixels(batch))
        return model.answer(maps), dict(zip(model.backbone.feature_strides, maps, strict=True))

    def learned(
        self, label_losses: Mapping[str, Tensor] | None, student: Any, batch: Any, maps: dict[int, Tensor] | None
    ) -> Tensor:
        """Log the losses of a training batch, the teacher's among them where there is one.

        Args:
            label_losses: ``loss`` and its parts; ``None`` where :attr:`label_share` is 0.
            student: Raw outputs.
            batch: As the loader gives it.
            maps: From :meth:`answers`.

        Returns:
            The loss to learn from.
        """
        losses = dict(label_losses or {})
        if self.distillation is not None:
            losses |= self.distillation.mix(losses.get("loss"), student, batch, maps)
        self.log_losses("train", losses, len(batch["images"]))
        return losses["loss"]

    def compare_with_teacher(self, student: Any, batch: Any, maps: dict[int, Tensor] | None) -> None:
        """Log ``val/distill``, the only score of data without labels.

        Args:
            student: Raw outputs of the evaluated model.
            batch: As the loader gives it.
            maps: From :meth:`answers`.
        """
        assert self.distillation is not None
        loss = self.distillation(student, batch, maps)
        self.log("val/distill", loss, on_step=False, on_epoch=True, batch_size=len(batch["images"]), sync_dist=True)

    def log_losses(self, stage: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Log scalars as ``stage/name``, averaged over the epoch."""
        named = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=stage == "val")

    def on_fit_start(self) -> None:
        """Compile in place, so that state-dict names stay as they are."""
        if self._compile:
            model: Any = self.model
            for part in (model.backbone, model.head) if self.gives_maps else (model,):
                part.compile()

    def configure_optimizers(self) -> Any:
        """No weight decay on BatchNorm, biases and depthwise kernels; the schedule is stepped every step."""
        try:
            optimizer = self._optimizer(self.parameter_groups())
        except (TypeError, ValueError) as error:
            raise UserError(f"the optimizer cannot be built with these settings: {error}") from error
        scale_rates(optimizer)
        if self._scheduler is None:
            return optimizer
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 1:
            raise UserError(
                "the schedule needs to know when the run ends: set trainer.max_epochs or trainer.max_steps above 0"
            )
        accumulated = self.trainer.accumulate_grad_batches
        per_epoch = max(math.ceil(self.trainer.num_training_batches / accumulated), 1)
        scheduler = self._scheduler(optimizer, total_steps=int(total), steps_per_epoch=per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that makes the file usable alone."""
        checkpoint[KEY] = self.metadata.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from a checkpoint of another task, another model, or another fine-tuning."""
        check_resumable(self, checkpoint)
        self._place = place_in_epoch(checkpoint)
        stored = Metadata.from_dict(checkpoint[KEY], Path(self.trainer.ckpt_path or "checkpoint"))
        self.take_up(stored)

    def take_up(self, stored: Metadata) -> None:
        """Go on with what a run being resumed has found out: its calibration.

        Raises:
            UserError: It learned other classes; of those tasks whose classes may change at the same number of them.
        """
        self.metadata.calibration = {**stored.calibration, **self.metadata.calibration}


def joint_name(name: str, head: str) -> str:
    """What is logged of one of several heads: ``val/AP`` of ssd is ``val/ssd/AP``."""
    stage, _, metric = name.partition("/")
    return f"{stage}/{head}/{metric}"
