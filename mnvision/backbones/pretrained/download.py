"""Files of published weights: fetched once into a cache, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from mnvision.errors import UserError

TIMEOUT_S = 30.0


def cache_folder(kind: str, cache_dir: Path | None = None) -> Path:
    """Folder in which weights of one kind are kept.

    Args:
        kind: Name of the folder, e.g. "keras".
        cache_dir: Root of the cache; by default ``$MNVISION_CACHE``, else ``~/.cache/mnvision``.
    """
    root = cache_dir or Path(os.environ.get("MNVISION_CACHE") or Path.home() / ".cache" / "mnvision")
    return Path(root) / "weights" / kind


def fetch(url: str, path: Path, signature: bytes, sha256: str | None = None) -> Path:
    """``path``, downloaded from ``url`` if it is not there yet.

    Args:
        url: Published address.
        path: Where the file belongs; folders are made.
        signature: First bytes of every file of its kind; a web page in its place is refused by them.
        sha256: Published checksum in hex, where there is one.

    Raises:
        UserError: No connection, a short or wrong file, or no room for it. ``path`` does not exist then.
    """
    if path.is_file():
        return path
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial)
        _check(url, partial, signature, sha256)
        partial.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot download {url} ({reason}): get the file on a connected machine and put it at {path}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def reachable(url: str) -> bool:
    """Whether a server answers there at all, with whatever status; asks once, with a short wait."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and move it into place."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file)
            announced = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        raise
    size = path.stat().st_size
    if size == 0 or (announced is not None and size != int(announced)):
        raise http.client.HTTPException(f"{size} of {announced} bytes arrived")


def _check(url: str, path: Path, signature: bytes, sha256: str | None) -> None:
    with path.open("rb") as file:
        if file.read(len(signature)) != signature:
            raise UserError(f"{url}: what the server sent is not such a file: try again later")
    if sha256 is not None and _sha256(path) != sha256:
        raise UserError(f"{url}: the download has another checksum than the published {sha256}: try again later")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
