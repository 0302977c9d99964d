"""How far the answers of a file lie from those of its checkpoint, and which decisions it takes otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.proof.answers import Answers, Boxes

MATCH_IOU = 0.5
"""Detections that overlap less are not the same object."""
VISIBLE = 5e-3
"""Answers are drawn with two digits: smaller differences cannot be seen."""


@dataclass(frozen=True)
class Differences:
    """Of one file from its checkpoint over N pictures.

    Attributes:
        outputs: ``(N,)`` float64, the largest difference of a number in each picture's answer: a probability, a
            component of an embedding; of detectors a matched detection's score or edge, edges as shares of the
            picture's longer side. Infinite where a number is not finite.
        mean: Over all numbers of all pictures; over matched detections.
        flips: ``(N,)`` int64, decisions of each picture that the file takes otherwise.
        decisions: How many there were.
        kinds: What flipped -> how often.
        cosine: Lowest cosine of two embeddings of one picture; None of other answers.
        largest_pixels: Of detectors, the largest difference of a matched edge in pixels of the picture; else None.
    """

    outputs: NDArray[np.float64]
    mean: float
    flips: NDArray[np.int64]
    decisions: int
    kinds: dict[str, int] = field(default_factory=dict)
    cosine: float | None = None
    largest_pixels: float | None = None

    @property
    def largest(self) -> float:
        """Largest difference of a number."""
        return float(self.outputs.max())

    @property
    def flipped(self) -> int:
        """Decisions that flipped."""
        return sum(self.kinds.values())

    @property
    def share(self) -> float:
        """Of the decisions that flipped; 0 where there was nothing to decide."""
        return self.flipped / self.decisions if self.decisions else 0.0

    def worst(self, count: int) -> list[int]:
        """Numbers of the pictures worth looking at: most flips first, then the largest differences."""
        order = np.lexsort((-self.outputs, -self.flips))
        return [int(i) for i in order[:count] if self.flips[i] or self.outputs[i] > VISIBLE]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the single pictures; an infinite difference is None."""
        finite = np.isfinite(self.largest)
        return {
            "pictures": len(self.outputs),
            "largest": self.largest if finite else None,
            "mean": self.mean if np.isfinite(self.mean) else None,
            "decisions": self.decisions,
            "flipped": self.flipped,
            "flips": self.kinds,
            **({} if self.cosine is None else {"lowest_cosine": self.cosine if finite else None}),
            **({} if self.largest_pixels is None else {"largest_pixels": self.largest_pixels}),
        }


def compare_classes(expected: Answers, found: Answers) -> Differences:
    """Of classifiers and geolocators: a decision is the best class of a picture, or its cell."""
    first, second = _rows(expected), _rows(found)
    outputs, mean = _outputs(first, second)
    own, other = _chosen(expected), _chosen(found)
    flips = (own != other).astype(np.int64)
    name = "top-1 changed" if expected.choices is None else "cell changed"
    return Differences(outputs, mean, flips, len(flips), _named({name: int(flips.sum())}))


def compare_attributes(
    expected: Answers, found: Answers, thresholds: NDArray[np.float64], own: NDArray[np.float64]
) -> Differences:
    """Of attributes: a decision is one attribute of one picture.

    Args:
        expected: The checkpoint's answers.
        found: The file's.
        thresholds: ``(A,)`` of the checkpoint.
        own: ``(A,)`` of the file.
    """
    first, second = _rows(expected), _rows(found)
    outputs, mean = _outputs(first, second)
    yes, other = first >= thresholds, second >= own
    kinds = {"no became yes": int((~yes & other).sum()), "yes became no": int((yes & ~other).sum())}
    return Differences(outputs, mean, (yes != other).sum(axis=1).astype(np.int64), yes.size, _named(kinds))


