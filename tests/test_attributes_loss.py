"""The masked loss against PyTorch's own on the known labels alone; positive weights; the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from mnvision.errors import UserError
from mnvision.heads.attributes import AttributeHead, AttributeScores
from mnvision.losses.attributes import AttributeLoss, masked_cross_entropy

LABELS = np.array([[1, 0, -1], [0, 0, 1], [-1, 1, 1], [1, 0, 1]], np.int8)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
def test_it_is_the_mean_over_known_labels(seed: int, dtype: torch.dtype, weighted: bool):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, generator=generator).mul(4).to(dtype)
    labels = torch.randint(-1, 2, (5, 3), generator=generator, dtype=torch.int8)
    weights = torch.rand(3, generator=generator) + 0.5 if weighted else None
    loss = masked_cross_entropy(logits, labels, weights)
    assert loss.dtype == torch.float32
    terms = [
        binary_cross_entropy_with_logits(
            logits[row, column].float(),
            labels[row, column].float(),
            pos_weight=None if weights is None else weights[column],
        )
        for row, column in (labels >= 0).nonzero().tolist()
    ]
    expected = torch.stack(terms).mean() if terms else torch.tensor(0.0)
    torch.testing.assert_close(loss, expected)


def test_missing_labels_take_no_part_in_the_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    masked_cross_entropy(logits, torch.from_numpy(LABELS)).backward()
    assert logits.grad is not None
    assert ((logits.grad == 0).numpy() == (LABELS < 0)).all()
    nothing = torch.randn(2, 3, requires_grad=True)
    loss = masked_cross_entropy(nothing, torch.full((2, 3), -1))
    loss.backward()
    assert loss == 0
    assert nothing.grad is not None
    assert (nothing.grad == 0).all()


def test_balanced_weights_are_no_over_yes():
    loss = AttributeLoss("balanced", max_weight=2.0)
    labels = np.array([[1, 0, -1, 1], [0, 0, -1, 1], [0, 1, -1, 1], [-1, 0, -1, 1]], np.int8)
    loss.prepare("abcd", labels)
    # 2 no, 1 yes; 3 no, 1 yes, but at most 2; nothing known; never no.
    assert loss.positive_weights.tolist() == [2.0, 2.0, 1.0, 1.0]
    assert not loss.state_dict()
    logits, target = torch.randn(4, 4), torch.from_numpy(labels)
    assert loss(logits, target) == masked_cross_entropy(logits, target, torch.tensor([2.0, 2.0, 1.0, 1.0]))


def test_weights_by_name():
    loss = AttributeLoss({"b": 3})
    loss.prepare("abc", LABELS)
    assert loss.positive_weights.tolist() == [1.0, 3.0, 1.0]
    plain = AttributeLoss()
    plain.prepare("abc", LABELS)
    assert plain.positive_weights is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"positive_weights": "equal"}, "positive_weights=equal: give null, balanced"),
        ({"positive_weights": {"a": 0}}, "a=0 must be a number above 0"),
        ({"positive_weights": {"a": "much"}}, "a='much' must be"),
        ({"max_weight": float("nan")}, "max_weight=nan"),
    ],
)
def test_weights_that_are_none_are_refused(arguments, text):
    with pytest.raises(UserError, match=text):
        AttributeLoss(**arguments)


def test_a_weight_for_nothing_and_labels_of_another_shape_are_refused():
    with pytest.raises(UserError, match="no attribute 'Bold'; theirs are a, b, c"):
        AttributeLoss({"Bold": 2.0}).prepare("abc", LABELS)
    with pytest.raises(UserError, match=r"labels of shape \(2, 3\) for logits of shape \(2, 4\)"):
        masked_cross_entropy(torch.zeros(2, 4), torch.zeros(2, 3))


def test_the_head_pools_the_last_map_and_the_decoder_scores_each_logit_alone():
    head = AttributeHead([8, 16], num_classes=5, dropout=0.5).eval()
    maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)]
    logits = head(maps)
    torch.testing.assert_close(logits, maps[1].flatten(2).mean(2) @ head.fc.weight.T + head.fc.bias)
    scores = AttributeScores()(logits.to(torch.bfloat16))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.sigmoid(logits), atol=1e-2, rtol=0)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"num_classes": 3, "dropout": 1.0}])
def test_a_head_that_cannot_be_is_refused(arguments):
    with pytest.raises(UserError, match=r"head\."):
        AttributeHead([8], **arguments)
