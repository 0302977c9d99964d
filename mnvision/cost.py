"""Multiply-adds and parameters of a model, by layer and by layer type.

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

from mnvision.errors import UserError

Call = tuple[torch.Size, torch.Size]  # shapes of input and output


@dataclass(frozen=True)
class LayerCost:
    """One module that holds parameters.

    Attributes:
        name: As in the state dict, without ".weight".
        type: "conv 3x3", "depthwise 3x3", "grouped conv 3x3", "transposed conv 2x2", "fully connected" or
            "batch norm"; other modules appear under the name of their class and count no multiply-adds.
        output_shape: Without the batch axis, of the first call; ``()`` if the forward pass did not reach it.
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
    """Sum over the layers of one type; the columns are those of :class:`LayerCost`."""

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
        groups: dict[str, list[LayerCost]] = {}
        for layer in self.layers:
            groups.setdefault(layer.type, []).append(layer)
        totals = []
        for name, group in groups.items():
            sums = Cost(self.resolution, tuple(group))
            totals.append(TypeCost(name, len(group), sums.mult_adds, sums.weights, sums.params))
        return tuple(sorted(totals, key=lambda total: (-total.mult_adds, -total.params)))

    def table(self, by: str = "layer") -> str:
        """Aligned plain text for a terminal, the total in its last line.

        Args:
            by: "layer" or "type"; the latter adds each type's share in per cent, as table 2 of the paper.

        Raises:
            UserError: If ``by`` is neither.
        """
        if by == "layer":
            return _aligned(_layer_lines(self), text_columns=3)
        if by == "type":
            return _aligned(_type_lines(self), text_columns=1)
        raise UserError(f"by is {by!r}: choose layer or type")

    def to_csv(self) -> str:
        """One line per layer under a heading with the names of :class:`LayerCost`; shapes as "64x112x112"."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(LayerCost))
        writer.writerows((*astuple(layer)[:2], _shape(layer), *astuple(layer)[3:]) for layer in self.layers)
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
    return LayerCost(
        name=name,
        type=_type_name(module),
        output_shape=tuple(calls[0][1][1:]) if calls else (),
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


def _shape(layer: LayerCost) -> str:
    return "x".join(map(str, layer.output_shape))


def _layer_lines(cost: Cost) -> list[list[str]]:
    lines = [["layer", "type", "output", "mult-adds", "weights", "params"]]
    for layer in cost.layers:
        counts = (layer.mult_adds, layer.weights, layer.params)
        lines.append([layer.name, layer.type, _shape(layer), *(f"{count:,}" for count in counts)])
    return [*lines, ["total", "", "", f"{cost.mult_adds:,}", f"{cost.weights:,}", f"{cost.params:,}"]]


def _type_lines(cost: Cost) -> list[list[str]]:
    lines = [["type", "layers", "mult-adds", "%", "weights", "%", "params", "%"]]
    whole = TypeCost("total", len(cost.layers), cost.mult_adds, cost.weights, cost.params)
    for total in (*cost.types, whole):
        cells = [total.type, str(total.layers)]
        for column in ("mult_adds", "weights", "params"):
            part, of = getattr(total, column), getattr(whole, column)
            cells += [f"{part:,}", f"{100 * part / max(of, 1):.2f}"]
        lines.append(cells)
    return lines


def _aligned(lines: list[list[str]], text_columns: int) -> str:
    """Columns of equal width, the first ones left, the numbers right; ruled under heading and above total."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:text_columns], widths)]
        cells += [cell.rjust(width) for cell, width in zip(line[text_columns:], widths[text_columns:])]
        rows.append("  ".join(cells))
    rule = "-" * len(rows[0])
    return "\n".join([rows[0], rule, *rows[1:-1], rule, rows[-1]])
