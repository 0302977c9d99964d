"""Tiny sets of faces and attributes in their genuine layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ATTRIBUTES = ("Red", "Green", "Bright", "Rare")
LANDMARK_NAMES = (
    "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
)
FACE = np.array([(14, 22), (26, 22), (20, 30), (15, 38), (25, 38)])
"""Landmarks of every picture but for a shift, in a picture 40 wide and 50 high."""


def celeba_labels(num: int) -> np.ndarray:
    """``(num, 4)`` of 1 and -1: red or green by turns, bright for two and dark for two, the last one rare."""
    rows = np.arange(num)
    labels = np.stack([rows % 2 == 0, rows % 2 == 1, rows % 4 < 2, rows % 10 == 3], axis=1)
    return np.where(labels, 1, -1)


def make_tiny_celeba(
    root: Path,
    num: int = 20,
    size: tuple[int, int] = (50, 40),
    per_identity: int = 2,
    landmarks: bool = True,
    csv: bool = False,
) -> Path:
    """CelebA's release: padded columns, counts, headers with a blank at the end; or Kaggle's CSV files.

    Pictures are plain red or green (as labelled), bright or dark; of every ten, eight are for training, one for
    validation, one for tests. ``size`` is height and width; identities are numbered from 100 in blocks.
    """
    (root / "img_align_celeba").mkdir(parents=True)
    names, labels = [f"{i + 1:06d}.jpg" for i in range(num)], celeba_labels(num)
    for name, row in zip(names, labels):
        colour = np.array([255, 0, 0] if row[0] > 0 else [0, 255, 0]) * (1.0 if row[2] > 0 else 0.4)
        Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(root / "img_align_celeba" / name, quality=95)
    partition = [{8: 1, 9: 2}.get(i % 10, 0) for i in range(num)]
    identities = [100 + i // per_identity for i in range(num)]
    points = [(FACE + i % 3).ravel().tolist() for i in range(num)]
    write = _write_csv if csv else _write_text
    write(root / "list_attr_celeba", names, ATTRIBUTES, labels.tolist(), True)
    write(root / "list_eval_partition", names, ("partition",), [[p] for p in partition], False)
    write(root / "identity_CelebA", names, ("identity",), [[p] for p in identities], False)
    if landmarks:
        write(root / "list_landmarks_align_celeba", names, LANDMARK_NAMES.split(), points, True)
    return root


def _write_text(
    path: Path, names: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[int]], head: bool
) -> None:
    text = f"{len(names)}\n{' '.join(columns)} \n" if head else ""
    text += "".join(f"{name} {' '.join(f'{value:2d}' for value in row)}\n" for name, row in zip(names, rows))
    path.with_suffix(".txt").write_text(text)


def _write_csv(
    path: Path, names: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[int]], head: bool
) -> None:
    text = f"image_id,{','.join(columns)}\n"
    text += "".join(f"{name},{','.join(map(str, row))}\n" for name, row in zip(names, rows))
    path.with_suffix(".csv").write_text(text)


def make_attribute_csv(root: Path, text: str, name: str = "labels.csv", num: int = 6) -> Path:
    """Grey pictures ``0.jpg`` .. and a table with the given text."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        Image.fromarray(np.full((24, 24, 3), 40 * i % 256, np.uint8)).save(root / f"{i}.jpg", quality=95)
    (root / name).write_text(text)
    return root


def make_tiny_lfw_attributes(root: Path, people: Sequence[str] = ("Ann Lee", "Bo", "Cy Da"), each: int = 3) -> Path:
    """LFW's folders with ``lfw_attributes.txt``: a comment, names after ``#``, tab-separated scores."""
    lines = ["#lfw_attributes, scores of classifiers", "#\tperson\timagenum\tMale\tBald Head"]
    for number, person in enumerate(people):
        folder = person.replace(" ", "_")
        (root / "lfw-deepfunneled" / folder).mkdir(parents=True)
        for i in range(1, each + 1):
            path = root / "lfw-deepfunneled" / folder / f"{folder}_{i:04d}.jpg"
            Image.fromarray(np.full((50, 50, 3), 80 * number, np.uint8)).save(path)
            lines.append(f"{person}\t{i}\t{(-1) ** number * 0.5 * i}\t{-1.25 if i > 1 else 0.0}")
    (root / "lfw_attributes.txt").write_text("\n".join(lines) + "\n")
    return root