def compare_embeddings(
    expected: Answers, found: Answers, pairs: NDArray[np.int64] | None = None, threshold: float | None = None
) -> Differences:
    """Of embeddings: a decision is whether a pair is of one person, where there are pairs and a calibration.

    Args:
        expected: The checkpoint's answers.
        found: The file's.
        pairs: ``(P, 2)`` rows of both.
        threshold: Cosine above which a pair is of one person.
    """
    first, second = _rows(expected).astype(np.float64), _rows(found).astype(np.float64)
    outputs, mean = _outputs(first, second)
    flips, kinds = np.zeros(len(first), np.int64), {}
    if pairs is not None and threshold is not None and len(pairs):
        same, other = (_cosines(rows[pairs[:, 0]], rows[pairs[:, 1]]) > threshold for rows in (first, second))
        np.add.at(flips, pairs[same != other].ravel(), 1)
        kinds = {
            "different became same": int((~same & other).sum()),
            "same became different": int((same & ~other).sum()),
        }
    decided = 0 if pairs is None or threshold is None else len(pairs)
    lowest = float(_cosines(first, second).min())
    return Differences(outputs, mean, flips, decided, _named(kinds), cosine=lowest)


def compare_detections(expected: Answers, found: Answers, threshold: float) -> Differences:
    """Of detectors: a decision is a detection that people would be shown.

    Args:
        expected: The checkpoint's answers.
        found: The file's.
        threshold: Score from which on detections are shown.
    """
    outputs, flips = np.zeros(len(expected.boxes)), np.zeros(len(expected.boxes), np.int64)
    kinds = {"disappeared": 0, "appeared": 0, "class changed": 0}
    values: list[NDArray[np.float64]] = []
    pixels, decisions = 0.0, 0
    for i, (one, two) in enumerate(zip(expected.boxes, found.boxes, strict=True)):
        one, two = shown(one, threshold), shown(two, threshold)
        left, right = match(one, two)
        edges = np.abs(one[0][left] - two[0][right]).max(axis=1, initial=0.0)
        scores = np.abs(one[1][left] - two[1][right])
        changed = int((one[2][left] != two[2][right]).sum())
        here = (len(one[1]) - len(left), len(two[1]) - len(right), changed)
        for name, count in zip(kinds, here, strict=True):
            kinds[name] += count
        flips[i] = sum(here)
        decisions += len(one[1]) + len(two[1]) - len(left)
        values.append(np.concatenate([scores, edges / expected.sizes[i].max()]))
        outputs[i] = _or_infinite(values[-1].max(initial=0.0))
        pixels = max(pixels, float(edges.max(initial=0.0)))
    joined = np.concatenate([np.zeros(0), *values])
    mean = float(joined.mean()) if len(joined) else 0.0
    return Differences(outputs, mean, flips, decisions, _named(kinds), largest_pixels=pixels)


def shown(boxes: Boxes, threshold: float) -> Boxes:
    """Those of at least that score."""
    keep = boxes[1] >= threshold
    return boxes[0][keep], boxes[1][keep], boxes[2][keep]


def match(expected: Boxes, found: Boxes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of both that are the same object: greedily the largest overlap first, those of one class before others."""
    overlap = ious(expected[0], found[0])
    alike = expected[2][:, None] == found[2][None]
    left, right = np.nonzero(overlap >= MATCH_IOU)
    order = np.lexsort((-overlap[left, right], ~alike[left, right]))
    pairs: list[tuple[int, int]] = []
    ours, theirs = set[int](), set[int]()
    for row, column in zip(left[order].tolist(), right[order].tolist()):
        if row not in ours and column not in theirs:
            ours.add(row)
            theirs.add(column)
            pairs.append((row, column))
    matched = np.array(pairs, np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def ious(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(D, E)`` intersection over union of boxes ``(D, 4)`` and ``(E, 4)``, xyxy; 0 where both are empty."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    end = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.clip(end - corner, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def _rows(answers: Answers) -> NDArray[np.float32]:
    assert answers.rows is not None
    return answers.rows


def _chosen(answers: Answers) -> NDArray[np.int64]:
    return _rows(answers).argmax(axis=1) if answers.choices is None else answers.choices


def _outputs(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Largest difference of each picture, and the mean of all."""
    gap = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return _or_infinite(gap.max(axis=1)), float(gap.mean())


def _or_infinite(values: Any) -> NDArray[np.float64]:
    """NaN as infinity: no limit lets it pass."""
    return np.where(np.isnan(values), np.inf, values)


def _cosines(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(lengths, 1e-12))


def _named(kinds: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in kinds.items() if count}
