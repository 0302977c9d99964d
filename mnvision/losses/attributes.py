"""Sigmoid cross-entropy of attributes of which some are not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mnvision.errors import UserError

BALANCED = "balanced"


def masked_cross_entropy(logits: Tensor, labels: Tensor, positive_weights: Tensor | None = None) -> Tensor:
    """Sigmoid cross-entropy averaged over the known labels, in float32.

    Args:
        logits: ``(B, A)``, any float type.
        labels: ``(B, A)``, any integer type: 1 yes, 0 no, -1 not known.
        positive_weights: ``(A,)`` factors of the terms with label 1.

    Returns:
        A scalar; zero, with a zero gradient, where no label is known.

    Raises:
        UserError: Shapes differ.
    """
    if logits.shape != labels.shape:
        raise UserError(
            f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}; both are (B, A)"
        )
    known = labels >= 0
    terms = F.binary_cross_entropy_with_logits(
        logits.float(), labels.clamp(min=0).float(), reduction="none", pos_weight=positive_weights
    )
    return (terms * known).sum() / known.sum().clamp(min=1)


class AttributeLoss(nn.Module):
    """:func:`masked_cross_entropy` with positive weights that may come from the training labels.

    Args:
        positive_weights: None for none; ``"balanced"`` for negatives / positives of the training labels, with which
            both answers to an attribute weigh the same; or a number per attribute's name, 1 for those not named.
        max_weight: Largest weight that ``"balanced"`` gives: a single positive among thousands of pictures would
            otherwise outweigh everything else.

    Raises:
        UserError: An unknown word, or a weight that is no positive number.
    """

    positive_weights: Tensor | None

    def __init__(self, positive_weights: str | Mapping[str, float] | None = None, max_weight: float = 20.0) -> None:
        super().__init__()
        if isinstance(positive_weights, str) and positive_weights != BALANCED:
            raise UserError(
                f"loss.positive_weights={positive_weights}: give null, balanced, or a number per attribute "
                "such as {Bald: 10.0}"
            )
        given = positive_weights if isinstance(positive_weights, Mapping) else {}
        for name, weight in [*given.items(), ("max_weight", max_weight)]:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise UserError(f"loss.positive_weights: {name}={weight!r} must be a number above 0")
        self.rule = positive_weights
        self.max_weight = max_weight
        # Not persistent: a checkpoint's state holds the model, and a resumed run counts its labels again.
        self.register_buffer("positive_weights", None, persistent=False)

    def prepare(self, names: Sequence[str], labels: NDArray[np.int8]) -> None:
        """Fix the weights before training.

        Args:
            names: The A attributes.
            labels: ``(N, A)`` int8 of the training set: 1, 0, -1.

        Raises:
            UserError: A weight for an attribute that the data do not have.
        """
        if self.rule is None:
            return
        if isinstance(self.rule, str):
            yes, no = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
            weights = np.where((yes > 0) & (no > 0), no / np.maximum(yes, 1), 1.0).clip(max=self.max_weight)
        else:
            unknown = [name for name in self.rule if name not in names]
            if unknown:
                raise UserError(
                    f"loss.positive_weights: the data have no attribute {unknown[0]!r}; theirs are "
                    f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
                )
            weights = np.array([self.rule.get(name, 1.0) for name in names])
        self.positive_weights = torch.from_numpy(weights.astype(np.float32))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See :func:`masked_cross_entropy`."""
        weights = self.positive_weights
        return masked_cross_entropy(logits, labels, None if weights is None else weights.to(logits.device))
