"""What a predictor of several heads gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnvision.prediction.results import (
    ImageDetections,
    ImageResult,
    Pixels,
    Shown,
    picture_fields,
    picture_title,
    plain_answers,
)


@dataclass(frozen=True, eq=False)
class ImageAnswers(ImageResult):
    """Answers of several heads on one picture.

    Attributes:
        answers: By head what its single-task predictor gives; also reached by ``result[name]``.
    """

    answers: Mapping[str, ImageResult]

    def __getitem__(self, name: str) -> Any:
        return self.answers[name]

    @property
    def parts(self) -> Mapping[str, ImageResult]:
        """The answers."""
        return self.answers

    def to_dict(self, shown: Shown | None = None) -> dict[str, Any]:
        """Plain data: path, size (height, width) and by head its answer."""
        return {**picture_fields(self.path, self.size), "answers": plain_answers(self.answers, shown or Shown())}

    @staticmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """None: every head has a table of its own."""
        return ()

    def rows(self, shown: Shown) -> list[list[Any]]:
        """None, see :meth:`columns`."""
        return []

    def record(self, shown: Shown) -> dict[str, Any]:
        """See :meth:`to_dict`."""
        return self.to_dict(shown)

    def found(self) -> list[str]:
        """What each head found, as ``head/name``."""
        return [f"{name}/{found}" for name, answer in self.answers.items() for found in answer.found()]

    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """Boxes in the picture, and the other heads' answers beside it."""
        boxes = {name: answer for name, answer in self.answers.items() if isinstance(answer, ImageDetections)}
        picture = pixels.copy()
        for answer in boxes.values():
            picture = answer.draw(picture, shown)
        for name, beside in self.answers.items():
            if name not in boxes:
                picture = beside.draw_beside(picture, shown, name)
        return picture

    def __str__(self) -> str:
        title = picture_title(self.path, self.size)
        lines = (f"  {name}{str(answer).removeprefix(title)}" for name, answer in self.answers.items())
        return "\n".join([f"{title}:", *lines])
