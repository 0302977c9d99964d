"""The same tables from pycocotools, the reference implementation."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnvision.metrics.coco_accumulate import CocoTables
from mnvision.metrics.coco_ground_truth import CocoGroundTruth
from mnvision.metrics.coco_results import CocoResults


def official_tables(truth: CocoGroundTruth, results: CocoResults, image_ids: NDArray[np.int64]) -> CocoTables:
    """Evaluate with pycocotools, without its printing.

    Args:
        truth: Annotations.
        results: Detections; those in other images are left out.
        image_ids: ``(I,)``, the images to evaluate.

    Returns:
        The tables of precision and recall.
    """
    content = truth.as_dict()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(content), _coco({**content, "annotations": _as_annotations(results)}), "bbox")
        evaluation.params.imgIds = image_ids.tolist()
        evaluation.evaluate()
        evaluation.accumulate()
    return CocoTables(evaluation.eval["precision"][..., 2], evaluation.eval["recall"])


def _coco(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _as_annotations(results: CocoResults) -> list[dict[str, Any]]:
    """What pycocotools' ``loadRes`` makes of results; it refuses an empty list, which is valid here."""
    columns = zip(
        results.image_ids.tolist(),
        results.category_ids.tolist(),
        results.boxes.tolist(),
        results.scores.tolist(),
    )
    return [
        {
            "id": index + 1,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "score": score,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for index, (image, category, box, score) in enumerate(columns)
    ]
