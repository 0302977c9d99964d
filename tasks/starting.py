"""Starting a model's head from another checkpoint's: rows of classes of the same name, and what has no classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mnvision.backbones.pretrained.classes import match_classes
from mnvision.backbones.pretrained.weights import grouped
from mnvision.data.index import first_few
from mnvision.errors import UserError
from mnvision.heads.ssd import SSDHead
from mnvision.heads.ssd_start import is_ssd, start_ssd_head
from mnvision.merging import HeadPart, read_heads

log = logging.getLogger("mnvision")


def start_head(model: Any, class_names: Sequence[str], path: str, classes: bool) -> None:
    """Start a head from a checkpoint's, of several heads from the one of the model's kind.

    Of an SSD, its extra layers and box predictors start from those of another SSD wherever they fit.

    Args:
        model: One of ``mnvision.models``, with one row of its head per class (an SSD per class and default box).
        class_names: Of the model.
        path: The checkpoint.
        classes: Copy the rows of classes of the same name too; other classes keep their random rows. Such a
            checkpoint must be of a model of the same kind.

    Raises:
        UserError: ``classes``, and the heads have no rows that fit, or no class in common.
    """
    if not classes and not isinstance(model.head, SSDHead):
        return
    part = _part_of_kind(model.kind, path, classes)
    if part is None:
        return
    prefix, metadata = "head.", part.metadata
    stored = {name.removeprefix(prefix): tensor for name, tensor in part.weights.items() if name.startswith(prefix)}
    if isinstance(model.head, SSDHead) and is_ssd(stored):
        _start_ssd(model.head, class_names, path, stored, metadata.class_names, classes)
    elif classes:
        own = {name: tensor for name, tensor in model.head.named_parameters() if name in ("fc.weight", "fc.bias")}
        if metadata.kind != model.kind or not own or not own.keys() <= stored.keys():
            raise UserError(
                f"init_head=true: the head of {path} ({metadata.kind}) has no rows by class that this {model.kind} "
                "head could take; leave init_head out"
            )
        _start_rows(own, stored, _row_of(class_names, metadata.class_names, path), path)


def _part_of_kind(kind: str, path: str, classes: bool) -> HeadPart | None:
    """The checkpoint, or of one of several heads the head of this kind; None where it has none to start from.

    Raises:
        UserError: ``classes``, and no head is of this kind, or several are.
    """
    parts = read_heads(path)
    if not parts[0].of_several:
        return parts[0]
    fitting = [part for part in parts if part.metadata.kind == kind]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(part.name for part in fitting)
    if classes:
        has = (
            f"has several {kind} heads ({names}): cut one out with tools/merge.py" if fitting else f"has no {kind} head"
        )
        raise UserError(f"init_head=true: {path} {has}; leave init_head out to start from the backbone alone")
    if fitting:
        log.info("head: begins anew, for %s has several %s heads: %s", path, kind, names)
    return None


def _row_of(class_names: Sequence[str], offered: Sequence[str], path: str) -> dict[int, int]:
    """Their row by our row, of classes of the same name.

    Raises:
        UserError: There is none.
    """
    known, fresh = _known(class_names, offered)
    if not known:
        raise UserError(
            f"init_head=true: no class has the name of one of {path}: {first_few(class_names)} here, "
            f"{first_few(offered)} there; leave init_head out"
        )
    rows, _ = match_classes(known, offered)
    place_of = {name: place for place, name in enumerate(class_names)}
    log.info(
        "head: %d of %d classes start from those of the same name%s",
        *(len(known), len(class_names), f"; new: {first_few(fresh)}" if fresh else ""),
    )
    return {place_of[name]: row for name, row in zip(known, rows)}


def _known(class_names: Sequence[str], offered: Sequence[str]) -> tuple[list[str], list[str]]:
    """Class names that occur among those offered, and those that do not."""
    _, fresh = match_classes(class_names, offered)
    return [name for name in class_names if name not in set(fresh)], fresh


def _start_rows(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], row_of: Mapping[int, int], path: str) -> None:
    for name, tensor in own.items():
        given = stored[name]
        if given.shape[1:] != tensor.shape[1:]:
            raise UserError(
                f"init_head=true: the head of {path} takes {given.shape[1]} features, this one {tensor.shape[1]}; set "
                "backbone.alpha as there, or leave init_head out"
            )
        with torch.no_grad():
            tensor[list(row_of)] = given[list(row_of.values())].to(tensor.dtype)


def _start_ssd(
    head: SSDHead,
    class_names: Sequence[str],
    path: str,
    stored: Mapping[str, Tensor],
    offered: Sequence[str],
    classes: bool,
) -> None:
    row_of = _row_of(class_names, offered, path) if classes else {}
    started = start_ssd_head(head, stored, len(offered), row_of)
    if classes and not started.class_maps:
        raise UserError(
            f"init_head=true: the class predictors of {path} have another width, kind or number of default boxes than "
            "these; set head and backbone.alpha as there, or leave init_head out"
        )
    anew = f"; anew: {', '.join(grouped(started.anew, head.state_dict()))}" if started.anew else ""
    log.info("head: %d tensors of extra layers and box predictors start from %s%s", started.shared, path, anew)
    known = _known(class_names, offered)[0]
    if known and not classes:
        log.info(
            "head: classes begin anew; init_head=true starts %d of %d from those of the same name",
            *(len(known), len(class_names)),
        )
