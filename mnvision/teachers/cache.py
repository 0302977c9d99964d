"""A teacher's outputs for K replayable views of every picture: computed once, stored, shared by many students.

One folder per :class:`~mnvision.teachers.cache_key.CacheKey`. A teacher, file or recipe that changed has another key,
so nothing stale is ever read; the log says what changed. One process fills a folder at a time, the others (further
processes of the run, other runs) wait for its lock and find it complete; the system drops the lock of a process that
was killed, and whoever comes next goes on with the first missing chunk. The lock is ``flock``'s: over a network file
system without it, and on Windows, start one run first.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mnvision.data.loaders import SampleKey, check_views, ordered_loader
from mnvision.data.teacher_view import TaughtDataset, TeacherView
from mnvision.errors import UserError
from mnvision.teachers.base import Teacher
from mnvision.teachers.cache_key import CacheKey, explain, make_key, stored_views
from mnvision.teachers.cache_progress import FillProgress, gigabytes
from mnvision.teachers.cache_store import ChunkReader, ChunkStore, Half, Layout

log = logging.getLogger(__name__)


class TaughtData(Protocol):
    """What a data module offers a teacher; every one of mnvision's does."""

    root: Path
    num_workers: int
    labelled: bool

    def train_dataset(self, teacher: TeacherView | None) -> TaughtDataset:
        """The augmented training pictures."""
        ...

    def eval_dataset(self, split: Any, teacher: TeacherView | None) -> TaughtDataset:
        """A split's pictures without augmentation."""
        ...


def prepare(
    teacher: Teacher,
    data: TaughtData,
    cache_dir: str | Path,
    views: int = 8,
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> TeacherView:
    """The teacher's stored outputs for a data module, computed first where they are not there yet.

    Those for ``views`` augmented views of every training picture, and, where the data have no labels, those for the
    validation pictures as they are.

    Args:
        teacher: Runs, if it must.
        data: Its files are listed.
        cache_dir: Folder of all caches.
        views: Augmented views of every training picture.
        batch_size: Pictures that the teacher takes at once.
        device: Where the teacher runs; None is the first CUDA device, or the CPU.

    Returns:
        What the data module's ``teacher_view`` is to be set to.

    Raises:
        UserError: The disk is too small or cannot be written to, a picture cannot be read, or the teacher gives
            something that float16 cannot hold.
    """
    check_views(views)
    live, folder = TeacherView(teacher.spec.resolution, views), Path(cache_dir).expanduser()
    outputs = prepare_split(teacher, data.train_dataset(live), data, "train", folder, views, batch_size, device)
    if data.labelled:
        return TeacherView(live.resolution, views, outputs)
    dataset = data.eval_dataset("val", live.for_evaluation())
    judged = prepare_split(teacher, dataset, data, "val", folder, 1, batch_size, device)
    return TeacherView(live.resolution, views, outputs, judged)


def prepare_split(
    teacher: Teacher,
    dataset: TaughtDataset,
    data: TaughtData,
    split: str,
    cache_dir: Path,
    views: int,
    batch_size: int,
    device: str | torch.device | None = None,
) -> ChunkReader:
    """As :func:`prepare`, for the views of one data set."""
    key = make_key(teacher.spec, teacher.fingerprint(), dataset, split, data.root, cache_dir)
    folder = cache_dir / key.folder_name
    layout = Layout.of(teacher.spec.outputs, max(views, stored_views(folder)), len(dataset))
    store = ChunkStore(folder, layout)
    if not stored_views(folder) or _missing(store, views):
        with folder_lock(folder):
            # Another process may have added views while this one waited.
            layout = Layout.of(teacher.spec.outputs, max(views, stored_views(folder)), len(dataset))
            store = ChunkStore(folder, layout)
            _announce(key, store, cache_dir)
            key.write(folder, layout.views)
            store.remove_leftovers()
            fill(teacher, dataset, store, _missing(store, views), batch_size, data.num_workers, device)
    size = gigabytes(views * len(dataset) * layout.width * 2)
    log.info("teacher cache: %d views of %d pictures, %s: %s", views, len(dataset), size, folder)
    return ChunkReader(folder, layout)


def fill(
    teacher: Teacher,
    dataset: TaughtDataset,
    store: ChunkStore,
    chunks: Sequence[int],
    batch_size: int,
    num_workers: int,
    device: str | torch.device | None = None,
) -> None:
    """Runs the teacher over the views of some chunks and stores them; each chunk is kept as soon as it is complete.

    Args:
        teacher: Runs on ``device`` and is left on the CPU.
        dataset: Shows its views.
        store: Takes the chunks.
        chunks: Those to compute.
        batch_size: Pictures at once.
        num_workers: Processes that decode.
        device: None is the first CUDA device, or the CPU.

    Raises:
        UserError: As :func:`prepare`.
    """
    if not chunks:
        return
    layout = store.layout
    _check_space(store, chunks)
    sampler = _ViewSampler(layout, chunks)
    loader = ordered_loader(_TeacherPictures(dataset), sampler, batch_size, num_workers, torch.stack)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    teacher.to(where)
    try:
        with FillProgress(len(sampler), 2 * layout.width) as progress:
            rows = _rows(teacher, loader, where, layout, dataset, iter(sampler), progress)
            held = np.empty((0, layout.width), np.float16)
            for chunk in chunks:
                left = len(layout.span(chunk))
                with store.writing(chunk) as writer:
                    while left:
                        held = held if len(held) else next(rows)
                        writer.add(held[:left])
                        held, left = held[left:], left - len(held[:left])
    finally:
        teacher.to("cpu")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time work on a folder; the others wait.

    Raises:
        UserError: The folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115 - closed below, which also drops the lock
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose a teacher.cache_dir you can write to"
        ) from error
    with file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        locked, waiting = False, False
        while not locked:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                if not waiting:
                    log.info("teacher cache: waiting for another process that fills %s", folder)
                waiting = True
                time.sleep(0.2)
            except OSError as error:  # a file system without locks
                log.warning("teacher cache: %s cannot be locked (%s): fill it by one process", folder, error.strerror)
                break
        try:
            yield
        finally:
            if locked:  # closing is not enough: loader workers hold the file open, too
                fcntl.flock(file, fcntl.LOCK_UN)


