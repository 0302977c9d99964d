"""What a run leaves beside its checkpoints: metrics.csv, metrics.json and one log line per epoch."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mnvision.errors import UserError
from mnvision.files import whole_file

log = logging.getLogger("mnvision")


class RunFiles(pl.Callback):
    """One row per epoch in ``metrics.csv``; the last and the best validation numbers in ``metrics.json``.

    Args:
        folder: The run folder. A resumed run goes on in the same files.
        monitor: Name of the metric that decides what is best.
        mode: ``"max"`` or ``"min"``.
    """

    def __init__(self, folder: str, monitor: str, mode: str) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.mode = mode
        self.rows: list[dict[str, Any]] = []
        self._images = 0
        self._epoch_start = 0.0
        self._training_seconds = 0.0
        self._validated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the rows of the run being resumed, as far as its checkpoint had come."""
        self._epoch_start = time.perf_counter()  # in the middle of an epoch, no start of one is announced
        path = self.folder / "metrics.csv"
        if trainer.is_global_zero and trainer.ckpt_path and path.is_file():
            with path.open(newline="") as file:
                rows = [_numbers(row) for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._images, self._epoch_start, self._training_seconds = 0, time.perf_counter(), 0.0
        self._validated = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; validation inside the epoch is not training time."""
        self._images += num_images(batch) * trainer.world_size
        self._training_seconds = time.perf_counter() - self._epoch_start
        rate = self._images / self._training_seconds
        pl_module.log("images_per_second", rate, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a run that has diverged before its checkpoint replaces a good one."""
        for name in [name for name in trainer.callback_metrics if name.startswith("val/") and name.endswith("/loss")]:
            _stop_if_diverged(trainer, name)
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files and the log line.

        Raises:
            UserError: The loss is no longer a finite number.
        """
        _stop_if_diverged(trainer, "train/loss")
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["seconds"] = round(time.perf_counter() - self._epoch_start, 2)
        row["images_per_second"] = round(self._images / max(self._training_seconds, 1e-9), 1)
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        if self._validated:  # else these are the numbers of an earlier epoch
            metrics |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        row |= {key: metrics[key] for key in sorted(metrics)}
        self.rows.append(row)
        self._write()
        self._log_line(trainer, row, getattr(pl_module, "headline", ()))

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with whole_file(self.folder / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        scored = [row for row in self.rows if row.get(self.monitor) not in (None, "")]
        pick = max if self.mode == "max" else min
        best = pick(scored, key=lambda row: float(row[self.monitor])) if scored else None
        summary = {"monitor": self.monitor, "mode": self.mode, "last": self.rows[-1], "best": best}
        with whole_file(self.folder / "metrics.json") as path:
            path.write_text(json.dumps(summary, indent=2) + "\n")

    def _log_line(self, trainer: pl.Trainer, row: dict[str, Any], more: Iterable[str]) -> None:
        """Losses and the monitored metric; of several heads the metric of each."""
        names = dict.fromkeys(("train/loss", "val/loss", *more, self.monitor))
        shown = [f"{key} {row[key]:.4f}" for key in names if key in row]
        epochs = trainer.max_epochs or -1
        eta = ""
        if epochs > 0:
            left = (epochs - trainer.current_epoch - 1) * row["seconds"]
            eta = f" | {timedelta(seconds=round(left))} left"
        log.info(
            "epoch %d/%s | %s | %.1f images/s%s",
            row["epoch"] + 1,
            epochs if epochs > 0 else "?",
            " | ".join(shown),
            row["images_per_second"],
            eta,
        )


def num_images(batch: Any) -> int:
    """Pictures in a training batch of one task, or of several heads."""
    groups = batch.get("groups", [batch])
    return sum(len(group["images"]) for group in groups)


def _numbers(row: dict[str, str]) -> dict[str, float]:
    """A row of the file as it was before it was written; what an epoch did not measure is left out."""
    whole = ("epoch", "step")
    return {key: int(value) if key in whole else float(value) for key, value in row.items() if value != ""}


def _stop_if_diverged(trainer: pl.Trainer, name: str) -> None:
    value = trainer.callback_metrics.get(name)
    if value is not None and not math.isfinite(value):
        raise UserError(
            f"{name} is {float(value)} in epoch {trainer.current_epoch + 1}: the run has diverged; lower optimizer.lr, "
            "or set trainer.gradient_clip_val"
        )
