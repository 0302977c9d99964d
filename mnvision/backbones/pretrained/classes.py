"""Class names: ImageNet's, those of a labels file, and which row of a classifier answers to which name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mnvision.errors import UserError

BACKGROUND = "background"


@cache
def imagenet_classes() -> dict[str, str]:
    """ImageNet-1k: WordNet id to description, in the order of the ids, which is the order of the labels.

    TF-slim, Keras and timm all number the thousand classes in that order. Source: timm's own package data.
    Two classes share the description "crane"; these two get their WordNet id behind it.
    """
    # timm takes a second to import, which only those who need its data should spend.
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    ids, descriptions = info.label_names(), info.label_descriptions()
    counts = Counter(descriptions)
    return {
        wordnet_id: f"{text} ({wordnet_id})" if counts[text] > 1 else text
        for wordnet_id, text in zip(ids, descriptions)
    }


def imagenet_names(with_background: bool = False) -> tuple[str, ...]:
    """The thousand descriptions in label order; TF-slim's networks have "background" before them."""
    names = tuple(imagenet_classes().values())
    return (BACKGROUND, *names) if with_background else names


def labels_beside(path: Path) -> tuple[str, ...] | None:
    """Class names of ``FILE.labels.txt`` or else ``labels.txt`` beside a weights file, if there is one."""
    for candidate in (path.with_name(f"{path.name}.labels.txt"), path.with_name("labels.txt")):
        if candidate.is_file():
            try:
                return parse_labels(candidate.read_text(encoding="utf-8"), str(candidate))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{candidate}: cannot be read as UTF-8 text ({error})") from error
    return None


def parse_labels(text: str, where: str) -> tuple[str, ...]:
    """One class name per line; a running number before every name (``0 background``) is dropped.

    Args:
        text: Content of a labels file. Empty lines at its end are ignored.
        where: Named in errors.

    Raises:
        UserError: No names, or an empty line between names.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines or "" in lines:
        where_empty = f" (line {lines.index('') + 1} is empty)" if lines else ""
        raise UserError(f"{where}: expected one class name per line{where_empty}")
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines]
    if all(match is not None and int(match[1]) == index for index, match in enumerate(numbered)):
        return tuple(match[2] for match in numbered if match is not None)
    return tuple(lines)


def match_classes(wanted: Sequence[str], offered: Sequence[str]) -> tuple[list[int], list[str]]:
    """For every wanted class the row of the classifier that has its name.

    Case, ``_`` and ``-`` do not count; WordNet ids (``n01440764``) stand for their descriptions; any one of
    the synonyms in ``"tench, Tinca tinca"`` will do where only one class has it.

    Args:
        wanted: Class names of the head.
        offered: Class names of the classifier, one per row.

    Returns:
        Rows, one per wanted class, and the names that no single row answers to; rows are empty if there are
        any.
    """
    wanted_names = [_normal(name) for name in _described(wanted)]
    offered_names = [_normal(name) for name in _described(offered)]
    if wanted_names == offered_names:
        return list(range(len(offered_names))), []
    whole = _unambiguous([{name} for name in offered_names])
    synonyms = _unambiguous([_synonyms(name) for name in offered_names])
    rows: list[int | None] = []
    for name in wanted_names:
        found = {table[part] for table in (whole, synonyms) for part in _synonyms(name) if part in table}
        exact = whole.get(name)
        rows.append(exact if exact is not None else found.pop() if len(found) == 1 else None)
    times = Counter(rows)
    missing = [name for name, row in zip(wanted, rows) if row is None or times[row] > 1]
    return ([], missing) if missing else ([row for row in rows if row is not None], [])


def _described(names: Sequence[str]) -> list[str]:
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return list(names)
    known = imagenet_classes()
    return [known.get(name, name) for name in names]


def _normal(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _synonyms(name: str) -> set[str]:
    return {part.strip() for part in name.split(",")}


def _unambiguous(names_by_row: Sequence[set[str]]) -> dict[str, int]:
    """Row by name, without the names that more than one row has."""
    counts = Counter(name for names in names_by_row for name in names)
    return {name: row for row, names in enumerate(names_by_row) for name in names if counts[name] == 1}
