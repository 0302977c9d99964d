"""Tiny untrained checkpoints, saved as a training run saves them, and pictures to try them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.build import build_model
from mnvision.checkpoints import KEY, Metadata

SIDE = 96
CLASS_NAMES = ["cat", "dog", "a/b"]
CATEGORY_IDS = [1, 7, 90]
_PIXELS = {"mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5]}
_BACKBONE = {
    "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
    "alpha": 0.25,
    "resolution": SIDE,
}

DETECTOR: dict[str, Any] = {
    "_target_": "mnvision.models.Detector",
    **_PIXELS,
    "backbone": {**_BACKBONE, "out_strides": [16, 32]},
    "head": {
        "_target_": "mnvision.heads.ssd.SSDHead",
        "num_classes": len(CLASS_NAMES),
        "resolution": SIDE,
        "alpha": 0.25,
    },
    "decoder": {
        "_target_": "mnvision.boxes.postprocess.SSDDecoder",
        "score_threshold": 0.05,
        "max_detections": 20,
    },
}
CLASSIFIER: dict[str, Any] = {
    "_target_": "mnvision.models.Classifier",
    **_PIXELS,
    "backbone": _BACKBONE,
    "head": {"_target_": "mnvision.heads.classifier.ClassifierHead", "num_classes": len(CLASS_NAMES)},
    "decoder": {"_target_": "mnvision.heads.classifier.ClassScores"},
}


def save_checkpoint(path: Path, config: dict[str, Any], **metadata: Any) -> torch.nn.Module:
    """An untrained model whose outputs depend on the picture; ``metadata`` replaces fields in the file."""
    torch.manual_seed(0)
    model = build_model(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    for parameter in model.head.parameters():
        if parameter.ndim > 1:  # untrained predictors are nearly constant
            torch.nn.init.normal_(parameter, std=3.0 / parameter[0].numel() ** 0.5)
    # One batch of blotches sets the running statistics; without, deep layers of an untrained net are zero.
    with torch.no_grad():
        blotches = torch.rand(16, 3, 6, 6).mul(255).to(torch.uint8)
        model.train()(torch.nn.functional.interpolate(blotches, size=(SIDE, SIDE)))
    model.eval()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    detection = config is DETECTOR
    entry = {
        "kind": "detection" if detection else "classification",
        "model": config,
        "class_names": CLASS_NAMES,
        "category_ids": CATEGORY_IDS if detection else [],
        "preprocess": {"resize": "stretch"} if detection else {"resize": "center_crop", "crop_fraction": 0.875},
    }
    torch.save({"state_dict": state, KEY: Metadata(**(entry | metadata)).to_dict()}, path)
    return model


def save_detector(path: Path, **metadata: Any) -> torch.nn.Module:
    """See :func:`save_checkpoint`."""
    return save_checkpoint(path, DETECTOR, **metadata)


def save_classifier(path: Path, **metadata: Any) -> torch.nn.Module:
    """See :func:`save_checkpoint`."""
    return save_checkpoint(path, CLASSIFIER, **metadata)


def picture(seed: int = 0, height: int = 120, width: int = 200) -> NDArray[np.uint8]:
    """Coloured blotches, different in every corner."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def files_below(folder: Path) -> set[str]:
    """Paths of all files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
