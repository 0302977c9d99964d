"""What a teacher's stored outputs depend on, and what has changed since older ones were stored."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnvision.data.teacher_view import TaughtDataset
from mnvision.files import whole_file
from mnvision.teachers.cache_files import file_digests, relative_names
from mnvision.teachers.spec import TeacherSpec

RECIPE_VERSION = 1
"""To be raised when a teacher's picture is made in another way from the same settings."""

MANIFEST, FILES = "manifest.json", "files.json"
_NAMED = 3


@dataclass(frozen=True)
class CacheKey:
    """All that decides a teacher's outputs for the views of one split.

    The number of views is not part of it (more of them are added to what is there), nor is anything of the student
    but, where its pictures are not augmented, its proportions.

    Attributes:
        split: "train" or "val".
        teacher: Name of the teacher, for people: a moved file is still the same teacher.
        parts: The teacher (fingerprint, input, outputs), the recipe of its pictures, the recipe's version, and a
            digest of all files.
        files: Name and digest of every picture, by position.
    """

    split: str
    teacher: str
    parts: Mapping[str, Any]
    files: Sequence[tuple[str, str]]

    @property
    def digest(self) -> str:
        """Hex digest of everything."""
        plain = json.dumps([self.split, self.parts], sort_keys=True)
        return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()

    @property
    def folder_name(self) -> str:
        """Name of the cache's folder."""
        return f"{self.split}-{self.parts['teacher']['kind']}-{self.digest[:16]}"

    def write(self, folder: Path, views: int) -> None:
        """Stores the key beside the outputs.

        Raises:
            UserError: The folder cannot be written to.
        """
        with whole_file(folder / FILES) as path:
            path.write_text(json.dumps(list(self.files)))
        content = {
            "teacher": self.teacher,
            "split": self.split,
            "pictures": len(self.files),
            "views": views,
            "parts": dict(self.parts),
        }
        with whole_file(folder / MANIFEST) as path:
            path.write_text(json.dumps(content, indent=1) + "\n")


def make_key(
    spec: TeacherSpec, fingerprint: str, dataset: TaughtDataset, split: str, root: Path, cache_dir: Path
) -> CacheKey:
    """The key of a teacher's outputs for a data set.

    Args:
        spec: Of the teacher.
        fingerprint: Of the teacher.
        dataset: Its views.
        split: Which split that is.
        root: Folder of the data set, which the files' names are relative to.
        cache_dir: Where the files' digests are kept.

    Raises:
        UserError: A file is missing or cannot be read.
    """
    names = relative_names(root, [dataset.path(position) for position in range(len(dataset))])
    index = cache_dir / f"files-{hashlib.blake2b(os.fsencode(root.absolute()), digest_size=8).hexdigest()}.json"
    files = list(zip(names, file_digests(root, names, index)))
    parts = {
        "teacher": {
            "kind": spec.kind,
            "fingerprint": fingerprint,
            "resolution": list(spec.resolution),
            "outputs": {name: list(shape) for name, shape in spec.outputs.items()},
        },
        "files": hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest(),
        "recipe": dataset.recipe(),
        "version": RECIPE_VERSION,
    }
    return CacheKey(split, spec.name, json.loads(json.dumps(parts, default=str)), files)


def stored_views(folder: Path) -> int:
    """Views of every picture that a cache folder was made for; 0 where there is none."""
    manifest = _read_manifest(folder)
    return 0 if manifest is None else int(manifest["views"])


def explain(key: CacheKey, cache_dir: Path) -> str | None:
    """Why no folder fits: what has changed since the most similar one was made; None where there is none.

    A cache of another teacher, data set and recipe has nothing in common and is not mentioned.
    """
    candidates = []
    for folder, manifest in _manifests(cache_dir):
        if manifest["split"] == key.split:
            changed = [name for name, value in key.parts.items() if manifest["parts"].get(name) != value]
            age = -(folder / MANIFEST).stat().st_mtime
            candidates.append((len(changed), age, folder, manifest["parts"], changed))
    if not candidates:
        return None
    _, _, folder, parts, changed = min(candidates, key=lambda item: item[:2])
    if {"teacher", "files"} <= set(changed):
        return None
    texts = [_CHANGES[name](key, parts.get(name), folder) for name in changed]
    return f"{'; '.join(texts)} since {folder.name} was made, which you may delete"


def _teacher_changed(key: CacheKey, old: Any, folder: Path) -> str:
    new, old = key.parts["teacher"], old or {}
    shown = [name for name in ("kind", "resolution", "outputs") if old.get(name) != new[name]]
    words = [f"{name} {_short(old.get(name))} -> {_short(new[name])}" for name in shown]
    return f"the teacher changed ({', '.join(words) or 'its weights or options'})"


def _files_changed(key: CacheKey, old: Any, folder: Path) -> str:
    try:
        before = dict(json.loads((folder / FILES).read_text()))
    except (OSError, ValueError):
        return "files changed"
    after = dict(key.files)
    changed = [name for name, digest in after.items() if before.get(name, digest) != digest]
    kinds = {
        "changed": changed,
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
    }
    words = []
    for kind, names in kinds.items():
        if names:
            more = ", ..." if len(names) > _NAMED else ""
            words.append(f"{len(names)} files {kind} ({', '.join(names[:_NAMED])}{more})")
    return ", ".join(words) or "the files' order changed"


def _recipe_changed(key: CacheKey, old: Any, folder: Path) -> str:
    new, old = dict(_leaves(key.parts["recipe"])), dict(_leaves(old or {}))
    named = [name for name in {**new, **old} if new.get(name) != old.get(name) and not name.startswith("draws")]
    words = [f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in named[:_NAMED]]
    words += ["..."] if len(named) > _NAMED else []
    return f"the augmentation changed ({', '.join(words) or 'equal settings draw other views now'})"


def _version_changed(key: CacheKey, old: Any, folder: Path) -> str:
    return f"this version of mnvision makes the pictures in another way ({old} -> {key.parts['version']})"


_CHANGES = {
    "teacher": _teacher_changed,
    "files": _files_changed,
    "recipe": _recipe_changed,
    "version": _version_changed,
}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, node


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _manifests(cache_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    folders = sorted(path.parent for path in cache_dir.glob(f"*/{MANIFEST}"))
    for folder in folders:
        manifest = _read_manifest(folder)
        if manifest is not None:
            yield folder, manifest


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    usable = isinstance(found, dict) and isinstance(found.get("parts"), dict) and isinstance(found.get("views"), int)
    return {"split": "", **found} if usable else None
