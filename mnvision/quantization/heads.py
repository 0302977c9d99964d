"""Ranges of activations of multi-task checkpoints, by head: what one takes along, and what several bring together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.quantization.plan import plan_of

Stored = Mapping[str, Any]
"""``Metadata.quantization``; empty where a checkpoint has none."""


def ranges_of_part(model: Any, stored: Stored, head: str = "") -> dict[str, Any]:
    """The ranges of a model that is a part of a multi-task checkpoint.

    Args:
        model: One head as a single-task model, or a multi-task model of some of the heads.
        stored: Of the checkpoint.
        head: The single-task model's name there.

    Raises:
        UserError: The checkpoint's ranges lack a layer.
    """
    if not stored:
        return {}
    plan, ranges = plan_of(model), stored["ranges"]
    theirs = {name: _in_joint(name, head) for name in (*plan.names, *plan.readers)}
    lacking = [name for name in theirs.values() if name not in ranges]
    if lacking:
        raise UserError(f"the checkpoint's ranges of activations lack {lacking[0]}: train it with quantize=qat again")
    return {"weights": stored["weights"], "ranges": {own: ranges[name] for own, name in theirs.items()}}


def head_metadata(model: Any, metadata: Metadata, name: str) -> Metadata:
    """Metadata of one head of a multi-task checkpoint as a model of its own, with the ranges of its layers.

    Args:
        model: The multi-task model.
        metadata: Of its checkpoint.
        name: The head's.

    Raises:
        UserError: The checkpoint's ranges lack a layer.
    """
    ranges = ranges_of_part(model.part(name), metadata.quantization, name)
    return replace(metadata.head(name), quantization=ranges)


def joined_ranges(model: Any, parts: Mapping[str, Stored]) -> dict[str, Any]:
    """The ranges of a multi-task model that was joined from single-task ones.

    Args:
        model: The multi-task model.
        parts: By head, those of the single-task model.

    Returns:
        Nothing where a head has none, or where heads say different things of the trunk that they share: the joined
        model is then one that was not trained for int8.
    """
    if not all(parts.values()) or len({stored["weights"] for stored in parts.values()}) > 1:
        return {}
    plan = plan_of(model)
    owners = {name: plan.readers.get(name, name) for name in (*plan.names, *plan.readers)}
    found: dict[str, list[float]] = {}
    for head, stored in parts.items():
        for name, bounds in stored["ranges"].items():
            owner = owners.get(_in_joint(name, head))
            if owner is not None and found.setdefault(owner, list(bounds)) != list(bounds):
                return {}
    if any(owner not in found for owner in plan.names):
        return {}
    weights = next(iter(parts.values()))["weights"]
    return {"weights": weights, "ranges": {name: found[owner] for name, owner in owners.items()}}


def _in_joint(name: str, head: str) -> str:
    """What a single-task model's layer is called in a multi-task one."""
    return f"heads.{head}.{name.removeprefix('head.')}" if head and name.startswith("head.") else name
