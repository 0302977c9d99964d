"""Pairs on the pictures of a data set: those of a file, those of a file within a split, or drawn from identities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mnvision.data.identity_index import UNKNOWN, People
from mnvision.data.index import FindingCounter, first_few, missing_files
from mnvision.data.loaders import sample_rng
from mnvision.data.pairs import NUM_FOLDS, PairArrays, PairList, blocks
from mnvision.errors import UserError

_ENUMERATED = 40  # pictures of one identity of which all pairs are listed


def pictures_of_pairs(pairs: PairList, root: Path, missing: Literal["error", "skip"]) -> tuple[People, PairArrays]:
    """The pictures that a file of pairs names, each once, and the pairs on them.

    They are looked for in ``root`` and in the folders of it, as archives unpack into one of their own. Identities are
    the pictures' folders, where these agree with the pairs' answers.

    Args:
        pairs: What the file says.
        root: Folder of the set.
        missing: "error" refuses pairs of pictures that have no file, "skip" leaves them out, counted.

    Raises:
        UserError: Pictures are missing, or the pairs that remain are of one kind or in one fold.
    """
    first, second = pairs.first, pairs.second
    folder = _folder_of(root, list(dict.fromkeys([*first[:10], *second[:10]])), pairs.numbered)
    absent: list[str] | None = None
    if pairs.numbered:
        stems = list(dict.fromkeys([*first, *second]))
        endings = _endings(folder, stems)
        absent = [f"{stem}.jpg" for stem in stems if stem not in endings]
        first, second = ([name + endings.get(name, ".jpg") for name in names] for names in (first, second))
    names, arrays = _arrays(pairs, first, second)
    identities, owners = _identities_by_folder(names, arrays)
    listed = People(str(pairs.path), folder, names, identities, owners, FindingCounter())
    absent = missing_files(folder, names) if absent is None else absent
    if not absent:
        return listed, arrays
    if missing == "error" or len(absent) == len(names):
        line = pairs.lines[np.flatnonzero((arrays.positions == names.index(absent[0])).any(axis=1))[0]]
        raise UserError(
            f"{len(absent)} of {len(names)} pictures that {pairs.path} names (first in line {line}) are not in {folder}"
            f": {first_few(absent)}; set data.pairs_root (or data.root) to their folder, or leave these pairs out with "
            "data.missing=skip"
        )
    listed.found.add("pictures of pairs without a file left out", absent)
    gone = set(absent)
    kept = np.array([name not in gone for name in names])
    people = listed.take(kept)
    return people, keep_pairs(arrays, kept, people.found, str(pairs.path))


def pairs_among(pairs: PairList, people: People) -> tuple[People, PairArrays]:
    """The pairs whose pictures are both in a part of their set, and these pictures.

    Where the file has no folds, the ten blocks are those of the pairs that remain.

    Args:
        pairs: What the file says, with names as in ``people``.
        people: One split.

    Raises:
        UserError: No such pairs of both kinds, or in one fold only.
    """
    row_of = {name: row for row, name in enumerate(people.file_names)}
    names, arrays = _arrays(pairs, pairs.first, pairs.second)
    kept = np.array([name in row_of for name in names])
    inside = kept[arrays.positions]
    half = np.flatnonzero(inside.sum(axis=1) == 1)
    people.found.add(
        "pairs left out, of which one picture is in another split", [f"line {pairs.lines[row]}" for row in half]
    )
    if not pairs.has_folds:
        whole = inside.all(axis=1)
        arrays = arrays._replace(folds=arrays.folds.copy())
        arrays.folds[whole] = blocks(int(whole.sum()), min(NUM_FOLDS, max(int(whole.sum()), 1)))
    chosen = keep_pairs(arrays, kept, None, f"{pairs.path} ({people.source})")
    return people.take(np.array([row_of[name] for name in names if name in row_of], np.int64)), chosen


def keep_pairs(pairs: PairArrays, kept: NDArray[np.bool_], found: FindingCounter | None, source: str) -> PairArrays:
    """The pairs of which both pictures are kept, on the positions that these then have.

    Args:
        pairs: On all pictures.
        kept: ``(I,)`` which pictures are kept.
        found: Receives the number of pairs left out.
        source: Where the pairs come from, for messages.

    Raises:
        UserError: The pairs that remain are of one kind or in one fold.
    """
    whole = kept[pairs.positions].all(axis=1)
    if found is not None:
        gone = np.flatnonzero(~whole)
        found.add("pairs left out with their pictures", [f"pair {row + 1}" for row in gone[:5]], len(gone))
    place = np.cumsum(kept) - 1
    result = PairArrays(place[pairs.positions[whole]], pairs.same[whole], pairs.folds[whole])
    if len(np.unique(result.same)) < 2 or len(np.unique(result.folds)) < 2:
        raise UserError(
            f"{source}: {int(result.same.sum())} pairs of one person and {int((~result.same).sum())} of two in "
            f"{len(np.unique(result.folds))} folds remain; pairs of both kinds in at least two folds are needed"
        )
    return result


def sample_pairs(labels: NDArray[np.int64], number: int, seed: int, source: str) -> PairArrays:
    """Draws pairs of identities: in each fold as many of one person as of two, and nobody in two folds.

    Same-person pairs are spread evenly over the identities that have several pictures.

    Args:
        labels: ``(I,)`` identity of each picture; those below 0 are not used.
        number: Pairs to draw; fewer where the pictures do not give so many.
        seed: Of the drawing.
        source: Where the pictures come from, for messages.

    Returns:
        Different pairs in up to ten folds; positions in ``labels``.

    Raises:
        UserError: Fewer than two identities with two pictures, or fewer than four identities.
    """
    rng = sample_rng(seed, 0, -1)
    members = _by_label(labels)
    several = [rows for rows in members if len(rows) > 1]
    num_folds = min(NUM_FOLDS, len(members) // 2, len(several))
    if num_folds < 2:
        raise UserError(
            f"{source}: {len(members)} identities, {len(several)} of them with two pictures or more, are too few to "
            "draw pairs from; give a file of pairs (data.pairs) or raise data.val_fraction"
        )
    single = [rows for rows in members if len(rows) == 1]
    # Those with several pictures first, so that every fold gets its share of them.
    order = [several[i] for i in rng.permutation(len(several))] + [single[i] for i in rng.permutation(len(single))]
    positions: list[NDArray[np.int64]] = []
    same: list[bool] = []
    folds: list[int] = []
    for fold in range(num_folds):
        people = order[fold::num_folds]
        wanted = max(number // (2 * num_folds), 1)
        ours = _same_pairs(people, wanted, rng)
        others = _different_pairs(people, len(ours), rng)
        ours = ours[: len(others)]
        positions += [*ours, *others]
        same += [True] * len(ours) + [False] * len(others)
        folds += [fold] * (len(ours) + len(others))
    return PairArrays(np.array(positions, np.int64), np.array(same), np.array(folds, np.int64))


def _arrays(pairs: PairList, first: Sequence[str], second: Sequence[str]) -> tuple[list[str], PairArrays]:
    """Different names in the order of their first occurrence, and the pairs as positions in them."""
    place: dict[str, int] = {}
    positions = [[place.setdefault(name, len(place)) for name in both] for both in zip(first, second, strict=True)]
    return list(place), PairArrays(np.array(positions, np.int64), pairs.same, pairs.folds)


def _identities_by_folder(names: Sequence[str], pairs: PairArrays) -> tuple[NDArray[np.int64], list[str]]:
    """Folders as identities, or none where a pair's answer contradicts them."""
    folders = [os.path.basename(os.path.dirname(name)) for name in names]
    number: dict[str, int] = {}
    labels = np.array([number.setdefault(folder, len(number)) for folder in folders], np.int64)
    agree = (labels[pairs.positions[:, 0]] == labels[pairs.positions[:, 1]]) == pairs.same
    if agree.all() and "" not in number:
        return labels, list(number)
    return np.full(len(names), UNKNOWN, np.int64), []


