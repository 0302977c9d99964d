"""Non-maximum suppression as ONNX has it, for torch's exporter.

A torch operator without a body stands for ``NonMaxSuppression`` while a graph is traced; the exporter is told how to
write it. It takes all classes of all images at once and names what it keeps, in rows (image, class, candidate).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mnvision.export.suppression import NmsSettings


@torch.library.custom_op("mnvision::onnx_nms", mutates_args=())
def onnx_nms(boxes: Tensor, scores: Tensor, max_per_class: int, iou: float, score: float) -> Tensor:
    """``(N, 3)`` int64 from boxes ``(B, M, 4)`` and scores ``(B, K, M)``; only to be traced."""
    raise NotImplementedError("this operator exists in exported files only")


@onnx_nms.register_fake
def _(boxes: Tensor, scores: Tensor, max_per_class: int, iou: float, score: float) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((rows, 3), dtype=torch.int64)


def translations() -> dict[Any, Callable[..., Any]]:
    """How the exporter writes the operator."""
    import onnxscript

    op: Any = onnxscript.opset18

    def write(boxes: Any, scores: Any, max_per_class: int, iou: float, score: float) -> Any:
        return op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[max_per_class]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[score]),
        )

    return {torch.ops.mnvision.onnx_nms.default: write}


def keep_in_onnx(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, settings: NmsSettings) -> Tensor:
    """The :data:`~mnvision.export.suppression.KeepRule` of ONNX and of what is converted from it."""
    classes = torch.arange(num_classes, device=labels.device)[None, :, None]
    of_class = torch.where(labels[:, None] == classes, scores[:, None], 0.0)
    # All real scores are above the threshold, the zeros are not: runtimes differ in whether equal ones pass.
    lowest = max(settings.score_threshold / 2, 1e-30)
    kept = torch.ops.mnvision.onnx_nms(boxes, of_class, settings.max_per_class, settings.nms_iou, lowest)
    place = kept[:, 0] * scores.shape[1] + kept[:, 2]
    marks = torch.zeros_like(scores).flatten()
    return marks.scatter(0, place, torch.ones_like(place, dtype=marks.dtype)).reshape(scores.shape) > 0
