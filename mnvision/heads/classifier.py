"""The paper's classifier: global average pooling and one fully connected layer (Table 1, last rows)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnvision.heads.linear import LinearHead


class ClassifierHead(LinearHead):
    """Logits ``(B, K)`` of K classes; arguments and errors as :class:`~mnvision.heads.linear.LinearHead`.

    TF-slim's demo trainer uses a dropout of 0.001.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float = 0.001) -> None:
        super().__init__(in_channels, num_classes, dropout)


class ClassScores(nn.Module):
    """Decoder of a classifier: logits to probabilities that sum to one."""

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, K)`` float32 from logits ``(B, K)``."""
        return torch.softmax(logits.float(), dim=1)
