"""Checkpoints that were trained on one frozen trunk, as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnvision.build import build_model
from mnvision.checkpoints import KEY, PREFIX, Metadata, load_model, load_weights
from mnvision.errors import UserError
from mnvision.files import disk_reason, whole_file
from mnvision.multitask import HEAD_NAMES, MultiTaskModel, check_names, check_trunk, single_weights
from mnvision.quantization.heads import head_metadata, joined_ranges

MODEL = "mnvision.multitask.MultiTaskModel"


@dataclass(frozen=True)
class HeadPart:
    """One head of a checkpoint, as a single-task model of its own.

    Attributes:
        name: What it is called.
        path: The checkpoint.
        metadata: As of a single-task checkpoint.
        weights: ``backbone.*`` and ``head.*`` as they are shipped: averaged where the checkpoint has averages.
        of_several: Whether its checkpoint is a multi-task one.
        own_norms: Whether its checkpoint has batch normalisations for each head.
    """

    name: str
    path: Path
    metadata: Metadata
    weights: dict[str, Tensor]
    of_several: bool = False
    own_norms: bool = False


def read_heads(path: str | Path) -> list[HeadPart]:
    """The heads of a single- or multi-task checkpoint, or of a published detector.

    Raises:
        UserError: As :func:`~mnvision.checkpoints.load_model`.
    """
    path = Path(path)
    model, metadata = load_model(path)
    if not isinstance(model, MultiTaskModel):
        return [HeadPart(HEAD_NAMES[model.kind], path, metadata, dict(model.state_dict()))]
    return [
        HeadPart(name, path, head_metadata(model, metadata, name), single_weights(model, name), True, model.own_norms)
        for name in model.names
    ]


def one_head(path: str | Path, name: str | None, kinds: Sequence[str], option: str) -> HeadPart:
    """A head of a multi-task checkpoint, for those that take a single-task model.

    Args:
        path: The checkpoint.
        name: Of the head; None takes the only one of ``kinds``.
        kinds: What can be used.
        option: Of the command line, that names the head.

    Raises:
        UserError: As :func:`read_heads`; there is no such head, or none or several of these kinds.
    """
    parts = read_heads(path)
    if name is not None:
        parts = [part for part in parts if part.name == name]
        if not parts:
            known = ", ".join(part.name for part in read_heads(path))
            raise UserError(f"{option}={name}: {path} has no such head, only {known}")
        return parts[0]
    fitting = [part for part in parts if part.metadata.kind in kinds]
    if len(fitting) != 1:
        listed = ", ".join(f"{part.name} ({part.metadata.kind})" for part in (fitting or parts))
        if not fitting:
            raise UserError(f"{path}: none of its heads can be used here: {listed}")
        raise UserError(f"{path}: several of its heads can be used here: {listed}; {option}=NAME chooses one")
    return fitting[0]


def merge(parts: Sequence[HeadPart]) -> tuple[MultiTaskModel, Metadata]:
    """One model of heads that sit on the same trunk.

    Args:
        parts: At least one, with different names.

    Returns:
        The model, whose heads have the weights given bit for bit, and its metadata; with ranges for int8 where all
        heads have been trained with the same.

    Raises:
        UserError: A name that occurs twice, or trunks that differ: the first differing key is named.
    """
    check_names([part.name for part in parts])
    _check_doubles(parts)
    check_trunk({part.name: part.metadata.model for part in parts})
    own_norms = any(part.own_norms for part in parts)
    _check_trunks(parts, own_norms)
    config: dict[str, Any] = {
        "_target_": MODEL,
        "heads": {part.name: part.metadata.model for part in parts},
        "norms": "per_head" if own_norms else "shared",
    }
    model: MultiTaskModel = build_model(config)
    for part in parts:
        load_weights(model.part(part.name), part.weights, part.path)
    for part in parts:  # what one head wrote into the trunk, no other may have changed
        differing = first_difference(part.weights, single_weights(model, part.name))
        assert differing is None, differing
    heads = {part.name: part.metadata.as_head() for part in parts}
    ranges = {} if own_norms else joined_ranges(model, {part.name: part.metadata.quantization for part in parts})
    return model.eval(), Metadata(model.kind, config, [], heads=heads, quantization=ranges)


def save_merged(path: Path, model: Any, metadata: Metadata) -> None:
    """Write a checkpoint of a model without a run; whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    state = {f"{PREFIX}{key}": value.contiguous() for key, value in model.state_dict().items()}
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            torch.save({"state_dict": state, KEY: metadata.to_dict()}, file)
    # torch's zip writer turns the system's error into a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {disk_reason(error)}; the checkpoints are as they were") from error


def save_single(path: Path, part: HeadPart) -> None:
    """Write one head as an ordinary single-task checkpoint; whole or not at all."""
    model = build_model(part.metadata.model)
    load_weights(model, part.weights, part.path)
    save_merged(path, model, part.metadata)


def first_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """The first key of ``ours`` whose tensor ``theirs`` lacks or has otherwise, and how; None where there is none.

    Tensors are compared bit for bit: type, shape and every value.
    """
    for key, value in ours.items():
        other = theirs.get(key)
        if other is None:
            return f"{key} is missing"
        if value.dtype != other.dtype or value.shape != other.shape:
            return f"{key} is {value.dtype} {tuple(value.shape)} and {other.dtype} {tuple(other.shape)}"
        if not same_bits(value, other):
            unlike = value != other
            apart = (value.double() - other.double()).abs().max().item()
            return f"{key}, {int(unlike.sum())} of {value.numel()} numbers, by up to {apart:.3g}"
    return None


def same_bits(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same bytes: unlike ``==``, a NaN is itself and 0 is not -0."""
    if value.dtype.is_floating_point:
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
        value, other = value.contiguous().view(whole), other.contiguous().view(whole)
    return torch.equal(value, other)


def _check_doubles(parts: Sequence[HeadPart]) -> None:
    first: dict[str, Path] = {}
    for part in parts:
        if part.name in first:
            known = [one.name for one in parts]
            fresh = [name if name not in known[:i] else f"{name}_{i + 1}" for i, name in enumerate(known)]
            raise UserError(
                f"a head {part.name} is both in {first[part.name]} and in {part.path}: give names of your own, such as "
                f"names=[{','.join(fresh)}]"
            )
        first[part.name] = part.path


def _check_trunks(parts: Sequence[HeadPart], own_norms: bool) -> None:
    """Refuse trunks that differ in a block that both have.

    Raises:
        UserError: Names the first differing key.
    """
    deepest = max(parts, key=lambda part: len(_trunk(part, own_norms)))
    reference = _trunk(deepest, own_norms)
    for part in parts:
        found = first_difference(_trunk(part, own_norms), reference)
        if found is not None:
            raise UserError(
                f"{part.path} and {deepest.path} were not trained on the same frozen trunk: they differ first in "
                f"{found}; train one from the other with init_from=FILE and its backbone frozen"
            )


def _trunk(part: HeadPart, own_norms: bool) -> dict[str, Tensor]:
    """The weights that heads have in common: not the normalisations where each has its own."""
    return {
        key: value
        for key, value in part.weights.items()
        if key.startswith("backbone.") and not (own_norms and ".bn." in key)
    }
