"""OpenVINO graphs without what their files need not say: an int8 graph of a narrow network was two thirds text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SMALL = 8192
"""Bytes up to which constants are compared: ranges, scales and biases, but no weights."""


def slim(model: Any, ov: Any) -> None:
    """Let equal small constants be one, ranges of quantisation scalars, and only layers and outputs have names.

    What is computed stays the same bit for bit.

    Args:
        model: An ``openvino.Model``, changed in place.
        ov: The module ``openvino``.
    """
    known: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
    nodes = model.get_ordered_ops()
    for node in nodes:
        for port in node.inputs():
            source = port.get_source_output().get_node()
            if source.get_type_name() != "Constant" or source.data.nbytes > _SMALL:
                continue
            scalar = node.get_type_name() == "FakeQuantize" and source.data.size == 1
            kind = source.get_element_type()
            key = (str(kind), () if scalar else tuple(source.get_output_shape(0)), source.data.tobytes())
            if key not in known:
                known[key] = ov.op.Constant(kind, ov.Shape([]), source.data.ravel().tolist()) if scalar else source
            port.replace_source_output(known[key].output(0))
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Result", "Parameter"):
            _shorten(node, number)


def _shorten(node: Any, number: int) -> None:
    """Names of layers stay, since profilers show them."""
    if "Convolution" not in node.get_type_name():
        node.set_friendly_name(str(number))
    for output in node.outputs():
        if all(target.get_node().get_type_name() != "Result" for target in output.get_target_inputs()):
            output.get_tensor().set_names(set())


def without_indentation(path: Path) -> None:
    """Rewrite an XML file without the blanks between its elements; OpenVINO escapes ``>`` within them."""
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r">\s+<", "><", text), encoding="utf-8")
