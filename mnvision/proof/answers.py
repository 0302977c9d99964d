"""What checkpoint and files answer for the same pictures, each prepared as its own metadata say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.data.images import read_image
from mnvision.errors import UserError
from mnvision.prediction.predictor import Predictor
from mnvision.prediction.preprocess import Prepared

BATCH = 16

Boxes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
"""Boxes ``(D, 4)`` xyxy in the original picture's pixels, scores ``(D,)`` best first, labels ``(D,)``."""


@dataclass
class Answers:
    """Of one model for N pictures.

    Attributes:
        rows: ``(N, K)`` float32 probabilities or embeddings; None of detectors.
        choices: ``(N,)`` int64, the answered cell of a geolocator; None of others.
        boxes: One entry per picture of a detector; empty of others.
        sizes: ``(N, 2)`` int64, height and width of the original pictures.
        failure: Why there are none: its runtime failed; empty otherwise.
    """

    rows: NDArray[np.float32] | None = None
    choices: NDArray[np.int64] | None = None
    boxes: list[Boxes] = field(default_factory=list)
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    failure: str = ""


def gather(
    predictors: Sequence[Predictor[Any]],
    dataset: Any,
    positions: NDArray[np.int64],
    report: Callable[[str], None] = lambda _: None,
) -> list[Answers]:
    """Ask all of them about the same pictures.

    Args:
        predictors: Of the checkpoint and of the files, all of one kind; a file whose runtime fails is asked no more.
        dataset: Has ``path(position)``; of pictures with landmarks or boxes also ``source.landmarks(position)``.
        positions: Of the pictures, at least one.
        report: Is told how far it is.

    Returns:
        One entry per predictor, pictures in the order of ``positions``.

    Raises:
        UserError: A picture cannot be read, or the checkpoint itself fails.
    """
    found: list[list[Any]] = [[] for _ in predictors]
    failures: dict[int, str] = {}
    for start in range(0, len(positions), BATCH):
        batch = positions[start : start + BATCH].tolist()
        prepared: dict[str, list[Prepared]] = {}
        for number, predictor in enumerate(predictors):
            rule = f"{predictor.metadata.preprocess} {predictor.resolution}"
            if rule not in prepared:
                prepared[rule] = [prepare(predictor, dataset, position) for position in batch]
            if number in failures:
                continue
            try:
                found[number] += predictor.predict_prepared(prepared[rule], lowest_threshold(predictor))
            except UserError as error:
                if number == 0:
                    raise
                failures[number] = str(error)
        report(f"{min(start + BATCH, len(positions))} of {len(positions)} pictures")
    return [
        Answers(failure=failures[number]) if number in failures else _collected(predictor.kind, found[number])
        for number, predictor in enumerate(predictors)
    ]


def answer(predictor: Predictor[Any], pictures: Sequence[Prepared]) -> Answers:
    """Ask one of them about pictures that are prepared already.

    Args:
        predictor: Of a checkpoint or of a file.
        pictures: At least one.

    Raises:
        UserError: A runtime fails.
    """
    lowest = lowest_threshold(predictor)
    results: list[Any] = []
    for start in range(0, len(pictures), BATCH):
        results += predictor.predict_prepared(pictures[start : start + BATCH], lowest)
    return _collected(predictor.kind, results)


def prepare(predictor: Predictor[Any], dataset: Any, position: int) -> Prepared:
    """One picture of a data set as a model's own metadata want it."""
    source: Any = dataset.picture(position) if hasattr(dataset, "picture") else dataset.path(position)
    if not isinstance(source, str | Path):  # in memory, from a shard
        source = read_image(source).pixels
    known = getattr(getattr(dataset, "source", None), "landmarks", None)
    landmarks = None if known is None else known(position)
    return predictor.preprocess(source) if landmarks is None else predictor.preprocess(source, landmarks)


def lowest_threshold(predictor: Predictor[Any]) -> float | None:
    """Of a detector the score from which on it answers at all, else None."""
    model = predictor.model
    return model.decoder.score_threshold if predictor.kind == "detection" else None


def _collected(kind: str, results: Sequence[Any]) -> Answers:
    sizes = np.array([result.size for result in results], np.int64)
    if kind == "detection":
        return Answers(boxes=[_boxes(result.detections) for result in results], sizes=sizes)
    if kind == "face_embeddings":
        return Answers(np.stack([result.embedding for result in results]), sizes=sizes)
    rows = np.stack([result.probabilities for result in results])
    cells = np.array([result.cell for result in results], np.int64) if kind == "geolocation" else None
    return Answers(rows, cells, sizes=sizes)


def _boxes(detections: Sequence[Any]) -> Boxes:
    corners = np.array([found.box for found in detections], np.float64).reshape(-1, 4)
    scores = np.array([found.score for found in detections], np.float64)
    return corners, scores, np.array([found.label for found in detections], np.int64)
