"""MobileNetV1: depthwise-separable convolutions under a width and a resolution multiplier.

Source: MobileNets, https://arxiv.org/abs/1704.04861, table 1. Table 1 prints stride 2 for the last depthwise
layer; its own sizes, its cost and the authors' code say stride 1, which is what stands here. Rounding of
channels, ReLU6 and the output stride are not in the paper but in the authors' code (TF-slim
``nets/mobilenet_v1.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct, check_layer_options
from mnvision.errors import UserError

STEM_CHANNELS = 32
MIN_CHANNELS = 8
OUTPUT_STRIDES = (8, 16, 32)
STEM_STRIDES = (1, 2)
# Strides of the five sizes of map relative to the stem's output.
STEPS = (1, 2, 4, 8, 16)
VARIANTS = ("separable", "full_conv", "shallow")

# (channels at alpha 1, stride) of the thirteen blocks after the stem.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
# Table 5's shallow network leaves out the five blocks of 14 x 14 x 512.
SHALLOW_BLOCKS = BLOCKS[:6] + BLOCKS[11:]


@dataclass(frozen=True)
class BlockPlan:
    """One block once width and output stride are settled; ``total_stride`` is that of its output."""

    channels: int
    stride: int
    dilation: int
    total_stride: int


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with batch normalisation and activation.

    Source: MobileNets, figure 3. All other arguments as in :class:`~mnvision.backbones.layers.ConvBNAct`.

    Args:
        depth_multiplier: Depthwise channels per input channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        depth_multiplier: int,
        padding: str,
        activation: str,
        bn_eps: float,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        depthwise_channels = in_channels * depth_multiplier
        rest = (padding, activation, bn_eps, bn_momentum)
        self.depthwise = ConvBNAct(in_channels, depthwise_channels, 3, stride, dilation, in_channels, *rest)
        self.pointwise = ConvBNAct(depthwise_channels, out_channels, 1, 1, 1, 1, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        return self.pointwise(self.depthwise(x))


class FullConvBlock(nn.Module):
    """One ordinary 3x3 convolution in the place of a separable block (the comparison of table 4)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        padding: str,
        activation: str,
        bn_eps: float,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        rest = (padding, activation, bn_eps, bn_momentum)
        self.full = ConvBNAct(in_channels, out_channels, 3, stride, dilation, 1, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        return self.full(x)


class MobileNetV1(nn.Module):
    """The MobileNetV1 body, giving feature maps at the strides asked for.

    Blocks behind the coarsest map asked for are not built, unless ``tail`` asks for them, so that every parameter
    takes part in training.

    Args:
        alpha: Width multiplier, above 0. A layer of ``c`` channels gets ``max(int(c * alpha), 8)``.
        resolution: Nominal side of the input in pixels, at least 1. Recorded for heads, summaries and export;
            the layers take any size.
        depth_multiplier: Depthwise channels per input channel, at least 1 (Keras' argument of that name).
        output_stride: 32, 16 or 8. Where the stride has reached it, later steps of 2 become dilation of the
            depthwise convolutions that follow, which keeps the map large and the receptive field as it was.
        out_strides: Strides of the maps to return, any of 2, 4, 8, 16, 32 (1, 2, 4, 8, 16 if ``stem_stride`` is
            1) up to ``output_stride``. The map of a stride is the output of the last block that has it. ``None``
            returns the coarsest one.
        padding: "symmetric" (PyTorch's way) or "tf_same" (for weights trained in TensorFlow or Keras).
        activation: "relu6" (the authors' code) or "relu" (the paper).
        variant: "separable", "full_conv" (table 4) or "shallow" (table 5: without the five blocks of
            14 x 14 x 512).
        bn_eps: Added to the variance in batch normalisation; 1e-3 as in TF-slim and Keras.
        bn_momentum: Weight of the newest batch in the running statistics.
        in_channels: Channels of the images.
        stem_stride: Stride of the first convolution. 1 keeps small inputs such as aligned faces of 112 px from
            shrinking too early: every stride is half of the ordinary one, 16 in total, and a picture costs what
            one of twice its side costs otherwise (MobileFaceNets, https://arxiv.org/abs/1804.07573, section 4.2,
            where stride 2 did very poorly on 112 px). All strides given and reported are real ones, relative to
            the input; weights are the same for both values.
        tail: Build the blocks behind the coarsest map too, for a head that applies them to parts of that map with
            :meth:`forward_tail`. Their names and weights are those of the whole network.

    Attributes:
        feature_blocks: Index of the block that gives each returned map, finest first.
        feature_channels: Channels of each returned map, finest first.
        feature_strides: Stride of each returned map, finest first.
        tail_channels: Channels of the last block built; without ``tail`` those of the coarsest map.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        resolution: int = 224,
        depth_multiplier: int = 1,
        output_stride: int = 32,
        out_strides: Sequence[int] | None = None,
        padding: str = "symmetric",
        activation: str = "relu6",
        variant: str = "separable",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.03,
        in_channels: int = 3,
        stem_stride: int = 2,
        tail: bool = False,
    ) -> None:
        super().__init__()
        check_layer_options(padding, activation, bn_eps, bn_momentum)
        _check_shape_options(alpha, resolution, depth_multiplier, variant, in_channels)
        self.feature_strides = _checked_strides(out_strides, output_stride, stem_stride)
        self.alpha = alpha
        self.resolution = resolution

        rest = (padding, activation, bn_eps, bn_momentum)
        plan = _plan(SHALLOW_BLOCKS if variant == "shallow" else BLOCKS, alpha, output_stride, stem_stride)
        last_block = {block.total_stride: index for index, block in enumerate(plan)}
        self._num_trunk = last_block[self.feature_strides[-1]] + 1
        plan = plan if tail else plan[: self._num_trunk]
        self.feature_blocks = sorted(last_block[stride] for stride in self.feature_strides)
        self.feature_channels = [plan[last_block[stride]].channels for stride in self.feature_strides]

        channels = scaled_channels(STEM_CHANNELS, alpha)
        self.stem = ConvBNAct(in_channels, channels, 3, stem_stride, 1, 1, *rest)
        self.blocks = nn.ModuleList()
        for block in plan:
            shape = (channels, block.channels, block.stride, block.dilation)
            if variant == "full_conv":
                self.blocks.append(FullConvBlock(*shape, *rest))
            else:
                self.blocks.append(SeparableBlock(*shape, depth_multiplier, *rest))
            channels = block.channels
        self.tail_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of normalised images.

        Args:
            x: ``(B, in_channels, H, W)`` float, any H and W of at least 1.

        Returns:
            One map per entry of ``feature_strides``, finest first:
            ``(B, feature_channels[i], ceil(H / feature_strides[i]), ceil(W / feature_strides[i]))``.
        """
        x = self.stem(x)
        feature_maps = []
        for index, block in enumerate(self.blocks):
            if index == self._num_trunk:
                break
            x = block(x)
            if index in self.feature_blocks:
                feature_maps.append(x)
        return feature_maps

    def forward_tail(self, x: Tensor) -> Tensor:
        """The blocks behind the coarsest map, applied to parts of it.

        Args:
            x: ``(R, feature_channels[-1], h, w)``.

        Returns:
            ``(R, tail_channels, h', w')``, each side divided by the steps of the tail and rounded up; ``x`` itself
            where there is no tail.
        """
        for index, block in enumerate(self.blocks):
            if index >= self._num_trunk:
                x = block(x)
        return x


def scaled_channels(channels: int, alpha: float) -> int:
    """Channels of a layer under the width multiplier, rounded down, at least 8, as TF-slim does."""
    return max(int(channels * alpha), MIN_CHANNELS)


def _plan(blocks: Sequence[tuple[int, int]], alpha: float, output_stride: int, stem_stride: int) -> list[BlockPlan]:
    """Width, stride and dilation of each block.

    As in TF-slim: the depthwise layer that would have stepped keeps the dilation so far, and those behind it
    get the doubled one.
    """
    plan = []
    total_stride, rate = stem_stride, 1
    for channels, stride in blocks:
        dilation = rate
        if total_stride == output_stride:
            rate, stride = rate * stride, 1
        total_stride *= stride
        plan.append(BlockPlan(scaled_channels(channels, alpha), stride, dilation, total_stride))
    return plan


def _check_shape_options(alpha: float, resolution: int, depth_multiplier: int, variant: str, in_channels: int) -> None:
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise UserError(f"alpha is {alpha!r}: give a width multiplier above 0, such as 1.0, 0.75, 0.5 or 0.25")
    if variant not in VARIANTS:
        raise UserError(f"variant is {variant!r}: choose one of {', '.join(VARIANTS)}")
    counts = {"resolution": resolution, "depth_multiplier": depth_multiplier, "in_channels": in_channels}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise UserError(f"{name} is {count!r}: give a whole number of at least 1")
    if variant == "full_conv" and depth_multiplier != 1:
        raise UserError(f"depth_multiplier is {depth_multiplier}: variant full_conv has no depthwise layers, give 1")


def _checked_strides(out_strides: Sequence[int] | None, output_stride: int, stem_stride: int) -> list[int]:
    """``out_strides`` in ascending order, once they are known to fit ``output_stride``."""
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {output_stride!r}: choose one of 8, 16, 32")
    if stem_stride not in STEM_STRIDES:
        raise UserError(f"stem_stride is {stem_stride!r}: choose 1 or 2")
    possible = [stem_stride * step for step in STEPS]
    present = [stride for stride in possible if stride <= output_stride]
    if out_strides is None:
        return present[-1:]
    strides = sorted(out_strides)
    if not strides or len(set(strides)) != len(strides) or not set(strides) <= set(possible):
        raise UserError(
            f"out_strides is {list(out_strides)}: give one or more different ones of "
            f"{', '.join(map(str, possible))} (stem_stride is {stem_stride}), or null for the coarsest map"
        )
    if strides[-1] > output_stride:
        raise UserError(
            f"out_strides is {list(out_strides)}: output_stride {output_stride} leaves no map of stride "
            f"{strides[-1]}; leave out strides above {output_stride}"
        )
    return strides
