"""The task's official metric of answers that are there already, on any of the pictures, hence with a bootstrap.

The evaluators are those of ``tools/evaluate.py``; a picture drawn twice is a picture of its own to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.geo.distance import great_circle_km
from mnvision.metrics.attributes import AttributeEvaluator
from mnvision.metrics.classification import ClassificationEvaluator
from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.geolocation import GeolocationEvaluator
from mnvision.metrics.verification import verify
from mnvision.proof.answers import Answers
from mnvision.proof.bootstrap import Interval, Rows, interval_of_mean, interval_of_metric

LOWER_IS_BETTER = ("eer", "brier", "ece", "loss", "median_km", "mean_km", "standard_error")
AFFORDABLE = 500
"""Pictures up to which a detector's AP is resampled: each resample matches all boxes anew."""


class Scoring(ABC):
    """What is true of N pictures.

    Args:
        count: How many rows can be drawn.

    Attributes:
        over: What such a row is.
        metric: The name of the metric unless another is asked for.
    """

    over = "pictures"
    metric = ""

    def __init__(self, count: int) -> None:
        self.count = count

    @abstractmethod
    def scores(self, answers: Answers, rows: Rows | None = None) -> Mapping[str, float]:
        """All scores by name, of all pictures or of the rows drawn."""

    def hits(self, answers: Answers, metric: str) -> NDArray[np.float64] | None:
        """``(N,)`` whose mean the metric is; None where it is no mean over pictures."""
        return None

    def interval(self, expected: Answers, found: Answers, metric: str, seed: int = 0) -> Interval | None:
        """Of the file's score less the checkpoint's; None where it is not affordable."""
        ours, theirs = self.hits(expected, metric), self.hits(found, metric)
        if ours is not None and theirs is not None:
            return interval_of_mean(theirs - ours, seed=seed)

        def difference(rows: Rows) -> float:
            try:
                return self.scores(found, rows)[metric] - self.scores(expected, rows)[metric]
            except (UserError, KeyError):  # these rows lack positives, or one kind of pair
                return float("nan")

        return interval_of_metric(difference, self.count, self.over, seed=seed)


class ClassScoring(Scoring):
    """Of a classifier.

    Args:
        labels: ``(N,)`` int64, in the order of ``names``.
        names: The model's classes.
    """

    metric = "top1"

    def __init__(self, labels: NDArray[np.int64], names: list[str]) -> None:
        super().__init__(len(labels))
        self.labels, self.names = labels, names

    def scores(self, answers: Answers, rows: Rows | None = None) -> Mapping[str, float]:
        """See :meth:`Scoring.scores`."""
        evaluator = ClassificationEvaluator(self.names)
        evaluator.update(*_tensors(answers.rows, self.labels, rows))
        return evaluator.compute().scalars()

    def hits(self, answers: Answers, metric: str) -> NDArray[np.float64] | None:
        """See :meth:`Scoring.hits`."""
        assert answers.rows is not None
        return (answers.rows.argmax(axis=1) == self.labels).astype(np.float64) if metric == "top1" else None


class AttributeScoring(Scoring):
    """Of attributes.

    Args:
        labels: ``(N, A)`` int8 of the attributes that are scored.
        names: Their names.
        columns: Which of the model's they are.
        thresholds: ``(A,)``, None for 0.5.
    """

    metric = "mAP"

    def __init__(
        self,
        labels: NDArray[np.int8],
        names: list[str],
        columns: list[int],
        thresholds: NDArray[np.float64] | None,
    ) -> None:
        super().__init__(len(labels))
        self.labels, self.names, self.columns, self.thresholds = labels, names, columns, thresholds

    def scores(self, answers: Answers, rows: Rows | None = None) -> Mapping[str, float]:
        """See :meth:`Scoring.scores`."""
        assert answers.rows is not None
        evaluator = AttributeEvaluator(self.names)
        evaluator.update(*_tensors(answers.rows[:, self.columns], self.labels, rows))
        found = evaluator.compute(self.thresholds).scalars()
        return {name: value for name, value in found.items() if value >= 0}


class PairScoring(Scoring):
    """Of embeddings.

    Args:
        pairs: ``(P, 2)`` rows of the answers.
        same: ``(P,)`` bool.
        folds: ``(P,)`` int.
    """

    metric, over = "accuracy", "pairs"

    def __init__(self, pairs: NDArray[np.int64], same: NDArray[np.bool_], folds: NDArray[np.int64]) -> None:
        super().__init__(len(pairs))
        self.pairs, self.same, self.folds = pairs, same, folds

    def scores(self, answers: Answers, rows: Rows | None = None) -> Mapping[str, float]:
        """See :meth:`Scoring.scores`."""
        chosen = np.arange(self.count) if rows is None else rows
        found = verify(answers.rows, self.pairs[chosen], self.same[chosen], self.folds[chosen])  # type: ignore[arg-type]
        return found.scalars()


