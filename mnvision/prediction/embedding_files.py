"""Embeddings of many files, in memory that does not grow with their number."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.data.images import image_size
from mnvision.data.index import FindingCounter
from mnvision.data.landmarks import LandmarkTable, landmarks_of, main_face, read_landmark_table, usable
from mnvision.errors import UserError
from mnvision.prediction.embeddings import Embedding, EmbeddingPredictor
from mnvision.prediction.folders import batches
from mnvision.prediction.predictor import Predictor, check_positive, load_predictor
from mnvision.prediction.preprocess import Prepared
from mnvision.transforms.framing import Points

_WORKERS = min(4, os.cpu_count() or 1)


def load_embedder(path: str | Path, device: str = "cpu") -> EmbeddingPredictor:
    """The predictor of a checkpoint of embeddings; of several heads, of the one that gives them.

    Raises:
        UserError: See :func:`~mnvision.prediction.predictor.load_predictor`; or it is of another kind.
    """
    predictor: Predictor[Any] = load_predictor(path, device)
    fitting = {name: part for name, part in predictor.parts.items() if isinstance(part, EmbeddingPredictor)}
    if len(fitting) > 1:
        raise UserError(
            f"{path} gives several embeddings ({', '.join(fitting)}): cut one head out with tools/merge.py heads=[NAME]"
        )
    if not fitting:
        raise UserError(
            f"{path} is a {predictor.kind} checkpoint, which gives no embeddings: give a face_embeddings one"
        )
    return next(iter(fitting.values()))


def landmarks_for(
    predictor: EmbeddingPredictor, file: str | Path, folder: Path, names: Sequence[str]
) -> tuple[list[Points | None], list[str]]:
    """What a file of landmarks says of pictures.

    Args:
        predictor: Must align by landmarks.
        file: See :func:`~mnvision.data.landmarks.read_landmark_table`.
        folder: Folder of the pictures.
        names: Their file names, relative to ``folder``.

    Returns:
        ``(5, 2)`` float64 of each picture's main face, None where the file has none; and lines on what was noticed.

    Raises:
        UserError: The checkpoint does not align, the file is missing or malformed, or it belongs to other pictures.
    """
    check_aligns(predictor, file)
    found = FindingCounter()
    points = landmarks_of(read_landmark_table(file), folder, names, found)
    known = usable(points)
    lines = [
        f"{finding.count} {what} ({', '.join(finding.examples)}{', ...' if finding.count > 1 else ''})"
        for what, finding in found.findings().items()
    ]
    return [row.astype(np.float64) if good else None for row, good in zip(points, known)], lines


def landmarks_of_one(predictor: EmbeddingPredictor, table: LandmarkTable, path: Path) -> Points:
    """The landmarks of a picture's main face; the file may name the picture from any of its folders on.

    Raises:
        UserError: The checkpoint does not align, or the file has no face of this picture.
    """
    check_aligns(predictor, table.path)
    parts = path.absolute().parts
    for start in range(1, len(parts)):
        rows = table.find("/".join(parts[start:]))
        if rows:
            faces = table.points[list(rows)]
            face = faces[main_face(faces, image_size(path))] if len(rows) > 1 else faces[0]
            return face.astype(np.float64)
    raise UserError(f"{table.path} has no landmarks of {path}: add them, or leave landmarks out for an aligned crop")


def check_aligns(predictor: EmbeddingPredictor, file: str | Path) -> None:
    """Refuses landmarks that would have no effect.

    Raises:
        UserError: The checkpoint shows pictures in another way than by aligning them.
    """
    if not predictor.preprocess.aligns:
        rule = predictor.metadata.preprocess.get("resize")
        raise UserError(
            f"landmarks={file}: this checkpoint does not align faces (it was trained with {rule}): leave it out"
        )


def embed_files(
    predictor: EmbeddingPredictor,
    paths: Sequence[Path],
    landmarks: Sequence[Points | None] | None = None,
    batch_size: int = 32,
    mirror: bool | None = None,
) -> Iterator[tuple[list[int], Embedding, list[tuple[int, UserError]]]]:
    """Embed files batch by batch while a few threads decode those to come.

    Args:
        predictor: From :func:`load_embedder`.
        paths: The files.
        landmarks: One ``(5, 2)`` or None per file; None is none at all.
        batch_size: Pictures that go through the network at once.
        mirror: See :meth:`~mnvision.prediction.embeddings.EmbeddingPredictor.embed`.

    Yields:
        Positions of a batch's readable files, in order, their embeddings ``(B, D)``, and positions and reasons of
        the unreadable ones.

    Raises:
        UserError: ``batch_size`` is out of range.
    """
    check_positive("batch_size", batch_size)
    nothing = np.empty((0, predictor.dim), np.float32)
    with ThreadPoolExecutor(_WORKERS) as pool:
        ahead = _read_ahead(predictor, paths, landmarks, pool, batch_size + _WORKERS)
        try:
            for batch in batches(enumerate(ahead), batch_size):
                ready = [(position, one) for position, one in batch if isinstance(one, Prepared)]
                failed = [(position, one) for position, one in batch if isinstance(one, UserError)]
                rows = predictor.embed_prepared([one for _, one in ready], mirror) if ready else nothing
                yield [position for position, _ in ready], rows, failed
        finally:
            pool.shutdown(cancel_futures=True)


def _read_ahead(
    predictor: EmbeddingPredictor,
    paths: Sequence[Path],
    landmarks: Sequence[Points | None] | None,
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[Prepared | UserError]:
    """Prepared pictures in order, at most ``ahead`` of them waiting."""

    def attempt(position: int) -> Prepared | UserError:
        try:
            return predictor.preprocess(paths[position], None if landmarks is None else landmarks[position])
        except UserError as error:
            return error

    waiting: deque[Future[Prepared | UserError]] = deque()
    for position in range(len(paths)):
        waiting.append(pool.submit(attempt, position))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
