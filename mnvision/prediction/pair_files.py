"""Verification of a list of pairs, from the files up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnvision.data.identity_pairs import pictures_of_pairs
from mnvision.data.pairs import PairList
from mnvision.errors import UserError
from mnvision.prediction.embedding_files import embed_files, landmarks_for
from mnvision.prediction.embeddings import Embedding, EmbeddingPredictor
from mnvision.transforms.framing import Points


def find_pair_pictures(pairs: PairList, root: Path) -> tuple[Path, list[str], NDArray[np.int64]]:
    """The files that a list of pairs names.

    Args:
        pairs: The list.
        root: Folder that its names are relative to, or one above it.

    Returns:
        The folder, each file once, relative to it, and the pairs ``(P, 2)`` as positions among the files.

    Raises:
        UserError: ``root`` is no folder, or pictures are missing.
    """
    if not root.is_dir():
        raise UserError(f"root={root}: there is no such folder; give the one that the names in {pairs.path} start from")
    try:
        people, arrays = pictures_of_pairs(pairs, root, "error")
    except UserError as error:
        # Its remedy names options of training.
        raise UserError(f"{str(error).split('; ')[0]}; give root=FOLDER that the names start from") from None
    return people.folder, people.file_names, arrays.positions


def embed_pairs(
    predictor: EmbeddingPredictor,
    root: Path,
    names: Sequence[str],
    landmarks: str | Path | None = None,
    batch_size: int = 32,
    mirror: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Embedding, list[str]]:
    """Embeddings of all pictures of a list of pairs; a protocol allows none to be left out.

    Args:
        predictor: Of the checkpoint.
        root: Folder of the pictures.
        names: Their names, from :func:`find_pair_pictures`.
        landmarks: File of five points per picture; None where it is not given.
        batch_size: Pictures that go through the network at once.
        mirror: Add the embeddings of the mirrored pictures.
        advance: Called with the number of pictures that were embedded.

    Returns:
        ``(N, D)`` float32 of length 1, and lines on what was noticed in the landmarks.

    Raises:
        UserError: A picture cannot be read or has no landmarks, or see
            :func:`~mnvision.prediction.embedding_files.landmarks_for`.
    """
    points: list[Points | None] | None = None
    lines: list[str] = []
    if landmarks is not None:
        points, lines = landmarks_for(predictor, landmarks, root, names)
        without = [name for name, known in zip(names, points) if known is None]
        if without:
            raise UserError(
                f"{landmarks} has no landmarks of {len(without)} of {len(names)} pictures, first {without[0]}; every "
                "picture of a pair needs them: add them, or take its pairs out of the list"
            )
    result = np.empty((len(names), predictor.dim), np.float32)
    for rows, embeddings, failed in embed_files(predictor, [root / n for n in names], points, batch_size, mirror):
        if failed:
            raise failed[0][1]
        result[rows] = embeddings
        advance(len(rows))
    return result, lines
