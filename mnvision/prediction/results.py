"""What predictors give: plain, printable results, one per picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detection:
    """One object found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the original picture (after Exif orientation).
        score: In [0, 1].
        label: ``0 .. K-1``.
        name: The class's name.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the attributes' names; the box rounded to a hundredth of a pixel."""
        box = [round(edge, 2) for edge in self.box]
        return {"label": self.label, "name": self.name, "score": round(self.score, 6), "box": box}

    def __str__(self) -> str:
        return f"{self.name} {self.score:.2f} [{' '.join(str(round(edge)) for edge in self.box)}]"


@dataclass(frozen=True)
class ImageDetections:
    """All objects found in one picture, best score first.

    Attributes:
        path: The file; None for pixels from memory.
        size: Height and width of the original picture.
        detections: What was found; also reached by iterating, by ``len`` and by an index.
    """

    path: Path | None
    size: tuple[int, int]
    detections: tuple[Detection, ...]

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections)

    def __getitem__(self, index: int) -> Detection:
        return self.detections[index]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: path, size (height, width) and a list of detections."""
        return {
            **_picture(self.path, self.size),
            "detections": [found.to_dict() for found in self.detections],
        }

    def __str__(self) -> str:
        return f"{_title(self.path, self.size)}: {', '.join(map(str, self.detections)) or 'nothing found'}"


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
class ImageClasses:
    """How probable each class is for one picture.

    Attributes:
        path: The file; None for pixels from memory.
        size: Height and width of the original picture.
        probabilities: ``(K,)`` float32, sum 1.
        class_names: K names.
    """

    path: Path | None
    size: tuple[int, int]
    probabilities: NDArray[np.float32]
    class_names: tuple[str, ...]

    def top(self, k: int = 5) -> list[ClassProbability]:
        """The ``k`` most probable classes (all where there are fewer), best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k].tolist()
        return [ClassProbability(i, self.class_names[i], float(self.probabilities[i])) for i in order]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Plain data: path, size (height, width) and the ``k`` most probable classes."""
        return {**_picture(self.path, self.size), "classes": [entry.to_dict() for entry in self.top(k)]}

    def __str__(self) -> str:
        return f"{_title(self.path, self.size)}: {', '.join(map(str, self.top()))}"


def _picture(path: Path | None, size: tuple[int, int]) -> dict[str, Any]:
    return {"path": None if path is None else str(path), "size": list(size)}


def _title(path: Path | None, size: tuple[int, int]) -> str:
    return f"{path or 'picture'} ({size[1]}x{size[0]})"
