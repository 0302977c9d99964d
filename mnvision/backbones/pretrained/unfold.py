"""Statistics for batch normalisation that was folded away before its weights were published.

Weights from .tflite files compute the right thing in evaluation, with batch normalisation as the identity plus a
bias. In training, though, it subtracts the batch's mean and divides by its deviation, and the network would be
another one from the first step on. So what the layers see is measured on some pictures; mean and variance are set to
that, and scale and shift such that evaluation gives what it gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PICTURES = 256


def folded_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Layers with mean 0, variance 1 and a scale of ``sqrt(1 + eps)``: those that only add a bias.

    Layers that were never trained have a scale of 1 and are not among them.
    """
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and _is_folded(layer)]


def measure_folded(model: nn.Module, batches: Iterable[Mapping[str, Any]], pictures: int = PICTURES) -> int:
    """Give the folded layers of a model the statistics of its training pictures; its answers stay as they are.

    Args:
        model: Takes uint8 images ``(B, 3, H, W)``; changed in place, its mode kept.
        batches: Mappings with ``images``, as the training loader gives them.
        pictures: How many are looked at, at least; fewer if there are no more.

    Returns:
        The number of pictures; 0, and nothing was done, if no layer is folded.
    """
    sums = {layer: _Sums(layer.num_features) for layer in folded_norms(model)}
    if not sums:
        return 0
    hooks = [layer.register_forward_pre_hook(sums[layer].add) for layer in sums]
    seen, training = 0, model.training
    try:
        with torch.inference_mode():
            model.eval()
            for batch in batches:
                model(batch["images"])
                seen += len(batch["images"])
                if seen >= pictures:
                    break
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    for layer, values in sums.items():
        _unfold(layer, *values.mean_and_variance())
    return seen


class _Sums:
    """Sums over pictures and positions of what one layer sees, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook."""
        values = inputs[0].detach().double()
        self.count += values.numel() // values.shape[1]
        self.total += values.sum((0, 2, 3)).cpu()
        self.squares += values.square().sum((0, 2, 3)).cpu()

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """``(C,)`` each."""
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


def _is_folded(layer: nn.BatchNorm2d) -> bool:
    if layer.running_mean is None or layer.running_var is None or not layer.affine:
        return False
    scale = (1.0 + layer.eps) ** 0.5
    identity = bool((layer.running_mean == 0).all()) and bool((layer.running_var == 1).all())
    return identity and bool(((layer.weight - scale).abs() < 1e-6).all())


def _unfold(layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    with torch.no_grad():
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.weight.copy_((variance + layer.eps).sqrt())
        layer.bias.add_(mean.to(layer.bias))
