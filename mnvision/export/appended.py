"""Metadata behind a flatbuffer: a zip archive at the end of the file, which the formats' own readers do not look at.

It is TensorFlow Lite's own way of packing files into a model (https://ai.google.dev/edge/litert/models/metadata):
``unzip -p model.tflite mnvision.json`` prints it.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from mnvision.export.metadata import KEY, FileMetadata

FILE_NAME = f"{KEY}.json"
_REACH = 2**16
"""Bytes at a file's end in which metadata are looked for; they take some 2000."""
# Of a changed byte: the reader refuses its checksum, method, version or flags, seeks in vain, or reaches the end.
_DAMAGED = (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, OSError, EOFError, RuntimeError)


def append_text(path: Path, text: str) -> None:
    """Put the metadata behind what the file holds."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE_NAME, text)


def write_with_metadata(content: bytes, metadata: FileMetadata, target: Path) -> list[Path]:
    """Write a file's content with its metadata behind it."""
    target.write_bytes(content)
    append_text(target, metadata.to_text())
    return [target]


def appended_text(path: Path) -> str | None:
    """The metadata; None where there are none, nothing where they are damaged."""
    if not zipfile.is_zipfile(path):
        return "" if FILE_NAME.encode() in path.read_bytes()[-_REACH:] else None  # its end is cut off
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(FILE_NAME).decode() if FILE_NAME in archive.namelist() else None
    except _DAMAGED:
        return ""
