"""A teacher's outputs on disk: rows of float16 numbers in chunk files that are whole or not there.

A row holds all outputs of one view of one picture side by side, so that a sample is one read. Rows are numbered
view by view: ``view * pictures + position``. A chunk file is a header of 64 bytes (a magic word and the BLAKE2b
digest of what follows) and its rows, written under another name and renamed when it is complete and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.files import whole_file

Half = NDArray[np.float16]

CHUNK_BYTES, CHUNK_ROWS = 64 << 20, 1024
HALF_MAX = 65504.0
"""Largest finite float16."""
_WHOLE_NUMBERS = 2048.0  # up to here float16 holds every one of them
_MAGIC = b"mnvision teacher outputs 1\n".ljust(32, b" ")
_DIGEST_BYTES, _HEADER_BYTES = 32, 64
_MAX_OPEN = 64
_VERIFIED = "verified.json"


@dataclass(frozen=True)
class Layout:
    """What the rows of a cache hold, and how they are dealt out to files.

    Attributes:
        outputs: Name -> shape of one picture's output.
        views: Views of every picture.
        pictures: Pictures of the data set.
        chunk_rows: Rows of a chunk; the last one may have fewer.
    """

    outputs: Mapping[str, tuple[int, ...]]
    views: int
    pictures: int
    chunk_rows: int

    @classmethod
    def of(cls, outputs: Mapping[str, tuple[int, ...]], views: int, pictures: int) -> Layout:
        """A layout whose chunks are small enough that a kill costs little: 64 MiB or 1024 rows at most."""
        width = sum(math.prod(shape) for shape in outputs.values())
        return cls(dict(outputs), views, pictures, max(1, min(CHUNK_ROWS, CHUNK_BYTES // (2 * max(width, 1)))))

    @property
    def rows(self) -> int:
        """All rows."""
        return self.views * self.pictures

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return sum(math.prod(shape) for shape in self.outputs.values())

    @property
    def chunks(self) -> int:
        """Number of chunk files."""
        return -(-self.rows // self.chunk_rows)

    def span(self, chunk: int) -> range:
        """Rows of a chunk."""
        start = chunk * self.chunk_rows
        return range(start, min(start + self.chunk_rows, self.rows))

    def chunk_bytes(self, chunk: int) -> int:
        """Size of a chunk file."""
        return _HEADER_BYTES + len(self.span(chunk)) * self.width * 2

    def pack(self, outputs: Mapping[str, NDArray[np.float32]]) -> tuple[Half, dict[int, str]]:
        """Outputs of some pictures as rows.

        Args:
            outputs: Name -> ``(B, ...)``.

        Returns:
            ``(B, width)`` float16; and those rows, with the reason, that float16 cannot hold.

        Raises:
            UserError: The names or shapes are not those of this layout.
        """
        found = {name: tuple(value.shape[1:]) for name, value in outputs.items()}
        if found != dict(self.outputs):
            raise UserError(f"the teacher gave outputs {_shapes(found)} where {_shapes(self.outputs)} were announced")
        flat = [outputs[name].reshape(len(outputs[name]), -1) for name in self.outputs]
        wrong: dict[int, str] = {}
        for name, values in zip(self.outputs, flat):
            limit = _WHOLE_NUMBERS if name == "labels" else HALF_MAX
            for row in np.flatnonzero(~(np.abs(values) <= limit).all(axis=1)).tolist():
                bad = values[row][~(np.abs(values[row]) <= limit)][0]
                wrong.setdefault(row, f"{name} holds {bad:g}, float16 takes -{limit:g} to {limit:g}")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.concatenate(flat, axis=1).astype(np.float16), wrong

    def unpack(self, row: Half) -> dict[str, Half]:
        """One row ``(width,)`` as outputs by name, each of its own shape."""
        outputs, start = {}, 0
        for name, shape in self.outputs.items():
            end = start + math.prod(shape)
            outputs[name] = row[start:end].reshape(shape)
            start = end
        return outputs


class ChunkStore:
    """The chunk files of one cache.

    Args:
        folder: Holds them.
        layout: Their content.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout

    def path(self, chunk: int) -> Path:
        """File of a chunk."""
        return self.folder / f"chunk_{chunk:06d}.f16"

    def missing(self) -> list[int]:
        """Chunks that are not there or not whole.

        A checksum is computed once: a chunk whose size and time of change are those of its last check is not read
        again, so that a large cache opens at once.
        """
        known, checked = self._verified(), {}
        for chunk in range(self.layout.chunks):
            path = self.path(chunk)
            try:
                status = path.stat()
            except OSError:
                continue
            stamp = [status.st_size, status.st_mtime_ns]
            if status.st_size == self.layout.chunk_bytes(chunk) and (known.get(path.name) == stamp or is_whole(path)):
                checked[path.name] = stamp
        if checked != known:
            with whole_file(self.folder / _VERIFIED) as file:
                file.write_text(json.dumps(checked))
        return [chunk for chunk in range(self.layout.chunks) if self.path(chunk).name not in checked]

    @contextmanager
    def writing(self, chunk: int) -> Iterator[ChunkWriter]:
        """Takes the rows of one chunk, batch by batch; the file appears when all of them were given.

        Raises:
            UserError: The disk is full, or cannot be written to.
        """
        with whole_file(self.path(chunk)) as partial, open(partial, "wb") as file:
            writer = ChunkWriter(file)
            yield writer
            writer.finish()
            if file.tell() != self.layout.chunk_bytes(chunk):
                raise ValueError(f"chunk {chunk}: {file.tell()} bytes, not {self.layout.chunk_bytes(chunk)}")

    def remove_leftovers(self) -> None:
        """Deletes what a killed writer left; call it under the folder's lock."""
        for path in self.folder.glob(".chunk_*"):
            path.unlink(missing_ok=True)

    def _verified(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _VERIFIED).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class ChunkWriter:
    """Rows to a file, and their digest to its head."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.blake2b(digest_size=_DIGEST_BYTES)
        file.write(bytes(_HEADER_BYTES))

    def add(self, rows: Half) -> None:
        """Appends rows ``(B, width)``."""
        data = np.ascontiguousarray(rows, dtype="<f2").tobytes()
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Writes the head, and waits until everything is on the disk."""
        self._file.seek(0)
        self._file.write(_MAGIC + self._digest.digest())
        self._file.seek(0, os.SEEK_END)
        self._file.flush()
        os.fsync(self._file.fileno())


