"""How the losses of several heads on one trunk become one number, and how far their gradients contradict each other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from mnvision.errors import UserError

_LEAST = 1e-12


class Weighting(nn.Module, ABC):
    """The joint loss of a step. A head without a batch in the step takes no part in it.

    Args:
        heads: Names, at least one.

    Attributes:
        names: Of the heads.
        watches_trunk: Whether :meth:`balance` has to be called in every step.
    """

    watches_trunk: ClassVar[bool] = False

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(heads)

    @abstractmethod
    def weights(self) -> Tensor:
        """``(T,)`` float32: the factor of each head's loss at present, in the order of ``names``; no gradient."""

    @abstractmethod
    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The joint loss of scalar losses by head."""

    def balance(self, losses: Mapping[str, Tensor], shared: Tensor) -> None:
        """Look at the gradients of a step's losses; only for weights that watch the trunk."""
        raise NotImplementedError

    def present(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Losses of a step and the numbers of their heads, ``(t,)`` each."""
        values = torch.stack([loss.float() for loss in losses.values()])
        places = [self.names.index(name) for name in losses]
        return values, torch.tensor(places, device=values.device)


class FixedWeights(Weighting):
    """The sum of ``weight * loss``.

    Args:
        heads: Names.
        weights: By name, above 0; 1 for heads that are not in it.

    Raises:
        UserError: A weight of an unknown head, or one that is no number above 0.
    """

    factors: Tensor

    def __init__(self, heads: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        super().__init__(heads)
        found = per_head("multitask.weights", weights, heads)
        self.register_buffer("factors", torch.tensor([found.get(name, 1.0) for name in heads]), persistent=False)

    def weights(self) -> Tensor:
        """As given."""
        return self.factors

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The joint loss of scalar losses by head."""
        values, places = self.present(losses)
        return (self.factors[places] * values).sum()


class UncertaintyWeights(Weighting):
    """The sum of ``exp(-s) / 2 * loss + s / 2`` with a learned ``s`` per head, the logarithm of its variance.

    Source: Kendall, Gal and Cipolla 2018, https://arxiv.org/abs/1705.07115, equation 7 with ``s = log(sigma^2)`` as
    their section 3.2 advises. For a cross-entropy their equation 10 has ``exp(-s)`` in place of ``exp(-s) / 2``; that
    is the same up to a constant factor of the loss, which ``s`` takes up. At rest each head's weighted loss is 1/2.
    A head begins with ``s = 0``, hence at a weight of 1/2. No weight decay touches ``s``.

    Args:
        heads: Names.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(heads)
        self.log_variances = nn.Parameter(torch.zeros(len(heads)))

    def weights(self) -> Tensor:
        """``exp(-s) / 2``."""
        return self.log_variances.detach().neg().exp() / 2

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The joint loss of scalar losses by head."""
        values, places = self.present(losses)
        s = self.log_variances[places]
        return ((-s).exp() * values + s).sum() / 2


class GradNorm(Weighting):
    """Weights that let all heads pull at the trunk alike, those that have learned less a little harder.

    Source: Chen et al. 2018, https://arxiv.org/abs/1711.02257, equations 1 and 2, algorithm 1. With ``G_i`` the norm
    of the gradient of ``w_i * L_i`` in the last shared layer, the weights go down the gradient of ``sum |G_i - mean(G)
    * r_i ** alpha|``, whose target is held constant; ``r_i`` is ``L_i / L_i(first step)`` over its mean. They sum to
    the number of heads. What the paper leaves open: a step is taken in ``log(w_i)``, so that weights stay above 0,
    and in units of ``mean(G)``, so that ``rate`` does not depend on the scale of the losses.

    Of a head that is absent from a step the last norm and loss count. In several processes all take the mean.

    Args:
        heads: Names.
        alpha: Strength of the pull towards equal learning, at least 0. 0 makes the norms equal; the paper took 1.5
            for heads that differ much and 0.12 for heads alike.
        rate: Learning rate of the weights, above 0.

    Raises:
        UserError: A value is out of range.
    """

    watches_trunk: ClassVar[bool] = True

    factors: Tensor
    norms: Tensor
    losses: Tensor
    first: Tensor
    seen: Tensor

    def __init__(self, heads: Sequence[str], alpha: float = 1.5, rate: float = 0.025) -> None:
        super().__init__(heads)
        check_number("multitask.gradnorm.alpha", alpha, least=0.0)
        check_number("multitask.gradnorm.rate", rate)
        self.alpha, self.rate = alpha, rate
        for name in ("factors", "norms", "losses", "first"):
            self.register_buffer(name, torch.ones(len(heads)))
        self.register_buffer("seen", torch.zeros(len(heads), dtype=torch.bool))

    def weights(self) -> Tensor:
        """They sum to the number of heads."""
        return self.factors

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The joint loss of scalar losses by head; weights are constants in it."""
        values, places = self.present(losses)
        return (self.factors[places].clone() * values).sum()

    def balance(self, losses: Mapping[str, Tensor], shared: Tensor) -> None:
        """Take one step with the weights; before the losses' graph is freed.

        Args:
            losses: Of the step, by head, before weighting.
            shared: Weights of the last layer that all heads share.
        """
        gradients = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in losses.values()]
        with torch.no_grad():
            values, places = self.present(losses)
            norms = torch.stack([gradient.float().norm() for gradient in gradients])
            measured = mean_over_processes(torch.stack([norms, values.detach()]))
            self.norms[places], self.losses[places] = measured[0], measured[1]
            self.first[places] = torch.where(self.seen[places], self.first[places], measured[1])
            self.seen[places] = True
            changed = self.factors * (-self.rate * self.slope() / self._mean().clamp(min=_LEAST)).exp()
            changed *= len(self.names) / changed.sum()
            self.factors.copy_(torch.where(self.seen.all(), changed, self.factors))

    def targets(self) -> Tensor:
        """``(T,)``: what the gradients' norms should be."""
        learned = self.losses / self.first.clamp(min=_LEAST)
        return self._mean() * (learned / learned.mean().clamp(min=_LEAST)) ** self.alpha

    def slope(self) -> Tensor:
        """``(T,)``: of ``sum |G_i - target_i|`` with respect to ``log(w_i)``."""
        pulls = self.factors * self.norms
        return (pulls - self.targets()).sign() * pulls

    def _mean(self) -> Tensor:
        return (self.factors * self.norms).mean()


WEIGHTINGS = ("fixed", "uncertainty", "gradnorm")


def make_weighting(
    kind: str, heads: Sequence[str], weights: Mapping[str, float] | None, gradnorm: Mapping[str, float]
) -> Weighting:
    """A way to weigh heads by its name.

    Args:
        kind: One of ``WEIGHTINGS``.
        heads: Names.
        weights: For "fixed", see :class:`FixedWeights`.
        gradnorm: For "gradnorm", ``alpha`` and ``rate``.

    Raises:
        UserError: An unknown name, or fixed weights for another kind.
    """
    if kind not in WEIGHTINGS:
        raise UserError(f"multitask.weighting={kind}: choose {', '.join(WEIGHTINGS)}")
    if kind == "fixed":
        return FixedWeights(heads, weights)
    if weights:
        raise UserError(f"multitask.weights are for multitask.weighting=fixed; {kind} finds its own: leave them out")
    return UncertaintyWeights(heads) if kind == "uncertainty" else GradNorm(heads, **gradnorm)


def conflicts(losses: Mapping[str, Tensor], shared: Iterable[Tensor]) -> dict[tuple[str, str], Tensor]:
    """Cosines between the gradients of heads: below 0 where a step for one head undoes that of the other.

    Args:
        losses: Scalar losses by head; their graph is kept.
        shared: Parameters of the trunk; for one that a head does not use, its gradient is zero.

    Returns:
        By pair of heads, scalars in [-1, 1]; 0 where a gradient is zero. Empty for fewer than two heads.
    """
    parameters, flat = list(shared), {}
    if len(losses) < 2 or not parameters:
        return {}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        flat[name] = torch.cat([part.flatten().float() for part in parts])
    pairs = combinations(flat, 2)
    return {(a, b): torch.cosine_similarity(flat[a], flat[b], dim=0, eps=_LEAST) for a, b in pairs}


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of the same numbers in all processes of a run; ``values`` itself in a single one."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def per_head(key: str, values: Mapping[str, Any] | None, heads: Sequence[str]) -> dict[str, float]:
    """Numbers above 0 by head.

    Raises:
        UserError: A head that there is not, or a value that is no number above 0.
    """
    found = dict(values or {})
    unknown = [name for name in found if name not in heads]
    if unknown:
        raise UserError(f"{key}: there is no head {unknown[0]!r} to train; the heads are {', '.join(heads)}")
    for name, value in found.items():
        check_number(f"{key}.{name}", value)
    return {name: float(value) for name, value in found.items()}


def check_number(key: str, value: Any, least: float | None = None) -> None:
    """Refuse what is no finite number above 0, or none of at least ``least``.

    Raises:
        UserError: It is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < (0 if least is None else least) or (least is None and value == 0):
        wanted = "above 0" if least is None else f"of at least {least:g}"
        raise UserError(f"{key}={value!r}: give a number {wanted}")
