"""Pairs of pictures to verify: LFW's lists, lists of two file names and an answer, and CSV.

Sources: the README of Labeled Faces in the Wild (``pairs.txt``, ``pairsDevTest.txt``); the ten folds of lists that
have none are consecutive blocks of equal size, as the protocols of CFP and AgeDB state them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.data.tables import csv_rows, read_lines
from mnvision.errors import UserError

NUM_FOLDS = 10

_FIRST = ("a", "first", "file1", "filea", "image1", "imagea", "img1", "path1", "picture1", "left")
_SECOND = ("b", "second", "file2", "fileb", "image2", "imageb", "img2", "path2", "picture2", "right")
_SAME = ("same", "issame", "label", "match", "target", "answer")
_FOLD = ("fold", "split", "set")
_ANSWERS = {
    **dict.fromkeys(("1", "1.0", "true", "same", "yes"), True),
    **dict.fromkeys(("0", "0.0", "-1", "false", "different", "no"), False),
}
_HEADER_OF_LFW = ("name", "imagenum1", "imagenum2")
_EXPECTED = "give 'name n1 n2', 'name1 n1 name2 n2', or 'a.jpg b.jpg 1' with 0 for two persons"


class PairArrays(NamedTuple):
    """The pairs of a data set.

    Attributes:
        positions: ``(P, 2)`` int64, positions of the pictures in the data set.
        same: ``(P,)`` bool, whether both are of one person.
        folds: ``(P,)`` int64, the fold of each pair.
    """

    positions: NDArray[np.int64]
    same: NDArray[np.bool_]
    folds: NDArray[np.int64]


@dataclass(frozen=True)
class PairList:
    """What a file of pairs says.

    Attributes:
        path: The file.
        first: P names of pictures. Those of LFW are ``Name/Name_0001`` without an ending, as its lists have numbers.
        second: P names of pictures.
        same: ``(P,)`` bool, whether both are of one person.
        folds: ``(P,)`` int64, from 0.
        lines: ``(P,)`` int64, line of each pair in the file, from 1.
        numbered: Whether names lack their ending.
        has_folds: Whether the folds are those of the file, and not ten blocks.
    """

    path: Path
    first: list[str]
    second: list[str]
    same: NDArray[np.bool_]
    folds: NDArray[np.int64]
    lines: NDArray[np.int64]
    numbered: bool
    has_folds: bool

    def __len__(self) -> int:
        return len(self.first)


class _Pair(NamedTuple):
    line: int
    first: str
    second: str
    same: bool
    fold: str | None
    numbered: bool


def read_pairs(path: str | Path) -> PairList:
    """Reads a file of pairs.

    Accepted are LFW's ``pairs.txt`` (first line: folds and pairs per kind and fold), ``pairsDevTrain.txt`` and
    ``pairsDevTest.txt`` (first line: pairs per kind), lists of ``a.jpg b.jpg 1`` separated by blanks, tabs or commas
    (the answer, 1 for one person and 0 for two, may come first; a fourth field is the fold), and CSV whose header
    names the columns (``file1``, ``file2``, ``same`` and perhaps ``fold``). Names with blanks need tabs or commas.
    Without folds there are ten consecutive blocks of equal size; in LFW's development lists, which are ordered by
    answer, ten of each answer.

    Raises:
        UserError: The file is missing or malformed, announces other numbers of pairs than it has, holds a pair twice
            with different answers, pairs of one kind only, or all pairs in one fold; the text names the line.
    """
    path = Path(path)
    lines = read_lines(path, "pairs file")
    counts = _counts(lines)
    pairs = list(_csv_pairs(path, lines) if _is_csv(lines) else _text_pairs(path, lines, 0 if counts is None else 1))
    if not pairs:
        raise UserError(f"pairs file {path} holds no pairs; {_EXPECTED}")
    odd = next((pair for pair in pairs if pair.numbered != pairs[0].numbered), None)
    if odd is not None:
        raise UserError(f"{path}, line {odd.line}: numbered names as in LFW and file names are mixed; use one of them")
    same = np.array([pair.same for pair in pairs])
    if not 0 < same.sum() < len(same):
        raise UserError(f"{path}: {int(same.sum())} of {len(same)} pairs are of one person; pairs of both are needed")
    _check_answers(path, pairs)
    folds = _announced_folds(path, pairs, same, counts) if counts is not None else _stated_folds(path, pairs)
    return PairList(
        path,
        [pair.first for pair in pairs],
        [pair.second for pair in pairs],
        same,
        folds,
        np.array([pair.line for pair in pairs], np.int64),
        pairs[0].numbered,
        counts is not None or pairs[0].fold is not None,
    )


def blocks(length: int, number: int = NUM_FOLDS) -> NDArray[np.int64]:
    """``(length,)`` the block of each row, in order, where the first blocks take one more if it does not divide."""
    sizes = np.full(number, length // number) + (np.arange(number) < length % number)
    return np.repeat(np.arange(number), sizes)


def _counts(lines: Sequence[str]) -> tuple[int, int] | None:
    """Folds (0 where not stated) and pairs per kind and fold of LFW's first line; None where it is none."""
    cells = lines[0].split()
    if not 1 <= len(cells) <= 2 or not all(cell.isdigit() for cell in cells):
        return None
    return (int(cells[0]), int(cells[1])) if len(cells) == 2 else (0, int(cells[0]))


