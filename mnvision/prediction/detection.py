"""From a checkpoint of a detector to objects in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mnvision.boxes.rescale import to_original_pixels
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.models import Detector, FasterRCNN
from mnvision.prediction.predictor import SCORE_THRESHOLD, Predictor, SinglePredictor
from mnvision.prediction.preprocess import Prepared
from mnvision.prediction.results import Detection, ImageDetections


class DetectionPredictor(SinglePredictor[ImageDetections]):
    """Objects with boxes in pixels of the original pictures.

    Args:
        model: A detector.
        metadata: See :class:`~mnvision.prediction.predictor.SinglePredictor`.
        device: See :class:`~mnvision.prediction.predictor.SinglePredictor`.
    """

    kind = "detection"
    result_type = ImageDetections

    def __init__(self, model: Detector | FasterRCNN, metadata: Metadata, device: str = "cpu") -> None:
        super().__init__(model, metadata, device)
        if len(metadata.category_ids) not in (0, len(self.class_names)):
            raise UserError(f"{len(metadata.category_ids)} category ids for {len(self.class_names)} classes")
        self.category_ids = tuple(metadata.category_ids or range(1, len(self.class_names) + 1))

    def check_threshold(self, score_threshold: float | None) -> float:
        """The threshold that applies.

        Raises:
            UserError: Above 1, or below what the decoder keeps at all.
        """
        lowest = self.model.decoder.score_threshold
        threshold = max(SCORE_THRESHOLD, lowest) if score_threshold is None else score_threshold
        if not isinstance(threshold, int | float) or not lowest <= threshold <= 1:
            raise UserError(
                f"score_threshold={score_threshold} must lie in [{lowest}, 1]: this checkpoint's decoder "
                f"keeps no score below {lowest}"
            )
        return threshold

    def results(self, pictures: Sequence[Prepared], decoded: Any, threshold: float | None) -> list[ImageDetections]:
        """See :meth:`~mnvision.prediction.predictor.SinglePredictor.results`."""
        assert threshold is not None
        sizes = torch.tensor([picture.size for picture in pictures], device=self.device)
        found = to_original_pixels(decoded, sizes, self.resolution)
        columns = zip(
            pictures,
            found["boxes"].cpu().tolist(),
            found["scores"].cpu().tolist(),
            found["labels"].cpu().tolist(),
        )
        return [
            ImageDetections(picture.path, picture.size, self._keep(boxes, scores, labels, threshold))
            for picture, boxes, scores, labels in columns
        ]

    def _keep(
        self, boxes: list[list[float]], scores: list[float], labels: list[int], threshold: float
    ) -> tuple[Detection, ...]:
        return tuple(
            Detection((box[0], box[1], box[2], box[3]), score, label, self.class_names[label])
            for box, score, label in zip(boxes, scores, labels)
            if label >= 0 and score >= threshold
        )


def detectors_of(predictor: Predictor[Any]) -> dict[str, DetectionPredictor]:
    """The detectors among the heads of a predictor."""
    return {name: part for name, part in predictor.parts.items() if isinstance(part, DetectionPredictor)}
