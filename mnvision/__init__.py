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
    """A predictor from a checkpoint file alone.

    Args:
        path: A ``.ckpt`` written by ``tools/train.py``.
        device: Where the model runs, e.g. ``"cpu"`` or ``"cuda"``.

    Raises:
        mnvision.errors.UserError: The file is missing, corrupt, or not a checkpoint of ours.
    """
    from mnvision.prediction.predictor import load_predictor  # torch loads only when a model is wanted

    return load_predictor(path, device)
