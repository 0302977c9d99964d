"""Files of embeddings: Parquet or NumPy's npz, with the names of the pictures and what made them.

Parquet has the columns ``path`` (text) and ``embedding`` (D float32) and grows group by group; npz has the arrays
``paths`` ``(N,)`` and ``embeddings`` ``(N, D)``, held in memory until the end. Both appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.files import whole_file

FORMATS = ("parquet", "npz")

METADATA_KEY = "mnvision"
"""Of the JSON text that says what made a file: in Parquet's schema, or an array of the npz."""

_GROUP = 8192  # rows

Embedding = NDArray[np.float32]
Add = Callable[[Sequence[str], Embedding], None]
"""Appends a batch: B names of pictures and ``(B, D)`` float32."""


def open_table(file_format: str, folder: Path, dim: int, about: Mapping[str, Any]) -> AbstractContextManager[Add]:
    """The file ``embeddings.parquet`` or ``embeddings.npz`` of a folder.

    Args:
        file_format: "parquet" or "npz".
        folder: Where it goes.
        dim: D.
        about: Plain data that says what made it.

    Returns:
        Gives the function that appends; the file is complete when the ``with`` block ends.

    Raises:
        UserError: An unknown format, pyarrow is not installed, or the file cannot be written.
    """
    if file_format not in FORMATS:
        raise UserError(f"format={file_format}: choose one of {', '.join(FORMATS)}")
    table = _parquet if file_format == "parquet" else _npz
    return table(folder / f"embeddings.{file_format}", dim, json.dumps(about, ensure_ascii=False))


@contextmanager
def _parquet(path: Path, dim: int, about: str) -> Iterator[Add]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("format=parquet needs pyarrow: pip install 'mnvision[parquet]', or choose npz") from None
    fields = [("path", pyarrow.string()), ("embedding", pyarrow.list_(pyarrow.float32(), dim))]
    schema = pyarrow.schema(fields, {METADATA_KEY: about})
    names: list[str] = []
    rows: list[Embedding] = []

    def write_group() -> None:
        flat = pyarrow.array(np.concatenate(rows).reshape(-1))
        columns = [pyarrow.array(names, pyarrow.string()), pyarrow.FixedSizeListArray.from_arrays(flat, dim)]
        writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
        names.clear()
        rows.clear()

    def add(more_names: Sequence[str], embeddings: Embedding) -> None:
        names.extend(printable(name) for name in more_names)
        rows.append(embeddings)
        if len(names) >= _GROUP:
            write_group()

    with whole_file(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        yield add
        if names:
            write_group()


@contextmanager
def _npz(path: Path, dim: int, about: str) -> Iterator[Add]:
    names: list[str] = []
    rows = [np.empty((0, dim), np.float32)]

    def add(more_names: Sequence[str], embeddings: Embedding) -> None:
        names.extend(printable(name) for name in more_names)
        rows.append(embeddings)

    with whole_file(path) as partial:
        yield add
        arrays = {"paths": np.array(names, np.str_), "embeddings": np.concatenate(rows)}
        np.savez(partial, allow_pickle=False, **arrays, **{METADATA_KEY: np.array(about)})


def printable(name: str) -> str:
    """A file name as text; bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
