"""Losses for wrong labels against their formulas, written out in float64, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnvision.errors import UserError
from mnvision.losses.noise_robust import BootstrappedCrossEntropy, GeneralizedCrossEntropy


def batch(classes: int = 7, rows: int = 12, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = spread * torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def probabilities(logits: torch.Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy())
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("beta", [0.8, 0.95, 0.3])
def test_bootstrapping_by_the_formula(beta: float):
    logits, labels = batch()
    p, one_hot = probabilities(logits), np.eye(7)
    for mode, own in (("soft", p), ("hard", one_hot[p.argmax(axis=1)])):
        targets = beta * one_hot[labels.numpy()] + (1 - beta) * own
        expected = -(targets * np.log(p)).sum(axis=1).mean()
        assert float(BootstrappedCrossEntropy(mode, beta)(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_soft_bootstrapping_lowers_the_entropy():
    """Its gradient is cross-entropy's and the entropy's, since the answer in the target is not held fixed."""
    logits, labels = batch()
    logits.requires_grad_()
    (own,) = torch.autograd.grad(BootstrappedCrossEntropy("soft", 0.9)(logits, labels), logits)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    (expected,) = torch.autograd.grad(0.9 * F.cross_entropy(logits, labels) + 0.1 * entropy, logits)
    torch.testing.assert_close(own, expected)


def test_the_papers_shares_are_the_defaults():
    assert BootstrappedCrossEntropy().beta == 0.8
    assert BootstrappedCrossEntropy("soft").beta == 0.95


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_by_the_formula(q: float):
    logits, labels = batch()
    p = probabilities(logits)[np.arange(12), labels.numpy()]
    loss = float(GeneralizedCrossEntropy(q)(logits, labels))
    assert loss == pytest.approx(((1 - p**q) / q).mean(), rel=1e-5)
    assert 0 < loss < 1 / q


def test_a_disbelieved_label_counts_by_its_probability():
    """The gradient is cross-entropy's times p ** q (the paper's section 3.2)."""
    logits, labels = batch(rows=1)
    logits.requires_grad_()
    (own,) = torch.autograd.grad(GeneralizedCrossEntropy(0.7)(logits, labels), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    p = float(probabilities(logits.detach())[0, labels[0]])
    torch.testing.assert_close(own, plain * p**0.7)


@pytest.mark.parametrize(
    "loss", [BootstrappedCrossEntropy("hard", 1), BootstrappedCrossEntropy("soft", 1), GeneralizedCrossEntropy(1e-6)]
)
def test_the_limit_is_cross_entropy(loss: nn.Module):
    logits, labels = batch()
    torch.testing.assert_close(loss(logits, labels), F.cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [BootstrappedCrossEntropy(), BootstrappedCrossEntropy("soft"), GeneralizedCrossEntropy()]
)
def test_certain_answers_and_half_precision_stay_finite(loss: nn.Module):
    logits = torch.tensor([[500.0, -500.0, 0.0], [-500.0, 500.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    value = loss(logits, torch.tensor([0, 0]))
    assert value.dtype == torch.float32
    assert math.isfinite(value.item())
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan"), True, "much"])
def test_shares_out_of_range(value):
    with pytest.raises(UserError, match=r"loss.q="):
        GeneralizedCrossEntropy(value)
    with pytest.raises(UserError, match=r"loss.beta="):
        BootstrappedCrossEntropy("soft", value)


def test_unknown_mode():
    with pytest.raises(UserError, match="give soft or hard"):
        BootstrappedCrossEntropy("medium")