class ChunkReader:
    """Reads rows from the chunk files of a complete cache, through memory maps.

    Only the pages of the rows that are read are in memory, and those are the system's to drop. Safe to send to
    loader workers: each opens its own maps.

    Args:
        folder: Holds the chunks.
        layout: Their content.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._maps: dict[int, NDArray[np.float16]] = {}

    def read(self, view: int, position: int) -> dict[str, Half]:
        """See :class:`~mnvision.data.teacher_view.OutputReader`."""
        layout = self.layout
        if not (0 <= view < layout.views and 0 <= position < layout.pictures):
            raise IndexError(f"view {view}, picture {position}: the cache has {layout.views} x {layout.pictures}")
        chunk, row = divmod(view * layout.pictures + position, layout.chunk_rows)
        return layout.unpack(np.array(self._map(chunk)[row]))

    def _map(self, chunk: int) -> NDArray[np.float16]:
        if chunk not in self._maps:
            if len(self._maps) >= _MAX_OPEN:  # a map holds a file open, and a process may have few
                self._maps.pop(next(iter(self._maps)))
            path, shape = (
                ChunkStore(self.folder, self.layout).path(chunk),
                (len(self.layout.span(chunk)), self.layout.width),
            )
            try:
                self._maps[chunk] = np.memmap(path, "<f2", "r", _HEADER_BYTES, shape)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"teacher cache: {path} went missing or was cut while in use ({error}); start again"
                ) from None
        return self._maps[chunk]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "layout": self.layout, "_maps": {}}


def _shapes(outputs: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} ({' x '.join(map(str, shape))})" for name, shape in outputs.items())


def is_whole(path: Path) -> bool:
    """Whether a chunk file's digest is that of its content."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
        while block := file.read(1 << 20):
            digest.update(block)
    return head == _MAGIC + digest.digest()
