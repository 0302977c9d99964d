"""A live progress bar where somebody can see one."""

from __future__ import annotations

import sys

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar


class _NoBar(ProgressBar):
    """Stands where a bar would: in a pipe or a log file the per-epoch lines of ``RunFiles`` say it all."""

    def disable(self) -> None:
        """Nothing to switch off."""


def progress_bar(refresh_rate: int = 1) -> pl.Callback:
    """Rich's bar (epoch, ETA, loss, images/s) on a terminal, none elsewhere."""
    return RichProgressBar(refresh_rate=refresh_rate, leave=False) if sys.stdout.isatty() else _NoBar()
