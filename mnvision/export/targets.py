"""Where an exported file goes, and the place beside it where it is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnvision.errors import UserError
from mnvision.export.base import Format, Wish


def target_path(checkpoint: Path, form: Format, wish: Wish, output: str | Path | None) -> Path:
    """Where the file goes.

    Raises:
        UserError: The name has another format's suffix.
    """
    name = f"{checkpoint.stem}{'' if wish.precision == 'fp32' else f'_{wish.precision}'}{form.suffix}"
    if output is None:
        return checkpoint.expanduser().with_name(name)
    path = Path(output).expanduser()
    if path.is_dir() or str(output).endswith(os.sep):
        return path / name
    if path.suffix.lower() != form.suffix:
        raise UserError(f"output={output}: a file of format={form.name} ends in {form.suffix}")
    return path


@contextmanager
def workshop(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards: what is not finished never carries the target's name.

    Raises:
        UserError: The folder cannot be written to, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.stem}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another output=FILE") from None
    try:
        yield folder
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
