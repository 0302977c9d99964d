"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnvision.errors import UserError

# Of the disk, whatever is being written; other errors inside the block are its own.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    A reader therefore never sees half a file, and a failed writer leaves the old file as it was. The
    temporary name ends like ``path`` does, so that writers which look at the suffix still work.

    Args:
        path: The file to write; missing folders are made.

    Yields:
        The path to write to, in the folder of ``path``.

    Raises:
        UserError: The folder or the file cannot be made, or the disk is full.
    """
    target = Path(path)
    partial = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose a folder you can write to") from error
    try:
        yield partial
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        kept = "; the earlier file there is untouched" if target.exists() else ""
        raise UserError(f"cannot write {target}: {error.strerror}{kept}; free some space") from error
    finally:
        partial.unlink(missing_ok=True)


def disk_reason(error: BaseException) -> str:
    """Why writing failed, in the system's words: libraries wrap its error in their own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return " ".join(str(error).split())
