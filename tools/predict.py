"""Predict: ``python tools/predict.py checkpoint=best.ckpt input=<image|folder|glob|video> output=DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from tools.cli import command, quoted

if TYPE_CHECKING:
    from mnvision.prediction.predictor import Predictor

PATHS = ("checkpoint", "input", "output")


def literal_paths(words: list[str], keys: Sequence[str] = (*PATHS, "crops_checkpoint")) -> list[str]:
    """Quote the paths among command-line words: Hydra reads commas, brackets and spaces in its own way."""
    return [_literal(word, keys) for word in words]


def _literal(word: str, keys: Sequence[str]) -> str:
    key, equals, value = word.partition("=")
    if not equals or key not in keys or value[:1] in ("'", '"') or value == "null":
        return word
    return f"{key}={quoted(value)}"


def names_of(value: Any) -> list[str]:
    """Names given as a list, as one word, or as the keys of a mapping; none where nothing is given."""
    if value is None:
        return []
    return [str(name) for name in value] if isinstance(value, ListConfig | DictConfig) else [str(value)]


def heads_of(value: Any, option: str = "heads") -> list[str]:
    """Heads that an option names; none stands for all.

    Raises:
        UserError: An empty list, or a head that is named twice.
    """
    from mnvision.errors import UserError

    names = names_of(value)
    if value is not None and not names:
        raise UserError(f"{option}=[]: give at least one, or leave it out")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{option}=[{','.join(names)}]: {twice} is named twice; give each once")
    return names


def chosen_heads(predictor: Predictor[Any], heads: Sequence[str], option: str = "heads") -> Predictor[Any]:
    """The predictor with some heads only; all of them where none is named.

    Raises:
        UserError: It has a single head, or not these.
    """
    from mnvision.errors import UserError
    from mnvision.prediction.multitask import MultiTaskPredictor

    if not heads:
        return predictor
    if not isinstance(predictor, MultiTaskPredictor):
        raise UserError(f"{option}={list(heads)}: this is a {predictor.kind} checkpoint of one head: leave it out")
    return predictor.only(heads)


def open_predictor(cfg: DictConfig) -> Predictor[Any]:
    """What the command asks for: a model, some of its heads, or a detector and heads that answer for its boxes.

    Raises:
        UserError: Files that cannot be used, or options that do not go together.
    """
    from mnvision.errors import UserError
    from mnvision.prediction.predictor import load_predictor
    from mnvision.prediction.two_stage import Crops, TwoStagePredictor

    heads, onward = heads_of(cfg.heads), heads_of(cfg.crops_to, "crops_to")
    predictor = load_predictor(cfg.checkpoint, cfg.device)
    if not onward and not cfg.crops_checkpoint:
        for option in ("crops_of", "crop_classes", "crop_margin"):
            if cfg[option] is not None:
                raise UserError(f"{option}={cfg[option]}: needs crops_to=[HEAD,...], or crops_checkpoint=FILE")
        return chosen_heads(predictor, heads)
    second = load_predictor(cfg.crops_checkpoint, cfg.device) if cfg.crops_checkpoint else predictor
    second = chosen_heads(second, onward, "crops_to")
    if not heads and not cfg.crops_checkpoint:
        heads = [name for name in predictor.parts if name not in onward]
        if not heads:
            raise UserError(f"crops_to={onward}: leaves no head to detect the boxes; give detectors by heads=[...]")
    margin = 0.0 if cfg.crop_margin is None else cfg.crop_margin
    crops = Crops(cfg.crops_of, names_of(cfg.crop_classes), margin)
    return TwoStagePredictor(chosen_heads(predictor, heads), second, crops)


@command("predict", literal_paths)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from rich.console import Console

    from mnvision.errors import UserError
    from mnvision.prediction.folders import Options, predict_pictures
    from mnvision.prediction.inputs import is_video
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
    predictor = open_predictor(cfg)
    run, unit = (predict_video, "frame") if is_video(cfg.input) else (predict_pictures, "picture")
    summary = run(predictor, cfg.input, options, Console())
    print(summary.line(unit))
    print(f"results: {options.output}/ ({', '.join(summary.written)})")


if __name__ == "__main__":
    main()
