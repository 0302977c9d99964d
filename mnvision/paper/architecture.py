"""Table 1, read off a model: type and stride, filter and input of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnvision.cost import Cost
from mnvision.models import Classifier
from mnvision.paper.layout import Layer


@dataclass(frozen=True)
class Seen:
    """One layer of ours in the paper's words.

    Attributes:
        cells: Type with stride, filter shape, input size; "" three times if our layers of one row differ.
        mult_adds: Of all layers of the row.
    """

    cells: tuple[str, str, str]
    mult_adds: int


def read_layers(model: Classifier, cost: Cost, rows: Sequence[Layer]) -> list[Seen]:
    """What stands in the place of every row of Table 1.

    Args:
        model: A classifier of ours, on any device; it is run once, in evaluation mode, on an image of its resolution.
        cost: Of the same model.
        rows: Of the table. Rows without modules are the pooling before the classifier and the softmax behind it.
    """
    inputs = _input_shapes(model)
    by_name = {layer.name: layer.mult_adds for layer in cost.layers}
    pooled = [layer.output_shape for layer in cost.layers if layer.name.startswith("backbone.")][-1]
    classifier = model.get_submodule("head.fc")
    assert isinstance(classifier, nn.Linear)
    seen = []
    for row in rows:
        if not row.names:
            pooling = row.printed[0].startswith("Avg")
            seen.append(Seen(_pool_cells(pooled) if pooling else _softmax_cells(classifier.out_features), 0))
            continue
        paths = [name if name.startswith("head.") else f"backbone.{name}.conv" for name in row.names]
        cells = {_layer_cells(model.get_submodule(path), inputs[path]) for path in paths}
        seen.append(
            Seen(cells.pop() if len(cells) == 1 else ("", "", ""), sum(by_name[path] for path in paths)),
        )
    return seen


def _input_shapes(model: Classifier) -> dict[str, torch.Size]:
    """Shape of what every convolution and fully connected layer takes, in the order of their calls."""
    shapes: dict[str, torch.Size] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def hook(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = args[0].shape

            handles.append(module.register_forward_pre_hook(hook))
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *model.resolution, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _layer_cells(module: nn.Module, shape: torch.Size) -> tuple[str, str, str]:
    if isinstance(module, nn.Linear):
        return ("FC / s1", f"{module.in_features}x{module.out_features}", f"1x1x{shape[1]}")
    assert isinstance(module, nn.Conv2d)
    kernel = "x".join(map(str, module.kernel_size))
    size = f"{shape[2]}x{shape[3]}x{shape[1]}"
    if module.groups > 1:
        return (f"Conv dw / s{module.stride[0]}", f"{kernel}x{module.in_channels} dw", size)
    return (f"Conv / s{module.stride[0]}", f"{kernel}x{module.in_channels}x{module.out_channels}", size)


def _pool_cells(shape: tuple[int, ...]) -> tuple[str, str, str]:
    channels, height, width = shape
    return ("Avg Pool / s1", f"Pool {height}x{width}", f"{height}x{width}x{channels}")


def _softmax_cells(classes: int) -> tuple[str, str, str]:
    return ("Softmax / s1", "Classifier", f"1x1x{classes}")