def _is_csv(lines: Sequence[str]) -> bool:
    first = next(line for line in lines if line.strip())
    return "," in first or ";" in first or ("\t" in first and _columns(first.split("\t")) is not None)


def _text_pairs(path: Path, lines: Sequence[str], start: int) -> Iterator[_Pair]:
    for number in range(start, len(lines)):
        line = lines[number].strip()
        if line and not line.startswith("#"):
            yield _pair(path, number + 1, line.split("\t") if "\t" in line else line.split())


def _csv_pairs(path: Path, lines: Sequence[str]) -> Iterator[_Pair]:
    header, rows = csv_rows(path, lines) if _has_header(lines) else ([], _headless(path, lines))
    columns = _columns(header)
    if columns is None:
        names = tuple(cell.lower() for cell in header if cell)
        if header and names[:3] != _HEADER_OF_LFW:
            raise UserError(
                f"{path}, line 1: columns {', '.join(header)}; call them file1, file2, same and perhaps fold"
            )
        for line, cells in rows:
            yield _pair(path, line, cells)
        return
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} fields instead of {len(header)}")
        first, second, same, fold = (None if column is None else cells[column].strip() for column in columns)
        answer = _ANSWERS.get((same or "").lower())
        if answer is None:
            raise UserError(f"{path}, line {line}: {same!r} is not 1 (one person) or 0 (two)")
        yield _checked(path, _Pair(line, first or "", second or "", answer, fold, False))


def _has_header(lines: Sequence[str]) -> bool:
    cells = [cell.strip() for cell in re.split(r"[,;\t]", next(line for line in lines if line.strip()))]
    return not any(_is_picture(cell) or cell.lstrip("-").isdigit() for cell in cells)


def _headless(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    delimiter = ";" if ";" in lines[0] and "," not in lines[0] else ","
    _, rows = csv_rows(path, [delimiter.join(f"column{number}" for number in range(9)), *lines])
    return ((line - 1, cells) for line, cells in rows)


def _columns(header: Sequence[str]) -> tuple[int, int, int, int | None] | None:
    """Columns of both names, the answer and the fold; None where the header does not name the first three."""
    names = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header]
    found = [
        next((i for i, name in enumerate(names) if name in known), None) for known in (_FIRST, _SECOND, _SAME, _FOLD)
    ]
    first, second, same, fold = found
    return None if first is None or second is None or same is None else (first, second, same, fold)


