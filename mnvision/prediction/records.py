"""Predictions as files: JSON, CSV or the official COCO results format, written as they come."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.prediction.detection import DetectionPredictor, detectors_of
from mnvision.prediction.predictor import Predictor
from mnvision.prediction.results import ImageDetections, ImageResult, Shown
from mnvision.prediction.two_stage import TwoStagePredictor

FORMATS = ("json", "csv", "coco")


class Records(ABC):
    """Files of predictions that appear, whole, when the ``with`` block ends without an error.

    Attributes:
        names: The files.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._stack = ExitStack()

    def _open(self, path: Path) -> TextIO:
        partial = self._stack.enter_context(whole_file(path))
        self.names.append(path.name)
        # A file name that is no UTF-8 becomes an escape, which JSON can say too.
        return self._stack.enter_context(partial.open("w", encoding="utf-8", errors="backslashreplace", newline=""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)

    @abstractmethod
    def add(self, position: int, name: str, result: ImageResult, extra: dict[str, Any]) -> None:
        """Write one picture.

        Args:
            position: Of the picture among all of the input, from 0, skipped ones counted too.
            name: Of the picture, relative to the input.
            result: What was predicted.
            extra: More fields, e.g. the time of a video frame.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what comes after the last picture."""


class _JsonList:
    """A JSON list whose items are written one by one, one per line."""

    def __init__(self, file: TextIO, before: str = "[", after: str = "]") -> None:
        self._file, self._after, self._separator = file, after, "\n"
        file.write(before)

    def add(self, item: dict[str, Any]) -> None:
        self._file.write(self._separator + json.dumps(item, ensure_ascii=False))
        self._separator = ",\n"

    def close(self) -> None:
        self._file.write(f"\n{self._after}\n")


class JsonRecords(Records):
    """``predictions.json``: a list with one object per picture (see ``to_dict`` of the results).

    Args:
        folder: Where the file goes.
        shown: How much of a result is written.
    """

    def __init__(self, folder: Path, shown: Shown) -> None:
        super().__init__()
        self._shown = shown
        self._list = _JsonList(self._open(folder / "predictions.json"))

    def add(self, position: int, name: str, result: ImageResult, extra: dict[str, Any]) -> None:
        """See :meth:`Records.add`."""
        self._list.add({**result.record(self._shown), "path": name, **extra})

    def finish(self) -> None:
        """Close the list."""
        self._list.close()


@dataclass(frozen=True)
class Table:
    """One table of results.

    Attributes:
        name: Of its file: ``predictions.csv``, or ``predictions_<name>.csv``.
        columns: Their names.
        rows: Of the result for one picture.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[ImageResult, Shown], list[list[Any]]]


class CsvRecords(Records):
    """``predictions.csv``: the rows of every result; of several heads a file for each.

    Args:
        folder: Where the files go.
        shown: How much of a result is written.
        tables: What is written.
        extra: Names of further columns.
    """

    def __init__(self, folder: Path, shown: Shown, tables: Sequence[Table], extra: Sequence[str] = ()) -> None:
        super().__init__()
        self._shown, self._extra = shown, tuple(extra)
        self._tables: list[tuple[Table, TextIO, Any]] = []
        for table in tables:
            file = self._open(folder / f"predictions{_suffix(table.name)}.csv")
            writer = csv.writer(file)
            writer.writerow(["path", *self._extra, "width", "height", *table.columns])
            self._tables.append((table, file, writer))

    def add(self, position: int, name: str, result: ImageResult, extra: dict[str, Any]) -> None:
        """See :meth:`Records.add`."""
        height, width = result.size
        first = [name, *(extra[column] for column in self._extra), width, height]
        for table, _, writer in self._tables:
            writer.writerows(first + row for row in table.rows(result, self._shown))

    def finish(self) -> None:
        """A table has no last line of its own: only see that all rows are written while errors still count."""
        for _, file, _ in self._tables:
            file.flush()


def tables_of(predictor: Predictor[Any]) -> list[Table]:
    """What there is to write of a predictor's results: a table per head, and one per head that boxes are passed to."""
    tables = [
        Table(name, part.result_type.columns(part.class_names), partial(_rows, name))
        for name, part in predictor.parts.items()
    ]
    if isinstance(predictor, TwoStagePredictor):
        for name, part in predictor.second_parts.items():
            columns = ("box", *part.result_type.columns(part.class_names))
            tables.append(Table(f"boxes_{name}", columns, partial(_rows_of_boxes, predictor.detector, name)))
    return tables


def _rows(head: str, result: ImageResult, shown: Shown) -> list[list[Any]]:
    return result.parts[head].rows(shown)


def _rows_of_boxes(detector: str, head: str, result: ImageResult, shown: Shown) -> list[list[Any]]:
    """The number of the box, as in the detector's own table from 0 on, and what is said of it."""
    found = result.parts[detector]
    assert isinstance(found, ImageDetections)
    return [[number, *row] for number, one in enumerate(found) if one.answers for row in one.answers[head].rows(shown)]


def _suffix(name: str) -> str:
    return f"_{name}" if name else ""


class CocoRecords(Records):
    """``detections.json`` in the COCO results format, and ``images.json`` with what its ids mean.

    Heads that are no detectors, and what is said of boxes, are left out.

    Format: https://cocodataset.org/#format-results, section 1. ``image_id`` is the picture's position in the
    input, from 0; ``category_id`` is the one of the annotation file that the model was trained on.
    ``images.json`` has the ``images`` and ``categories`` of a COCO annotation file.

    Args:
        folder: Where the files go.
        detectors: By head; each has files of its own, ``detections_<head>.json`` and ``images_<head>.json``.
    """

    def __init__(self, folder: Path, detectors: Mapping[str, DetectionPredictor]) -> None:
        super().__init__()
        self._heads: dict[str, tuple[tuple[int, ...], _JsonList, _JsonList]] = {}
        for head, predictor in detectors.items():
            ids = predictor.category_ids
            categories = [{"id": i, "name": name} for i, name in zip(ids, predictor.class_names)]
            results = _JsonList(self._open(folder / f"detections{_suffix(head)}.json"))
            after = f'],\n"categories": {json.dumps(categories, ensure_ascii=False)}}}'
            images = _JsonList(self._open(folder / f"images{_suffix(head)}.json"), '{"images": [', after)
            self._heads[head] = (ids, results, images)

    def add(self, position: int, name: str, result: ImageResult, extra: dict[str, Any]) -> None:
        """See :meth:`Records.add`."""
        height, width = result.size
        picture = {"id": position, "file_name": name, "width": width, "height": height, **extra}
        for head, (ids, results, images) in self._heads.items():
            detections = result.parts[head]
            assert isinstance(detections, ImageDetections)
            images.add(picture)
            for found in detections:
                x1, y1, x2, y2 = found.box
                box = [x1, y1, x2 - x1, y2 - y1]
                results.add({"image_id": position, "category_id": ids[found.label], "bbox": box, "score": found.score})

    def finish(self) -> None:
        """Close all lists."""
        for _, results, images in self._heads.values():
            results.close()
            images.close()


def open_records(
    file_format: str, folder: Path, predictor: Predictor[Any], shown: Shown, extra: Sequence[str] = ()
) -> Records:
    """The writer of a format.

    Args:
        file_format: "json", "csv" or "coco".
        folder: Where the files go.
        predictor: Its results decide the columns.
        shown: How much of a result is written.
        extra: Names of the extra fields that every picture will have.

    Raises:
        UserError: An unknown format, or COCO results of something else than a detector.
    """
    if file_format not in FORMATS:
        raise UserError(f"format={file_format}: choose one of {', '.join(FORMATS)}")
    if file_format == "json":
        return JsonRecords(folder, shown)
    if file_format == "csv":
        return CsvRecords(folder, shown, tables_of(predictor), extra)
    detectors = detectors_of(predictor)
    if not detectors:
        raise UserError(f"format=coco is for detectors; this is a {predictor.kind} checkpoint: use json or csv")
    return CocoRecords(folder, detectors)
