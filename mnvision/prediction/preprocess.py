"""From any picture to the network's input, by the rule that a checkpoint was evaluated with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mnvision.data.images import image_size, min_decode_size, read_image
from mnvision.errors import UserError
from mnvision.transforms.framing import Plane, Points, framing_from_dict, show, shown_part
from mnvision.transforms.windows import Window

Pixels: TypeAlias = NDArray[np.uint8]
Source: TypeAlias = str | os.PathLike[str] | Pixels | Image.Image
"""A picture: a file, uint8 RGB pixels ``(h, w, 3)``, or a Pillow image."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture ready for the network.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 RGB at the network's resolution, or at that of a file which stretches inside.
        size: Height and width of the original picture, after Exif orientation.
        path: The file; None for pixels from memory.
    """

    pixels: Pixels
    size: tuple[int, int]
    path: Path | None = None


class Preprocess:
    """How a picture becomes the network's input.

    Args:
        rule: As a checkpoint holds it, see ``mnvision/transforms/framing.py``.
        resolution: Height and width to draw pictures at.
        network: Height and width of the network's input, where a file stretches pictures to it: its proportions decide
            what is shown. None is ``resolution``.

    Raises:
        UserError: An unknown rule, or a value out of range.
    """

    def __init__(
        self, rule: Mapping[str, Any], resolution: tuple[int, int], network: tuple[int, int] | None = None
    ) -> None:
        self.resolution, self.network = resolution, network or resolution
        self.framing = framing_from_dict(rule)
        self.framing.network = network

    @property
    def key(self) -> str:
        """Equal for those that prepare every picture alike."""
        return f"{self.resolution} {sorted(self.framing.to_dict().items())}"

    def __call__(self, source: Source, landmarks: Points | None = None) -> Prepared:
        """Prepare one picture; a large JPEG file is decoded at reduced scale, as in evaluation.

        Args:
            source: A file, an array or a Pillow image.
            landmarks: ``(5, 2)`` x and y in the picture's pixels, for checkpoints of aligned faces.

        Raises:
            UserError: The file is missing or unreadable, or the pixels are no uint8 RGB picture.
        """
        if isinstance(source, str | os.PathLike):
            return self._prepare_file(Path(source), landmarks)
        pixels = pixels_from_memory(source)
        size = (pixels.shape[0], pixels.shape[1])
        plane, window = self._shown(size, landmarks)
        return Prepared(show(pixels, size, plane, window, self.resolution), size)

    def _prepare_file(self, path: Path, landmarks: Points | None) -> Prepared:
        size = image_size(path)
        plane, window = self._shown(size, landmarks)
        decoded = read_image(path, min_decode_size(size, shown_part(plane, window), self.resolution))
        return Prepared(show(decoded.pixels, size, plane, window, self.resolution), size, path)

    def _shown(self, size: tuple[int, int], landmarks: Points | None) -> tuple[Plane, Window]:
        plane = self.framing.plane(size, landmarks)
        return plane, self.framing.eval_window(plane.size, self.resolution)


def pixels_from_memory(source: Pixels | Image.Image) -> Pixels:
    """``(h, w, 3)`` uint8 RGB of an array or a Pillow image (Exif orientation applied, alpha dropped).

    Raises:
        UserError: Not a picture, or of another type or shape.
    """
    if isinstance(source, Image.Image):
        return _pixels_from_pillow(source)
    if not isinstance(source, np.ndarray):
        raise UserError(
            f"a picture must be a path, a uint8 array (h, w, 3) or a Pillow image, not a {type(source).__name__}"
        )
    if source.dtype != np.uint8:
        raise UserError(f"an array of pixels must be uint8 with values 0-255, not {source.dtype}")
    if source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        hint = "; give several pictures as a list" if source.ndim == 4 else ""
        raise UserError(f"an array of pixels must be RGB with shape (h, w, 3), not {source.shape}{hint}")
    return source


def _pixels_from_pillow(image: Image.Image) -> Pixels:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            high = (np.asarray(upright) >> 8).astype(np.uint8)
            return np.repeat(high[..., None], 3, axis=2)
        if upright.mode in ("I", "F"):
            raise UserError(f"a Pillow image of mode {upright.mode} has no fixed range; convert it to RGB first")
        return np.asarray(upright.convert("RGB"))
    except OSError as error:
        raise UserError(f"cannot decode the Pillow image: {' '.join(str(error).split())}") from None
