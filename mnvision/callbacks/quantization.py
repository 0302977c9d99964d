"""Ranges of activations in every checkpoint of a quantisation-aware training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class StoreRanges(pl.Callback):
    """Puts the ranges of a task's ``quantization`` into its metadata.

    Lightning asks callbacks before it asks the task, which then writes the metadata.
    """

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the ranges as they are now: those that the last validation was measured with."""
        task: Any = pl_module
        task.metadata.quantization = task.quantization.to_plain()
