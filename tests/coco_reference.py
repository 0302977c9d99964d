"""Small COCO problems, and plain pycocotools to check results against."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.coco_results import CocoResults


def official(ground_truth, entries, image_ids=None):
    """The twelve numbers of plain pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(entries)), "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def results_of(entries):
    return CocoResults(
        np.array([entry["image_id"] for entry in entries], np.int64),
        np.array([entry["category_id"] for entry in entries], np.int64),
        np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        np.array([entry["score"] for entry in entries], np.float64),
    )


def scored(ground_truth, entries, backend="vectorized", image_ids=None):
    evaluator = CocoEvaluator(ground_truth, backend)
    ids = [image["id"] for image in ground_truth["images"]] if image_ids is None else image_ids
    kept = [entry for entry in entries if entry["image_id"] in set(ids)]
    evaluator.add(results_of(kept), np.array(ids, np.int64))
    return evaluator.compute()


def annotation(identity, image, category, box, crowd=0):
    area = box[2] * box[3]
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
    }


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def tiny():
    """Two images, two classes; image 9 is empty."""
    return {
        "images": [{"id": 4}, {"id": 9}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [annotation(1, 4, 3, [0, 0, 100, 100]), annotation(2, 4, 3, [200, 0, 100, 100])],
    }


def jittered(content, generator, per_image=20):
    """Detections like a detector's: annotations moved a little, some of the wrong class, and noise."""
    categories = [category["id"] for category in content["categories"]]
    boxes_of = {image["id"]: [] for image in content["images"]}
    for item in content["annotations"]:
        boxes_of[item["image_id"]].append((item["bbox"], item["category_id"]))
    entries = []
    for image, truths in boxes_of.items():
        for _ in range(int(generator.integers(0, per_image))):
            box, category = generator.uniform(0, 300, 4), int(generator.choice(categories))
            if truths and generator.random() < 0.7:
                box, own = truths[generator.integers(len(truths))]
                box = np.array(box) + generator.normal(0, 0.06, 4) * np.tile(box[2:], 2)
                category = own if generator.random() < 0.9 else category
            box = np.abs(box).astype(np.float32).astype(np.float64)
            # Two decimals make many scores equal.
            entries.append(detection(image, category, box.tolist(), round(float(generator.random()), 2)))
    return entries


def batch(rows, images=1):
    """Padded detections from rows (image, label, corners, score)."""
    detections = {
        "boxes": torch.zeros(images, 8, 4),
        "scores": torch.zeros(images, 8),
        "labels": torch.full((images, 8), -1),
    }
    for slot, (image, label, corners, score) in enumerate(rows):
        detections["boxes"][image, slot] = torch.tensor(corners)
        detections["scores"][image, slot] = score
        detections["labels"][image, slot] = label
    return detections