def _missing(store: ChunkStore, views: int) -> list[int]:
    """Chunks that the first views need and that are not there or not whole."""
    rows = views * store.layout.pictures
    return [chunk for chunk in store.missing() if store.layout.span(chunk).start < rows]


def _announce(key: CacheKey, store: ChunkStore, cache_dir: Path) -> None:
    """Says why there is something to compute."""
    layout, stored = store.layout, stored_views(store.folder)
    if not stored:
        reason = explain(key, cache_dir)
        log.info("teacher cache: %s", "new" if reason is None else f"made anew: {reason}")
    elif stored < layout.views:
        log.info("teacher cache: %d views are added to %d", layout.views - stored, stored)
    else:
        log.info("teacher cache: going on with %d of %d chunks", len(store.missing()), layout.chunks)


def _check_space(store: ChunkStore, chunks: Sequence[int]) -> None:
    needed = sum(store.layout.chunk_bytes(chunk) for chunk in chunks)
    free = shutil.disk_usage(store.folder).free
    log.info(
        "teacher cache: %d views to compute, %d numbers each: %s; %s free in %s",
        sum(len(store.layout.span(chunk)) for chunk in chunks),
        store.layout.width,
        gigabytes(needed),
        gigabytes(free),
        store.folder.parent,
    )
    if needed > free:
        raise UserError(
            f"the teacher cache needs {gigabytes(needed)} in {store.folder.parent}, where {gigabytes(free)} are free: "
            f"take fewer teacher.views, another teacher.cache_dir, or teacher.cache=false"
        )


class _ViewSampler(Sampler[SampleKey]):
    """The views of some chunks, in the order of their rows."""

    def __init__(self, layout: Layout, chunks: Sequence[int]) -> None:
        self.layout, self.chunks = layout, chunks

    def __iter__(self) -> Iterator[SampleKey]:
        for chunk in self.chunks:
            for row in self.layout.span(chunk):
                view, position = divmod(row, self.layout.pictures)
                yield SampleKey(position, view)

    def __len__(self) -> int:
        return sum(len(self.layout.span(chunk)) for chunk in self.chunks)


class _TeacherPictures(Dataset[Tensor]):
    """What a teacher sees, and nothing else."""

    def __init__(self, dataset: TaughtDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Tensor:
        return self.dataset.teacher_picture(key)


def _rows(
    teacher: Teacher,
    loader: Any,
    device: torch.device,
    layout: Layout,
    dataset: TaughtDataset,
    keys: Iterator[SampleKey],
    progress: FillProgress,
) -> Iterator[Half]:
    """Rows of the layout, batch by batch."""
    for images in loader:
        outputs = teacher(images.to(device, non_blocking=True))
        answers: dict[str, NDArray[np.float32]] = {name: value.cpu().numpy() for name, value in outputs.items()}
        rows, wrong = layout.pack(answers)
        shown = [next(keys) for _ in range(len(images))]
        for row, reason in wrong.items():
            position, view = shown[row]
            raise UserError(
                f"{teacher.spec.name} cannot be cached: for {dataset.path(position)} (view {view}) {reason}; "
                "use teacher.cache=false, or take the picture out"
            )
        progress.advance(len(rows))
        yield rows
