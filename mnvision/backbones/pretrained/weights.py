"""What every weight source delivers, and the width that its shapes speak of."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnvision.backbones.mobilenet_v1 import (
    BLOCKS,
    MIN_CHANNELS,
    SHALLOW_BLOCKS,
    STEM_CHANNELS,
    scaled_channels,
)
from mnvision.errors import UserError

# Fewest decimals first: 0.75 is what somebody typed, 0.7500001 is not.
MAX_ALPHA_DECIMALS = 6


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights of one MobileNetV1, under this library's names, and how they want to be used.

    ``None`` in a setting means that the source does not state it, so it cannot be compared with the backbone.

    Attributes:
        source: As the user named it.
        state: Names of ``MobileNetV1.state_dict()`` without prefix, float32 (``num_batches_tracked`` int64).
        alpha: Width multiplier inferred from the shapes; see :func:`infer_geometry`.
        depth_multiplier: Depthwise channels per input channel, inferred from the shapes.
        variant: ``"separable"``, ``"full_conv"`` or ``"shallow"``, inferred from the shapes.
        padding: ``"symmetric"`` or ``"tf_same"``.
        bn_eps: Added to the variance in batch normalisation.
        activation: ``"relu6"`` or ``"relu"``.
        classifier: Weight ``(K, C)`` and bias ``(K,)``, float32.
        class_names: K names, one per row of the classifier; none without a classifier.
        background_first: Row 0 of the classifier is the class "background" (TF-slim).
        mean: Per channel, in pixel units 0-255: the network sees ``(pixel - mean) / std``.
        std: Per channel, in pixel units.
        resolution: Nominal side of the input in pixels.
        left_out: What in the source belongs neither to the backbone nor to a classifier, see :func:`grouped`.
    """

    source: str
    state: dict[str, Tensor]
    alpha: float
    depth_multiplier: int
    variant: str
    padding: str | None
    bn_eps: float | None
    activation: str | None
    classifier: tuple[Tensor, Tensor] | None = None
    class_names: tuple[str, ...] | None = None
    background_first: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resolution: int | None = None
    left_out: tuple[str, ...] = ()

    def backbone_arguments(self) -> dict[str, Any]:
        """Arguments of ``MobileNetV1`` under which these weights compute what they were trained to."""
        names = ("alpha", "depth_multiplier", "variant", "padding", "bn_eps", "activation")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def make_weights(source: str, state: Mapping[str, Tensor], **settings: Any) -> PretrainedWeights:
    """:class:`PretrainedWeights` with the geometry inferred and absent batch counters set to 0.

    Args:
        source: As the user named it; named in errors.
        state: Weights under this library's names, without prefix.
        **settings: The remaining fields of :class:`PretrainedWeights`.

    Raises:
        UserError: The shapes are not those of a MobileNetV1, the classifier does not go with its class names,
            or a weight is not a finite number.
    """
    alpha, depth_multiplier, variant = infer_geometry(state, source)
    full = {name: tensor if name.endswith("num_batches_tracked") else tensor.float() for name, tensor in state.items()}
    for name in state:
        if name.endswith(".bn.running_var"):
            full.setdefault(name.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    weights = PretrainedWeights(source, full, alpha, depth_multiplier, variant, **settings)
    _check_values(weights)
    return weights


def infer_geometry(state: Mapping[str, Tensor], source: str) -> tuple[float, int, str]:
    """Width multiplier, depth multiplier and variant that the shapes imply.

    Rounding (``max(int(c * alpha), 8)``) leaves an interval of width multipliers for every layer; the
    shortest decimal in all of them is taken, so that 0.75 comes back as 0.75 and not as 0.7507.

    Args:
        state: Weights under this library's names; may lack blocks, which the loader reports.
        source: Named in errors.

    Raises:
        UserError: No stem, or channel counts that no width multiplier gives.
    """
    if "stem.conv.weight" not in state:
        raise UserError(f"{source}: no MobileNetV1 in it (no first convolution among its {len(state)} tensors)")
    found = _block_channels(state)
    stem = state["stem.conv.weight"].shape[0]
    layouts = {"separable": BLOCKS, "shallow": SHALLOW_BLOCKS}
    for variant, blocks in layouts.items():
        if max(found, default=-1) >= len(blocks):
            continue
        pairs = [(STEM_CHANNELS, stem), *((blocks[index][0], count) for index, count in found.items())]
        alpha = _shortest_alpha(pairs)
        if alpha is not None:
            full = any(".full." in name for name in state)
            return alpha, _depth_multiplier(state), "full_conv" if full else variant
    channels = ", ".join(str(count) for count in (stem, *found.values()))
    raise UserError(f"{source}: its channels ({channels}) are not those of a MobileNetV1 of any alpha")


def grouped(names: Iterable[str], among: Iterable[str]) -> tuple[str, ...]:
    """Names with whole branches written as one, so that a line can name them all: ``blocks.4.*``.

    Args:
        names: Dotted names.
        among: All names there are; a branch is whole if every one of them below it is in ``names``.
    """
    chosen, totals, counts = tuple(names), Counter[str](), Counter[str]()
    for counter, members in ((totals, set(among) | set(chosen)), (counts, set(chosen))):
        counter.update(branch for name in members for branch in _branches(name))
    whole = {branch for branch, count in counts.items() if 1 < count == totals[branch]}
    found = (next((f"{branch}.*" for branch in _branches(name) if branch in whole), name) for name in chosen)
    return tuple(dict.fromkeys(found))


def _branches(name: str) -> list[str]:
    """``a`` and ``a.b`` of ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _block_channels(state: Mapping[str, Tensor]) -> dict[int, int]:
    """Output channels by index of the blocks that are there."""
    channels = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(?:pointwise|full)\.conv\.weight", name)
        if match:
            channels[int(match[1])] = tensor.shape[0]
    return dict(sorted(channels.items()))


def _depth_multiplier(state: Mapping[str, Tensor]) -> int:
    depthwise = state.get("blocks.0.depthwise.conv.weight")
    return 1 if depthwise is None else max(depthwise.shape[0] // state["stem.conv.weight"].shape[0], 1)


def _shortest_alpha(pairs: Sequence[tuple[int, int]]) -> float | None:
    """The decimal with the fewest digits under which every (channels at alpha 1, channels) pair holds."""
    lower = max((count / base for base, count in pairs if count > MIN_CHANNELS), default=0.0)
    upper = min((count + 1) / base for base, count in pairs)
    for decimals in range(MAX_ALPHA_DECIMALS + 1):
        scale = 10**decimals
        for step in range(max(math.ceil(lower * scale), 1), math.ceil(upper * scale) + 1):
            alpha = step / scale
            if all(scaled_channels(base, alpha) == count for base, count in pairs):
                return alpha
    return None


def _check_values(weights: PretrainedWeights) -> None:
    tensors = dict(weights.state)
    if weights.classifier is not None:
        tensors |= {"classifier weight": weights.classifier[0], "classifier bias": weights.classifier[1]}
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise UserError(f"{weights.source}: NaN or infinite numbers in {', '.join(broken)}: the file is damaged")
    if weights.classifier is None:
        return
    matrix, bias = weights.classifier
    if matrix.ndim != 2 or bias.shape != matrix.shape[:1]:
        raise UserError(
            f"{weights.source}: classifier weight {tuple(matrix.shape)} and bias {tuple(bias.shape)} do not go together"
        )
    if weights.class_names is not None and len(weights.class_names) != matrix.shape[0]:
        raise UserError(
            f"{weights.source}: {len(weights.class_names)} class names for a classifier of {matrix.shape[0]} classes"
        )
