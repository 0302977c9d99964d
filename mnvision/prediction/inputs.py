"""Which pictures a user means by a file, a folder or a glob pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnvision.data.images import IMAGE_SUFFIXES
from mnvision.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm")


@dataclass(frozen=True)
class Pictures:
    """Picture files below one folder.

    Attributes:
        root: The folder.
        names: Their paths relative to it, sorted.
        left_out: Files that the input covers but that are the results of an earlier run, or (for a pattern)
            no pictures by their name.
    """

    root: Path
    names: tuple[str, ...]
    left_out: int = 0


def is_video(source: str | Path) -> bool:
    """Whether the input is an existing file that is a video by its name."""
    path = Path(source).expanduser()
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def find_pictures(source: str | Path, recursive: bool = True, results: Sequence[Path] = ()) -> Pictures:
    """The pictures of a file, folder or glob pattern.

    Args:
        source: What the user gave; ``~`` is the home folder, ``**`` in a pattern any number of folders.
        recursive: Whether a folder's subfolders are looked into; linked ones are not.
        results: Folders that will be written to: pictures in them are left out.

    Raises:
        UserError: It does not exist, or has no picture.
    """
    path = Path(source).expanduser()
    if path.is_file():
        root, found, other = path.parent, [path.name], 0
    elif path.is_dir():
        root, other = path, 0
        found = [name for name in _below(path, recursive) if _is_picture(name)]
        if not found:
            hint = "" if recursive else ", or recursive=true to look into subfolders"
            raise UserError(f"input={source}: no pictures in this folder; give one with {_suffixes()} files{hint}")
    elif glob.has_magic(str(path)):
        root = _static_part(path)
        files = [name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)]
        found = [os.path.relpath(name, root) for name in files if _is_picture(name)]
        other = len(files) - len(found)
        if not found:
            raise UserError(
                f"input={source}: the pattern matches {len(files)} files but no picture ({_suffixes()}); "
                "quote it against the shell, and give videos one by one"
            )
    else:
        raise UserError(f"input={source}: there is no such file or folder")
    kept = _without_results(root, found, results)
    if not kept:
        raise UserError(f"input={source} lies where the results go; choose another output folder")
    return Pictures(root, tuple(sorted(kept)), other + len(found) - len(kept))


def _below(folder: Path, recursive: bool) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        if not recursive:
            folders.clear()
        for name in files:
            yield os.path.relpath(os.path.join(parent, name), folder)


def _is_picture(name: str) -> bool:
    # Names with a leading dot are unfinished files of ours and the resource forks of macOS.
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def _static_part(pattern: Path) -> Path:
    """The deepest folder that all matches of a pattern share by their spelling."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _without_results(root: Path, names: list[str], results: Sequence[Path]) -> list[str]:
    top = root.resolve()
    near = [r for r in (r.resolve() for r in results) if r.is_relative_to(top) or top.is_relative_to(r)]
    if not near:
        return names
    return [name for name in names if not any((top / name).resolve().is_relative_to(r) for r in near)]


def _suffixes() -> str:
    return ", ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
