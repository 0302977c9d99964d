"""One ONNX file with one picture input: what it takes, what it gives, and how it is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.teachers.base import one_line

PIXEL_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
LAYOUTS = ("nchw", "nhwc")


class OnnxFile:
    """A model run by onnxruntime, on CUDA where its build has it.

    Args:
        path: The ``.onnx`` file; its external data lie where it says.
        called: Named in errors.
        threads: Of one picture's or batch's run; None is onnxruntime's own choice, all cores.

    Attributes:
        files: The file and those of its external data: all bytes that decide what it gives.
        parameters: Values in its tensors, without whole numbers of 64 bits, which are shapes and indices.
        input: Name, numpy type and shape of its input; a free axis is None.
        outputs: Name -> shape of its outputs.

    Raises:
        UserError: onnxruntime is not installed; the file or its data are missing or damaged; not one input, or none
            that pictures fit into.
    """

    def __init__(self, path: Path, called: str, threads: int | None = None) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{called}: {error.name} is not installed: pip install 'mnvision[onnx]'") from None
        if not path.is_file():
            raise UserError(f"{path} does not exist; give an ONNX file as teacher.path")
        if threads is not None and threads < 1:
            raise UserError(f"teacher.threads={threads}: give at least 1, or null for all cores")
        self.called = called
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's errors have no base that its versions share
            raise UserError(f"{path}: not a readable ONNX file ({one_line(error)})") from None
        tensors = list(_tensors(model.graph))
        self.files = [path, *_external_files(tensors, path)]
        self.parameters = sum(math.prod(t.dims) for t in tensors if t.data_type != onnx.TensorProto.INT64)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        offered = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # likewise onnxruntime's
            raise UserError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from None
        self.input = self._checked_input()
        self.outputs = {output.name: _shape(output.shape) for output in self.session.get_outputs()}

    def run(self, pictures: NDArray[Any], names: Sequence[str]) -> list[NDArray[Any]]:
        """The outputs called ``names`` for one batch.

        Raises:
            UserError: onnxruntime fails.
        """
        try:
            return self.session.run(list(names), {self.input[0]: pictures})
        except Exception as error:  # likewise onnxruntime's
            raise UserError(f"{self.called}: onnxruntime failed on {pictures.shape} ({one_line(error)})") from None

    def require(self, names: Sequence[str]) -> None:
        """Refuse names that are none of its outputs.

        Raises:
            UserError: Says which outputs it has.
        """
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise UserError(f"{self.called} has no output {' or '.join(map(repr, missing))}; it has {self.describe()}")

    def describe(self) -> str:
        """Its outputs in words, free axes as "?"."""
        return ", ".join(f"{name} {_words(shape)}" for name, shape in self.outputs.items())

    def layout(self, wanted: str | None) -> str:
        """Where the channels are: as ``wanted``, or by which axis of the input has three entries.

        Raises:
            UserError: An unknown word, or an input whose channel axis has not three entries.
        """
        if wanted is not None and wanted not in LAYOUTS:
            raise UserError(f"teacher.layout={wanted!r}: choose nchw, nhwc or null")
        name, _, shape = self.input
        fitting = [layout for layout in LAYOUTS if shape[layout.index("c")] == 3]
        free = [layout for layout in LAYOUTS if shape[layout.index("c")] is None]
        if wanted is None and len(fitting) == 1:
            return fitting[0]
        if wanted in fitting + free:
            return str(wanted)
        if wanted is None and free:
            raise UserError(f"{self.called}: its input {name} {_words(shape)} does not say: give teacher.layout")
        raise UserError(
            f"{self.called}: its input {name} {_words(shape)} has no axis of 3 channels for {wanted or 'it'}"
        )

    def _checked_input(self) -> tuple[str, type[Any], tuple[int | None, ...]]:
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(f"{given.name} {_words(_shape(given.shape))}" for given in inputs)
            raise UserError(f"{self.called}: one input for pictures is needed, it has {names or 'none'}")
        shape = _shape(inputs[0].shape)
        if len(shape) != 4 or inputs[0].type not in PIXEL_TYPES:
            raise UserError(
                f"{self.called}: its input {inputs[0].name} is {inputs[0].type} {_words(shape)}; pictures need four "
                f"axes of {', '.join(PIXEL_TYPES)}"
            )
        return inputs[0].name, PIXEL_TYPES[inputs[0].type], shape


def _shape(axes: Sequence[Any]) -> tuple[int | None, ...]:
    """Free axes are names, None or not positive in what onnxruntime says."""
    return tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in axes)


def _words(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if axis is None else str(axis) for axis in shape)})"


def _tensors(graph: Any) -> Iterator[Any]:
    """All constants of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _tensors(inner)


def _external_files(tensors: Sequence[Any], path: Path) -> list[Path]:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    places = sorted({ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)})
    files = [path.parent / place for place in places]
    for file in files:
        if not file.is_file():
            raise UserError(f"{path} keeps weights in {file}, which does not exist: put it there")
    return files
