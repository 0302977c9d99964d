"""From a checkpoint of geolocation to coordinates of photos."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.models import Geolocator
from mnvision.prediction.cell_table import PARTITION, CellTable, stored_partition
from mnvision.prediction.predictor import SinglePredictor
from mnvision.prediction.preprocess import Prepared
from mnvision.prediction.results_geo import ImageLocation


class GeolocationPredictor(SinglePredictor[ImageLocation]):
    """Coordinates of photos, and the probabilities of all cells.

    Args:
        model: A geolocator.
        metadata: See :class:`~mnvision.prediction.predictor.SinglePredictor`; holds the cells.
        device: See :class:`~mnvision.prediction.predictor.SinglePredictor`.

    Attributes:
        cells: The model's cells.

    Raises:
        UserError: The checkpoint holds no cells, or others than the model's.
    """

    kind = "geolocation"
    result_type = ImageLocation

    def __init__(self, model: Geolocator, metadata: Metadata, device: str = "cpu") -> None:
        partition = stored_partition(metadata)
        if partition is None:
            raise UserError(f"calibration.{PARTITION} is missing: it does not say where its cells lie")
        model.decoder.fit_to(partition)
        super().__init__(model, metadata, device)
        self.cells = CellTable(partition)

    def check_threshold(self, score_threshold: float | None) -> None:
        """Refuse a threshold: an answer has the probabilities of all cells.

        Raises:
            UserError: One was given.
        """
        if score_threshold is not None:
            raise UserError("score_threshold is for detectors; this is a geolocation checkpoint: leave it out")

    def results(self, pictures: Sequence[Prepared], decoded: Tensor, threshold: float | None) -> list[ImageLocation]:
        """See :meth:`~mnvision.prediction.predictor.SinglePredictor.results`."""
        chosen = self.model.decoder.choose(decoded).tolist()
        rows = decoded.cpu().numpy()
        return [
            # A copy: a row alone would keep the whole batch in memory.
            ImageLocation(picture.path, picture.size, row.copy(), cell, self.cells)
            for picture, row, cell in zip(pictures, rows, chosen)
        ]
