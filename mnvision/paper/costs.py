"""Figures of a counted model, as the paper's columns ask for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.backbones.mobilenet_v1 import BLOCKS, STEM_CHANNELS, SeparableBlock, scaled_channels
from mnvision.cost import Cost, LayerCost, measure
from mnvision.paper.layout import Kind

META = torch.device("meta")


def cost_figure(cost: Cost, kind: Kind, part: str = "") -> float:
    """One figure of a model or of a part of it.

    Args:
        cost: Of the whole model.
        kind: "mult_adds", "params" or "weights" as counts; "mult_adds_share" and "weights_share" in per cent.
        part: A type of layer or the beginning of layers' names; "" is the whole.
    """
    layers = [layer for layer in cost.layers if layer.type == part or layer.name.startswith(part)]
    column = kind.removesuffix("_share")
    total = _sum(layers, column)
    return 100 * total / _sum(cost.layers, column) if kind.endswith("_share") else float(total)


def _sum(layers: Sequence[LayerCost], column: str) -> int:
    return sum(getattr(layer, column) for layer in layers)


def wider_stem(alpha: float, resolution: int, channels: int) -> tuple[int, int]:
    """What a model costs more if its first layer has at least ``channels`` channels (erratum E7).

    The first layer and the separable block behind it are the only ones that change.

    Returns:
        Multiply-adds and learnable values above those of the plain model.
    """
    own = scaled_channels(STEM_CHANNELS, alpha)
    costs = [measure(_start(width, alpha), resolution) for width in (max(own, channels), own)]
    return costs[0].mult_adds - costs[1].mult_adds, costs[0].params - costs[1].params


def _start(stem_channels: int, alpha: float) -> nn.Module:
    channels, stride = BLOCKS[0]
    rest = ("symmetric", "relu6", 1e-3, 0.03)
    with META:
        return nn.Sequential(
            ConvBNAct(3, stem_channels, 3, 2, 1, 1, *rest),
            SeparableBlock(stem_channels, scaled_channels(channels, alpha), stride, 1, 1, *rest),
        )
