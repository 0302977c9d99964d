"""Files with several heads: which of them go in, and how each is held against the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from mnvision.build import build_model
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.export.base import Pixels
from mnvision.export.calibration import FEWEST, Calibration, Samples
from mnvision.export.judge import Judge, Judgement
from mnvision.prediction.predictor import Predictor
from mnvision.quantization.heads import head_metadata, ranges_of_part


def chosen_heads(model: Any, metadata: Metadata, names: Sequence[str]) -> tuple[Any, Metadata]:
    """A multi-task model with some of its heads only; with one, an ordinary model of that head's kind.

    Args:
        model: Of a checkpoint.
        metadata: Of it.
        names: Of the heads, at least one.

    Raises:
        UserError: The model has one head only, or none of such a name; or a name is given twice.
    """
    if not metadata.heads:
        raise UserError(f"heads={list(names)}: this is a {metadata.kind} checkpoint, which has one head: leave it out")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"heads: {name} is named twice; give each once")
        model.part(name)
    if len(names) == 1:
        return model.part(names[0]), head_metadata(model, metadata, names[0])
    config = {**metadata.model, "heads": {name: metadata.model["heads"][name] for name in names}}
    chosen = build_model(config).eval()
    for name in names:
        chosen.part(name).load_state_dict(model.part(name).state_dict())
    heads, ranges = {name: metadata.heads[name] for name in names}, ranges_of_part(chosen, metadata.quantization)
    return chosen, replace(metadata, model=config, heads=heads, quantization=ranges)


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Head and model of each head; of a single-task model itself, without a name."""
    if model.kind != "multitask":
        yield "", model
        return
    for name in model.names:
        yield name, model.part(name)


@dataclass(frozen=True)
class HeadsJudgement(Judgement):
    """That of the head which loses most, with the others beside it.

    Attributes:
        heads: Kind and judgement of each head, by name.
    """

    heads: Mapping[str, tuple[str, Judgement]] = field(default_factory=dict)

    def parts(self) -> Mapping[str, Judgement]:
        """By head."""
        return {name: found for name, (_, found) in self.heads.items()}

    def fits(self, kind: str, max_drop: float | None) -> bool:
        """Whether every head may be kept, each by the measure of its own kind."""
        return all(found.fits(own, max_drop) for own, found in self.heads.values())

    def words(self) -> str:
        """In one line."""
        return "; ".join(f"{name}: {found.words()}" for name, (_, found) in self.heads.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file's metadata and the report."""
        return {"measured": self.words(), "heads": {name: found.to_dict() for name, (_, found) in self.heads.items()}}


class HeadsJudge:
    """Holds files with several heads against their checkpoint, head by head.

    Args:
        reference: The checkpoint's predictor, with its parts.
        samples: Of each head, by name.

    Attributes:
        samples: All of them; ranges of activations come from the pictures of all heads.

    Raises:
        UserError: There is nothing to compare.
    """

    def __init__(self, reference: Predictor[Any], samples: Mapping[str, Samples]) -> None:
        self.reference = reference
        self.samples = joined_samples(samples)
        self.judges = {name: Judge(reference.parts[name], samples[name]) for name in samples}

    def __call__(self, file: Any) -> HeadsJudgement:
        """Measure one file.

        Raises:
            UserError: See :class:`~mnvision.export.judge.Judge`, with the head's name.
        """
        found: dict[str, tuple[str, Judgement]] = {}
        for name, judge in self.judges.items():
            try:
                found[name] = judge.reference.kind, judge(file.part(name))
            except UserError as error:
                raise UserError(f"head {name}: {error}") from None
        worst = max((one for _, one in found.values()), key=lambda one: one.drop)
        return HeadsJudgement(**vars(worst), heads=found)


def joined_samples(samples: Mapping[str, Samples]) -> Samples:
    """Pictures of all heads as one: in turn, so that any first few are of all of them, and each once."""
    several = list(samples.values())
    order = np.argsort(np.concatenate([np.arange(len(one.calibration)) for one in several]), kind="stable")
    pixels = np.concatenate([one.calibration for one in several])[order]
    turns = zip_longest(*(one.held_out for one in several))
    shown = [picture for turn in turns for picture in turn if picture is not None]
    return Samples(
        pixels[_first_of_each(pixels)],
        [shown[position] for position in _first_of_each([picture.pixels for picture in shown])],
        " and ".join(dict.fromkeys(one.source for one in several)),
        " and ".join(dict.fromkeys(one.folder for one in several)),
        " and ".join(dict.fromkeys(one.judged_on for one in several)),
        several[0].scoring if all(one.scoring for one in several) else None,
        _why_unscored(samples),
    )


def _first_of_each(pictures: Iterable[Pixels]) -> list[int]:
    """Positions of the pictures that are not there before: heads may bring the same ones."""
    found: dict[bytes, int] = {}
    for position, pixels in enumerate(pictures):
        found.setdefault(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest(), position)
    return list(found.values())


def _why_unscored(samples: Mapping[str, Samples]) -> str:
    whys = {name: one.why_unscored for name, one in samples.items() if one.why_unscored}
    if len(whys) == len(samples) and len(set(whys.values())) == 1:
        return next(iter(whys.values()))
    return "; ".join(f"{name}: {why}" for name, why in whys.items())


def share(calibration: Calibration, heads: int) -> Calibration:
    """What is asked of the pictures of one head where several bring theirs."""
    return replace(calibration, limit=max(calibration.limit // heads, FEWEST))
