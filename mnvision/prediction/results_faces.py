"""What predictors give for faces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mnvision.prediction.results import ImageResult, Pixels, Shown, picture_fields, picture_title

_NOTED = 4  # attributes beside a box


@dataclass(frozen=True)
class Attribute:
    """One attribute of one picture.

    Attributes:
        name: Its name.
        probability: In [0, 1].
        threshold: From which probability on it is taken to be there.
        decision: Whether it is.
    """

    name: str
    probability: float
    threshold: float
    decision: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the attributes' names."""
        return {
            "name": self.name,
            "probability": round(self.probability, 6),
            "threshold": round(self.threshold, 6),
            "decision": self.decision,
        }

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.2f}"


@dataclass(frozen=True, eq=False)
class ImageAttributes(ImageResult):
    """All attributes of one picture.

    Attributes:
        probabilities: ``(A,)`` float32 in [0, 1], each on its own.
        thresholds: ``(A,)`` float64.
        class_names: A names.
    """

    printed: ClassVar[bool] = True

    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.class_names)

    def __iter__(self) -> Iterator[Attribute]:
        for name, probability, threshold in zip(
            self.class_names, self.probabilities.tolist(), self.thresholds.tolist()
        ):
            yield Attribute(name, probability, threshold, probability >= threshold)

    def above(self) -> list[Attribute]:
        """Those that are decided to be there, most probable first."""
        return sorted((item for item in self if item.decision), key=lambda item: -item.probability)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: path, size (height, width) and every attribute with probability, threshold and decision."""
        return {**picture_fields(self.path, self.size), "attributes": [item.to_dict() for item in self]}

    @staticmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """A column NAME with the probability of each attribute, then a column NAME_decision with 1 or 0 of each."""
        return (*class_names, *(f"{name}_decision" for name in class_names))

    def rows(self, shown: Shown) -> list[list[Any]]:
        """One row, see :meth:`columns`."""
        items = list(self)
        return [[*(round(item.probability, 6) for item in items), *(int(item.decision) for item in items)]]

    def record(self, shown: Shown) -> dict[str, Any]:
        """See :meth:`to_dict`."""
        return self.to_dict()

    def found(self) -> list[str]:
        """The attributes that are there."""
        return [item.name for item in self if item.decision]

    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """The picture, enlarged where it is small, with a panel of attributes beside it."""
        return self.draw_beside(pixels, shown, "")

    def draw_beside(self, pixels: Pixels, shown: Shown, title: str) -> Pixels:
        """See :meth:`draw`."""
        from mnvision.visualize_faces import draw_attribute_panel  # loads matplotlib, as in results.py

        items = list(self) if shown.attributes == "all" else self.above()
        return draw_attribute_panel(
            pixels,
            [(item.name, item.probability, item.decision) for item in items],
            self.class_names,
            everything=shown.attributes == "all",
            title=title,
        )

    def note(self, shown: Shown) -> list[str]:
        """The most probable ones of those that are there."""
        return [f"{item.name.replace('_', ' ')} {item.probability:.2f}" for item in self.above()[:_NOTED]]

    def __str__(self) -> str:
        there = ", ".join(map(str, self.above())) or f"none of {len(self)} attributes"
        return f"{picture_title(self.path, self.size)}: {there}"
