"""From a checkpoint of face attributes to decisions on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.models import AttributeClassifier
from mnvision.prediction.faces import FacePreprocess
from mnvision.prediction.predictor import SinglePredictor
from mnvision.prediction.preprocess import Prepared
from mnvision.prediction.results_faces import ImageAttributes


class AttributePredictor(SinglePredictor[ImageAttributes]):
    """Probabilities of all attributes, and decisions at the thresholds that the checkpoint holds.

    Args:
        model: A classifier of attributes.
        metadata: See :class:`~mnvision.prediction.predictor.SinglePredictor`.
        device: See :class:`~mnvision.prediction.predictor.SinglePredictor`.

    Attributes:
        thresholds: ``(A,)`` float64; 0.5 in a checkpoint that was never validated on labels.

    Raises:
        UserError: Stored thresholds that do not fit the attributes.
    """

    kind = "face_attributes"
    result_type = ImageAttributes

    def __init__(self, model: AttributeClassifier, metadata: Metadata, device: str = "cpu") -> None:
        super().__init__(model, metadata, device)
        self.preprocess = FacePreprocess(metadata.preprocess, self.resolution, self.network)
        thresholds = stored_thresholds(metadata)
        self.thresholds = np.full(len(self.class_names), 0.5) if thresholds is None else thresholds
        if thresholds is None:
            self.note = "the checkpoint has no calibrated thresholds: an attribute is taken to be there from 0.5 on"

    def check_threshold(self, score_threshold: float | None) -> None:
        """Refuse a threshold: every attribute has its own.

        Raises:
            UserError: One was given.
        """
        if score_threshold is not None:
            raise UserError(
                "score_threshold is for detectors; this is a face_attributes checkpoint, which holds a threshold for "
                "each attribute: leave it out"
            )

    def results(self, pictures: Sequence[Prepared], decoded: Tensor, threshold: float | None) -> list[ImageAttributes]:
        """See :meth:`~mnvision.prediction.predictor.SinglePredictor.results`."""
        probabilities = decoded.cpu().numpy()
        return [
            ImageAttributes(picture.path, picture.size, row, self.thresholds, self.class_names)
            for picture, row in zip(pictures, probabilities)
        ]


def stored_thresholds(metadata: Metadata) -> NDArray[np.float64] | None:
    """The calibrated thresholds ``(A,)`` of a checkpoint; None where there are none.

    Raises:
        UserError: They do not fit the attributes.
    """
    stored, count = metadata.calibration.get("thresholds"), len(metadata.class_names)
    if stored is None:
        return None
    try:
        thresholds = np.asarray(stored, np.float64)
    except (ValueError, TypeError):
        thresholds = np.full(count, np.nan)
    if thresholds.shape != (count,) or not np.isfinite(thresholds).all():
        raise UserError(f"calibration.thresholds must be {count} finite numbers, one per attribute; train it anew")
    return thresholds
