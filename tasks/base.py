"""What every task shares: optimizer, schedule, memory layout, and what goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import KEY, Metadata
from mnvision.errors import UserError
from mnvision.optim import SCALE, FineTuning, parameter_groups, scale_rates
from tasks.distillation import Distillation


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
        self._scales: dict[int, float] = {}
        self._frozen: tuple[nn.Module, ...] = ()
        self._seed = 0
        # In a tuple, lest Lightning take the averaged weights for a second set of parameters to train and save.
        self._evaluated: tuple[nn.Module] = (self.model,)

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
        data = None if self._trainer is None else self._trainer.datamodule  # type: ignore[attr-defined]
        return getattr(data, "labelled", True)

    @property
    def label_share(self) -> float:
        """Share of the labels' loss in training; 0 where they need not be looked at."""
        return 1.0 if self.distillation is None else self.distillation.labels

    @property
    def _gives_maps(self) -> bool:
        return self.distillation is not None and self.distillation.feature_targets is not None

    def answers(self, batch: Any, model: Any = None) -> tuple[Any, dict[int, Tensor] | None]:
        """Raw outputs of a batch, and the backbone's maps by stride where a teacher's maps are regressed.

        Args:
            batch: With ``images``.
            model: The trained model, or another one of its kind.
        """
        model = self.model if model is None else model
        if not self._gives_maps:
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
            for part in (model.backbone, model.head) if self._gives_maps else (model,):
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
        stored = checkpoint.get(KEY)
        if stored is None:
            raise UserError("ckpt_path: not one of our checkpoints; weights alone go to backbone.pretrained=FILE")
        if stored["kind"] != self.metadata.kind:
            raise UserError(
                f"ckpt_path: a checkpoint of a {stored['kind']} run cannot resume a {self.metadata.kind} run"
            )
        self.metadata.calibration = {**stored.get("calibration", {}), **self.metadata.calibration}
        own = self.state_dict()
        for key, value in checkpoint["state_dict"].items():
            if key not in own or own[key].shape != value.shape:
                have = tuple(own[key].shape) if key in own else "absent"
                raise UserError(
                    f"ckpt_path: the checkpoint was trained with another model: {key} is {tuple(value.shape)} there "
                    f"and {have} here; repeat the overrides of its run, or use resume=RUN_DIR"
                )
        for key in own.keys() - checkpoint["state_dict"].keys():
            raise UserError(
                f"ckpt_path: the checkpoint was trained without {key}; repeat the overrides of its run, or use "
                "resume=RUN_DIR"
            )
        groups = [(len(group["params"]), group.get(SCALE)) for group in self.parameter_groups()]
        for optimizer in checkpoint.get("optimizer_states", []):
            if [(len(group["params"]), group.get(SCALE)) for group in optimizer["param_groups"]] != groups:
                raise UserError(
                    "ckpt_path: the checkpoint was trained with another fine_tuning.freeze or layer_decay; repeat "
                    "them, or start a new run from its weights with init_from=FILE"
                )
