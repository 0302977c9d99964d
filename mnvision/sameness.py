"""Whether heads of one checkpoint are those of another: weights, settings, and answers on pictures, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnvision.checkpoints import HEAD_KEYS
from mnvision.errors import UserError
from mnvision.merging import HeadPart, first_difference, read_heads, same_bits
from mnvision.multitask import HEAD_NAMES
from mnvision.prediction.folders import batches
from mnvision.prediction.inputs import Pictures
from mnvision.prediction.multitask import MultiTaskPredictor
from mnvision.prediction.predictor import Predictor, load_predictor


@dataclass(frozen=True)
class HeadSameness:
    """One head in two checkpoints.

    Attributes:
        name: In the first and, where it has another there, in the second.
        weights: Tensors compared.
        pictures: Pictures compared.
        numbers: Raw numbers compared, those before decoding.
        different: How many of them differ in any bit.
        largest: By how much at most.
        problems: What else differs: the first tensor, settings; empty where all is equal.
    """

    name: str
    weights: int
    pictures: int
    numbers: int
    different: int
    largest: float
    problems: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.problems and self.different == 0

    def cells(self) -> list[str]:
        """A row of the table."""
        verdict = "same" if self.same else "DIFFERENT"
        apart = f"{self.different:,} of {self.numbers:,}"
        return [self.name, f"{self.weights}", f"{self.pictures}", apart, f"{self.largest:.3g}", verdict]


TABLE_HEAD = ["head", "tensors", "pictures", "numbers that differ", "by up to", "verdict"]


def compare_heads(
    first: str | Path,
    second: str | Path,
    heads: Sequence[str],
    pictures: Pictures,
    batch_size: int = 16,
    report: Callable[[str], None] = lambda _: None,
) -> list[HeadSameness]:
    """Ask heads of two checkpoints about the same pictures, each as its checkpoint prepares them.

    Heads of a multi-task checkpoint answer together, as in use: all of it runs, not the head alone.

    Args:
        first: The old checkpoint, of one task or several.
        second: The new one.
        heads: Names in the first; none is all of its heads.
        pictures: At least one.
        batch_size: Pictures that go through the networks at once.
        report: Is told how far it is.

    Raises:
        UserError: A checkpoint or a picture that cannot be read, or a head that one of them lacks.
    """
    old, new = ({part.name: part for part in read_heads(path)} for path in (first, second))
    names = _pairs(old, new, heads, str(second))
    predictors = load_predictor(first), load_predictor(second)
    counts = {name: _Count() for name in names}
    for number, batch in enumerate(batches(pictures.names, batch_size)):
        files = [pictures.root / name for name in batch]
        one, two = (raw_answers(predictor, files) for predictor in predictors)
        for name, other in names.items():
            counts[name].add(one[name], two[other], len(files))
        report(f"{min((number + 1) * batch_size, len(pictures.names))} of {len(pictures.names)} pictures")
    return [
        HeadSameness(
            name if name == other else f"{name} = {other}",
            len(old[name].weights),
            *counts[name].values(),
            tuple(_problems(old[name], new[other])),
        )
        for name, other in names.items()
    ]


def raw_answers(predictor: Predictor[Any], files: Sequence[Path]) -> dict[str, list[Tensor]]:
    """By head the network's outputs before decoding for picture files, prepared as the checkpoint says."""
    prepared = [predictor.preprocess(file) for file in files]
    with torch.inference_mode():
        if not isinstance(predictor, MultiTaskPredictor):
            return {HEAD_NAMES[predictor.model.kind]: list(_leaves(predictor.model(predictor.to_device(prepared))))}
        found: dict[str, list[Tensor]] = {}
        for names, pictures in predictor.inputs(prepared):
            raw = predictor.model(predictor.to_device(pictures), names)
            found |= {name: list(_leaves(raw[name])) for name in names}
        return found


def _leaves(raw: Any) -> Iterator[Tensor]:
    """The tensors of raw outputs."""
    if isinstance(raw, Tensor):
        yield raw
    elif isinstance(raw, Mapping):
        for value in raw.values():
            yield from _leaves(value)


class _Count:
    """What differs so far in the answers of one head."""

    def __init__(self) -> None:
        self.pictures, self.numbers, self.different, self.largest = 0, 0, 0, 0.0

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor], pictures: int) -> None:
        """Compare answers to one batch."""
        self.pictures += pictures
        for one, two in zip(first, second, strict=True):
            self.numbers += one.numel()
            if one.shape != two.shape or one.dtype != two.dtype:
                self.different, self.largest = self.different + one.numel(), float("nan")
            elif not same_bits(one, two):
                unlike = (one != two) | (one.isnan() & two.isnan())
                self.different += max(int(unlike.sum()), 1)
                self.largest = max(self.largest, (one.double() - two.double()).abs().max().item())

    def values(self) -> tuple[int, int, int, float]:
        """Pictures, numbers, how many differ and by how much."""
        return self.pictures, self.numbers, self.different, self.largest


def _pairs(
    old: Mapping[str, HeadPart], new: Mapping[str, HeadPart], heads: Sequence[str], second: str
) -> dict[str, str]:
    """Head of the first checkpoint -> head of the second: of the same name, else the only one of its kind."""
    pairs = {}
    for name in heads or old:
        if name not in old:
            raise UserError(f"heads: the first checkpoint has no head {name!r}, only {', '.join(old)}")
        alike = [other for other, part in new.items() if part.metadata.kind == old[name].metadata.kind]
        if name not in new and len(alike) != 1:
            raise UserError(f"{second} has no head {name!r}; its heads are {', '.join(new)}")
        pairs[name] = name if name in new else alike[0]
    return pairs


def _problems(one: HeadPart, two: HeadPart) -> Iterator[str]:
    """What differs in weights and settings."""
    found = first_difference(one.weights, two.weights) or first_difference(two.weights, one.weights)
    if found:
        yield f"weights differ first in {found}"
    for key in HEAD_KEYS:
        if getattr(one.metadata, key) != getattr(two.metadata, key):
            yield f"{key} differs: {_short(getattr(one.metadata, key))} and {_short(getattr(two.metadata, key))}"
    if one.metadata.quantization != two.metadata.quantization:
        yield "int8 files differ: the ranges of a training with quantize=qat are others, or one has none"
    ours, theirs = (dict(_flat("model", part.metadata.model)) for part in (one, two))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            yield f"{key} differs: {_short(ours.get(key))} and {_short(theirs.get(key))}"


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _flat(f"{prefix}.{key}", inner)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
