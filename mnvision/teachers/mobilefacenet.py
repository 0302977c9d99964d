"""MobileFaceNet as teacher of face embeddings.

Source: MobileFaceNets, https://arxiv.org/abs/1804.07573, table 1. The published weights that it loads
(https://github.com/foamliu/MobileFaceNet, Apache-2.0) differ from the table: ReLU6 or ReLU for PReLU, a pointwise
convolution behind the depthwise one of the second row, and batch normalisation behind the embedding. They were
trained on RGB faces with ImageNet's mean and standard deviation (that repository's ``data_gen.py``).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.backbones.mobilenet_v1 import SeparableBlock
from mnvision.checkpoints import load_weights
from mnvision.errors import UserError
from mnvision.teachers.base import Outputs, PixelInput, Teacher
from mnvision.teachers.weights import read_state

SIDE = 112
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
# Expansion, channels, repetitions and first stride of the bottlenecks, table 1.
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
BN_EPS = 1e-5

_BLOCK_LAYERS = {
    "0.0": "expand.conv",
    "0.1": "expand.bn",
    "1.0": "depthwise.conv",
    "1.1": "depthwise.bn",
    "2": "project.conv",
    "3": "project.bn",
}
_LAYERS = {
    "conv1.0": "stem.conv",
    "conv1.1": "stem.bn",
    "dw_conv.depthwise": "second.depthwise.conv",
    "dw_conv.bn1": "second.depthwise.bn",
    "dw_conv.pointwise": "second.pointwise.conv",
    "dw_conv.bn2": "second.pointwise.bn",
    "conv2.0": "widen.conv",
    "conv2.1": "widen.bn",
    "gdconv.depthwise": "pool",
    "gdconv.bn": "pool_bn",
    "conv3": "embed",
    "bn": "embed_bn",
}


class MobileFaceNet(nn.Module):
    """112 x 112 faces to embeddings: bottlenecks, then a depthwise convolution over the whole map instead of a mean.

    Args:
        dim: Length of the embedding.
    """

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 64, 3, 2, bn_eps=BN_EPS)
        self.second = SeparableBlock(64, 64, 1, 1, 1, "symmetric", "relu", BN_EPS, 0.1)
        self.blocks = nn.Sequential()
        channels = 64
        for expansion, depth, repetitions, first_stride in BOTTLENECKS:
            for index in range(repetitions):
                self.blocks.append(_Bottleneck(channels, depth, first_stride if index == 0 else 1, expansion))
                channels = depth
        self.widen = ConvBNAct(channels, 512, 1, bn_eps=BN_EPS)
        self.pool = nn.Conv2d(512, 512, 7, groups=512, bias=False)
        self.pool_bn = nn.BatchNorm2d(512)
        self.embed = nn.Conv2d(512, dim, 1)
        self.embed_bn = nn.BatchNorm2d(dim)

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, dim)``, of any length, from normalised faces ``(B, 3, 112, 112)``."""
        maps = self.widen(self.blocks(self.second(self.stem(faces))))
        return self.embed_bn(self.embed(self.pool_bn(self.pool(maps)))).flatten(1)


class _Bottleneck(nn.Module):
    """MobileNetV2's block: widen, depthwise, narrow without activation, and add the input where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.adds = stride == 1 and in_channels == out_channels
        self.expand = ConvBNAct(in_channels, middle, 1, bn_eps=BN_EPS)
        self.depthwise = ConvBNAct(middle, middle, 3, stride, groups=middle, bn_eps=BN_EPS)
        self.project = ConvBNAct(middle, out_channels, 1, activation="none", bn_eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.project(self.depthwise(self.expand(x)))
        return x + narrow if self.adds else narrow


class MobileFaceNetTeacher(Teacher):
    """MobileFaceNet with published weights: faces aligned to the 112 x 112 template, embeddings of length 1.

    Args:
        path: State dict with the names of foamliu/MobileFaceNet, loaded with ``weights_only=True``.
        flip: Add the mirrored face's embedding before normalising, as face verification often does; twice the cost.

    Raises:
        UserError: No such file, or not these weights.
    """

    def __init__(self, path: str | Path, flip: bool = False) -> None:
        super().__init__()
        path = Path(path)
        state = {_ours(name): tensor for name, tensor in read_state(path).items()}
        if "embed.weight" not in state:
            raise UserError(f"{path}: not the weights of foamliu/MobileFaceNet, for conv3.weight is not among them")
        self.network = MobileFaceNet(len(state["embed.weight"]))
        load_weights(self.network, state, path)
        self.flip = flip
        self.pixels = PixelInput(MEAN, STD)
        self.options = {"flip": flip, "mean": MEAN, "std": STD}
        self._settle(f"teacher {path}", "face_embeddings", (SIDE, SIDE), class_names=None)

    def answer(self, images: Tensor) -> Outputs:
        """See :meth:`Teacher.answer`."""
        faces = self.pixels(images)
        embedding = self.network(faces)
        if self.flip:
            embedding = embedding + self.network(faces.flip(3))
        return {"embedding": F.normalize(embedding)}


def _ours(name: str) -> str:
    """Our name of a tensor of foamliu/MobileFaceNet; a name that it does not have stays."""
    layer, _, kind = name.rpartition(".")
    block = re.fullmatch(r"features\.(\d+)\.conv\.(.+)", layer)
    if block is not None and block[2] in _BLOCK_LAYERS:
        return f"blocks.{block[1]}.{_BLOCK_LAYERS[block[2]]}.{kind}"
    return f"{_LAYERS[layer]}.{kind}" if layer in _LAYERS else name
