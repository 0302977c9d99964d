"""MATLAB files of lists, as data sets of the 2000s ship them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError


def read_mat(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Variables of a MATLAB file (version 7 or older), flattened.

    Args:
        path: The file.
        keys: The variables to read.

    Returns:
        ``(N,)`` each; cells of text are arrays of ``str``, numbers int64.

    Raises:
        UserError: The file is missing or damaged, lacks a variable, or holds something else in it.
    """
    from scipy.io import loadmat  # only these sets need it

    if not path.is_file():
        raise UserError(f"list not found: {path}; unpack it as the data set ships it")
    try:
        content = loadmat(path, variable_names=list(keys))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no readable MATLAB file ({reason}); fetch it again") from None
    absent = [key for key in keys if key not in content]
    if absent:
        raise UserError(f"{path} holds no variable {absent[0]!r}; is it another file?")
    return {key: _flat(content[key], key, path) for key in keys}


def _flat(value: Any, key: str, path: Path) -> NDArray[Any]:
    """A vector of text or of whole numbers."""
    array = np.asarray(value)
    if array.dtype == object:
        cells = [np.ravel(cell) for cell in array.ravel()]
        if all(len(cell) == 1 for cell in cells):
            array = np.array([cell[0] for cell in cells])
    if array.dtype.kind == "U":
        return array.ravel()
    if array.dtype.kind in "iuf" and (array == np.round(array)).all():
        return array.ravel().astype(np.int64)
    raise UserError(f"{path}: {key} holds neither texts nor whole numbers; is it another file?")
