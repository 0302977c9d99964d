"""What every task shares: optimizer, schedule, memory layout, and what goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import KEY, Metadata
from mnvision.errors import UserError
from mnvision.optim import parameter_groups


class VisionTask(pl.LightningModule):
    """A model, how it learns, and its metadata.

    Args:
        model: One of ``mnvision.models``; trained and shipped.
        metadata: Stored in every checkpoint.
        optimizer: Called with parameter groups.
        scheduler: Called with the optimizer, ``total_steps`` and ``steps_per_epoch``; ``None`` keeps the rate.
        channels_last: Memory layout of images and weights; faster on CPUs and on tensor cores.
        compile: Compile the model with ``torch.compile`` for training.
    """

    def __init__(
        self,
        model: nn.Module,
        metadata: Metadata,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model: nn.Module = model.to(memory_format=self.memory_format)
        self.metadata = metadata
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._compile = compile
        # In a tuple, lest Lightning take the averaged weights for a second set of parameters to train and save.
        self._evaluated: tuple[nn.Module] = (self.model,)

    @property
    def evaluation_model(self) -> nn.Module:
        """The weights that metrics are measured on: the average where one is kept."""
        return self._evaluated[0]

    def evaluate_with(self, model: nn.Module) -> None:
        """Measure metrics on ``model`` from now on."""
        self._evaluated = (model,)

    def pixels(self, batch: Any) -> Tensor:
        """The batch's images in the task's memory layout."""
        return batch["images"].contiguous(memory_format=self.memory_format)

    def on_fit_start(self) -> None:
        """Compile in place, so that state-dict names stay as they are."""
        if self._compile:
            self.model.compile()

    def configure_optimizers(self) -> Any:
        """No weight decay on BatchNorm, biases and depthwise kernels; the schedule is stepped every step."""
        try:
            optimizer = self._optimizer(parameter_groups(self))
        except (TypeError, ValueError) as error:
            raise UserError(f"the optimizer cannot be built with these settings: {error}") from error
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
        """Refuse to resume from a checkpoint of another task or another model."""
        stored = checkpoint.get(KEY)
        if stored is None:
            raise UserError("ckpt_path: not one of our checkpoints; weights alone go to backbone.pretrained=FILE")
        if stored["kind"] != self.metadata.kind:
            raise UserError(
                f"ckpt_path: a checkpoint of a {stored['kind']} run cannot resume a {self.metadata.kind} run"
            )
        own = self.state_dict()
        for key, value in checkpoint["state_dict"].items():
            if key not in own or own[key].shape != value.shape:
                have = tuple(own[key].shape) if key in own else "absent"
                raise UserError(
                    f"ckpt_path: the checkpoint was trained with another model: {key} is {tuple(value.shape)} there "
                    f"and {have} here; repeat the overrides of its run, or use resume=RUN_DIR"
                )
