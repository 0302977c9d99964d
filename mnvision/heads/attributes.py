"""Yes-or-no attributes: one logit each, for they do not exclude each other (paper, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnvision.heads.linear import LinearHead


class AttributeHead(LinearHead):
    """Logits ``(B, A)`` of A attributes; arguments and errors as :class:`~mnvision.heads.linear.LinearHead`."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float = 0.0) -> None:
        super().__init__(in_channels, num_classes, dropout)


class AttributeScores(nn.Module):
    """Decoder of attributes: each logit to a probability of its own."""

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, A)`` float32 in [0, 1] from logits ``(B, A)``."""
        return torch.sigmoid(logits.float())
