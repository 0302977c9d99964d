"""Five landmarks of faces, from CSV of any detector or from lists as CelebA's."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnvision.data.celeba_files import read_landmarks
from mnvision.data.images import IMAGE_SUFFIXES, image_size
from mnvision.data.index import FindingCounter, first_few
from mnvision.data.tables import csv_rows, read_lines
from mnvision.errors import UserError

_FILE = ("file", "filename", "image", "imageid", "imagename", "img", "name", "nameid", "path", "picture")
_POINTS = (
    ("leye", "lefteye", "eyeleft", "p1"),
    ("reye", "righteye", "eyeright", "p2"),
    ("nose", "nosetip", "p3"),
    ("lmouth", "leftmouth", "mouthleft", "leftmouthcorner", "mouthleftcorner", "p4"),
    ("rmouth", "rightmouth", "mouthright", "rightmouthcorner", "mouthrightcorner", "p5"),
)
_COORDINATE = {
    spelling: 2 * point + axis
    for point, names in enumerate(_POINTS)
    for name in names
    for axis, letter in enumerate("xy")
    for spelling in (f"{name}{letter}", f"{letter}{name}")
}


@dataclass(frozen=True)
class LandmarkTable:
    """What a file says about faces.

    Attributes:
        path: The file.
        rows: Picture's name without its ending -> rows of its faces; none where the file names it without a face.
        points: ``(F, 5, 2)`` float32, x and y in the picture's pixels: eyes, nose, corners of the mouth, the left
            ones first (as the viewer sees them).
    """

    path: Path
    rows: Mapping[str, Sequence[int]]
    points: NDArray[np.float32]

    def find(self, name: str) -> Sequence[int]:
        """Rows of a picture's faces."""
        return self.rows.get(_key(name), ())


def read_landmark_table(path: str | Path) -> LandmarkTable:
    """Reads a file of landmarks.

    Accepted are CSV whose header names the picture's column (``file``, ``image_id``, ``NAME_ID`` ...) and ten
    coordinates (``leye_x``, ``left_eye_x``, ``lefteye_x``, ``P1X`` ... in any order, beside other columns), with a row
    for each face, empty coordinates where none was found, and lists as CelebA's: a name and ten numbers.

    Raises:
        UserError: The file is missing or malformed; the text names line and column.
    """
    path = Path(path)
    lines = read_lines(path, "landmark file")
    if not any(mark in lines[0] for mark in ",;\t"):
        table = read_landmarks(path)
        rows = {_key(name): (row,) for row, name in enumerate(table.file_names)}
        return LandmarkTable(path, rows, table.values.astype(np.float32))
    header, cells = csv_rows(path, lines)
    names = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header]
    file_column = next((column for column, name in enumerate(names) if name in _FILE), None)
    columns = [next((i for i, name in enumerate(names) if _COORDINATE.get(name) == wanted), -1) for wanted in range(10)]
    if file_column is None or -1 in columns:
        raise UserError(
            f"{path}, line 1: give a column file and ten coordinates leye_x, leye_y, reye_x, reye_y, nose_x, nose_y, "
            f"lmouth_x, lmouth_y, rmouth_x, rmouth_y; it has {', '.join(header)}"
        )
    found: dict[str, list[int]] = {}
    values: list[list[float]] = []
    for line, row in cells:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} fields instead of {len(header)}")
        known = found.setdefault(_key(row[file_column].strip()), [])
        texts = [row[column].strip() for column in columns]
        if all(text.lower() in ("", "nan", "none") for text in texts):
            continue
        known.append(len(values))
        values.append([_number(text, path, line, header[column]) for text, column in zip(texts, columns)])
    if not values:
        raise UserError(f"landmark file {path} holds no face")
    return LandmarkTable(path, found, np.array(values, np.float32).reshape(-1, 5, 2))


def landmarks_of(
    table: LandmarkTable, folder: Path, names: Sequence[str], found: FindingCounter
) -> NDArray[np.float32]:
    """The landmarks of one face of each picture.

    Of several faces in a picture the largest near its centre is taken, as there is one whose picture it is: the one
    of the largest ``side * (1 - d / D)``, where d is its distance from the centre and D half the diagonal.

    Args:
        table: What the file says.
        folder: Folder of the pictures.
        names: N file names, relative to ``folder``.
        found: Receives the number of pictures with several faces.

    Returns:
        ``(N, 5, 2)`` float32, NaN where there is no face.

    Raises:
        UserError: None of the pictures has landmarks, in most the left eye is right of the other, or they belong to
            pictures of another size.
    """
    points = np.full((len(names), 5, 2), np.nan, np.float32)
    several: list[str] = []
    for position, name in enumerate(names):
        rows = table.find(name)
        if len(rows) > 1:
            several.append(name)
            rows = (rows[main_face(table.points[list(rows)], image_size(folder / name))],)
        if rows:
            points[position] = table.points[rows[0]]
    found.add("pictures with several faces: the largest near the centre taken", several)
    _check_plausible(table, folder, names, points)
    return points


def main_face(faces: NDArray[np.float32], size: tuple[int, int]) -> int:
    """The largest face near the centre, see :func:`landmarks_of`.

    Args:
        faces: ``(F, 5, 2)`` landmarks.
        size: Height and width of the picture.
    """
    width, height = (faces.max(axis=1) - faces.min(axis=1)).T
    centre = np.array(size[::-1]) / 2
    distance = np.linalg.norm(faces.mean(axis=1) - centre, axis=1) / np.linalg.norm(centre)
    return int(np.argmax(np.sqrt(width * height) * (1 - np.minimum(distance, 1))))


def usable(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """``(N,)`` faces ``(N, 5, 2)`` that are known and not all in one place."""
    return np.asarray((np.ptp(points, axis=1) > 0).any(axis=1) & np.isfinite(points).all(axis=(1, 2)))


def _check_plausible(
    table: LandmarkTable, folder: Path, names: Sequence[str], points: NDArray[np.float32], tried: int = 64
) -> None:
    known = np.flatnonzero(usable(points))
    if not len(known):
        raise UserError(
            f"{table.path} has landmarks of none of the {len(names)} pictures; it names "
            f"{first_few(list(table.rows), 2)}, they are {first_few(names, 2)}: its names must be relative to {folder}"
        )
    swapped = points[known, 0, 0] > points[known, 1, 0]
    if swapped.mean() > 0.5:
        raise UserError(
            f"{table.path}: in {int(swapped.sum())} of {len(known)} faces the left eye lies right of the other one; "
            "left is what the viewer sees on the left: exchange the columns of left and right"
        )
    outside = []
    for position in known[:: max(len(known) // tried, 1)]:
        height, width = image_size(folder / names[position])
        x, y = points[position].mean(axis=0)
        outside += [] if 0 <= x <= width and 0 <= y <= height else [names[position]]
    if len(outside) > tried // 4 or len(outside) == len(known):
        raise UserError(
            f"{table.path}: the landmarks of {first_few(outside)} lie outside their pictures; they belong to pictures "
            "of another size or crop"
        )


def _key(name: str) -> str:
    name = name.replace("\\", "/").removeprefix("./")
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _number(text: str, path: Path, line: int, column: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{path}, line {line}, column {column!r}: {text!r} is not a number")
    return number
