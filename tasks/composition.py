"""From a composed config to a model whose every number is known: class count, padding, weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.backbones.pretrained.weights import PretrainedWeights
from mnvision.backbones.pretrained.width import fit_width
from mnvision.build import build_model
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError

log = logging.getLogger("mnvision")

AUTO = "auto"
# Where weights come from is no part of the model that holds them.
SOURCE_KEYS = ("pretrained", "fit_width")
# What ``auto`` means for a backbone trained from scratch: PyTorch's padding, TF-slim's epsilon.
FROM_SCRATCH = {"padding": "symmetric", "bn_eps": 1e-3}


def compose_model(config: Mapping[str, Any], class_names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """A model for these classes, its backbone filled from ``backbone.pretrained`` where that is given.

    Args:
        config: The composed ``model`` node: backbone, head, decoder, mean, std.
        class_names: From the data.

    Returns:
        The model and its settled config, which holds no ``auto`` and rebuilds it without the weights' source.

    Raises:
        UserError: A class count that contradicts the data, or weights that do not fit.
    """
    source = config["backbone"].get("pretrained")
    weights = read_weights(source) if source else None
    if weights is not None and config["backbone"].get("fit_width") and weights.alpha != config["backbone"]["alpha"]:
        log.info("%s: width multiplier %g fitted to %g", source, weights.alpha, config["backbone"]["alpha"])
        weights = fit_width(weights, config["backbone"]["alpha"])
    settled = settle(config, weights, len(class_names))
    model = build_model(settled)
    if weights is not None:
        _check_pixels(settled, weights)
        report = load_into(model.backbone, weights, model.head, class_names=class_names)
        for line in str(report).splitlines():
            log.info(line)
    return model, settled


def compose_published_classifier(config: Mapping[str, Any]) -> tuple[Any, Metadata]:
    """A classifier exactly as its weights were published: their width, padding, resolution and classes.

    Raises:
        UserError: No source is given, or it holds no classifier or no class names.
    """
    source = config["backbone"].get("pretrained")
    if not source:
        raise UserError("nothing to evaluate: give checkpoint=FILE, or backbone.pretrained=SOURCE with a classifier")
    weights = read_weights(source)
    if weights.classifier is None:
        raise UserError(f"{source} holds no classifier, so there is nothing to score; it can only start a training")
    if weights.class_names is None:
        raise UserError(
            f"{source} has no class names; put one name per line into {source}.labels.txt, in the order of its outputs"
        )
    adopted = {**config["backbone"], **weights.backbone_arguments()}
    if weights.resolution is not None:
        adopted["resolution"] = weights.resolution
    names = list(weights.class_names[1:] if weights.background_first else weights.class_names)
    settled = settle({**config, "backbone": adopted}, weights, len(names))
    if weights.mean is not None and weights.std is not None:
        settled |= {"mean": list(weights.mean), "std": list(weights.std)}
    model = build_model(settled)
    report = load_into(model.backbone, weights, model.head, class_names=names, require_classifier=True)
    for line in str(report).splitlines():
        log.info(line)
    return model.eval(), Metadata(kind=model.kind, model=settled, class_names=names)


def settle(config: Mapping[str, Any], weights: PretrainedWeights | None, num_classes: int | None) -> dict[str, Any]:
    """The model's config with every ``auto`` and the class count replaced by a value.

    Args:
        config: The composed ``model`` node.
        weights: Weights that will be loaded; they decide what ``auto`` is.
        num_classes: From the data; ``None`` takes ``head.num_classes`` as it stands.

    Raises:
        UserError: ``head.num_classes`` contradicts the data, or is needed and not given.
    """
    chosen: dict[str, Any] = dict(FROM_SCRATCH)
    if weights is not None:
        chosen |= {k: v for k, v in weights.backbone_arguments().items() if k in chosen}
    parts = {name: dict(config[name]) for name in ("backbone", "head", "decoder")}
    for key in SOURCE_KEYS:
        parts["backbone"].pop(key, None)
    for name in ("backbone", "head"):
        for key, value in parts[name].items():
            if value == AUTO:
                parts[name][key] = chosen[key]
    if "num_classes" not in parts["head"]:  # an embedding has no classes
        return {**config, **parts}
    stated = parts["head"]["num_classes"]
    if stated is None and num_classes is None:
        raise UserError("head.num_classes is not known without data: give head.num_classes=N")
    if stated is not None and num_classes is not None and stated != num_classes:
        raise UserError(
            f"head.num_classes={stated}, but the data have {num_classes} classes; leave head.num_classes out"
        )
    parts["head"]["num_classes"] = stated if num_classes is None else num_classes
    return {**config, **parts}


def _check_pixels(config: Mapping[str, Any], weights: PretrainedWeights) -> None:
    """Weights expect pixels scaled as in their own training."""
    for key, wanted in (("mean", weights.mean), ("std", weights.std)):
        if wanted is not None and any(abs(a - b) > 1e-3 for a, b in zip(config[key], wanted, strict=True)):
            raise UserError(
                f"model.{key}={list(config[key])}: the weights {weights.source} expect {list(wanted)}: set it so"
            )
