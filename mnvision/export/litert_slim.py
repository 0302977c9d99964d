"""``.tflite`` files without what they say twice: of a narrow int8 network a tenth was zeros and names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import flatbuffers

_ALIGNMENT = 16
"""Of constants, in bytes: the schema's ``force_align``, which generated Python code does not know."""


def slim(content: bytes) -> bytes:
    """The same model with equal vectors written once, and inner tensors named by their number.

    The zero points of a layer are as many int64 as it has channels, of its weights and of its biases, and all of them
    are 0. What is computed stays the same bit for bit.

    Args:
        content: A whole ``.tflite`` file.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    for buffer in model.buffers:
        if buffer.size:  # it stands behind the tables
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    for graph in model.subgraphs:
        _shorten(graph)
    builder = _builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _shorten(graph: Any) -> None:
    outside = {*map(int, graph.inputs), *map(int, graph.outputs)}
    for number, tensor in enumerate(graph.tensors):
        if number not in outside:
            tensor.name = str(number)


def _builder(size: int) -> flatbuffers.Builder:
    import flatbuffers

    class Builder(flatbuffers.Builder):
        """Writes no vector twice."""

        def __init__(self, initial_size: int) -> None:
            super().__init__(initial_size)
            self.known: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802
            """Where the vector is."""
            key = (x.dtype.str, x.tobytes())
            if key not in self.known:
                self.Prep(_ALIGNMENT, x.nbytes)
                self.known[key] = super().CreateNumpyVector(x)
            return self.known[key]

    return Builder(size)
