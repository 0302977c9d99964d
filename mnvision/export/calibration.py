"""The pictures that an int8 file is calibrated and judged on: the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.errors import UserError
from mnvision.export.base import INT8, Pixels, Wish
from mnvision.prediction.predictor import Predictor
from mnvision.prediction.preprocess import Prepared
from mnvision.proof.scoring import Scoring

FEWEST = 8
"""Pictures below which ranges of activations mean nothing."""
ADVISED = 100
TRAINED = "training with quantize=qat"
SHOWN = 32
"""Held-out pictures that the noise of layers is measured on, at most: every layer is a run of its own."""


@dataclass(frozen=True)
class Calibration:
    """What the user asks of int8.

    Attributes:
        limit: Pictures to calibrate on, at most.
        held_out: Other pictures to compare file and checkpoint on, at most.
        report: Measure the noise of every layer.
        max_drop: How much of the metric, or which share of decisions where no labels are known, may be lost, 0 to 1;
            the worst layers stay in float until it is no more. None keeps no layer in float.
        latency: Time the file beside one of the same format in float32.

    Raises:
        UserError: A value is out of range.
    """

    limit: int = 256
    held_out: int = 1000
    report: bool = False
    max_drop: float | None = None
    latency: bool = False

    def __post_init__(self) -> None:
        for name in ("limit", "held_out"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < FEWEST:
                raise UserError(f"calibration.{name}={value}: give a whole number of at least {FEWEST}")
        for name in ("report", "latency"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)}: give true or false")
        drop = self.max_drop
        if drop is not None and (isinstance(drop, bool | str) or not (math.isfinite(drop) and 0 <= drop < 1)):
            raise UserError(f"max_drop={drop}: give the share of the metric that may be lost, 0 to 1, such as 0.01")


@dataclass(frozen=True)
class Samples:
    """Pictures as the network takes them.

    Attributes:
        calibration: ``(N, 3, H, W)`` uint8 RGB: ranges of activations and corrections of biases come from these.
        held_out: Others, for what is measured.
        source: What those to calibrate on are, such as "training pictures".
        folder: The folder or file that they were listed from.
        judged_on: Where the others come from.
        scoring: What is true of the others; None where nothing is known.
        why_unscored: In words, where nothing is.
    """

    calibration: Pixels
    held_out: Sequence[Prepared]
    source: str
    folder: str
    judged_on: str
    scoring: Scoring | None = field(default=None, repr=False)
    why_unscored: str = ""

    def uncalibrated(self) -> Samples:
        """The same to judge on, for a checkpoint that brings its ranges with it."""
        return replace(self, calibration=self.calibration[:0], source=TRAINED)

    @property
    def origin(self) -> str:
        """Where the ranges of activations come from."""
        return f"{self.source} of {Path(self.folder).name}" if len(self.calibration) else self.source

    def shown(self) -> Pixels:
        """The first held-out pictures, ``(N, 3, H, W)`` uint8."""
        return planes(self.held_out[:SHOWN])


Source = Callable[[Predictor[Any], Calibration, str], Samples]
"""Where pictures for a model come from: asked once it is known that all else goes together. The last argument names
the head of a multi-task model, and is empty for others."""


def planes(pictures: Sequence[Prepared]) -> Pixels:
    """``(N, 3, H, W)`` uint8 of prepared pictures."""
    pixels = np.stack([picture.pixels for picture in pictures])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def check_calibration(wish: Wish, there: bool, calibration: Calibration) -> None:
    """Refuse before work begins what does not go together.

    Args:
        wish: What the user asks of the file.
        there: Whether there are pictures to calibrate on.
        calibration: What the user asks of int8.

    Raises:
        UserError: int8 without pictures or with an option it has not; or its options without it.
    """
    if wish.precision != INT8:
        if calibration.report or calibration.max_drop is not None:
            raise UserError(f"report and max_drop are for precision=int8, not {wish.precision}: leave them out")
        return
    if wish.any_size:
        raise UserError("precision=int8 is measured at one size: leave resize=true out, or give resize=[HEIGHT,WIDTH]")
    if not there:
        raise UserError(
            "precision=int8 is calibrated on real pictures: give pictures=FOLDER, such as that of the training pictures"
        )


def folder_source(folder: str | Path) -> Source:
    """Pictures of a folder, with or without subfolders; nothing is known of them."""
    return lambda predictor, asked, head: read_samples(folder, predictor.preprocess, asked)


def read_samples(folder: str | Path, prepare: Any, calibration: Calibration) -> Samples:
    """Two disjoint sets of a folder's pictures, drawn at random but the same ones every time.

    A quarter is held out where there are too few for both limits.

    Args:
        folder: Of pictures, with or without subfolders.
        prepare: How a picture becomes the input, see ``mnvision/prediction/preprocess.py``.
        calibration: How many.

    Raises:
        UserError: There is no such folder, too few pictures are in it, or one cannot be read.
    """
    from mnvision.prediction.inputs import find_pictures

    pictures = find_pictures(folder, True, [])
    total = len(pictures.names)
    require_enough(total, f"pictures={folder}")
    held = min(calibration.held_out, max(total // 4, total - calibration.limit))
    order = drawn(total, total)
    shown = order[: held + min(calibration.limit, total - held)]
    prepared = [prepare(pictures.root / pictures.names[index]) for index in shown]
    why = "nothing is known of them"
    return Samples(planes(prepared[held:]), prepared[:held], "pictures", str(folder), f"others of {folder}", None, why)


def require_enough(total: int, what: str) -> None:
    """Refuse too few pictures.

    Raises:
        UserError: Fewer than :data:`FEWEST`.
    """
    if total < FEWEST:
        raise UserError(f"{what}: {total} pictures are too few for int8; {ADVISED} or more are advised")


def drawn(total: int, count: int) -> list[int]:
    """``count`` of ``0 .. total - 1`` at random, the same ones every time."""
    return [int(index) for index in np.random.default_rng(0).permutation(total)[:count]]
