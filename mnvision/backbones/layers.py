"""Convolution, batch normalisation, activation: the one layer all MobileNets and their heads are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError

ACTIVATIONS = ("relu6", "relu", "none")
PADDINGS = ("symmetric", "tf_same")


def tf_same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros that TensorFlow's ``padding="SAME"`` puts before and after one axis.

    The output has ``ceil(size / stride)`` positions; where the sum of the zeros is odd, the extra one comes
    last. Source: TensorFlow API documentation of ``tf.nn.convolution``, "notes on padding".

    Args:
        size: Length of the axis in pixels.
        kernel_size: Taps of the kernel along the axis.
        stride: Step of the kernel.
        dilation: Distance between taps; 1 for an ordinary kernel.

    Returns:
        Number of zeros before and after.
    """
    outputs = (size + stride - 1) // stride
    total = max((outputs - 1) * stride + dilation * (kernel_size - 1) + 1 - size, 0)
    return total // 2, total - total // 2


class TFSameConv2d(nn.Conv2d):
    """``nn.Conv2d`` padded as TensorFlow's "SAME", for any input size.

    At stride 2 TensorFlow's zeros depend on the size of the input: even sizes get theirs only on the right
    and bottom, odd sizes on both sides. Weights from TensorFlow and Keras lose accuracy without this.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)`` to ``(B, C', ceil(H / stride), ceil(W / stride))``."""
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with other parameters, of the same shapes."""
        top, bottom = tf_same_padding(x.shape[2], self.kernel_size[0], self.stride[0], self.dilation[0])
        left, right = tf_same_padding(x.shape[3], self.kernel_size[1], self.stride[1], self.dilation[1])
        # An exported graph with free sizes must not depend on whether they are even, hence no branch there.
        if torch.compiler.is_exporting() or top != bottom or left != right:
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)


class ConvBNAct(nn.Module):
    """Convolution without bias, batch normalisation and activation, as in every layer of MobileNet.

    Source: MobileNets, https://arxiv.org/abs/1704.04861, figure 3 and section 3.2. Weights start from a
    normal distribution of standard deviation 0.09 cut off at twice that, as in the authors' code (TF-slim
    ``mobilenet_v1_arg_scope``); batch normalisation starts at scale 1 and shift 0.

    Args:
        in_channels: Channels of the input, at least 1.
        out_channels: Channels of the output, at least 1.
        kernel_size: Side of the square kernel; odd, unless ``padding`` is "tf_same".
        stride: Step of the kernel.
        dilation: Distance between the kernel's taps.
        groups: Groups of the convolution; ``in_channels`` makes it depthwise.
        padding: "symmetric", or "tf_same" as TensorFlow pads. Both give ``ceil(size / stride)`` positions and
            differ only at strides above 1.
        activation: "relu6", "relu" or "none".
        bn_eps: Added to the variance; 1e-3 in TF-slim and Keras.
        bn_momentum: Weight of the newest batch in the running statistics (PyTorch's convention: 1 - decay).

    Raises:
        UserError: If ``padding`` or ``activation`` is not one of the above, or a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: str = "symmetric",
        activation: str = "relu6",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.03,
    ) -> None:
        super().__init__()
        check_layer_options(padding, activation, bn_eps, bn_momentum)
        if padding == "symmetric" and kernel_size % 2 == 0:
            raise UserError(f"kernel_size is {kernel_size}: symmetric padding needs an odd kernel")
        # Where both paddings are the same zeros, the plain layer is used: it has nothing to compute per call.
        plain = padding == "symmetric" or (stride == 1 and dilation * (kernel_size - 1) % 2 == 0)
        conv_type = nn.Conv2d if plain else TFSameConv2d
        self.conv = conv_type(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size - 1) // 2 if plain else 0,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=bn_eps, momentum=bn_momentum)
        self.act = make_activation(activation)
        nn.init.trunc_normal_(self.conv.weight, std=0.09, a=-0.18, b=0.18)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        return self.act(self.bn(self.conv(x)))


def make_activation(activation: str) -> nn.Module:
    """The module for "relu6", "relu" or "none"; it works in place, since nothing else reads its input."""
    if activation == "relu6":
        return nn.ReLU6(inplace=True)
    return nn.ReLU(inplace=True) if activation == "relu" else nn.Identity()


def check_layer_options(padding: str, activation: str, bn_eps: float, bn_momentum: float) -> None:
    """Raise a UserError that names the first of these options that is out of range."""
    if padding not in PADDINGS:
        raise UserError(f"padding is {padding!r}: choose one of {', '.join(PADDINGS)}")
    if activation not in ACTIVATIONS:
        raise UserError(f"activation is {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    if not bn_eps > 0:
        raise UserError(f"bn_eps is {bn_eps!r}: give a number above 0, such as 0.001")
    if not 0 < bn_momentum <= 1:
        raise UserError(f"bn_momentum is {bn_momentum!r}: give a number above 0 and at most 1, such as 0.03")
