"""A small Faster R-CNN: its plain config, and the model with outputs that depend on the picture."""

from __future__ import annotations

from typing import Any

import torch

from mnvision.build import build_model

PIXELS = {"mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5]}


def faster_rcnn_config(num_classes: int = 3, resolution: int = 96, alpha: float = 0.25, **head: Any) -> dict[str, Any]:
    """As ``task=faster_rcnn_coco`` composes it; ``head`` replaces arguments of the head."""
    return {
        "_target_": "mnvision.models.FasterRCNN",
        **PIXELS,
        "backbone": {
            "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
            "alpha": alpha,
            "resolution": resolution,
            "out_strides": [16],
            "tail": True,
        },
        "head": {
            "_target_": "mnvision.heads.faster_rcnn.FasterRCNNHead",
            "num_classes": num_classes,
            "resolution": resolution,
            "alpha": alpha,
            **head,
        },
        "decoder": {"_target_": "mnvision.boxes.postprocess.RegionDecoder"},
    }


def faster_rcnn(**options: Any) -> torch.nn.Module:
    """An untrained one in evaluation mode, from fixed random weights."""
    torch.manual_seed(0)
    return build_model(faster_rcnn_config(**options)).eval()