class PlaceScoring(Scoring):
    """Of a geolocator.

    Args:
        labels: ``(N,)`` int64 cells, -1 outside all.
        coordinates: ``(N, 2)`` float64 latitude and longitude.
        positions: ``(K, 2)`` float64 of the cells.
    """

    metric = "within_750km"

    def __init__(
        self, labels: NDArray[np.int64], coordinates: NDArray[np.float64], positions: NDArray[np.float64]
    ) -> None:
        super().__init__(len(labels))
        self.labels, self.coordinates, self.positions = labels, coordinates, positions

    def scores(self, answers: Answers, rows: Rows | None = None) -> Mapping[str, float]:
        """See :meth:`Scoring.scores`."""
        assert answers.rows is not None
        assert answers.choices is not None
        chosen = np.arange(self.count) if rows is None else rows
        logits = np.log(np.maximum(answers.rows[chosen], 1e-30))
        evaluator = GeolocationEvaluator(self.positions)
        evaluator.update(
            torch.from_numpy(logits),
            torch.from_numpy(answers.choices[chosen]),
            torch.from_numpy(self.labels[chosen]),
            torch.from_numpy(self.coordinates[chosen]),
            torch.arange(len(chosen)),
        )
        return evaluator.compute().scalars()

    def hits(self, answers: Answers, metric: str) -> NDArray[np.float64] | None:
        """See :meth:`Scoring.hits`: shares within a radius are means."""
        radius = metric.removeprefix("within_").removesuffix("km")
        if not (metric.startswith("within_") and radius.isdigit()) or answers.choices is None:
            return None
        placed = self.positions[answers.choices]
        km = great_circle_km(placed[:, 0], placed[:, 1], self.coordinates[:, 0], self.coordinates[:, 1])
        return (km <= int(radius)).astype(np.float64)


class BoxScoring(Scoring):
    """Of a detector.

    Args:
        ground_truth: In COCO's format.
        image_ids: ``(N,)`` of the pictures.
        category_ids: Of the model's labels; -1 for those that the data lack.
    """

    metric = "AP"

    def __init__(self, ground_truth: Mapping[str, Any], image_ids: NDArray[np.int64], category_ids: list[int]) -> None:
        super().__init__(len(image_ids))
        self.truth, self.image_ids, self.category_ids = ground_truth, image_ids, category_ids
        self._images = {image["id"]: image for image in ground_truth["images"]}
        self._objects: dict[int, list[dict[str, Any]]] = {}
        for entry in ground_truth["annotations"]:
            self._objects.setdefault(entry["image_id"], []).append(entry)

    def scores(self, answers: Answers, rows: Rows | None = None) -> Mapping[str, float]:
        """See :meth:`Scoring.scores`."""
        chosen = np.arange(self.count) if rows is None else rows
        evaluator = CocoEvaluator(self.truth if rows is None else self._drawn(rows))
        ids = self.image_ids if rows is None else np.arange(1, len(rows) + 1)
        for image, row in zip(ids.tolist(), chosen.tolist()):
            boxes, scores, labels = (torch.from_numpy(column)[None] for column in answers.boxes[row])
            evaluator.update([image], {"boxes": boxes, "scores": scores, "labels": labels}, self.category_ids)
        return {name: value for name, value in evaluator.compute().twelve().items() if value >= 0}

    def interval(self, expected: Answers, found: Answers, metric: str, seed: int = 0) -> Interval | None:
        """See :meth:`Scoring.interval`."""
        return super().interval(expected, found, metric, seed) if self.count <= AFFORDABLE else None

    def _drawn(self, rows: Rows) -> dict[str, Any]:
        """The ground truth of the pictures drawn, each under a number of its own."""
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for number, original in enumerate(self.image_ids[rows].tolist(), 1):
            images.append({**self._images[original], "id": number})
            for entry in self._objects.get(original, ()):
                objects.append({**entry, "image_id": number, "id": len(objects) + 1})
        return {**deepcopy({"categories": self.truth["categories"]}), "images": images, "annotations": objects}


def metric_name(wanted: str | None, scoring: Scoring, answers: Answers, metadata: Metadata) -> str:
    """What is asked for; else what the run monitored, where more of it is better; else the task's own.

    Raises:
        UserError: The task has no such metric.
    """
    known = scoring.scores(answers)
    if scoring.metric not in known:
        raise UserError(f"{scoring.metric} is not defined on so few pictures: raise limit=, or leave it out")
    if wanted is not None:
        if wanted not in known:
            raise UserError(f"metric={wanted}: this task has {', '.join(known)}")
        return wanted
    monitor = str((metadata.run.get("monitor") or {}).get("metric", "")).removeprefix("val/")
    return monitor if monitor in known and monitor not in LOWER_IS_BETTER else scoring.metric


def _tensors(outputs: Any, labels: NDArray[Any], rows: Rows | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs, labels and a number for each."""
    chosen = np.arange(len(labels)) if rows is None else rows
    return torch.from_numpy(outputs[chosen]), torch.from_numpy(labels[chosen]), torch.arange(len(chosen))
