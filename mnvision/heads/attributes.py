"""Yes-or-no attributes: global average pooling and one logit per attribute (paper, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnvision.errors import UserError


class AttributeHead(nn.Module):
    """One logit per attribute from the coarsest feature map; attributes do not exclude each other.

    Args:
        in_channels: Channels of each feature map of the backbone; the last one is used.
        num_classes: A, number of attributes, at least 1.
        dropout: Share of pooled features dropped in training, in [0, 1).

    Raises:
        UserError: ``num_classes`` or ``dropout`` out of range.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"head.num_classes={num_classes}: at least one attribute is needed")
        if not 0 <= dropout < 1:
            raise UserError(f"head.dropout={dropout}: give a value in [0, 1)")
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels[-1], num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, A)`` from maps ``[(B, C, H, W), ...]``."""
        pooled = feature_maps[-1].mean((2, 3))
        return self.fc(self.dropout(pooled))


class AttributeScores(nn.Module):
    """Decoder of attributes: each logit to a probability of its own."""

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, A)`` float32 in [0, 1] from logits ``(B, A)``."""
        return torch.sigmoid(logits.float())
