"""A vector per picture: pictures of one person lie close together, those of different people far apart."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError


class EmbeddingHead(nn.Module):
    """The coarsest feature map pooled and projected to ``dim`` numbers.

    "depthwise" pools by a global depthwise convolution with batch normalisation and without activation, one
    learned weight per place and channel, since the corners of an aligned face tell less than its centre
    (MobileFaceNets, https://arxiv.org/abs/1804.07573, section 3.1); its weights fix the map's size. "average"
    takes every size.

    Args:
        in_channels: Channels of each feature map of the backbone; the last one is embedded.
        in_strides: Stride of each feature map; with ``resolution`` it gives the size of the last one.
        resolution: Side of the network's input in pixels.
        dim: D, at least 2. FaceNet's validation rate was best at 128 (https://arxiv.org/abs/1503.03832, table 5).
        pooling: "average" or "depthwise", see above.
        dropout: Share of pooled features dropped in training, in [0, 1).
        batch_norm: Normalise each of the D numbers over the batch at the end, as heads trained with margin
            losses do (ArcFace, https://arxiv.org/abs/1801.07698, section 3.1); the projection then has no bias.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        resolution: int,
        dim: int = 128,
        pooling: Literal["average", "depthwise"] = "average",
        dropout: float = 0.0,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if type(dim) is not int or dim < 2:
            raise UserError(f"head.dim={dim!r}: give a whole number of at least 2, such as 128 or 512")
        if not 0 <= dropout < 1:
            raise UserError(f"head.dropout={dropout}: give a value in [0, 1)")
        if pooling not in ("average", "depthwise"):
            raise UserError(f"head.pooling={pooling!r}: choose average or depthwise")
        channels = in_channels[-1]
        self.dim = dim
        self.map_size = -(-resolution // in_strides[-1])
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        if pooling == "depthwise":
            self.pool = _global_depthwise(channels, self.map_size)
        self.fixed_size = pooling == "depthwise"
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, dim, bias=not batch_norm)
        self.bn = nn.BatchNorm1d(dim) if batch_norm else nn.Identity()
        nn.init.normal_(self.fc.weight, std=channels**-0.5)
        if self.fc.bias is not None:
            nn.init.zeros_(self.fc.bias)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Embeddings ``(B, D)``, not yet of unit length, from maps ``[(B, C, H, W), ...]``.

        Raises:
            UserError: The map has another size than the depthwise pooling was built for, or batch normalisation
                is trained on one image.
        """
        last = feature_maps[-1]
        height, width = last.shape[2:]
        if self.fixed_size and (height, width) != (self.map_size, self.map_size):
            raise UserError(
                f"head.pooling=depthwise was built for maps of {self.map_size} x {self.map_size}, got {height} x "
                f"{width}: resize the images to the model's resolution, or train with head.pooling=average"
            )
        if self.training and len(last) == 1 and (self.fixed_size or isinstance(self.bn, nn.BatchNorm1d)):
            raise UserError(
                "training the embedding head needs at least 2 images per batch (for batch norm): raise "
                "data.batch_size, or drop a last batch of one image"
            )
        return self.bn(self.fc(self.dropout(self.pool(last).flatten(1))))


def _global_depthwise(channels: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, size, groups=channels, bias=False)
    nn.init.constant_(conv.weight, size**-2)  # begins as the average
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))


class UnitLength(nn.Module):
    """Decoder of an embedding: the same direction at length one, so that a dot product is a cosine."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """``(B, D)`` float32 of length 1 from ``(B, D)``; a vector of zeros stays one."""
        return F.normalize(embeddings.float(), dim=1)
