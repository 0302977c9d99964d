"""The annotations that detections are scored against, as flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError


@dataclass(frozen=True)
class CocoGroundTruth:
    """What an evaluation needs of an annotation file.

    Attributes:
        image_ids: ``(I,)`` int64, ascending.
        category_ids: ``(K,)`` int64, ascending.
        class_names: One name per category id, unique.
        annotation_ids: ``(N,)`` int64.
        image_of: ``(N,)`` int64, the annotation's image id.
        category_of: ``(N,)`` int64, the annotation's category id.
        boxes: ``(N, 4)`` float64, x, y, width, height in pixels.
        areas: ``(N,)`` float64, square pixels (in COCO the area of the mask, not of the box).
        crowd: ``(N,)`` bool.
        num_ignored: Annotations left out because they name an image or category that the file lacks;
            pycocotools leaves them out too.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    annotation_ids: NDArray[np.int64]
    image_of: NDArray[np.int64]
    category_of: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    num_ignored: int

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The same in the official layout, new dicts each time (pycocotools writes into them)."""
        columns = zip(
            self.annotation_ids.tolist(),
            self.image_of.tolist(),
            self.category_of.tolist(),
            self.boxes.tolist(),
            self.areas.tolist(),
            self.crowd.tolist(),
        )
        names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        return {
            "images": [{"id": image} for image in self.image_ids.tolist()],
            "annotations": [dict(zip(names, row)) for row in columns],
            "categories": [
                {"id": category, "name": name} for category, name in zip(self.category_ids.tolist(), self.class_names)
            ],
        }


def read_ground_truth(content: Mapping[str, Any]) -> CocoGroundTruth:
    """Check a COCO-format dict and keep what an evaluation needs; the dict is not changed.

    An annotation without ``area`` gets width times height of its box, one without ``iscrowd`` is no crowd
    (custom files often lack both; pycocotools stops at them).

    Args:
        content: ``images``, ``annotations`` and ``categories`` as in the official file.

    Returns:
        The annotations, in the order of the file.

    Raises:
        UserError: A list or field is missing, an id occurs twice, or a box is not four finite numbers.
    """
    image_ids = _unique_ids(content, "images")
    category_ids = _unique_ids(content, "categories")
    _unique_ids(content, "annotations")
    kept = []
    images, categories = set(image_ids), set(category_ids)
    for annotation in content["annotations"]:
        if _field(annotation, "image_id") in images and _field(annotation, "category_id") in categories:
            kept.append(annotation)
    order = np.argsort(np.array(category_ids, np.int64))
    boxes = _boxes(kept)
    return CocoGroundTruth(
        image_ids=np.sort(np.array(image_ids, np.int64)),
        category_ids=np.array(category_ids, np.int64)[order],
        class_names=_unique_names([content["categories"][index] for index in order]),
        annotation_ids=np.array([item["id"] for item in kept], np.int64),
        image_of=np.array([item["image_id"] for item in kept], np.int64),
        category_of=np.array([item["category_id"] for item in kept], np.int64),
        boxes=boxes,
        areas=_areas(kept, boxes),
        crowd=np.array([bool(item.get("iscrowd", 0)) for item in kept], np.bool_),
        num_ignored=len(content["annotations"]) - len(kept),
    )


def _unique_ids(content: Mapping[str, Any], section: str) -> list[int]:
    if not isinstance(content.get(section), Sequence):
        raise UserError(f"ground truth has no list '{section}'; give the content of a COCO annotation file")
    ids: list[int] = []
    for index, item in enumerate(content[section]):
        value = item.get("id")
        if not isinstance(value, int):
            raise UserError(f"ground truth, {section}[{index}]: id is {value!r}, not an integer")
        ids.append(value)
    if len(set(ids)) != len(ids):
        values, counts = np.unique(np.array(ids, np.int64), return_counts=True)
        raise UserError(f"ground truth, {section}: id {values[counts > 1][0]} occurs twice; ids must be unique")
    return ids


def _field(annotation: Mapping[str, Any], name: str) -> Any:
    if name not in annotation:
        raise UserError(f"ground truth, annotation {annotation['id']}: field '{name}' is missing")
    return annotation[name]


def _boxes(annotations: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    boxes = np.zeros((len(annotations), 4))
    for row, annotation in zip(boxes, annotations):
        box = _field(annotation, "bbox")
        try:
            row[:] = np.asarray(box, np.float64).reshape(4)
        except (TypeError, ValueError) as error:
            raise UserError(f"ground truth, annotation {annotation['id']}: bbox is not four numbers") from error
    _refuse_not_finite(boxes.sum(axis=1), annotations, "bbox")
    return boxes


def _areas(annotations: Sequence[Mapping[str, Any]], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    given = [annotation.get("area") for annotation in annotations]
    of_boxes = (boxes[:, 2] * boxes[:, 3]).tolist()
    try:
        areas = np.array([own if area is None else area for area, own in zip(given, of_boxes)], np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("ground truth, annotations: an area is not a number") from error
    _refuse_not_finite(areas, annotations, "area")
    return areas


def _refuse_not_finite(values: NDArray[np.float64], annotations: Sequence[Mapping[str, Any]], field: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"ground truth, annotation {annotations[bad[0]]['id']}: {field} is not finite")


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    names = [str(category.get("name", category["id"])) for category in categories]
    return tuple(
        f"{name} (id {category['id']})" if names.count(name) > 1 else name for name, category in zip(names, categories)
    )
