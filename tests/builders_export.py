"""Checkpoints of every kind whose answers differ from picture to picture, as a trained network's do."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnvision.build import build_model
from mnvision.checkpoints import KEY, Metadata
from mnvision.errors import UserError
from tests.builders_models import CLASS_NAMES, picture

SIDE = 64
ATTRIBUTES = ["Smiling", "Hat", "Beard", "Glasses"]
_PARTS: dict[str, Any] = {
    "mean": [120.0, 127.5, 130.0],
    "std": [127.5, 127.5, 120.0],
    "backbone": {
        "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
        "alpha": 0.25,
        "resolution": SIDE,
        "padding": "tf_same",
    },
}


def _vectors(model: str, head: dict[str, Any], decoder: str) -> dict[str, Any]:
    return {"_target_": f"mnvision.models.{model}", **_PARTS, "head": head, "decoder": {"_target_": decoder}}


def _head(name: str, count: int) -> dict[str, Any]:
    return {"_target_": f"mnvision.heads.{name}", "num_classes": count}


CONFIGS: dict[str, dict[str, Any]] = {
    "classification": _vectors(
        "Classifier", _head("classifier.ClassifierHead", 3), "mnvision.heads.classifier.ClassScores"
    ),
    "face_attributes": _vectors(
        "AttributeClassifier", _head("attributes.AttributeHead", 4), "mnvision.heads.attributes.AttributeScores"
    ),
    "face_embeddings": _vectors(
        "Embedder",
        {
            "_target_": "mnvision.heads.embedding.EmbeddingHead",
            "resolution": SIDE,
            "dim": 16,
            "pooling": "depthwise",
        },
        "mnvision.heads.embedding.UnitLength",
    ),
    "detection": {
        **_PARTS,
        "_target_": "mnvision.models.Detector",
        "backbone": {**_PARTS["backbone"], "variant": "shallow", "out_strides": [8, 16]},
        "head": {
            "_target_": "mnvision.heads.ssd.SSDHead",
            "num_classes": len(CLASS_NAMES),
            "resolution": SIDE,
            "alpha": 0.25,
            "extra_channels": [128],
            "class_prior": 0.3,
        },
        "decoder": {
            "_target_": "mnvision.boxes.postprocess.SSDDecoder",
            "score_threshold": 0.05,
            "pre_nms_top_k": 150,
            "max_per_class": 8,
            "max_detections": 15,
        },
    },
}
FIELDS: dict[str, dict[str, Any]] = {
    "classification": {
        "class_names": CLASS_NAMES,
        "preprocess": {"resize": "center_crop", "crop_fraction": 0.875},
    },
    "face_attributes": {
        "class_names": ATTRIBUTES,
        "preprocess": {"resize": "stretch"},
        "calibration": {"thresholds": [0.4, 0.5, 0.6, 0.7]},
    },
    "face_embeddings": {
        "class_names": [],
        "preprocess": {"resize": "stretch"},
        "calibration": {"similarity": 0.31},
    },
    "detection": {"class_names": CLASS_NAMES, "category_ids": [1, 7, 90], "preprocess": {"resize": "stretch"}},
}


def config_of(kind: str, classes: int | None, decoder: dict[str, Any]) -> dict[str, Any]:
    """The model's config with another number of classes and other settings of the decoder."""
    config = deepcopy(CONFIGS[kind])
    config["decoder"] |= decoder
    if classes is not None:
        config["head"]["num_classes"] = classes
    return config


def build(kind: str, classes: int | None = None, **decoder: Any) -> Any:
    """A model in eval mode; ``decoder`` replaces settings of its decoder."""
    torch.manual_seed(0)
    return spread(build_model(config_of(kind, classes, decoder)))


def spread(model: Any) -> Any:
    """A model in eval mode with random weights and statistics that make answers differ."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = 0.2 * torch.randn_like(module.running_mean)
            module.running_var = torch.rand_like(module.running_var) + 0.5
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval().requires_grad_(False)


def save(path: Path, kind: str, classes: int | None = None, **metadata: Any) -> Any:
    """The model of :func:`build` as a checkpoint; ``metadata`` replaces fields in the file."""
    model = build(kind, classes)
    entry = {"kind": kind, "model": config_of(kind, classes, {}), **FIELDS[kind], **metadata}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, KEY: Metadata(**entry).to_dict()}, path)
    return model


def pictures(count: int, side: int) -> NDArray[np.uint8]:
    """``(N, 3, side, side)`` uint8."""
    return np.stack([picture(seed, side, side) for seed in range(count)]).transpose(0, 3, 1, 2).copy()


def litert_form() -> Any:
    """LiteRT, where its runtime and an environment with its converter are there; a visible skip elsewhere."""
    import pytest

    from mnvision.export.litert import LiteRT

    try:
        LiteRT().require()
    except UserError as error:
        pytest.skip(str(error))
    return LiteRT()


def executorch_form() -> Any:
    """ExecuTorch, where it is installed; a visible skip elsewhere."""
    import pytest

    pytest.importorskip("executorch", reason="mnvision[executorch] is not installed")
    from mnvision.export.executorch import ExecuTorch

    return ExecuTorch()
