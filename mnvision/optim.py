"""Parameter groups and learning-rate schedules.

Schedules are factors of the optimizer's own learning rate, stepped after every optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mnvision.errors import UserError


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: parameters that weight decay applies to, and those it must leave alone.

    Decay touches only the kernels of full and 1x1 convolutions and of linear layers. BatchNorm, biases and
    depthwise kernels have none (MobileNet paper, section 3.1: "very little or no weight decay on the depthwise
    filters since there are so few parameters in them").
    """
    depthwise = {
        id(layer.weight)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in depthwise]
    plain = [p for p in trained if p.ndim <= 1 or id(p) in depthwise]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _scheduled(optimizer: Optimizer, warmup_steps: int, total_steps: int, factor: Callable[[int], float]) -> LambdaLR:
    # A run shorter than its warm-up would never reach its learning rate: warm up over a tenth of it at most.
    warmup = min(warmup_steps, total_steps // 10)

    def scale(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else factor(step - warmup)

    return LambdaLR(optimizer, scale)


def _warmup_steps(warmup_epochs: float, steps_per_epoch: int) -> int:
    if warmup_epochs < 0:
        raise UserError(f"scheduler.warmup_epochs={warmup_epochs}: give 0 or more")
    return round(warmup_epochs * steps_per_epoch)


def cosine(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 1.0,
    final_factor: float = 0.0,
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to ``final_factor`` of the learning rate at the last step."""
    warmup = min(_warmup_steps(warmup_epochs, steps_per_epoch), total_steps // 10)
    span = max(total_steps - warmup, 1)

    def factor(step: int) -> float:
        return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * min(step / span, 1.0)))

    return _scheduled(optimizer, warmup, total_steps, factor)


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    milestones: tuple[float, ...] = (0.67, 0.89),
    gamma: float = 0.1,
    warmup_epochs: float = 1.0,
) -> LambdaLR:
    """Linear warm-up, then the learning rate times ``gamma`` at each share of the run in ``milestones``."""
    if any(not 0 < share < 1 for share in milestones):
        raise UserError(f"scheduler.milestones={list(milestones)}: shares of the run, each between 0 and 1")
    warmup = min(_warmup_steps(warmup_epochs, steps_per_epoch), total_steps // 10)
    steps = [share * total_steps - warmup for share in milestones]
    return _scheduled(optimizer, warmup, total_steps, lambda step: gamma ** sum(step >= s for s in steps))


def exponential(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    gamma: float = 0.94,
    every_epochs: float = 2.5,
    staircase: bool = True,
    warmup_epochs: float = 0.0,
) -> LambdaLR:
    """The learning rate times ``gamma`` every ``every_epochs`` (TF-slim's trainer: x0.94 every 2.5 epochs)."""
    if not 0 < gamma <= 1 or every_epochs <= 0:
        raise UserError(f"scheduler.gamma={gamma}, every_epochs={every_epochs}: 0 < gamma <= 1, every_epochs > 0")
    period = every_epochs * steps_per_epoch

    def factor(step: int) -> float:
        periods = step / period
        return gamma ** (math.floor(periods) if staircase else periods)

    return _scheduled(optimizer, _warmup_steps(warmup_epochs, steps_per_epoch), total_steps, factor)


def constant(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup_epochs: float = 0.0) -> LambdaLR:
    """Linear warm-up, then the optimizer's own learning rate."""
    return _scheduled(optimizer, _warmup_steps(warmup_epochs, steps_per_epoch), total_steps, lambda step: 1.0)
