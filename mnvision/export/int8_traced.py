"""An export graph as a list of operations, in which layers can be looked at, computed otherwise and replaced.

What ExecuTorch and LiteRT are written from. torch alone is needed: a converter in an environment of its own traces the
same graph again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from mnvision.errors import UserError
from mnvision.export.graph import ExportGraph
from mnvision.quantization.grid import activation_grid

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.linear.default)
_OUT_OF_PLACE = {_ATEN.hardtanh_.default: _ATEN.hardtanh.default, _ATEN.relu_.default: _ATEN.relu.default}
_ACTIVATIONS = tuple(_OUT_OF_PLACE.values())
_MOVES = (_ATEN.permute.default, _ATEN.reshape.default, _ATEN.view.default, _ATEN.flatten.using_ints)
LOWEST, HIGHEST = -128, 127
"""Of activations: weights have no -128."""
Range = tuple[float, float]


@dataclass(frozen=True)
class TracedLayer:
    """One layer with weights.

    Attributes:
        title: As the model calls it, such as ``backbone.blocks.0.depthwise.conv``.
        kind: "depthwise", "pointwise", "conv" or "linear".
        node: Its operation.
        source: The operation whose result goes in, before padding.
        end: The operation behind which the layer ends: its activation, or itself.
    """

    title: str
    kind: str
    node: fx.Node
    source: fx.Node
    end: fx.Node

    @property
    def weight(self) -> str:
        """Name of its weights in the module."""
        return str(operand(self.node, 1).target)

    @property
    def bias(self) -> str:
        """Name of its bias."""
        return str(operand(self.node, 2).target)


@dataclass(frozen=True)
class LayerRounding:
    """How one layer is computed in int8.

    Attributes:
        weight: int8, of the weights' shape.
        scales: ``(C,)`` float32, one per output channel.
        bias: ``(C,)`` float32, corrected.
        source: Lowest and highest value of what goes in; None of an open layer.
        result: The same of what leaves it, behind its activation.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor
    source: Range | None
    result: Range | None

    @property
    def open(self) -> bool:
        """Whether it is a layer whose weights alone are in int8: nothing rounds what it gives."""
        return self.result is None

    def values(self) -> Tensor:
        """The weights that int8 stands for, float32."""
        return self.weight.float() * per_channel(self.scales, self.weight.ndim)


@dataclass(frozen=True)
class Traced:
    """A graph of a fixed batch as operations.

    Attributes:
        module: Computes what the graph does.
        layers: In the network's order.
    """

    module: fx.GraphModule
    layers: list[TracedLayer]


def trace(graph: ExportGraph, batch: int) -> Traced:
    """The operations of a graph; its weights are copied.

    Raises:
        UserError: A layer is used more than once, or torch cannot trace the graph.
    """
    module: Any = torch.export.export(graph, (graph.example(batch),)).module(check_guards=False)
    for node in list(module.graph.nodes):
        node.target = _OUT_OF_PLACE.get(node.target, node.target)
        if node.target == _ATEN.dropout.default:
            node.replace_all_uses_with(node.args[0])
        if node.target in (_ATEN.dropout.default, _ATEN._assert_tensor_metadata.default):
            module.graph.erase_node(node)
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        set_tensor(module, node.target, tensor_of(module, node.target).detach().clone())
    found = [node for node in module.graph.nodes if node.target in _LAYERS and operand(node, 1).op == "get_attr"]
    for node in found:
        _give_bias(module, node)
    module.recompile()
    layers = [_layer(module, node) for node in found]
    titles = [layer.title for layer in layers]
    twice = [title for title in titles if titles.count(title) > 1]
    if twice:
        raise UserError(f"layer {twice[0]} is used more than once in a run: this format cannot hold it in int8")
    return Traced(module, layers)


def _give_bias(module: Any, node: fx.Node) -> None:
    """Zeros where a layer has no bias: a correction needs a place."""
    if len(node.args) > 2 and node.args[2] is not None:
        return
    weight = str(operand(node, 1).target)
    name = f"{weight}_bias".replace(".", "_")
    module.register_buffer(name, torch.zeros(len(tensor_of(module, weight))))
    with module.graph.inserting_before(node):
        node.args = (*node.args[:2], module.graph.get_attr(name), *node.args[3:])


