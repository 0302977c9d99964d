"""Evaluate a checkpoint: ``python tools/evaluate.py checkpoint=best.ckpt [split=test] [data.root=...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import check_overrides, command, compose_config, quoted, take
from tools.heads import compose_head, fold, renewed, words_by_head

if TYPE_CHECKING:
    from mnvision.prediction.predictor import Predictor

# What belongs to the training of the checkpoint's run and not to measuring it.
TRAINING = [
    *("hydra", "trainer", "callbacks", "logger", "debug", "ckpt_path", "resume", "backbone.pretrained"),
    *("teacher", "distill", "init_from", "init_head", "fine_tuning", "quantize", "trunk"),
    "paths.output_dir",  # the report would replace the run's own files
]


def expand_checkpoint(words: list[str]) -> list[str]:
    """Put the overrides of the checkpoint's own run before those given now."""
    path, rest = take(words, "checkpoint")
    if path is None or path in ("", "null"):
        return fold(words)
    from mnvision.export.runtime import is_exported, open_metadata

    metadata = open_metadata(path)
    if metadata.heads and is_exported(path) and not any(word.startswith("heads=") for word in rest):
        rest = [f"heads=[{','.join(metadata.heads)}]", *rest]  # it may hold some of its checkpoint's heads only
    if not metadata.overrides and not any(word.startswith(("task=", "experiment=")) for word in rest):
        way = "task=multitask heads=[NAME,...] NAME.data.root=PATH" if metadata.heads else "task=NAME data.root=PATH"
        raise UserError(f"{path} does not say which data it was trained on: add {way}")
    stored = renewed(metadata.overrides, rest, TRAINING)
    return fold([*stored, f"checkpoint={quoted(path)}", *rest])


def head_config(name: str, cfg: DictConfig) -> DictConfig:
    """The config of one head of the run that a config describes.

    Raises:
        UserError: The run has no such head, so nothing says which data are its own.
    """
    found = words_by_head(cfg) if "heads" in cfg else {}
    if name not in found:
        raise UserError(f"head {name}: its checkpoint does not say which data it was trained on")
    return compose_head(name, found[name], cfg)


def data_config(checkpoint: str, words: Sequence[str], predictor: Predictor[Any], head: str) -> DictConfig:
    """What evaluating a checkpoint composes: the data of its own run, or others that ``words`` name.

    Args:
        checkpoint: Its file.
        words: Overrides.
        predictor: Of the checkpoint, or of one head of it; the data come at its resolution.
        head: The head's name, where there are several.

    Raises:
        UserError: It cannot be composed.
    """
    expanded = expand_checkpoint([f"checkpoint={quoted(checkpoint)}", *words, "paths.output_dir=."])
    check_overrides("evaluate", expanded)
    composed = compose_config("evaluate", expanded)
    if head:
        composed = head_config(head, composed)
    composed.backbone.resolution = predictor.preprocess.network[0]
    return composed


@command("evaluate", expand_checkpoint)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from tools.run import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
