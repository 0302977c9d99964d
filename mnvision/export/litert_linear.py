"""Linear layers of a ``.tflite`` that are computed in float, with their weights stored in int8."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def store_linear_weights(content: bytes, weights: Sequence[NDArray[np.float32]]) -> bytes:
    """Store the weights of some linear layers as int8, which LiteRT turns back into float once, as it opens a file.

    The converter itself writes layers wholly in int8, or wholly in float. The weights are at values of int8 already, so
    nothing is rounded here; but where a checkpoint was trained with one scale per layer, each row gets a finer one
    of its own, and is off by half a step of that at most.

    Args:
        content: A whole ``.tflite`` file.
        weights: ``(out, in)`` float32 of each layer; others, such as those of a resize, stay as they are.
    """
    from ai_edge_quantizer import qtyping, quantizer

    names = list(_outputs(content, weights))
    if not names:
        return content
    grid = qtyping.TensorQuantizationConfig(8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=grid, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    with contextlib.redirect_stdout(io.StringIO()):
        writer = quantizer.Quantizer(content)
        for name in names:
            kind = qtyping.TFLOperationName.FULLY_CONNECTED
            writer.update_quantization_recipe(f"^{re.escape(name)}(;|$)", kind, op_config=config)
        return bytes(writer.quantize().quantized_model)


def _outputs(content: bytes, weights: Sequence[NDArray[np.float32]]) -> Iterator[str]:
    """Names of what the linear layers with these weights give."""
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    linear = schema.BuiltinOperator.FULLY_CONNECTED
    for graph in model.subgraphs:
        for operation in graph.operators:
            if model.operatorCodes[operation.opcodeIndex].builtinCode != linear:
                continue
            tensor = graph.tensors[operation.inputs[1]]
            data = model.buffers[tensor.buffer].data
            if tensor.type != schema.TensorType.FLOAT32 or data is None:
                continue
            found = np.frombuffer(data.tobytes(), np.float32).reshape(tensor.shape)
            if any(found.shape == known.shape and np.array_equal(found, known) for known in weights):
                yield graph.tensors[operation.outputs[0]].name.decode()