def _folder_of(root: Path, names: Sequence[str], numbered: bool) -> Path:
    """The folder that names are relative to: the first that holds any of them."""
    for folder in _folders(root):
        if any((folder / name).exists() if not numbered else (folder / name).parent.is_dir() for name in names):
            return folder
    return root


def _folders(root: Path, depth: int = 2) -> Iterator[Path]:
    yield root
    below = [root]
    for _ in range(depth):
        below = [
            folder / item.name
            for folder in below
            if folder.is_dir()
            for item in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if item.is_dir() and not item.name.startswith(".")
        ][:1000]
        yield from below


def _endings(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Name without its ending -> the ending of its file."""
    endings: dict[str, str] = {}
    for parent in {os.path.dirname(name) for name in names}:
        if (folder / parent).is_dir():
            for file in sorted(os.listdir(folder / parent)):
                stem, suffix = os.path.splitext(f"{parent}/{file}")
                endings.setdefault(stem, suffix)
    return endings


def _by_label(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of each known label."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    return [] if not len(order) else np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _same_pairs(people: Sequence[NDArray[np.int64]], wanted: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Up to ``wanted`` different pairs of one person, taken from the people in turn."""
    ranked: list[tuple[int, float, NDArray[np.int64]]] = []
    for rows in people:
        some = rng.permutation(rows)[:_ENUMERATED]
        pairs = list(combinations(some.tolist(), 2))
        for rank, place in enumerate(rng.permutation(len(pairs))[:wanted].tolist()):
            ranked.append((rank, float(rng.random()), np.array(pairs[place])))
    ranked.sort(key=lambda entry: entry[:2])
    return [pair for _, _, pair in ranked[:wanted]]


def _different_pairs(
    people: Sequence[NDArray[np.int64]], wanted: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Up to ``wanted`` different pairs of two persons."""
    sizes = np.array([len(rows) for rows in people])
    possible = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    if possible <= 4 * wanted:
        every = [np.array([a, b]) for one, two in combinations(people, 2) for a in one for b in two]
        return [every[place] for place in rng.permutation(len(every))[:wanted]]
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < wanted:
        one, two = (people[place] for place in rng.choice(len(people), 2, replace=False))
        a, b = int(rng.choice(one)), int(rng.choice(two))
        chosen[min(a, b), max(a, b)] = None
    return [np.array(pair) for pair in chosen]
