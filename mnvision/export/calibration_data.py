"""Calibration on a data set: its training pictures set the ranges, its validation pictures and labels judge."""

from __future__ import annotations

from typing import Any

from mnvision.errors import UserError
from mnvision.export.calibration import Calibration, Samples, drawn, planes, require_enough
from mnvision.prediction.predictor import Predictor
from mnvision.prediction.preprocess import Prepared
from mnvision.proof.answers import prepare
from mnvision.proof.scoring import Scoring
from mnvision.proof.truth import positions_of, scoring_of


def data_samples(data: Any, predictor: Predictor[Any], calibration: Calibration) -> Samples:
    """Training pictures drawn at random but the same ones every time, and validation pictures spread over their split.

    All are shown as in evaluation, without augmentation, by the checkpoint's own rule.

    Args:
        data: A data module whose training and validation pictures are listed.
        predictor: Of the checkpoint.
        calibration: How many.

    Raises:
        UserError: There are too few training pictures, none to validate on, or one cannot be read.
    """
    total = data.num_images("train")
    require_enough(total, f"the training pictures of {_name(data, 'train')}")
    train = data.eval_dataset("train", None)
    shown = [prepare(predictor, train, position) for position in drawn(total, min(calibration.limit, total))]
    held, scoring, why = _judging(data, predictor, calibration)
    judged_on = f"validation pictures of {_name(data, 'val')}"
    return Samples(planes(shown), held, "training pictures", _name(data, "train"), judged_on, scoring, why)


def _judging(
    data: Any, predictor: Predictor[Any], calibration: Calibration
) -> tuple[list[Prepared], Scoring | None, str]:
    """Validation pictures, what is true of them, and why nothing is where it is not known."""
    positions = positions_of(data, "val", predictor.kind, calibration.held_out)
    dataset, why = data.eval_dataset("val", None), "the data have no labels to score against"
    held = [prepare(predictor, dataset, position) for position in positions.tolist()]
    try:
        scoring = scoring_of(predictor, data, "val", positions)
    except UserError as error:  # another set's pictures are good enough to calibrate on
        return held, None, str(error).split(":")[0]
    return held, scoring, "" if scoring else why


def _name(data: Any, split: str) -> str:
    """The file or folder that a split was read from."""
    return str(data.reports()[split].source)
