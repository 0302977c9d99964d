"""mnvision: multi-task vision on one MobileNetV1 backbone.

``mnvision.load("best.ckpt").predict("photo.jpg")`` is the whole public face; everything else is imported from
the module that defines it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mnvision.prediction.predictor import Predictor

__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu") -> Predictor:
    """A predictor from a checkpoint or an exported file alone.

    Args:
        path: A ``.ckpt`` written by ``tools/train.py``, or an ``.onnx``, ``.xml``, ``.pt2``, ``.tflite`` or ``.pte``
            written by ``tools/export.py``, or a published SSD MobileNetV1 (``.tflite``).
        device: Where a checkpoint's model runs, e.g. ``"cpu"`` or ``"cuda"``.

    Raises:
        mnvision.errors.UserError: The file is missing, corrupt, or none of ours.
    """
    from mnvision.prediction.predictor import load_predictor  # torch loads only when a model is wanted

    return load_predictor(path, device)
