"""The pictures that an int8 file is calibrated and judged on: the user's own, split in two once and for all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.errors import UserError
from mnvision.export.base import INT8, Pixels, Wish, need

FEWEST = 8
"""Pictures below which ranges of activations mean nothing."""
ADVISED = 100


@dataclass(frozen=True)
class Calibration:
    """What the user asks of int8.

    Attributes:
        limit: Pictures to calibrate on, at most.
        held_out: Other pictures to compare file and checkpoint on, at most.
        report: Measure the noise of every layer.
        max_drop: Share of decisions, 0 to 1, that may change; the worst layers stay in float until no more do. None
            keeps no layer in float.

    Raises:
        UserError: A value is out of range.
    """

    limit: int = 256
    held_out: int = 256
    report: bool = False
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "held_out"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < FEWEST:
                raise UserError(f"calibration.{name}={value}: give a whole number of at least {FEWEST}")
        if not isinstance(self.report, bool):
            raise UserError(f"report={self.report}: give true or false")
        drop = self.max_drop
        if drop is not None and (isinstance(drop, bool | str) or not (math.isfinite(drop) and 0 <= drop < 1)):
            raise UserError(f"max_drop={drop}: give the share of decisions that may change, 0 to 1, such as 0.02")


@dataclass(frozen=True)
class Samples:
    """Pictures as the network takes them, ``(N, 3, H, W)`` uint8 RGB.

    Attributes:
        calibration: Ranges of activations and corrections of biases come from these.
        held_out: Others, for what is measured.
    """

    calibration: Pixels
    held_out: Pixels


def check_calibration(wish: Wish, pictures: str | Path | None, calibration: Calibration) -> None:
    """Refuse before work begins what does not go together.

    Raises:
        UserError: int8 without pictures, with an option it has not, or without its packages; or its options without it.
    """
    if wish.precision != INT8:
        if calibration.report or calibration.max_drop is not None:
            raise UserError(f"report and max_drop are for precision=int8, not {wish.precision}: leave them out")
        return
    if wish.resize:
        raise UserError("precision=int8 is measured at the model's resolution only: leave resize=true out")
    if pictures is None:
        raise UserError(
            "precision=int8 is calibrated on real pictures: give pictures=FOLDER, such as that of the training pictures"
        )
    need(("nncf", "onnx", "onnxruntime"), "quantization", "precision=int8")


def read_samples(source: str | Path, prepare: Any, calibration: Calibration) -> Samples:
    """Two disjoint sets of a folder's pictures, drawn at random but the same ones every time.

    A quarter is held out where there are too few for both limits.

    Args:
        source: Folder of pictures, with or without subfolders.
        prepare: How a picture becomes the input, see ``mnvision/prediction/preprocess.py``.
        calibration: How many.

    Raises:
        UserError: There is no such folder, too few pictures are in it, or one cannot be read.
    """
    from mnvision.prediction.inputs import find_pictures

    pictures = find_pictures(source, True, [])
    total = len(pictures.names)
    if total < FEWEST:
        raise UserError(f"pictures={source}: {total} pictures are too few for int8; {ADVISED} or more are advised")
    held = min(calibration.held_out, max(total // 4, total - calibration.limit))
    order = np.random.default_rng(0).permutation(total)
    shown = order[: held + min(calibration.limit, total - held)]
    pixels = np.stack([prepare(pictures.root / pictures.names[index]).pixels for index in shown])
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return Samples(planes[held:], planes[:held])
