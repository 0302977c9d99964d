"""Scenes in three tints and a small network that tells them apart: int8 keeps such answers, as trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnvision.export.parity import drawn_pictures
from mnvision.files import whole_file
from tests.builders_export import SIDE

COUNT = 40


def tinted(count: int, side: int) -> NDArray[np.uint8]:
    """``(N, side, side, 3)``: drawn scenes, each with one of its three colours brightened in turn."""
    images = drawn_pictures((side, side), count)
    tint = np.eye(3)[np.arange(count) % 3][:, None, None] * 0.8 + 0.2
    return (images * tint).astype(np.uint8)


def planes(images: NDArray[np.uint8]) -> torch.Tensor:
    """``(N, 3, side, side)``."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def write_pictures(folder: Path, images: NDArray[np.uint8]) -> list[Path]:
    """``000.png``, ``001.png``, ... of pictures ``(N, h, w, 3)``."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, pixels in zip(paths, images):
        cv2.imwrite(str(path), pixels[:, :, ::-1])
    return paths


def settle(path: Path) -> None:
    """Make layers that pass their input on, a little changed, and a classifier that tells the tints by their means.

    Random layers amplify rounding, one after the other: what int8 does to them says nothing of trained ones.
    """
    from mnvision.checkpoints import load_model

    model, _ = load_model(path)
    images = planes(tinted(COUNT, SIDE))
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.backbone.modules():
            if isinstance(module, torch.nn.Conv2d) and module.in_channels > 3:
                weight = 0.02 * torch.randn_like(module.weight)
                rows, middle = torch.arange(module.out_channels), module.kernel_size[0] // 2
                weight[rows, rows % weight.shape[1], middle, middle] += 1
                module.weight.copy_(weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
                module.weight.fill_(1)
                module.bias.fill_(2)
        model.train()(images)
        if model.kind == "classification":
            pooled = model.eval().features(images)[-1].mean((2, 3))
            means = torch.stack([pooled[start::3].mean(0) for start in range(3)]) - pooled.mean(0)
            model.head.fc.weight.copy_(4 * means / means.square().sum(1, keepdim=True))
            model.head.fc.bias.copy_(-model.head.fc.weight @ pooled.mean(0))
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {f"model.{name}": value for name, value in model.state_dict().items()}
    with whole_file(path) as target:
        torch.save(content, target)


def onnx_form() -> Any:
    """The format, where its packages are installed."""
    for name in ("nncf", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from mnvision.export.onnx import Onnx

    return Onnx()
