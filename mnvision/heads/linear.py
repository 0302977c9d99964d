"""Global average pooling and one fully connected layer: what classes and attributes share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mnvision.errors import UserError


class LinearHead(nn.Module):
    """Pooled logits of the coarsest feature map (paper, Table 1, last rows).

    Args:
        in_channels: Channels of each feature map of the backbone; the last one is used.
        num_classes: K, at least 1.
        dropout: Share of pooled features dropped in training, in [0, 1).

    Raises:
        UserError: ``num_classes`` or ``dropout`` out of range.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"head.num_classes={num_classes}: a head needs at least one class or attribute")
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
