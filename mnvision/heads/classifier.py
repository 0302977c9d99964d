"""The paper's classifier: global average pooling and one fully connected layer (Table 1, last rows)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnvision.errors import UserError


class ClassifierHead(nn.Module):
    """Pooled logits of the coarsest feature map.

    Args:
        in_channels: Channels of each feature map of the backbone; the last one is classified.
        num_classes: K, at least 1.
        dropout: Share of pooled features dropped in training, in [0, 1). TF-slim's demo trainer uses 0.001.

    Raises:
        UserError: ``num_classes`` or ``dropout`` out of range.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float = 0.001) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"head.num_classes={num_classes}: a classifier needs at least one class")
        if not 0 <= dropout < 1:
            raise UserError(f"head.dropout={dropout}: give a value in [0, 1)")
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels[-1], num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, K)`` from maps ``[(B, C, H, W), ...]``."""
        pooled = feature_maps[-1].mean((2, 3))
        return self.fc(self.dropout(pooled))


class ClassScores(nn.Module):
    """Decoder of a classifier: logits to probabilities that sum to one."""

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, K)`` float32 from logits ``(B, K)``."""
        return torch.softmax(logits.float(), dim=1)
