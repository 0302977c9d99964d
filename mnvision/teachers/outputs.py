"""Outputs that some other program computed beforehand, looked up by picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.checkpoints import UNREADABLE
from mnvision.errors import UserError
from mnvision.teachers.base import Outputs, Teacher, digest, one_line
from mnvision.teachers.spec import TeacherSpec
from mnvision.teachers.weights import read_names

FILES = "files"
ROWS_AT_ONCE = 4096
NAMED = 3
DETECTION_OUTPUTS = ("boxes", "scores", "labels")
# Which output makes which kind, and how many axes it has for one picture.
KINDS = {"logits": "classification", "attribute_logits": "face_attributes", "embedding": "face_embeddings"}
AXES = {"logits": 1, "attribute_logits": 1, "embedding": 1, "boxes": 2, "scores": 1, "labels": 1}
LARGEST = float(np.finfo(np.float16).max)
# Least, largest, and what is wrong with other values.
RANGES = {
    "boxes": (0.0, 1.0, "is no fraction of the picture (0..1)"),
    "scores": (0.0, 1.0, "is no score (0..1)"),
}


class StoredOutputs:
    """A teacher's answers to the pictures of one data set; those to a picture are the same in every view.

    Args:
        arrays: Name -> one row per stored picture.
        rows: ``(N,)`` row of each picture of the data set.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
        self.arrays, self.rows = arrays, rows

    def read(self, view: int, position: int) -> dict[str, NDArray[np.float16]]:
        """The answers to one picture, float16, whatever ``view`` is."""
        row = self.rows[position]
        return {name: _answer(name, array[row]) for name, array in self.arrays.items()}


class OutputsTeacher(Teacher):
    """Outputs from a file; there is nothing to run, hence no augmented views of their own and no cost.

    Args:
        path: ``.npz`` with arrays named as in :class:`TeacherSpec` and ``files``, names of the pictures relative to
            the data folder, one per row; or ``.npy`` / ``.pt`` with one array, row i belonging to picture i.
        output: What the array of a ``.npy`` or ``.pt`` file is: "logits", "attribute_logits" or "embedding".
        class_names: Text file with one name per column (class, attribute); None looks beside the file.

    Raises:
        UserError: A missing or damaged file, unknown names, shapes that do not go together, or values that are not
            numbers or beyond float16.
    """

    def __init__(self, path: str | Path, output: str = "logits", class_names: str | None = None) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        self.called = f"teacher {self.path}"
        if output not in KINDS:
            raise UserError(f"teacher.output={output!r}: choose one of {', '.join(KINDS)}")
        arrays = _read(self.path, output)
        self.files = _file_names(arrays.pop(FILES), self.path) if FILES in arrays else None
        kind = _kind(arrays, self.path)
        _check_rows(arrays, None if self.files is None else len(self.files), self.path)
        self.arrays = arrays
        self.options = {"output": output}
        names: tuple[str, ...] | None = None
        if kind == "detection":
            names = read_names(class_names, None, self.path)
            if names is None:
                raise UserError(f"{self.called}: give teacher.class_names, a file with every class's name in a line")
        elif kind != "face_embeddings":
            names = read_names(class_names, next(iter(arrays.values())).shape[1], self.path)
        shapes = {name: array.shape[1:] for name, array in arrays.items()}
        self.spec = TeacherSpec(self.called, kind, (0, 0), shapes, names, parameters=0)

    def answer(self, images: Tensor) -> Outputs:
        """Refused: there is no network.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.called} holds outputs and cannot be run on pictures")

    def forward(self, images: Tensor) -> Outputs:
        """Refused, as :meth:`answer`."""
        return self.answer(images)

    def outputs_for(self, names: Sequence[str]) -> StoredOutputs:
        """The answers to the pictures of a data set.

        Args:
            names: Of its pictures relative to the data folder, in its order.

        Raises:
            UserError: A picture without outputs (the first ones are named); without names in the file, another number
                of rows than pictures.
        """
        count = len(next(iter(self.arrays.values())))
        if self.files is None:
            if count != len(names):
                raise UserError(
                    f"{self.called}: {count} rows for {len(names)} pictures: one row per picture in the data's order "
                    f"is needed, or an .npz with {FILES!r}, the name of every row's picture"
                )
            return StoredOutputs(self.arrays, np.arange(count))
        row_of = {name: row for row, name in enumerate(self.files)}
        missing = [name for name in names if name not in row_of]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise UserError(
                f"{self.called}: no outputs for {len(missing)} of {len(names)} pictures: "
                f"{', '.join(missing[:NAMED])}{more}; its {FILES!r} are like {self.files[0]}"
            )
        return StoredOutputs(self.arrays, np.array([row_of[name] for name in names], np.int64))

    def fingerprint(self) -> str:
        """Hex digest of the file."""
        return digest({"class": type(self).__name__, **self.options}, files=[self.path])


def _answer(name: str, values: NDArray[Any]) -> NDArray[np.float16]:
    """One picture's row, embeddings at length 1."""
    plain = np.asarray(values, np.float32)
    return (plain / np.linalg.norm(plain) if name == "embedding" else plain).astype(np.float16)


