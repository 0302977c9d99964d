"""Batch normalisation taken into the layer before it, which an exported file then no longer has to compute."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from mnvision.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
LAYERS = ("conv", "fc")
"""Names of the layers that a batch normalisation called ``bn`` may follow inside one module."""


def folded(model: Model) -> Model:
    """A copy of a model in eval mode without batch normalisation; its answers differ by rounding only.

    In eval mode batch normalisation is ``y = (x - mean) * weight / sqrt(var + eps) + bias``, so the layer before it
    takes the factor into its weights and the rest into its bias. Computed in float64.

    Args:
        model: Its modules hold a ``conv`` or ``fc`` and a ``bn`` that follows it, as all of ``mnvision``'s do.

    Raises:
        UserError: A batch normalisation stands elsewhere, so that it would be left in.
    """
    model = deepcopy(model).eval()
    for module in list(model.modules()):
        layer = next((getattr(module, name) for name in LAYERS if hasattr(module, name)), None)
        norm = getattr(module, "bn", None)
        if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            _fold(layer, norm)
            module.bn = nn.Identity()
    left = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise UserError(f"batch normalisation {left[0]} follows no layer that could take it up: it cannot be exported")
    return model


@torch.no_grad()
def _fold(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = _or(norm.weight, 1.0, norm.running_var) / (norm.running_var.double() + norm.eps).sqrt()
    bias = _or(layer.bias, 0.0, norm.running_mean) - norm.running_mean.double()
    shift = _or(norm.bias, 0.0, norm.running_mean) + bias * factor
    weight = layer.weight.double() * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=False)


def _or(value: Tensor | None, default: float, like: Tensor) -> Tensor:
    """``value`` as float64, or a tensor full of ``default`` where there is none."""
    return torch.full_like(like, default, dtype=torch.float64) if value is None else value.double()
