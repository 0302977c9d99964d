"""A small Faster R-CNN: its plain config, and the model with outputs that depend on the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnvision.build import build_model
from mnvision.checkpoints import KEY, Metadata
from tests.builders_export import FIELDS, pictures, spread
from tests.builders_models import CLASS_NAMES

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


def spread_config(**head: Any) -> dict[str, Any]:
    """Of a network of 96 px with few proposals of few anchors, for what would take long otherwise."""
    few = {"num_proposals": 12, "pre_nms_top_k": 60, "crop_size": 7, **head}
    config = faster_rcnn_config(num_classes=len(CLASS_NAMES), **few)
    config["backbone"]["variant"] = "shallow"
    config["decoder"] |= {"score_threshold": 0.05, "max_per_class": 8, "max_detections": 25}
    return config


def spread_faster_rcnn(**head: Any) -> Any:
    """The model of :func:`spread_config`, whose answers differ from picture to picture as a trained one's do."""
    torch.manual_seed(0)
    return spread(build_model(spread_config(**head)))


def save_spread(path: Path, class_names: list[str] = CLASS_NAMES) -> Any:
    """The model of :func:`spread_faster_rcnn` as a checkpoint."""
    model = spread_faster_rcnn()
    entry = {"kind": "faster_rcnn", "model": spread_config(), **FIELDS["detection"], "class_names": class_names}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, KEY: Metadata(**entry).to_dict()}, path)
    return model


def grey_last(batch: int, side: int = 96) -> torch.Tensor:
    """``(batch, 3, side, side)`` uint8, the last of them grey: nothing is in it."""
    pixels = torch.from_numpy(pictures(batch, side))
    pixels[-1] = 127
    return pixels


def same_detections(found: Any, expected: Any, scores: float = 2e-6, boxes: float = 1e-3) -> None:
    """Refuse detections with other labels, or with scores or boxes that differ by more."""
    assert torch.equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=boxes)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=scores)
