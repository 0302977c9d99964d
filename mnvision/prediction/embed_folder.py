"""Embed the pictures of a folder into one file, and draw what lies close together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mnvision import __version__
from mnvision.errors import UserError
from mnvision.prediction.embedding_files import embed_files, landmarks_for, load_embedder
from mnvision.prediction.embedding_tables import Add, open_table, printable
from mnvision.prediction.embeddings import EmbeddingPredictor
from mnvision.prediction.folders import disk_errors, progress_bar, say
from mnvision.prediction.inputs import find_pictures
from mnvision.prediction.neighbours import nearest, principal_plane
from mnvision.prediction.predictor import check_positive
from mnvision.transforms.framing import Points

DRAWN = 20_000
"""Figures are made of at most so many pictures, evenly chosen among all."""

QUERIES, NEIGHBOURS = 8, 7


@dataclass(frozen=True)
class EmbedOptions:
    """What is written and how.

    Attributes:
        output: Folder of all results; files of an earlier run with the same names are replaced.
        file_format: "parquet" or "npz".
        landmarks: File of five points per picture, named relative to the input; pictures that it lacks are skipped.
        points: See :meth:`~mnvision.prediction.embeddings.EmbeddingPredictor.lay_out`; None leaves the training's.
        mirror: See :meth:`~mnvision.prediction.embeddings.EmbeddingPredictor.embed`.
        figures: Draw nearest neighbours and the map.
        batch_size: Pictures that go through the network at once.
        recursive: Look into subfolders of a folder.
    """

    output: Path
    file_format: str = "parquet"
    landmarks: str | Path | None = None
    points: str | Sequence[Sequence[float]] | None = None
    mirror: bool | None = None
    figures: bool = True
    batch_size: int = 32
    recursive: bool = True


def embed_folder(
    checkpoint: str | Path, source: str | Path, options: EmbedOptions, device: str, console: Console
) -> list[str]:
    """Embed a file, a folder or a glob pattern.

    Args:
        checkpoint: Of face embeddings.
        source: See :func:`~mnvision.prediction.inputs.find_pictures`.
        options: What is written.
        device: See :class:`~mnvision.prediction.predictor.Predictor`.
        console: Gets the progress bar and the unreadable pictures.

    Returns:
        Lines for the terminal.

    Raises:
        UserError: No picture, none that can be read, a result that cannot be written, or wrong options.
    """
    check_positive("batch_size", options.batch_size)
    predictor = load_embedder(checkpoint, device)
    if options.points is not None:
        predictor.lay_out(options.points)
    mirror = predictor.mirrors(options.mirror)
    pictures = find_pictures(source, options.recursive, [options.output])
    folder = _Folder(pictures.root, list(pictures.names))
    if options.landmarks is not None:
        folder.points, lines = landmarks_for(predictor, options.landmarks, folder.root, folder.names)
        for line in lines:
            say(console, line)
    about = {
        "checkpoint": predictor.identity,
        "checkpoint_file": str(checkpoint),
        "dim": predictor.dim,
        "mirror": mirror,
        "preprocess": predictor.metadata.preprocess,
        "points": options.points,
        "landmarks": None if options.landmarks is None else str(options.landmarks),
        "version": __version__,
    }
    start = time.perf_counter()
    with (
        open_table(options.file_format, options.output, predictor.dim, about) as add,
        disk_errors(options.output),
        progress_bar(console) as progress,
    ):
        bar = progress.add_task("", total=len(folder.names))
        sample, problems = _embed(predictor, folder, options, mirror, add, lambda count: progress.advance(bar, count))
        if len(problems) == len(folder.names):
            raise UserError(f"none of {len(problems)} pictures could be embedded; first: {problems[0]}")
    seconds = time.perf_counter() - start
    for problem in problems:
        say(console, f"skipped: {problem}")
    written = [f"embeddings.{options.file_format}"]
    if options.figures:
        written += _draw(predictor, folder, sample, options.output)
    done = len(folder.names) - len(problems)
    skipped = f"; {len(problems)} skipped" if problems else ""
    return [
        f"{done} pictures in {seconds:.1f} s ({done / max(seconds, 1e-9):.1f}/s), {predictor.dim} numbers each, by "
        f"checkpoint {predictor.identity}{skipped}",
        f"results: {options.output}/ ({', '.join(written)})",
    ]


@dataclass
class _Folder:
    root: Path
    names: list[str]
    points: list[Points | None] | None = None


@dataclass
class _Sample:
    """Some of the embeddings, kept for the figures: positions ``(S,)`` and ``(S, D)``."""

    positions: NDArray[np.int64]
    embeddings: NDArray[np.float32]


def _embed(
    predictor: EmbeddingPredictor,
    folder: _Folder,
    options: EmbedOptions,
    mirror: bool,
    add: Add,
    advance: Callable[[int], None],
) -> tuple[_Sample, list[str]]:
    """Write all embeddings; what the figures need of them, and why pictures are missing."""
    every = -(-len(folder.names) // DRAWN)
    positions: list[int] = []
    parts = [np.empty((0, predictor.dim), np.float32)]
    problems = []
    wanted = list(range(len(folder.names)))
    if folder.points is not None:
        wanted = [position for position in wanted if folder.points[position] is not None]
        without = sorted(set(range(len(folder.names))).difference(wanted))
        problems = [f"{folder.names[position]} has no landmarks in {options.landmarks}" for position in without]
        advance(len(without))
    paths = [folder.root / folder.names[position] for position in wanted]
    points = None if folder.points is None else [folder.points[position] for position in wanted]
    for rows, embeddings, failed in embed_files(predictor, paths, points, options.batch_size, mirror):
        problems += [str(error) for _, error in failed]
        add([folder.names[wanted[row]] for row in rows], embeddings)
        kept = [place for place, row in enumerate(rows) if row % every == 0]
        positions += [wanted[rows[place]] for place in kept]
        parts.append(embeddings[kept])
        advance(len(rows) + len(failed))
    return _Sample(np.array(positions, np.int64), np.concatenate(parts)), problems


def _draw(predictor: EmbeddingPredictor, folder: _Folder, sample: _Sample, output: Path) -> list[str]:
    """Figures of nearest neighbours and of the plane; none of fewer than three pictures."""
    from mnvision.figures_embeddings import Neighbours, save_map, save_neighbours

    count = len(sample.positions)
    if count < 3:
        return []
    names = [printable(folder.names[position]) for position in sample.positions.tolist()]
    groups = [PurePath(name).parent.as_posix() for name in names]

    def seen(row: int) -> NDArray[np.uint8]:
        position = int(sample.positions[row])
        landmarks = None if folder.points is None else folder.points[position]
        return predictor.preprocess(folder.root / folder.names[position], landmarks).pixels

    queries = np.unique(np.linspace(0, count - 1, min(QUERIES, count)).astype(np.int64))
    rows, similarities = nearest(sample.embeddings, queries, NEIGHBOURS)
    lines = [
        Neighbours(
            seen(query),
            PurePath(names[query]).name,
            groups[query],
            [seen(row) for row in near],
            [groups[row] for row in near],
            cosines,
        )
        for query, near, cosines in zip(queries.tolist(), rows.tolist(), similarities.tolist())
    ]
    save_neighbours(lines, output / "figures" / "neighbours.png")
    points, share = principal_plane(sample.embeddings)
    save_map(points, share, groups, output / "figures" / "map.png")
    return ["figures/"]
