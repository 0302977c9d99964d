"""Pretrained weights made narrower or wider, so that one trained network starts students of any width.

Between two pointwise convolutions of MobileNetV1 lies nothing that mixes channels, so a channel can be taken out, or
doubled, by its index alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mnvision.backbones.mobilenet_v1 import BLOCKS, STEM_CHANNELS, scaled_channels
from mnvision.backbones.pretrained.weights import PretrainedWeights
from mnvision.errors import UserError

NOISE = 0.05
"""Of a doubled channel's kernels, relative to their standard deviation: copies that are equal stay so for ever."""


def fit_width(weights: PretrainedWeights, alpha: float, seed: int = 0) -> PretrainedWeights:
    """Weights of another width multiplier.

    Narrowing keeps the channels that matter most to the next layer: as the depthwise layer behind them is
    normalised, that is the size of its scale times the norm of the pointwise kernel's column (in the spirit of
    network slimming, https://arxiv.org/abs/1708.06519, which looks at the scale alone). Widening doubles them and
    divides the weights that read them (Net2WiderNet, https://arxiv.org/abs/1511.05641, section 2.2), which changes
    nothing but for a little noise in the copies. Both are starting points: train on, or distil.

    Args:
        weights: Of the separable variant with depth multiplier 1.
        alpha: The width multiplier to reach.
        seed: Of the noise in doubled channels.

    Raises:
        UserError: Another variant.
    """
    if weights.variant != "separable" or weights.depth_multiplier != 1:
        raise UserError(
            f"{weights.source}: backbone.fit_width needs the separable variant with depth_multiplier=1, "
            f"not {weights.variant} with {weights.depth_multiplier}"
        )
    if weights.alpha == alpha:
        return weights
    state = dict(weights.state)
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    generator = torch.Generator().manual_seed(seed)
    channels = [STEM_CHANNELS, *(block[0] for block in BLOCKS[:count])]
    read: Tensor | None = None
    for layer, width in enumerate(channels):
        writer = "stem" if layer == 0 else f"blocks.{layer - 1}.pointwise"
        if read is not None:
            _read_from(state, f"blocks.{layer - 1}", read)
        kept = _choose(_importance(weights.state, layer, count), scaled_channels(width, alpha))
        _write(state, writer, kept, generator)
        read = kept
    assert read is not None
    classifier = weights.classifier
    if classifier is not None:
        classifier = (classifier[0][:, read] / _multiplicity(read), classifier[1])
    return replace(weights, state=state, alpha=alpha, classifier=classifier)


def _importance(state: dict[str, Tensor], layer: int, blocks: int) -> Tensor:
    """``(C,)``: what each channel behind the stem (layer 0) or behind a block means to the next layer."""
    if layer == blocks:
        return state[f"blocks.{layer - 1}.pointwise.bn.weight"].abs()
    reader = f"blocks.{layer}"
    columns = state[f"{reader}.pointwise.conv.weight"].flatten(1).norm(dim=0)
    return state[f"{reader}.depthwise.bn.weight"].abs() * columns


def _choose(importance: Tensor, count: int) -> Tensor:
    """Indices of ``count`` channels in ascending order, the most important ones doubled where there are too few."""
    ranked = importance.argsort(descending=True, stable=True)
    times = -(-count // len(ranked))
    return ranked.repeat(times)[:count].sort().values


def _multiplicity(kept: Tensor) -> Tensor:
    """How often each entry of ``kept`` occurs in it."""
    return torch.bincount(kept)[kept].float()


def _write(state: dict[str, Tensor], layer: str, kept: Tensor, generator: torch.Generator) -> None:
    """Take the output channels ``kept`` of a convolution and its normalisation; copies get a little noise."""
    kernel = state[f"{layer}.conv.weight"][kept].clone()
    copies = torch.zeros(len(kept), dtype=torch.bool)
    copies[1:] = kept[1:] == kept[:-1]
    noise = torch.randn(kernel.shape, generator=generator) * kernel.std() * NOISE
    kernel[copies] += noise[copies]
    state[f"{layer}.conv.weight"] = kernel
    for part in ("weight", "bias", "running_mean", "running_var"):
        state[f"{layer}.bn.{part}"] = state[f"{layer}.bn.{part}"][kept].clone()


def _read_from(state: dict[str, Tensor], block: str, kept: Tensor) -> None:
    """Let a separable block read the channels ``kept`` of the layer before it."""
    state[f"{block}.depthwise.conv.weight"] = state[f"{block}.depthwise.conv.weight"][kept].clone()
    for part in ("weight", "bias", "running_mean", "running_var"):
        state[f"{block}.depthwise.bn.{part}"] = state[f"{block}.depthwise.bn.{part}"][kept].clone()
    kernel = state[f"{block}.pointwise.conv.weight"][:, kept]
    state[f"{block}.pointwise.conv.weight"] = kernel / _multiplicity(kept).reshape(1, -1, 1, 1)
