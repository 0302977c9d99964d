"""Evaluate a checkpoint: ``python tools/evaluate.py checkpoint=best.ckpt [split=test] [data.root=...]``."""

from __future__ import annotations

from omegaconf import DictConfig

from tools.cli import command, quoted, take
from tools.heads import fold, renewed

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
    from mnvision.export.runtime import open_metadata

    stored = renewed(open_metadata(path).overrides, rest, TRAINING)
    return fold([*stored, f"checkpoint={quoted(path)}", *rest])


@command("evaluate", expand_checkpoint)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from tools.run import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
