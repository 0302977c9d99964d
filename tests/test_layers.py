"""Padding, activation and start of the convolution layer, against loops and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct, tf_same_padding
from mnvision.errors import UserError


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def literal_same_conv(x: np.ndarray, weight: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """Depthwise convolution of ``(C, H, W)``, tap by tap, output ``o`` centred as TensorFlow documents."""
    kernel, (channels, height, width) = weight.shape[-1], x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    reach = dilation * (kernel - 1) + 1
    top = max((out_height - 1) * stride + reach - height, 0) // 2
    left = max((out_width - 1) * stride + reach - width, 0) // 2
    out = np.zeros((channels, out_height, out_width))
    for row, col, i, j in np.ndindex(out_height, out_width, kernel, kernel):
        y, z = row * stride - top + i * dilation, col * stride - left + j * dilation
        if 0 <= y < height and 0 <= z < width:
            out[:, row, col] += weight[:, 0, i, j] * x[:, y, z]
    return out


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
)
def test_tf_same_padding_equals_a_literal_loop(height, width, kernel, stride, dilation):
    layer = ConvBNAct(2, 2, kernel, stride, dilation, groups=2, padding="tf_same", activation="none")
    x = picture(height, width, channels=2)
    got = layer.conv(x).detach().numpy()
    want = literal_same_conv(x[0].numpy(), layer.conv.weight.detach().numpy(), stride, dilation)
    np.testing.assert_allclose(got[0], want, atol=1e-5)
    if dilation * (kernel - 1) < min(height, width):
        assert want.any()  # else all taps may lie in the zeros


def test_tf_same_padding_by_hand():
    assert tf_same_padding(224, 3, 2, 1) == (0, 1)
    assert tf_same_padding(225, 3, 2, 1) == (1, 1)
    assert tf_same_padding(7, 3, 1, 2) == (2, 2)
    assert tf_same_padding(5, 1, 2, 1) == (0, 0)


def test_tf_same_export_with_free_sizes():
    model = ConvBNAct(3, 4, 3, stride=2, padding="tf_same").eval()
    height, width = torch.export.Dim("height", min=8, max=512), torch.export.Dim("width", min=8, max=512)
    shapes = ({2: height, 3: width},)
    exported = torch.export.export(model, (picture(65, 80),), dynamic_shapes=shapes).module()
    for size in [(64, 64), (33, 47), (50, 33)]:
        torch.testing.assert_close(exported(picture(*size)), model(picture(*size)))


@pytest.mark.parametrize(("activation", "highest"), [("relu6", 6.0), ("relu", 40.0), ("none", 40.0)])
def test_activation(activation, highest):
    layer = ConvBNAct(1, 1, 1, activation=activation, bn_eps=1e-3).eval()
    nn.init.constant_(layer.conv.weight, 1)
    x = torch.tensor([-3.0, 2.0, 40.0]).reshape(1, 1, 1, 3)
    want = [-3.0 if activation == "none" else 0.0, 2.0, highest]
    torch.testing.assert_close(layer(x).flatten().tolist(), want, rtol=1e-3, atol=0)


def test_initial_state_is_the_authors():
    layer = ConvBNAct(512, 1024, 1)
    # A normal distribution of deviation s cut off at 2 s has deviation 0.8796 s.
    assert layer.conv.weight.std().item() == pytest.approx(0.09 * 0.8796, rel=0.01)
    assert layer.conv.weight.abs().max() <= 0.18
    assert layer.conv.bias is None
    assert (layer.bn.eps, layer.bn.momentum) == (1e-3, 0.03)


def test_even_kernel_needs_tf_same():
    with pytest.raises(UserError, match="kernel_size is 2"):
        ConvBNAct(3, 8, 2)
    assert ConvBNAct(3, 8, 2, padding="tf_same")(picture(5, 5)).shape == (2, 8, 5, 5)
