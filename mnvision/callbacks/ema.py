"""Exponential moving average of the weights, used for every evaluation while it is on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mnvision.checkpoints import EMA_KEY, load_weights
from mnvision.errors import UserError


class EMA(pl.Callback):
    """Average of the model's weights and BatchNorm statistics over the optimizer's steps.

    The task's own weights are never swapped: validation runs on the averaged copy, and a checkpoint holds both
    (``state_dict`` to go on training, ``ema_state_dict`` to use). After ``t`` steps the decay is
    ``min(decay, (1 + t) / (10 + t))``, so early averages forget the random start; ``t`` is Lightning's own step
    count, hence a resumed run continues where it was.

    Args:
        decay: In [0, 1). The average spans about ``1 / (1 - decay)`` steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: give a value in [0, 1), or callbacks.ema=null")
        self.decay = decay
        self.averaged: nn.Module | None = None
        self._last_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the model once, before weights are restored."""
        if stage == "fit":
            self.averaged = deepcopy(_model(pl_module)).eval().requires_grad_(False)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average on resume; a run that had none starts averaging from its weights."""
        if self.averaged is None:
            return
        prefix = "model."
        state = checkpoint["state_dict"]
        raw = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        load_weights(self.averaged, checkpoint.get(EMA_KEY) or raw, Path(trainer.ckpt_path or "checkpoint"))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the average from now on."""
        assert self.averaged is not None
        self.averaged.to(pl_module.device)
        cast("Any", pl_module).evaluate_with(self.averaged)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on counting where a resumed run had come."""
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average after each optimizer step (not after each accumulated batch)."""
        if trainer.global_step == self._last_step or self.averaged is None:
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + self._last_step) / (10 + self._last_step))
        ours, theirs = self.averaged.state_dict(), _model(pl_module).state_dict()
        floats = [key for key, value in ours.items() if value.is_floating_point()]
        averaged: list[Tensor] = [ours[key] for key in floats]
        torch._foreach_lerp_(averaged, [theirs[key] for key in floats], 1 - decay)
        for key in ours.keys() - set(floats):  # BatchNorm's batch counters
            ours[key].copy_(theirs[key])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averaged weights beside the raw ones."""
        if self.averaged is not None:
            checkpoint[EMA_KEY] = self.averaged.state_dict()


def _model(pl_module: pl.LightningModule) -> nn.Module:
    return cast("nn.Module", pl_module.model)
