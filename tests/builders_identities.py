"""Tiny sets of people: faces that are five dots of known colours at known places."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mnvision.data.identity_index import People
from mnvision.data.index import FindingCounter
from mnvision.transforms.alignment import ARCFACE_POINTS

TEMPLATE = np.array(ARCFACE_POINTS)
DOTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))
"""Colours of the eyes, the nose and the corners of the mouth, left ones first, as the viewer sees them."""
COLUMNS = ["leye_x", "leye_y", "reye_x", "reye_y", "nose_x", "nose_y", "lmouth_x", "lmouth_y", "rmouth_x", "rmouth_y"]

LFW_PEOPLE = {"Ann_Lee": 3, "Bob_Ray": 2, "Cid_Sun": 2, "Dan_Fox": 2, "Eve_Poe": 1}
LFW_PAIRS = (
    "2\t2\n"
    "Ann_Lee\t1\t2\n"
    "Bob_Ray\t1\t2\n"
    "Ann_Lee\t1\tBob_Ray\t1\n"
    "Ann_Lee\t3\tBob_Ray\t2\n"
    "Cid_Sun\t1\t2\n"
    "Dan_Fox\t1\t2\n"
    "Cid_Sun\t2\tEve_Poe\t1\n"
    "Dan_Fox\t1\tEve_Poe\t1\n"
)


def placed(scale: float, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """The template's points turned about their centre, scaled and put at ``shift``, ``(5, 2)``."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * (TEMPLATE - TEMPLATE.mean(0)) @ turn.T + shift


def draw_face(size: tuple[int, int], points: np.ndarray, radius: float = 4.0) -> np.ndarray:
    """``(h, w, 3)`` uint8: soft round dots on grey, centred on ``points`` in continuous coordinates."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    image = np.full((*size, 3), 128.0)
    for point, colour in zip(points, DOTS):
        weight = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * radius**2))[..., None]
        image = image * (1 - weight) + np.array(colour) * weight
    return image.round().astype(np.uint8)


def find_dots(image: np.ndarray) -> np.ndarray:
    """``(5, 2)``: where the dots of :func:`draw_face` lie in a picture."""
    found = []
    for colour in DOTS:
        near = 255 * 3 - np.abs(image.astype(float) - colour).sum(axis=2)
        weight = np.clip(near - near.max() + 120, 0, None)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        found.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(found)


def make_people(
    root: Path, people: Mapping[str, int], size: tuple[int, int] = (48, 48), ending: str = ".jpg"
) -> dict[str, np.ndarray]:
    """Folders ``NAME/NAME_0001.jpg`` with faces at changing places.

    Returns:
        File names relative to ``root`` -> landmarks ``(5, 2)``.
    """
    landmarks: dict[str, np.ndarray] = {}
    for who, (name, number) in enumerate(people.items()):
        (root / name).mkdir(parents=True)
        for i in range(number):
            points = placed(0.3 + 0.02 * i, 10.0 * (who % 3 - 1), (size[1] / 2 + i, size[0] / 2 - who % 4))
            file = f"{name}/{name}_{i + 1:04d}{ending}"
            picture = draw_face(size, points, radius=2.0)
            picture[:4, :4] = 40 * (who % 6)
            Image.fromarray(picture).save(root / file, quality=95)
            landmarks[file] = points
    return landmarks


def write_landmarks(path: Path, landmarks: Mapping[str, np.ndarray], columns: Sequence[str] = COLUMNS) -> Path:
    """A CSV of one face per row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *columns])
        writer.writerows([name, *np.round(points.ravel(), 3).tolist()] for name, points in landmarks.items())
    return path


def make_lfw(root: Path, size: tuple[int, int] = (48, 48), ending: str = ".jpg") -> Path:
    """LFW as it is unpacked, with ``pairs.txt`` of two folds and ``landmarks.csv``."""
    landmarks = make_people(root / "lfw-deepfunneled", LFW_PEOPLE, size, ending)
    (root / "pairs.txt").write_text(LFW_PAIRS)
    write_landmarks(root / "landmarks.csv", landmarks)
    return root


def people_of(names: list[str], identities: list[int]) -> People:
    """Pictures without files, and whose they are."""
    numbers = np.array(identities, np.int64)
    return People("set", Path("."), names, numbers, [str(i) for i in range(numbers.max() + 1)], FindingCounter())


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity of Umeyama's paper (1991), equations 40 to 42, by singular values; ``(2, 3)``."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, values, v = np.linalg.svd(covariance)
    sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = u @ sign @ v
    scale = np.trace(np.diag(values) @ sign) / source.var(axis=0).sum()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def opencv_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """OpenCV's fit with nothing rejected."""
    matrix, _ = cv2.estimateAffinePartial2D(source, target, method=cv2.LMEDS)
    return np.asarray(matrix)
