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
    """The metadata; None where there are none."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(FILE_NAME).decode() if FILE_NAME in archive.namelist() else None
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError):
        return ""
