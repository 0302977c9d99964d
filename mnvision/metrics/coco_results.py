"""Detections as flat arrays, and the official COCO results file."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.files import whole_file

_ROWS_PER_WRITE = 10_000


@dataclass(frozen=True)
class CocoResults:
    """Detections of many images; row ``i`` of every array is one detection.

    Attributes:
        image_ids: ``(N,)`` int64.
        category_ids: ``(N,)`` int64, ids of the annotation file, not labels.
        boxes: ``(N, 4)`` float64, x, y, width, height in pixels of the original picture.
        scores: ``(N,)`` float64.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: NDArray[Any]) -> CocoResults:
        """Rows named by a mask ``(N,)`` bool or by indices ``(M,)`` int64."""
        return CocoResults(self.image_ids[keep], self.category_ids[keep], self.boxes[keep], self.scores[keep])

    @staticmethod
    def concatenate(parts: Sequence[CocoResults]) -> CocoResults:
        """Join results in the order given; no parts give an empty one."""
        return CocoResults(
            np.concatenate([np.empty(0, np.int64), *(part.image_ids for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.category_ids for part in parts)]),
            np.concatenate([np.empty((0, 4)), *(part.boxes for part in parts)]),
            np.concatenate([np.empty(0), *(part.scores for part in parts)]),
        )


def write_results(path: Path | str, results: CocoResults) -> None:
    """Write the official results file: a JSON list of image_id, category_id, bbox (xywh) and score.

    Numbers are written with all the digits that a float64 needs, so a file read back gives the same scores to
    the last bit. The file is written row by row and put in place whole. Format:
    https://cocodataset.org/#format-results, section 1 (object detection).

    Args:
        path: The file to write.
        results: What to write, in this order.

    Raises:
        UserError: The folder cannot be written to.
    """
    with whole_file(path) as partial, partial.open("w", encoding="ascii") as file:
        file.write("[")
        separator = "\n"
        for start in range(0, len(results), _ROWS_PER_WRITE):
            part = results.select(np.arange(start, min(start + _ROWS_PER_WRITE, len(results))))
            columns = zip(
                part.image_ids.tolist(), part.category_ids.tolist(), part.boxes.tolist(), part.scores.tolist()
            )
            for image, category, (x, y, width, height), score in columns:
                file.write(
                    f'{separator}{{"image_id":{image},"category_id":{category},'
                    f'"bbox":[{x!r},{y!r},{width!r},{height!r}],"score":{score!r}}}'
                )
                separator = ",\n"
        file.write("\n]\n")


class _Rows:
    """Collects result objects while the JSON parser meets them, so that no list of dicts is ever held."""

    def __init__(self) -> None:
        self.integers = array("q")
        self.floats = array("d")

    def take(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """Store one result; other objects (a mask inside a result) are passed on."""
        if "image_id" not in item:
            return item
        box = item["bbox"]
        if len(box) != 4:
            raise ValueError("bbox does not have four numbers")
        # Integer columns go through array("q"), which refuses text and fractions; 7.0 is not an id.
        self.integers.extend((item["image_id"], item["category_id"]))
        self.floats.extend((*box, item["score"]))
        return None

    def results(self) -> CocoResults:
        """What was collected."""
        ids = np.array(self.integers, np.int64).reshape(-1, 2)
        numbers = np.array(self.floats, np.float64).reshape(-1, 5)
        boxes = np.ascontiguousarray(numbers[:, :4])
        return CocoResults(ids[:, 0].copy(), ids[:, 1].copy(), boxes, numbers[:, 4].copy())


def read_results(path: Path | str) -> CocoResults:
    """Read a results file of any detector, see :func:`write_results` for the format.

    Args:
        path: The JSON file.

    Returns:
        The detections in the order of the file.

    Raises:
        UserError: The file is missing, is no JSON, is not a list of detections, or an entry lacks a field.
    """
    rows = _Rows()
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"), object_hook=rows.take)
    except OSError as error:
        raise UserError(f"cannot read results file {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"results file {path} is not JSON: {error}") from error
    except KeyError as error:
        raise UserError(
            f"results file {path}, entry {len(rows.floats) // 5}: field {error} is missing; an entry needs "
            "image_id, category_id, bbox and score"
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"results file {path}, entry {len(rows.floats) // 5}: {error}") from error
    if not isinstance(entries, list) or any(entry is not None for entry in entries):
        raise UserError(f"results file {path} is not a list of detections with an image_id each")
    return rows.results()
