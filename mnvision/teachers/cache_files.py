"""The content of a data set's files, known again without reading them twice.

What decides whether a stored output is stale is what is in a file: copying or touching a data set must not throw
hours of work away, and an edited picture must be noticed. All files are therefore digested once, and the digests
kept with each file's size and time of change (in nanoseconds), as git's index does; only files for which one of the
two differs are read again. An edit that keeps both escapes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mnvision.errors import UserError
from mnvision.files import whole_file

_WORKERS = 8
_WORTH_A_LINE = 2000  # files, some seconds of reading

log = logging.getLogger(__name__)


def file_digests(root: Path, names: Sequence[str], index_file: Path) -> list[str]:
    """Digest of every file's content.

    Args:
        root: Folder that the names are relative to.
        names: Files; one may occur several times.
        index_file: Where digests are kept; it is made, and brought up to date where it can be written.

    Returns:
        Hex digests (BLAKE2b, 16 bytes), in the order of ``names``.

    Raises:
        UserError: A file is missing or cannot be read.
    """
    known = _read_index(index_file)
    stamps: dict[str, list[int]] = {}
    for name in names:
        if name not in stamps:
            status = _stat(root / name)
            stamps[name] = [status.st_size, status.st_mtime_ns]
    digests = {name: str(known[name][2]) for name, stamp in stamps.items() if known.get(name, [])[:2] == stamp}
    unknown = [name for name in stamps if name not in digests]
    if unknown:
        if len(unknown) >= _WORTH_A_LINE:
            log.info("teacher cache: reading %d files below %s once, to know them again", len(unknown), root)
        with ThreadPoolExecutor(_WORKERS) as pool:
            digests |= zip(unknown, pool.map(_digest, (root / name for name in unknown)))
        entries = known | {name: [*stamps[name], digests[name]] for name in unknown}
        # Of a read-only folder the index is not kept: the files are read again next time.
        with contextlib.suppress(UserError), whole_file(index_file) as path:
            path.write_text(json.dumps(entries))
    return [digests[name] for name in names]


def relative_names(root: Path, paths: Sequence[Path]) -> list[str]:
    """Names below ``root`` where a file lies there, whole paths elsewhere; equal for a data set that was moved."""
    base = os.path.abspath(root) + os.sep
    found = []
    for path in paths:
        full = os.path.abspath(path)
        found.append(full.removeprefix(base).replace(os.sep, "/") if full.startswith(base) else full)
    return found


def _read_index(path: Path) -> dict[str, list[int | str]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError(f"image file not found: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read image file {path}: {error.strerror or error}") from None


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read image file {path}: {error.strerror or error}") from None
