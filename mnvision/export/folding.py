"""Batch normalisation taken into the layer before it, which an exported file then no longer has to compute."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from mnvision.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
LAYERS = ("conv", "fc")
"""Names of the layers that a batch normalisation called ``bn`` may follow inside one module."""


def folded(model: Model) -> Model:
    """A copy of a model in eval mode without batch normalisation; its answers differ by rounding only.

    Args:
        model: Its modules hold a ``conv`` or ``fc`` and a ``bn`` that follows it, as all of ``mnvision``'s do.

    Raises:
        UserError: A batch normalisation stands elsewhere, so that it would be left in.
    """
    model = deepcopy(model).eval()
    for parent, _, layer, norm in normalised_layers(model):
        if norm is not None:
            with torch.no_grad():
                weight, bias = folded_parameters(layer, norm)
            assert bias is not None
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.bias = nn.Parameter(bias, requires_grad=False)
            parent.bn = nn.Identity()
    return model


def normalised_layers(model: nn.Module) -> list[tuple[nn.Module, str, Layer, Norm | None]]:
    """All convolutions and linear layers, in the order of the model's modules.

    Returns:
        For each the module that holds it, its name there, itself, and the batch normalisation behind it.

    Raises:
        UserError: A batch normalisation stands elsewhere.
    """
    found: list[tuple[nn.Module, str, Layer, Norm | None]] = []
    for parent in model.modules():
        norm = getattr(parent, "bn", None)
        first = next((name for name in LAYERS if hasattr(parent, name)), None)
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                behind = norm if name == first and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) else None
                found.append((parent, name, layer, behind))
    taken = {id(norm) for _, _, _, norm in found}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in taken:
            raise UserError(f"batch normalisation {name} follows no layer that could take it up: it cannot be exported")
    return found


def folded_parameters(layer: Layer, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer with the batch normalisation behind it; gradients pass through.

    In eval mode batch normalisation is ``y = (x - mean) * weight / sqrt(var + eps) + bias``, so the layer before it
    takes the factor into its weights and the rest into its bias. Computed in float64.

    Returns:
        In the layer's own type: ``(C, ...)``, and ``(C,)``; the bias is None only where there is neither.
    """
    if norm is None:
        return layer.weight, layer.bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = _or(norm.weight, 1.0, norm.running_var) / (norm.running_var.double() + norm.eps).sqrt()
    bias = _or(layer.bias, 0.0, norm.running_mean) - norm.running_mean.double()
    shift = _or(norm.bias, 0.0, norm.running_mean) + bias * factor
    weight = layer.weight.double() * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return weight.to(layer.weight.dtype), shift.to(layer.weight.dtype)


def _or(value: Tensor | None, default: float, like: Tensor) -> Tensor:
    """``value`` as float64, or a tensor full of ``default`` where there is none."""
    return torch.full_like(like, default, dtype=torch.float64) if value is None else value.double()