def _layer(module: Any, node: fx.Node) -> TracedLayer:
    name, source, users = str(operand(node, 1).target), operand(node, 0), list(node.users)
    while source.target == _ATEN.pad.default:
        source = operand(source, 0)
    end = users[0] if len(users) == 1 and users[0].target in _ACTIVATIONS else node
    title = name.removeprefix("model.").removesuffix(".weight")
    return TracedLayer(title, _kind(node, tensor_of(module, name)), node, source, end)


def operand(node: fx.Node, place: int) -> fx.Node:
    """The operation whose result another takes in, by the place among its arguments."""
    operand = node.args[place]
    assert isinstance(operand, fx.Node)
    return operand


def _kind(node: fx.Node, weight: Tensor) -> str:
    if weight.ndim == 2:
        return "linear"
    if len(node.args) > 6 and node.args[6] != 1:
        return "depthwise"
    return "pointwise" if tuple(weight.shape[2:]) == (1, 1) else "conv"


def last_layers(traced: Traced) -> list[TracedLayer]:
    """The layers that no other layer comes behind: what they give is decoded."""
    inner: set[str] = set()
    behind: dict[fx.Node, set[str]] = {}
    nodes = {layer.node: layer.title for layer in traced.layers}
    for node in traced.module.graph.nodes:
        before = set().union(*(behind.get(entry, set()) for entry in node.all_input_nodes))
        if node in nodes:
            inner |= before
            before = {nodes[node]}
        behind[node] = before
    return [layer for layer in traced.layers if layer.title not in inner]


def open_layers(traced: Traced) -> list[TracedLayer]:
    """The linear ones of them: what they give is not rounded, see ``mnvision/export/int8_rounding.py``."""
    return [layer for layer in last_layers(traced) if layer.kind == "linear"]


def computed_by(node: fx.Node) -> fx.Node:
    """The operation that computed the values which a node holds, perhaps in another shape or order."""
    while node.target in _MOVES:
        node = operand(node, 0)
    return node


def joined_layers(traced: Traced) -> list[list[TracedLayer]]:
    """Layers whose results are put side by side without anything being computed in between, as of all maps."""
    groups: dict[fx.Node, list[TracedLayer]] = {}
    for layer in traced.layers:
        reader = layer.end
        while len(reader.users) == 1:
            reader = next(iter(reader.users))
            if reader.target not in _MOVES:
                break
        if reader.target == _ATEN.cat.default:
            groups.setdefault(reader, []).append(layer)
    return list(groups.values())


Watch = Callable[[fx.Node, Tensor], Tensor]
"""What is done with the result of every operation that gives a tensor: it takes the place of that result."""


class Watched(fx.Interpreter):
    """Runs a module operation by operation.

    Args:
        module: What is run.
        watch: Sees, and may replace, every result.
    """

    def __init__(self, module: fx.GraphModule, watch: Watch) -> None:
        super().__init__(module)
        self.watch = watch

    def run_node(self, n: fx.Node) -> Any:
        """One operation."""
        result = super().run_node(n)
        return self.watch(n, result) if isinstance(result, Tensor) else result


def scale_and_zero(bounds: Range) -> tuple[float, int]:
    """Scale and zero (-128 to 127) of the 256 values that stand for a range."""
    scale, zero = activation_grid(torch.tensor(bounds, dtype=torch.float32))
    return float(scale), int(zero) + LOWEST


def per_channel(values: Tensor, dims: int) -> Tensor:
    """``(C,)`` as ``(C, 1, ...)`` of so many dimensions."""
    return values.reshape(-1, *[1] * (dims - 1))


def tensor_of(module: Any, name: str) -> Tensor:
    """A weight or buffer by its dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    assert isinstance(module, Tensor)
    return module


def set_tensor(module: Any, name: str, value: Tensor) -> None:
    """Put another tensor in the place of a weight or buffer."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    setattr(module, last, torch.nn.Parameter(value, requires_grad=False) if last in module._parameters else value)
