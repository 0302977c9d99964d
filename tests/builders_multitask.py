"""Tiny multi-task checkpoints, saved as a training run saves them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from mnvision.build import build_model
from mnvision.checkpoints import KEY, Metadata
from mnvision.multitask import MultiTaskModel, single_weights
from tests.builders_embeddings import EMBEDDER
from tests.builders_models import CATEGORY_IDS, CLASS_NAMES, CLASSIFIER, DETECTOR, SIDE

ATTRIBUTES = ["Smiling", "Male", "Young"]
THRESHOLDS = [0.5, 0.3, 0.7]
ATTRIBUTER: dict[str, Any] = {
    **CLASSIFIER,
    "_target_": "mnvision.models.AttributeClassifier",
    "decoder": {"_target_": "mnvision.heads.attributes.AttributeScores"},
}
FASTER: dict[str, Any] = {
    **CLASSIFIER,
    "_target_": "mnvision.models.FasterRCNN",
    "backbone": {**CLASSIFIER["backbone"], "out_strides": [16], "tail": True},
    "head": {
        "_target_": "mnvision.heads.faster_rcnn.FasterRCNNHead",
        "num_classes": 3,
        "resolution": 96,
        "alpha": 0.25,
        "num_proposals": 8,
    },
    "decoder": {"_target_": "mnvision.boxes.postprocess.RegionDecoder", "score_threshold": 0.05},
}
STRETCH = {"resize": "stretch"}
CROP = {"resize": "center_crop", "crop_fraction": 0.875}

MODELS: dict[str, dict[str, Any]] = {
    "ssd": DETECTOR,
    "attributes": ATTRIBUTER,
    "embedding": EMBEDDER,
    "classifier": CLASSIFIER,
}
HEADS: dict[str, dict[str, Any]] = {
    "ssd": Metadata("detection", {}, CLASS_NAMES, CATEGORY_IDS, STRETCH).as_head(),
    "attributes": Metadata(
        "face_attributes", {}, ATTRIBUTES, preprocess=STRETCH, calibration={"thresholds": THRESHOLDS}
    ).as_head(),
    "embedding": Metadata(
        "face_embeddings", {}, [], preprocess=STRETCH, calibration={"similarity": 0.4, "mirror": True}
    ).as_head(),
    "classifier": Metadata("classification", {}, CLASS_NAMES, preprocess=CROP).as_head(),
}


def at(config: dict[str, Any], resolution: int) -> dict[str, Any]:
    """A model's config at another resolution."""
    changed = deepcopy(config)
    changed["backbone"]["resolution"] = resolution
    if "resolution" in changed["head"]:
        changed["head"]["resolution"] = resolution
    return changed


def joint_config(*names: str, norms: str = "shared", **models: dict[str, Any]) -> dict[str, Any]:
    """The config of a model of these heads; ``models`` replaces those of :data:`MODELS` or adds to them."""
    heads = {name: deepcopy((MODELS | models)[name]) for name in (names or MODELS)}
    return {"_target_": "mnvision.multitask.MultiTaskModel", "heads": heads, "norms": norms}


def joint_model(*names: str, seed: int = 0, **options: Any) -> MultiTaskModel:
    """An untrained model in eval mode whose answers depend on the picture; see :func:`joint_config`."""
    torch.manual_seed(seed)
    model: MultiTaskModel = build_model(joint_config(*names, **options))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    for parameter in model.heads.parameters():
        if parameter.ndim > 1:  # untrained predictors are nearly constant
            torch.nn.init.normal_(parameter, std=3.0 / parameter[0].numel() ** 0.5)
    # One batch of blotches sets the running statistics; without, deep layers of an untrained net are zero.
    model.train()
    with torch.no_grad():
        for resolution, heads in model.passes():
            model(blotches(16, resolution[0]), heads)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.03
    return model.eval()


def blotches(count: int = 2, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """``(count, 3, side, side)`` uint8, coloured and different."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 6, 6, generator=generator).mul(255).to(torch.uint8)
    return torch.nn.functional.interpolate(small, size=(side, side))


def save_joint(path: Path, *names: str, heads: dict[str, Any] | None = None, **options: Any) -> MultiTaskModel:
    """A multi-task checkpoint; ``heads`` replaces entries of :data:`HEADS`; for ``options`` see :func:`joint_model`."""
    model = joint_model(*names, **options)
    options.pop("seed", None)
    entries = {name: (HEADS | (heads or {}))[name] for name in model.names}
    metadata = Metadata("multitask", joint_config(*names, **options), [], heads=entries)
    write(path, model.state_dict(), metadata)
    return model


def save_part(path: Path, joint: Path, name: str, **changes: Any) -> None:
    """One head of a multi-task checkpoint as the single-task checkpoint that it could have come from."""
    content = torch.load(joint, weights_only=True)
    metadata = Metadata.from_dict(content[KEY], joint)
    model: MultiTaskModel = build_model(metadata.model)
    model.load_state_dict({key.removeprefix("model."): value for key, value in content["state_dict"].items()})
    single = metadata.head(name)
    for key, value in changes.items():
        setattr(single, key, value)
    write(path, single_weights(model, name), single)


def write(path: Path, weights: dict[str, torch.Tensor], metadata: Metadata, **more: Any) -> None:
    """A checkpoint file."""
    state = {f"model.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": state, KEY: metadata.to_dict(), **more}, path)


def leaves(answer: Any) -> list[torch.Tensor]:
    """The tensors of raw or decoded answers."""
    if isinstance(answer, dict):
        return [leaf for value in answer.values() for leaf in leaves(value)]
    return [answer]


def same(first: Any, second: Any) -> bool:
    """Whether answers are equal number for number."""
    return all(torch.equal(one, two) for one, two in zip(leaves(first), leaves(second), strict=True))
