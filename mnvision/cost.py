"""Multiply-adds and parameters of a model, by layer, by layer type and by part.

Conventions, those of MobileNets, https://arxiv.org/abs/1704.04861, tables 1-8: one multiply-add is one
multiplication with its addition in a convolution or a fully connected layer, for one image. Biases, batch
normalisation, activations and pooling count no multiply-adds. Table 2's share of parameters is a share of
:attr:`Cost.weights`; the parameter counts of the other tables round :attr:`Cost.params`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mnvision.cost_tables import layer_table, shape_text, total_table
from mnvision.errors import UserError

Call = tuple[torch.Size, torch.Size]  # shapes of input and output


@dataclass(frozen=True)
class LayerCost:
    """One module that holds parameters.

    Attributes:
        name: As in the state dict, without ".weight".
        type: "conv 3x3", "depthwise 3x3", "grouped conv 3x3", "transposed conv 2x2", "fully connected" or
            "batch norm"; other modules appear under the name of their class and count no multiply-adds.
        output_shape: Without the batch axis, of the first call; ``()`` if the forward pass did not reach it. A layer
            that runs on many regions of one image has their number first.
        mult_adds: Of all calls in one forward pass of one image.
        weights: Values of the kernel or matrix, without bias; 0 for batch normalisation.
        params: All learnable values: weights, biases, scale and shift of batch normalisation; frozen or not.
            What two modules share is counted at the first.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    mult_adds: int
    weights: int
    params: int