def _pair(path: Path, line: int, cells: Iterable[str]) -> _Pair:
    """One line without named columns."""
    fields = [cell.strip() for cell in cells]
    while fields and not fields[-1]:
        fields.pop()
    if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
        name, first, second = fields
        return _checked(path, _Pair(line, _numbered(name, first), _numbered(name, second), True, None, True))
    if len(fields) == 4 and fields[1].isdigit() and fields[3].isdigit() and not _is_picture(fields[0]):
        names = _numbered(*fields[:2]), _numbered(*fields[2:])
        return _checked(path, _Pair(line, *names, fields[0] == fields[2], None, True))
    if len(fields) in (3, 4):
        answer = _ANSWERS.get(fields[2].lower())
        if answer is None and fields[0].lower() in _ANSWERS:
            answer, fields = _ANSWERS[fields[0].lower()], [*fields[1:3], "", *fields[3:]]
        if answer is not None and "" not in fields[:2]:
            fold = fields[3] if len(fields) == 4 else None
            return _checked(path, _Pair(line, fields[0], fields[1], answer, fold, False))
    raise UserError(f"{path}, line {line}: {' '.join(fields)[:120]!r} is no pair; {_EXPECTED}")


def _checked(path: Path, pair: _Pair) -> _Pair:
    if not pair.first or not pair.second:
        raise UserError(f"{path}, line {pair.line}: a file name is missing")
    if pair.first == pair.second:
        raise UserError(f"{path}, line {pair.line}: {pair.first} is paired with itself")
    return pair


def _numbered(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _check_answers(path: Path, pairs: Sequence[_Pair]) -> None:
    answers: dict[tuple[str, str], _Pair] = {}
    for pair in pairs:
        names = (pair.first, pair.second) if pair.first < pair.second else (pair.second, pair.first)
        known = answers.setdefault(names, pair)
        if known.same != pair.same:
            raise UserError(
                f"{path}, line {pair.line}: {pair.first} and {pair.second} are one person in one of this line and line "
                f"{known.line}, and two in the other; correct one of them"
            )


def _announced_folds(
    path: Path, pairs: Sequence[_Pair], same: NDArray[np.bool_], counts: tuple[int, int]
) -> NDArray[np.int64]:
    """Folds of LFW's lists: in each first the pairs of one person, then those of two."""
    folds, per_kind = max(counts[0], 1), counts[1]
    if len(pairs) != 2 * folds * per_kind:
        raise UserError(
            f"{path}, line 1 announces {folds} x 2 x {per_kind} pairs, but {len(pairs)} follow; fetch it again"
        )
    expected = np.tile(np.repeat([True, False], per_kind), folds)
    wrong = np.flatnonzero(same != expected)
    if len(wrong):
        kind = "one person" if expected[wrong[0]] else "two persons"
        raise UserError(f"{path}, line {pairs[wrong[0]].line}: a pair of {kind} should stand here, after line 1")
    if folds == 1 and per_kind > 1:
        return np.tile(blocks(per_kind, min(NUM_FOLDS, per_kind)), 2)
    return np.repeat(np.arange(folds), 2 * per_kind)


def _stated_folds(path: Path, pairs: Sequence[_Pair]) -> NDArray[np.int64]:
    """Folds of the file, numbered in the order of their first pairs, or ten blocks where it has none."""
    stated = [pair.fold for pair in pairs]
    without = next((pair for pair in pairs if not pair.fold), None)
    if without is not None:
        if any(stated):
            raise UserError(f"{path}, line {without.line}: the fold is missing, which other lines have")
        if len(pairs) < 2:
            raise UserError(f"{path} holds {len(pairs)} pairs, too few for two folds")
        return blocks(len(pairs), min(NUM_FOLDS, len(pairs)))
    number = {fold: row for row, fold in enumerate(dict.fromkeys(stated))}
    if len(number) < 2:
        raise UserError(f"{path}: all pairs are of fold {stated[0]}; at least two folds are needed, or none")
    return np.array([number[fold] for fold in stated], np.int64)
