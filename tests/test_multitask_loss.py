"""The joint loss of several heads against hand-computed values, autograd and the papers' own equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.losses.joint import (
    FixedWeights,
    GradNorm,
    UncertaintyWeights,
    conflicts,
    make_weighting,
    per_head,
)
from mnvision.metrics.joint import Monitored, joint_score
from mnvision.optim import parameter_groups

HEADS = ["ssd", "attributes", "embedding"]


def numbers(*values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(HEADS, values)}


def test_fixed_weights_are_factors_and_a_head_without_a_batch_counts_nothing():
    weighting = FixedWeights(HEADS, {"ssd": 2.0, "embedding": 0.5})
    assert weighting(numbers(1.0, 3.0, 4.0)).item() == 2 * 1 + 3 + 0.5 * 4
    assert weighting({"embedding": torch.tensor(4.0)}).item() == 2
    assert weighting.weights().tolist() == [2.0, 1.0, 0.5]
    assert not weighting.state_dict()


def test_uncertainty_is_the_papers_equation_with_its_gradient():
    """Kendall et al., equation 7: the sum of L / (2 sigma^2) + log(sigma)."""
    weighting = UncertaintyWeights(HEADS)
    sigma = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        weighting.log_variances.copy_((sigma**2).log())
    values = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    loss = weighting(numbers(*values.tolist()))
    assert loss.item() == pytest.approx((values / (2 * sigma**2) + sigma.log()).sum().item(), rel=1e-6)
    loss.backward()
    gradient = weighting.log_variances.grad
    assert gradient is not None
    # d/ds of exp(-s) L / 2 + s / 2
    assert torch.allclose(gradient.double(), (1 - values / sigma**2) / 2, atol=1e-6)
    assert torch.allclose(weighting.weights().double(), 1 / (2 * sigma**2))


def test_uncertainty_rests_where_every_weighted_loss_is_one_half():
    weighting = UncertaintyWeights(["ssd", "attributes"])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        weighting({"ssd": torch.tensor(8.0), "attributes": torch.tensor(0.2)}).backward()
        optimizer.step()
    assert torch.allclose(weighting.weights() * torch.tensor([8.0, 0.2]), torch.full((2,), 0.5), atol=1e-4)


def test_no_weight_decay_touches_variances():
    groups = parameter_groups(UncertaintyWeights(HEADS))
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_a_head_that_is_absent_keeps_its_variance():
    weighting = UncertaintyWeights(HEADS)
    weighting({"attributes": torch.tensor(5.0)}).backward()
    gradient = weighting.log_variances.grad
    assert gradient is not None
    assert gradient.tolist() == [0.0, -2.0, 0.0]


def test_gradnorm_by_hand():
    """Norms 1 and 3 at equal weights, alpha 0: both should be 2; a step of ``rate / mean * +-G`` in the logarithms."""
    weighting = GradNorm(["ssd", "attributes"], alpha=0.0, rate=0.1)
    shared = torch.zeros(2, requires_grad=True)
    losses = {"ssd": shared[0] + 5, "attributes": 3 * shared[1] + 7}
    assert weighting(losses).item() == 12
    weighting.balance(losses, shared)
    assert weighting.targets().mean().item() == pytest.approx((weighting.factors * weighting.norms).mean().item())
    raw = [math.exp(0.1 / 2 * 1), math.exp(-0.1 / 2 * 3)]
    assert weighting.weights().tolist() == pytest.approx([2 * value / sum(raw) for value in raw])
    assert weighting.norms.tolist() == [1.0, 3.0]
    assert weighting.first.tolist() == [5.0, 7.0]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_goes_down_the_papers_loss(alpha: float):
    """Its slope is that of equation 2, differentiated through the gradient norms by autograd."""
    torch.manual_seed(0)
    trunk = nn.Linear(6, 5)
    layers = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 4)])
    x, targets = torch.randn(7, 6), torch.randn(3, 7, 4)
    weighting = GradNorm(HEADS, alpha=alpha)
    factors = torch.tensor([0.4, 2.1, 0.5])

    def losses() -> dict[str, Tensor]:
        features = trunk(x).relu()
        pairs = zip(HEADS, layers, targets)
        return {name: nn.functional.mse_loss(layer(features), target) for name, layer, target in pairs}

    weighting.balance(losses(), trunk.weight)  # the first step's losses
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(0.7)
        weighting.factors.copy_(factors)
    now = losses()
    weighting.norms.copy_(
        torch.stack([torch.autograd.grad(v, trunk.weight, retain_graph=True)[0].norm() for v in now.values()])
    )
    weighting.losses.copy_(torch.stack([value.detach() for value in now.values()]))

    logs = factors.log().requires_grad_()
    pulls = torch.stack(
        [
            torch.autograd.grad(w * v, trunk.weight, create_graph=True)[0].norm()
            for w, v in zip(logs.exp(), now.values())
        ]
    )
    learned = weighting.losses / weighting.first
    wanted = (pulls.mean() * (learned / learned.mean()) ** alpha).detach()
    (slope,) = torch.autograd.grad((pulls - wanted).abs().sum(), logs)
    assert torch.allclose(weighting.slope(), slope, rtol=1e-5)
    assert torch.allclose(weighting.targets(), wanted, rtol=1e-5)


def test_gradnorm_makes_heads_of_very_different_scale_pull_alike():
    weighting = GradNorm(["ssd", "attributes"], alpha=0.0)
    shared = torch.zeros(2, requires_grad=True)
    for _ in range(400):
        losses = {"ssd": 100 * shared[0] + 1, "attributes": shared[1] + 1}
        weighting.balance(losses, shared)
    pulls = weighting.weights() * torch.tensor([100.0, 1.0])
    assert pulls[0].item() == pytest.approx(pulls[1].item(), rel=0.05)
    assert weighting.weights().sum().item() == pytest.approx(2)


def test_gradnorm_waits_for_every_head_and_remembers_absent_ones():
    weighting, shared = GradNorm(["ssd", "attributes"], alpha=0.0), torch.zeros(2, requires_grad=True)
    weighting.balance({"ssd": shared[0] + 1}, shared)
    assert weighting.weights().tolist() == [1.0, 1.0]
    weighting.balance({"attributes": 3 * shared[1] + 1}, shared)
    first = weighting.weights().tolist()
    assert first[0] > 1 > first[1]
    again = GradNorm(["ssd", "attributes"], alpha=0.0)
    again.load_state_dict(weighting.state_dict())
    for one in (weighting, again):
        one.balance({"ssd": shared[0] + 1}, shared)
    assert weighting.weights().tolist() == again.weights().tolist() != first


def test_a_step_with_the_weights_leaves_the_joint_loss_as_it_was():
    weighting, shared = GradNorm(["ssd", "attributes"]), torch.zeros(2, requires_grad=True)
    losses = {"ssd": 2 * shared[0] + 1, "attributes": shared[1] + 1}
    joint = weighting(losses)
    weighting.balance(losses, shared)
    joint.backward()
    assert shared.grad is not None
    assert shared.grad.tolist() == [2.0, 1.0]


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_conflicts_are_cosines(one: list[float], other: list[float]):
    shared = torch.zeros(4, requires_grad=True)
    a, b = torch.tensor(one), torch.tensor(other)
    size = a.double().norm() * b.double().norm()
    assume(size == 0 or size > 1e-9)  # below, float32 has no direction left
    found = conflicts({"ssd": (a * shared).sum(), "attributes": (b * shared).sum()}, [shared])
    expected = (a.double() @ b.double() / size).item() if size > 0 else 0.0
    assert list(found) == [("ssd", "attributes")]
    assert found["ssd", "attributes"].item() == pytest.approx(expected, abs=1e-3)


def test_parameters_that_a_head_does_not_use_count_as_zero_and_the_graph_is_kept():
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    losses = {"ssd": first.sum() + second.sum(), "attributes": first.sum(), "embedding": -second.sum()}
    found = {pair: value.item() for pair, value in conflicts(losses, [first, second]).items()}
    assert found == pytest.approx(
        {
            ("ssd", "attributes"): 0.5**0.5,
            ("ssd", "embedding"): -(0.5**0.5),
            ("attributes", "embedding"): 0.0,
        }
    )
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert not conflicts({"ssd": torch.tensor(1.0)}, [first])


def test_the_joint_score_is_relative_and_turns_metrics_that_fall():
    monitored = {
        "ssd": Monitored("val/AP", "max", reference=0.5),
        "geolocation": Monitored("val/median_km", "min", reference=200.0, weight=3.0),
    }
    assert joint_score({"ssd": 0.5, "geolocation": 200.0}, monitored) == 1
    assert joint_score({"ssd": 0.25, "geolocation": 100.0}, monitored) == (0.5 + 3 * 2.0) / 4
    assert math.isnan(joint_score({"ssd": 0.25}, monitored))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "equal"}, "multitask.weighting=equal: choose fixed, uncertainty, gradnorm"),
        (
            {"kind": "fixed", "weights": {"sdd": 1.0}},
            "multitask.weights: there is no head 'sdd' to train; the heads are",
        ),
        ({"kind": "fixed", "weights": {"ssd": 0.0}}, "multitask.weights.ssd=0.0: give a number above 0"),
        ({"kind": "fixed", "weights": {"ssd": True}}, "multitask.weights.ssd=True: give a number above 0"),
        ({"kind": "uncertainty", "weights": {"ssd": 2.0}}, "multitask.weights are for multitask.weighting=fixed"),
        (
            {"kind": "gradnorm", "gradnorm": {"alpha": -1.0, "rate": 0.1}},
            "multitask.gradnorm.alpha=-1.0: give a number of",
        ),
        (
            {"kind": "gradnorm", "gradnorm": {"alpha": 1.0, "rate": math.nan}},
            "multitask.gradnorm.rate=nan: give a number",
        ),
    ],
)
def test_wrong_options_end_in_one_line(options: dict, text: str):
    with pytest.raises(UserError) as caught:
        make_weighting(**{"heads": HEADS, "weights": None, "gradnorm": {"alpha": 1.5, "rate": 0.025}, **options})
    assert text in str(caught.value)


def test_references_of_unknown_heads_are_refused():
    with pytest.raises(UserError, match=r"multitask.reference: there is no head 'sdd' to train"):
        per_head("multitask.reference", {"sdd": 0.5}, HEADS)
