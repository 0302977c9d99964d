"""What predictors give: plain, printable results, one per picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError

Pixels = NDArray[np.uint8]
AttributeChoice = Literal["above", "all"]


@dataclass(frozen=True)
class Shown:
    """How much of a result is written or drawn.

    Attributes:
        topk: Classes of a classified picture in files.
        attributes: Drawn beside a picture: those that it has ("above" their thresholds) or "all".
    """

    topk: int = 5
    attributes: AttributeChoice = "above"

    def __post_init__(self) -> None:
        if self.attributes not in get_args(AttributeChoice):
            raise UserError(f"attributes={self.attributes}: choose one of {', '.join(get_args(AttributeChoice))}")


@dataclass(frozen=True)
class ImageResult(ABC):
    """What was predicted for one picture, and how that is written and drawn.

    Attributes:
        path: The file; None for pixels from memory.
        size: Height and width of the original picture.
    """

    printed: ClassVar[bool] = False
    """Whether the result is one line's worth, and is printed as the picture is done."""

    path: Path | None
    size: tuple[int, int]

    @staticmethod
    @abstractmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """Names of the columns of :meth:`rows`, for a model of these classes."""

    @abstractmethod
    def rows(self, shown: Shown) -> list[list[Any]]:
        """The result as rows of a table; none where nothing was found."""

    @abstractmethod
    def record(self, shown: Shown) -> dict[str, Any]:
        """The result as plain data."""

    @abstractmethod
    def found(self) -> list[str]:
        """Names to count over many pictures."""

    @abstractmethod
    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """A copy of the picture ``(h, w, 3)`` uint8 RGB with the result in it or beside it."""

    def draw_beside(self, pixels: Pixels, shown: Shown, title: str) -> Pixels:
        """The picture with the result at its right under a title; where there is nothing to draw, as it is."""
        return pixels

    def note(self, shown: Shown) -> list[str]:
        """The result in a few short lines, for a place beside a box; none where there is nothing to say."""
        return []

    @property
    def parts(self) -> Mapping[str, ImageResult]:
        """Results by head; of a single-task model itself, without a name."""
        return {"": self}


@dataclass(frozen=True)
class Detection:
    """One object found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the original picture (after Exif orientation).
        score: In [0, 1].
        label: ``0 .. K-1``.
        name: The class's name.
        answers: By head, what a second model says of the picture under the box.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str
    answers: Mapping[str, ImageResult] = field(default_factory=dict, compare=False)

    def to_dict(self, shown: Shown | None = None) -> dict[str, Any]:
        """Plain data with the attributes' names; the box rounded to a hundredth of a pixel."""
        box = [round(edge, 2) for edge in self.box]
        plain = {"label": self.label, "name": self.name, "score": round(self.score, 6), "box": box}
        return plain | ({"answers": plain_answers(self.answers, shown or Shown())} if self.answers else {})

    def note(self, shown: Shown) -> list[str]:
        """What :attr:`answers` say, in a few short lines."""
        return [line for answer in self.answers.values() for line in answer.note(shown)]

    def __str__(self) -> str:
        return f"{self.name} {self.score:.2f} [{' '.join(str(round(edge)) for edge in self.box)}]"


@dataclass(frozen=True)
class ImageDetections(ImageResult):
    """All objects found in one picture, best score first.

    Attributes:
        detections: What was found; also reached by iterating, by ``len`` and by an index.
    """

    detections: tuple[Detection, ...]

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections)

    def __getitem__(self, index: int) -> Detection:
        return self.detections[index]

    def to_dict(self, shown: Shown | None = None) -> dict[str, Any]:
        """Plain data: path, size (height, width) and a list of detections."""
        return {
            **picture_fields(self.path, self.size),
            "detections": [found.to_dict(shown) for found in self.detections],
        }

    @staticmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """See :meth:`ImageResult.columns`."""
        return ("label", "name", "score", "x1", "y1", "x2", "y2")

    def rows(self, shown: Shown) -> list[list[Any]]:
        """One row per detection."""
        items = [found.to_dict() for found in self.detections]
        return [[item["label"], item["name"], item["score"], *item["box"]] for item in items]

    def record(self, shown: Shown) -> dict[str, Any]:
        """See :meth:`to_dict`."""
        return self.to_dict(shown)

    def found(self) -> list[str]:
        """The class of every detection."""
        return [found.name for found in self.detections]

    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """Boxes with name and score, and what a second model says of what is in them."""
        entries = [(found.box, found.label, found.score, found.name) for found in self.detections]
        return _draw_notes(
            _draw_boxes(pixels, entries), [(found.box, found.label, found.note(shown)) for found in self.detections]
        )

    def __str__(self) -> str:
        return f"{picture_title(self.path, self.size)}: {', '.join(map(str, self.detections)) or 'nothing found'}"


