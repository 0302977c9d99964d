"""A model that computes, in float, what its int8 file will compute.

Every convolution and linear layer takes up the batch normalisation behind it, rounds the folded weights and rounds what
comes in: the places where the exported graph has its QuantizeLinear nodes. Parameters and buffers keep their names, so
that a checkpoint stays that of the float model.

Batch normalisation is folded with its running statistics, which stay as they are. The file holds constants, so training
sees those very constants; statistics of single batches would move the scales of depthwise weights from step to step,
and a few epochs on small batches do not make better ones (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342,
section 3.2.2, freezes them for the end of the training). Scale and shift are still trained.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.backbones.layers import TFSameConv2d
from mnvision.errors import UserError
from mnvision.export.folding import Layer, Norm, folded_parameters
from mnvision.quantization.grid import rounded_weight
from mnvision.quantization.plan import plan_of
from mnvision.quantization.ranges import WEIGHTS, Ranges

Model = TypeVar("Model", bound=nn.Module)


class _Rounding(nn.Module):
    """What the quantised layers share; made by :func:`quantize` only."""

    def join(self, layer: Any, norm: Norm | None, ranges: Ranges, name: str, exact: bool) -> None:
        """Take over a layer's parameters, and the norm behind it; ``exact`` leaves what comes in as it is."""
        self.weight, self.bias = layer.weight, layer.bias
        self.name, self.exact = name, exact
        # In tuples: parts of the model that are registered elsewhere already.
        self._norm, self._ranges = (norm,), (ranges,)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its batch normalisation, in float32 whatever the autocast, since 8 bits fill a bfloat16."""
        (ranges,), (norm,) = self._ranges, self._norm
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = folded_parameters(cast("Layer", self), norm)
            x = ranges.rounded(x.float(), self.name, self.training, self.exact)
            return self.compute(x, weight if ranges.measuring else rounded_weight(weight, ranges.per_channel), bias)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation with these parameters."""
        raise NotImplementedError


class RoundedConv2d(_Rounding, nn.Conv2d):
    """A convolution."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return F.conv2d(x, weight, bias, self.stride, cast("Any", self.padding), self.dilation, self.groups)


class RoundedTFSameConv2d(_Rounding, TFSameConv2d):
    """A convolution padded as TensorFlow does."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return self.convolve(x, weight, bias)


class RoundedLinear(_Rounding, nn.Linear):
    """A linear layer."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return F.linear(x, weight, bias)


class _TakenUp(nn.Module):
    """Holds scale, shift and statistics for the layer before, which applies them."""

    def forward(self, x: Tensor) -> Tensor:
        """What comes in."""
        return x


class TakenUpNorm1d(_TakenUp, nn.BatchNorm1d):
    """Of a linear layer."""


class TakenUpNorm2d(_TakenUp, nn.BatchNorm2d):
    """Of a convolution."""


class RoundedMap(nn.Module):
    """An activation whose map is rounded.

    Args:
        act: The activation.
        ranges: Of the model.
        name: The map's.
    """

    def __init__(self, act: nn.Module, ranges: Ranges, name: str) -> None:
        super().__init__()
        self.act, self.name = act, name
        self._ranges = (ranges,)

    def forward(self, x: Tensor) -> Tensor:
        """The rounded map of any shape."""
        return self._ranges[0].rounded(self.act(x), self.name, self.training)


def quantize(model: Model, momentum: float = 0.01, weights: str = WEIGHTS[0]) -> tuple[Model, Ranges]:
    """Make a model compute as its int8 file will, in place.

    Args:
        model: One of ``mnvision.models``, or a multi-task model.
        momentum: See :class:`~mnvision.quantization.ranges.Ranges`.
        weights: Likewise.

    Returns:
        The model, whose state dict is what it was, and the ranges of its activations, still to be measured or loaded.

    Raises:
        UserError: A batch normalisation stands where it cannot be folded, each head has its own, or another argument
            is out of range.
    """
    plan = plan_of(model)
    ranges = Ranges(plan.names, momentum, weights, plan.readers)
    for name, block in plan.maps.items():
        block.act = RoundedMap(block.act, ranges, name)
    for place in plan.layers:
        rounded, parent = _rounded(place.layer), place.parent
        rounded.join(place.layer, place.norm, ranges, place.name, _takes_pixels(model, place.layer))
        setattr(parent, place.attribute, rounded)
        if place.norm is not None:
            parent.bn = _taken_up(place.norm)
            rounded._norm = (parent.bn,)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its scale would widen the ranges beyond those of the file
    return model, ranges


def _takes_pixels(model: Any, layer: Layer) -> bool:
    """Whether what a layer gets are pixels at one scale: numbers of 8 bits, which a file takes as they are."""
    return layer is model.backbone.stem.conv and model.mean.numel() == model.std.numel() == 1


def restore(model: Model, stored: dict[str, Any]) -> Model:
    """A float model of a checkpoint as it was measured in training, with the ranges that were stored with it.

    Args:
        model: In eval mode; changed in place.
        stored: ``Metadata.quantization``.

    Raises:
        UserError: The ranges do not fit the model.
    """
    model, ranges = quantize(model)
    ranges.load_plain(stored)
    return model.eval()


def _rounded(layer: Layer) -> Any:
    if isinstance(layer, nn.Linear):
        return RoundedLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    if layer.padding_mode != "zeros":
        raise UserError(f"a convolution padded with {layer.padding_mode} cannot be quantised")
    kind = RoundedTFSameConv2d if isinstance(layer, TFSameConv2d) else RoundedConv2d
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    shape: dict[str, Any] = {name: getattr(layer, name) for name in names}
    return kind(**shape, bias=layer.bias is not None, device="meta")


def _taken_up(norm: Norm) -> Any:
    kind = TakenUpNorm2d if isinstance(norm, nn.BatchNorm2d) else TakenUpNorm1d
    new = kind(norm.num_features, norm.eps, norm.momentum, device="meta")
    new.weight, new.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(new, name, buffer)
    return new.train(norm.training)
