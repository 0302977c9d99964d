"""The object instead of the picture, for sets that say where it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnvision.transforms.framing import Framing, Plane, Points, center_crop_window
from mnvision.transforms.windows import Window


class AnnotatedBox(Framing):
    """The smallest square around a box, moved into the picture; pictures without a box are shown whole.

    Where the picture is too small for the square, the plane is as high or wide as the picture. Evaluation shows the
    plane's largest centre of the network's proportions, which for a square input is the whole square.
    """

    def plane(self, size: tuple[int, int], landmarks: Points | None = None) -> Plane:
        """See :meth:`~mnvision.transforms.framing.Framing.plane`; ``landmarks`` are the box's corners ``(2, 2)``."""
        if landmarks is None:
            return Plane(size)
        height, width = size
        (x0, y0), (x1, y1) = landmarks.tolist()
        side = max(round(max(x1 - x0, y1 - y0)), 1)
        left, across = _placed((x0 + x1) / 2, side, width)
        top, down = _placed((y0 + y1) / 2, side, height)
        return Plane((down, across), np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]]))

    def eval_window(self, plane_size: tuple[int, int], resolution: tuple[int, int]) -> Window:
        """See :meth:`~mnvision.transforms.framing.Framing.eval_window`."""
        return center_crop_window(plane_size, self.network or resolution, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`~mnvision.transforms.framing.Framing.to_dict`."""
        return {"resize": "annotated_box"}


def _placed(centre: float, length: int, limit: int) -> tuple[int, int]:
    """Start and length of a stretch of whole pixels about ``centre`` within ``0 .. limit``."""
    length = min(length, limit)
    return min(max(round(centre - length / 2), 0), limit - length), length
