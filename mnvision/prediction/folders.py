"""Predict on files and write everything into one folder, in memory that does not grow with their number."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from mnvision.data.images import read_image
from mnvision.errors import UserError
from mnvision.prediction.detection import detectors_of
from mnvision.prediction.inputs import Pictures, find_pictures
from mnvision.prediction.pictures import PictureWriter, result_folders
from mnvision.prediction.predictor import Predictor, check_positive
from mnvision.prediction.preprocess import Prepared
from mnvision.prediction.records import Records, open_records
from mnvision.prediction.results import AttributeChoice, ImageResult, Shown

Item = TypeVar("Item")
_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Options:
    """What is written and how.

    Attributes:
        output: Folder of all results; files of an earlier run with the same names are replaced.
        file_format: "json", "csv" or "coco".
        score_threshold: Lowest score of a detection; None is the predictor's default.
        batch_size: Pictures that go through the network at once.
        save_images: Write annotated copies.
        crops: Write every detection as a picture of its own.
        topk: Classes per picture in the results of a classifier.
        recursive: Look into subfolders of a folder.
        stride: Of a video, every which frame is predicted on and written.
        attributes: Of a face, drawn beside it: "above" their thresholds, or "all".
    """

    output: Path
    file_format: str = "json"
    score_threshold: float | None = None
    batch_size: int = 16
    save_images: bool = True
    crops: bool = False
    topk: int = 5
    recursive: bool = True
    stride: int = 1
    attributes: AttributeChoice = "above"

    @property
    def shown(self) -> Shown:
        """How much of a result is written or drawn.

        Raises:
            UserError: An unknown word.
        """
        return Shown(self.topk, self.attributes)

    def check(self, predictor: Predictor[Any]) -> None:
        """Refuse what does not go together before anything is written.

        Raises:
            UserError: A number out of range, or an option for another kind of checkpoint.
        """
        for name in ("batch_size", "stride", "topk"):
            check_positive(name, getattr(self, name))
        for name in ("save_images", "crops", "recursive"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r}: give true or false")
        if self.crops and not detectors_of(predictor):
            raise UserError(f"crops=true is for detectors; this is a {predictor.kind} checkpoint")
        predictor.check_threshold(self.score_threshold)
        _ = self.shown


@dataclass
class Summary:
    """What happened.

    Attributes:
        done: Pictures or frames predicted on.
        classes: Detections of each class; of a classifier, pictures whose most probable class it is; pictures that
            have an attribute.
        skipped: Pictures that could not be read.
        first_problem: Why, for the first of them.
        seconds: Time taken.
        written: Files and folders in the output folder.
    """

    done: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    first_problem: str = ""
    seconds: float = 0.0
    written: list[str] = field(default_factory=list)

    def count(self, result: ImageResult) -> None:
        """Add one picture."""
        self.done += 1
        self.classes.update(result.found())

    def line(self, unit: str) -> str:
        """One line for the terminal; ``unit`` is "picture" or "frame"."""
        common = [f"{name} {count}" for name, count in self.classes.most_common(8)]
        more = f", {len(self.classes) - 8} more classes" if len(self.classes) > 8 else ""
        speed = self.done / max(self.seconds, 1e-9)
        skipped = f"; {self.skipped} unreadable and skipped" if self.skipped else ""
        found = ", ".join(common) or "nothing found"
        plural = "" if self.done == 1 else "s"
        return f"{self.done} {unit}{plural} in {self.seconds:.1f} s ({speed:.1f}/s): {found}{more}{skipped}"


def predict_pictures(predictor: Predictor[Any], source: str | Path, options: Options, console: Console) -> Summary:
    """Predict on a file, a folder or a glob pattern.

    A few threads decode pictures ahead and write annotated copies. Records appear, whole, at the end.

    Args:
        predictor: From :func:`mnvision.load`.
        source: See :func:`~mnvision.prediction.inputs.find_pictures`.
        options: What is written.
        console: Gets the progress bar, the unreadable pictures, and the classes or attributes of pictures.

    Raises:
        UserError: No picture, none that can be read, a result that cannot be written, or wrong options.
    """
    options.check(predictor)
    if predictor.note:
        say(console, predictor.note)
    pictures = find_pictures(source, options.recursive, result_folders(options.output))
    if pictures.left_out:
        console.print(f"{pictures.left_out} files left out: earlier results, or no pictures by their name")
    writer = PictureWriter(options.output, pictures.names, options.save_images, options.crops, options.shown)
    summary, start = Summary(), time.perf_counter()
    with (
        open_records(options.file_format, options.output, predictor, options.shown) as records,
        disk_errors(options.output),
        progress_bar(console) as progress,
    ):
        bar = progress.add_task("", total=len(pictures.names))
        _run(predictor, pictures, options, _Outputs(records, writer, summary, progress, bar))
        if not summary.done:
            raise UserError(f"none of {summary.skipped} pictures could be read; first: {summary.first_problem}")
    summary.seconds = time.perf_counter() - start
    summary.written = [*records.names, *writer.written]
    return summary


@dataclass(frozen=True)
class _Outputs:
    records: Records
    writer: PictureWriter
    summary: Summary
    progress: Progress
    bar: Any

    def skip(self, error: UserError) -> None:
        self.summary.skipped += 1
        self.summary.first_problem = self.summary.first_problem or str(error)
        say(self.progress.console, f"skipped: {error}")
        self.progress.advance(self.bar)

    def add(self, position: int, name: str, result: ImageResult) -> None:
        self.records.add(position, name, result, {})
        self.summary.count(result)
        for head, part in result.parts.items():
            if part.printed:
                say(self.progress.console, f"{head}: {part}" if head else str(part))
        self.progress.advance(self.bar)


def _run(predictor: Predictor[Any], pictures: Pictures, options: Options, outputs: _Outputs) -> None:
    pool = ThreadPoolExecutor(_WORKERS)
    saving: list[Future[None]] = []
    try:
        prepared = _read_ahead(predictor, pictures, pool, options.batch_size + _WORKERS)
        for batch in batches(_readable(prepared, outputs), options.batch_size):
            results = predictor.predict_prepared([picture for _, picture in batch], options.score_threshold)
            _wait(saving)
            for (position, picture), result in zip(batch, results):
                outputs.add(position, pictures.names[position], result)
                if options.save_images or options.crops:
                    saving.append(pool.submit(_save, outputs.writer, picture, result, pictures.names[position]))
        _wait(saving)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(
    predictor: Predictor[Any], pictures: Pictures, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, Prepared | UserError]]:
    """Prepared pictures in order, at most ``ahead`` of them waiting."""

    def attempt(name: str) -> Prepared | UserError:
        try:
            return predictor.preprocess(pictures.root / name)
        except UserError as error:
            return error

    waiting: deque[Future[Prepared | UserError]] = deque()
    position = 0
    for name in pictures.names:
        waiting.append(pool.submit(attempt, name))
        if len(waiting) > ahead:
            yield position, waiting.popleft().result()
            position += 1
    while waiting:
        yield position, waiting.popleft().result()
        position += 1


def _readable(
    prepared: Iterable[tuple[int, Prepared | UserError]], outputs: _Outputs
) -> Iterator[tuple[int, Prepared]]:
    for position, picture in prepared:
        if isinstance(picture, UserError):
            outputs.skip(picture)
        else:
            yield position, picture


def _save(writer: PictureWriter, picture: Prepared, result: ImageResult, name: str) -> None:
    # Decoded once more: whole pictures of a batch of large photos would take gigabytes.
    assert picture.path is not None
    writer.save(read_image(picture.path).pixels, result, name)


def _wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
    futures.clear()


def batches(items: Iterable[Item], size: int) -> Iterator[Sequence[Item]]:
    """Lists of ``size`` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk while writing into a line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s")


def progress_bar(console: Console) -> Progress:
    """A live bar with count, images/s and time left; nothing where no one watches."""
    columns = (BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def say(console: Console, text: str) -> None:
    """Print a line as it is, file names that are no UTF-8 escaped."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    console.print(safe, markup=False, highlight=False, soft_wrap=True)
