"""What of a model is rounded: its layers, the maps that other things than one layer read, and who reads them.

One map has one range, whoever reads it. Layers of a single network see the same values of a map, and so the same
range; heads on a shared trunk see those of their own pictures, and a proposal's crop is no layer at all. So a map that
leaves a shared trunk, or that regions are cut from, is rounded where it is made: runtimes then compute it in integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.errors import UserError
from mnvision.export.folding import Layer, Norm, normalised_layers
from mnvision.quantization.ranges import OUTPUT


@dataclass(frozen=True)
class Place:
    """A layer in a model.

    Attributes:
        name: Such as ``backbone.stem.conv``.
        parent: The module that holds it.
        attribute: Its name there.
        layer: Itself.
        norm: The batch normalisation behind it.
    """

    name: str
    parent: Any
    attribute: str
    layer: Layer
    norm: Norm | None


@dataclass(frozen=True)
class Plan:
    """What is rounded.

    Attributes:
        layers: All convolutions and linear layers.
        maps: By the name of its range the block that gives a map which is rounded where it is made.
        readers: Layers that read such a map, and the name of its range, which is theirs.
    """

    layers: Sequence[Place]
    maps: Mapping[str, ConvBNAct]
    readers: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Of all ranges that are none of another name's."""
        return [*(place.name for place in self.layers if place.name not in self.readers), *self.maps]


def plan_of(model: Any) -> Plan:
    """What of a float model is rounded; it is not changed.

    Args:
        model: One of ``mnvision.models``, or a multi-task model.

    Raises:
        UserError: A batch normalisation stands where it cannot be folded, or each head has its own.
    """
    if getattr(model, "own_norms", False):
        raise UserError(
            "multitask.norms=per_head cannot be quantised: each head folds another normalisation into the trunk's "
            "weights, and an int8 file has these once; cut the heads out with tools/merge.py"
        )
    names = {id(module): name for name, module in model.named_modules()}
    layers = [Place(names[id(layer)], parent, at, layer, norm) for parent, at, layer, norm in normalised_layers(model)]
    maps = {f"{names[id(block.conv)]}{OUTPUT}": block for block in _maps(model)}
    # A map that is only averaged has no layers behind it.
    readers = _readers(model, layers, maps) if _is_shared(model) else {}
    return Plan(layers, maps, readers)


def _is_shared(model: Any) -> bool:
    return model.kind in ("multitask", "faster_rcnn")


def _maps(model: Any) -> list[ConvBNAct]:
    """The layers whose maps are rounded where they are made."""
    if model.kind == "multitask":
        every = [layer for name in model.names for layer in _given(model.part(name).backbone)]
        return list(dict.fromkeys(every))
    if _is_shared(model):
        return _given(model.backbone)
    averaged = not isinstance(getattr(model.head, "pool", None), nn.Sequential)
    if hasattr(model.head, "default_boxes") or not averaged:
        return []
    return [_last(model.backbone.blocks[-1])]


def _given(backbone: Any) -> list[ConvBNAct]:
    """What gives the maps that heads get, and the last one, which may lie behind them."""
    blocks = [*(backbone.blocks[index] for index in backbone.feature_blocks), backbone.blocks[-1]]
    return [_last(block) for block in dict.fromkeys(blocks)]


def _last(block: nn.Module) -> ConvBNAct:
    return [module for module in block.modules() if isinstance(module, ConvBNAct)][-1]


@torch.no_grad()
def _readers(model: Any, layers: Sequence[Place], maps: Mapping[str, ConvBNAct]) -> dict[str, str]:
    """By name of a layer that of the map which goes into it, found by running the model once on black pictures."""
    made: list[tuple[str, Tensor]] = []
    readers: dict[str, str] = {}

    def make(name: str) -> Any:
        return lambda _, __, output: made.append((name, output))

    def read(name: str) -> Any:
        return lambda _, inputs: readers.update((name, one) for one, output in made if output is inputs[0])

    handles = [block.register_forward_hook(make(name)) for name, block in maps.items()]
    handles += [place.layer.register_forward_pre_hook(read(place.name)) for place in layers]
    training = model.training
    try:
        model.eval()
        if model.kind == "multitask":
            for size, heads in model.passes():
                model(_black(model, size), heads)
        else:
            model(_black(model, model.resolution))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return readers


def _black(model: Any, size: tuple[int, int]) -> Tensor:
    return torch.zeros(1, 3, *size, dtype=torch.uint8, device=model.mean.device)
