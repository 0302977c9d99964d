"""Predict: ``python tools/predict.py checkpoint=best.ckpt input=<image|folder|glob|video> output=DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
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


def listed_heads(words: Sequence[str]) -> list[str]:
    """``heads=[a,b]`` as ``heads={a:[],b:[]}``: a list, Hydra would take for choices of the group ``conf/head_tasks``.

    Raises:
        UserError: A head is named twice.
    """
    return [_as_mapping(word) if word.startswith("heads=") else word for word in words]


def _as_mapping(word: str) -> str:
    from mnvision.errors import UserError

    value = OverridesParser.create().parse_override(word).value()
    if value is None or isinstance(value, dict):
        return word
    names = [str(name) for name in value] if isinstance(value, list) else [str(value)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{word}: {name} is named twice; give each once")
        if not name.isidentifier():
            raise UserError(f"{word}: {name!r} cannot be a head's name")
    if not names:
        raise UserError("heads=[]: give at least one, or leave it out for all")
    return f"heads={{{','.join(f'{name}:[]' for name in names)}}}"


def names_of(value: Any) -> list[str]:
    """Names given as a list, as one word, or as the keys of a mapping."""
    if value is None:
        return []
    return [str(name) for name in value] if isinstance(value, ListConfig | DictConfig) else [str(value)]


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

    predictor, heads, onward = load_predictor(cfg.checkpoint, cfg.device), names_of(cfg.heads), names_of(cfg.crops_to)
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


@command("predict", lambda words: listed_heads(literal_paths(words)))
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
