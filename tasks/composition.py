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
from mnvision.checkpoints import Metadata, read_metadata
from mnvision.errors import UserError
from tasks.starting import start_head

log = logging.getLogger("mnvision")

AUTO = "auto"
# Where weights come from is no part of the model that holds them.
SOURCE_KEYS = ("pretrained", "fit_width")
HALF_GREY_LEVEL = 0.5
# What ``auto`` means for a backbone trained from scratch: PyTorch's padding, TF-slim's epsilon.
FROM_SCRATCH = {"padding": "symmetric", "bn_eps": 1e-3}


def compose_model(
    config: Mapping[str, Any], class_names: Sequence[str], init_from: str | None = None, init_head: bool = False
) -> tuple[Any, dict[str, Any]]:
    """A model for these classes, its backbone filled from ``backbone.pretrained`` or a checkpoint where one is given.

    Args:
        config: The composed ``model`` node: backbone, head, decoder, mean, std.
        class_names: From the data.
        init_from: A checkpoint of ours, of any kind, or a published detector, whose backbone to start from; of a
            detector its extra layers and box predictors too.
        init_head: Start the head's rows from that checkpoint's too, for classes of the same name.

    Returns:
        The model and its settled config, which holds no ``auto`` and rebuilds it without the weights' source.

    Raises:
        UserError: A class count that contradicts the data, or weights that do not fit.
    """
    source = _source(config["backbone"].get("pretrained"), init_from, init_head)
    weights = fitted_weights(source, config["backbone"]) if source else None
    settled = settle(config, weights, len(class_names))
    if weights is not None:
        settled |= pixels_for(settled, weights)
    model = build_model(settled)
    if weights is not None:
        report = load_into(model.backbone, weights, None if init_from else model.head, class_names=class_names)
        lines = str(report).splitlines()
        # Of a checkpoint's head start_head tells.
        for line in (lines[0], *report.notes) if init_from else lines:
            log.info(line)
    if init_from:
        start_head(model, class_names, init_from, init_head)
    return model, settled


def fitted_weights(source: str, backbone: Mapping[str, Any]) -> PretrainedWeights:
    """The weights of a source, fitted to the backbone's width where its config asks for that."""
    weights = read_weights(source)
    if backbone.get("fit_width") and weights.alpha != backbone["alpha"]:
        log.info("%s: width multiplier %g fitted to %g", source, weights.alpha, backbone["alpha"])
        weights = fit_width(weights, backbone["alpha"])
    return weights


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


def _source(pretrained: str | None, init_from: str | None, init_head: bool) -> str | None:
    """Where the backbone's weights come from.

    Raises:
        UserError: Two sources, a head without a checkpoint, or a file that is none of our checkpoints.
    """
    if init_head and not init_from:
        raise UserError("init_head=true takes the head of the checkpoint that init_from=FILE names: give that too")
    if init_from and pretrained:
        raise UserError(f"init_from={init_from} and backbone.pretrained={pretrained}: two starts; keep one of them")
    if init_from:
        read_metadata(init_from)
    return init_from or pretrained


def pixels_for(config: Mapping[str, Any], weights: PretrainedWeights) -> dict[str, list[float]]:
    """Mean and standard deviation that the weights expect: TFLite's 128 and our 127.5 both mean -1 to 1.

    Raises:
        UserError: The config has others.
    """
    expected = {"mean": weights.mean, "std": weights.std}
    for key, wanted in expected.items():
        if wanted is not None and any(abs(a - b) > HALF_GREY_LEVEL for a, b in zip(config[key], wanted, strict=True)):
            raise UserError(
                f"model.{key}={list(config[key])}: the weights {weights.source} expect {list(wanted)}: set it so"
            )
    return {key: list(wanted) for key, wanted in expected.items() if wanted is not None}
