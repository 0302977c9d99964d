"""Parameter groups, how trained weights are fine-tuned, and learning-rate schedules.

Schedules are factors of the optimizer's own learning rate, stepped after every optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mnvision.errors import UserError

SCALE = "lr_scale"
"""Key of a parameter group whose learning rate is that part of the optimizer's."""
BACKBONE = "backbone"


@dataclass(frozen=True)
class FineTuning:
    """How much of a trained backbone changes.

    Attributes:
        layer_decay: In (0, 1]. The head learns at the optimizer's rate, the backbone's last block at ``layer_decay``
            times that, the one before at ``layer_decay ** 2`` times, and so on to the stem (as in ELECTRA,
            https://arxiv.org/abs/2003.10555, and BEiT). 1 treats all alike.
        freeze: What stays as it is, weights and BatchNorm statistics: "backbone", a number n for the stem and the first
            n blocks, or None for nothing.

    Raises:
        UserError: A value is out of range.
    """

    layer_decay: float = 1.0
    freeze: int | str | None = None

    def __post_init__(self) -> None:
        decay, freeze = self.layer_decay, self.freeze
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
            raise UserError(f"fine_tuning.layer_decay={decay!r}: give a number above 0 and at most 1")
        if freeze is not None and freeze != BACKBONE and (type(freeze) is not int or freeze < 1):
            raise UserError(
                f"fine_tuning.freeze={freeze!r}: give backbone, a number of blocks of at least 1, or null for none"
            )

    def frozen(self, backbone: Any) -> list[nn.Module]:
        """The parts of a backbone that stay as they are.

        Raises:
            UserError: The backbone has fewer blocks than are to be frozen.
        """
        if self.freeze is None:
            return []
        count = len(backbone.blocks)
        if isinstance(self.freeze, int) and self.freeze > count:
            raise UserError(
                f"fine_tuning.freeze={self.freeze}: the backbone has {count} blocks; give {count} at most, or backbone"
            )
        return [backbone] if self.freeze == BACKBONE else [backbone.stem, *backbone.blocks[: self.freeze]]

    def scales(self, backbone: Any) -> dict[int, float]:
        """Part of the learning rate for each of the backbone's parameters, by its ``id``; empty where all is 1."""
        if self.layer_decay == 1:
            return {}
        layers = [backbone.stem, *backbone.blocks]
        return {
            id(parameter): self.layer_decay ** (len(layers) - depth)
            for depth, layer in enumerate(layers)
            for parameter in layer.parameters()
        }


def parameter_groups(module: nn.Module, scales: Mapping[int, float] | None = None) -> list[dict[str, Any]]:
    """Parameters that weight decay applies to and those it must leave alone, in two groups for every learning rate.

    Decay touches only the kernels of full and 1x1 convolutions and of linear layers. BatchNorm, biases and
    depthwise kernels have none (MobileNet paper, section 3.1: "very little or no weight decay on the depthwise
    filters since there are so few parameters in them").

    Args:
        module: Its parameters that are trained.
        scales: From :meth:`FineTuning.scales`; 1 for parameters that are not in it.

    Returns:
        The highest rate first. Groups of another rate than the optimizer's have a key ``lr_scale``, which
        :func:`scale_rates` carries out.
    """
    scales = scales or {}
    depthwise = {
        id(layer.weight)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales.get(id(p), 1.0) for p in trained}, reverse=True):
        members = [p for p in trained if scales.get(id(p), 1.0) == scale]
        decayed = [p for p in members if p.ndim > 1 and id(p) not in depthwise]
        plain = [p for p in members if p.ndim <= 1 or id(p) in depthwise]
        rate = {} if scale == 1 else {SCALE: scale}
        groups += [{"params": decayed, **rate}, {"params": plain, "weight_decay": 0.0, **rate}]
    return [group for group in groups if group["params"]]


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply the learning rate of every group by its ``lr_scale``; once, before a schedule is made."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get(SCALE, 1.0)


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
