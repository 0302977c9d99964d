"""Class names of published detectors: from the file, from a labels file beside it, or COCO's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mnvision.backbones.pretrained.classes import BACKGROUND
from mnvision.errors import UserError

# The 80 categories of COCO 2014-2017 with the ids of its annotation files (https://cocodataset.org), which leave out
# ten of the numbers 1 to 90.
COCO = (
    (1, "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant"),
    (13, "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe"),
    (27, "backpack umbrella"),
    (31, "handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard"),
    (42, "surfboard tennis_racket bottle"),
    (46, "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake"),
    (62, "chair couch potted_plant bed"),
    (67, "dining_table"),
    (70, "toilet"),
    (72, "tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator"),
    (84, "book clock vase scissors teddy_bear hair_drier toothbrush"),
)
COCO_IDS = 90
# What labels files write where a number has no class.
NO_CLASS = ("n/a", "???")
BESIDE = ("labels.txt", "coco_labels.txt", "labelmap.txt")
NUMBERED = re.compile(r"(\d+)[\s:,]+(\S.*)")


def coco_names() -> dict[int, str]:
    """Name by category id of COCO 2017: 80 of the numbers 1 to 90."""
    return {first + place: name.replace("_", " ") for first, names in COCO for place, name in enumerate(names.split())}


def detector_classes(path: Path, text_inside: str | None, count: int) -> dict[int, str]:
    """Name by output of a detector with ``count`` classes; output 0 is background and has none.

    Taken from the labels in the file, else from a file beside it (``FILE.labels.txt``, ``labels.txt``,
    ``coco_labels.txt``, ``labelmap.txt``), else COCO's names if there are 90 classes, else numbered. Outputs that
    their labels call ``n/a`` or ``???`` are no classes and left out: COCO never used ten of its 90 numbers.

    Args:
        path: The detector's file.
        text_inside: The label file that is stored in it.
        count: Classes without background.

    Raises:
        UserError: Labels of another number of classes, or a name twice.
    """
    if text_inside is not None:
        return _checked(_parse(text_inside, count, f"{path}: its label file"), f"{path}: its label file")
    for name in (f"{path.name}.labels.txt", f"{path.stem}.labels.txt", *BESIDE):
        beside = path.with_name(name)
        if beside.is_file():
            try:
                text = beside.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{beside}: cannot be read as UTF-8 text ({error})") from error
            return _checked(_parse(text, count, str(beside)), str(beside))
    if count == COCO_IDS:
        return coco_names()
    return {number: f"class {number}" for number in range(1, count + 1)}


def _parse(text: str, count: int, where: str) -> dict[int, str]:
    """Name by output, of one name per line, or of lines of number and name, which may leave numbers out."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines or "" in lines:
        raise UserError(f"{where}: expected one class name per line, found an empty one")
    pairs = [match for line in lines if (match := NUMBERED.fullmatch(line))]
    gaps = len(pairs) == len(lines)
    found = {int(match[1]): match[2] for match in pairs} if gaps else dict(enumerate(lines))
    first = found.get(0, BACKGROUND).casefold()
    # Number 0 is background, or else the first class of a file that leaves background out.
    if first == BACKGROUND or (first in NO_CLASS and len(found) == count + 1):
        found.pop(0, None)
    else:
        found = {number + 1: name for number, name in found.items()}
    if not found or max(found) > count or not (gaps or len(found) == count):
        raise UserError(f"{where} names {len(found)} classes, the detector has {count} (background not counted)")
    return found


def _checked(names: dict[int, str], where: str) -> dict[int, str]:
    kept = {number: name for number, name in sorted(names.items()) if name.casefold() not in NO_CLASS}
    twice = _twice(list(kept.values()))
    if twice or not kept:
        what = f"names {twice!r} twice" if twice else "names no class"
        raise UserError(f"{where} {what}")
    return kept


def _twice(names: Sequence[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)
