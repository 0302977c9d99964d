"""Tiny fine-grained sets in their official layouts: every object is a rectangle of its class's colour on black."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIZE = (40, 56)  # height and width
BOX = (20, 10, 36, 26)  # xyxy of every object
BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02086240-Shih-Tzu")
PETS = ("Abyssinian", "american_bulldog", "Sphynx")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def write_picture(path: Path, label: int, whole: bool = True) -> None:
    """A picture of a class's colour, or of a rectangle of it at ``BOX``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*SIZE, 3), np.uint8)
    x0, y0, x1, y1 = (0, 0, SIZE[1], SIZE[0]) if whole else BOX
    pixels[y0:y1, x0:x1] = COLOURS[label]
    Image.fromarray(pixels).save(path, "JPEG", quality=95, subsampling=0)


def write_list(path: Path, names: list[str], labels: list[int]) -> None:
    """A list of Stanford Dogs: cells of text and labels from 1, both columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = np.array(names, dtype=object).reshape(-1, 1)
    annotations = np.array([name.removesuffix(".jpg") for name in names], dtype=object).reshape(-1, 1)
    numbers = np.array(labels, np.uint8).reshape(-1, 1)
    savemat(path, {"file_list": files, "annotation_list": annotations, "labels": numbers})


def make_dogs(root: Path, num_train: int = 4, num_test: int = 2, whole: bool = True) -> Path:
    """Stanford Dogs; every annotation holds a second, smaller box."""
    read: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "test": ([], [])}
    sides = ("xmin", "ymin", "xmax", "ymax")
    for label, breed in enumerate(BREEDS):
        for i in range(num_train + num_test):
            stem = f"{breed}/{breed.split('-')[0]}_{i}"
            write_picture(root / "Images" / f"{stem}.jpg", label, whole)
            names, labels = read["train" if i < num_train else "test"]
            names.append(f"{stem}.jpg")
            labels.append(label + 1)
            boxes = "".join(
                f"<object><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in zip(sides, box))}</bndbox></object>"
                for box in ((0, 0, 3, 3), BOX)
            )
            path = root / "Annotation" / stem
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<annotation><filename>%s</filename>{boxes}</annotation>")
    for split, (names, labels) in read.items():
        write_list(root / "lists" / f"{split}_list.mat", names, labels)
    return root


def make_pets(root: Path, num_train: int = 4, num_test: int = 2) -> Path:
    """Oxford-IIIT Pets."""
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(PETS):
        for i in range(num_train + num_test):
            write_picture(root / "images" / f"{breed}_{i}.jpg", label)
            lines["trainval" if i < num_train else "test"].append(f"{breed}_{i} {label + 1} 1 {label + 1}")
    (root / "annotations").mkdir()
    for name, members in lines.items():
        (root / "annotations" / f"{name}.txt").write_text("\n".join(members) + "\n")
    return root


def make_cub(root: Path, num_train: int = 4, num_test: int = 2, whole: bool = True) -> Path:
    """CUB-200-2011."""
    files: dict[str, list[str]] = {
        name: []
        for name in (
            "images.txt",
            "image_class_labels.txt",
            "train_test_split.txt",
            "classes.txt",
            "bounding_boxes.txt",
        )
    }
    x0, y0, x1, y1 = BOX
    number = 0
    for label, bird in enumerate(BIRDS):
        files["classes.txt"].append(f"{label + 1} {bird}")
        for i in range(num_train + num_test):
            number += 1
            name = f"{bird}/{bird.split('.')[1]}_{i:04d}.jpg"
            write_picture(root / "images" / name, label, whole)
            files["images.txt"].append(f"{number} {name}")
            files["image_class_labels.txt"].append(f"{number} {label + 1}")
            files["train_test_split.txt"].append(f"{number} {int(i < num_train)}")
            files["bounding_boxes.txt"].append(f"{number} {x0}.0 {y0}.0 {x1 - x0}.0 {y1 - y0}.0")
    for name, lines in files.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def make_flowers(root: Path, per_class: int = 6) -> Path:
    """Oxford Flowers-102 with three classes; of each six pictures two are for training, one for validation."""
    labels = [number % 3 for number in range(3 * per_class)]
    for number, label in enumerate(labels, start=1):
        write_picture(root / "jpg" / f"image_{number:05d}.jpg", label)
    ids = np.arange(1, len(labels) + 1, dtype=np.uint16)
    turn = (ids - 1) // 3 % 6
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8) + 1})
    parts = {"trnid": ids[turn < 2], "valid": ids[turn == 2], "tstid": ids[turn > 2]}
    savemat(root / "setid.mat", {key: value.reshape(1, -1) for key, value in parts.items()})
    return root


def make_web(root: Path, per_class: int = 6) -> Path:
    """A noisy set: ``train.csv`` and ``clean.csv`` of pictures in ``images/``, of the classes red, green and blue."""
    rows: dict[str, list[str]] = {"train": ["path,label"], "clean": ["path,label"]}
    for label, name in enumerate(("red", "green", "blue")):
        for i in range(per_class):
            write_picture(root / "images" / name / f"{i}.jpg", label)
            rows["clean" if i == 0 else "train"].append(f"{name}/{i}.jpg,{name}")
    for name, lines in rows.items():
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root
