"""CUB-200-2011 in its official layout: 200 birds, 5,994 training and 5,794 test pictures.

Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset" (2011). Its authors warn that its pictures overlap with
ImageNet's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mnvision.data.class_lists import ClassList, ClassLists, labels_of
from mnvision.data.image_folder import imagenet_note
from mnvision.data.index import FindingCounter, first_few
from mnvision.data.listed import BoxedDataModule
from mnvision.data.tables import finite, read_lines
from mnvision.errors import UserError

Value = TypeVar("Value")


class Cub200DataModule(BoxedDataModule):
    """Folder ``images`` and, beside it, ``images.txt``, ``classes.txt`` and three files with a line per picture.

    These are ``image_class_labels.txt``, ``train_test_split.txt`` and, for boxes, ``bounding_boxes.txt``. Class names
    are those of the folders without their number, ``Black footed Albatross``. Arguments and errors as
    :class:`~mnvision.data.listed.BoxedDataModule`.
    """

    errata = (imagenet_note("its authors say that CUB-200-2011 shares pictures with ImageNet"),)

    def read_lists(self) -> ClassLists:
        """See :meth:`~mnvision.data.listed.ListedDataModule.read_lists`."""
        root = self.root
        names = _by_id(root / "images.txt", "a file name", str)
        classes = _by_id(root / "classes.txt", "a class", lambda text: re.sub(r"^\d+\.", "", text).replace("_", " "))
        numbers = sorted(classes)
        if numbers != list(range(1, len(numbers) + 1)):
            raise UserError(f"{root / 'classes.txt'}: classes are not numbered 1 .. {len(numbers)}")
        ids = _of_same(root / "image_class_labels.txt", names, "the number of a class", int)
        labels = labels_of(root / "image_class_labels.txt", [ids[key] for key in names], 1, len(classes))
        uses = _of_same(root / "train_test_split.txt", names, "0 or 1", ("0", "1").index)
        every = ClassList(str(root / "images.txt"), list(names.values()), labels)
        training = np.array([uses[key] == 1 for key in names], np.bool_)
        splits = {"train": every.take(training), "test": every.take(~training)}
        class_names = tuple(classes[number] for number in numbers)
        return ClassLists(root / "images", class_names, splits, FindingCounter())  # type: ignore[arg-type]

    def read_boxes(self, names: Sequence[str]) -> NDArray[np.float64]:
        """See :meth:`~mnvision.data.listed.BoxedDataModule.read_boxes`."""
        files = _by_id(self.root / "images.txt", "a file name", str)
        path = self.root / "bounding_boxes.txt"
        sides = _of_same(path, files, "x, y, width and height", _box)
        box_of = {name: sides[key] for key, name in files.items()}
        return np.array([box_of[name] for name in names], np.float64).reshape(-1, 4)


def _box(text: str) -> tuple[float, float, float, float]:
    """Xyxy of ``x y width height``."""
    x, y, width, height = map(finite, text.split())
    return x, y, x + width, y + height


def _by_id(path: Path, what: str, convert: Callable[[str], Value]) -> dict[int, Value]:
    """The rest of each line by the number it begins with."""
    values: dict[int, Value] = {}
    for line, text in enumerate(read_lines(path, "list"), start=1):
        if not text.strip():
            continue
        key, _, rest = text.strip().partition(" ")
        try:
            number, value = int(key), convert(rest.strip())
        except ValueError:
            raise UserError(f"{path}, line {line}: {text.strip()!r} is no number and {what}") from None
        if number in values:
            raise UserError(f"{path}, line {line}: number {number} occurs twice")
        values[number] = value
    return values


def _of_same(path: Path, names: dict[int, str], what: str, convert: Callable[[str], Value]) -> dict[int, Value]:
    """As :func:`_by_id`, of the very pictures that ``images.txt`` names."""
    values = _by_id(path, what, convert)
    differing = sorted(values.keys() ^ names.keys())
    if differing:
        raise UserError(f"{path} and images.txt do not name the same pictures: numbers {first_few(differing)}")
    return values
