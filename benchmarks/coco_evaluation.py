"""Our COCO evaluator against pycocotools on the same detections, with the same twelve numbers.

"whole": from ground truth and detections in memory to the twelve numbers, so indexing and loading count.
"scoring alone": matching, accumulation and averages on what is already loaded. Ground truth is made from a
seed; detections are its boxes moved at random, with wrong classes and false alarms among them, 100 per image.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.duel import interleave, rate_table, ratio_table, raw
from benchmarks.pictures import NUM_CLASSES, coco_dict, random_boxes
from benchmarks.report import Result, finish, parser
from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.coco_results import CocoResults

HEIGHT, WIDTH = 480, 640


def make_detections(truth: dict[str, Any], per_image: int, seed: int = 0) -> CocoResults:
    """Detections worth scoring: of an image's rows the first are moved ground truth, the others random."""
    rng = np.random.default_rng(seed)
    image_ids = np.array([image["id"] for image in truth["images"]], np.int64)
    boxes = random_boxes(rng, len(image_ids) * per_image, HEIGHT, WIDTH)
    categories = rng.integers(1, NUM_CLASSES + 1, len(boxes))
    scores = rng.random(len(boxes)) * 0.5
    taken = np.zeros(len(image_ids), np.int64)
    for item in truth["annotations"]:
        image = item["image_id"] - 1
        if taken[image] < per_image and rng.random() < 0.8:
            row = image * per_image + taken[image]
            boxes[row] = np.array(item["bbox"]) + rng.normal(0, 0.08, 4) * np.tile(item["bbox"][2:], 2)
            boxes[row, 2:] = np.maximum(boxes[row, 2:], 1.0)
            if rng.random() < 0.85:
                categories[row] = item["category_id"]
            scores[row] = rng.random()
            taken[image] += 1
    return CocoResults(np.repeat(image_ids, per_image), categories.astype(np.int64), boxes, scores)


class Ours:
    """Our evaluator on given detections."""

    def __init__(self, truth: dict[str, Any], results: CocoResults) -> None:
        self.truth, self.results = truth, results
        self.images = np.array([image["id"] for image in truth["images"]], np.int64)
        self.loaded = self._load()
        self.numbers: list[float] = []

    def _load(self) -> CocoEvaluator:
        evaluator = CocoEvaluator(self.truth)
        evaluator.add(self.results, self.images)
        return evaluator

    def whole(self) -> int:
        """Ground truth and detections to numbers."""
        self.numbers = list(self._load().compute().twelve().values())
        return len(self.images)

    def alone(self) -> int:
        """Scoring of what was loaded before."""
        self.loaded.compute()
        return len(self.images)


class Peer:
    """pycocotools on the same detections, its printing thrown away."""

    def __init__(self, truth: dict[str, Any], results: CocoResults) -> None:
        # loadRes and createIndex write into what they are given.
        self.truth = copy.deepcopy(truth)
        columns = [
            results.image_ids[:, None],
            results.boxes,
            results.scores[:, None],
            results.category_ids[:, None],
        ]
        self.rows: NDArray[np.float64] = np.concatenate(columns, axis=1).astype(np.float64)
        self.loaded = self._load()
        self.numbers: list[float] = []

    def _load(self) -> tuple[COCO, COCO]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = self.truth
            truth.createIndex()
            return truth, truth.loadRes(self.rows)

    def _score(self, truth: COCO, results: COCO) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, results, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(value) for value in evaluation.stats]

    def whole(self) -> int:
        """Ground truth and detections to numbers."""
        self.numbers = self._score(*self._load())
        return len(self.truth["images"])

    def alone(self) -> int:
        """Scoring of what was loaded before."""
        self._score(*self.loaded)
        return len(self.truth["images"])


def main() -> None:
    """Command line."""
    options = parser("coco_evaluation", __doc__, rounds=3)
    options.add_argument("--images", type=int, default=500, help="pictures, e.g. 5000 as in val2017 (default 500)")
    options.add_argument("--detections", type=int, default=100, help="per picture (default 100)")
    given = options.parse_args()
    images, rounds = (30, 1) if given.quick else (given.images, given.rounds)
    truth = coco_dict([f"{i}.jpg" for i in range(images)], HEIGHT, WIDTH)
    results = make_detections(truth, given.detections)
    ours, peer = Ours(truth, results), Peer(truth, results)
    works: dict[str, Callable[[], int]] = {
        "ours, whole": ours.whole,
        "pycocotools, whole": peer.whole,
        "ours, scoring alone": ours.alone,
        "pycocotools, scoring alone": peer.alone,
    }
    samples = interleave(works, rounds)
    if ours.numbers != peer.numbers:
        raise SystemExit(f"the twelve numbers differ:\nours        {ours.numbers}\npycocotools {peer.numbers}")
    pairs = [("ours, whole", "pycocotools, whole"), ("ours, scoring alone", "pycocotools, scoring alone")]
    tables = [rate_table("COCO evaluation", "images", samples), ratio_table("Ratio", samples, pairs)]
    notes = [f"The twelve numbers of both are equal to the last bit; AP is {ours.numbers[0]:.6f}."]
    settings = {
        "images": images,
        "detections per image": given.detections,
        "classes": NUM_CLASSES,
        "rounds": rounds,
    }
    finish(Result("coco_evaluation", settings, tables, notes, raw(samples)), given.output)


if __name__ == "__main__":
    main()