@dataclass(frozen=True)
class TypeCost:
    """Sum over the layers of one type, or of one part; the columns are those of :class:`LayerCost`."""

    type: str
    layers: int
    mult_adds: int
    weights: int
    params: int


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one image costs.

    Attributes:
        resolution: Height and width of the input in pixels.
        layers: In the order of the model's modules.
    """

    resolution: tuple[int, int]
    layers: tuple[LayerCost, ...]

    @property
    def mult_adds(self) -> int:
        """Multiply-adds of all layers."""
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def weights(self) -> int:
        """Kernel and matrix values of all layers: no biases, no batch normalisation."""
        return sum(layer.weights for layer in self.layers)

    @property
    def params(self) -> int:
        """Learnable values of all layers."""
        return sum(layer.params for layer in self.layers)

    @property
    def types(self) -> tuple[TypeCost, ...]:
        """Totals per layer type, the costliest first."""
        totals = _totals(self, [layer.type for layer in self.layers])
        return tuple(sorted(totals, key=lambda total: (-total.mult_adds, -total.params)))

    @property
    def parts(self) -> tuple[TypeCost, ...]:
        """Totals per part, in the order of the model's modules: the backbone, and each module of the head.

        What runs on regions of an image is a part of its own, such as "backbone x 300".
        """
        return _totals(self, [_part_name(layer) for layer in self.layers])

    def table(self, by: str = "layer") -> str:
        """Aligned plain text for a terminal, the total in its last line.

        Args:
            by: "layer", "type" or "part"; the latter two add each one's share in per cent, as table 2 of the paper.

        Raises:
            UserError: If ``by`` is none of them.
        """
        if by == "layer":
            return layer_table(self)
        if by == "type":
            return total_table(self, "type", self.types)
        if by == "part":
            return total_table(self, "part", self.parts)
        raise UserError(f"by is {by!r}: choose layer, type or part")

    def to_csv(self) -> str:
        """One line per layer under a heading with the names of :class:`LayerCost`; shapes as "64x112x112"."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(LayerCost))
        writer.writerows((*astuple(layer)[:2], shape_text(layer), *astuple(layer)[3:]) for layer in self.layers)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Totals, types and layers as plain numbers, strings, lists and dicts, ready for JSON."""
        return {
            "resolution": list(self.resolution),
            "mult_adds": self.mult_adds,
            "weights": self.weights,
            "params": self.params,
            "types": [asdict(total) for total in self.types],
            "layers": [asdict(layer) | {"output_shape": list(layer.output_shape)} for layer in self.layers],
        }


def measure(
    model: nn.Module,
    resolution: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    in_channels: int = 3,
) -> Cost:
    """Cost of one forward pass of one image, found by running it on zeros where the model lies.

    The model is left as it was: training flags, batch statistics, gradients, hooks, device. Only what modules
    with parameters do in their own ``forward`` is seen; arithmetic written out in a parent's ``forward``
    (attention products, distances to class centres) is not.

    Args:
        model: Takes one batch of images ``(B, in_channels, H, W)`` as its only argument.
        resolution: Side of the input in pixels, or ``(height, width)``.
        dtype: Of the images; ``torch.uint8`` for models that normalise pixels themselves.
        in_channels: Channels of the images.

    Returns:
        Rows for every module with parameters of its own, called or not.

    Raises:
        UserError: If ``resolution`` is not one or two whole numbers of at least 1.
    """
    height, width = _height_width(resolution)
    device = next((p.device for p in model.parameters()), None)
    images = torch.zeros(1, in_channels, height, width, dtype=dtype, device=device)
    calls = _record_calls(model, images)
    counted: set[int] = set()
    layers = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        if not own and name not in calls:
            continue
        counted.update(id(p) for p in own)
        layers.append(_layer_cost(name, module, own, calls.get(name, [])))
    return Cost((height, width), tuple(layers))


def _record_calls(model: nn.Module, images: Tensor) -> dict[str, list[Call]]:
    """Shapes of every call of every module with parameters of its own, by module name."""
    calls: dict[str, list[Call]] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.setdefault(name, []).append((args[0].shape, output.shape))

        handles.append(module.register_forward_hook(hook))

    try:
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                watch(name, module)
        # A compiled model would skip hooks that it has not seen before.
        with _evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module gets its own flag back, since some may be frozen in eval."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


def _layer_cost(name: str, module: nn.Module, own: list[nn.Parameter], calls: list[Call]) -> LayerCost:
    weights = 0
    if isinstance(module, _ConvNd | nn.Linear) and any(p is module.weight for p in own):
        weights = module.weight.numel()
    shape = calls[0][1] if calls else (1,)
    return LayerCost(
        name=name,
        type=_type_name(module),
        output_shape=tuple(shape[1:] if shape[0] == 1 else shape),
        mult_adds=sum(_mult_adds(module, *call) for call in calls),
        weights=weights,
        params=sum(p.numel() for p in own),
    )


def _mult_adds(module: nn.Module, inputs: torch.Size, outputs: torch.Size) -> int:
    """Multiply-adds of one call on a batch of one."""
    if isinstance(module, nn.Linear):
        return outputs.numel() * module.in_features
    if isinstance(module, _ConvTransposeNd):
        return inputs.numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, _ConvNd):
        return outputs.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    return 0


def _type_name(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "fully connected"
    if isinstance(module, _BatchNorm):
        return "batch norm"
    if not isinstance(module, _ConvNd):
        return type(module).__name__
    kind = "conv"
    if isinstance(module, _ConvTransposeNd):
        kind = "transposed conv"
    elif module.groups > 1:
        kind = "depthwise" if module.groups == module.in_channels else "grouped conv"
    return f"{kind} {'x'.join(map(str, module.kernel_size))}"


def _height_width(resolution: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise UserError(f"resolution is {resolution!r}: give whole pixels, one side (224) or height and width")
    return sides[0], sides[1]


def _totals(cost: Cost, names: Sequence[str]) -> tuple[TypeCost, ...]:
    """Sums over the layers of the same name, in the order in which the names first occur."""
    groups: dict[str, list[LayerCost]] = {}
    for name, layer in zip(names, cost.layers, strict=True):
        groups.setdefault(name, []).append(layer)
    totals = []
    for name, group in groups.items():
        sums = Cost(cost.resolution, tuple(group))
        totals.append(TypeCost(name, len(group), sums.mult_adds, sums.weights, sums.params))
    return tuple(totals)


def _part_name(layer: LayerCost) -> str:
    path = layer.name.split(".")
    name = ".".join(path[:2] if path[0] == "head" else path[:1])
    regions = len(layer.output_shape) in (2, 4)  # one more axis than a vector or a map of one image has
    return f"{name} x {layer.output_shape[0]}" if regions else name
