"""Weights and activations of an ONNX graph in 8 bits: NNCF's post-training quantisation, with corrected biases.

Convolutions and linear layers are quantised, each with the activation behind it, and what enters a pool;
normalisation, decoding and non-maximum suppression stay in float. Weights have one scale per output channel, and the
bias of every layer takes up the mean error of the layers before it ("bias correction", Nagel et al. 2019,
arXiv:1906.04721, section 4.2): both are needed, since folded depthwise weights differ 40-fold in range between
channels.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnvision.errors import UserError
from mnvision.export.base import Pixels, one_line
from mnvision.export.given import LAYERS, Feed, computed, crops, fed, with_given, without_given
from mnvision.export.graph import INPUT
from mnvision.export.stretch import STRETCH

_ACTIVATIONS = ("Clip", "Relu")
_POOLS = ("ReduceMean", "GlobalAveragePool")


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
        node: Name of its node in the graph.
        title: As the model calls it, such as ``backbone.blocks.0.depthwise.conv``.
        kind: "depthwise", "pointwise", "conv" or "linear".
        output: Name of the tensor that leaves it, behind its activation.
        activation: Name of the activation's node; empty where there is none.
    """

    node: str
    title: str
    kind: str
    output: str
    activation: str = ""


def layers_of(proto: Any) -> list[Layer]:
    """All layers with weights, in the graph's order."""
    weights = {entry.name: entry for entry in proto.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in proto.graph.node:
        if node.op_type not in LAYERS or node.input[1] not in weights or node.input[1].startswith(f"{STRETCH}."):
            continue
        behind = readers.get(node.output[0], [])
        fused = len(behind) == 1 and behind[0].op_type in _ACTIVATIONS
        title = node.input[1].removeprefix("model.").removesuffix(".weight")
        output = behind[0].output[0] if fused else node.output[0]
        kind = _kind(node, weights[node.input[1]].dims)
        found.append(Layer(node.name, title, kind, output, behind[0].name if fused else ""))
    return found


def _kind(node: Any, shape: Any) -> str:
    if node.op_type != "Conv":
        return "linear"
    groups = {entry.name: entry.i for entry in node.attribute}.get("group", 1)
    if groups > 1:
        return "depthwise"
    return "pointwise" if tuple(shape[2:]) == (1, 1) else "conv"


def quantized(
    proto: Any,
    images: Pixels,
    batch: int | None,
    kept: Collection[Layer] = (),
    corrected: bool = True,
    by_map: bool = True,
) -> Any:
    """A graph in int8.

    Args:
        proto: An ``onnx.ModelProto`` in float32; it is not changed.
        images: Pictures to calibrate on, ``(N, 3, H, W)`` uint8; an incomplete last batch is left out.
        batch: What the graph takes at once; None is any number.
        kept: Layers that stay in float.
        corrected: Whether biases take up the error. Without, a file is good for nothing but to be timed: in a quarter
            of the time.
        by_map: One scale for all that enters a layer, and 8 bits into pools, too: onnxruntime has integer kernels for
            nothing else. Without, inputs of depthwise layers have one scale per channel, and pools compute in float.

    Returns:
        An ``onnx.ModelProto`` with pairs of QuantizeLinear and DequantizeLinear and int8 weights, which onnxruntime
        and OpenVINO compute in int8.

    Raises:
        UserError: NNCF fails, or there are fewer pictures than a batch.
    """
    size = batch or 1
    feeds = [{INPUT: images[start : start + size]} for start in range(0, len(images) - size + 1, size)]
    if not feeds:
        raise UserError(f"batch={batch}: {len(images)} pictures to calibrate on do not fill it; give more")
    wanted = [layer for layer in layers_of(proto) if layer not in kept]
    quantizable = {name for layer in wanted for name in (layer.node, layer.activation)}
    quantizable |= _pools(proto, wanted) if by_map else set()
    others = [node.name for node in proto.graph.node if node.name not in quantizable]
    # NNCF follows a network from layer to layer, and would get lost between proposals and crops.
    given = crops(proto)
    nncf = _nncf()
    try:
        with _silent():
            int8 = nncf.quantize(
                with_given(proto, given),
                nncf.Dataset(_Feeds(proto, given, feeds) if given else feeds),
                subset_size=len(feeds),
                fast_bias_correction=False,
                ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                advanced_parameters=_settings(corrected, by_map),
            )
            return without_given(int8)
    except Exception as error:  # NNCF's errors have no base of their own
        raise UserError(f"NNCF cannot quantise this model ({one_line(error)})") from error


class _Feeds:
    """Pictures, and the crops of each beside it, which are computed each time: together they are too much to keep."""

    def __init__(self, proto: Any, names: Sequence[str], feeds: Sequence[Feed]) -> None:
        self.proto, self.names, self.feeds = proto, names, feeds

    def __iter__(self) -> Iterator[Feed]:
        for feed, found in zip(self.feeds, computed(self.proto, self.names, self.feeds)):
            yield {**feed, **fed(found, self.names)}

    def __len__(self) -> int:
        return len(self.feeds)


def with_float(int8: Any, proto: Any, layer: Layer) -> Any:
    """A copy of an int8 graph with one layer computed as in the float graph ``proto`` that it was made of.

    It is the layer alone: the biases behind it stay corrected for the error that it had.
    """
    changed = copy.deepcopy(int8)
    source = next(node for node in proto.graph.node if node.name == layer.node)
    node = next(node for node in changed.graph.node if node.name == layer.node)
    weights = {entry.name: entry for entry in proto.graph.initializer}
    for position, name in enumerate(source.input):
        if name in weights:
            added = changed.graph.initializer.add()
            added.CopyFrom(weights[name])
            added.name = f"float/{name}"
        node.input[position] = f"float/{name}" if name in weights else name
    return changed


def ends_of(proto: Any, layers: Collection[Layer]) -> list[Layer]:
    """The layers that no other layer comes behind: what they give is decoded."""
    before: dict[str, set[str]] = {}
    inner: set[str] = set()
    known = {layer.node for layer in layers}
    for node in proto.graph.node:  # in topological order, as ONNX demands
        sources = set().union(*(before.get(name, set()) for name in node.input))
        if node.name in known:
            inner |= sources
            sources = {node.name}
        before |= dict.fromkeys(node.output, sources)
    return [layer for layer in layers if layer.node not in inner]


def weight_bytes(proto: Any) -> int:
    """Size of a graph as a file, without its metadata."""
    return int(proto.ByteSize())


def in_batches(images: Pixels, batch: int | None, step: int = 8) -> Iterator[Pixels]:
    """The pictures in parts that a graph takes; a fixed batch's last part is filled up with its last picture."""
    size = batch or step
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = size - len(part) if batch else 0
        yield np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part


def _pools(proto: Any, layers: Collection[Layer]) -> set[str]:
    """Names of the pools directly behind layers: what enters them is in 8 bits, so that the layer can give 8 bits."""
    ends = {layer.output for layer in layers}
    return {node.name for node in proto.graph.node if node.op_type in _POOLS and node.input[0] in ends}


def _settings(corrected: bool, by_map: bool) -> Any:
    """NNCF's own choice is one scale per channel for inputs of depthwise layers."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    return AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False) if by_map else None,
        disable_bias_correction=not corrected,
    )


def _nncf() -> Any:
    logger = logging.getLogger("torch.utils.cpp_extension")  # NNCF's import makes it remark on absent compilers
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import nncf
    finally:
        logger.setLevel(level)
    return nncf


@contextmanager
def _silent() -> Iterator[None]:
    """Without NNCF's notes and progress bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
