"""Rounding to 8 bits against hand-worked numbers, and its gradients against those written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mnvision.export.folding import folded_parameters
from mnvision.quantization.grid import (
    activation_grid,
    rounded_activation,
    rounded_weight,
    weight_numbers,
    weight_scales,
)
from mnvision.quantization.layers import RoundedLinear, TakenUpNorm1d
from mnvision.quantization.ranges import Ranges

ENDS = st.floats(-50, 50, width=32)


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_weights_by_hand():
    weight = torch.tensor([[1.27, -0.635, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0], [-254.0, 1.0, 3.0, 100.0]])
    numbers, scales = weight_numbers(weight)
    np.testing.assert_allclose(scales, [0.01, 1e-6, 2.0], rtol=1e-6)
    # 63.5, 0.5 and 1.5 go to the even neighbour, as ONNX's QuantizeLinear does.
    assert numbers[0].tolist() == [127, -64, 0, 1]
    assert numbers[1].tolist() == [0, 0, 0, 0]
    assert numbers[2].tolist() == [-127, 0, 2, 50]


def test_one_scale_per_layer_is_the_largest_of_all():
    weight = torch.tensor([[1.27, 0.01], [0.001, 0.02]])
    numbers, scales = weight_numbers(weight, per_channel=False)
    np.testing.assert_allclose(scales, [0.01, 0.01], rtol=1e-6)
    assert numbers.tolist() == [[127, 1], [0, 2]]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (16, 1, 3, 3), (5, 40)])
def test_stored_numbers_times_scales_are_the_rounded_weights_bit_for_bit(shape: tuple[int, ...], per_channel: bool):
    weight = weights(*shape) * torch.logspace(-3, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    numbers, scales = weight_numbers(weight, per_channel)
    back = numbers.float() * scales.reshape(-1, *[1] * (len(shape) - 1))
    assert torch.equal(back, rounded_weight(weight, per_channel))
    assert int(numbers.abs().max()) == 127
    step = scales.reshape(-1, *[1] * (len(shape) - 1))
    assert bool(((back - weight).abs() <= step * 0.5001).all())


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 6.0, 6 / 255, 0),
        (0.0, 2.55, 0.01, 0),
        (-1.0, 1.0, 1 / 127, 127),  # not 2 / 255, whose half steps would put every pixel between two numbers
        (1.0, 2.0, 2 / 255, 0),  # zero is always among them: it is what borders are padded with
        (-2.0, -1.0, 2 / 255, 255),
        (0.0, 0.0, 1e-6, 0),
    ],
)
def test_ranges_by_hand(low: float, high: float, scale: float, zero: int):
    found, at = activation_grid(torch.tensor([low, high]))
    assert float(found) == pytest.approx(scale, rel=1e-6)
    assert int(at) == zero


@given(ENDS, ENDS)
@settings(max_examples=200, deadline=None)
def test_a_grid_holds_zero_and_both_ends(one: float, two: float):
    low, high = min(one, two), max(one, two)
    bounds = torch.tensor([low, high])
    scale, zero = activation_grid(bounds)
    assert float(rounded_activation(torch.zeros(1), bounds)) == 0.0
    assert 0 <= int(zero) <= 255
    ends = torch.tensor([min(low, 0.0), max(high, 0.0)])
    assert bool(((rounded_activation(ends, bounds) - ends).abs() <= 0.5001 * scale).all())
    # No wider than it has to be: at most one of the 256 values is lost.
    assert float(scale) * 254 <= float(ends[1] - ends[0]) * (1 + 1e-5) + 254e-6


def test_activations_are_cut_off_and_have_no_gradient_beyond_the_range():
    values = torch.tensor([-0.5, 0.0, 0.011, 0.015, 2.55, 2.6, 9.0], requires_grad=True)
    rounded = rounded_activation(values, torch.tensor([0.0, 2.55]))
    np.testing.assert_allclose(rounded.detach(), [0, 0, 0.01, 0.02, 2.55, 2.55, 2.55], atol=1e-6)
    (rounded * torch.arange(1.0, 8.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0]


def test_weights_pass_their_gradient_as_it_is():
    weight = weights(4, 3, 3, 3).requires_grad_()
    slope = weights(4, 3, 3, 3) + 1
    (rounded_weight(weight) * slope).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, slope)


def test_the_gradient_of_a_layer_with_its_norm_is_the_one_written_out():
    """y = X' W' + shift with W' = round(w f), f = gain / s and shift = b - mean f, straight through both roundings."""
    linear, norm = nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        norm.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
        norm.weight.copy_(torch.tensor([1.0, 0.5, -2.0, 1.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    ranges = Ranges(["fc"], momentum=0.0)
    ranges.bounds.copy_(torch.tensor([[0.0, 2.0]]))
    layer, taken = RoundedLinear(6, 4, bias=False, device="meta"), TakenUpNorm1d(4)
    taken.load_state_dict(norm.state_dict())
    layer.join(linear, taken, ranges, "fc", False)
    x = (1.5 * weights(5, 6)).requires_grad_()
    slope = weights(5, 4)
    (layer(x) * slope).sum().backward()

    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = norm.weight.detach().double() / deviation
    seen = rounded_activation(x.detach(), ranges.bounds[0]).double()
    by_folded = slope.double().T @ seen  # (4, 6)
    raw = linear.weight.detach().double()
    inside = (x.detach() > -0.003) & (x.detach() < 2.003)
    folded = folded_parameters(linear, norm)[0].detach()
    expected = {
        "weight": by_folded * factor[:, None],
        "gain": ((by_folded * raw).sum(1) - slope.double().sum(0) * norm.running_mean.double()) / deviation,
        "bias": slope.double().sum(0),
        "x": (slope.double() @ rounded_weight(folded).double()) * inside,
    }
    found = {"weight": layer.weight.grad, "gain": taken.weight.grad, "bias": taken.bias.grad, "x": x.grad}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert bool((~inside).any())
    assert bool(inside.any())


def test_scales_are_no_part_of_the_gradient():
    weight = torch.tensor([[2.0, 1.0]], requires_grad=True)
    assert not weight_scales(weight).requires_grad
