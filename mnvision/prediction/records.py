"""Predictions as files: JSON, CSV or the official COCO results format, written as they come."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.prediction.predictor import DetectionPredictor, Predictor
from mnvision.prediction.results import ImageDetections, ImageResult, Shown

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


class CsvRecords(Records):
    """``predictions.csv``: the rows of every result; what they hold, its class says.

    Args:
        folder: Where the file goes.
        shown: How much of a result is written.
        columns: Of a result's rows.
        extra: Names of further columns.
    """

    def __init__(self, folder: Path, shown: Shown, columns: Sequence[str], extra: Sequence[str] = ()) -> None:
        super().__init__()
        self._shown, self._extra = shown, tuple(extra)
        self._file = self._open(folder / "predictions.csv")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["path", *self._extra, "width", "height", *columns])

    def add(self, position: int, name: str, result: ImageResult, extra: dict[str, Any]) -> None:
        """See :meth:`Records.add`."""
        height, width = result.size
        first = [name, *(extra[column] for column in self._extra), width, height]
        self._rows.writerows(first + row for row in result.rows(self._shown))

    def finish(self) -> None:
        """A table has no last line of its own: only see that all rows are written while errors still count."""
        self._file.flush()


class CocoRecords(Records):
    """``detections.json`` in the COCO results format, and ``images.json`` with what its ids mean.

    Format: https://cocodataset.org/#format-results, section 1. ``image_id`` is the picture's position in the
    input, from 0; ``category_id`` is the one of the annotation file that the model was trained on.
    ``images.json`` has the ``images`` and ``categories`` of a COCO annotation file.

    Args:
        folder: Where the files go.
        predictor: Gives category ids and names.
    """

    def __init__(self, folder: Path, predictor: DetectionPredictor) -> None:
        super().__init__()
        self._ids = predictor.category_ids
        categories = [{"id": i, "name": name} for i, name in zip(self._ids, predictor.class_names)]
        self._results = _JsonList(self._open(folder / "detections.json"))
        after = f'],\n"categories": {json.dumps(categories, ensure_ascii=False)}}}'
        self._images = _JsonList(self._open(folder / "images.json"), '{"images": [', after)

    def add(self, position: int, name: str, result: ImageResult, extra: dict[str, Any]) -> None:
        """See :meth:`Records.add`."""
        assert isinstance(result, ImageDetections)
        height, width = result.size
        self._images.add({"id": position, "file_name": name, "width": width, "height": height, **extra})
        for found in result:
            x1, y1, x2, y2 = found.box
            self._results.add(
                {
                    "image_id": position,
                    "category_id": self._ids[found.label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": found.score,
                }
            )

    def finish(self) -> None:
        """Close both lists."""
        self._results.close()
        self._images.close()


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
        columns = predictor.result_type.columns(predictor.class_names)
        return CsvRecords(folder, shown, columns, extra)
    if not isinstance(predictor, DetectionPredictor):
        raise UserError(f"format=coco is for detectors; this is a {predictor.kind} checkpoint: use json or csv")
    return CocoRecords(folder, predictor)
