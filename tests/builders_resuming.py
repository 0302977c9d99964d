"""Runs that end in the middle, and how what they come to is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from tools import cli
from tools.heads import fold
from tools.run import train

KEPT = (
    # A checkpoint after every optimizer step and no others.
    "+callbacks.last_checkpoint.every_n_train_steps=1",
    "callbacks.last_checkpoint.save_on_train_epoch_end=false",
    "callbacks.checkpoint=null",
    "callbacks.progress=null",
    "logger=none",
    "trainer.accelerator=cpu",
)
STATES = ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")


class PowerCutError(Exception):
    """Ends a run without a word to it."""


class Watch(pl.Callback):
    """Notes the pictures and the learning rates of all batches, and can end the run.

    Args:
        cut: Batches, counted through all epochs, after which the run ends; the next one has been read by then.
    """

    def __init__(self, cut: int | None = None) -> None:
        self.cut = cut
        self.seen: list[tuple[Any, ...]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.fit_loop.total_batch_idx == self.cut:
            raise PowerCutError
        groups = batch.get("groups", [batch])
        pictures = [(tuple(group["images"].shape), hash(group["images"].numpy().tobytes())) for group in groups]
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.seen.append((trainer.current_epoch, batch_idx, *pictures, *rates))


def run(folder: Path, *words: str, cut: int | None = None) -> list[tuple[Any, ...]]:
    """Trains as the command line does; returns what :class:`Watch` has noted."""
    folder.mkdir(parents=True, exist_ok=True)
    watch = ["+callbacks.watch._target_=tests.builders_resuming.Watch", f"+callbacks.watch.cut={cut or 'null'}"]
    given = fold([*words, *KEPT, *watch]) if "task=multitask" in words else [*words, *KEPT, *watch]
    try:
        trainer = train(cli.compose_config("config", [*given, f"paths.output_dir={folder}"]))
    except PowerCutError:
        return []
    (noted,) = [callback.seen for callback in trainer.callbacks if isinstance(callback, Watch)]  # type: ignore
    return noted


def last(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return folder / "checkpoints" / "last.ckpt"


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two nested values are not equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [where]
    if isinstance(one, dict):
        keys = [] if one.keys() == two.keys() else [f"{where}: {sorted(map(str, one.keys() ^ two.keys()))}"]
        return keys + [
            text for key in one.keys() & two.keys() for text in differences(one[key], two[key], f"{where}.{key}")
        ]
    if isinstance(one, list | tuple):
        pairs = enumerate(zip(one, two, strict=True))
        return [text for number, (a, b) in pairs for text in differences(a, b, f"{where}.{number}")]
    return [] if one == two else [f"{where}: {one} and {two}"]


def assert_cut_changes_nothing(
    folder: Path, *words: str, cuts: tuple[int, ...], resume_from: tuple[int, ...] | None = None
) -> None:
    """A run that ends after each of ``cuts`` batches and is resumed is the run that never ended.

    Args:
        folder: For all runs.
        words: Of the command line.
        cuts: Batches, counted through all epochs.
        resume_from: Batches that the last checkpoint before each cut had seen, where they are fewer.
    """
    whole = run(folder / "whole", *words)
    expected = torch.load(last(folder / "whole"), weights_only=True)
    for cut, first in zip(cuts, resume_from or cuts, strict=True):
        own = folder / f"cut{cut}"
        run(own, *words, cut=cut)
        seen = run(own, *words, f"ckpt_path={last(own)}")
        assert seen == whole[first:], cut
        found = torch.load(last(own), weights_only=True)
        assert not [text for key in STATES for text in differences(expected[key], found[key], key)], cut
