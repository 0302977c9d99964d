"""COCO evaluation of a detector, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.metrics.coco_accumulate import accumulate
from mnvision.metrics.coco_ground_truth import read_ground_truth
from mnvision.metrics.coco_matching import match
from mnvision.metrics.coco_official import official_tables
from mnvision.metrics.coco_results import CocoResults, read_results, write_results
from mnvision.metrics.coco_scores import CocoScores, summarise
from mnvision.metrics.detection_confusion import confusion_matrix
from mnvision.metrics.processes import from_all_processes
from mnvision.types import Detections

BACKENDS = ("vectorized", "pycocotools")


class CocoEvaluator:
    """Collects detections and scores them by the official rules.

    ``vectorized`` is our own numpy evaluation; its numbers equal those of pycocotools to the last bit, which
    the tests check on random and real annotations. faster-coco-eval is not offered: version 1.8.0 leaves
    ``np.spacing(1)`` out of the precision, so that its numbers differ in the last digit, and with its
    conversion to dicts it is slower than the numpy evaluation.

    An image counts once. Results for an image given before are left out and counted in
    ``CocoScores.num_repeated``, since distributed samplers repeat samples to fill the last batch.

    Args:
        ground_truth: Content of a COCO annotation file; not changed. See ``read_ground_truth``.
        backend: ``"vectorized"`` or ``"pycocotools"``.

    Raises:
        UserError: Unknown backend, or ground truth that is not COCO format.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        backend: Literal["vectorized", "pycocotools"] = "vectorized",
    ) -> None:
        if backend not in BACKENDS:
            raise UserError(f"unknown COCO backend {backend!r}; choose one of {', '.join(BACKENDS)}")
        self.backend = backend
        self.truth = read_ground_truth(ground_truth)
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._parts: list[CocoResults] = []
        self._seen: set[int] = set()
        self._repeated = 0
        self._foreign = 0

    @property
    def results(self) -> CocoResults:
        """All detections so far, in the order they came."""
        self._parts = [CocoResults.concatenate(self._parts)]
        return self._parts[0]

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """``(I,)`` int64, the images given so far, ascending."""
        return np.array(sorted(self._seen), np.int64)

    def update(self, image_ids: Tensor | Sequence[int], detections: Detections, category_ids: Sequence[int]) -> None:
        """Add the detections of a batch.

        Args:
            image_ids: ``(B,)`` int64.
            detections: Padded detections; boxes xyxy in pixels of the original pictures.
            category_ids: Label -> category id of the annotation file. Detections of a category that the file
                lacks are left out and counted in ``CocoScores.num_foreign_detections``.

        Raises:
            UserError: An image or label is unknown, or a box or score is not finite.
        """
        ids = torch.as_tensor(image_ids).cpu().numpy().astype(np.int64)
        labels, scores, corners = (detections[name].detach().cpu().numpy() for name in ("labels", "scores", "boxes"))
        if len(ids) != len(labels):
            raise UserError(f"{len(ids)} image ids for the detections of {len(labels)} images; give one per image")
        rows, columns = np.nonzero(labels >= 0)
        chosen = labels[rows, columns]
        if len(chosen) and chosen.max() >= len(category_ids):
            image = ids[rows[chosen.argmax()]]
            raise UserError(
                f"image {image}: label {chosen.max()}, but category_ids names {len(category_ids)} classes; "
                "the detector was made for another set of classes"
            )
        boxes = corners[rows, columns].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        categories = np.asarray(category_ids, np.int64)[chosen]
        results = CocoResults(ids[rows], categories, boxes, scores[rows, columns].astype(np.float64))
        unique, first = np.unique(ids, return_index=True)
        self._repeated += len(ids) - len(unique)
        self.add(results.select(np.isin(rows, first)), unique)

    def add(self, results: CocoResults, image_ids: NDArray[np.int64]) -> None:
        """Add results in COCO terms.

        Args:
            results: Detections, all of them in images of ``image_ids``.
            image_ids: ``(I,)`` int64, the images these results are complete for, each once; one without a
                detection is named too.

        Raises:
            UserError: An image is unknown, a box or score is not finite, or a size is negative.
        """
        self._check(results, image_ids)
        again = [image for image in image_ids.tolist() if image in self._seen]
        if again:
            results = results.select(~np.isin(results.image_ids, again))
        self._repeated += len(again)
        self._seen.update(image_ids.tolist())
        known = np.isin(results.category_ids, self.truth.category_ids)
        self._foreign += int(np.count_nonzero(~known))
        self._parts.append(results.select(known))

    def _check(self, results: CocoResults, image_ids: NDArray[np.int64]) -> None:
        unknown = np.setdiff1d(np.concatenate([image_ids, results.image_ids]), self.truth.image_ids)
        if len(unknown):
            raise UserError(f"image id {unknown[0]} is not in the ground truth; evaluate against the split's own file")
        wrong = ~np.isfinite(results.boxes).all(axis=1) | ~np.isfinite(results.scores)
        wrong |= (results.boxes[:, 2:] < 0).any(axis=1)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"image {results.image_ids[row]}: box (xywh) {results.boxes[row].tolist()} with score "
                f"{results.scores[row]}; numbers must be finite and sizes not negative"
            )

    def gather(self) -> None:
        """Exchange results, so that every process holds all of them. Does nothing in a single process."""
        theirs = from_all_processes(lambda: (self.results, self.image_ids, self._repeated, self._foreign))
        if theirs is None:
            return
        self.reset()
        for results, image_ids, repeated, foreign in theirs:
            self.add(results, image_ids)
            self._repeated += repeated
            self._foreign += foreign

    def compute(self, all_images: bool = False) -> CocoScores:
        """Score what was collected.

        Args:
            all_images: Evaluate every image of the ground truth; one that was never given counts as an image
                without detections. Otherwise only the images given are evaluated.

        Returns:
            The scores.
        """
        image_ids = self.truth.image_ids if all_images else self.image_ids
        if self.backend == "vectorized":
            tables = accumulate(match(self.truth, self.results, image_ids))
        else:
            tables = official_tables(self.truth, self.results, image_ids)
        counts = {
            "num_images": len(image_ids),
            "num_detections": len(self.results),
            "num_repeated": self._repeated,
            "num_foreign_detections": self._foreign,
            "num_ignored_annotations": self.truth.num_ignored,
        }
        return summarise(tables, self.truth.class_names, counts)

    def confusion(self, score_threshold: float = 0.5) -> NDArray[np.int64]:
        """Confusion matrix over the images given, see ``detection_confusion.confusion_matrix``.

        Args:
            score_threshold: Detections below it are not shown to the matching, in [0, 1].

        Returns:
            ``(K + 1, K + 1)`` int64, row true class, column predicted class, last of both background; in the
            order of ``truth.class_names``.
        """
        return confusion_matrix(self.truth, self.results, self.image_ids, score_threshold)

    def save_results(self, path: Path | str) -> None:
        """Write the official COCO results file, see ``coco_results.write_results``."""
        write_results(path, self.results)

    def load_results(self, path: Path | str) -> None:
        """Add a results file, our own or anyone's; only images with a detection in it count as given.

        Raises:
            UserError: The file is not in the official format, or names unknown images.
        """
        results = read_results(path)
        self.add(results, np.unique(results.image_ids))
