"""Which part of a picture is shown, and how it is drawn for the student and for its teacher."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mnvision.data.decoding import SampleDecoder
from mnvision.data.images import ImageSource, image_size
from mnvision.data.loaders import sample_rng
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import Framing, Plane, Points, show, shown_part
from mnvision.transforms.windows import Pixels, Window

_TRIED = 4  # draws that a recipe records


class View(NamedTuple):
    """What a sample shows, before it is drawn at any resolution.

    Attributes:
        path: File of the picture, or its content.
        size: Height and width of the picture.
        plane: How it is laid out.
        window: The part of the plane; None for the framing's fixed part.
        rng: Stream from which its colours are distorted.
    """

    path: ImageSource
    size: tuple[int, int]
    plane: Plane
    window: Window | None
    rng: np.random.Generator


class PictureViews:
    """Draws views: random ones with an augmentation, the framing's fixed one without.

    Args:
        resolution: Height and width of the student's input.
        framing: How pictures are laid out.
        augment: What happens at random; None for evaluation.
        seed: Seed of the augmentation.
    """

    def __init__(
        self, resolution: tuple[int, int], framing: Framing, augment: ClassificationAugment | None, seed: int
    ) -> None:
        self.resolution, self.framing, self.augment, self.seed = resolution, framing, augment, seed

    def view(self, path: ImageSource, landmarks: Points | None, position: int, epoch: int) -> View:
        """Draws what is shown of a picture.

        Raises:
            UserError: The file cannot be read.
        """
        rng, size = sample_rng(self.seed, epoch, position), image_size(path)
        plane = self.framing.plane(size, landmarks)
        window = None if self.augment is None else self.augment.window(rng, plane.size)
        return View(path, size, plane, window, rng)

    def draw(self, view: View, decoder: SampleDecoder) -> Pixels:
        """``(H, W, 3)`` uint8, the student's picture."""
        window = self.framing.eval_window(view.plane.size, self.resolution) if view.window is None else view.window
        return self._draw(view, window, self.resolution, decoder)

    def draw_for_teacher(self, view: View, resolution: tuple[int, int], decoder: SampleDecoder) -> Pixels:
        """``(h, w, 3)`` uint8, the student's crop in the student's proportions, stretched to the teacher's input.

        It depends on no more of the student than these proportions.
        """
        window = view.window
        if window is None:
            # Of the reduced proportions, so that it is the same to the last bit for students of 96 and of 128 px.
            window = self.framing.eval_window(view.plane.size, _proportions(self.resolution))
        return self._draw(view, window, resolution, decoder)

    def recipe(self) -> dict[str, Any]:
        """All that decides, beside files and landmarks, what a teacher sees, as plain data.

        ``draws`` are some actual draws, so that a library whose random streams changed is noticed too.
        """
        if self.augment is None:
            proportions = list(_proportions(self.resolution))
            return {"framing": self.framing.to_dict(), "augment": None, "proportions": proportions}
        draws = []
        for position in range(_TRIED):
            rng = sample_rng(self.seed, 0, position)
            window = self.augment.window(rng, (480, 640))
            colours = self.augment.distort(rng, np.full((16, 16, 3), (40, 90, 140), np.uint8)).mean(axis=(0, 1))
            draws.append([round(float(value), 5) for value in (*window, *colours)])
        augment = {"augment": self.augment.to_dict(), "seed": self.seed, "draws": draws}
        return {"framing": self.framing.to_dict(), **augment}

    def _draw(self, view: View, window: Window, resolution: tuple[int, int], decoder: SampleDecoder) -> Pixels:
        decoded = decoder.read(view.path, view.size, shown_part(view.plane, window), resolution)
        image = show(decoded.pixels, view.size, view.plane, window, resolution)
        return image if self.augment is None else self.augment.distort(view.rng, image)


def _proportions(resolution: tuple[int, int]) -> tuple[int, int]:
    """Height and width without their common factor."""
    factor = math.gcd(*resolution)
    return resolution[0] // factor, resolution[1] // factor
