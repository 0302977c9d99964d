"""Predict: ``python tools/predict.py checkpoint=best.ckpt input=<image|folder|glob|video> output=DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from tools.cli import command, quoted

PATHS = ("checkpoint", "input", "output")


def literal_paths(words: list[str], keys: Sequence[str] = PATHS) -> list[str]:
    """Quote the paths among command-line words: Hydra reads commas, brackets and spaces in its own way."""
    return [_literal(word, keys) for word in words]


def _literal(word: str, keys: Sequence[str]) -> str:
    key, equals, value = word.partition("=")
    if not equals or key not in keys or value[:1] in ("'", '"') or value == "null":
        return word
    return f"{key}={quoted(value)}"


@command("predict", literal_paths)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from rich.console import Console

    from mnvision.errors import UserError
    from mnvision.prediction.folders import Options, predict_pictures
    from mnvision.prediction.inputs import is_video
    from mnvision.prediction.predictor import load_predictor
    from mnvision.prediction.video import predict_video

    for key in PATHS:
        if not cfg[key]:
            raise UserError(f"no {key} given; tools/predict.py needs checkpoint=FILE input=PATH output=FOLDER")
    options = Options(
        output=Path(cfg.output).expanduser(),
        file_format=cfg.format,
        score_threshold=cfg.score_threshold,
        batch_size=cfg.batch_size,
        save_images=cfg.save_images,
        crops=cfg.crops,
        topk=cfg.topk,
        recursive=cfg.recursive,
        stride=cfg.stride,
        attributes=cfg.attributes,
    )
    predictor = load_predictor(cfg.checkpoint, cfg.device)
    run, unit = (predict_video, "frame") if is_video(cfg.input) else (predict_pictures, "picture")
    summary = run(predictor, cfg.input, options, Console())
    print(summary.line(unit))
    print(f"results: {options.output}/ ({', '.join(summary.written)})")


if __name__ == "__main__":
    main()
