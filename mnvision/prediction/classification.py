"""From a checkpoint of a classifier to probabilities of classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mnvision.errors import UserError
from mnvision.prediction.predictor import SinglePredictor
from mnvision.prediction.preprocess import Prepared
from mnvision.prediction.results import ImageClasses


class ClassificationPredictor(SinglePredictor[ImageClasses]):
    """Probabilities of all classes.

    Args:
        model: A classifier.
        metadata: See :class:`~mnvision.prediction.predictor.SinglePredictor`.
        device: See :class:`~mnvision.prediction.predictor.SinglePredictor`.
    """

    kind = "classification"
    result_type = ImageClasses

    def check_threshold(self, score_threshold: float | None) -> None:
        """Refuse a threshold: a classifier answers with all classes.

        Raises:
            UserError: One was given.
        """
        if score_threshold is not None:
            raise UserError("score_threshold is for detectors; this is a classification checkpoint: leave it out")

    def results(self, pictures: Sequence[Prepared], decoded: Tensor, threshold: float | None) -> list[ImageClasses]:
        """See :meth:`~mnvision.prediction.predictor.SinglePredictor.results`."""
        probabilities = decoded.cpu().numpy()
        return [
            ImageClasses(picture.path, picture.size, row, self.class_names)
            for picture, row in zip(pictures, probabilities)
        ]
