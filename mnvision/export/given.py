"""ONNX graphs that are given some of their tensors in place of computing them.

What a Faster R-CNN crops hangs on which proposals are best, so a graph and its int8 form crop other boxes, and in
another order: nothing behind the crops can be compared unless both are given the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

_PREFIX = "given/"
LAYERS = ("Conv", "Gemm", "MatMul")
"""Operations that layers with weights become."""
Feed = Mapping[str, NDArray[Any]]


def crop_shares(proto: Any) -> list[str]:
    """Names of the tensors by which maps are cropped: how much of every cell goes into a crop's.

    They are the left sides of the products of two matrices of which none is a layer's weights.
    """
    return [node.input[0] for node in _products(proto)]


def crops(proto: Any) -> list[str]:
    """Names of the cropped maps, as they enter the first layer behind."""
    products = _products(proto)
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in products:
        (name,) = node.output
        while len(readers[name]) == 1 and readers[name][0].op_type not in LAYERS:
            (name,) = readers[name][0].output
        if readers[name][0] not in products:
            found.append(name)
    return found


def _products(proto: Any) -> list[Any]:
    weights = {entry.name for entry in proto.graph.initializer}
    return [node for node in proto.graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)]


def with_given(proto: Any, names: Sequence[str]) -> Any:
    """A copy of a graph whose readers of some tensors read inputs of the same names behind ``given/``.

    The tensors themselves become outputs, so that what computes them stays.
    """
    import onnx

    changed = copy.deepcopy(proto)
    unknown = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    types = {entry.name: entry.type for entry in changed.graph.value_info}
    for node in changed.graph.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = f"{_PREFIX}{name}"
    for name in names:
        for entry, called in ((changed.graph.input.add(), f"{_PREFIX}{name}"), (changed.graph.output.add(), name)):
            entry.name = called
            entry.type.CopyFrom(types.get(name, unknown))
    return changed


def without_given(proto: Any) -> Any:
    """The same graph whole again: what :func:`with_given` changed is as it was before; ``proto`` is changed."""
    given = [entry.name for entry in proto.graph.input if entry.name.startswith(_PREFIX)]
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            if name in given:
                node.input[position] = name.removeprefix(_PREFIX)
    for entries, names in (
        (proto.graph.input, given),
        (proto.graph.output, [name.removeprefix(_PREFIX) for name in given]),
    ):
        for position in range(len(entries) - 1, -1, -1):
            if entries[position].name in names:
                del entries[position]
    return proto


def fed(found: Feed, names: Sequence[str]) -> Feed:
    """Computed tensors as inputs of a graph of :func:`with_given`."""
    return {f"{_PREFIX}{name}": found[name] for name in names}


def computed(proto: Any, names: Sequence[str], feeds: Sequence[Feed]) -> Iterator[Feed]:
    """Tensors inside a graph, one feed after the other; onnxruntime leaves out all that they do not need."""
    import onnx
    import onnxruntime

    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.output[:]
    for name in names:
        changed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield dict(zip(names, session.run(list(names), dict(feed))))
