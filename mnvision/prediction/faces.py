"""A picture of a face as a network's input."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mnvision.prediction.preprocess import Prepared, Preprocess, Source
from mnvision.transforms.alignment import FivePoints
from mnvision.transforms.framing import Points

log = logging.getLogger("mnvision")


class FacePreprocess(Preprocess):
    """A face as the network's input, by the rule of its checkpoint.

    Where that sets faces upright by five landmarks, a picture without landmarks is taken for laid out as in training,
    which is warned about once: by the fixed points of the training's pictures, or, where each had its own landmarks,
    as a crop that is aligned already.

    Args:
        rule: See :class:`~mnvision.prediction.preprocess.Preprocess`.
        resolution: See :class:`~mnvision.prediction.preprocess.Preprocess`.
        network: See :class:`~mnvision.prediction.preprocess.Preprocess`.
        warn: Whether it is.
    """

    def __init__(
        self,
        rule: Mapping[str, Any],
        resolution: tuple[int, int],
        network: tuple[int, int] | None = None,
        warn: bool = True,
    ) -> None:
        super().__init__(rule, resolution, network)
        self.aligns = isinstance(self.framing, FivePoints)
        self._as_aligned = Preprocess({"resize": "stretch"}, resolution) if self.framing.needs_landmarks else None
        self._warned = not warn

    @property
    def key(self) -> str:
        """See :attr:`~mnvision.prediction.preprocess.Preprocess.key`."""
        return f"{super().key}{' or as aligned already' if self.aligns else ''}"

    def __call__(self, source: Source, landmarks: Points | None = None) -> Prepared:
        """Prepare one picture, see :class:`~mnvision.prediction.preprocess.Preprocess`."""
        if landmarks is not None or not self.aligns:
            return super().__call__(source, landmarks)
        if not self._warned:
            self._warned = True
            layout = "faces cropped and aligned already" if self._as_aligned else "pictures laid out as in training"
            log.warning("no landmarks given: taken for %s; of others the answers are worth little", layout)
        return super().__call__(source) if self._as_aligned is None else self._as_aligned(source)