@dataclass(frozen=True)
class ClassProbability:
    """One class of a classified picture.

    Attributes:
        label: ``0 .. K-1``.
        name: The class's name.
        probability: In [0, 1].
    """

    label: int
    name: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the attributes' names."""
        return {"label": self.label, "name": self.name, "probability": round(self.probability, 6)}

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.3f}"


@dataclass(frozen=True, eq=False)
class ImageClasses(ImageResult):
    """How probable each class is for one picture.

    Attributes:
        probabilities: ``(K,)`` float32, sum 1.
        class_names: K names.
    """

    printed: ClassVar[bool] = True

    probabilities: NDArray[np.float32]
    class_names: tuple[str, ...]

    def top(self, k: int = 5) -> list[ClassProbability]:
        """The ``k`` most probable classes (all where there are fewer), best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k].tolist()
        return [ClassProbability(i, self.class_names[i], float(self.probabilities[i])) for i in order]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Plain data: path, size (height, width) and the ``k`` most probable classes."""
        return {**picture_fields(self.path, self.size), "classes": [entry.to_dict() for entry in self.top(k)]}

    @staticmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """See :meth:`ImageResult.columns`."""
        return ("rank", "label", "name", "probability")

    def rows(self, shown: Shown) -> list[list[Any]]:
        """One row per class among the most probable ones."""
        return [[rank, *entry.to_dict().values()] for rank, entry in enumerate(self.top(shown.topk), 1)]

    def record(self, shown: Shown) -> dict[str, Any]:
        """See :meth:`to_dict`."""
        return self.to_dict(shown.topk)

    def found(self) -> list[str]:
        """The most probable class."""
        return [self.top(1)[0].name]

    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """A frame with the most probable class."""
        best = self.top(1)[0]
        frame = (0.0, 0.0, float(self.size[1]), float(self.size[0]))
        return _draw_boxes(pixels, [(frame, best.label, best.probability, best.name)])

    def draw_beside(self, pixels: Pixels, shown: Shown, title: str) -> Pixels:
        """A panel of the most probable classes."""
        from mnvision.visualize_faces import draw_attribute_panel  # loads matplotlib, as below

        listed = [(entry.name, entry.probability, True) for entry in self.top(shown.topk)]
        return draw_attribute_panel(pixels, listed, self.class_names, title=title)

    def note(self, shown: Shown) -> list[str]:
        """The most probable class."""
        best = self.top(1)[0]
        return [f"{best.name} {best.probability:.2f}"]

    def __str__(self) -> str:
        return f"{picture_title(self.path, self.size)}: {', '.join(map(str, self.top()))}"


def _draw_boxes(pixels: Pixels, entries: Sequence[tuple[tuple[float, ...], int, float, str]]) -> Pixels:
    """Boxes (xyxy in the picture's pixels) with label, score and name."""
    from mnvision.visualize import draw_detections  # loads matplotlib, which a server without pictures can spare

    names = {label: name for _, label, _, name in entries}
    return draw_detections(
        pixels,
        np.array([box for box, *_ in entries], np.float64).reshape(-1, 4),
        np.array([label for _, label, _, _ in entries], np.int64),
        np.array([score for _, _, score, _ in entries], np.float64),
        [names.get(label, "") for label in range(max(names, default=-1) + 1)],
    )


def _draw_notes(pixels: Pixels, notes: Sequence[tuple[tuple[float, ...], int, Sequence[str]]]) -> Pixels:
    """Short lines beside boxes (xyxy in the picture's pixels) of a label; the first is drawn last, hence on top."""
    if not any(lines for _, _, lines in notes):
        return pixels
    from mnvision.visualize_notes import draw_notes  # loads matplotlib, as above

    return draw_notes(pixels, notes)


def plain_answers(answers: Mapping[str, ImageResult], shown: Shown) -> dict[str, Any]:
    """Results of several heads as plain data, without the path and the size that they have in common."""
    return {
        name: {key: value for key, value in answer.record(shown).items() if key not in ("path", "size")}
        for name, answer in answers.items()
    }


def picture_fields(path: Path | None, size: tuple[int, int]) -> dict[str, Any]:
    """Path and size as plain data."""
    return {"path": None if path is None else str(path), "size": list(size)}


def picture_title(path: Path | None, size: tuple[int, int]) -> str:
    """Path and size in a few words."""
    return f"{path or 'picture'} ({size[1]}x{size[0]})"