def _read(path: Path, output: str) -> dict[str, NDArray[Any]]:
    """All arrays of the file; a ``.npy`` file stays on disk and is read row by row."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give an .npz, .npy or .pt file as teacher.path")
    try:
        if path.suffix == ".npz" and not is_zipfile(path):  # numpy would take it for a pickle
            raise UserError(f"{path}: cannot be read as arrays (no whole .npz archive); make it again")
        if path.suffix == ".npz":
            # Opened here, for numpy leaves a damaged archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".npy":
            return {output: np.lib.format.open_memmap(path, mode="r")}
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, Tensor):
                raise UserError(f"{path}: holds a {type(content).__name__}; one tensor is needed, or an .npz file")
            return {output: content.float().numpy()}
    except UserError:
        raise
    except UnpicklingError:
        raise UserError(f"{path}: cannot be read as arrays (corrupt, or Python objects beside tensors)") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read as arrays ({one_line(error)})") from None
    raise UserError(f"{path}: outputs are .npz, .npy or .pt files")


def _file_names(names: NDArray[Any], path: Path) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(f"{path}: {FILES!r} must be one axis of strings, not {names.dtype} {names.shape}")
    texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    name, times = Counter(texts).most_common(1)[0] if texts else ("", 0)
    if times > 1:
        raise UserError(f"{path}: {FILES!r} names {name} {times} times")
    return texts


def _kind(arrays: Mapping[str, NDArray[Any]], path: Path) -> str:
    """Which kind of teacher the arrays make."""
    found = [kind for name, kind in KINDS.items() if name in arrays]
    if set(arrays) == set(DETECTION_OUTPUTS):
        return "detection"
    if len(found) == 1 and len(arrays) == 1:
        return found[0]
    raise UserError(
        f"{path}: holds {', '.join(arrays) or 'no arrays'}; beside {FILES!r} one of {', '.join(KINDS)} is needed, or "
        f"{', '.join(DETECTION_OUTPUTS)}"
    )


def _check_rows(arrays: Mapping[str, NDArray[Any]], count: int | None, path: Path) -> None:
    """Refuse shapes and numbers that no student could learn from."""
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    rows = {len(array) if array.ndim else 0 for array in arrays.values()} | ({count} if count is not None else set())
    if len(rows) != 1 or 0 in rows:
        names = "" if count is None else f" and {count} names in {FILES!r}"
        raise UserError(f"{path}: {shapes}{names}: one row per picture is needed in each")
    if any(array.ndim != AXES[name] + 1 for name, array in arrays.items()):
        raise UserError(
            f"{path}: {shapes}: one row per picture of {', '.join(f'{n} ({AXES[n]} axes)' for n in arrays)}"
        )
    if "boxes" in arrays:
        count_of = {name: arrays[name].shape[1] for name in DETECTION_OUTPUTS}
        if len(set(count_of.values())) != 1 or arrays["boxes"].shape[2] != 4:
            raise UserError(f"{path}: {shapes}: boxes (N, D, 4), scores (N, D) and labels (N, D) are needed")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise UserError(f"{path}: {name} is {array.dtype}, numbers are needed")
        for start in range(0, len(array), ROWS_AT_ONCE):
            part = np.asarray(array[start : start + ROWS_AT_ONCE], np.float32).reshape(-1, array[0].size)
            low, high, rule = RANGES.get(name, (-LARGEST, LARGEST, f"is no number or beyond {LARGEST:.0f}"))
            fine = ((part >= low) & (part <= high)).all(axis=1)
            if name == "embedding":
                fine &= np.abs(part).max(axis=1) > 0
                rule += ", or nothing but zeros"
            if not fine.all():
                raise UserError(f"{path}: {name} of row {start + int(fine.argmin())} holds a value that {rule}")
